"""Tokens per second of LoRA training on ragged ARC-like sequences, against HF + PEFT.

    uv run benchmarks/training_speed.py
    uv run benchmarks/training_speed.py model=random_1b device=cuda repeats=10
    uv run benchmarks/training_speed.py quick=true

Both sides take the same steps from the same adapter: the losses of every round must agree. Two more
rows are the model's frozen matrix products alone (forward and input gradient, for as many tokens),
which no trainer of this model on this machine can beat by much. Peak memory is that of processes
that do nothing else, after the model is loaded. Appends to benchmarks/results/training_speed.jsonl.

(The name is not training.py, which would hide the package `training` from scripts beside it.)
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import chz
import numpy as np
from common import (
    ALPHA,
    DtypeSettings,
    PeakMemory,
    Report,
    base_model,
    in_own_process,
    load_hf,
    load_peft,
    local_service,
    on_worker,
    prepare,
    race,
    random_tokens,
)

from training.api import AdamParams, Datum, ModelInput, TrainingClient

if TYPE_CHECKING:
    import torch

    from training.backends.local.decoder import Decoder

ADAM = AdamParams(learning_rate=1e-4, beta1=0.9, beta2=0.999, eps=1e-8)
# Both sides add up in another order; in bfloat16 transformers rounds the logits too, in steps of an
# eighth from 16 on.
TOLERANCES = {"float32": 1e-3, "bfloat16": 0.15}


@chz.chz(typecheck=True)
class Sizes(DtypeSettings):
    """Of the steps; benchmarks/training_profile.py takes the same."""

    batch_size: int = chz.field(default=8, doc="sequences per step")
    min_tokens: int = chz.field(default=100, doc="shortest sequence")
    max_tokens: int = chz.field(default=300, doc="longest sequence")
    answer_tokens: int = chz.field(default=20, doc="tokens with a loss, give or take a quarter")
    rank: int = chz.field(default=16, doc="LoRA rank on attention and MLP layers")


@chz.chz(typecheck=True)
class Config(Sizes):
    memory: bool = chz.field(default=True, doc="measure peak memory, each in its own process")


QUICK = {"batch_size": 3, "min_tokens": 10, "max_tokens": 30, "answer_tokens": 4, "rank": 4}


@dataclass(frozen=True)
class Example:
    tokens: list[int]
    num_answer: int


def make_batches(config: Sizes, vocab_size: int) -> list[list[Example]]:
    """One batch per round, all with the same lengths. Random tokens share no prefix, so prompt
    sharing gains nothing here."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(config.min_tokens, config.max_tokens + 1, config.batch_size)
    spread = config.answer_tokens // 4
    low, high = config.answer_tokens - spread, config.answer_tokens + spread
    answers = rng.integers(low, high + 1, config.batch_size)
    return [
        [
            Example(random_tokens(rng, int(length), vocab_size), int(num_answer))
            for length, num_answer in zip(lengths, answers, strict=True)
        ]
        for _ in range(config.warmup + config.repeats)
    ]


# ------------------------------------------------------------------------------------- contenders


def engine_step(client: TrainingClient, batch: list[Example]) -> float:
    """One training step; the mean loss of the answers' tokens."""
    total = sum(example.num_answer for example in batch)
    datums = []
    for example in batch:
        weights = np.zeros(len(example.tokens) - 1, dtype=np.float32)
        weights[-example.num_answer :] = 1 / total
        inputs = {"target_tokens": example.tokens[1:], "weights": weights}
        datums.append(Datum(ModelInput.from_ints(example.tokens[:-1]), inputs))
    loss = client.forward_backward(datums, "cross_entropy")
    client.optim_step(ADAM).result()
    return loss.result().metrics["loss:sum"]


class PeftStep:
    """One training step of a PEFT model on a padded batch; the mean loss of the answers' tokens.

    `cut_logits` pads on the left and computes logits for the answers only, which takes a few lines
    that most scripts do not have; else the model computes the loss from `labels`.
    """

    def __init__(self, model: Any, device: str, *, cut_logits: bool) -> None:
        import torch

        self._model = model
        self._device = device
        self._cut_logits = cut_logits
        trainable = [p for p in model.parameters() if p.requires_grad]
        betas = (ADAM.beta1, ADAM.beta2)
        self._optimizer = torch.optim.AdamW(
            trainable, lr=ADAM.learning_rate, betas=betas, eps=ADAM.eps, weight_decay=0, fused=True
        )

    def __call__(self, batch: list[Example]) -> float:
        tokens, mask, labels = (t.to(self._device) for t in self._pad(batch))
        loss = self._loss(tokens, mask, labels, keep=max(e.num_answer for e in batch))
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item()

    def _pad(self, batch: list[Example]) -> "tuple[torch.Tensor, torch.Tensor, torch.Tensor]":
        import torch

        width = max(len(example.tokens) for example in batch)
        tokens = torch.zeros(len(batch), width, dtype=torch.long)
        mask = torch.zeros_like(tokens)
        labels = torch.full_like(tokens, -100)
        for row, example in enumerate(batch):
            stop = width if self._cut_logits else len(example.tokens)
            here = slice(stop - len(example.tokens), stop)
            answer = slice(stop - example.num_answer, stop)
            tokens[row, here] = torch.tensor(example.tokens)
            mask[row, here] = 1
            labels[row, answer] = tokens[row, answer]
        return tokens, mask, labels

    def _loss(
        self,
        tokens: "torch.Tensor",
        mask: "torch.Tensor",
        labels: "torch.Tensor",
        *,
        keep: int,
    ) -> "torch.Tensor":
        import torch.nn.functional as F

        if not self._cut_logits:
            model_inputs = {"input_ids": tokens, "attention_mask": mask, "labels": labels}
            return self._model(**model_inputs, use_cache=False).loss
        logits = self._model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=(mask.cumsum(1) - 1).clamp(min=0),
            logits_to_keep=keep + 1,
            use_cache=False,
        ).logits[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1).float(), labels[:, -keep:].flatten())


class Products:
    """The frozen linear layers' products for packed tokens: x W^T forward and dy W backward."""

    def __init__(self, decoder: "Decoder", *, packed: bool) -> None:
        from training.backends.local.linear import PackedMatrix

        self._device = decoder.device
        self._body: list[tuple[Callable[..., Any], Callable[..., Any], torch.Tensor]] = []
        for layer in decoder.products():
            weight = layer.forward_matrix.dense()
            if packed:
                self._body.append((layer.forward_matrix, layer.backward_matrix(), weight))
            else:
                self._body.append((*_plain(weight), weight))
        head = decoder.head_weight
        pair = (PackedMatrix(head), PackedMatrix(head.T)) if packed else _plain(head)
        self._head = (*pair, head)
        self._inputs: dict[tuple[int, int, torch.dtype], torch.Tensor] = {}

    def __call__(self, batch: list[Example]) -> None:
        import torch

        body_rows = sum(len(example.tokens) - 1 for example in batch)
        head_rows = sum(example.num_answer for example in batch)
        with torch.no_grad():
            for rows, layers in ((body_rows, self._body), (head_rows, [self._head])):
                for forward, backward, weight in layers:
                    for product, width in ((forward, 1), (backward, 0)):
                        key = (rows, weight.shape[width], weight.dtype)
                        if key not in self._inputs:
                            self._inputs[key] = torch.randn(
                                key[:2], dtype=key[2], device=self._device
                            )
                        product(self._inputs[key])


def _plain(weight: "torch.Tensor") -> tuple[Callable[..., Any], Callable[..., Any]]:
    return (lambda x: x @ weight.T), (lambda dy: dy @ weight)


# -------------------------------------------------------------------------------------------- runs


def peak_memory(config: Config, contender: str) -> dict[str, float]:
    """MiB of this process with the model loaded, and at most during two steps."""
    config = prepare(config, {})
    assert config.device is not None and config.dtype is not None
    memory = PeakMemory(config.device)
    with base_model(config) as name, local_service(config, dtype=config.dtype) as service:
        step: Callable[[list[Example]], float]
        if contender == "engine":
            client = training_client(service, name, config)
            vocab_size = service.engine(name).decoder.vocab_size
            step = lambda batch: engine_step(client, batch)  # noqa: E731
        else:
            model = _fresh_peft(name, config)
            vocab_size = model.get_output_embeddings().weight.shape[0]
            step = PeftStep(model, config.device, cut_logits=contender != "HF + PEFT")
        batches = make_batches(config, vocab_size)
        memory.reset()
        loaded = memory.now_mib()
        for batch in batches[:2]:
            step(batch)
        return {"loaded MiB": round(loaded), "peak MiB": round(memory.mib())}


def training_client(service: Any, name: str, config: Sizes) -> Any:
    return service.create_lora_training_client(name, rank=config.rank, seed=0, train_unembed=False)


def _fresh_peft(name: str, config: Config) -> Any:
    """LoRA on every linear layer but the head, as the engine has it."""
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=config.rank, lora_alpha=int(ALPHA), target_modules="all-linear")
    return get_peft_model(load_hf(name, config.device, config.dtype), lora).eval()


def main(config: Config) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = prepare(config, QUICK)
    assert config.device is not None and config.dtype is not None
    report = Report("training_speed", config)
    losses: dict[str, list[float]] = {"engine": [], "HF + PEFT": [], "HF + PEFT, few logits": []}
    with base_model(config) as name, local_service(config, dtype=config.dtype) as service:
        client = training_client(service, name, config)
        decoder = service.engine(name).decoder
        batches = make_batches(config, decoder.vocab_size)
        folder = client.save_weights_for_sampler("start").result().path
        steps: dict[str, Callable[[list[Example]], float]] = {}
        for contender in ("HF + PEFT", "HF + PEFT, few logits"):
            model = on_worker(
                service, name, lambda: load_peft(name, folder, config.device, config.dtype)
            )
            steps[contender] = PeftStep(model, config.device, cut_logits="few" in contender)
        products = {"frozen products, torch": Products(decoder, packed=False)}
        if config.device == "cpu":
            products["frozen products, oneDNN packed"] = on_worker(
                service, name, lambda: Products(decoder, packed=True)
            )

        contenders: dict[str, Callable[[int], object]] = {
            "engine": lambda r: losses["engine"].append(engine_step(client, batches[r]))
        }
        for contender, step in steps.items():
            contenders[contender] = lambda r, c=contender, step=step: losses[c].append(
                on_worker(service, name, lambda: step(batches[r]))
            )
        for key, product in products.items():
            contenders[key] = lambda r, product=product: on_worker(
                service, name, lambda: product(batches[r])
            )
        seconds = race(contenders, config, "training")

    worst = max(
        abs(a - b) for c in losses for a, b in zip(losses["engine"], losses[c], strict=True)
    )
    for contender in contenders:
        memory = {}
        if config.memory and contender in losses:
            memory = in_own_process(peak_memory, config, contender)
        report.add(
            f"{config.batch_size} x {config.min_tokens}-{config.max_tokens} tokens",
            contender,
            seconds=seconds[contender],
            tokens=sum(len(example.tokens) for example in batches[0]),
            against=seconds["engine"],
            goal=3 if contender == "HF + PEFT" else None,
            **memory,
        )
    report.note("ratio: seconds of the row over the engine's; for products, the engine's share.")
    report.note(f"Largest difference of a round's losses: {worst:.2g}")
    report.finish()
    if worst > TOLERANCES[config.dtype]:
        raise SystemExit(f"losses differ by {worst:.3g}: the sides did not do the same work")


if __name__ == "__main__":
    chz.nested_entrypoint(main)
