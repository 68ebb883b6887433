"""Paired comparisons: closed forms, and the false-positive rate in simulation.

uv run pytest tests/evaluation/test_stats.py
"""

import itertools
import math
from collections import defaultdict
from dataclasses import asdict

import numpy as np
import pytest
from scipy import stats

from evaluation.stats import (
    McNemar,
    ScoredPairs,
    SignFlip,
    holm,
    mcnemar_exact,
    paired_difference,
    scored_pairs,
    sign_flip_test,
)
from utils.student_t import detectable_noncentrality

# ---- the paired difference ----


def test_paired_difference_by_hand() -> None:
    result = paired_difference(
        [1, 2, 4, 0, None, 3, None],
        [3, 2, 6, 0, 5, None, None],
        ["a", "a", "b", "c", "c", "a", "d"],
    )
    # clusters: a (2 + 0) / 2 = 1, b 2, c 0; mean 1, deviation 1, error 1 / sqrt(3), t = sqrt(3)
    assert result.unit_differences == (1, 2, 0)
    assert result.difference == 1
    assert result.base_mean == pytest.approx((1.5 + 4 + 0) / 3)
    assert result.tuned_mean == pytest.approx((2.5 + 6 + 0) / 3)
    assert result.p == pytest.approx(1 - math.sqrt(3 / 5), rel=1e-12)
    margin = 0.95 * math.sqrt(2 / 0.0975) / math.sqrt(3)
    assert result.interval == pytest.approx((1 - margin, 1 + margin), rel=1e-12)
    assert result.minimum_detectable == pytest.approx(detectable_noncentrality(2) / math.sqrt(3))
    assert (result.n_prompts, result.n_clusters, result.n_unscored) == (4, 3, 3)
    assert (result.unit, result.notes) == ("cluster", ())


def test_one_cluster_falls_back_to_prompts_and_says_so() -> None:
    result = paired_difference([0, 0, 0, None], [1, 2, 0, 1], ["a", "a", "a", "b"])
    assert (result.unit, result.n_clusters, result.n_prompts) == ("prompt", 1, 3)
    assert result.unit_differences == (1, 2, 0)
    assert result.p == pytest.approx(1 - math.sqrt(3 / 5), rel=1e-12)
    assert any("one cluster only" in note for note in result.notes)


@pytest.mark.parametrize(
    ("base", "tuned", "clusters", "difference", "few"),
    [
        ([], [], [], None, "no"),
        ([None, 1], [1, None], ["a", "b"], None, "no"),
        ([1], [3], ["a"], 2, "one"),
        ([1, None], [3, 2], ["a", "b"], 2, "one"),
    ],
)
def test_too_few_units_give_a_reason(
    base: list[float | None],
    tuned: list[float | None],
    clusters: list[str],
    difference: float,
    few: str,
) -> None:
    result = paired_difference(base, tuned, clusters)
    assert result.difference == difference
    assert result.interval is result.p is result.minimum_detectable is None
    told = f"{few} prompt is scored on both sides; an interval and a p value need two"
    assert result.notes == (told,)


def test_units_that_all_differ_alike() -> None:
    # 0.1 + 0.2 and 0.3 differ in the last bit: rounding is no spread
    shift = paired_difference([0.1, 1.0, 2.0], [0.1 + 0.3, 1.3, 2.3], [1, 2, 3])
    assert shift.p == 2 / 2**3
    assert shift.interval is shift.minimum_detectable is None
    assert any("sign-flip" in note for note in shift.notes)
    none = paired_difference([0, 1], [0, 1], [1, 2])
    assert (none.difference, none.p, none.interval) == (0, 1, None)


def test_small_real_spread_is_kept() -> None:
    result = paired_difference([0.0, 0.0], [1e-9, 2e-9], [1, 2])
    assert result.p == pytest.approx(2 * math.atan2(1, 3) / math.pi)


def test_paired_difference_properties() -> None:
    rng = np.random.default_rng(0)
    for trial in range(50):
        n = int(rng.integers(5, 40))
        base, tuned = rng.normal(size=n).tolist(), rng.normal(0.3, 1, size=n).tolist()
        clusters = rng.integers(0, 6, size=n).tolist()
        result = paired_difference(base, tuned, clusters)
        assert result.difference is not None and result.p is not None
        assert result.interval is not None and result.base_mean is not None
        assert result.tuned_mean == pytest.approx(result.base_mean + result.difference)
        low, high = result.interval
        assert (low <= 0 <= high) == (result.p >= 0.05)
        swapped = paired_difference(tuned, base, clusters)
        assert swapped.p == pytest.approx(result.p)
        assert swapped.interval == pytest.approx((-high, -low))
        order = rng.permutation(n)
        shuffled = paired_difference(*([x[i] for i in order] for x in (base, tuned, clusters)))
        assert shuffled.p == pytest.approx(result.p, rel=1e-9), trial
        scaled = paired_difference([10 * x for x in base], [10 * x for x in tuned], clusters)
        assert scaled.p == pytest.approx(result.p)
        assert scaled.difference == pytest.approx(10 * result.difference)


def test_paired_difference_against_scipy() -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        n = int(rng.integers(12, 60))
        base, tuned = rng.integers(1, 11, n).tolist(), rng.integers(1, 11, n).tolist()
        clusters = [int(c) for c in rng.integers(0, 7, n)]
        result = paired_difference(base, tuned, clusters)
        grouped = defaultdict(list)
        for a, b, cluster in zip(base, tuned, clusters, strict=True):
            grouped[cluster].append(b - a)
        expected = stats.ttest_1samp([np.mean(values) for values in grouped.values()], 0)
        assert result.p == pytest.approx(float(expected.pvalue), abs=1e-11)
        interval = expected.confidence_interval(0.95)
        assert result.interval == pytest.approx((float(interval.low), float(interval.high)))


@pytest.mark.parametrize("score", [float("nan"), float("inf"), "7"])
def test_scores_must_be_finite_numbers(score: float) -> None:
    with pytest.raises(ValueError, match="finite number"):
        paired_difference([1, score], [1, 2], ["a", "b"])
    with pytest.raises(ValueError, match="finite number"):
        sign_flip_test([score])


def test_scored_pairs() -> None:
    assert scored_pairs([1, None, 0, None], [2, 3, None, None]) == ScoredPairs([1], [2], 3)


def test_lengths_must_agree() -> None:
    with pytest.raises(ValueError, match="base_P has 1, tuned_P has 2, clusters_P has 1"):
        paired_difference([1], [1, 2], ["a"])
    with pytest.raises(ValueError, match="clusters_P has 0"):
        paired_difference([1], [1], [])
    for function in (mcnemar_exact, scored_pairs):
        with pytest.raises(ValueError, match="first_P has 2, second_P has 1"):
            function([True, False], [True])


# ---- the false-positive rate ----


def simulate(shift: float, n_trials: int) -> dict[str, float]:
    """Rates of p < 0.05 without a mean effect: 8 subtypes x 5 prompts x 2 samples, yes or no.

    Prompts share their difficulty between the models; tuning moves each subtype's logit by a
    normal of deviation `shift` and mean 0.
    """
    rng = np.random.default_rng(20)
    clusters = [subtype for subtype in range(8) for _ in range(5)]
    rejections = defaultdict(int)
    for _ in range(n_trials):
        logits = rng.normal(size=(8, 5, 1))
        moved = logits + shift * rng.normal(size=(8, 1, 1))
        shares = [
            (rng.random((8, 5, 2)) < 1 / (1 + np.exp(-x))).mean(axis=2).ravel()
            for x in (logits, moved)
        ]
        base, tuned = shares[0].tolist(), shares[1].tolist()
        by_cluster = paired_difference(base, tuned, clusters)
        p_values = {
            "cluster t": by_cluster.p,
            "prompt t": paired_difference(base, tuned, range(40)).p,
            "sign flip": sign_flip_test(by_cluster.unit_differences).p,
        }
        pooled = [x.mean() for x in shares]
        error = math.sqrt(sum(x * (1 - x) / 80 for x in pooled))
        p_values["unpaired z"] = math.erfc(abs(pooled[1] - pooled[0]) / error / math.sqrt(2))
        for test, p in p_values.items():
            assert p is not None
            rejections[test] += p < 0.05
    return {test: count / n_trials for test, count in rejections.items()}


def test_false_positive_rates() -> None:
    # with 4,000 trials a true rate of 0.05 has a standard error of 0.0034: 0.035..0.065 is 4.4 of
    # them to either side; yes-or-no scores move the true rate itself by less than 0.005
    without, shifted = simulate(0.0, 4000), simulate(1.5, 4000)
    assert 0.035 < without["cluster t"] < 0.065
    assert 0.035 < shifted["cluster t"] < 0.065
    # where subtypes move, prompts and samples are no independent witnesses: about 0.16 here
    assert shifted["prompt t"] > 0.12
    assert shifted["unpaired z"] > 0.12
    assert max(without["sign flip"], shifted["sign flip"]) < 0.05


# ---- other tests ----


def test_sign_flip_by_hand() -> None:
    # of the sums of +-1 +-2 +-3 two reach 6 in size, and six reach 2: all but the zeros
    assert sign_flip_test([1, 2, 3]) == SignFlip(2 / 8, exact=True)
    assert sign_flip_test([1, -2, 3]) == SignFlip(6 / 8, exact=True)
    assert sign_flip_test([1, 2, 3, 0, 0]) == sign_flip_test([1, 2, 3])
    assert sign_flip_test([0, 0]) == SignFlip(1.0, exact=True)
    assert sign_flip_test([]) == SignFlip(None, exact=True)
    # 0.1 + 0.2 - 0.3 is not 0 in floats, yet a tie
    assert sign_flip_test([0.1, 0.2, -0.3]).p == 1


def test_sign_flip_equals_enumeration() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = rng.integers(-4, 5, size=int(rng.integers(1, 9))).tolist()
        sums = [
            abs(sum(sign * value for sign, value in zip(signs, values, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(values))
        ]
        expected = np.mean([total >= abs(sum(values)) for total in sums])
        assert sign_flip_test(values).p == expected
        # tenths are no exact floats, but their ties count
        assert sign_flip_test([value / 10 for value in values]).p == expected


def test_sign_flip_enumerates_16_and_samples_17() -> None:
    assert sign_flip_test([1.0] * 16) == SignFlip(2 / 2**16, exact=True)
    # two assignments in 2^17: the sample sees about one, and p is never 0
    sampled = sign_flip_test([1.0] * 17, seed=3)
    assert not sampled.exact
    assert sampled == sign_flip_test([1.0] * 17, seed=3)
    assert 1 / 65537 <= (sampled.p or 0) < 8 / 65537
    assert sign_flip_test([1.0] * 60).p == 1 / 65537
    # the sum of 20 signs reaches 8 in 2 * sum(C(20, k), k <= 6) of 2^20 ways
    values = [1.0] * 14 + [-1.0] * 6
    exact = 2 * sum(math.comb(20, k) for k in range(7)) / 2**20
    sampled_p = sign_flip_test(values).p
    assert sampled_p == pytest.approx(exact, abs=5 * math.sqrt(exact / 65536))
    assert sampled_p != sign_flip_test(values, seed=1).p


def test_mcnemar_by_hand() -> None:
    base = [True] * 3 + [False] * 9 + [True] * 4 + [False] * 2 + [None, True]
    tuned = [False] * 3 + [True] * 9 + [True] * 4 + [False] * 2 + [True, None]
    # 2 * (C(12,0) + C(12,1) + C(12,2) + C(12,3)) / 2^12
    assert mcnemar_exact(base, tuned) == McNemar(598 / 4096, 9, 3, 18, 2)
    assert mcnemar_exact(tuned, base) == McNemar(598 / 4096, 3, 9, 18, 2)
    assert mcnemar_exact([True, False], [True, False]).p == 1
    assert mcnemar_exact([True, False], [False, True]).p == 1
    assert mcnemar_exact([None], [True]) == McNemar(None, 0, 0, 0, 1)
    assert mcnemar_exact([False] * 3000, [True] * 3000).p == 0
    assert 0.98 < (mcnemar_exact([True, False] * 2000, [False, True] * 2000).p or 0) <= 1
    with pytest.raises(ValueError, match="True, False or None"):
        mcnemar_exact([True], [7])  # type: ignore[list-item]


def test_mcnemar_in_whole_numbers() -> None:
    for gained, lost in [(0, 1), (5, 5), (5, 6), (3, 9), (40, 61), (700, 810)]:
        p = mcnemar_exact([False] * gained + [True] * lost, [True] * gained + [False] * lost).p
        n = gained + lost
        tail = sum(math.comb(n, k) for k in range(min(gained, lost) + 1))
        assert p == pytest.approx(min(1.0, 2 * tail / 2**n), rel=1e-10)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.02, None, 0.02]) == [0.04, None, 0.04]
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([0.3]) == [0.3]
    assert holm([]) == []
    assert holm([None]) == [None]
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"p_values\[1\]"):
            holm([0.5, p])


def test_results_are_plain_numbers() -> None:
    # YAML must be able to hold them: no numpy scalars
    result = paired_difference(list(np.array([1.0, 2, 3])), list(np.array([2.0, 5, 3])), [1, 2, 3])
    values = [*asdict(result).values(), *(result.interval or ()), *result.unit_differences]
    values += [*sign_flip_test([1.0] * 17)]
    assert not [value for value in values if isinstance(value, np.generic)]
