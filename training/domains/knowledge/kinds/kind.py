"""What a kind of thing in a made world is: attributes, and every wording about them.

In the texts, {e} is the thing (its name, "the village", "the village that grows rye"), {v} the
value of the attribute. Evaluation wordings are never trained on, nor shown in a prompt; the
sentences and the training wordings are.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Attribute:
    """`sentences` state the fact, `training` and `evaluation` ask for the value. Where the thing
    can be asked for by the value, `clause` goes on after "which village" and "the village that";
    the two `asked_by` are questions for training."""

    name: str
    values: tuple[str, ...]
    sentences: tuple[str, str, str]
    training: tuple[str, str]
    evaluation: tuple[str, str]
    reverse_training: tuple[str, ...] = ()
    reverse_evaluation: tuple[str, ...] = ()
    clause: str = ""


@dataclass(frozen=True)
class Kind:
    """Eight attributes: four of words, then two years, the earlier one first, then two numbers,
    the larger one first. `article` is what stands before a name; the derived questions ask for the
    first year plus {k}, for the years between, and for the difference of the numbers."""

    name: str
    article: str
    # what else a passage calls it, if anything
    again: str
    opening: str
    attributes: tuple[Attribute, ...]
    later: tuple[str, str]
    between: tuple[str, str]
    more: tuple[str, str]

    @property
    def words(self) -> tuple[Attribute, ...]:
        return self.attributes[:4]

    @property
    def years(self) -> tuple[Attribute, Attribute]:
        return self.attributes[4], self.attributes[5]

    @property
    def numbers(self) -> tuple[Attribute, Attribute]:
        return self.attributes[6], self.attributes[7]
