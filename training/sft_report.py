"""What a fine-tuning run shows: report.html, and the words at its end."""

from pathlib import Path
from typing import Any

from training.connect import has_own_engines
from utils.runs.files import read_jsonl, shown_path
from utils.runs.report import Report, line_plot
from utils.terminal import command


def make_report(run: Path, config: Any) -> Report:
    """Of a run that is finished or still goes on."""
    metrics = read_jsonl(run / "metrics.jsonl", missing_ok=True)
    report = Report(f"sft {config.examples_file.name}", str(run))
    curves = {"train": "train/loss", "held out": "heldout/loss"}
    series = {}
    for label, key in curves.items():
        found = [m for m in metrics if key in m]
        if found:
            series[label] = ([m["step"] for m in found], [m[key] for m in found])
    if series:
        report.figure(line_plot(series, xlabel="step", ylabel="nats per learned token"), "Loss")
    samples = read_jsonl(run / "samples.jsonl", missing_ok=True)
    if samples:
        report.heading("What it answers")
        report.paragraph("The likeliest tokens, after training.")
    for sample in samples:
        with report.details(sample["where"], is_open=True):
            report.pre(sample["prompt"], "asked")
            report.pre(sample["answer"], "answer")
            report.pre(sample["reference"], "in the examples")
    return report


def an_eval_file(examples_file: Path, folder: Path = Path("evals")) -> Path | None:
    """Of the eval files there are, the one that is named like the examples, else the newest."""
    own = folder / f"{examples_file.name.partition('.')[0]}.eval.yaml"
    found = sorted(folder.glob("*.eval.yaml"), key=lambda path: path.stat().st_mtime)
    return own if own in found else found[-1] if found else None


def closing_words(config: Any, checkpoint: str, report: Path, seconds: float) -> str:
    model = None if config.model_name == "embedded" else config.model_name
    adapter = shown_path(checkpoint)
    talk = command("chat", checkpoint_path=adapter, model_name=model)
    eval_file = an_eval_file(config.examples_file)
    judge = command(
        "eval",
        eval_file=eval_file or "evals/XXXX.eval.yaml",
        model_name=model,
        checkpoint_paths=[adapter],
    )
    if eval_file is None:
        judge += "\n             (XXXX: an eval file, which scripts/gen_eval.py writes)"
    words = (
        f"\n{seconds:.0f} s in all. Adapter (PEFT format): {adapter}\n"
        f"Report: {shown_path(report)}\n\n"
        f"Talk to it:  {talk}\nJudge it:    {judge}"
    )
    if has_own_engines(config.backend):
        words += f"\nMerge it:    {command('export', checkpoint_path=adapter, output_dir='XXXX')}"
    return words
