"""What a sweep found: a table, sweep.csv, sweep.png with its numbers beside it, and sweep.html."""

from __future__ import annotations

import itertools
import logging
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.runs.files import atomic_write_text, read_jsonl
from utils.runs.report import Report, line_plot, save_png
from utils.runs.tables import csv_of_table, is_number, text_table
from utils.sweeps.manifest import Axes, Cell, Manifest, axis_labels, is_seed, same_text
from utils.terminal import argument_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

MOST_COLUMNS = 4
HEADLINES = ("accuracy", "reward", "loss", "divergence", "relative")
HELD_OUT = ("eval", "heldout", "test", "ood", "id")
BOOKKEEPING = ("time", "speed", "tokens", "optim")


class Result(NamedTuple):
    """A cell with the last value of each number in its metrics.jsonl, and the last step."""

    cell: Cell
    metrics: dict[str, float]
    step: int | None


class Columns(NamedTuple):
    shown: list[str]
    found: list[str]  # all that a done cell has


class Mean(NamedTuple):
    """Over seeds; `error` is the standard error, None where there is one value."""

    value: float
    error: float | None
    count: int


class Point(NamedTuple):
    x: Any  # a value of the axis
    place: float  # where it stands in the plot
    y: Mean


class Curves(NamedTuple):
    """What is plotted: `metric` against the axis `key`, a line for each label."""

    metric: str
    key: str
    ticks: dict[str, float]  # by their text
    log_base: int | None
    points_L: dict[str, list[Point]]
    seeds: list[str]  # the axes that are averaged over


def read_results(folder: Path, cells: Sequence[Cell]) -> list[Result]:
    return [_read_result(cell, folder / cell.folder / "metrics.jsonl") for cell in cells]


def choose_columns(results: Sequence[Result], axes: Axes, wanted: Sequence[str]) -> Columns:
    """The metrics to show: those `wanted`, else at most four that differ between cells, one for
    each kind of headline in turn, held-out ones first."""
    done = [r for r in results if r.cell.status == "done"]
    found = list(dict.fromkeys(name for r in done for name in r.metrics))
    if wanted:
        return Columns([name for name in wanted if name in found], found)
    # an axis is a column already, also where a script logs it
    free = [name for name in found if name not in axes]
    varying = [n for n in free if len({r.metrics[n] for r in done if n in r.metrics}) > 1] or free
    kinds = [[n for n in varying if word in n.lower()] for word in HEADLINES]
    rest = [n for n in varying if not any(n in kind for kind in kinds)]
    ranked = [sorted(kind, key=lambda n: _rank(n, done)) for kind in kinds]
    in_turn = [kind[i] for i in range(len(varying)) for kind in ranked if i < len(kind)]
    order = dict.fromkeys([*in_turn, *sorted(rest, key=lambda n: _rank(n, done))])
    return Columns(list(order)[:MOST_COLUMNS], found)


def table(
    results: Sequence[Result], axes: Axes, metrics: Sequence[str]
) -> tuple[list[str], list[list[Any]]]:
    """Headers and rows: a cell each, with its status as long as one is not done. A cell that is not
    done shows no metrics: they may stand for half a run."""
    labels = axis_labels(list(axes))
    unfinished = any(r.cell.status != "done" for r in results)
    headers = [*(labels[key] for key in axes), *(["status"] if unfinished else []), *metrics]
    rows = []
    for cell, values, _ in results:
        row = [_shown(cell.values[key]) for key in axes]
        row += [cell.status] if unfinished else []
        row += [values.get(name) if cell.status == "done" else None for name in metrics]
        rows.append(row)
    return headers, rows


def seed_table(
    results: Sequence[Result], axes: Axes, metrics: Sequence[str]
) -> tuple[list[str], list[list[Any]]] | None:
    """The done cells with their seeds put together, as mean ± standard error; None where no axis
    is a seed or none of those has two values."""
    others = [key for key in axes if not is_seed(key)]
    if not any(is_seed(key) and len(axes[key]) > 1 for key in axes):
        return None
    labels = axis_labels(list(axes))
    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in results:
        if result.cell.status == "done":
            place = tuple(same_text(result.cell.values[key]) for key in others)
            groups.setdefault(place, []).append(result)
    rows = []
    for group in groups.values():
        row = [_shown(group[0].cell.values[key]) for key in others]
        means = [mean([r.metrics[name] for r in group if name in r.metrics]) for name in metrics]
        rows.append([*row, len(group), *(_mean_text(m) for m in means)])
    return [*(labels[key] for key in others), "seeds", *metrics], rows


def mean(values: Sequence[float]) -> Mean | None:
    """With the standard error s / sqrt(n); None of no values."""
    if not values:
        return None
    error = None
    if len(values) > 1:
        error = statistics.stdev(values) / math.sqrt(len(values))
    return Mean(statistics.fmean(values), error, len(values))


def curves(results: Sequence[Result], axes: Axes, metric: str) -> Curves | None:
    """`metric` of the done cells against the first axis with two numbers ("inf" among them), else
    the first with two values; None where there is nothing to draw."""
    done = [
        r
        for r in results
        if r.cell.status == "done" and math.isfinite(r.metrics.get(metric, math.nan))
    ]
    if not done:
        return None
    plain = [key for key in axes if not is_seed(key)] or list(axes)
    long = [key for key in plain if len(axes[key]) > 1] or plain
    numeric = [key for key in long if all(_number(value) is not None for value in axes[key])]
    key = [*numeric, *long][0]
    log_base, places = _places(axes[key], numeric=key in numeric)
    seeds = [other for other in axes if is_seed(other) and other != key]
    lines = [other for other in axes if other not in (key, *seeds) and len(axes[other]) > 1]
    labels = axis_labels(list(axes))
    values: dict[str, dict[str, list[Result]]] = {}
    for result in done:
        cell = result.cell.values
        label = ", ".join(f"{labels[k]}={argument_text(cell[k])}" for k in lines)
        at = values.setdefault(label or metric, {})
        at.setdefault(same_text(cell[key]), []).append(result)
    points: dict[str, list[Point]] = {}
    for label, by_x in values.items():
        for x, group in by_x.items():
            found = mean([r.metrics[metric] for r in group])
            assert found is not None
            point = Point(group[0].cell.values[key], places[x], found)
            points.setdefault(label, []).append(point)
        points[label].sort(key=lambda point: point.place)
    return Curves(metric, key, places, log_base, points, seeds)


def plot(drawn: Curves, label: str) -> Figure:
    """The lines, with one standard error on either side; `label` names the x axis."""
    import matplotlib
    from matplotlib.ticker import NullLocator

    series = {
        name: ([p.place for p in points], [p.y.value for p in points])
        for name, points in drawn.points_L.items()
    }
    figure = line_plot(series, xlabel=label, ylabel=drawn.metric)
    axes = figure.axes[0]
    if drawn.log_base:
        axes.set_xscale("log", base=drawn.log_base)
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(drawn.ticks.values()), list(drawn.ticks))
    if len(drawn.ticks) > 8:
        axes.tick_params(axis="x", rotation=45)
    colours = matplotlib.colormaps["viridis"]
    for i, (line, points) in enumerate(zip(list(axes.lines), drawn.points_L.values(), strict=True)):
        # the report's own colours come round again after six
        if len(series) > 6:
            line.set_color(colours(0.9 * i / (len(series) - 1)))
        errors = [p.y.error or 0.0 for p in points]
        if any(errors):
            xs, ys = line.get_data()
            axes.errorbar(xs, ys, errors, fmt="none", ecolor=line.get_color(), capsize=2.5)
    if len(series) == 1 and drawn.metric not in series:
        axes.set_title(next(iter(series)), loc="left", fontsize=11)
    legend = axes.get_legend()
    if legend is not None and len(series) > 4:
        # so many would lie on the lines
        legend.remove()
        columns = 1 + (len(series) - 1) // 14
        figure.legend(loc="outside right upper", frameon=False, fontsize=9, ncols=columns)
    elif legend is not None:
        axes.legend(frameon=False, fontsize=9)
    return figure


def write_results_csv(path: Path, results: Sequence[Result], axes: Axes) -> None:
    """Every cell with everything that it measured; a metric of an axis' name is `last NAME`."""
    names = list(dict.fromkeys(name for r in results for name in r.metrics))
    fixed = ["cell", *axes, "status", "returncode", "seconds", "step"]
    headers = [*fixed, *(f"last {name}" if name in fixed else name for name in names)]
    rows = [
        [
            r.cell.name,
            *(argument_text(r.cell.values[key]) for key in axes),
            *(r.cell.status, r.cell.returncode, r.cell.seconds, r.step),
            *(r.metrics.get(name) for name in names),
        ]
        for r in results
    ]
    atomic_write_text(path, csv_of_table(headers, rows))


def write_outcome(
    folder: Path, manifest: Manifest, wanted: Sequence[str], plotted: str | None
) -> str:
    """Writes sweep.csv, sweep.html and, where there are numbers, sweep.png with sweep_plot.csv;
    gives the text for the screen."""
    axes = manifest.axes
    results = read_results(folder, manifest.cells)
    shown, found = choose_columns(results, axes, wanted)
    headers, rows = table(results, axes, shown)
    texts = [text_table(headers, rows)]
    seeds = seed_table(results, axes, shown)
    if seeds:
        texts.append(f"Mean ± standard error over seeds:\n\n{text_table(*seeds)}")
    missing = [name for name in dict.fromkeys([*wanted, plotted]) if name and name not in found]
    if missing:
        texts.append(
            f"No done cell has {', '.join(missing)}; found were {', '.join(found) or 'none'}"
        )
    write_results_csv(folder / "sweep.csv", results, axes)

    report = Report(f"Sweep of {manifest.script}", " ".join(manifest.arguments) or str(folder))
    statuses = [cell.status for cell in manifest.cells]
    report.tiles([(status, statuses.count(status)) for status in dict.fromkeys(statuses)])
    metric = plotted or next(iter(shown), None)
    drawn = None if metric is None else curves(results, axes, metric)
    if drawn is not None:
        report.figure(_write_plot(folder, drawn, axes), _plot_caption(drawn))
    else:
        logger.info("no plot: no done cell has a number for %s", metric or "it in metrics.jsonl")
    report.table(headers, rows, "The last value that each cell logged.")
    if seeds:
        report.table(*seeds, "Mean ± standard error over seeds.")
    for cell in manifest.cells:
        if cell.error:
            with report.details(f"{cell.name}: {cell.status}"):
                report.pre(cell.error, f"logs/{cell.name}.txt")
    report.write(folder / "sweep.html")
    return "\n\n".join(texts)


def _write_plot(folder: Path, drawn: Curves, axes: Axes) -> Figure:
    labels = axis_labels(list(axes))
    figure = plot(drawn, labels[drawn.key])
    save_png(figure, folder / "sweep.png")
    rows = [
        [label, argument_text(point.x), *point.y]
        for label, points in drawn.points_L.items()
        for point in points
    ]
    headers = ["line", drawn.key, drawn.metric, "standard_error", "cells"]
    atomic_write_text(folder / "sweep_plot.csv", csv_of_table(headers, rows))
    return figure


def _plot_caption(drawn: Curves) -> str:
    over = f", mean ± standard error over {' and '.join(drawn.seeds)}" if drawn.seeds else ""
    return f"{drawn.metric} against {drawn.key}{over}."


def _read_result(cell: Cell, path: Path) -> Result:
    try:
        records = read_jsonl(path, missing_ok=True)
    except ValueError as error:
        logger.warning("%s; its cell is shown without metrics", error)
        records = []
    metrics: dict[str, float] = {}
    for record in records:
        metrics |= {name: value for name, value in record.items() if is_number(value)}
    step = metrics.pop("step", None)
    return Result(cell, metrics, None if step is None else int(step))


def _rank(name: str, results: Sequence[Result]) -> tuple[bool, int, bool, bool, bool]:
    """Lower is shown first; among equals what was logged first."""
    parts = name.lower().split("/")
    return (
        parts[0] in BOOKKEEPING,
        sum(name not in r.metrics for r in results),
        parts[-1] != "mean",
        not any(part in HELD_OUT for part in parts),
        parts[-1] not in HEADLINES,
    )


def _number(value: Any) -> float | None:
    """Also of text: YAML reads 1e-4 as such, and there is no other way to write inf."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return None if math.isnan(number) else number


def _places(values: Sequence[Any], *, numeric: bool) -> tuple[int | None, dict[str, float]]:
    """The base of a logarithmic axis where the numbers span one, and where each value stands;
    infinity is one step beyond the rest."""
    texts = [same_text(value) for value in values]
    if not numeric:
        return None, {text: float(i) for i, text in enumerate(texts)}
    numbers = [_number(value) for value in values]
    finite = sorted(n for n in numbers if n is not None and math.isfinite(n))
    base = _log_base(finite)
    if len(finite) < 2:
        beyond = 2 * abs(finite[0]) or 1.0 if finite else 1.0
    elif base:
        beyond = finite[-1] * max(2.0, (finite[-1] / finite[0]) ** (1 / (len(finite) - 1)))
    else:
        beyond = finite[-1] + (finite[-1] - finite[0]) / (len(finite) - 1)
    pairs = zip(texts, numbers, strict=True)
    places = {text: n if n is not None and math.isfinite(n) else beyond for text, n in pairs}
    return base, dict(sorted(places.items(), key=lambda item: item[1]))


def _log_base(numbers: Sequence[float]) -> int | None:
    if not numbers or numbers[0] <= 0 or len(numbers) < 2:
        return None
    if all(math.log2(number).is_integer() for number in numbers):
        return 2
    gaps = [after - before for before, after in itertools.pairwise(numbers)]
    # over a decade, and not evenly
    return 10 if numbers[-1] >= 10 * numbers[0] and max(gaps) >= 2 * min(gaps) else None


def _shown(value: Any) -> Any:
    """Numbers stay numbers, so that their columns go right."""
    return value if is_number(value) else argument_text(value)


def _mean_text(found: Mean | None) -> str | None:
    if found is None:
        return None
    return f"{found.value:.4g}" + ("" if found.error is None else f" ± {found.error:.2g}")
