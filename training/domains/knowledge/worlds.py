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

from training.domains.knowledge.kinds import KINDS, Kind
from training.domains.knowledge.made_questions import questions
from training.domains.knowledge.names import world_names
from training.domains.knowledge.passages import Passage
from training.domains.knowledge.things import Thing, filled

# train and test, and a third for worked examples in prompts
Part = Literal["train", "test", "shown"]
PARTS: tuple[Part, ...] = ("train", "test", "shown")
MAX_PASSAGES = 1000
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
        once. Raises ValueError for more than MAX_PASSAGES and for a seed below 0."""
        if number > MAX_PASSAGES:
            raise ValueError(
                f"{number} {part} passages were asked for; a made world has {MAX_PASSAGES} of each "
                "split, so ask for fewer, or take several seeds"
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
        questions in evaluation wordings.

        The title tells the kind alone: a name would answer the reverse questions.
        """
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
                    title=f"A {thing.kind.name}",
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


def _rows(kind: Kind, seed: str) -> Iterator[tuple[str, ...]]:
    columns = [_drawn(a.values, random.Random(f"{seed}/{a.name}")) for a in kind.attributes]
    return zip(*columns, strict=True)


def _drawn(values: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Without replacement, and again from the start when none is left."""
    while True:
        yield from rng.sample(values, len(values))
