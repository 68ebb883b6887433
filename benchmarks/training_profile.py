"""Where the time of a training step goes: the job of training_speed.py under torch's profiler.

    uv run benchmarks/training_profile.py
    uv run benchmarks/training_profile.py dtype=bfloat16
    uv run benchmarks/training_profile.py quick=true

A row is what the processor (on a GPU: the device) spent in operations of one kind, a mean over
`repeats` steps. What is left of the step without a profiler is Python, dispatch and waiting. The
last row is not a part: the model's frozen matrix products alone, the limit of the first one.
Appends to benchmarks/results/training_profile.jsonl.
"""

import functools
import logging
import statistics
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import chz
import training_speed
from common import Report, base_model, local_service, on_worker, prepare, race

FROZEN = "frozen products"
CASTS = "casts around them"
LORA = "LoRA"
ATTENTION = "attention"
HEAD = "head and loss"
OPTIMIZER = "optimizer"
ELEMENTS = "norms, activations, rotary, residuals, copies"
REST = "Python, dispatch, waiting"
PARTS = (FROZEN, CASTS, LORA, ATTENTION, ELEMENTS, HEAD, OPTIMIZER)


@contextmanager
def marked_parts() -> Iterator[None]:
    """Inside, the engine's functions open ranges that the profiler sees."""
    from training.backends.local import linear
    from training.backends.local.adapters import Adapter
    from training.backends.local.attention import SegmentAttention
    from training.backends.local.trainer import Trainer

    with ExitStack() as stack:
        for owner, name, part in (
            (linear.PackedMatrix, "__call__", FROZEN),
            (linear, "add_low_rank_", LORA),
            (linear, "accumulate_low_rank", LORA),
            (SegmentAttention, "attend", ATTENTION),
            (Trainer, "_head", HEAD),
            (Adapter, "step", OPTIMIZER),
        ):
            ranged = _in_range(getattr(owner, name), part)
            stack.enter_context(mock.patch.object(owner, name, ranged))
        yield


def _in_range(function: Any, part: str) -> Any:
    from torch.profiler import record_function

    @functools.wraps(function)
    def ranged(*arguments: Any, **keywords: Any) -> Any:
        with record_function(part):
            return function(*arguments, **keywords)

    return ranged


def part_of(event: Any) -> str:
    """Of an operation: the outermost range it is in, but for the casts around a product."""
    part, parent = None, event.cpu_parent
    while parent is not None:
        if parent.name in PARTS:
            part = parent.name
        parent = parent.cpu_parent
    if part == FROZEN and event.name in ("aten::to", "aten::_to_copy", "aten::copy_"):
        return CASTS
    # the backward pass is in no range
    return part or (ATTENTION if "attention" in event.name else ELEMENTS)


def main(config: training_speed.Sizes) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = prepare(config, training_speed.QUICK)
    assert config.device is not None and config.dtype is not None
    import torch

    report = Report("training_profile", config)
    with base_model(config) as name, local_service(config, dtype=config.dtype) as service:
        client = training_speed.training_client(service, name, config)
        decoder = service.engine(name).decoder
        batches = training_speed.make_batches(config, decoder.vocab_size)
        products = on_worker(
            service,
            name,
            lambda: training_speed.Products(decoder, packed=config.device == "cpu"),
        )
        seconds = race(
            {
                "step": lambda r: training_speed.engine_step(client, batches[r]),
                "products": lambda r: on_worker(service, name, lambda: products(batches[r])),
            },
            config,
            "training",
        )
        activities = [torch.profiler.ProfilerActivity.CPU]
        if config.device == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        profiler = torch.profiler.profile(activities=activities)
        with marked_parts():
            on_worker(service, name, profiler.start)
            for batch in batches[-config.repeats :]:
                training_speed.engine_step(client, batch)
            on_worker(service, name, profiler.stop)

    spent = dict.fromkeys(PARTS, 0.0)
    for event in profiler.events() or ():
        # a range's own time is Python's
        if event.name not in PARTS:
            on_cpu = config.device == "cpu"
            own = event.self_cpu_time_total if on_cpu else event.self_device_time_total
            spent[part_of(event)] += own / 1000 / config.repeats
    step = 1000 * statistics.median(seconds["step"])
    rows = {**spent, REST: step - sum(spent.values()), "a step": step}
    rows["frozen products alone"] = 1000 * statistics.median(seconds["products"])
    for part, milliseconds in rows.items():
        report.add(
            f"{config.batch_size} x {config.min_tokens}-{config.max_tokens} tokens, {config.dtype}",
            part,
            ms=round(milliseconds, 2),
            share=round(milliseconds / step, 3),
        )
    report.finish()


if __name__ == "__main__":
    chz.nested_entrypoint(main)
