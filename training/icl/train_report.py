"""A training run in words and pictures: the plan of a dry run, and report.html."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.runs.files import read_jsonl
from utils.runs.report import Report, line_plot
from utils.runs.tables import text_table
from utils.terminal import command

MODES = {"id": "tasks of the mixture", "ood": "new tasks", "iwl": "in-weights: item not in context"}
LINES = {"loss": "model", "generalizing_loss": "generalizing", "memorizing_loss": "memorizing"}


def plan_table(
    *, num_parameters: int, memory: int, tokens: int, save_steps: Sequence[int], folder: Path
) -> str:
    """What a run would do; memory in bytes, tokens are all input positions of all updates."""
    shown = [str(step) for step in save_steps]
    if len(shown) > 12:
        shown = [*shown[:6], "...", *shown[-3:]]
    rows = [
        ["parameters", f"{num_parameters:,}"],
        ["input positions in all", f"{tokens:,}"],
        ["checkpoints", f"{len(save_steps)}: {', '.join(shown)}"],
        ["memory of training, about", f"{memory / 2**20:,.1f} MiB"],
        ["folder", str(folder)],
    ]
    return text_table(["plan", ""], rows, max_width=100)


def make_report(run_dir: Path, title: str) -> Report:
    """A run so far, from metrics.jsonl: losses beside the exact predictors', relative distance,
    losses of the tasks one by one, training loss."""
    records = read_jsonl(run_dir / "metrics.jsonl", missing_ok=True)
    report = Report(title, str(run_dir))
    last = _last(records)
    report.tiles(
        [
            (label, last[key])
            for key, label in {
                "eval/id/loss": "loss, mixture",
                "eval/ood/loss": "loss, new tasks",
                "eval/id/relative_distance": "relative distance (1: memorizing)",
                "train/loss": "training loss",
            }.items()
            if key in last
        ]
    )
    for mode, words in MODES.items():
        series = {label: _series(records, f"eval/{mode}/{key}") for key, label in LINES.items()}
        _figure(report, series, f"Loss: {words}", "loss")
    distances = {
        words: _series(records, f"eval/{mode}/relative_distance") for mode, words in MODES.items()
    }
    _figure(
        report,
        distances,
        "Between the predictors: 0 generalizing, 1 memorizing",
        "relative distance",
    )
    tasks = sorted(key for key in last if key.startswith("eval/task_"))
    per_task = {key.split("/")[1].replace("_", " "): _series(records, key) for key in tasks[:6]}
    _figure(report, per_task, "Loss on single tasks", "loss")
    _figure(report, {"training": _series(records, "train/loss")}, "Training loss", "loss")
    report.table(["metric", "last value"], [[key, value] for key, value in last.items()])
    return report


def closing_words(run_dir: Path, config: Any) -> str:
    """The last values, and what to do next."""
    last = _last(read_jsonl(run_dir / "metrics.jsonl"))
    rows = []
    for mode in MODES:
        values = [last.get(f"eval/{mode}/{key}") for key in (*LINES, "relative_distance")]
        if any(value is not None for value in values):
            rows.append([mode, *values])
    table = text_table(["", *LINES.values(), "relative distance"], rows)
    runs_dir = config.runs_dir if str(config.runs_dir) != "runs/icl" else None
    place = (
        {"log_path": run_dir} if config.log_path else {"runs_dir": runs_dir, "name": config.name}
    )
    return (
        f"\n{table}\n\nReport: {run_dir / 'report.html'}\n"
        f"Evaluate all checkpoints:  {command('icl_eval', **place)}"
    )


def _last(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for record in records:
        last |= {key: value for key, value in record.items() if key != "step"}
    return last


def _series(records: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    found = [(record["step"], record[key]) for record in records if key in record]
    return [step for step, _ in found], [value for _, value in found]


def _figure(
    report: Report, series: Mapping[str, tuple[list[float], list[float]]], caption: str, ylabel: str
) -> None:
    filled = {name: line for name, line in series.items() if line[0]}
    if filled:
        report.figure(line_plot(filled, xlabel="step", ylabel=ylabel), caption)
