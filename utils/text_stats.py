"""Duplicates, diversity and overlap of generated texts.

Similarity is the Jaccard index of two texts' shingles, exact and the same in every process: no
MinHash, and no order that Python's randomised string hashes could change.
"""

import math
import random
import unicodedata
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import NamedTuple

import numpy as np
import regex

SHINGLE_WORDS = 5
SHINGLE_CHARACTERS = 5
# below this length one changed word costs word shingles more than a quarter of their similarity
SHORT_WORDS = 40
NEAR_DUPLICATE = 0.7
_APOSTROPHES = "'\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}"


# Scripts that are written without blanks have one word per character (with its marks): telling
# words apart there takes a dictionary. Katakana is left in runs, as in Unicode's word rules.
_PIECE = regex.compile(
    r"(?=[\p{Han}\p{Hiragana}\p{Line_Break=SA}])\X"
    r"|(?:(?![\s\p{Han}\p{Hiragana}\p{Line_Break=SA}])\X)+"
)
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


class _Strip(dict[int, str | int]):
    """For str.translate, filled as characters turn up: apostrophes and invisible characters go,
    other punctuation becomes a space; symbols stay, as 2 + 2 is not 2 < 2."""

    def __missing__(self, code: int) -> str | int:
        character = chr(code)
        category = unicodedata.category(character)
        if category == "Cf" or character in _APOSTROPHES:
            self[code] = ""
        else:
            self[code] = " " if category.startswith("P") else code
        return self[code]


_STRIP = _Strip()


def normalise(text: str) -> str:
    """`text` as it is compared: NFKC, case folded, no punctuation, single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    # what is left can be composed again
    stripped = unicodedata.normalize("NFKC", folded.translate(_STRIP))
    return " ".join(stripped.split())


def words(normalised: str) -> list[str]:
    """The words of a text as `normalise` gives it. Where a script has no blanks (Chinese, Japanese,
    Thai, Lao, Khmer, Burmese) each character is one."""
    return normalised.split() if normalised.isascii() else _PIECE.findall(normalised)


def _facts(text: str) -> tuple[tuple[str, ...], int]:
    """The numbers of a text, in order of their size as text, and how often it negates."""
    numbers = [n.replace(",", "") for n in _NUMBER.findall(text)]
    return tuple(sorted(numbers + _NUMBER_WORD.findall(text))), len(_NEGATION.findall(text))


def _names(text: str) -> tuple[str, ...]:
    """Those of one letter and Roman numerals, in order."""
    return tuple(sorted(_LETTER.findall(text) + _ROMAN.findall(text)))


def jaccard(first: str, second: str) -> float:
    """Shared shingles over all shingles of two texts, 0..1.

    Shingles are runs of 5 words, or of 5 characters if either text has fewer than 40 words. Texts
    that normalise to nothing equal each other.
    """
    return _jaccard(normalise(first), normalise(second))


def exact_duplicates(texts: Sequence[str]) -> list[list[int]]:
    """Groups of indices whose texts are equal once normalised, and in their numbers and negations;
    texts without a double are in none."""
    return [group for group in _by_text(_compared(texts)).values() if len(group) > 1]


def near_duplicates(texts: Sequence[str], threshold: float = NEAR_DUPLICATE) -> list[list[int]]:
    """Groups of indices joined by pairs whose `jaccard` is at least `threshold` (0 < threshold
    <= 1), exact duplicates included. Two short texts (see `jaccard`) with other numbers or lone
    letters (option C), or negated another number of times, are none, however alike: they say
    something else.

    A chain of pairs is one group, so its ends may be less alike. Groups and indices ascend.
    """
    _require_threshold(threshold)
    compared = _compared(texts)
    indices_by_text = _by_text(compared)
    distinct = [compared[indices[0]] for indices in indices_by_text.values()]
    index = _Duplicates(distinct)
    group_of = np.arange(len(distinct))
    for place in range(len(distinct)):
        linked = np.unique(group_of[index.similarities(place) >= threshold])
        if len(linked):
            group_of[np.isin(group_of, linked)] = linked[0]
            group_of[place] = linked[0]
        index.add(place)
    groups: dict[int, list[int]] = {}
    for label, indices in zip(group_of.tolist(), indices_by_text.values(), strict=True):
        groups.setdefault(label, []).extend(indices)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


class Match(NamedTuple):
    """`index` is None if no text shares a shingle; `jaccard` is then 0."""

    index: int | None
    jaccard: float


class Unrepeated(NamedTuple):
    """kept: indices, ascending. repeats: for each dropped index, the kept one that it repeats."""

    kept: list[int]
    repeats: dict[int, Match]


def remove_duplicates(texts: Sequence[str], threshold: float = NEAR_DUPLICATE) -> Unrepeated:
    """Keeps a text unless its `jaccard` with one kept before it is at least `threshold`, and no
    number, letter or negation tells the two apart (see `near_duplicates`).

    So no two kept texts are that alike, and each dropped one is that like the text it is said to
    repeat: of the kept ones before it the most alike, the first among equals.
    """
    _require_threshold(threshold)
    index = _Duplicates(_compared(texts))
    result = Unrepeated([], {})
    for place in range(len(texts)):
        match = _best(index.similarities(place))
        if match.jaccard >= threshold:
            result.repeats[place] = match
        else:
            result.kept.append(place)
            index.add(place)
    return result


def overlap(texts: Sequence[str], other: Sequence[str]) -> list[Match]:
    """For each text the index of the most similar one in `other`, the first among equals, and
    their `jaccard`: a leak from one file into another shows as a value near 1."""
    ours, theirs = list(map(normalise, texts)), list(map(normalise, other))
    index = _Index(theirs, any_short_query=any(map(_is_short, ours)))
    for place in range(len(theirs)):
        index.add(place)
    return [_best(index.similarities(text)) for text in ours]


def distinct_n(texts: Iterable[str], n: int) -> float | None:
    """Distinct over all n-grams of words in all texts together (Li et al., arXiv 1510.03055);
    None if there is no n-gram. It falls with the amount of text: compare like amounts."""
    if n < 1:
        raise ValueError(f"n={n}: an n-gram has at least one word")
    return _distinct([words(normalise(text)) for text in texts], n)


@dataclass(frozen=True)
class Diversity:
    """mean_jaccard: over n_pairs pairs, None if fewer than two texts; mean_words: per text."""

    n_texts: int
    distinct_1: float | None
    distinct_2: float | None
    distinct_3: float | None
    mean_jaccard: float | None
    n_pairs: int
    mean_words: float | None


def diversity(texts: Sequence[str], *, seed: int = 0, max_pairs: int = 2000) -> Diversity:
    """How varied the texts are. More than `max_pairs` pairs are sampled, the same for a seed."""
    if max_pairs < 1:
        raise ValueError(f"max_pairs={max_pairs}: at least one pair is needed")
    n = len(texts)
    if math.comb(n, 2) <= max_pairs:
        pairs = list(combinations(range(n), 2))
    else:
        rng = random.Random(seed)
        drawn: dict[tuple[int, int], None] = {}
        while len(drawn) < max_pairs:
            first, second = rng.randrange(n), rng.randrange(n)
            if first != second:
                drawn[min(first, second), max(first, second)] = None
        pairs = list(drawn)
    normalised = list(map(normalise, texts))
    words_N = list(map(words, normalised))
    similarities = [_jaccard(normalised[first], normalised[second]) for first, second in pairs]
    return Diversity(
        n_texts=n,
        distinct_1=_distinct(words_N, 1),
        distinct_2=_distinct(words_N, 2),
        distinct_3=_distinct(words_N, 3),
        mean_jaccard=math.fsum(similarities) / len(pairs) if pairs else None,
        n_pairs=len(pairs),
        mean_words=sum(map(len, words_N)) / n if n else None,
    )


# ---- shingles and their index; texts are normalised from here on ----


def _is_short(text: str) -> bool:
    return len(words(text)) < SHORT_WORDS


def _grams(words: list[str], n: int) -> Iterator[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(n)), strict=False)


def _distinct(words_N: list[list[str]], n: int) -> float | None:
    total, distinct = 0, set()
    for words in words_N:
        grams = list(_grams(words, n))
        total += len(grams)
        distinct.update(grams)
    return len(distinct) / total if total else None


def _words(text: str) -> list[str]:
    """The shingles of a text that is not short, each once, in order."""
    return list(dict.fromkeys(map(" ".join, _grams(words(text), SHINGLE_WORDS))))


def _characters(text: str) -> list[str]:
    """Each once, in order; a text shorter than one shingle, the empty one too, is its own."""
    last = max(0, len(text) - SHINGLE_CHARACTERS)
    return list(dict.fromkeys(text[i : i + SHINGLE_CHARACTERS] for i in range(last + 1)))


def _jaccard(first: str, second: str) -> float:
    shingles = _characters if _is_short(first) or _is_short(second) else _words
    a, b = set(shingles(first)), set(shingles(second))
    return len(a & b) / len(a | b)


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


def _by_text(texts: Iterable[_Text]) -> dict[Hashable, list[int]]:
    indices: dict[Hashable, list[int]] = {}
    for index, text in enumerate(texts):
        indices.setdefault((text.normalised, text.facts), []).append(index)
    return indices


def _labels(values: Iterable[Hashable]) -> np.ndarray:
    """Equal numbers for equal values."""
    ids: dict[Hashable, int] = {}
    return np.array([ids.setdefault(value, len(ids)) for value in values], dtype=int)


def _best(similarities: np.ndarray) -> Match:
    """The first of the largest, if that is above 0."""
    if not similarities.any():
        return Match(None, 0.0)
    best = int(similarities.argmax())
    return Match(best, float(similarities[best]))


def _require_threshold(threshold: float) -> None:
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold={threshold}: a similarity above 0 and up to 1 is needed")


class _Index:
    """`jaccard` of any text with those of `texts` added so far.

    Short texts are kept by their characters, others by their words, and by their characters too if
    short ones will be compared with them.
    """

    def __init__(self, texts: Sequence[str], *, any_short_query: bool) -> None:
        short = [text if _is_short(text) else None for text in texts]
        long = [None if _is_short(text) else text for text in texts]
        self.short_characters = _Shared(short, _characters)
        self.words = _Shared(long, _words)
        self.long_characters = _Shared(long if any_short_query else [None] * len(long), _characters)

    def add(self, place: int) -> None:
        for shared in (self.short_characters, self.words, self.long_characters):
            shared.add(place)

    def similarities(self, text: str) -> np.ndarray:
        """[texts], 0 for those not added."""
        long = self.long_characters if _is_short(text) else self.words
        # each text is in one of the two
        return self.short_characters.similarities(text) + long.similarities(text)


class _Duplicates:
    """`jaccard` of one of `texts` with those added so far, 0 where their facts tell them apart."""

    def __init__(self, texts: Sequence[_Text]) -> None:
        self.texts = [text.normalised for text in texts]
        self.short = np.array([_is_short(text) for text in self.texts], dtype=bool)
        self.index = _Index(self.texts, any_short_query=bool(self.short.any()))
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


class _Shared:
    """Counts shared shingles: for each shingle the places of the texts that have it, all in one
    array with room for every text."""

    def __init__(self, texts: Sequence[str | None], shingles: Callable[[str], list[str]]) -> None:
        self.shingles = shingles
        self.ids: dict[str, int] = {}
        self.ids_N = [
            np.array(
                [self.ids.setdefault(shingle, len(self.ids)) for shingle in shingles(text)]
                if text is not None
                else [],
                dtype=np.int64,
            )
            for text in texts
        ]
        used = np.concatenate([np.zeros(0, dtype=np.int64), *self.ids_N])
        ends = np.bincount(used, minlength=len(self.ids)).cumsum()
        self.starts = np.concatenate([np.zeros(1, dtype=np.int64), ends])
        self.ends = self.starts.copy()
        self.places = np.zeros(len(used), dtype=np.int64)
        self.sizes = np.array([len(ids) for ids in self.ids_N], dtype=np.int64)

    def add(self, place: int) -> None:
        ids = self.ids_N[place]
        self.places[self.ends[ids]] = place
        self.ends[ids] += 1

    def similarities(self, text: str) -> np.ndarray:
        own = self.shingles(text)
        ids = [self.ids[shingle] for shingle in own if shingle in self.ids]
        slices = zip(self.starts[ids].tolist(), self.ends[ids].tolist(), strict=True)
        places = [self.places[start:end] for start, end in slices]
        if not places:
            return np.zeros(len(self.sizes))
        shared = np.bincount(np.concatenate(places), minlength=len(self.sizes))
        return shared / (len(own) + self.sizes - shared)
