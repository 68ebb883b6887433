"""The page about a run on BBH."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from training.domains.bbh.data import TaskData
from training.domains.bbh.methods import TaskResult
from training.domains.bbh.results import HEADERS, Cell
from utils.runs.report import LINE_COLOURS, Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 8


def make_report(
    run: str,
    name: str,
    results: Sequence[TaskResult],
    data: Sequence[TaskData],
    rows: Sequence[Sequence[Any]],
) -> Report:
    """Of the tasks that are done; `run` is its name."""
    report = Report(f"BIG-Bench-Hard: {name}", run)
    if not results:
        return report
    mean = rows[-1]
    report.tiles(
        [
            ("mean accuracy", f"{mean[1]:.1f} %", f"standard error over items {mean[2]:.1f}"),
            ("chance", f"{mean[3]:.1f} %"),
            ("tasks", len(results)),
            ("training", f"{mean[7]:.0f} s"),
            ("answering", f"{mean[8]:.0f} s"),
        ]
    )
    accuracy = {row[0]: Cell(row[1], row[2], 1) for row in rows}
    report.figure(accuracy_bars({"accuracy": accuracy}, chance={row[0]: row[3] for row in rows}))
    report.table(HEADERS, rows)
    sources = {found.task.name: found.source for found in data}
    report.heading("Answers")
    for result in results:
        with report.details(f"{result.task} ({result.accuracy:.1f} %)"):
            report.paragraph(f"Items: {sources[result.task]}")
            for p in result.predictions[:SHOWN]:
                mark = "right" if p.right else "wrong"
                report.pre(p.question, f"item {p.index}")
                answer = "no answer" if p.answer is None else p.answer
                report.pre(f"{answer}  ({mark}; expected {p.target})", p.event or "answer")
    return report


def accuracy_bars(
    by_label: dict[str, dict[str, Cell]], chance: dict[str, float] | None = None
) -> Figure:
    """Accuracies in percent by label and task, with one standard error."""
    from matplotlib.figure import Figure

    tasks = list(next(iter(by_label.values())))
    figure = Figure(
        figsize=(7.2, 1 + 0.28 * len(tasks) * max(1, len(by_label) * 0.7)), layout="constrained"
    )
    axes = figure.add_subplot()
    height = 0.8 / len(by_label)
    for number, (label, of_task) in enumerate(by_label.items()):
        places = [-place - number * height for place in range(len(tasks))]
        axes.barh(
            places,
            [of_task[task].mean for task in tasks],
            xerr=[of_task[task].error for task in tasks],
            height=height,
            label=label,
            color=LINE_COLOURS[number % len(LINE_COLOURS)],
            error_kw={"linewidth": 0.8},
        )
    if chance is not None:
        places = [-place for place in range(len(tasks))]
        axes.plot([chance[task] for task in tasks], places, "k|", markersize=8, label="chance")
    axes.set_yticks(
        [-place - height * (len(by_label) - 1) / 2 for place in range(len(tasks))], tasks
    )
    axes.set_xlabel("accuracy (%)")
    axes.spines[["top", "right"]].set_visible(False)
    if len(by_label) > 1 or chance is not None:
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure
