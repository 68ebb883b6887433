"""pass@k against all sets of k answers, written out.

uv run pytest tests/utils/test_pass_at_k.py
"""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from utils.pass_at_k import ks_up_to, pass_at_k, pass_at_ks


def test_equals_enumeration() -> None:
    for n in range(1, 9):
        for c in range(n + 1):
            right = [True] * c + [False] * (n - c)
            for k in range(1, n + 1):
                sets = list(itertools.combinations(right, k))
                share = sum(map(any, sets)) / len(sets)
                assert pass_at_k(n, c, k) == pytest.approx(share, abs=1e-14), (n, c, k)


def test_equals_the_closed_form_where_binomials_leave_the_floats() -> None:
    for n, c, k in [(2000, 1, 1000), (2000, 3, 700), (10_000, 2, 5000), (5000, 2500, 1)]:
        exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
        assert pass_at_k(n, c, k) == pytest.approx(float(exact), rel=1e-12)
    assert pass_at_k(200, 0, 200) == 0
    assert pass_at_k(200, 1, 200) == 1


def test_is_unbiased() -> None:
    # over all outcomes of n answers that are right with probability p
    p, n = 0.3, 7
    for k in (1, 3, 7):
        mean = sum(
            math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1)
        )
        assert mean == pytest.approx(1 - (1 - p) ** k)


def test_over_problems() -> None:
    solved = [[True, False, False, False], [True, True, True, False], [False] * 4]
    one, two, four = pass_at_ks(solved)
    assert [row.k for row in (one, two, four)] == [1, 2, 4]
    assert one.mean == pytest.approx(1 / 3) and one.n_problems == 3
    assert two.mean == pytest.approx((1 / 2 + 1 + 0) / 3)
    assert four.mean == pytest.approx(2 / 3)
    expected = stats.ttest_1samp([1 / 2, 1, 0], 0).confidence_interval()
    # the t interval reaches beyond what a share can be
    assert expected.low < 0 and expected.high > 1
    assert two.interval == (0, 1)
    many = [[bool(x) for x in row] for row in np.random.default_rng(0).random((40, 4)) < 0.5]
    single = pass_at_ks(many)[0]
    expected = stats.ttest_1samp([np.mean(row) for row in many], 0).confidence_interval()
    assert single.interval == pytest.approx((float(expected.low), float(expected.high)))


def test_problems_with_fewer_answers_bound_k() -> None:
    rows = pass_at_ks([[True] * 8, [False, True, False]])
    assert [row.k for row in rows] == [1, 2, 3]
    # all alike or alone: a spread cannot be told
    assert rows[2].interval is None and rows[2].mean == 1
    assert pass_at_ks([[True, False]])[0].interval is None


def test_ks() -> None:
    assert [ks_up_to(n) for n in (1, 2, 3, 8, 10)] == [
        *([1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 10]),
    ]


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 1, 0), (4, 1, 5)])
def test_what_is_no_count(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="is needed"):
        pass_at_k(n, c, k)


def test_nothing_to_count() -> None:
    for groups in ([], [[True], []]):
        with pytest.raises(ValueError, match="an answer to each"):
            pass_at_ks(groups)
