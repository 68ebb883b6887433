"""Diversity and overlap of generated texts."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from utils.shingles import (
    Index,
    Match,
    best_match,
    grams,
    is_short,
    jaccard,
    normalise,
    words,
)


def overlap(texts: Sequence[str], other: Sequence[str]) -> list[Match]:
    """For each text the index of the most similar one in `other`, the first among equals, and
    their `jaccard`: a leak from one file into another shows as a value near 1."""
    ours, theirs = list(map(normalise, texts)), list(map(normalise, other))
    index = Index(theirs, any_short_query=any(map(is_short, ours)))
    for place in range(len(theirs)):
        index.add(place)
    return [best_match(index.similarities(text)) for text in ours]


@dataclass(frozen=True)
class Diversity:
    """distinct_n: distinct over all n-grams of words in all texts together (Li et al., arXiv
    1510.03055), None if there is no n-gram; it falls with the amount of text: compare like amounts.
    mean_jaccard: over n_pairs pairs, None if fewer than two texts; mean_words: per text."""

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
    similarities = [jaccard(normalised[first], normalised[second]) for first, second in pairs]
    return Diversity(
        n_texts=n,
        distinct_1=_distinct(words_N, 1),
        distinct_2=_distinct(words_N, 2),
        distinct_3=_distinct(words_N, 3),
        mean_jaccard=math.fsum(similarities) / len(pairs) if pairs else None,
        n_pairs=len(pairs),
        mean_words=sum(map(len, words_N)) / n if n else None,
    )


def _distinct(words_N: list[list[str]], n: int) -> float | None:
    total, distinct = 0, set()
    for text in words_N:
        found = list(grams(text, n))
        total += len(found)
        distinct.update(found)
    return len(distinct) / total if total else None
