"""Coefficients of agreement: by hand, published examples, and what others are equal to.

uv run pytest tests/evaluation/behaviour/test_coefficients.py
"""

import math

import numpy as np
import pytest

from evaluation.behaviour.coefficients import (
    BaseRate,
    base_rate,
    cohen_kappa,
    krippendorff_alpha,
    spearman,
)


def test_cohen_kappa_by_hand() -> None:
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    # observed 0.7, chance 0.5 * 0.6 + 0.5 * 0.4 = 0.5
    assert cohen_kappa(first, second) == pytest.approx(0.4)
    assert cohen_kappa(first, first) == 1
    assert cohen_kappa(["a", "b"], ["b", "a"]) == -1
    assert cohen_kappa(["a", "a"], ["a", "a"]) is None
    assert cohen_kappa([], []) is None
    # distances 0 1 0 of the pairs; of all nine 0 2 3, 1 1 2, 3 1 0, which sum to 13, squared 29
    assert cohen_kappa([1, 2, 4], [1, 3, 4], weights="linear") == pytest.approx(1 - 3 / 13)
    assert cohen_kappa([1, 2, 4], [1, 3, 4], weights="quadratic") == pytest.approx(1 - 3 / 29)


def test_quadratic_kappa_is_the_concordance_correlation() -> None:
    # Fleiss & Cohen 1973: 2 cov / (var + var + (difference of means)^2)
    rng = np.random.default_rng(0)
    for _ in range(20):
        first = rng.integers(1, 11, 30)
        second = np.clip(first + rng.integers(-3, 4, 30), 1, 10)
        covariance = np.mean((first - first.mean()) * (second - second.mean()))
        concordance = (
            2 * covariance / (first.var() + second.var() + (first.mean() - second.mean()) ** 2)
        )
        kappa = cohen_kappa(first.tolist(), second.tolist(), weights="quadratic")
        assert kappa == pytest.approx(concordance)


def test_agreement_takes_scored_ratings_only() -> None:
    for function in (cohen_kappa, spearman):
        with pytest.raises(ValueError, match="scored_pairs"):
            function([1, None], [1, 2])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="NaN"):
        cohen_kappa([1, float("nan")], [1, 2])
    with pytest.raises(ValueError, match="finite number"):
        cohen_kappa(["a"], ["b"], weights="linear")
    with pytest.raises(ValueError, match="weights='cubic'"):
        cohen_kappa([1], [1], weights="cubic")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="level='ratio'"):
        krippendorff_alpha([[1], [1]], level="ratio")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="finite number"):
        krippendorff_alpha([["a"], ["b"]], level="interval")


# Krippendorff 2011, section C: four observers, twelve units, None where nothing was said
OBSERVERS = [
    [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
    [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
    [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
    [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
]


def test_krippendorff_alpha_of_the_published_example() -> None:
    assert krippendorff_alpha(OBSERVERS) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(OBSERVERS, level="ordinal") == pytest.approx(0.815, abs=5e-4)
    assert krippendorff_alpha(OBSERVERS, level="interval") == pytest.approx(0.849, abs=5e-4)


def test_krippendorff_alpha_by_hand() -> None:
    # section A of the paper, two observers and a yes-or-no judgment: alpha = 0.095
    first = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0]
    second = [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    # 4 disagreements in 10 pairs; 14 zeros and 6 ones: 1 - 19 * 8 / (2 * 14 * 6)
    assert krippendorff_alpha([first, second]) == pytest.approx(1 - 19 * 8 / 168)
    # for two values all levels are one
    for level in ("ordinal", "interval"):
        assert krippendorff_alpha([first, second], level=level) == pytest.approx(1 - 152 / 168)
    assert krippendorff_alpha([["a", "b"], ["a", "b"]]) == 1
    assert krippendorff_alpha([[1, 1], [1, 1]]) is None
    assert krippendorff_alpha([[1, None], [None, 1]]) is None
    assert krippendorff_alpha([]) is None


def test_spearman_by_hand() -> None:
    assert spearman([1, 2, 3], [10, 20, 15]) == pytest.approx(0.5)
    assert spearman([1, 2, 3], [5, 3, 1]) == pytest.approx(-1)
    # ranks 1.5 1.5 3 and 1 2 3: covariance 1.5, variances 1.5 and 2
    assert spearman([4, 4, 9], [1, 2, 3]) == pytest.approx(1.5 / math.sqrt(1.5 * 2))
    assert spearman([1, 1], [1, 2]) is None
    assert spearman([1], [1]) is None
    assert spearman([], []) is None


def test_spearman_is_the_correlation_of_average_ranks() -> None:
    rng = np.random.default_rng(2)
    for _ in range(20):
        first, second = rng.integers(1, 11, (2, 40))
        ranks = [
            [(np.sum(x < value) + np.sum(x <= value)) / 2 for value in x] for x in (first, second)
        ]
        expected = np.corrcoef(ranks)[0, 1]
        assert spearman(first.tolist(), second.tolist()) == pytest.approx(expected, abs=1e-12)


def test_base_rate() -> None:
    assert base_rate([True, False, True]) == BaseRate(True, 2 / 3)
    assert base_rate(["b", "a", "a", "b"]) == BaseRate("b", 0.5)
    assert base_rate([]) is None
    with pytest.raises(ValueError, match="None or NaN"):
        base_rate([True, None])


@pytest.mark.parametrize("score", [float("nan"), float("inf"), "7"])
def test_scores_must_be_finite_numbers(score: float) -> None:
    with pytest.raises(ValueError, match="finite number"):
        spearman([1, score], [1, 2])


def test_lengths_must_agree() -> None:
    for function in (cohen_kappa, spearman):
        with pytest.raises(ValueError, match="first_P has 2, second_P has 1"):
            function([True, False], [True])
    with pytest.raises(ValueError, match=r"ratings_R_P\[0\] has 2, ratings_R_P\[1\] has 1"):
        krippendorff_alpha([[1, 2], [1]])


def test_results_are_plain_numbers() -> None:
    # YAML must be able to hold them: no numpy scalars
    rated = list(np.array([1, 2, 2]))
    values = [cohen_kappa(rated, [1, 2, 1]), spearman(rated, [1, 2, 1])]
    values += [krippendorff_alpha([rated, [1, 2, 1]])]
    assert not [value for value in values if isinstance(value, np.generic)]
