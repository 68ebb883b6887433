"""How seconds and memory grow with the number of adapters, the size of the group, the length of the
prompt, the size of the model and the dtype.

    uv run benchmarks/growth.py
    uv run benchmarks/growth.py 'axes=["adapters"]' 'adapters=[1,2,4,8,16,32,64]'
    uv run benchmarks/growth.py reuse=true max_minutes=8      # again and again, until it is whole
    uv run benchmarks/growth.py quick=true

A point is one GRPO step, in a process of its own: every adapter samples a group of answers to its
prompt, then all are updated. One axis changes at a time; the others stay at their first value.
`of linear` is how long it takes over what the axis's first point would take if seconds grew with
the value (of the model: with its parameters); below 1 is better than linear. Writes growth.png and
growth.md and appends to growth.jsonl, in benchmarks/results or results_dir. Points are stored in
growth_points.jsonl as they are measured; reuse=true takes those of this machine from there.
"""

import logging
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chz
import numpy as np
from common import (
    RESULTS,
    PeakMemory,
    Report,
    Settings,
    base_model,
    half_right,
    local_service,
    machine,
    prepare,
    random_tokens,
    synchronize,
    unless_quick,
)

from training.api import AdamParams, ModelInput, SamplingParams
from training.models import resolve_model
from utils.devices import Dtype, choose_dtype
from utils.runs.files import append_jsonl, atomic_write_text, read_jsonl
from utils.runs.progress import progress
from utils.runs.report import LINE_COLOURS, save_png
from utils.runs.tables import text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

ADAM = AdamParams(learning_rate=1e-5)
# parts of a step whose seconds are measured
PARTS = ("sample", "update")
POINTS_FILE = "growth_points.jsonl"


@chz.chz(typecheck=True)
class Config(Settings):
    repeats: int = chz.field(default=2, doc="timed steps; tables show their median")
    axes: list[str] = chz.field(
        default_factory=lambda: list(AXES), doc="which of adapters, group, prompt, model, dtype"
    )
    adapters: list[int] = chz.field(
        default_factory=lambda: [1, 4, 16, 64], doc="adapters that take the step together"
    )
    group: list[int] = chz.field(
        default_factory=lambda: [4, 1, 16, 64], doc="answers to each prompt"
    )
    prompt: list[int] = chz.field(
        default_factory=lambda: [128, 512, 1024, 2048, 4096], doc="tokens of each prompt"
    )
    models: list[str] = chz.field(
        default_factory=lambda: ["embedded", "random_0.36b"], doc="of the axis `model`"
    )
    dtypes: list[Dtype] = chz.field(
        default_factory=lambda: ["float32", "bfloat16"], doc="of the axis `dtype`"
    )
    max_tokens: int = chz.field(default=16, doc="length of every answer")
    rank: int = chz.field(default=8, doc="LoRA rank on attention and MLP layers")
    reuse: bool = chz.field(
        default=False, doc="take points of these sizes, this machine and these versions as stored"
    )
    max_minutes: float = chz.field(
        default=1e9, doc="begin no point after this time, and write no page without all of them"
    )

    @chz.validate
    def _axes(self) -> None:
        if unknown := sorted(set(self.axes) - set(AXES)):
            raise ValueError(f"axes={unknown}: allowed are {', '.join(AXES)}")
        for name in ("adapters", "group", "prompt", "models", "dtypes"):
            values = getattr(self, name)
            if not values or (isinstance(values[0], int) and min(values) < 1):
                raise ValueError(f"{name}={values}: at least one value, and at least 1, is needed")


@dataclass(frozen=True)
class Point:
    adapters: int
    group: int
    prompt: int
    model: str
    dtype: str


# axis -> the setting that holds its values
AXES = {
    "adapters": "adapters",
    "group": "group",
    "prompt": "prompt",
    "model": "models",
    "dtype": "dtypes",
}
QUICK = {
    "adapters": [1, 2],
    "group": [2, 1],
    "prompt": [8, 16],
    "max_tokens": 3,
    "rank": 4,
}


@dataclass(frozen=True)
class Measured:
    """Seconds of each round by part; memory in MiB, of the loaded model alone and at its peak."""

    seconds: dict[str, list[float]]
    loaded_mib: float
    peak_mib: float
    parameters: int

    @property
    def over_model_mib(self) -> float:
        return self.peak_mib - self.loaded_mib

    def median(self, part: str) -> float:
        return statistics.median(self.seconds[part])


def main(config: Config) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = prepare(config, QUICK | {"models": [config.model]})
    lines = {axis: points_of(axis, config) for axis in config.axes}
    # where axes cross, a point is measured once
    points = dict.fromkeys(point for line in lines.values() for point in line)
    run: Callable[..., Measured] = unless_quick(config)
    folder = config.results_dir or (None if config.quick else RESULTS)
    measured = stored_points(folder, config) if config.reuse and folder is not None else {}
    deadline = time.monotonic() + 60 * config.max_minutes
    todo = [point for point in points if point not in measured]
    with progress(len(todo), "points", "point") as bar:
        for number, point in enumerate(todo):
            if time.monotonic() > deadline:
                logger.info("%d points are left: run again with reuse=true", len(todo) - number)
                return
            measured[point] = run(measure, point, config)
            logger.info("%s: %s", point, measured[point])
            if folder is not None:
                store_point(folder, config, point, measured[point])
            bar.update(1)
    report = Report("growth", config)
    for axis, line in lines.items():
        for point in line:
            found = measured[point]
            for part in PARTS:
                report.add(
                    f"{axis} {getattr(point, axis)}",
                    part,
                    seconds=found.seconds[part],
                    **{
                        "of linear": of_linear(axis, part, point, line[0], measured),
                        "peak MiB": round(found.peak_mib),
                        "over model MiB": round(found.over_model_mib),
                    },
                )
    report.note("of linear: seconds over those of linear growth from the axis's first point.")
    report.note("over model MiB: peak memory over that of the loaded model.")
    report.finish()
    if folder is not None:
        atomic_write_text(folder / "growth.md", page(lines, measured))
        save_png(draw(lines, measured), folder / "growth.png", dpi=110)


def conditions(config: Config) -> dict[str, Any]:
    """What has to be the same for a stored point to count."""
    names = ("max_tokens", "rank", "warmup", "repeats", "device", "threads")
    return {**{name: getattr(config, name) for name in names}, "machine": machine(config)}


def stored_points(folder: Path, config: Config) -> dict[Point, Measured]:
    records = read_jsonl(folder / POINTS_FILE, missing_ok=True)
    return {
        Point(**record["point"]): Measured(**record["measured"])
        for record in records
        if record["conditions"] == conditions(config)
    }


def store_point(folder: Path, config: Config, point: Point, measured: Measured) -> None:
    record = {"point": asdict(point), "measured": asdict(measured)}
    append_jsonl(folder / POINTS_FILE, {**record, "conditions": conditions(config)})


def points_of(axis: str, config: Config) -> list[Point]:
    """The axis's points; the first is where all axes cross, but for the model and the dtype."""
    assert config.device is not None
    start = Point(
        config.adapters[0],
        config.group[0],
        config.prompt[0],
        config.model,
        choose_dtype(None, config.device),
    )
    return [replace(start, **{axis: value}) for value in getattr(config, AXES[axis])]


# --------------------------------------------------------------------------------------- measuring


def measure(point: Point, config: Config) -> Measured:
    """Takes `warmup` and then `repeats` steps of the point."""
    import torch

    if config.threads is not None:
        torch.set_num_threads(config.threads)
    memory = PeakMemory(config.device)
    config = chz.replace(config, model=point.model)
    with base_model(config) as name, local_service(config, dtype=point.dtype) as service:
        clients = [
            service.create_lora_training_client(
                name, rank=config.rank, seed=number, train_unembed=False
            )
            for number in range(point.adapters)
        ]
        vocab_size = service.engine(name).decoder.vocab_size
        rng = np.random.default_rng(0)
        prompts = [random_tokens(rng, point.prompt, vocab_size) for _ in clients]
        memory.reset()
        loaded_mib = memory.now_mib()
        seconds: dict[str, list[float]] = {part: [] for part in PARTS}
        for number in range(config.warmup + config.repeats):
            times = step(clients, prompts, point.group, config)
            if number >= config.warmup:
                for part, taken in zip(PARTS, times, strict=True):
                    seconds[part].append(taken)
        return Measured(seconds, loaded_mib, memory.mib(), num_parameters(name))


def num_parameters(name: str) -> int:
    """Of the model's files."""
    from safetensors import safe_open

    total = 0
    for path in Path(resolve_model(name)).glob("*.safetensors"):
        with safe_open(path, "numpy") as tensors:
            total += sum(math.prod(tensors.get_slice(k).get_shape()) for k in tensors.keys())  # noqa: SIM118
    return total


def step(
    clients: Sequence[Any], prompts: Sequence[list[int]], group_size: int, config: Config
) -> tuple[float, float]:
    """Seconds of sampling every client's group and of updating all of them."""
    samplers = [c.save_weights_and_get_sampling_client() for c in clients]
    samplers = [future.result() for future in samplers]
    synchronize(config.device)
    started = time.perf_counter()
    params = SamplingParams(max_tokens=config.max_tokens, stop=[])
    futures = [
        sampler.sample(ModelInput.from_ints(prompt), group_size, params)
        for sampler, prompt in zip(samplers, prompts, strict=True)
    ]
    responses = [future.result() for future in futures]
    sampled = time.perf_counter()
    updates = []
    for client, prompt, response in zip(clients, prompts, responses, strict=True):
        data = half_right(prompt, response.sequences)
        updates += [client.forward_backward(data, "importance_sampling"), client.optim_step(ADAM)]
    for future in updates:
        future.result()
    synchronize(config.device)
    return sampled - started, time.perf_counter() - sampled


# ----------------------------------------------------------------------------------- what is shown


def value_of(axis: str, point: Point, measured: Measured) -> float:
    """What linear growth is counted in."""
    if axis == "model":
        return float(measured.parameters)
    # between two dtypes nothing grows
    return 1.0 if axis == "dtype" else float(getattr(point, axis))


def of_linear(
    axis: str, part: str, point: Point, first: Point, measured: dict[Point, Measured]
) -> float:
    """Seconds of a part over those of linear growth from the axis's first point."""
    found, start = measured[point], measured[first]
    grown = value_of(axis, point, found) / value_of(axis, first, start)
    return round(found.median(part) / (start.median(part) * grown), 3)


def page(lines: dict[str, list[Point]], measured: dict[Point, Measured]) -> str:
    columns = ["value"]
    columns += [column for part in PARTS for column in (f"{part} s", "of linear")]
    columns += ["peak MiB", "over model"]
    parts = ["# How a GRPO step grows", "", "Written by `uv run benchmarks/growth.py`.", ""]
    for axis, line in lines.items():
        table = []
        for point in line:
            found = measured[point]
            row = [getattr(point, axis)]
            for part in PARTS:
                row += [found.median(part), of_linear(axis, part, point, line[0], measured)]
            table.append([*row, round(found.peak_mib), round(found.over_model_mib)])
        parts += [f"## {axis}", "", *(f"    {t}" for t in text_table(columns, table).splitlines())]
        parts.append("")
    return "\n".join(parts)


def draw(lines: dict[str, list[Point]], measured: dict[Point, Measured]) -> "Figure":
    """A panel per axis of numbers, log-log: seconds of both parts, grey lines of linear growth."""
    from matplotlib.figure import Figure

    drawn = [axis for axis in lines if axis not in ("model", "dtype")] or list(lines)[:1]
    figure = Figure(figsize=(4.2 * len(drawn), 7), layout="constrained")
    panels = figure.subplots(2, len(drawn), squeeze=False)
    for column, axis in enumerate(drawn):
        line = sorted(lines[axis], key=lambda p: value_of(axis, p, measured[p]))
        xs = [value_of(axis, point, measured[point]) for point in line]
        top, bottom = panels[0][column], panels[1][column]
        for colour, part in zip(LINE_COLOURS, PARTS, strict=False):
            ys = [measured[point].median(part) for point in line]
            top.plot(xs, ys, marker="o", color=colour, label=part)
            top.plot(xs, [ys[-1] * x / xs[-1] for x in xs], color="0.75", linewidth=1, zorder=0)
        over = [measured[point].over_model_mib for point in line]
        bottom.plot(xs, over, marker="o", color=LINE_COLOURS[2])
        for panel in (top, bottom):
            panel.set_xscale("log", base=2)
            panel.set_xlabel(axis)
        top.set_yscale("log")
        top.set_ylabel("seconds of a step (grey: linear)")
        bottom.set_ylabel("MiB over the loaded model")
        bottom.set_ylim(bottom=0)
        top.legend()
    return figure


if __name__ == "__main__":
    chz.nested_entrypoint(main)
