"""Runs of test-time training on BBH against each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.stats import PairedDifference, paired_difference
from training.domains.bbh.report import accuracy_bars
from training.domains.bbh.results import Finished, Pairs, cells, common_tasks, paired_items
from utils.runs.report import Report
from utils.runs.tables import text_table

DIFFERENCE_HEADERS = ("task", "against", "label", "difference", "95% interval", "p", "items")


def difference_rows(runs: Sequence[Finished]) -> list[tuple[Any, ...]]:
    """Every label against the first, paired by item and seed: per task with the interval over
    items, then the mean of the tasks with the interval over tasks."""
    first, *others = dict.fromkeys(run.label for run in runs)
    tasks = common_tasks(runs)
    pairs = {(t, label): paired_items(runs, first, label, t) for t in tasks for label in others}
    rows = [
        _difference_row(task, first, label, pairs[task, label], pairs[task, label].questions_P)
        for task in tasks
        for label in others
    ]
    if len(tasks) > 1:
        for label in others:
            clusters_P = [task for task in tasks for _ in pairs[task, label].base_P]
            joined = _joined([pairs[task, label] for task in tasks])
            rows.append(_difference_row("mean", first, label, joined, clusters_P))
    return rows


def _difference_row(
    task: str, base: str, tuned: str, pairs: Pairs, clusters_P: Sequence[str]
) -> tuple[Any, ...]:
    if not pairs.base_P:
        return (task, base, tuned, None, "no item and seed in common", None, 0)
    found = paired_difference(pairs.base_P, pairs.tuned_P, clusters_P)
    assert found.difference is not None
    shown = f"{100 * found.difference:+.1f}"
    return (task, base, tuned, shown, _interval(found), found.p, found.n_prompts)


def _joined(pairs: Sequence[Pairs]) -> Pairs:
    joined = Pairs([], [], [])
    for of_task in pairs:
        joined.base_P.extend(of_task.base_P)
        joined.tuned_P.extend(of_task.tuned_P)
        joined.questions_P.extend(of_task.questions_P)
    return joined


def compare_text(runs: Sequence[Finished]) -> str:
    labels = list(dict.fromkeys(run.label for run in runs))
    table = cells(runs)
    rows = [
        (task, *(f"{cell.mean:.1f} ± {cell.error:.1f}" for cell in by_label.values()))
        for task, by_label in table.items()
    ]
    text = text_table(("task", *labels), rows)
    differences = difference_rows(runs)
    if differences:
        text += f"\n\n{text_table(DIFFERENCE_HEADERS, differences)}"
    return text


def write_comparison(folder: Path, runs: Sequence[Finished]) -> Path:
    labels = list(dict.fromkeys(run.label for run in runs))
    table = cells(runs)
    report = Report("BIG-Bench-Hard: comparison", ", ".join(labels))
    by_label = {label: {task: table[task][label] for task in table} for label in labels}
    report.figure(accuracy_bars(by_label), "Accuracy in percent, with one standard error.")
    rows = [
        (task, *(f"{cell.mean:.1f} ± {cell.error:.1f}" for cell in of_task.values()))
        for task, of_task in table.items()
    ]
    seeds = {label: next(iter(table.values()))[label].num_seeds for label in labels}
    report.table(
        ("task", *labels),
        rows,
        "Standard errors over seeds ("
        + ", ".join(f"{label}: {n}" for label, n in seeds.items())
        + "); over items where there is one seed.",
    )
    differences = difference_rows(runs)
    if differences:
        report.table(
            DIFFERENCE_HEADERS,
            differences,
            "Percentage points, on the items that both answered with the same seed. The intervals "
            "of tasks take items as independent, that of the mean takes tasks as independent.",
        )
    report.heading("Runs")
    report.table(("label", "seed", "run"), [(r.label, r.seed, str(r.path)) for r in runs])
    path = folder / "report.html"
    report.write(path)
    return path


def _interval(found: PairedDifference) -> str:
    if found.interval is None:
        return "; ".join(found.notes)
    return f"{100 * found.interval[0]:+.1f} to {100 * found.interval[1]:+.1f}"
