"""Student's t of a mean over independent values: its standard error, 95 % interval and p value,
and what the test of it can find."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import fmean
from typing import NamedTuple

SIGNIFICANCE = 0.05
POWER = 0.8


class StudentT(NamedTuple):
    """A mean of df + 1 values and its standard error."""

    mean: float
    error: float
    df: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 %."""
        margin = t_critical(self.df) * self.error
        return self.mean - margin, self.mean + margin

    @property
    def p(self) -> float:
        """Two-sided, of a true mean of 0; there is none where the values do not differ."""
        from scipy import special

        return 2 * float(special.stdtr(self.df, -abs(self.mean) / self.error))

    @property
    def detectable(self) -> float:
        """The true mean that is found at p < 0.05 with 80 % power; exact, from the noncentral t
        distribution (Owen 1965, JASA 60:320)."""
        return detectable_noncentrality(self.df) * self.error


def student_t(values: Sequence[float]) -> StudentT:
    """Of two values or more."""
    n = len(values)
    mean = fmean(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return StudentT(mean, math.sqrt(variance / n), n - 1)


@lru_cache(maxsize=1024)
def t_critical(df: float) -> float:
    """The two-sided 5 % point of Student's t."""
    from scipy import special

    return float(special.stdtrit(df, 1 - SIGNIFICANCE / 2))


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
