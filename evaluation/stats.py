"""Did tuning change the model? Paired comparisons, and p values that count how many they are.

Prompts of one subtype move together, so the unit of the headline test is the subtype (a cluster):
taking prompts or samples as independent makes intervals too narrow (arXiv 2411.00640). A result
that the data cannot give is None, with the reason beside it; it is never NaN.
"""

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal, NamedTuple

import numpy as np

from utils.student_t import student_t

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
    require_same_length(base_P=base_P, tuned_P=tuned_P, clusters_P=clusters_P)
    pairs_by_cluster: dict[Hashable, list[tuple[float, float]]] = {}
    for base, tuned, cluster in zip(base_P, tuned_P, clusters_P, strict=True):
        if base is not None and tuned is not None:
            require_numbers("scores", (base, tuned))
            pairs_by_cluster.setdefault(cluster, []).append((float(base), float(tuned)))
    n_clusters = len(pairs_by_cluster)
    n_prompts = sum(map(len, pairs_by_cluster.values()))
    units = list(pairs_by_cluster.values())
    notes = []
    if n_clusters == 1:
        units = [[pair] for pair in units[0]]
        if n_prompts > 1:
            notes.append("one cluster only: its prompts are the units, taken as independent")

    base_U = [fmean(base for base, _ in pairs) for pairs in units]
    tuned_U = [fmean(tuned for _, tuned in pairs) for pairs in units]
    differences_U = [tuned - base for base, tuned in zip(base_U, tuned_U, strict=True)]
    t, p = student_t(differences_U) if len(units) > 1 else None, None
    if t is None:
        few = "one prompt is" if units else "no prompt is"
        notes.append(f"{few} scored on both sides; an interval and a p value need two")
    elif t.error > ROUNDING * max(map(abs, base_U + tuned_U)):
        p = t.p
    else:
        notes.append(
            f"all {len(units)} units differ by the same amount: no t interval; "
            "p is the sign-flip test's"
        )
        t, p = None, sign_flip_test(differences_U).p
    return PairedDifference(
        base_mean=fmean(base_U) if units else None,
        tuned_mean=fmean(tuned_U) if units else None,
        difference=fmean(differences_U) if units else None,
        interval=t.interval if t else None,
        p=p,
        minimum_detectable=t.detectable if t else None,
        unit="prompt" if n_clusters == 1 else "cluster",
        n_prompts=n_prompts,
        n_clusters=n_clusters,
        n_unscored=len(base_P) - n_prompts,
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
    require_numbers("differences_U", differences_U)
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
    changes = Counter(zip(pairs.first_P, pairs.second_P, strict=True))
    n_gained, n_lost = changes[False, True], changes[True, False]
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
    """The pairs in which neither is None, and how many were left out."""
    require_same_length(first_P=first_P, second_P=second_P)
    kept = [
        (first, second)
        for first, second in zip(first_P, second_P, strict=True)
        if first is not None and second is not None
    ]
    return ScoredPairs([a for a, _ in kept], [b for _, b in kept], len(first_P) - len(kept))


# ---- small parts ----


def require_same_length(**columns: Sequence[Any]) -> None:
    """ValueError that gives the length of each, where they differ."""
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise ValueError(f"one value for each prompt is needed in all of them; {shown}")


def require_numbers(name: str, values: Sequence[Any]) -> None:
    """ValueError unless all are finite numbers."""
    for value in values:
        if not isinstance(value, int | float | np.number | np.bool_) or not math.isfinite(value):
            raise ValueError(
                f"{name} has {value!r}; a finite number is needed, or None for unscored where "
                "that is allowed (scored_pairs() leaves such pairs out)"
            )
