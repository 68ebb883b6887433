"""Many adapters trained and sampled together, against one by one.

    uv run benchmarks/adapters.py
    uv run benchmarks/adapters.py model=random_1b device=cuda num_adapters=180 at_once=45 \\
        rank=128 target_modules=q_proj,v_proj,gate_proj,up_proj,down_proj
    uv run benchmarks/adapters.py quick=true

A training step is one sequence per adapter, each adapter its own. Together means that all requests
are made before the first result is asked for; nothing else differs, and both ways take turns on the
same adapters. The second command is the inner loop of SEAL: 12 tasks times 15 self-edits. Appends
to benchmarks/results/adapters.jsonl.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import chz
import numpy as np
from common import (
    DtypeSettings,
    PeakMemory,
    Report,
    base_model,
    local_service,
    prepare,
    race,
    random_tokens,
)

from training.api import AdamParams, Datum, ModelInput, SamplingParams

ADAM = AdamParams(learning_rate=1e-4)
# Largest relative difference of an adapter's loss between the two ways.
TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2}


@chz.chz(typecheck=True)
class Config(DtypeSettings):
    num_adapters: list[int] = chz.field(
        default_factory=lambda: [1, 4, 16], doc="numbers of adapters, one after the other"
    )
    at_once: int = chz.field(default=64, doc="adapters that exist at a time; more go in groups")
    sequence_tokens: int = chz.field(default=150, doc="tokens per adapter and step, about")
    prompt_tokens: int = chz.field(default=100, doc="prompt of each sample")
    max_tokens: int = chz.field(default=32, doc="length of each sample")
    rank: int = chz.field(default=16, doc="LoRA rank")
    target_modules: list[str] | None = chz.field(
        default=None, doc="short names of the layers to adapt; default: attention and MLP"
    )

    @chz.validate
    def _adapters(self) -> None:
        if min([self.at_once, *self.num_adapters], default=0) < 1:
            raise ValueError(
                f"num_adapters={self.num_adapters}, at_once={self.at_once}: at least 1 is needed"
            )


QUICK = {
    "num_adapters": [1, 3],
    "at_once": 2,
    "sequence_tokens": 20,
    "prompt_tokens": 10,
    "max_tokens": 3,
    "rank": 4,
}


def main(config: Config) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = prepare(config, QUICK)
    assert config.device is not None and config.dtype is not None
    report = Report("adapters", config)
    worst = 0.0
    with base_model(config) as name, local_service(config, dtype=config.dtype) as service:
        for count in config.num_adapters:
            totals: dict[str, Totals] = {}
            for start in range(0, count, config.at_once):
                size = min(config.at_once, count - start)
                group = Group(service, name, size, config, seed=start)
                group.measure(totals)
                worst = max(worst, group.loss_difference())
                del group
            add_rows(report, count, totals, config)
    report.note("ratio: seconds of the row over those of all together.")
    report.note("peak MiB: base model and adapters included")
    report.note(f"Losses together and one by one: {worst:.2g} apart (relative)")
    report.finish()
    if worst > TOLERANCES[config.dtype]:
        raise SystemExit(f"losses differ by {worst:.3g}, relative: adapters disturb each other")


class Totals:
    """Seconds of each round, added up over the groups, and the highest peak of memory."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.peak_mib = 0.0

    def add(self, seconds: Sequence[float], peak_mib: float) -> None:
        before = self.seconds or [0.0] * len(seconds)
        self.seconds = [a + b for a, b in zip(before, seconds, strict=True)]
        self.peak_mib = max(self.peak_mib, peak_mib)


class Group:
    """Adapters that exist at the same time, each with a sequence and a prompt of its own."""

    def __init__(self, service: Any, name: str, size: int, config: Config, seed: int) -> None:
        self._config = config
        options: dict[str, Any] = {"train_unembed": False}
        if config.target_modules is not None:
            options = {"target_modules": config.target_modules}
        self._clients = [
            service.create_lora_training_client(name, rank=config.rank, seed=seed + i, **options)
            for i in range(size)
        ]
        vocab_size = service.engine(name).decoder.vocab_size
        rng = np.random.default_rng(seed)
        low, high = int(0.9 * config.sequence_tokens), int(1.1 * config.sequence_tokens)
        self._data = [
            [_datum(random_tokens(rng, int(length) + 1, vocab_size))]
            for length in rng.integers(low, high + 1, size)
        ]
        self._prompts = [
            ModelInput.from_ints(random_tokens(rng, config.prompt_tokens, vocab_size))
            for _ in range(size)
        ]
        self._peaks: dict[str, float] = {}
        self._samplers: list[Any] = []

    def loss_difference(self) -> float:
        """The largest relative difference between a trained adapter's loss alone and among all."""
        futures = [c.forward(d, "cross_entropy") for c, d in self._pairs()]
        together = [future.result().metrics["loss:sum"] for future in futures]
        alone = [
            c.forward(d, "cross_entropy").result().metrics["loss:sum"] for c, d in self._pairs()
        ]
        return max(abs(a - b) / abs(b) for a, b in zip(together, alone, strict=True))

    def measure(self, totals: dict[str, Totals]) -> None:
        """Adds this group's seconds and memory, by "train together" and so on."""
        self._race({"train together": self._train, "train one by one": self._train_alone}, totals)
        clients = self._clients
        self._samplers = [c.save_weights_and_get_sampling_client().result() for c in clients]
        contenders = {"sample together": self._sample, "sample one by one": self._sample_alone}
        self._race(contenders, totals)

    def _race(self, contenders: dict[str, Callable[[], None]], totals: dict[str, Totals]) -> None:
        config = self._config
        desc = next(iter(contenders)).split()[0] + f" {len(self._clients)}"
        seconds = race({key: lambda _r, k=key: contenders[k]() for key in contenders}, config, desc)
        # in rounds of their own, because resetting the mark takes time
        memory = PeakMemory(config.device)
        for contender, run in contenders.items():
            memory.reset()
            run()
            totals.setdefault(contender, Totals()).add(seconds[contender], memory.mib())

    def _pairs(self) -> list[tuple[Any, list[Datum]]]:
        return list(zip(self._clients, self._data, strict=True))

    def _train(self) -> None:
        steps = [
            (client.forward_backward(data, "cross_entropy"), client.optim_step(ADAM))
            for client, data in self._pairs()
        ]
        for loss, step in steps:
            loss.result()
            step.result()

    def _train_alone(self) -> None:
        for client, data in self._pairs():
            loss = client.forward_backward(data, "cross_entropy")
            client.optim_step(ADAM).result()
            loss.result()

    def _sample(self) -> None:
        futures = [
            sampler.sample(prompt, 1, self._params())
            for sampler, prompt in zip(self._samplers, self._prompts, strict=True)
        ]
        for future in futures:
            self._check(future.result())

    def _sample_alone(self) -> None:
        for sampler, prompt in zip(self._samplers, self._prompts, strict=True):
            self._check(sampler.sample(prompt, 1, self._params()).result())

    def _params(self) -> SamplingParams:
        return SamplingParams(max_tokens=self._config.max_tokens, stop=[])

    def _check(self, response: Any) -> None:
        if (length := len(response.sequences[0].tokens_np)) != self._config.max_tokens:
            raise RuntimeError(f"an answer has {length} tokens, not {self._config.max_tokens}")


def _datum(tokens: list[int]) -> Datum:
    return Datum(ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:]})


def add_rows(report: Report, count: int, totals: dict[str, Totals], config: Config) -> None:
    for contender, total in totals.items():
        kind, way = contender.split(" ", 1)
        report.add(
            f"{kind} {count}",
            way,
            seconds=total.seconds,
            tokens=count * (config.sequence_tokens if kind == "train" else config.max_tokens),
            against=totals[f"{kind} together"].seconds,
            **{"peak MiB": round(total.peak_mib)},
        )


if __name__ == "__main__":
    chz.nested_entrypoint(main)
