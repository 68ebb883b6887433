"""How far raters agree: kappa, alpha, rank correlation, and what constant guessing would reach.

What the data cannot give is None, never NaN.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, NamedTuple

from evaluation.stats import require_numbers, require_same_length

_DISTANCES: dict[str, Callable[[Any, Any], float]] = {
    "nominal": lambda a, b: float(a != b),
    "linear": lambda a, b: abs(a - b),
    "quadratic": lambda a, b: (a - b) ** 2,
}


def cohen_kappa(
    first_P: Sequence[Hashable],
    second_P: Sequence[Hashable],
    *,
    weights: Literal["nominal", "linear", "quadratic"] = "nominal",
) -> float | None:
    """Agreement of two raters beyond chance; 1 is perfect, 0 is chance (Cohen 1960, 1968).

    Linear and quadratic weights are of the numbers themselves, so a score that nobody gave still
    takes its place on the scale. None where chance cannot disagree: no pair, or one label only.
    """
    require_same_length(first_P=first_P, second_P=second_P)
    if weights not in _DISTANCES:
        raise ValueError(f"weights={weights!r}: allowed are {', '.join(_DISTANCES)}")
    require = _require_scored if weights == "nominal" else require_numbers
    require("first_P", first_P)
    require("second_P", second_P)
    if not first_P:
        return None
    distance = _DISTANCES[weights]
    observed = math.fsum(distance(a, b) for a, b in zip(first_P, second_P, strict=True))
    first_counts, second_counts = Counter(first_P), Counter(second_P)
    by_chance = math.fsum(
        n_a * n_b * distance(a, b)
        for a, n_a in first_counts.items()
        for b, n_b in second_counts.items()
    )
    return 1 - observed * len(first_P) / by_chance if by_chance else None


def krippendorff_alpha(
    ratings_R_P: Sequence[Sequence[Any]],
    *,
    level: Literal["nominal", "ordinal", "interval"] = "nominal",
) -> float | None:
    """Agreement of any number of raters, one sequence each; None marks a missing rating.

    Prompts with fewer than two ratings say nothing and are ignored. None where chance cannot
    disagree. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011).
    """
    require_same_length(**{f"ratings_R_P[{r}]": row for r, row in enumerate(ratings_R_P)})
    if level not in ("nominal", "ordinal", "interval"):
        raise ValueError(f"level={level!r}: allowed are nominal, ordinal, interval")
    columns = [
        [value for value in column if value is not None]
        for column in zip(*ratings_R_P, strict=True)
    ]
    columns = [column for column in columns if len(column) > 1]
    require = _require_scored if level == "nominal" else require_numbers
    for column in columns:
        require("ratings_R_P", column)
    counts = Counter(value for column in columns for value in column)
    distance = _DISTANCES["nominal" if level == "nominal" else "quadratic"]
    if level == "ordinal":
        # a value's place is the middle of its ranks: differences of places are the paper's sums
        from scipy import stats

        values = [value for column in columns for value in column]
        place = dict(zip(values, stats.rankdata(values).tolist(), strict=True))
        columns = [[place[value] for value in column] for column in columns]
        counts = Counter(value for column in columns for value in column)
    observed = math.fsum(
        distance(a, b) / (len(column) - 1) for column in columns for a in column for b in column
    )
    by_chance = math.fsum(
        n_a * n_b * distance(a, b) for a, n_a in counts.items() for b, n_b in counts.items()
    )
    return 1 - observed * (counts.total() - 1) / by_chance if by_chance else None


def spearman(first_P: Sequence[float], second_P: Sequence[float]) -> float | None:
    """Rank correlation, ties at their average rank; None with fewer than two pairs or where one
    side is constant."""
    require_same_length(first_P=first_P, second_P=second_P)
    require_numbers("first_P", first_P)
    require_numbers("second_P", second_P)
    if min(len(set(first_P)), len(set(second_P))) < 2:
        return None
    from scipy import stats

    return float(stats.spearmanr(first_P, second_P).statistic)


class BaseRate(NamedTuple):
    label: Hashable
    share: float


def base_rate(labels_P: Sequence[Hashable]) -> BaseRate | None:
    """The commonest label and its share: the agreement that a judge reaches by always giving it.
    Among equals the first given; None without labels."""
    _require_scored("labels_P", labels_P)
    if not labels_P:
        return None
    label, count = Counter(labels_P).most_common(1)[0]
    return BaseRate(label, count / len(labels_P))


def _require_scored(name: str, values: Sequence[Any]) -> None:
    # NaN is the one value that differs from itself
    if any(value is None or value != value for value in values):
        raise ValueError(f"{name} has None or NaN; leave unscored pairs out with scored_pairs()")
