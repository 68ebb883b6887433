"""Made worlds: things that do not exist, what is true of them, and passages that say it.

All facts are a table, so gold answers, other right answers, wrong choices and what a text covers
are exact.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from training.domains.knowledge.kinds.kind import Kind
from training.domains.knowledge.kinds.registry import KINDS
from training.domains.knowledge.made_questions import questions
from training.domains.knowledge.names import world_names
from training.domains.knowledge.passages import Passage
from training.domains.knowledge.things import Thing, filled

# train and test, and a third for worked examples in prompts
Part = Literal["train", "test", "shown"]
PARTS: tuple[Part, ...] = ("train", "test", "shown")
# of each kind in each part: more things with the same value would leave no wrong choices
MAX_OF_KIND = 96
# so many things of each kind lend each other their names as wrong choices
_NEIGHBOURS = 8


@dataclass(frozen=True)
class World:
    """Fixed by its seed and kinds. Worlds of different seeds share no name, nor do the parts of a
    world. The things and passages that are asked for are the first ones of those asked for at
    another time, but for the `aliases` of answers that stop being unique.
    """

    seed: int = 0
    kinds: tuple[Kind, ...] = KINDS

    def things(self, part: Part, number: int) -> list[Thing]:
        """All kinds in turn. A value of an attribute comes a second time only when each has come
        once. Raises ValueError for a seed below 0, and for more than MAX_OF_KIND of each kind."""
        most = MAX_OF_KIND * len(self.kinds)
        if number > most:
            kinds = ", ".join(kind.name for kind in self.kinds)
            raise ValueError(
                f"{number} {part} passages were asked for; a made world of {kinds} has {most} of "
                "each split"
            )
        names = world_names(self.seed)[PARTS.index(part) :: len(PARTS)]
        rows = [_rows(kind, f"{self.seed}/{part}/{kind.name}") for kind in self.kinds]
        return [
            Thing(f"made/{self.seed}/{part}/{i}", kind, name, next(row))
            for i, (name, kind, row) in enumerate(
                zip(names[:number], itertools.cycle(self.kinds), itertools.cycle(rows))
            )
        ]

    def passages(self, part: Part, number: int) -> list[Passage]:
        """A passage of 60 to 90 words about each thing, with 8 direct, 4 reverse and 4 derived
        questions in evaluation wordings."""
        made = self.things(part, number)
        block = _NEIGHBOURS * len(self.kinds)
        names = world_names(self.seed)[PARTS.index(part) :: len(PARTS)]
        passages = []
        for i, thing in enumerate(made):
            # all of its kind
            same = slice(i % len(self.kinds), None, len(self.kinds))
            first = i // block * block
            neighbours = names[first : first + block][same]
            passages.append(
                Passage(
                    id=thing.id,
                    title=thing.title,
                    context=told(thing, thing.id),
                    questions=tuple(questions(thing, made[same], neighbours)),
                    cluster=thing.id,
                )
            )
        return passages


def told(thing: Thing, seed: str) -> str:
    """A passage with all facts, in an order and in wordings that `seed` draws."""
    rng = random.Random(f"told/{seed}")
    attributes = list(thing.kind.attributes)
    rng.shuffle(attributes)
    sentences = [filled(thing.kind.opening, thing.called)]
    for i, attribute in enumerate(attributes):
        called = thing.called if i % 2 else thing.kind.again or thing.called
        sentences.append(filled(rng.choice(attribute.sentences), called, thing.value(attribute)))
    return " ".join(sentences)


def _rows(kind: Kind, seed: str) -> Iterator[dict[str, str]]:
    columns = [_drawn(a.values, random.Random(f"{seed}/{a.name}")) for a in kind.attributes]
    names = [attribute.name for attribute in kind.attributes]
    for row in zip(*columns, strict=True):
        yield dict(zip(names, row, strict=True))


def _drawn(values: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Without replacement, and again from the start when none is left."""
    while True:
        yield from rng.sample(values, len(values))
