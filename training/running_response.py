"""The text of a sampled message while it is written."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from training.chat import ROLE_COLON_END, decode, stop_sequences

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BROKEN = "\N{REPLACEMENT CHARACTER}"
# A character has up to four bytes and a token one byte or more, so that of a text that ends within
# a character no more than the last three tokens are unfinished.
_UNFINISHED_TOKENS = 3
# of a prompt: enough to begin with a whole character, and with a word's blank
_CONTEXT_TOKENS = 16


class RunningText:
    """What each token adds to the text of all tokens so far.

    Only the last few tokens are decoded, whatever the length of the message: those that it is asked
    for, behind the ones before them, since a decoder can drop the blank that a text begins with. A
    character is given whole. Bytes that are no text read U+FFFD as soon as no later byte can make
    one of them; some decoders then read the bytes before them otherwise, which were given already.
    Of `ends` those that nothing follows are no part of the text. With `context`, the prompt, the
    text is what the tokens add to that of the prompt.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        ends: Iterable[int] = (),
        context: Sequence[int] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._ends = frozenset(ends)
        # tokens whose text was given last, those behind them, and ends that nothing followed yet
        self._before = list(context[-_CONTEXT_TOKENS:])
        self._pending: list[int] = []
        self._closing: list[int] = []

    def add(self, tokens: Sequence[int]) -> str:
        """The text that is certain now and was not before."""
        for token in tokens:
            self._closing.append(token)
            if token not in self._ends:
                self._pending += self._closing
                self._closing.clear()
        new = self._text_of(self._pending)
        num_certain = len(self._pending)
        if new.endswith(_BROKEN):
            num_certain = max(0, num_certain - _UNFINISHED_TOKENS)
            new = self._text_of(self._pending[:num_certain])
        if new:
            self._before = self._pending[:num_certain]
            del self._pending[:num_certain]
        return new

    def finish(self) -> str:
        """The rest, where no token follows."""
        return self._text_of(self._pending)

    def _text_of(self, tokens: list[int]) -> str:
        """Behind those given last."""
        before = decode(self._tokenizer, self._before)
        text = decode(self._tokenizer, [*self._before, *tokens])
        return text[len(before) :] if text.startswith(before) else decode(self._tokenizer, tokens)


class CutText:
    """A text that comes in pieces, up to where the first of `stops` begins; then `is_cut`."""

    def __init__(self, stops: Iterable[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.is_cut = False

    def add(self, new: str) -> str:
        """The text that is certainly before any stop, and was not before."""
        if self.is_cut:
            return ""
        text = self._held + new
        found = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        self.is_cut = bool(found)
        # the end may be the beginning of a stop
        kept = min(found) if found else len(text) - _longest_overlap(text, self._stops)
        self._held = text[kept:]
        return text[:kept]

    def finish(self) -> str:
        """What was held back for a stop that did not come."""
        return "" if self.is_cut else self._held


class StrippedText:
    """A text that comes in pieces, without the blanks around it."""

    def __init__(self, *, is_begun: bool = False) -> None:
        self._is_begun = is_begun
        self._held = ""

    def add(self, new: str) -> str:
        text = self._held + new
        if not self._is_begun:
            text = text.lstrip()
        kept = text.rstrip()
        self._is_begun = self._is_begun or kept != ""
        self._held = text[len(kept) :]
        return kept


class RunningResponse:
    """What each token adds to `parse_response` of all tokens so far."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, template: str = "auto") -> None:
        stop = stop_sequences(tokenizer, template)
        self._is_plain = stop == [ROLE_COLON_END]
        ends = [tokenizer.eos_token_id] if self._is_plain else stop
        self._text = RunningText(tokenizer, [end for end in ends if isinstance(end, int)])
        self._cut = CutText([ROLE_COLON_END])
        self._stripped = StrippedText()

    def add(self, tokens: Sequence[int]) -> str:
        """The text that is certain now and was not before."""
        new = self._text.add(tokens)
        return self._stripped.add(self._cut.add(new)) if self._is_plain else new


def _longest_overlap(text: str, stops: Iterable[str]) -> int:
    """How many characters at the end of `text` are the first ones of a stop."""
    longest = 0
    for stop in stops:
        for length in range(min(len(stop) - 1, len(text)), longest, -1):
            if text.endswith(stop[:length]):
                longest = length
                break
    return longest
