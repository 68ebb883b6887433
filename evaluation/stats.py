"""Did tuning change the model, and do the judges agree?

Prompts of one subtype move together, so the unit of the headline test is the subtype (a cluster):
taking prompts or samples as independent makes intervals too narrow (arXiv 2411.00640). A result
that the data cannot give is None, with the reason beside it; it is never NaN.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import fmean
from typing import Any, Literal, NamedTuple

import numpy as np

SIGNIFICANCE = 0.05
POWER = 0.8
MAX_ENUMERATED_UNITS = 16
N_SAMPLED_ASSIGNMENTS = 2**16
# units that differ by less than this share of the scores differ by rounding alone
ROUNDING = 1e-12

Score = float | None


@dataclass(frozen=True)
class PairedDifference:
    """Tuned minus base. Means, difference and interval weigh every unit alike.

    interval: 95 %, of the difference. minimum_detectable: the true difference that this design
    finds at p < 0.05 with 80 % power. n_prompts and n_clusters count what was scored on both sides,
    n_unscored the prompts left out. unit_differences: one per unit, clusters in order of first
    appearance. notes: why prompts are the units, why a number is None or comes from another test.
    """

    base_mean: float | None
    tuned_mean: float | None
    difference: float | None
    interval: tuple[float, float] | None
    p: float | None
    minimum_detectable: float | None
    unit: Literal["cluster", "prompt"]
    n_prompts: int
    n_clusters: int
    n_unscored: int
    unit_differences: tuple[float, ...]
    notes: tuple[str, ...]


def paired_difference(
    base_P: Sequence[Score], tuned_P: Sequence[Score], clusters_P: Sequence[Hashable]
) -> PairedDifference:
    """Student's t on the mean differences of clusters, df = clusters - 1; of prompts if there is
    only one cluster.

    A prompt is dropped if it is None (unscored) on either side. The minimum detectable effect is
    exact, from the noncentral t distribution (Owen 1965, JASA 60:320). Where all units differ by
    the same amount, t does not exist: p is then the exact sign-flip test's. Raises ValueError for
    lengths that differ and for scores that are not finite numbers.
    """
    _require_same_length(base_P=base_P, tuned_P=tuned_P, clusters_P=clusters_P)
    pairs_by_cluster: dict[Hashable, list[tuple[float, float]]] = {}
    n_unscored = 0
    for base, tuned, cluster in zip(base_P, tuned_P, clusters_P, strict=True):
        if base is None or tuned is None:
            n_unscored += 1
            continue
        _require_numbers("scores", (base, tuned))
        pairs_by_cluster.setdefault(cluster, []).append((float(base), float(tuned)))
    n_clusters = len(pairs_by_cluster)
    unit: Literal["cluster", "prompt"] = "prompt" if n_clusters == 1 else "cluster"
    notes = []
    units = list(pairs_by_cluster.values())
    if unit == "prompt":
        units = [[pair] for pair in units[0]]
        notes.append("one cluster only: its prompts are the units, taken as independent")

    base_U = [fmean([base for base, _ in pairs]) for pairs in units]
    tuned_U = [fmean([tuned for _, tuned in pairs]) for pairs in units]
    differences_U = [tuned - base for base, tuned in zip(base_U, tuned_U, strict=True)]
    difference = fmean(differences_U) if units else None
    interval = p = minimum_detectable = None
    if difference is None or len(units) < 2:
        notes.append(f"an interval and a p value need 2 units, {len(units)} scored")
    else:
        from scipy import special

        df = len(units) - 1
        variance = math.fsum((value - difference) ** 2 for value in differences_U) / df
        error = math.sqrt(variance / len(units))
        if error <= ROUNDING * max(map(abs, base_U + tuned_U)):
            notes.append(
                f"all {len(units)} units differ by the same amount: no t interval; "
                "p is the sign-flip test's"
            )
            p = sign_flip_test(differences_U).p
        else:
            p = 2 * float(special.stdtr(df, -abs(difference) / error))
            margin = t_critical(df) * error
            interval = (difference - margin, difference + margin)
            minimum_detectable = detectable_noncentrality(df) * error
    return PairedDifference(
        base_mean=fmean(base_U) if units else None,
        tuned_mean=fmean(tuned_U) if units else None,
        difference=difference,
        interval=interval,
        p=p,
        minimum_detectable=minimum_detectable,
        unit=unit,
        n_prompts=sum(map(len, pairs_by_cluster.values())),
        n_clusters=n_clusters,
        n_unscored=n_unscored,
        unit_differences=tuple(differences_U),
        notes=tuple(notes),
    )


class SignFlip(NamedTuple):
    """`exact`: all 2^n sign assignments were counted, not a sample of them."""

    p: float | None
    exact: bool


def sign_flip_test(differences_U: Sequence[float], *, seed: int = 0) -> SignFlip:
    """Two-sided randomisation test of a zero mean: it assumes only that each unit's difference is
    as likely to be d as -d.

    All assignments are counted up to 16 differences that are not 0 (zeros change nothing);
    otherwise 65,536 are drawn and p is (extreme + 1) / (drawn + 1), which is valid and never 0
    (Phipson & Smyth, arXiv 1603.05766). p is None without any unit.
    """
    _require_numbers("differences_U", differences_U)
    if not differences_U:
        return SignFlip(None, exact=True)
    moved_U = np.array([value for value in differences_U if value != 0], dtype=np.float64)
    n = len(moved_U)
    # equal sums in another order of rounding must count as ties
    threshold = abs(moved_U.sum()) - 1e-9 * np.abs(moved_U).sum()
    if n <= MAX_ENUMERATED_UNITS:
        flips = (np.arange(2**n)[:, None] >> np.arange(n)) & 1
        extreme = int((np.abs((1 - 2 * flips) @ moved_U) >= threshold).sum())
        return SignFlip(extreme / 2**n, exact=True)
    rng = np.random.default_rng(seed)
    extreme = 0
    # in chunks, as thousands of prompts times 65,536 assignments would not fit in memory
    for _ in range(N_SAMPLED_ASSIGNMENTS // 1024):
        flips = rng.integers(0, 2, size=(1024, n), dtype=np.int8)
        extreme += int((np.abs((1 - 2 * flips) @ moved_U) >= threshold).sum())
    return SignFlip((extreme + 1) / (N_SAMPLED_ASSIGNMENTS + 1), exact=False)


class McNemar(NamedTuple):
    """n_gained: only the tuned model exhibits; n_lost: only the base model does."""

    p: float | None
    n_gained: int
    n_lost: int
    n_pairs: int
    n_unscored: int


def mcnemar_exact(base_P: Sequence[bool | None], tuned_P: Sequence[bool | None]) -> McNemar:
    """Exact two-sided McNemar test: the pairs that changed are as likely to be gained as lost.

    Pairs with a None are dropped and counted; p is None without a pair.
    """
    from scipy import stats

    pairs = scored_pairs(base_P, tuned_P)
    for value in (*pairs.first_P, *pairs.second_P):
        if value not in (0, 1):
            raise ValueError(f"McNemar's test got {value!r}; it takes True, False or None")
    n_gained = sum(b > a for a, b in zip(pairs.first_P, pairs.second_P, strict=True))
    n_lost = sum(a > b for a, b in zip(pairs.first_P, pairs.second_P, strict=True))
    p = 1.0 if pairs.first_P else None
    if n_gained or n_lost:
        p = float(stats.binomtest(n_gained, n_gained + n_lost).pvalue)
    return McNemar(p, n_gained, n_lost, len(pairs.first_P), pairs.n_unscored)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """P values adjusted for their number (Holm 1979), in the order given.

    None stays None and is no member of the family. Raises ValueError outside 0..1.
    """
    given = [(p, index) for index, p in enumerate(p_values) if p is not None]
    for p, index in given:
        if not 0 <= p <= 1:
            raise ValueError(f"p_values[{index}]={p!r}: a p value lies in 0..1")
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(sorted(given)):
        largest = max(largest, min(1.0, (len(given) - rank) * p))
        adjusted[index] = largest
    return adjusted


class ScoredPairs(NamedTuple):
    first_P: list[Any]
    second_P: list[Any]
    n_unscored: int


def scored_pairs(first_P: Sequence[Any], second_P: Sequence[Any]) -> ScoredPairs:
    """The pairs in which neither is None, and how many were left out; what the measures of
    agreement below take."""
    _require_same_length(first_P=first_P, second_P=second_P)
    kept = [
        (first, second)
        for first, second in zip(first_P, second_P, strict=True)
        if first is not None and second is not None
    ]
    return ScoredPairs([a for a, _ in kept], [b for _, b in kept], len(first_P) - len(kept))


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
    _require_same_length(first_P=first_P, second_P=second_P)
    if weights not in _DISTANCES:
        raise ValueError(f"weights={weights!r}: allowed are {', '.join(_DISTANCES)}")
    require = _require_scored if weights == "nominal" else _require_numbers
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
    _require_same_length(**{f"ratings_R_P[{r}]": row for r, row in enumerate(ratings_R_P)})
    if level not in ("nominal", "ordinal", "interval"):
        raise ValueError(f"level={level!r}: allowed are nominal, ordinal, interval")
    columns = [
        [value for value in column if value is not None]
        for column in zip(*ratings_R_P, strict=True)
    ]
    columns = [column for column in columns if len(column) > 1]
    require = _require_scored if level == "nominal" else _require_numbers
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
    _require_same_length(first_P=first_P, second_P=second_P)
    _require_numbers("first_P", first_P)
    _require_numbers("second_P", second_P)
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


# ---- Student's t ----


@lru_cache(maxsize=1024)
def t_critical(df: float) -> float:
    """The two-sided 5 % point of Student's t."""
    from scipy import stats

    return float(stats.t.isf(SIGNIFICANCE / 2, df))


def t_power(noncentrality: float, df: float) -> float:
    """Power of the two-sided 5 % t test, both tails, when difference / standard error is
    `noncentrality` (above 0): t squared is F's, whose tail scipy computes in one piece."""
    from scipy import stats

    return float(stats.ncf.sf(t_critical(df) ** 2, 1, df, noncentrality**2))


@lru_cache(maxsize=1024)
def detectable_noncentrality(df: float) -> float:
    """The difference, in standard errors, that `t_power` finds with 80 %."""
    from scipy import optimize

    # the power is below 0.2 at one standard error, and above 0.9 at twice the critical point
    found = optimize.root_scalar(
        lambda x: t_power(x, df) - POWER, bracket=(1, 2 * t_critical(df)), xtol=1e-13
    )
    return float(found.root)


# ---- small parts ----


def _require_same_length(**columns: Sequence[Any]) -> None:
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"one value for each prompt is needed in all of them; {shown}")


def _require_scored(name: str, values: Sequence[Any]) -> None:
    # NaN is the one value that differs from itself
    if any(value is None or value != value for value in values):
        raise ValueError(f"{name} has None or NaN; leave unscored pairs out with scored_pairs()")


def _require_numbers(name: str, values: Sequence[Any]) -> None:
    for value in values:
        if not isinstance(value, int | float | np.number | np.bool_) or not math.isfinite(value):
            raise ValueError(
                f"{name} has {value!r}; a finite number is needed, or None for unscored where "
                "that is allowed (scored_pairs() leaves such pairs out)"
            )
