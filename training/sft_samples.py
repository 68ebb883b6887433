"""What a fine-tuned model answers: examples it has not learned, asked at the end of a run."""

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from training.api import ModelInput, SamplingClient, SamplingParams
from training.chat import (
    continuation_ends,
    decode,
    parse_continuation,
    parse_response,
    stop_sequences,
)
from training.examples import Example
from training.supervised import render_example

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# of a text that no prompt precedes, so much at most is given
BEGINNING = 32


class Question(NamedTuple):
    """`prompt` [tokens] is what training showed before the `reference`, what was learned after it
    or would have been; `is_chat` says whether a message is to be written, or a text continued."""

    where: str
    prompt: list[int]
    shown: str
    reference: str
    is_chat: bool


def choose_questions(
    config: Any,
    train: Sequence[Example],
    held: Sequence[Example],
    tokenizer: "PreTrainedTokenizerBase",
    context: int | None,
) -> list[Question]:
    """`num_samples` of the held-out examples, spread over them; of the others where none is held
    out. Those that leave no room for an answer in `context` tokens, or ask for none, are passed
    over."""
    found: list[Question] = []
    reasons: list[str] = []
    candidates = held or train
    for index in _spread(len(candidates), config.num_samples):
        if len(found) == config.num_samples:
            break
        example = candidates[index]
        try:
            question = _question(example, tokenizer, config.template)
        except ValueError as error:
            reasons.append(f"{example.where}: {error}")
            continue
        if context is not None and len(question.prompt) >= context:
            reasons.append(f"{example.where}: its {len(question.prompt)} tokens leave no room")
            continue
        found.append(question)
    if reasons and len(found) < config.num_samples:
        logger.warning(
            "%d examples are not asked for samples; the first: %s", len(reasons), reasons[0]
        )
    return found


def ask(
    sampler: SamplingClient,
    questions: Sequence[Question],
    tokenizer: "PreTrainedTokenizerBase",
    template: str,
    max_tokens: int,
) -> Iterator[dict[str, Any]]:
    """A line of samples.jsonl for each, of the likeliest tokens (temperature 0)."""
    futures = []
    for question in questions:
        if question.is_chat:
            stop = stop_sequences(tokenizer, template)
        else:
            stop = sorted(continuation_ends(tokenizer))
        params = SamplingParams(max_tokens=max_tokens, temperature=0.0, seed=0, stop=stop)
        futures.append(sampler.sample(ModelInput.from_ints(question.prompt), 1, params))
    for question, future in zip(questions, futures, strict=True):
        [sequence] = future.result().sequences
        yield {
            "where": question.where,
            "prompt": question.shown,
            "reference": question.reference,
            "answer": _text(tokenizer, sequence.tokens, template, is_chat=question.is_chat),
            "stop_reason": sequence.stop_reason,
        }


def _spread(count: int, wanted: int) -> list[int]:
    """All indices, those first that part `count` into `wanted` equal pieces."""
    wanted = min(wanted, count)
    first = [i * count // wanted for i in range(wanted)]
    return [*first, *(i for i in range(count) if i not in first)]


def _question(example: Example, tokenizer: "PreTrainedTokenizerBase", template: str) -> Question:
    tokens, weights = render_example(example, tokenizer, "last_assistant", template)
    start = next(i for i, weight in enumerate(weights) if weight)
    is_text = not (example.messages or example.prompt)
    if is_text:
        start = min(BEGINNING, len(tokens) // 2)
    if start == 0:
        raise ValueError("nothing to answer in it")
    # a template may write on after the token that ends the answer
    end = max(i for i, weight in enumerate(weights) if weight) + 1
    prompt, is_chat = tokens[:start], bool(example.messages)
    reference = _text(tokenizer, tokens[start:end], template, is_chat=is_chat)
    return Question(example.where, prompt, decode(tokenizer, prompt), reference, is_chat)


def _text(
    tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[int], template: str, *, is_chat: bool
) -> str:
    """Of an answer, without what ended it."""
    if is_chat:
        return parse_response(tokenizer, tokens, template=template)
    return parse_continuation(tokenizer, tokens)
