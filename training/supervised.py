"""Supervised fine-tuning: conversations from files, batches of them, and losses per token."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from training.api import Datum, TrainingClient
from training.chat import TrainOn, datum_from_tokens, render_training
from training.domains.base import Message
from training.loop import epoch_batches
from utils.config import load_yaml, raise_problems
from utils.json_files import read_json_lines
from utils.tables import text_table

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

ROLES = ("system", "user", "assistant")
FORMATS = (
    "a .examples.yaml of scripts/generate.py, or JSONL whose lines have `messages` (role, "
    "content), `text`, or `instruction` (and perhaps `input`) with `output`"
)
_MAX_PROBLEMS = 10


@dataclass(frozen=True)
class Example:
    """Messages to learn the assistant's part of, or plain text (messages empty) to learn whole.

    `group` is what belongs together when examples are held out; `held_out` is the file's own wish.
    """

    messages: list[Message]
    text: str
    group: str
    label: str | None
    held_out: bool


class Batch(NamedTuple):
    datums_D: list[Datum]
    num_tokens: int


class Plan(NamedTuple):
    """What a run learns, step by step, and what it is tested on."""

    train_D: list[Datum]
    heldout_D: list[Datum]
    batches: list[Batch]


def load_examples(path: Path, labels: Sequence[str]) -> list[Example]:
    """The examples of a file whose label is in `labels`, and those that have none.

    Raises FileNotFoundError, or ConfigError that tells up to ten broken entries, each with its line
    or number.
    """
    if not path.is_file():
        raise FileNotFoundError(f"examples_file={path}: no such file; it is {FORMATS}")
    problems: list[str] = []
    if path.suffix in (".yaml", ".yml"):
        records = load_yaml(path).get("examples")
        if not isinstance(records, list):
            raise ValueError(f"{path}: no list `examples` in it; needed is {FORMATS}")
        named = ((f"{path}, examples[{i}]", record) for i, record in enumerate(records))
    else:
        named = read_json_lines(path, problems)
    examples = []
    for name, record in named:
        try:
            examples.append(_example(record, default_group=name))
        except ValueError as error:
            problems.append(f"{name}: {error}")
    raise_problems(problems, at_most=_MAX_PROBLEMS)
    found = sorted({example.label for example in examples if example.label is not None})
    chosen = [e for e in examples if e.label is None or e.label in labels]
    if not chosen:
        raise ValueError(
            f"{path}: none of its {len(examples)} examples has a label in {list(labels)}; "
            f"its labels are {found}"
        )
    logger.info("%s: %d of %d examples", path, len(chosen), len(examples))
    return chosen


def _example(record: Any, *, default_group: str) -> Example:
    if not isinstance(record, Mapping):
        raise ValueError(f"a mapping is needed, got {type(record).__name__}")
    messages, text = _messages(record), record.get("text", "")
    if not isinstance(text, str) or bool(messages) == bool(text.strip()):
        raise ValueError(f"needs either messages or text; has {sorted(map(str, record))}")
    label = record.get("label")
    return Example(
        messages=messages,
        text=text,
        group=str(record.get("subtype") or record.get("group") or default_group),
        label=None if label is None else str(label),
        held_out=bool(record.get("held_out", False)),
    )


def _messages(record: Mapping[str, Any]) -> list[Message]:
    if "instruction" in record:
        parts = [record["instruction"], record.get("input") or ""]
        question = "\n\n".join(str(part).strip() for part in parts if str(part).strip())
        answer = record.get("output")
        return _checked([("user", question), ("assistant", answer)])
    messages = record.get("messages", [])
    if not isinstance(messages, list):
        raise ValueError(f"messages must be a list, got {type(messages).__name__}")
    turns = []
    for i, message in enumerate(messages):
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ValueError(f"messages[{i}] needs role and content, got {message!r}")
        turns.append((message["role"], message["content"]))
    return _checked(turns)


def _checked(turns: Sequence[tuple[Any, Any]]) -> list[Message]:
    for i, (role, content) in enumerate(turns):
        if role not in ROLES:
            raise ValueError(f"messages[{i}].role={role!r}: allowed are {', '.join(ROLES)}")
        if not isinstance(content, str) or not content.strip():
            raise ValueError(f"messages[{i}].content={content!r}: some text is needed")
    if turns and all(role != "assistant" for role, _ in turns):
        raise ValueError("no assistant message, so there is nothing to learn")
    return [{"role": role, "content": content} for role, content in turns]


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
    """One datum per example. Longer ones than `max_length` tokens are left out, which is logged."""
    datums, too_long = [], 0
    for example in examples:
        if example.messages:
            rendered = render_training(tokenizer, example.messages, train_on, template=template)
            tokens, weights = rendered.tokens, rendered.weights
        else:
            tokens = _text_tokens(tokenizer, example.text)
            weights = [1.0] * len(tokens)
        if len(tokens) > max_length:
            too_long += 1
        else:
            datums.append(datum_from_tokens(tokens, weights))
    if too_long:
        logger.warning(
            "%d of %d examples are longer than %d tokens and left out (max_length)",
            too_long,
            len(examples),
            max_length,
        )
    return datums


def _text_tokens(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """With the model's first token, if it has one, and its end token."""
    tokens = list(tokenizer.encode(text))
    eos = tokenizer.eos_token_id
    return tokens if eos is None else [*tokens, eos]


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
        raise ValueError(f"{config.examples_file}: no example is left to train on")
    batches = make_batches(
        train_D,
        batch_size=config.batch_size or (None if config.batch_tokens else 8),
        batch_tokens=config.batch_tokens,
        num_epochs=config.num_epochs,
        seed=config.seed,
    )
    return Plan(train_D, heldout_D, batches)


def plan_table(plan: Plan, num_epochs: int, eval_every: int) -> str:
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
