"""Student's t: closed forms, printed tables, scipy, and the power in simulation.

uv run pytest tests/utils/test_student_t.py
"""

import math

import numpy as np
import pytest
from scipy import stats

from utils.student_t import (
    detectable_noncentrality,
    student_t,
    t_critical,
    t_power,
    values_needed,
    weighted_means,
)


def test_mean_and_interval_against_scipy() -> None:
    rng = np.random.default_rng(0)
    for n in (2, 3, 10, 200):
        values = rng.normal(0.3, 1, n).tolist()
        ours, theirs = student_t(values), stats.ttest_1samp(values, 0)
        assert ours.mean == pytest.approx(np.mean(values), rel=1e-12)
        assert ours.p == pytest.approx(theirs.pvalue, rel=1e-9)
        assert ours.interval == pytest.approx(tuple(theirs.confidence_interval(0.95)), rel=1e-9)
        assert t_power(ours.detectable / ours.error, n - 1) == pytest.approx(0.8, abs=1e-9)


def test_t_critical_values_of_the_printed_tables() -> None:
    assert t_critical(1) == pytest.approx(math.tan(0.475 * math.pi), rel=1e-12)
    assert t_critical(2) == pytest.approx(0.95 * math.sqrt(2 / 0.0975), rel=1e-12)
    assert t_critical(7) == pytest.approx(2.3646, abs=5e-5)
    assert t_critical(30) == pytest.approx(2.0423, abs=5e-5)
    # Abramowitz & Stegun 26.7.5, from the normal's 1.96
    z = 1.959963984540054
    assert t_critical(1e6) == pytest.approx(z + (z**3 + z) / 4e6, abs=1e-10)


def test_power() -> None:
    # R: power.t.test(delta=0.5, sd=1, power=0.8, type="one.sample") gives n = 33.3671
    n = 33.3671
    assert t_power(0.5 * math.sqrt(n), n - 1) == pytest.approx(0.8, abs=2e-5)
    for df in (1, 2, 7, 39, 2000):
        assert t_power(1e-6, df) == pytest.approx(0.05, abs=1e-9)
        assert t_power(detectable_noncentrality(df), df) == pytest.approx(0.8, abs=1e-9)
    # Bloom 1995 (Evaluation Review 19:547): a multiple of 2.8 where the units are many
    assert detectable_noncentrality(1e5) == pytest.approx(1.95996 + 0.84162, abs=1e-4)


@pytest.mark.parametrize("df", [1, 3, 7])
def test_power_equals_simulation(df: int) -> None:
    rng = np.random.default_rng(df)
    n = 40_000
    deviations = np.sqrt(rng.chisquare(df, n) / df)
    t = (rng.standard_normal(n) + detectable_noncentrality(df)) / deviations
    # 5 standard errors of a share of 0.8
    assert np.mean(np.abs(t) > t_critical(df)) == pytest.approx(0.8, abs=0.01)


def test_results_are_plain_numbers() -> None:
    found = student_t(list(np.array([1.0, 2, 3])))
    values = [*found, *found.interval, found.p, found.detectable, t_power(1, 3)]
    assert not [value for value in values if isinstance(value, np.generic)]


def test_a_difference_of_two_means_is_welchs() -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 1, 8).tolist(), rng.normal(0.5, 3, 5).tolist()
    ours, theirs = weighted_means([a, b], [1, -1]), stats.ttest_ind(a, b, equal_var=False)
    assert ours is not None
    assert ours.df == pytest.approx(theirs.df, rel=1e-9)
    assert ours.p == pytest.approx(theirs.pvalue, rel=1e-9)
    assert ours.interval == pytest.approx(tuple(theirs.confidence_interval(0.95)), rel=1e-9)


def test_a_sum_of_means_in_closed_form() -> None:
    """Squared standard errors 1/8 and 1/4, times squared weights 4 and 1; groups that do not differ
    add to the mean alone."""
    found = weighted_means([[0.0, 0.0, 1.0, 1.0, 0.5], [1.0, 2.0], [7.0, 7.0]], [2, 1, -1])
    assert found is not None
    assert found.mean == 2 * 0.5 + 1.5 - 7
    first, second = 4 * 0.25 / 5, 0.25
    assert found.error == pytest.approx(math.sqrt(first + second), rel=1e-12)
    assert found.df == pytest.approx((first + second) ** 2 / (first**2 / 4 + second**2), rel=1e-12)
    assert weighted_means([[1.0, 1.0], [0.0, 0.0]], [1, -1]) is None


def test_intervals_of_a_sum_of_means_hold_the_true_sum() -> None:
    """95 % of the time, with five standard errors to spare."""
    rng = np.random.default_rng(0)
    spreads, n = np.array([0.5, 1.0, 2.0]), 2000
    drawn = rng.normal(1.0, spreads[:, None], (n, 3, 8))
    held = 0
    for groups in drawn.tolist():
        found = weighted_means(groups, [1 / 3] * 3)
        assert found is not None
        held += found.interval[0] <= 1.0 <= found.interval[1]
    assert held / n == pytest.approx(0.95, abs=0.025)


def test_values_needed() -> None:
    # R: power.t.test(delta=0.5, sd=1, power=0.8, type="one.sample") gives n = 33.3671
    rng = np.random.default_rng(0)
    values = rng.normal(0, 1, 12)
    values = (values - values.mean()) / values.std(ddof=1) + 0.5
    assert values_needed(student_t(values.tolist())) == 34
    assert values_needed(student_t((-values).tolist())) == 34
    assert values_needed(student_t([-1.0, 1.0, 0.001])) is None
