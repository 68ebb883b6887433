"""What a model thinks before it answers, apart from its answer."""

from typing import NamedTuple

OPENS = "<think>"
CLOSES = "</think>"


class Piece(NamedTuple):
    """Of an answer: its text, and the text of the thought before it."""

    text: str
    thought: str = ""


class ThoughtsApart:
    """A text that comes in pieces, as thought and answer.

    The thought is what stands between the tags at the very beginning, or up to the closing tag
    where the prompt opened one. Line ends between tags and text belong to neither. Tags anywhere
    else are text.
    """

    def __init__(self, *, is_open: bool) -> None:
        self._is_begun = self._is_thinking = self._is_at_border = is_open
        self._held = ""

    def add(self, new: str) -> Piece:
        """What is certain now and was not before."""
        text, self._held = self._held + new, ""
        thought = ""
        if not self._is_begun:
            begun = text.lstrip()
            if OPENS.startswith(begun):
                # it may become the tag
                self._held = text
                return Piece("")
            self._is_begun = True
            if begun.startswith(OPENS):
                self._is_thinking = self._is_at_border = True
                text = begun.removeprefix(OPENS)
        if self._is_thinking:
            text = self._past_border(text)
            thought, tag, rest = text.partition(CLOSES)
            if not tag:
                kept = _before_tag(text).rstrip("\n")
                self._held = text[len(kept) :]
                return Piece("", kept)
            thought, text = thought.rstrip("\n"), rest
            self._is_thinking, self._is_at_border = False, True
        return Piece(self._past_border(text), thought)

    def finish(self) -> Piece:
        """What was held back for a tag that did not come."""
        return Piece("", self._held) if self._is_thinking else Piece(self._held)

    def _past_border(self, text: str) -> str:
        if self._is_at_border:
            text = text.lstrip("\n")
            self._is_at_border = not text
        return text


def _before_tag(text: str) -> str:
    """`text` without an end that may be the beginning of the closing tag."""
    for length in range(len(CLOSES) - 1, 0, -1):
        if text.endswith(CLOSES[:length]):
            return text[:-length]
    return text
