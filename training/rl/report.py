"""What a reinforcement run shows: tables at its end, and report.html."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.domains.base import Domain, Problem, ShowsAnswers, ShowsChange, Split, Table
from training.rl.held_out import held_out, interval_table, problem_table, verdict
from training.rl.updates import mean_and_error
from utils.pass_at_k import PassAtK, pass_at_ks
from utils.runs.files import read_jsonl
from utils.runs.report import Report, line_plot
from utils.runs.tables import text_table

Problems = Mapping[Split, list[Problem]]
_SHOWN_ANSWERS = 40


def print_tables(domain: Domain, problems: Problems, run: Path) -> None:
    """The reward of every answer of the last batch, and held-out results before and after."""
    samples = _samples(run)
    print()
    if isinstance(domain, ShowsAnswers):
        tried = {sample["problem"] for sample in samples}
        domain.look_up_base([p for split in problems for p in problems[split] if p.id in tried])
        print(text_table(*domain.answer_table(problems, samples), max_width=72))
        for line in domain.summary(problems, samples):
            print(f"\n{line}")
    print()
    headers, rows, _ = _evaluation_table(samples, _metrics(run))
    print(text_table(headers, rows))
    for table in _comparison_tables(domain, samples):
        print(f"\n{text_table(*table)}")
    if (found := held_out(samples)) and (line := verdict(found)):
        print(f"\n{line}")


def _comparison_tables(domain: Domain, samples: Sequence[dict[str, Any]]) -> list[Table]:
    """The last held-out evaluation beside the first, and what the answers came to be like."""
    if (found := held_out(samples)) is None:
        return []
    tables = [problem_table(found), interval_table(found)]
    if isinstance(domain, ShowsChange):
        tables.append(domain.change_table(samples))
    return [table for table in tables if table is not None]


def _samples(run: Path) -> list[dict[str, Any]]:
    """The run's answers, each with its place in the run."""
    samples = read_jsonl(run / "samples.jsonl", missing_ok=True)
    return [sample | {"when": _when(sample, samples)} for sample in samples]


def _when(sample: dict[str, Any], samples: list[dict[str, Any]]) -> str:
    if sample["kind"] == "train":
        return f"train, batch {sample['step']}"
    if sample["step"] == 0:
        return "held out, before"
    last = max(s["step"] for s in samples if s["kind"] == "eval")
    return "held out, after" if sample["step"] == last else f"held out, step {sample['step']}"


def _metrics(run: Path) -> list[dict[str, Any]]:
    return read_jsonl(run / "metrics.jsonl", missing_ok=True)


def _trained(step: int, metrics: Sequence[Mapping[str, Any]]) -> str:
    """What had happened by then: a batch whose rewards teach nothing changes nothing."""
    if step == 0:
        return "before training"
    batches = [m for m in metrics if m["step"] <= step and "train/reward" in m]
    # lines of earlier versions do not count their updates
    updates = sum(int(m.get("updates", m["tokens/trained"] > 0)) for m in batches)
    return f"after {_counted(step, 'batch', 'batches')}, {_counted(updates, 'update', 'updates')}"


def _counted(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def _evaluation_table(
    samples: list[dict[str, Any]], metrics: Sequence[Mapping[str, Any]]
) -> tuple[list[str], list[list[Any]], str]:
    """Headers, rows and a caption, with pass@k where problems were answered several times; for
    k = 1 it is the share solved."""
    headers = ["held-out evaluation", "mean reward ± s.e.", "range", "solved"]
    rows = []
    intervals = 0
    steps = sorted({s["step"] for s in samples if s["kind"] == "eval"})
    for step in steps:
        rewards = [s["reward"] for s in samples if s["kind"] == "eval" and s["step"] == step]
        solved = [s["solved"] for s in samples if s["kind"] == "eval" and s["step"] == step]
        mean, error = mean_and_error(rewards)
        spread = f"{min(rewards):.2f} to {max(rewards):.2f}"
        share = f"{sum(solved)}/{len(solved)}"
        groups: dict[str, list[bool]] = {}
        for s in samples:
            if s["kind"] == "eval" and s["step"] == step:
                groups.setdefault(s["problem"], []).append(s["solved"])
        passes = pass_at_ks(list(groups.values()))[1:]
        rows.append(
            [
                *(_trained(step, metrics), f"{mean:.3f} ± {error:.3f}", spread, share),
                *map(_pass_text, passes),
            ]
        )
        headers[4:] = [f"pass@{row.k}" for row in passes]
        intervals += sum(row.interval is not None for row in passes)
    if len(headers) == 4:
        return headers, rows, ""
    caption = (
        "pass@k: the share of problems that at least one of k answers solves (unbiased, Chen et "
        "al. 2021)"
    )
    with_intervals = ", with its 95% interval over problems where two or more differ."
    return headers, rows, caption + (with_intervals if intervals else ".")


def _pass_text(row: PassAtK) -> str:
    if row.interval is None:
        return f"{row.mean:.2f}"
    low, high = row.interval
    return f"{row.mean:.2f} ({low:.2f} to {high:.2f})"


def make_report(domain: Domain, problems: Problems, run: Path, *, title: str) -> Report:
    """Of a run that is finished or still goes on."""
    metrics = _metrics(run)
    samples = _samples(run)
    report = Report(title, f"run {run.name}")
    report.tiles(_tiles(metrics))
    if not samples:
        return report
    _plots(report, metrics)
    report.heading("Held-out evaluation")
    report.table(*_evaluation_table(samples, metrics))
    for table in _comparison_tables(domain, samples):
        report.table(*table)
    if (found := held_out(samples)) and (line := verdict(found)):
        report.paragraph(line)
    if isinstance(domain, ShowsAnswers):
        report.heading("Self-edits and their rewards")
        report.table(*domain.answer_table(problems, samples))
        for line in domain.summary(problems, samples):
            report.paragraph(line)
        domain.add_to_report(report, problems, samples)
    report.heading("Answers")
    for sample in samples[-_SHOWN_ANSWERS:]:
        label = f"{sample['when']}, {sample['problem']}: reward {sample['reward']:.2f}"
        with report.details(label):
            report.pre(sample["prompt"], "prompt")
            report.pre(sample["answer"], "answer")
            if sample["note"]:
                report.paragraph(sample["note"])
    return report


def write_published(domain: Domain, problems: Problems, run: Path) -> None:
    """Files in the formats that the domain's published code reads, if it has any."""
    if isinstance(domain, ShowsAnswers):
        domain.write_files(run, problems, _samples(run))


def _tiles(metrics: list[dict[str, Any]]) -> list[tuple[str, Any] | tuple[str, Any, str]]:
    evaluations = [m for m in metrics if "eval/reward" in m]
    batches = [m for m in metrics if "train/reward" in m]
    tiles: list[tuple[str, Any] | tuple[str, Any, str]] = []
    if evaluations:
        first, last = evaluations[0], evaluations[-1]
        tiles.append(("held-out reward before", f"{first['eval/reward']:.3f}"))
        if last is not first:
            tiles.append(("held-out reward after", f"{last['eval/reward']:.3f}"))
    tiles.append(("batches", len(batches)))
    for name in ("tokens/sampled", "tokens/trained"):
        tiles.append((name.replace("/", " "), f"{sum(m[name] for m in batches):,.0f}"))
    return tiles


_PLOTS = (
    ("reward", ("train/reward", "eval/reward")),
    ("share solved", ("train/solved", "eval/solved")),
    ("entropy, nats per token", ("policy/entropy",)),
    ("sampler against trainer, nats", ("policy/rms_sampler_trainer",)),
)


def _plots(report: Report, metrics: list[dict[str, Any]]) -> None:
    for label, names in _PLOTS:
        lines = {}
        for name in names:
            points = [(m["step"], m[name]) for m in metrics if name in m]
            if len(points) > 2:
                lines[name] = ([x for x, _ in points], [y for _, y in points])
        if lines:
            report.figure(line_plot(lines, xlabel="batches", ylabel=label), label)
