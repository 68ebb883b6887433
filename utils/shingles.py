"""How alike two texts are: the Jaccard index of their shingles.

Exact and the same in every process: no MinHash, and no order that Python's randomised string
hashes could change.
"""

import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import regex

SHINGLE_WORDS = 5
SHINGLE_CHARACTERS = 5
# below this length one changed word costs word shingles more than a quarter of their similarity
SHORT_WORDS = 40
_APOSTROPHES = "'\N{LEFT SINGLE QUOTATION MARK}\N{RIGHT SINGLE QUOTATION MARK}"

# Scripts that are written without blanks have one word per character (with its marks): telling
# words apart there takes a dictionary. Katakana is left in runs, as in Unicode's word rules.
_PIECE = regex.compile(
    r"(?=[\p{Han}\p{Hiragana}\p{Line_Break=SA}])\X"
    r"|(?:(?![\s\p{Han}\p{Hiragana}\p{Line_Break=SA}])\X)+"
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


class Match(NamedTuple):
    """`index` is None if no text shares a shingle; `jaccard` is then 0."""

    index: int | None
    jaccard: float


def best_match(similarities: np.ndarray) -> Match:
    """The first of the largest, if that is above 0."""
    if not similarities.any():
        return Match(None, 0.0)
    best = int(similarities.argmax())
    return Match(best, float(similarities[best]))


# ---- texts are normalised from here on ----


def is_short(text: str) -> bool:
    """Whether its shingles are of characters, see `jaccard`."""
    return len(words(text)) < SHORT_WORDS


def grams(words: list[str], n: int) -> Iterator[tuple[str, ...]]:
    """Every run of n words."""
    return zip(*(words[start:] for start in range(n)), strict=False)


def _words(text: str) -> list[str]:
    """The shingles of a text that is not short, each once, in order."""
    return list(dict.fromkeys(map(" ".join, grams(words(text), SHINGLE_WORDS))))


def _characters(text: str) -> list[str]:
    """Each once, in order; a text shorter than one shingle, the empty one too, is its own."""
    last = max(0, len(text) - SHINGLE_CHARACTERS)
    return list(dict.fromkeys(text[i : i + SHINGLE_CHARACTERS] for i in range(last + 1)))


def jaccard(first: str, second: str) -> float:
    """Shared shingles over all shingles of two texts, 0..1.

    Shingles are runs of 5 words, or of 5 characters if either text has fewer than 40 words. Empty
    texts equal each other.
    """
    shingles = _characters if is_short(first) or is_short(second) else _words
    a, b = set(shingles(first)), set(shingles(second))
    return len(a & b) / len(a | b)


class Index:
    """`jaccard` of any text with those of `texts` added so far.

    Short texts are kept by their characters, others by their words, and by their characters too if
    short ones will be compared with them.
    """

    def __init__(self, texts: Sequence[str], *, any_short_query: bool) -> None:
        short = [text if is_short(text) else None for text in texts]
        long = [None if is_short(text) else text for text in texts]
        self.short_characters = _Shared(short, _characters)
        self.words = _Shared(long, _words)
        self.long_characters = _Shared(long if any_short_query else [None] * len(long), _characters)

    def add(self, place: int) -> None:
        for shared in (self.short_characters, self.words, self.long_characters):
            shared.add(place)

    def similarities(self, text: str) -> np.ndarray:
        """[texts], 0 for those not added."""
        long = self.long_characters if is_short(text) else self.words
        # each text is in one of the two
        return self.short_characters.similarities(text) + long.similarities(text)


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
