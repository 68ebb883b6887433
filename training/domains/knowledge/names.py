"""Names of things that do not exist.

A name has seven letters, consonants and vowels in turn. Read as numbers modulo 17, the letters of
all names of one world have the same sum and the same weighted sum, so that two names differ in at
least three letters (a Reed-Solomon code); and as vowels and consonants alternate, nothing is gained
by inserting and deleting letters: the edit distance is three or more. Another world has other sums,
so no name is in two worlds.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Iterator

CONSONANTS = "bdfghjklmnprstvwz"
VOWELS = "aeiou"
# so end few words of this shape
ENDINGS = "bfgkp"
_WORDS = frozenset({"develop", "dominik", "katalog", "politik"})

_P = len(CONSONANTS)
_WORLDS = _P * _P
_SYLLABLES = len(CONSONANTS) * len(VOWELS)


@functools.lru_cache(maxsize=8)
def world_names(seed: int) -> tuple[str, ...]:
    """All names of the world `seed`, some 10,000, in an order of its own; capitalised.

    Beyond 289 worlds the names get a syllable in front, which tells the worlds apart. Raises
    ValueError for a seed below 0.
    """
    if seed < 0:
        raise ValueError(f"seed={seed}: a world's seed has to be 0 or more")
    rest, world = divmod(seed, _WORLDS)
    first = "".join(_syllables(rest))
    names = [first + name for name in _code(*divmod(world, _P)) if name not in _WORDS]
    random.Random(seed).shuffle(names)
    return tuple(name.capitalize() for name in names)


def _code(total: int, weighted: int) -> Iterator[str]:
    """Names with sum(x_i) = total and sum(i * x_i) = weighted modulo 17, i from 0 to 6."""
    consonants, vowels = range(_P), range(len(VOWELS))
    for a, v, b, w, u in itertools.product(consonants, vowels, consonants, vowels, vowels):
        # c + d = left and 4 c + 6 d = left_weighted, where 9 is the inverse of 2
        left = total - a - v - b - w - u
        left_weighted = weighted - v - 2 * b - 3 * w - 5 * u
        d = (left_weighted - 4 * left) * 9 % _P
        c = (left - d) % _P
        # three syllables alike are no name
        if CONSONANTS[d] in ENDINGS and len({(a, v), (b, w), (c, u)}) > 1:
            letters = CONSONANTS[a], VOWELS[v], CONSONANTS[b], VOWELS[w], CONSONANTS[c], VOWELS[u]
            yield "".join(letters) + CONSONANTS[d]


def _syllables(number: int) -> Iterator[str]:
    """`number` in syllables as digits, the lowest first; none for 0."""
    while number > 0:
        number, digit = divmod(number, _SYLLABLES)
        yield CONSONANTS[digit // len(VOWELS)] + VOWELS[digit % len(VOWELS)]
