"""Pictures of an in-context-learning experiment, each a PNG with its numbers beside it as CSV.

threshold        loss against the number of tasks, at the end of training
transience       loss against the step
phase_diagram    relative distance by step and number of tasks: 0 (blue) is the generalizing
                 predictor, 1 (red) the memorizing one
context          loss against what stands before, at the end of training
Runs that differ in their seeds alone are averaged. The exact predictors are dashed: blue the
generalizing one, red the memorizing one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from evaluation.icl.points import (
    LOSS_NAMES,
    MODES,
    Row,
    averaged,
    final_points,
    grouped,
    points_of,
    position_records,
    task_order,
)
from utils.runs.files import atomic_write_text
from utils.runs.report import LINE_COLOURS, Report, save_png
from utils.runs.tables import csv_text

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

LOSSES = {
    "BallsAndUrns": "KL from the urn, nats",
    "LinearRegression": "squared error / D",
    "Classification": "cross-entropy, nats",
}
GENERALIZING, MEMORIZING = "#2b6cb0", "#c53030"
PREDICTORS = {"generalizing": GENERALIZING, "memorizing": MEMORIZING}
MODEL_COLOURS = ("#111111", *LINE_COLOURS[2:], LINE_COLOURS[1])
# more rows of panels than this are in the CSV alone
MAX_ROWS = 12


class Plot(NamedTuple):
    name: str
    caption: str
    figure: Figure
    rows: list[Row]  # of the CSV


def make_plots(frame: pd.DataFrame) -> tuple[list[Plot], dict[str, str]]:
    """The plots that the results (of load_eval_results) allow, and why there is none of the others,
    by name. With several families of tasks there is one of each for each of them."""
    points = points_of(frame)
    families = list(dict.fromkeys(point["family"] for point in points))
    makers: dict[str, Callable[[list[Row]], Plot | str]] = {
        "threshold": _threshold,
        "transience": _transience,
        "phase_diagram": _phase_diagram,
        "context": _context,
    }
    plots: list[Plot] = []
    missing: dict[str, str] = {}
    if not points:
        return plots, dict.fromkeys(makers, "nothing was evaluated yet")
    for family in families:
        of_family = [point for point in points if point["family"] == family]
        for name, make in makers.items():
            full_name = name if len(families) == 1 else f"{name}-{family}"
            made = make(of_family)
            if isinstance(made, str):
                missing[full_name] = made
            else:
                plots.append(made._replace(name=full_name))
    return plots, missing


def write_plots(plots: Sequence[Plot], folder: Path) -> list[Path]:
    """NAME.png and NAME.csv of each; the pictures' paths."""
    paths = []
    for plot in plots:
        path = folder / f"{plot.name}.png"
        save_png(plot.figure, path)
        atomic_write_text(path.with_suffix(".csv"), csv_text(plot.rows))
        paths.append(path)
    return paths


def write_report(
    path: Path,
    name: str,
    plots: Sequence[Plot],
    missing: Mapping[str, str],
    headers: Sequence[str],
    rows: Sequence[Sequence[Any]],
) -> None:
    """One page with the plots and the table of all that was evaluated."""
    report = Report(f"In-context learning: {name}", f"{len(rows)} evaluations")
    for plot in plots:
        report.heading(plot.name.replace("_", " "))
        report.figure(plot.figure, plot.caption)
    report.heading("Evaluations")
    report.table(headers, rows, "Losses are means over sequences and positions.")
    if missing:
        report.heading("Not drawn")
        report.table(("plot", "why"), list(missing.items()))
    report.write(path)


# ------------------------------------------------------------------------------------------- plots


def _threshold(points: list[Row]) -> Plot | str:
    points = [point for point in final_points(points) if point["step"] is not None]
    counts = sorted({point["num_tasks"] for point in points}, key=task_order)
    if len(counts) < 2:
        return "needs trained runs with two or more values of setting.num_tasks"
    rows = averaged(points, ("mode", "setting", "model", "num_tasks"), LOSS_NAMES)
    rows.sort(key=lambda row: task_order(row["num_tasks"]))
    places = {count: math.log2(task_order(count)) for count in counts}
    # inf stands at the right, a little apart
    beyond = max(place for place in places.values() if place < math.inf) + 1.5
    places = {count: min(place, beyond) for count, place in places.items()}
    panels = _Panels(rows, ("setting",))

    def draw(axes: Axes, of_panel: list[Row]) -> None:
        for which, colour in PREDICTORS.items():
            drawn = _first_of_each([r for r in of_panel if r[f"{which}_loss"] is not None])
            axes.plot(
                [places[row["num_tasks"]] for row in drawn],
                [row[f"{which}_loss"] for row in drawn],
                **_dashed(which, colour, marker="."),
            )
        for i, (label, line) in enumerate(grouped(of_panel, "model").items()):
            axes.errorbar(
                [places[row["num_tasks"]] for row in line],
                [row["loss"] for row in line],
                [row["error"] or 0.0 for row in line],
                **_solid(label, i, marker="o"),
            )
        axes.set_xticks(list(places.values()), ["∞" if c == "inf" else str(c) for c in counts])
        axes.set_xlabel("number of tasks (log2)")
        axes.set_ylim(bottom=0)

    figure = panels.draw(draw, _loss_label(points))
    caption = "Loss at the end of training against the number of tasks in the mixture."
    return Plot("threshold", caption + _seeds_told(rows), figure, rows)


def _first_of_each(rows: Sequence[Row]) -> list[Row]:
    """Predictors are the same for all models: one row of each number of tasks will do."""
    return list({row["num_tasks"]: row for row in reversed(rows)}.values())[::-1]


def _transience(points: list[Row]) -> Plot | str:
    points = [point for point in points if point["step"] is not None]
    per_run = [len({p["step"] for p in of_run}) for of_run in grouped(points, "run").values()]
    if not per_run or max(per_run) < 3:
        return "needs a run with three or more evaluated checkpoints (training.save_schedule)"
    rows = averaged(points, ("mode", "setting", "num_tasks", "model", "step"), LOSS_NAMES)
    rows.sort(key=lambda row: (task_order(row["num_tasks"]), row["step"]))
    steps = [row["step"] for row in rows]
    panels = _Panels(rows, ("setting", "num_tasks"))

    def draw(axes: Axes, of_panel: list[Row]) -> None:
        for which, colour in PREDICTORS.items():
            value = of_panel[0][f"{which}_loss"]
            if value is not None:
                axes.axhline(value, **_dashed(which, colour))
        for i, (label, line) in enumerate(grouped(of_panel, "model").items()):
            axes.plot(
                [row["step"] for row in line],
                [row["loss"] for row in line],
                **_solid(label, i, marker="o"),
            )
        if max(steps) >= 20 * min(steps):
            axes.set_xscale("log")
        axes.set_xlabel("step")

    figure = panels.draw(draw, _loss_label(points))
    caption = "Loss in the course of training; dashed: the exact predictors."
    return Plot("transience", caption + _seeds_told(rows), figure, rows)


def _phase_diagram(points: list[Row]) -> Plot | str:
    points = [point for point in points if point["step"] is not None]
    steps = sorted({point["step"] for point in points})
    counts = sorted({point["num_tasks"] for point in points}, key=task_order)
    if len(steps) < 2 or len(counts) < 2:
        return "needs two or more steps and two or more values of setting.num_tasks"
    if all(point["record"]["relative_distance"] is None for point in points):
        return "the relative distance is undefined everywhere (see relative_distance_note)"
    names = ("relative_distance",)
    rows = averaged(points, ("mode", "setting", "model", "num_tasks", "step"), names)
    rows.sort(key=lambda row: (task_order(row["num_tasks"]), row["step"]))
    panels = _Panels(rows, ("setting", "model"))

    def draw(axes: Axes, of_panel: list[Row]) -> None:
        cells = {(r["num_tasks"], r["step"]): r["relative_distance"] for r in of_panel}
        values = [[cells.get((count, step)) for step in steps] for count in counts]
        numbers = [[math.nan if v is None else v for v in row] for row in values]
        from matplotlib.colors import LinearSegmentedColormap

        colours = LinearSegmentedColormap.from_list("distance", [GENERALIZING, "white", MEMORIZING])
        # what has no colour of its own shows this ground
        axes.set_facecolor("#c9ced6")
        axes.patch.set(hatch="///", edgecolor="#8a93a0", linewidth=0)
        mesh = axes.pcolormesh(numbers, cmap=colours, vmin=0, vmax=1)
        shown = range(0, len(steps), max(1, math.ceil(len(steps) / 8)))
        axes.set_xticks([i + 0.5 for i in shown], [str(steps[i]) for i in shown])
        ticks = [i + 0.5 for i in range(len(counts))]
        axes.set_yticks(ticks, ["∞" if c == "inf" else str(c) for c in counts])
        axes.set_xlabel("step")
        axes.grid(visible=False)
        axes.figure.colorbar(mesh, ax=axes, label="relative distance")

    figure = panels.draw(draw, "number of tasks", legend=False)
    caption = (
        "Relative distance: 0 like the generalizing predictor, 1 like the memorizing one; hatched "
        "where it is undefined, because the predictors agree or there is no memorizing one, or "
        "where there is no checkpoint."
    )
    return Plot("phase_diagram", caption + _seeds_told(rows), figure, rows)


def _context(points: list[Row]) -> Plot | str:
    points = final_points(points)
    if all(len(point["record"]["position_loss"]) < 2 for point in points):
        return "this setting predicts at one position only"
    keys = ("mode", "setting", "num_tasks", "model", "position")
    by_position = [
        {**point, "position": position, "record": record}
        for point in points
        for position, record in enumerate(position_records(point["record"]))
    ]
    rows = averaged(by_position, keys, LOSS_NAMES)
    rows.sort(key=lambda row: (task_order(row["num_tasks"]), row["position"]))
    panels = _Panels(rows, ("setting", "num_tasks"))

    def draw(axes: Axes, of_panel: list[Row]) -> None:
        lines = grouped(of_panel, "model")
        first = next(iter(lines.values()))
        positions = [row["position"] for row in first]
        for i, (label, line) in enumerate(lines.items()):
            axes.plot(
                [row["position"] for row in line],
                [row["loss"] for row in line],
                **_solid(label, i, marker="o" if len(line) <= 20 else ""),
            )
        for which, colour in PREDICTORS.items():
            values = [row[f"{which}_loss"] for row in first]
            if None not in values:
                axes.plot(positions, values, **_dashed(which, colour))
        drawn = [row[name] for row in of_panel for name in LOSS_NAMES if row[name] is not None]
        if min(drawn) > 0 and max(drawn) > 10 * min(drawn):
            axes.set_yscale("log")
        axes.set_xlabel("items seen before")

    figure = panels.draw(draw, _loss_label(points))
    caption = "Loss by position in the context, at the end of training; dashed: exact predictors."
    return Plot("context", caption + _seeds_told(rows), figure, rows)


# ----------------------------------------------------------------------------------------- drawing


class _Panels:
    """A grid of axes: a column for each mode, a row for each combination of `keys`."""

    def __init__(self, rows: Sequence[Row], keys: Sequence[str]) -> None:
        self._keys = keys
        self._modes = [mode for mode in MODES if any(row["mode"] == mode for row in rows)]
        self._groups: dict[tuple[Any, ...], list[Row]] = {}
        for row in rows:
            self._groups.setdefault(tuple(row[key] for key in keys), []).append(row)

    def draw(
        self, draw: Callable[[Axes, list[Row]], None], ylabel: str, *, legend: bool = True
    ) -> Figure:
        from matplotlib.figure import Figure

        shown = list(self._groups.items())[:MAX_ROWS]
        if len(shown) < len(self._groups):
            logger.warning(
                "%d of %d groups of runs are drawn; the CSV has all", len(shown), len(self._groups)
            )
        size = (1.2 + 3.9 * len(self._modes), 0.5 + 2.7 * len(shown))
        # Figure draws with Agg; pyplot would look for a display and keep every figure alive
        figure = Figure(figsize=size, layout="constrained")
        grid = figure.subplots(len(shown), len(self._modes), squeeze=False)
        for line, (group, rows) in zip(grid, shown, strict=True):
            for axes, mode in zip(line, self._modes, strict=True):
                title = ", ".join(part for part in (MODES[mode], self._group_label(group)) if part)
                axes.set_title(title, loc="left", fontsize=9)
                axes.spines[["top", "right"]].set_visible(False)
                axes.grid(axis="y", color="#d8dce2", linewidth=0.7)
                axes.set_axisbelow(True)
                of_mode = [row for row in rows if row["mode"] == mode]
                if of_mode:
                    draw(axes, of_mode)
                else:
                    axes.text(0.5, 0.5, "not evaluated", ha="center", transform=axes.transAxes)
            line[0].set_ylabel(ylabel)
        if legend:
            found: dict[str, Any] = {}
            for axes in grid.flat:
                for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                    found.setdefault(label, handle)
            figure.legend(
                list(found.values()),
                list(found),
                loc="outside lower center",
                ncols=min(4, len(found)),
                frameon=False,
                fontsize=9,
            )
        return figure

    def _group_label(self, group: tuple[Any, ...]) -> str:
        parts = []
        for key, value in zip(self._keys, group, strict=True):
            if key == "num_tasks":
                parts.append("M=∞" if value == "inf" else f"M={value}")
            # one row of panels needs no name
            elif value and len(self._groups) > 1:
                parts.append(str(value))
        return ", ".join(parts)


def _solid(label: str, index: int, *, marker: str) -> dict[str, Any]:
    colour = MODEL_COLOURS[index % len(MODEL_COLOURS)]
    return {
        "label": label,
        "color": colour,
        "marker": marker,
        "markersize": 3.5,
        "linewidth": 1.6,
    }


def _dashed(which: str, colour: str, *, marker: str = "") -> dict[str, Any]:
    return {
        "label": f"{which} predictor (exact)",
        "color": colour,
        "linestyle": "--",
        "linewidth": 1.4,
        "marker": marker,
    }


def _loss_label(points: Sequence[Row]) -> str:
    return LOSSES[points[0]["family"]]


def _seeds_told(rows: Sequence[Row]) -> str:
    most = max(row["runs"] for row in rows)
    return f" Means of up to {most} runs that differ in their seeds alone." if most > 1 else ""
