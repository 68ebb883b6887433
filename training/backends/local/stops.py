"""Stop strings, found where they end in a sample's text."""

from collections.abc import Callable, Sequence

# Characters at the start of decoded tokens that may not be what they are in the whole text: the
# rest of a character of up to four bytes, each of which reads U+FFFD, or a blank that was stripped.
_UNSURE_CHARACTERS = 4
# Tokens for them, besides one per byte of the stop string.
_MARGIN_TOKENS = 4 * _UNSURE_CHARACTERS


class StopStrings:
    """Tells after every token of one sample whether its text has one of `strings` now.

    The text is what the sample adds to that of its prompt: a first token " yes" keeps its blank,
    and a stop string is not put together from both. A token is one byte of text or more, so a look
    at the last tokens is enough, whatever the length of the sample; it is widened where they have
    less text than that.
    """

    def __init__(
        self, strings: Sequence[str], prompt: Sequence[int], decode: Callable[[list[int]], str]
    ) -> None:
        self._strings = strings
        self._decode = decode
        self._longest = max(len(string) for string in strings)
        self._window = max(len(string.encode()) for string in strings) + _MARGIN_TOKENS
        self._context = list(prompt[-_MARGIN_TOKENS:])
        self._context_text = decode(self._context)

    def found_in(self, tokens: list[int]) -> bool:
        """`tokens` of the sample so far; it was asked for all those before the last one."""
        text = self._tail(tokens)
        return any(string in text for string in self._strings)

    def _tail(self, tokens: list[int]) -> str:
        window = self._window
        while window < len(tokens):
            text = self._from_a_character_on(tokens, window)[_UNSURE_CHARACTERS:]
            if len(text) >= self._longest:
                return text
            window *= 2
        text = self._decode([*self._context, *tokens])
        if text.startswith(self._context_text):
            return text[len(self._context_text) :]
        # the prompt ends within a character
        return self._decode(tokens)

    def _from_a_character_on(self, tokens: list[int], window: int) -> str:
        """The last `window` tokens' text, or that of up to three more: tokens of bytes that begin
        within a character can read U+FFFD to their end (ByteFallback of SentencePiece's models)."""
        text = ""
        for more in range(4):
            text = self._decode(tokens[-(window + more) :])
            if not text.startswith("\N{REPLACEMENT CHARACTER}"):
                break
        return text
