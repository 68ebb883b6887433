"""Does one learning rate fit all widths of an MLP? mup against the standard parametrisation.

    uv run benchmarks/mup_transfer.py
    uv run benchmarks/mup_transfer.py 'widths=[64,256,1024,4096]' device=cuda
    uv run benchmarks/mup_transfer.py quick=true

First the coordinate check: root mean square of activations at the start, and of how far they moved
after a few updates, by width. In mup both are flat. Then the final training loss over learning
rate x width: in mup the best rate is the same for all widths. Writes mup_transfer.png with
mup_transfer.csv beside it (all points of the picture) and appends to mup_transfer.jsonl, in
benchmarks/results or results_dir.
"""

import csv
import io
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chz
import numpy as np
from common import RESULTS, Report, Settings, prepare

from utils.runs.files import atomic_write_text
from utils.runs.progress import progress
from utils.runs.report import LINE_COLOURS, save_png

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@chz.chz(typecheck=True)
class Config(Settings):
    model: str = chz.field(default="MLP", doc="only its name in the table")
    widths: list[int] = chz.field(
        default_factory=lambda: [64, 128, 256, 512, 1024], doc="the first is mup's base"
    )
    learning_rates: list[float] = chz.field(
        default_factory=lambda: [2.0**-e for e in range(13, 3, -1)], doc="of AdamW"
    )
    num_layers: int = chz.field(default=3, doc="hidden layers")
    num_tasks: int = chz.field(default=16, doc="urns")
    context_length: int = chz.field(default=8, doc="draws in a sequence")
    batch_size: int = chz.field(default=32, doc="sequences per step")
    steps: int = chz.field(default=200, doc="updates of each run")
    coordinate_steps: int = chz.field(default=5, doc="updates of the coordinate check")
    coordinate_rate: float = chz.field(default=2.0**-9, doc="its learning rate")
    seeds: int = chz.field(default=1, doc="runs of each point; losses are their means")


QUICK = {
    "widths": [8, 16],
    "learning_rates": [1e-3, 1e-2],
    "context_length": 4,
    "batch_size": 4,
    "steps": 3,
    "coordinate_steps": 1,
}
# Points of one parametrisation: (quantity, layer, width, learning rate) -> value
Points = dict[tuple[str, str, int, float], float]


def measure(config: Config, *, mup: bool) -> Points:
    """Coordinates of each layer at each width, and the loss of the last quarter of the updates at
    each width and rate; inf where it is no number."""
    from training.icl.config import MLP, Training
    from training.icl.coordinate_check import coordinate_check
    from training.icl.families import make_family
    from training.icl.settings import BallsAndUrns
    from training.icl.tasks import new_task_set
    from training.icl.train import Trainer

    assert config.device is not None
    setting = BallsAndUrns(num_tasks=config.num_tasks, context_length=config.context_length)
    family = make_family(setting)
    tasks = new_task_set(setting, family, config.num_tasks, seed=0)
    shape = MLP(num_layers=config.num_layers, mup=mup, base_hidden_size=config.widths[0])
    points: Points = {}
    checked = coordinate_check(
        shape,
        config.widths,
        family,
        tasks,
        learning_rate=config.coordinate_rate,
        num_steps=config.coordinate_steps,
        seed=0,
    )
    names = ["read-in", *(f"hidden {i}" for i in range(1, config.num_layers + 1)), "output"]
    for width, (at_init, change) in checked.items():
        for layer, start, moved in zip(names, at_init, change, strict=True):
            points["at init", layer, width, 0.0] = start
            points["change", layer, width, config.coordinate_rate] = moved
    tail = max(1, config.steps // 4)
    total = len(config.widths) * len(config.learning_rates) * config.seeds
    with progress(total, "mup" if mup else "standard", "run") as bar:
        for width in config.widths:
            for rate in config.learning_rates:
                losses = []
                for seed in range(config.seeds):
                    training = Training(
                        batch_size=config.batch_size, num_steps=config.steps, learning_rate=rate
                    )
                    trainer = Trainer(
                        chz.replace(shape, hidden_size=width),
                        training,
                        family,
                        tasks,
                        seed=seed,
                        device=config.device,
                    )
                    for step in range(config.steps):
                        if step == config.steps - tail and step:
                            trainer.take_loss()
                        trainer.train_step()
                    losses.append(trainer.take_loss())
                    bar.update()
                mean = sum(losses) / len(losses)
                points["loss", "", width, rate] = mean if math.isfinite(mean) else math.inf
    return points


def slope(points: Points, quantity: str, layer: str) -> float:
    """Of log value against log width: 0 is flat."""
    found = [(w, v) for (q, name, w, _), v in points.items() if (q, name) == (quantity, layer)]
    widths, values = zip(*found, strict=True)
    return float(np.polyfit(np.log(widths), np.log(values), 1)[0])


def best_rates(points: Points) -> dict[int, float]:
    """The learning rate of the smallest loss, by width."""
    best: dict[int, tuple[float, float]] = {}
    for (quantity, _, width, rate), value in points.items():
        if quantity == "loss" and value < best.get(width, (math.inf, 0.0))[0]:
            best[width] = (value, rate)
    return {width: rate for width, (_, rate) in best.items()}


def draw(measured: Mapping[str, Points], widths: Sequence[int]) -> "Figure":
    """A row for each parametrisation: activations at the start, their change, loss by rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6 * len(measured)), layout="constrained")
    grid = figure.subplots(len(measured), 3, squeeze=False, sharex="col", sharey="col")
    for row, (name, points) in zip(grid, measured.items(), strict=True):
        layers = list(dict.fromkeys(layer for q, layer, *_ in points if q == "at init"))
        for axes, quantity in zip(row, ("at init", "change"), strict=False):
            for layer, colour in zip(layers, LINE_COLOURS, strict=False):
                ys = [v for (q, n, *_), v in points.items() if (q, n) == (quantity, layer)]
                axes.plot(widths, ys, marker="o", markersize=3.5, color=colour, label=layer)
            axes.set(xscale="log", yscale="log", xlabel="width", ylabel=f"activations, {quantity}")
            axes.set_xticks(widths, [str(width) for width in widths], minor=False)
            axes.minorticks_off()
            axes.set_title(f"{name}: rms of activations, {quantity}", loc="left", fontsize=10)
        row[0].legend(frameon=False, fontsize=8)
        shades = np.linspace(0.25, 1.0, len(widths))
        for width, shade in zip(widths, shades, strict=True):
            found = {r: v for (q, _, w, r), v in points.items() if q == "loss" and w == width}
            rates = list(found)
            losses = [value if math.isfinite(value) else math.nan for value in found.values()]
            colour = (0.17, 0.42, 0.69, shade)
            row[2].plot(rates, losses, color=colour, label=str(width))
            if best := best_rates(points).get(width):
                row[2].plot([best], [found[best]], marker="o", color=colour)
        row[2].set(xscale="log", xlabel="learning rate", ylabel="training loss")
        row[2].set_title(f"{name}: loss by learning rate (dot: best)", loc="left", fontsize=10)
        row[2].legend(title="width", frameon=False, fontsize=8)
        for axes in row:
            axes.spines[["top", "right"]].set_visible(False)
    return figure


def write_results(folder: Path, measured: Mapping[str, Points], widths: Sequence[int]) -> None:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["parametrisation", "quantity", "layer", "width", "learning_rate", "value"])
    for name, points in measured.items():
        writer.writerows([name, *key, value] for key, value in points.items())
    atomic_write_text(folder / "mup_transfer.csv", text.getvalue())
    save_png(draw(measured, widths), folder / "mup_transfer.png", dpi=130)


def main(config: Config) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = prepare(config, QUICK)
    measured = {
        name: measure(config, mup=mup) for name, mup in (("standard", False), ("mup", True))
    }
    report = Report("mup_transfer", config)
    for name, points in measured.items():
        layers = dict.fromkeys(layer for quantity, layer, *_ in points if quantity == "change")
        best = best_rates(points)
        hidden = [layer for layer in layers if layer != "output"]
        values: dict[str, Any] = {
            "best rates": " ".join(f"{rate:.2g}" for rate in best.values()),
            "their spread, factor": max(best.values()) / min(best.values()),
            "slope of change, hidden": max(slope(points, "change", x) for x in hidden),
            "slope of change, output": slope(points, "change", "output"),
            "loss at the narrowest's best rate, widest": points[
                "loss", "", config.widths[-1], best[config.widths[0]]
            ],
        }
        report.add("widths " + " ".join(map(str, config.widths)), name, **values)
    report.note("slope: of log rms against log width, 0 is flat; rates by width, in their order")
    folder = config.results_dir or (None if config.quick else RESULTS)
    if folder is not None:
        write_results(folder, measured, config.widths)
        report.note(f"picture and points: {folder / 'mup_transfer.png'}, .csv")
    report.finish()


if __name__ == "__main__":
    chz.nested_entrypoint(main)
