"""A domain's problem as tokens: its prompt, where answers end, and what they say."""

from collections.abc import Sequence
from typing import Any

from training.chat import (
    parse_continuation,
    parse_response,
    render_prompt,
    render_raw_prompt,
    stop_sequences,
)
from training.domains.base import Problem


def prompt_tokens(tokenizer: Any, problem: Problem) -> list[int]:
    """What the model reads. Raises ValueError where it cannot be written as a prompt."""
    if problem.raw is not None:
        return render_raw_prompt(tokenizer, problem.raw.text)
    return render_prompt(tokenizer, problem.messages)


def stop_of(tokenizer: Any, problem: Problem) -> Any:
    """SamplingParams.stop; None, as of most continuations, is the model's end token."""
    if problem.raw is None:
        return stop_sequences(tokenizer)
    return list(problem.raw.stop) or None


def answer_text(tokenizer: Any, problem: Problem, tokens: Sequence[int]) -> str:
    """The answer without what ended it."""
    if problem.raw is None:
        return parse_response(tokenizer, tokens)
    return parse_continuation(tokenizer, tokens, problem.raw.stop)
