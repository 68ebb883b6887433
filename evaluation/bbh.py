"""Runs of test-time training on BBH against each other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.stats import PairedDifference, paired_difference
from training.bbh.report import accuracy_bars
from training.bbh.results import Finished, cells, common_tasks, paired_items
from utils.report import Report
from utils.tables import text_table

DIFFERENCE_HEADERS = ("task", "against", "label", "difference", "95% interval", "p", "items")


def difference_rows(runs: Sequence[Finished]) -> list[tuple[Any, ...]]:
    """Every label against the first, per task: paired by item and seed, the interval over items."""
    labels = list(dict.fromkeys(run.label for run in runs))
    rows: list[tuple[Any, ...]] = []
    for task in common_tasks(runs):
        for label in labels[1:]:
            base_P, tuned_P, items_P = paired_items(runs, labels[0], label, task)
            if not base_P:
                rows.append((task, labels[0], label, None, "no item and seed in common", None, 0))
                continue
            found = paired_difference(base_P, tuned_P, items_P)
            rows.append(
                (
                    *(task, labels[0], label, _percent(found.difference), _interval(found)),
                    *(found.p, found.n_prompts),
                )
            )
    return rows


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
            "Percentage points, on the items that both answered with the same seed; the interval "
            "takes items as independent.",
        )
    report.heading("Runs")
    report.table(("label", "seed", "run"), [(r.label, r.seed, str(r.path)) for r in runs])
    path = folder / "report.html"
    report.write(path)
    return path


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:+.1f}"


def _interval(found: PairedDifference) -> str:
    if found.interval is None:
        return "; ".join(found.notes)
    return f"{100 * found.interval[0]:+.1f} to {100 * found.interval[1]:+.1f}"
