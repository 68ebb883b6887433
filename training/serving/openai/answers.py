"""Sampled tokens as the answer that a client reads, whole or piece by piece."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from training.api import SampledSequence, StopReason
from training.chat import ROLE_COLON_END, continuation_ends, stop_sequences
from training.running_response import CutText, RunningText, StrippedText
from training.serving.openai.thoughts import Piece, ThoughtsApart


class Token(NamedTuple):
    """`topk`: the likeliest tokens there and their logprobs, likeliest first, where asked for."""

    token: int
    logprob: float | None
    topk: list[tuple[int, float]] | None


@dataclass(frozen=True)
class AnswerForm:
    """What of sampled tokens is the answer.

    `ends`: tokens that are no text where nothing follows. `stops`: texts that the answer ends
    before. `sampler_stop`: SamplingParams.stop for it. `context`: the prompt's tokens, where the
    answer goes on in its text. `is_plain`: of the `Role: text` form, which has blanks around
    answers. `is_thinking`: whether it begins within a thought; None: it has none.
    """

    ends: frozenset[int]
    stops: tuple[str, ...]
    sampler_stop: list[int | str] | None
    context: tuple[int, ...] = ()
    is_plain: bool = False
    is_thinking: bool | None = None


def chat_form(
    tokenizer: Any,
    prompt: list[int],
    stops: tuple[str, ...],
    *,
    template: str,
    continues: bool,
    is_thinking: bool | None,
    eos: frozenset[int],
) -> AnswerForm:
    """`eos`: the tokens that end the model's texts by themselves."""
    own = stop_sequences(tokenizer, template)
    is_plain = own == [ROLE_COLON_END]
    return AnswerForm(
        eos.union(end for end in own if isinstance(end, int)),
        (*stops, ROLE_COLON_END) if is_plain else stops,
        [*own, *stops],
        tuple(prompt) if continues else (),
        is_plain,
        is_thinking,
    )


def completion_form(
    tokenizer: Any, prompt: list[int], stops: tuple[str, ...], *, eos: frozenset[int]
) -> AnswerForm:
    """The model's end tokens alone stop it, beside `stops`."""
    ends = eos.union(continuation_ends(tokenizer))
    return AnswerForm(ends, stops, list(stops) or None, tuple(prompt))


class RunningAnswer:
    """One answer while its tokens come; the pieces joined are the answer."""

    def __init__(self, tokenizer: Any, form: AnswerForm) -> None:
        self._text = RunningText(tokenizer, form.ends, form.context)
        self._cut = CutText(form.stops)
        self._stripped = StrippedText(is_begun=bool(form.context)) if form.is_plain else None
        self._thoughts = None
        if form.is_thinking is not None:
            self._thoughts = ThoughtsApart(is_open=form.is_thinking)
        self.num_tokens = 0

    def add(self, token: int) -> Piece:
        """What is certain now and was not before."""
        self.num_tokens += 1
        return self._piece(self._cut.add(self._text.add([token])))

    def finish(self) -> Piece:
        """The rest, where no token follows."""
        rest = self._cut.add(self._text.finish())
        piece = self._piece(rest + self._cut.finish())
        if self._thoughts is None:
            return piece
        last = self._thoughts.finish()
        return Piece(piece.text + last.text, piece.thought + last.thought)

    def reason(self, told: StopReason) -> StopReason:
        """`told`: the sampler's."""
        return "stop" if self._cut.is_cut else told

    def _piece(self, text: str) -> Piece:
        if self._stripped is not None:
            text = self._stripped.add(text)
        return Piece(text) if self._thoughts is None else self._thoughts.add(text)


class Answer(NamedTuple):
    """A whole one. `tokens`: all that were sampled, with the one that ended it."""

    piece: Piece
    tokens: list[Token]
    reason: StopReason


def whole_answer(tokenizer: Any, form: AnswerForm, sequence: SampledSequence) -> Answer:
    running = RunningAnswer(tokenizer, form)
    tokens = sequence.tokens
    logprobs = sequence.logprobs or [None] * len(tokens)
    topks = sequence.topk_logprobs or [None] * len(tokens)
    pieces = [*(running.add(token) for token in tokens), running.finish()]
    return Answer(
        joined(pieces),
        [Token(*told) for told in zip(tokens, logprobs, topks, strict=True)],
        running.reason(sequence.stop_reason),
    )


def joined(pieces: Iterable[Piece]) -> Piece:
    pieces = list(pieces)
    return Piece("".join(p.text for p in pieces), "".join(p.thought for p in pieces))
