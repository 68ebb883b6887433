"""The questions about a thing of a made world, in evaluation wordings."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from training.domains.knowledge.passages import Question
from training.domains.knowledge.things import Thing, filled

NUM_CHOICES = 4
# one asks for the year in which something turned so many years old
YEARS_LATER = range(20, 61)


def questions(
    thing: Thing, of_kind: Sequence[Thing], neighbours: Sequence[str]
) -> Iterator[Question]:
    """8 direct ones, 4 reverse ones (which thing has a value), 4 derived ones (a year and some
    more, the years between two events, the difference of two numbers, the value of the thing that
    has another value).

    `of_kind` are the things of its kind that are learned too: where they have the same value, what
    they are called, or what is true of them, is as right. Wrong choices are drawn from where the
    gold answer was drawn, the names from `neighbours`: by guessing, a quarter is right.
    """
    others = [other for other in of_kind if other.id != thing.id]
    rng = random.Random(f"questions/{thing.id}")
    yield from _direct(thing, rng)
    yield from _reverse(thing, others, neighbours, rng)
    yield from _derived(thing, rng)
    yield _two_hops(thing, others, rng)


def _direct(thing: Thing, rng: random.Random) -> Iterator[Question]:
    for attribute in thing.kind.attributes:
        value = thing.value(attribute)
        yield Question(
            id=f"{thing.id}/direct/{attribute.name}",
            text=filled(rng.choice(attribute.evaluation), thing.called),
            answer=value,
            kind="direct",
            choices=_choices(value, partial(rng.choice, attribute.values), rng),
        )


def _reverse(
    thing: Thing, others: Sequence[Thing], neighbours: Sequence[str], rng: random.Random
) -> Iterator[Question]:
    for attribute in thing.kind.words:
        value = thing.value(attribute)
        aliases = [other.name for other in others if other.value(attribute) == value]
        yield Question(
            id=f"{thing.id}/reverse/{attribute.name}",
            text=filled(rng.choice(attribute.reverse_evaluation), value=value),
            answer=thing.name,
            kind="reverse",
            choices=_choices(thing.name, partial(rng.choice, neighbours), rng, aliases),
            aliases=tuple(aliases),
        )


def _derived(thing: Thing, rng: random.Random) -> Iterator[Question]:
    (first, second), (many, few) = thing.kind.years, thing.kind.numbers
    years = rng.choice(YEARS_LATER)

    def difference(larger: str, smaller: str) -> str:
        return str(int(larger) - int(smaller))

    computed: tuple[tuple[str, tuple[str, str], str, Callable[[], str]], ...] = (
        (
            "later",
            thing.kind.later,
            str(int(thing.value(first)) + years),
            lambda: str(int(rng.choice(first.values)) + years),
        ),
        (
            "between",
            thing.kind.between,
            difference(thing.value(second), thing.value(first)),
            lambda: difference(rng.choice(second.values), rng.choice(first.values)),
        ),
        (
            "more",
            thing.kind.more,
            difference(thing.value(many), thing.value(few)),
            lambda: difference(rng.choice(many.values), rng.choice(few.values)),
        ),
    )
    for name, wordings, gold, draw in computed:
        wording = rng.choice(wordings).replace("{k}", str(years))
        yield Question(
            id=f"{thing.id}/derived/{name}",
            text=filled(wording, thing.called),
            answer=gold,
            kind="derived",
            choices=_choices(gold, draw, rng),
        )


def _two_hops(thing: Thing, others: Sequence[Thing], rng: random.Random) -> Question:
    known, asked = rng.sample(thing.kind.words, 2)
    value, gold = thing.value(known), thing.value(asked)
    same = {other.value(asked) for other in others if other.value(known) == value}
    aliases = sorted(same - {gold})
    called = f"the {thing.kind.name} {known.clause.replace('{v}', value)}"
    return Question(
        id=f"{thing.id}/derived/hops",
        text=filled(rng.choice(asked.evaluation), called),
        answer=gold,
        kind="derived",
        choices=_choices(gold, partial(rng.choice, asked.values), rng, aliases),
        aliases=tuple(aliases),
    )


def _choices(
    gold: str, draw: Callable[[], str], rng: random.Random, aliases: Sequence[str] = ()
) -> tuple[str, ...]:
    """The gold answer among others that `draw` gives, in any order."""
    choices = [gold]
    while len(choices) < NUM_CHOICES:
        value = draw()
        if value not in choices and value not in aliases:
            choices.append(value)
    rng.shuffle(choices)
    return tuple(choices)
