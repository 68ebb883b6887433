"""One thing of a made world, and wordings about it."""

from __future__ import annotations

import re
from dataclasses import dataclass

from training.domains.knowledge.kinds import Attribute, Kind

_VOWELS = ("a", "e", "i", "o", "u")


@dataclass(frozen=True)
class Thing:
    """`values` has one value for each attribute of the kind."""

    id: str
    kind: Kind
    name: str
    values: tuple[str, ...]

    def value(self, attribute: Attribute) -> str:
        return self.values[self.kind.attributes.index(attribute)]

    def number(self, attribute: Attribute) -> int:
        return int(self.value(attribute))

    @property
    def called(self) -> str:
        """Its name as it stands within a sentence."""
        return f"{self.kind.article}{self.name}"


def filled(wording: str, called: str = "", value: str = "") -> str:
    """The wording of what is `called` so, with a capital letter in front."""
    if value[:1].lower() in _VOWELS:
        wording = re.sub(r"\b([Aa]) \{v\}", r"\1n {v}", wording)
    text = wording.replace("{e}", called).replace("{v}", value)
    return text[0].upper() + text[1:]
