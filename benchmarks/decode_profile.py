"""Where the time of one decode step goes: sampling.py's parts=profile."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from common import Report, on_worker, random_tokens, randomise_adapters
from stopwatch import Part, Stopwatch

from training.api import ModelInput, SamplingClient, SamplingParams

RANK = 32
STEPS = 20


def add_profile(
    report: Report, service: Any, name: str, *, rows_of: list[int], prompt_tokens: int
) -> None:
    """Milliseconds of a step by part, for each number of rows, without an adapter and with one."""
    rng = np.random.default_rng(0)
    prompt = random_tokens(rng, prompt_tokens, service.engine(name).decoder.vocab_size)
    trainer = service.create_lora_training_client(name, rank=RANK, seed=0)
    on_worker(service, name, lambda: randomise_adapters([trainer], 0))
    samplers = {
        "no adapter": service.create_sampling_client(base_model=name),
        f"rank {RANK}": trainer.save_weights_and_get_sampling_client().result(),
    }
    for rows in rows_of:
        for adapter, sampler in samplers.items():
            case = f"{rows} rows, {adapter}"
            _sample(sampler, prompt, rows, steps=2)
            watch = Stopwatch()
            with watch.running(_parts()):
                _sample(sampler, prompt, rows, steps=STEPS)
            with _operators() as called:
                _sample(sampler, prompt, rows, steps=1)
            total = sum(watch.seconds.values())
            for part, seconds in {**watch.seconds, "a step": total}.items():
                ms = 1e3 * seconds / watch.calls
                values = {"ms": round(ms, 2), "percent": round(100 * seconds / total, 1)}
                if part == "a step":
                    values["operators"] = len(called)
                report.add(case, part, **values)


def _parts() -> list[Part]:
    """Of the engine's own body; what others spend in their own code stands with its rest."""
    from training.backends.local import attention, decoder, linear, llama, sampler

    return [
        Part("caches, rows, inputs", sampler.Sampler, "step"),
        Part("drawing", sampler.Sampler, "_choose"),
        Part("head", decoder.Decoder, "logits"),
        Part("LoRA of the head", decoder, "add_low_rank_", whole=True),
        Part("rotary, activations, sums", decoder.Decoder, "hidden"),
        Part("norms", llama._Norm, "__call__", whole=True),
        Part("attention", attention.DecodeAttention, "attend", whole=True),
        Part("layers' products", linear.LoraLinear, "forward"),
        Part("LoRA of the layers", linear, "add_low_rank_", whole=True),
    ]


def _sample(sampler: SamplingClient, prompt: list[int], rows: int, steps: int) -> None:
    # the first token comes with the prompt
    params = SamplingParams(max_tokens=steps + 1, stop=[])
    sampler.sample(ModelInput.from_ints(prompt), rows, params).result()


@contextmanager
def _operators() -> Iterator[list[str]]:
    """What torch runs in the steps inside, in its order."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from training.backends.local.sampler import Sampler

    called: list[str] = []

    class Noted(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            called.append(str(func))
            return func(*args, **(kwargs or {}))

    step = Sampler.step

    def noted(sampler: Sampler) -> None:
        with Noted():
            step(sampler)

    Sampler.step = noted  # type: ignore[method-assign]
    try:
        yield called
    finally:
        Sampler.step = step  # type: ignore[method-assign]
