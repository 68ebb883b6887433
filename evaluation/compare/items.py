"""One side of a comparison: the items that a model answered, with its scores."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Item:
    """A question and its scores by metric; None is unscored, a metric that was not asked of the
    item is no key.

    fields: what the file says of it, such as its category. fingerprint: the same for the same
    question; None where the file cannot say.
    """

    id: str
    scores: Mapping[str, float | None]
    fields: Mapping[str, Any]
    question: str
    answer: str
    fingerprint: str | None


@dataclass(frozen=True)
class Side:
    """cluster: the field that groups items if the user names none. unusable: why a metric has no
    number for each item. dialect: where it is the same on both sides, fingerprints can be compared.
    """

    path: Path
    form: str
    model: str
    items: dict[str, Item]
    cluster: str | None = None
    unusable: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    dialect: str = ""

    @property
    def metrics(self) -> list[str]:
        """Those that are numbers, in order of first appearance."""
        names = dict.fromkeys(name for item in self.items.values() for name in item.scores)
        return [name for name in names if name not in self.unusable]


class Sample(NamedTuple):
    """One answer to an item; `number` tells the answers to an item apart."""

    number: Any
    item: Item


def join_samples(samples: Iterable[Sample], where: str) -> tuple[dict[str, Item], tuple[str, ...]]:
    """Items by id, several answers to one averaged (over those that are scored), with a note that
    says so. A ValueError names what stands twice."""
    answers: dict[str, list[Sample]] = {}
    seen: set[tuple[str, Any]] = set()
    for sample in samples:
        key = (sample.item.id, sample.number)
        if key in seen:
            which = "" if sample.number is None else f" (answer {sample.number} to it)"
            raise ValueError(f"{where}: item {sample.item.id!r}{which} stands there twice")
        seen.add(key)
        answers.setdefault(sample.item.id, []).append(sample)
    if not answers:
        raise ValueError(f"{where}: there is no item in it")
    items = {id: _average([sample.item for sample in own]) for id, own in answers.items()}
    counts = sorted({len(own) for own in answers.values()})
    notes = ()
    if counts[-1] > 1:
        number = str(counts[-1]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        notes = (f"{number} answers per item: their mean is the item's score",)
    return items, notes


def _average(items: list[Item]) -> Item:
    first = items[0]
    if len(items) == 1:
        return first
    scores: dict[str, float | None] = {}
    for name in dict.fromkeys(name for item in items for name in item.scores):
        given = [value for item in items if (value := item.scores.get(name)) is not None]
        scores[name] = fmean(given) if given else None
    answer = "\n\n".join(item.answer for item in items)
    return Item(first.id, scores, first.fields, first.question, answer, first.fingerprint)


# the squares of thousands of differences are still finite
LARGEST_SCORE = 1e100

# what inspect_ai's own value_to_float makes of texts
_WORDS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}


def as_score(value: Any) -> float | None:
    """None for NaN, which is unscored. A ValueError shows what is no number, nor a grade, or is too
    large for the statistics."""
    score = value
    if isinstance(value, str):
        word = value if value in _WORDS else value.lower()
        try:
            # float() takes "nan" and "inf" for numbers too
            score = _WORDS[word] if word in _WORDS else float(value)
        except ValueError as error:
            raise ValueError(f"{_short(value)}, no number") from error
    if not isinstance(score, int | float):
        raise ValueError(f"{_short(value)}, no number")
    # an integer may be too large for a float, but can be compared with one
    if abs(score) > LARGEST_SCORE:
        raise ValueError(f"{_short(value)}, no number within -{LARGEST_SCORE:g}..{LARGEST_SCORE:g}")
    return None if math.isnan(score) else float(score)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
