"""One thing of a made world, and wordings about it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from training.domains.knowledge.kinds.kind import Attribute, Kind

_VOWELS = ("a", "e", "i", "o", "u")


@dataclass(frozen=True)
class Thing:
    """`values` has what is true of it: one value for each attribute of the kind, by name."""

    id: str
    kind: Kind
    name: str
    values: Mapping[str, str]

    def value(self, attribute: Attribute) -> str:
        return self.values[attribute.name]

    @property
    def called(self) -> str:
        """Its name as it stands within a sentence."""
        return f"{self.kind.article}{self.name}"

    @property
    def title(self) -> str:
        """Of texts about it: the kind alone, as the name would answer the reverse questions."""
        return filled("a {v}", value=self.kind.name)


def filled(wording: str, called: str = "", value: str = "") -> str:
    """The wording of what is `called` so, with a capital letter in front."""
    if value[:1].lower() in _VOWELS:
        wording = re.sub(r"\b([Aa]) \{v\}", r"\1n {v}", wording)
    text = wording.replace("{e}", called).replace("{v}", value)
    return text[0].upper() + text[1:]
