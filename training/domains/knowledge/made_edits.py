"""Edits that the generator of made worlds writes from its table, in training wordings only: what a
model that writes perfect edits would write, and worked examples of edits and answers in prompts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Literal, get_args

from training.domains.knowledge.passages import Shot
from training.domains.knowledge.things import Thing, filled
from training.domains.knowledge.worlds import told

TemplateForm = Literal["qa", "statements", "cloze", "reverse", "paraphrase"]
TEMPLATE_FORMS: tuple[TemplateForm, ...] = get_args(TemplateForm)
BLANK = "____"
_RETELLINGS = 2


def template_edit(thing: Thing, form: TemplateForm, seed: int) -> str:
    """Lines about all facts, their order and wordings drawn by `seed`:

    - qa: "Q: ...? A: ...", both wordings of every fact
    - statements: a sentence for every fact
    - cloze: a sentence with a blank for every fact, "... ____ ... Answer: ..."
    - reverse: "Q: ...? A: <name>", both wordings of every fact that tells the thing
    - paraphrase: the passage told again, twice
    """
    rng = random.Random(f"edit/{thing.id}/{form}/{seed}")
    lines = list(_LINES[form](thing, rng))
    if form != "paraphrase":
        rng.shuffle(lines)
    return "\n".join(lines)


def shots(thing: Thing) -> tuple[Shot, ...]:
    """Worked examples of the answer prompt: one for a word, a year, a number, and the name."""
    kind = thing.kind
    asked = (kind.words[0], kind.years[0], kind.numbers[0])
    direct = [Shot(thing.title, filled(a.training[0], thing.called), thing.value(a)) for a in asked]
    by_value = kind.words[1]
    question = filled(by_value.reverse_training[0], value=thing.value(by_value))
    return (*direct, Shot(thing.title, question, thing.name))


def _qa(thing: Thing, rng: random.Random) -> Iterator[str]:
    for attribute in thing.kind.attributes:
        for wording in attribute.training:
            yield f"Q: {filled(wording, thing.called)} A: {thing.value(attribute)}"


def _statements(thing: Thing, rng: random.Random) -> Iterator[str]:
    for attribute in thing.kind.attributes:
        yield filled(rng.choice(attribute.sentences), thing.called, thing.value(attribute))


def _cloze(thing: Thing, rng: random.Random) -> Iterator[str]:
    for attribute in thing.kind.attributes:
        sentence = filled(rng.choice(attribute.sentences), thing.called, BLANK)
        yield f"{sentence} Answer: {thing.value(attribute)}"


def _reverse(thing: Thing, rng: random.Random) -> Iterator[str]:
    for attribute in thing.kind.words:
        for wording in attribute.reverse_training:
            yield f"Q: {filled(wording, value=thing.value(attribute))} A: {thing.name}"


def _paraphrase(thing: Thing, rng: random.Random) -> Iterator[str]:
    for _ in range(_RETELLINGS):
        yield told(thing, str(rng.random()))


_LINES: dict[TemplateForm, Callable[[Thing, random.Random], Iterator[str]]] = {
    "qa": _qa,
    "statements": _statements,
    "cloze": _cloze,
    "reverse": _reverse,
    "paraphrase": _paraphrase,
}
