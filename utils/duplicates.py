"""Texts that say the same: equal ones, and those nearly so."""

import unicodedata
from collections.abc import Hashable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import regex

from utils.shingles import Index, Match, best_match, is_short, normalise

NEAR_DUPLICATE = 0.7

# What two short texts may not differ in and say the same: numbers with their signs, letters that
# stand for something (option C, vitamin D, x), and negations, in some languages; texts in others
# are compared by their shingles alone.
_NUMBER = regex.compile(r"(?<![\w)])[-\N{MINUS SIGN}]?\d+(?:[.,]\d+)*|\d+(?:[.,]\d+)*")
_NUMBER_WORD = regex.compile(
    r"\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen"
    r"|(?:twen|thir|for|fif|six|seven|eigh|nine)ty|hundred|thousand|million|billion)\b"
)
_ALPHABETS = r"[\p{Latin}\p{Greek}\p{Cyrillic}]"
# Lone letters are names. Some are words too (a dog; Spanish y, Polish w, Russian и): names only
# where no word follows on the line, or one that they cannot stand before as words. What is part of
# a word (e-mail, l'eau) or of an abbreviation (p.m.) is none.
_LETTER = regex.compile(
    rf"(?<!{_ALPHABETS}|[\p{{M}}_'\N{{RIGHT SINGLE QUOTATION MARK}}]|{_ALPHABETS}\.)"
    rf"(?:(?![aeikosuvwyzàáèéíóôú\u0430\u0432\u0438\u043a\u043e\u0441\u0443\u044f\u0456]){_ALPHABETS}|{_ALPHABETS}"
    r"(?:(?![^\S\n]+\w)|(?<=\b(?:option|choice)\s+\w)|(?=\s+(?:is|are|was|were|and|or)\b)))"
    rf"(?!{_ALPHABETS}|[\p{{M}}_'\N{{RIGHT SINGLE QUOTATION MARK}}]|[.-]\w)"
)
_ROMAN = regex.compile(r"\b(?:i{2,3}|iv|vi{1,3}|ix|xi{1,3})\b")
_NEGATION = regex.compile(
    r"\b(?:no|not|never|none|nor|neither|nobody|nothing|nowhere|without|cannot"
    r"|\w+n['\N{RIGHT SINGLE QUOTATION MARK}]t"
    r"|(?:do|does|did|is|are|was|were|wo|ca|could|should|would|have|has|had)nt"
    r"|nicht|nichts|nie|kein\w{0,2}|pas|jamais|sans|nunca|jamás|sin)\b|[不没沒無无非未]"
)


class Unrepeated(NamedTuple):
    """kept: indices, ascending. repeats: for each dropped index, the kept one that it repeats."""

    kept: list[int]
    repeats: dict[int, Match]


def remove_duplicates(texts: Sequence[str], threshold: float = NEAR_DUPLICATE) -> Unrepeated:
    """Keeps a text unless its `jaccard` with one kept before it is at least `threshold`
    (0 < threshold <= 1). Of two short texts (see `jaccard`) with other numbers or lone letters
    (option C), or negated another number of times, neither repeats the other, however alike: they
    say something else.

    So no two kept texts are that alike, and each dropped one is that like the text it is said to
    repeat: of the kept ones before it the most alike, the first among equals.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold}: a similarity above 0 and up to 1 is needed")
    index = _Duplicates(_compared(texts))
    result = Unrepeated([], {})
    for place in range(len(texts)):
        match = best_match(index.similarities(place))
        if match.jaccard >= threshold:
            result.repeats[place] = match
        else:
            result.kept.append(place)
            index.add(place)
    return result


# ---- what tells two texts apart ----


def _facts(text: str) -> tuple[tuple[str, ...], int]:
    """The numbers of a text, in order of their size as text, and how often it negates."""
    numbers = [n.replace(",", "") for n in _NUMBER.findall(text)]
    return tuple(sorted(numbers + _NUMBER_WORD.findall(text))), len(_NEGATION.findall(text))


def _names(text: str) -> tuple[str, ...]:
    """Those of one letter and Roman numerals, in order."""
    return tuple(sorted(_LETTER.findall(text) + _ROMAN.findall(text)))


class _Text(NamedTuple):
    """As duplicates are looked for. `names` depend on punctuation (A. Bird / a bird), and say
    nothing of texts that are equal without it."""

    normalised: str
    facts: tuple[tuple[str, ...], int]
    names: tuple[str, ...]


def _compared(texts: Iterable[str]) -> list[_Text]:
    return [
        _Text(normalise(text), _facts(folded), _names(folded))
        for text in texts
        for folded in [
            unicodedata.normalize("NFKC", text).casefold().replace("\N{MINUS SIGN}", "-")
        ]
    ]


def _labels(values: Iterable[Hashable]) -> np.ndarray:
    """Equal numbers for equal values."""
    ids: dict[Hashable, int] = {}
    return np.array([ids.setdefault(value, len(ids)) for value in values], dtype=int)


class _Duplicates:
    """`jaccard` of one of `texts` with those added so far, 0 where their facts tell them apart."""

    def __init__(self, texts: Sequence[_Text]) -> None:
        self.texts = [text.normalised for text in texts]
        self.short = np.array([is_short(text) for text in self.texts], dtype=bool)
        self.index = Index(self.texts, any_short_query=bool(self.short.any()))
        self.facts = _labels(text.facts for text in texts)
        self.names = _labels(text.names for text in texts)
        self.equal = _labels(self.texts)

    def add(self, place: int) -> None:
        self.index.add(place)

    def similarities(self, place: int) -> np.ndarray:
        """[texts]; in a long text a changed number is a small part of what is said."""
        both_short = self.short & self.short[place]
        named = (self.names == self.names[place]) | (self.equal == self.equal[place])
        same = ~both_short | ((self.facts == self.facts[place]) & named)
        return self.index.similarities(self.texts[place]) * same
