"""The questions about a thing of a made world, in evaluation wordings."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from training.domains.knowledge.kinds import Attribute
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
            choices=_choices(value, attribute.values, rng),
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
            choices=_choices(thing.name, neighbours, rng, aliases),
            aliases=tuple(aliases),
        )


def _derived(thing: Thing, rng: random.Random) -> Iterator[Question]:
    first, second = thing.kind.years
    many, few = thing.kind.numbers
    years = rng.choice(YEARS_LATER)
    computed = (
        ("later", thing.kind.later, [int(value) + years for value in first.values]),
        ("between", thing.kind.between, _differences(second, first)),
        ("more", thing.kind.more, _differences(many, few)),
    )
    golds = (
        thing.number(first) + years,
        thing.number(second) - thing.number(first),
        thing.number(many) - thing.number(few),
    )
    for (name, wordings, possible), gold in zip(computed, golds, strict=True):
        wording = rng.choice(wordings).replace("{k}", str(years))
        yield Question(
            id=f"{thing.id}/derived/{name}",
            text=filled(wording, thing.called),
            answer=str(gold),
            kind="derived",
            choices=_choices(str(gold), [str(number) for number in possible], rng),
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
        choices=_choices(gold, asked.values, rng, aliases),
        aliases=tuple(aliases),
    )


def _differences(larger: Attribute, smaller: Attribute) -> list[int]:
    """Of all pairs, so that frequent ones are drawn as often as they are right."""
    return [int(a) - int(b) for a in larger.values for b in smaller.values]


def _choices(
    gold: str, possible: Sequence[str], rng: random.Random, aliases: Sequence[str] = ()
) -> tuple[str, ...]:
    choices = [gold]
    order = rng.sample(possible, len(possible))
    for value in order:
        if value not in choices and value not in aliases and len(choices) < NUM_CHOICES:
            choices.append(value)
    rng.shuffle(choices)
    return tuple(choices)
