"""Test-time training of many BBH tasks: adapters together, against one by one through HF + PEFT.

    uv run benchmarks/bbh_adapters.py
    uv run benchmarks/bbh_adapters.py num_adapters=16 steps=8 repeats=1
    uv run benchmarks/bbh_adapters.py quick=true

Each adapter learns from ten demonstrations of its own, five sequences per step, as scripts/ttt.py
trains it; a whole run of 40 sequences are 8 steps. Every contender runs in a process of its own,
which gives its peak memory, and takes `steps` steps per adapter. One by one takes as much longer as
there are more adapters, so HF + PEFT runs at most `rival_adapters` of them, and its row says how
many; ratios compare seconds per adapter. Appends to benchmarks/results/bbh_adapters.jsonl.
"""

import logging
import random
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import chz
from common import ALPHA, PeakMemory, Report, Settings, load_hf, prepare, unless_quick

from training.adapt import AdaptJob, AdaptSettings, adapt, mean_weighted
from training.api import Datum
from training.connect import connect
from training.domains.bbh.config import TARGETS
from training.domains.bbh.generated import generate_items
from training.domains.bbh.tasks import BY_NAME
from training.domains.bbh.text import PromptTokens
from training.models import load_tokenizer

BATCH = 5
TOGETHER, RIVAL = "engine, together", "HF + PEFT, one by one"
LEARNING_RATE = 1e-4


@chz.chz(typecheck=True)
class Config(Settings):
    num_adapters: list[int] = chz.field(
        default_factory=lambda: [1, 4, 16, 32], doc="numbers of adapters, one after the other"
    )
    rival_adapters: int = chz.field(default=2, doc="adapters that HF + PEFT trains at most")
    steps: int = chz.field(default=1, doc="timed steps per adapter; one more comes before")
    task: str = chz.field(default="web_of_lies", doc="generated task of the demonstrations")
    k: int = chz.field(default=10, doc="demonstrations per sequence")
    rank: int = chz.field(default=64, doc="LoRA rank")
    target_modules: list[str] = chz.field(
        default_factory=lambda: list(TARGETS), doc="short names of the layers to adapt"
    )


QUICK = {"num_adapters": [1, 3], "rival_adapters": 1, "k": 2, "rank": 4}


class Measured(NamedTuple):
    seconds: float
    tokens: int
    peak_mib: float
    first_loss: float


def main(config: Config) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = prepare(config, QUICK)
    run: Callable[..., Measured] = unless_quick(config)
    report = Report("bbh_adapters", config)
    for count in config.num_adapters:
        rivals = min(count, config.rival_adapters)
        together = [run(train_together, config, count) for _ in range(config.repeats)]
        rival = [run(train_one_by_one, config, rivals) for _ in range(config.repeats)]
        per_adapter = [m.seconds / count for m in together]
        for name, rounds, number in ((TOGETHER, together, count), (RIVAL, rival, rivals)):
            report.add(
                f"{count} adapters",
                name,
                seconds=[m.seconds / number for m in rounds],
                tokens=rounds[0].tokens / number,
                against=per_adapter,
                **{
                    "adapters timed": number,
                    "all adapters s": round(rounds[0].seconds / number * count, 1),
                    "peak MiB": round(max(m.peak_mib for m in rounds)),
                },
            )
        difference = abs(together[0].first_loss - rival[0].first_loss) / rival[0].first_loss
        report.note(f"{count} adapters: first losses {difference:.2g} apart (relative)")
        if difference > 1e-3:
            raise SystemExit(f"first losses differ by {difference:.3g}: not the same work")
    report.note("median s and ratio: per adapter; all adapters s: that times the adapters.")
    report.finish()


def sequences(config: Config, adapter: int) -> list[Datum]:
    """What an adapter learns from: its own demonstrations, in one permutation after another."""
    items = generate_items(config.task, config.k, seed=adapter)
    tokens = PromptTokens(load_tokenizer(config.model))
    rng = random.Random(adapter)
    return [
        tokens.datum(BY_NAME[config.task], rng.sample(items, config.k), "all_outputs")
        for _ in range(BATCH * (config.steps + 1))
    ]


def train_together(config: Config, count: int) -> Measured:
    """`count` adapters through training.adapt; a first run of one step warms up."""
    prepare(config, {})
    memory = PeakMemory(config.device)
    service: Any = connect("local", device=config.device)
    lora = {
        "rank": config.rank,
        "lora_alpha": ALPHA,
        "target_modules": list(config.target_modules),
    }
    settings = AdaptSettings(lora=lora, batch_size=BATCH, max_parallel=count)
    data = [sequences(config, adapter) for adapter in range(count)]
    first = service.create_lora_training_client(config.model, seed=0, **lora)
    loss = first.forward(mean_weighted(data[0][:BATCH]), "cross_entropy").result()
    samplers: list[Any] = []

    def train(batches: slice) -> None:
        jobs = [AdaptJob(datums[batches], LEARNING_RATE, 1, seed=0) for datums in data]
        adapt(
            *(service, config.model, jobs, settings),
            on_adapted=lambda _index, sampler: samplers.append(sampler),
        )

    train(slice(0, BATCH))
    samplers.clear()
    memory.reset()
    started = time.perf_counter()
    train(slice(BATCH, None))
    seconds = time.perf_counter() - started
    tokens = sum(datum.model_input.length for datums in data for datum in datums[BATCH:])
    measured = Measured(seconds, tokens, memory.mib(), loss.metrics["loss:sum"])
    service.close()
    return measured


def train_one_by_one(config: Config, count: int) -> Measured:
    """`count` adapters through PEFT and AdamW on padded batches, one after the other."""
    import torch
    from peft import LoraConfig, get_peft_model

    prepare(config, {})
    memory = PeakMemory(config.device)
    options = LoraConfig(
        r=config.rank, lora_alpha=int(ALPHA), target_modules=list(config.target_modules)
    )
    model = get_peft_model(load_hf(config.model, config.device), options).train()
    trained = [p for p in model.parameters() if p.requires_grad]
    start = [p.detach().clone() for p in trained]
    data = [sequences(config, adapter) for adapter in range(count)]
    losses: list[float] = []

    def train(batches: slice) -> None:
        for datums in data:
            for parameter, value in zip(trained, start, strict=True):
                parameter.data.copy_(value)
            optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)
            chosen = datums[batches]
            for at in range(0, len(chosen), BATCH):
                tokens, mask, labels = _padded(chosen[at : at + BATCH], config.device)
                loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                losses.append(loss.item())

    train(slice(0, BATCH))
    memory.reset()
    started = time.perf_counter()
    train(slice(BATCH, None))
    seconds = time.perf_counter() - started
    tokens = sum(datum.model_input.length for datums in data for datum in datums[BATCH:])
    return Measured(seconds, tokens, memory.mib(), losses[0])


def _padded(datums: list[Datum], device: str | None) -> tuple[Any, Any, Any]:
    """Tokens, mask and labels, padded on the right; labels as transformers shifts them itself."""
    import torch

    width = max(datum.model_input.length for datum in datums) + 1
    tokens = torch.zeros(len(datums), width, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    labels = torch.full_like(tokens, -100)
    for row, datum in enumerate(datums):
        inputs = datum.model_input.to_ints()
        targets = datum.loss_fn_inputs["target_tokens"].tolist()
        weights = datum.loss_fn_inputs["weights"].tolist()
        tokens[row, : len(inputs) + 1] = torch.tensor([*inputs, targets[-1]])
        mask[row, : len(inputs) + 1] = 1
        trained = [t if w else -100 for t, w in zip(targets, weights, strict=True)]
        labels[row, 1 : len(inputs) + 1] = torch.tensor(trained)
    return tokens.to(device), mask.to(device), labels.to(device)


if __name__ == "__main__":
    chz.nested_entrypoint(main)
