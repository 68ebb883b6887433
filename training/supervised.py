"""Supervised fine-tuning: examples as tokens, batches of them, and losses per token."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from training.api import Datum, TrainingClient
from training.chat import (
    RenderedTokens,
    TrainOn,
    datum_from_tokens,
    render_completion,
    render_text,
    render_training,
)
from training.control_tokens import names_control_token
from training.examples import MAX_PROBLEMS, Example
from training.loop import epoch_batches
from utils.config.entrypoint import raise_problems
from utils.runs.tables import text_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)


class Batch(NamedTuple):
    datums_D: list[Datum]
    num_tokens: int


class Plan(NamedTuple):
    """What a run learns, step by step, and what it is tested on."""

    train_D: list[Datum]
    heldout_D: list[Datum]
    batches: list[Batch]


def hold_out(
    examples: Sequence[Example], fraction: float, seed: int
) -> tuple[list[Example], list[Example]]:
    """Examples to train on and held-out ones: those the file marks, else whole groups at random
    until about `fraction` of all are held out. With fraction 0 none is."""
    marked = [e for e in examples if e.held_out]
    if marked or fraction == 0:
        return [e for e in examples if not e.held_out], marked
    groups = sorted({example.group for example in examples})
    order = np.random.default_rng(seed).permutation(len(groups))
    wanted, held, chosen = fraction * len(examples), 0, set()
    for index in order[:-1]:
        if held >= wanted:
            break
        chosen.add(groups[index])
        held += sum(example.group == groups[index] for example in examples)
    return (
        [e for e in examples if e.group not in chosen],
        [e for e in examples if e.group in chosen],
    )


def to_datums(
    examples: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    train_on: TrainOn,
    template: str,
    max_length: int,
) -> list[Datum]:
    """One datum per example. Longer ones than `max_length` tokens are left out, which is logged.

    Raises ConfigError that names the examples that the template or the tokenizer refuses.
    """
    datums, problems, too_long, with_names = [], [], 0, 0
    for example in examples:
        try:
            tokens, weights = render_example(example, tokenizer, train_on, template)
            if len(tokens) <= max_length:
                datums.append(datum_from_tokens(tokens, weights))
        except ValueError as error:
            problems.append(f"{example.where}: {error}")
            continue
        too_long += len(tokens) > max_length
        with_names += not example.messages and names_control_token(
            tokenizer, example.prompt + example.text
        )
    raise_problems(problems, at_most=MAX_PROBLEMS)
    if with_names:
        logger.warning(
            "%d of %d examples are raw text that names control tokens such as %r; that stays text. "
            "Write conversations as messages",
            with_names,
            len(examples),
            tokenizer.eos_token,
        )
    if too_long:
        logger.warning(
            "%d of %d examples are longer than %d tokens and left out (max_length)",
            too_long,
            len(examples),
            max_length,
        )
    return datums


def render_example(
    example: Example,
    tokenizer: "PreTrainedTokenizerBase",
    train_on: TrainOn,
    template: str,
) -> RenderedTokens:
    """Its tokens, with weights on what is learned. Raises ValueError as render_training()."""
    if example.messages:
        return render_training(
            tokenizer, example.messages, train_on, template=template, tools=example.tools
        )
    if example.prompt:
        tokens, weights = render_completion(tokenizer, example.prompt, example.text)
        return (
            RenderedTokens(tokens, [1.0] * len(tokens))
            if train_on == "all_tokens"
            else (RenderedTokens(tokens, weights))
        )
    return render_text(tokenizer, example.text)


def num_tokens(datums: Sequence[Datum]) -> int:
    return sum(datum.model_input.length for datum in datums)


def num_trained_tokens(datums: Sequence[Datum]) -> int:
    return int(sum((d.loss_fn_inputs["weights"].to_numpy() != 0).sum() for d in datums))


def make_batches(
    datums: Sequence[Datum],
    *,
    batch_size: int | None,
    batch_tokens: int | None,
    num_epochs: int,
    seed: int,
) -> list[Batch]:
    """Every epoch in a new order, cut after `batch_size` data or before `batch_tokens` tokens are
    passed (a longer datum is a batch of its own)."""
    rng = np.random.default_rng(seed)
    if batch_tokens is None:
        cut = epoch_batches(datums, batch_size or len(datums), num_epochs, rng)
    else:
        epochs = epoch_batches(datums, len(datums), num_epochs, rng)
        cut = [batch for epoch in epochs for batch in _cut_by_tokens(epoch, batch_tokens)]
    return [Batch(batch, num_tokens(batch)) for batch in cut]


def make_plan(
    config: Any,
    train: Sequence[Example],
    held: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    context: int | None,
) -> Plan:
    """What scripts/sft.py does with its settings, for a model that takes `context` tokens.

    Raises ValueError where nothing is left to train on.
    """
    max_length = min((limit for limit in (config.max_length, context) if limit), default=2**31)
    train_D, heldout_D = (
        to_datums(
            split,
            tokenizer,
            train_on=config.train_on,
            template=config.template,
            max_length=max_length,
        )
        for split in (train, held)
    )
    if not train_D:
        too_long = f": all {len(train)} are longer than {max_length} tokens (max_length)"
        raise ValueError(
            f"{config.examples_file}: no example is left to train on" + (too_long if train else "")
        )
    batches = make_batches(
        train_D,
        batch_size=config.batch_size or (None if config.batch_tokens else 8),
        batch_tokens=config.batch_tokens,
        num_epochs=config.num_epochs,
        seed=config.seed,
    )
    return Plan(train_D, heldout_D, batches)


def plan_table(plan: Plan, num_epochs: int, eval_every: int, samples: str) -> str:
    """Counts of what the run would do; held-out losses are taken at the start, every `eval_every`
    steps and at the end."""
    steps = len(plan.batches)
    evaluations = len({*range(0, steps, eval_every or steps), steps}) if plan.heldout_D else 0
    per_epoch, per_evaluation = num_tokens(plan.train_D), num_tokens(plan.heldout_D)
    trained, evaluated = sum(b.num_tokens for b in plan.batches), evaluations * per_evaluation
    learned = num_trained_tokens(plan.train_D)
    rows = [
        ("examples", f"{len(plan.train_D):,} to train on, {len(plan.heldout_D):,} held out"),
        ("tokens per epoch", f"{per_epoch:,}, of which {learned:,} are learned"),
        ("steps", f"{steps:,} in {num_epochs:,} epochs"),
        ("held-out losses", f"{evaluations:,} on {per_evaluation:,} tokens"),
        ("tokens in all", f"{trained + evaluated:,} ({trained:,} to train on)"),
        ("samples", samples),
    ]
    return text_table(("plan", ""), rows, align="ll")


def _cut_by_tokens(datums: Sequence[Datum], batch_tokens: int) -> list[list[Datum]]:
    batches: list[list[Datum]] = []
    tokens = 0
    for datum in datums:
        length = datum.model_input.length
        if not batches or tokens + length > batch_tokens:
            batches.append([])
            tokens = 0
        batches[-1].append(datum)
        tokens += length
    return batches


def heldout_loss(trainer: TrainingClient, datums: Sequence[Datum]) -> float:
    """Nats per trained token; no gradient is touched."""
    output = trainer.forward(list(datums), "cross_entropy").result()
    return output.metrics["loss:sum"] / num_trained_tokens(datums)
