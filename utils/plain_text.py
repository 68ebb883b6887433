"""Regular expressions, as JSON schemas take them, that hold very small models to plain text which
comes to an end."""

from __future__ import annotations

import re

# one or two short sentences, without ^ and $
SENTENCES = r"[A-Z][A-Za-z ,'-]{15,100}\.( [A-Z][A-Za-z ,'-]{10,90}\.)?"
# what a user would begin a message with, in one sentence
REQUEST = (
    r"^(How|What|Why|Can you|Could you|Should I|Is it|Do you think|I am|I have|I want|My|Please) "
    r"[a-z][A-Za-z ,'-]{20,140}[.?]$"
)


def plain_text(least: int, most: int) -> str:
    """Prose of so many characters, ended like a sentence."""
    return rf"^[A-Z][A-Za-z ,.;:?!'()-]{{{max(least - 2, 0)},{most - 2}}}[.!?]$"


def continued(start: str, most: int) -> str:
    """A text that begins with `start` and goes on in small letters."""
    return rf"^{re.escape(start)} [a-z][a-z ,'-]{{8,{most}}}[a-z]$"
