"""The page and the tables about continual self-edits: what each method keeps of what it learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from evaluation.knowledge.matrix import (
    Cell,
    Estimate,
    Matrix,
    cell_estimates,
    compare_methods,
    estimates,
    measures,
)
from evaluation.knowledge.summaries import Summary
from utils.runs.report import Report, line_plot
from utils.runs.tables import text_table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# of a heat map with more passages than this, cells hold no numbers
MAX_WRITTEN = 10
_COLUMNS = 3

HEADERS = (
    *("method", "before", "at the end", "net", "acquired", "backward transfer", "forgotten"),
    *("forward transfer", "trained tokens", "seconds", "edits failed", "unscored"),
)
DIFFERENCE_HEADERS = (
    *("at the end", "difference", "95 % interval", "standard errors", "p (Holm)", "detectable"),
    "sequences",
)
_LEGEND = """\
Percent of the questions of a sequence's passages, mean ± standard error over sequences. Before: \
the model as it came. At the end: after all self-edits; net is the difference. Acquired: right \
after a passage's own self-edit minus before. Backward transfer: at the end minus right after the \
own self-edit. Forgotten: the best since then minus at the end. Forward transfer: right before the \
own self-edit minus before all. Edits failed: self-edits that could not be read or are missing; \
their passages are trained on alone. Unscored: answers that the judge did not grade."""


@dataclass(frozen=True)
class MethodResult:
    """What a method did over S sequences, the same ones for all methods.

    `probes` are other numbers by name, for each sequence one after every row of its matrix:
    knowledge that no self-edit was about, the perplexity of a fixed text.
    """

    method: str
    matrices_S: Sequence[Matrix]
    trained_tokens: int
    seconds: float
    edits_failed: int = 0
    unscored: int = 0
    probes: Mapping[str, Sequence[Sequence[Cell]]] = field(default_factory=dict)


def result_rows(results: Sequence[MethodResult]) -> list[tuple[Any, ...]]:
    """Under HEADERS."""
    rows = []
    for result in results:
        found = estimates([measures(matrix) for matrix in result.matrices_S])
        numbers = [_percent(found[name]) for name in found]
        counts = (result.trained_tokens, result.seconds, result.edits_failed, result.unscored)
        rows.append((result.method, *numbers, *counts))
    return rows


def difference_rows(results: Sequence[MethodResult], base: str) -> list[tuple[Any, ...]]:
    """Under DIFFERENCE_HEADERS: the last row's mean of each method against that of `base`. Raises
    ValueError where methods have different numbers of sequences."""
    by_method = {r.method: [measures(matrix) for matrix in r.matrices_S] for r in results}
    rows = []
    for found in compare_methods(by_method, base):
        paired = found.difference
        interval = None if paired.interval is None else _range(*paired.interval)
        rows.append(
            (
                f"{found.method} - {base}",
                _points(paired.difference),
                interval,
                found.num_errors,
                found.p_holm,
                _points(paired.minimum_detectable),
                paired.n_prompts,
            )
        )
    return rows


def results_text(results: Sequence[MethodResult]) -> str:
    """All methods, and how they differ at the end from merge, or else from the first."""
    parts = [text_table(HEADERS, result_rows(results)), _LEGEND]
    if len(results) > 1:
        labels = [result.method for result in results]
        rows = difference_rows(results, "merge" if "merge" in labels else labels[0])
        parts.append(f"In percentage points:\n{text_table(DIFFERENCE_HEADERS, rows)}")
    return "\n\n".join(parts)


def averages_text(summaries: Mapping[str, Summary]) -> str:
    """A matrix for each, percent with standard errors."""
    parts = []
    for name, summary in summaries.items():
        headers = ["", *(f"passage {k + 1}" for k in range(summary.n_datapoints))]
        rows = [
            [f"after {r}", *map(_percent, cells)] for r, cells in enumerate(summary.estimates())
        ]
        told = f"{name}: {summary.n_sequences} sequences, {summary.dataset}, {summary.base_model}"
        parts.append(f"{told}\n{text_table(headers, rows)}")
    return "\n\n".join(parts)


def averages_report(name: str, summaries: Mapping[str, Summary]) -> Report:
    report = Report(f"Continual self-edits: {name}", "Average of runs")
    cells = {label: summary.estimates() for label, summary in summaries.items()}
    report.figure(heat_maps(cells), "Accuracy in percent (standard error below).")
    report.pre(averages_text(summaries))
    return report


def make_report(
    name: str,
    results: Sequence[MethodResult],
    *,
    base: str = "merge",
    notes: Sequence[str] = (),
) -> Report:
    """Tables, matrices and curves of the results so far; `notes` are paragraphs on top. Methods are
    compared with `base` where it is among them."""
    told = "nothing measured yet"
    if results:
        matrices_S = results[0].matrices_S
        told = f"{len(matrices_S)} sequences of {len(matrices_S[0][0])} passages"
    report = Report(f"Continual self-edits: {name}", told)
    for note in notes:
        report.paragraph(note)
    if not results:
        return report
    report.table(HEADERS, result_rows(results), _LEGEND)
    if len(results) > 1 and base in {result.method for result in results}:
        report.heading(f"Against {base}")
        caption = "Percentage points, paired by sequence."
        report.table(DIFFERENCE_HEADERS, difference_rows(results, base), caption)
    report.heading("Matrices")
    report.figure(
        heat_maps({result.method: cell_estimates(result.matrices_S) for result in results}),
        "Accuracy in percent (standard error below). A row for each self-edit, a column for each "
        "passage; left of the line is what was learned by then. Hatched: not measured.",
    )
    curves = {result.method: _learned_curve(result.matrices_S) for result in results}
    report.figure(
        line_plot(curves, xlabel="self-edits", ylabel="accuracy on the passages so far, %"),
        "Of what was learned so far, how much is known.",
    )
    for probe in dict.fromkeys(probe for result in results for probe in result.probes):
        lines = {r.method: _probe_curve(r.probes[probe]) for r in results if probe in r.probes}
        report.figure(
            line_plot(lines, xlabel="self-edits", ylabel=probe), f"{probe}, mean over sequences."
        )
    return report


def heat_maps(by_method: Mapping[str, Sequence[Sequence[Estimate | None]]]) -> Figure:
    """A matrix for each method, all in one colour scale from 0 to 100 %."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    colours = LinearSegmentedColormap.from_list("accuracy", ["white", "#2b6cb0"])
    num_columns = min(_COLUMNS, len(by_method))
    num_rows = -(-len(by_method) // num_columns)
    num_passages = max(len(matrix[0]) for matrix in by_method.values())
    side = 1.4 + 0.42 * min(num_passages, 2 * MAX_WRITTEN)
    # Figure draws with Agg; pyplot would look for a display and keep every figure alive
    figure = Figure(
        figsize=(0.9 + side * num_columns, (side + 0.4) * num_rows), layout="constrained"
    )
    grid = figure.subplots(num_rows, num_columns, squeeze=False)
    for axes in grid.flat[len(by_method) :]:
        axes.set_axis_off()
    mesh = None
    for axes, (method, matrix) in zip(grid.flat, by_method.items(), strict=False):
        numbers = [
            [float("nan") if cell is None else 100 * cell.mean for cell in row] for row in matrix
        ]
        # what has no colour of its own shows this ground
        axes.set_facecolor("#e4e7eb")
        axes.patch.set(hatch="///", edgecolor="#b6bdc7", linewidth=0)
        mesh = axes.pcolormesh(numbers, cmap=colours, vmin=0, vmax=100)
        axes.invert_yaxis()
        axes.set_title(method, loc="left", fontsize=10)
        axes.set_xlabel("passage", fontsize=9)
        axes.set_ylabel("after self-edit", fontsize=9)
        _label_cells(axes, matrix)
    if mesh is not None:
        figure.colorbar(mesh, ax=list(grid.flat), label="%", shrink=0.8)
    return figure


def _label_cells(axes: Axes, matrix: Sequence[Sequence[Estimate | None]]) -> None:
    num_passages = len(matrix[0])
    every = -(-num_passages // MAX_WRITTEN)
    columns, rows = range(0, num_passages, every), range(0, num_passages + 1, every)
    axes.set_xticks([k + 0.5 for k in columns], [str(k + 1) for k in columns], fontsize=8)
    axes.set_yticks([r + 0.5 for r in rows], [str(r) for r in rows], fontsize=8)
    axes.tick_params(length=0)
    # the stairs between what was learned and what was not yet
    steps = [(k + d, k + 1) for k in range(num_passages) for d in (0, 1)]
    axes.plot([x for x, _ in steps], [y for _, y in steps], color="#111111", linewidth=1.0)
    if num_passages > MAX_WRITTEN:
        return
    for r, row in enumerate(matrix):
        for k, cell in enumerate(row):
            if cell is None:
                continue
            error = "" if cell.error is None else f"\n{100 * cell.error:.0f}"
            axes.text(
                *(k + 0.5, r + 0.5, f"{100 * cell.mean:.0f}{error}"),
                ha="center",
                va="center",
                fontsize=7,
                color="white" if cell.mean > 0.6 else "#111111",
            )


def _learned_curve(matrices_S: Sequence[Matrix]) -> tuple[list[float], list[float]]:
    """The mean accuracy in percent on the passages of the self-edits so far, by their number."""
    cells = cell_estimates(matrices_S)
    points = [
        (r, [cell.mean for cell in row[:r] if cell is not None])
        for r, row in enumerate(cells)
        if r > 0
    ]
    drawn = [(float(r), 100 * fmean(means)) for r, means in points if means]
    return [x for x, _ in drawn], [y for _, y in drawn]


def _probe_curve(values_S_R: Sequence[Sequence[Cell]]) -> tuple[list[float], list[float]]:
    columns = [
        [value for value in column if value is not None] for column in zip(*values_S_R, strict=True)
    ]
    drawn = [(float(r), fmean(values)) for r, values in enumerate(columns) if values]
    return [x for x, _ in drawn], [y for _, y in drawn]


def _percent(found: Estimate | None) -> str | None:
    if found is None:
        return None
    error = "" if found.error is None else f" ± {100 * found.error:.1f}"
    return f"{100 * found.mean:.1f}{error}"


def _points(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _range(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}"
