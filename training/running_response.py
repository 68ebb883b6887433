"""The text of a sampled message while it is written."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from training.chat import ROLE_COLON_END, decode, stop_sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BROKEN = "\N{REPLACEMENT CHARACTER}"
# A character has up to four bytes and a token one byte or more, so that of a text that ends within
# a character no more than the last three tokens are unfinished.
_UNFINISHED_TOKENS = 3


class RunningResponse:
    """What each token adds to `parse_response` of all tokens so far.

    Only the last few tokens are decoded, whatever the length of the message: those that it is asked
    for, behind the ones before them, since a decoder can drop the blank that a text begins with. A
    character is given whole. Bytes that are no text read U+FFFD as soon as no later byte can make
    one of them; some decoders then read the bytes before them otherwise, which were given already.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, template: str = "auto") -> None:
        self._tokenizer = tokenizer
        stop = stop_sequences(tokenizer, template)
        self._is_plain = stop == [ROLE_COLON_END]
        self._ends = frozenset([tokenizer.eos_token_id] if self._is_plain else stop)
        # tokens whose text was given last, those behind them, and ends that nothing followed yet
        self._before: list[int] = []
        self._pending: list[int] = []
        self._closing: list[int] = []
        # of the plain form: text that may be what ends a turn, or blanks that nothing follows
        self._held = ""
        self._begun = self._ended = False

    def add(self, tokens: Sequence[int]) -> str:
        """The text that is certain now and was not before."""
        for token in tokens:
            self._closing.append(token)
            if token not in self._ends:
                self._pending += self._closing
                self._closing.clear()
        new = self._decoded()
        return self._without_end(new) if self._is_plain else new

    def _decoded(self) -> str:
        new = self._text_of(self._pending)
        num_certain = len(self._pending)
        if new.endswith(_BROKEN):
            num_certain = max(0, num_certain - _UNFINISHED_TOKENS)
            new = self._text_of(self._pending[:num_certain])
        if new:
            self._before = self._pending[:num_certain]
            del self._pending[:num_certain]
        return new

    def _text_of(self, tokens: list[int]) -> str:
        """Behind those given last."""
        before = decode(self._tokenizer, self._before)
        text = decode(self._tokenizer, [*self._before, *tokens])
        return text[len(before) :] if text.startswith(before) else decode(self._tokenizer, tokens)

    def _without_end(self, new: str) -> str:
        if self._ended:
            return ""
        self._held += new
        text, self._ended = self._held, ROLE_COLON_END in self._held
        if self._ended:
            text = text.partition(ROLE_COLON_END)[0]
        else:
            lengths = range(len(ROLE_COLON_END), 0, -1)
            part = next((k for k in lengths if text.endswith(ROLE_COLON_END[:k])), 0)
            text = text[: len(text) - part]
        text = text.rstrip()
        self._held = self._held[len(text) :]
        if not self._begun:
            text = text.lstrip()
            self._begun = text != ""
        return text
