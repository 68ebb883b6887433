"""Student's t of a mean over independent values, or of a weighted sum of such means: its standard
error, 95 % interval and p value, and what the test of it can find."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import fmean
from typing import NamedTuple

SIGNIFICANCE = 0.05
POWER = 0.8


class StudentT(NamedTuple):
    """A mean of df + 1 values and its standard error; of several means the degrees of freedom are
    those of `weighted_means`."""

    mean: float
    error: float
    df: float

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


def weighted_means(groups: Sequence[Sequence[float]], weights: Sequence[float]) -> StudentT | None:
    """The sum of the groups' means times their weights, where values are independent and each group
    has a variance of its own: Welch's t, with Satterthwaite's degrees of freedom (1946, Biometrics
    Bulletin 2:110). None where the values of no group differ. Groups have two values or more.
    """
    means, parts, dfs = [], [], []
    for values, weight in zip(groups, weights, strict=True):
        found = student_t(values)
        means.append(weight * found.mean)
        parts.append((weight * found.error) ** 2)
        dfs.append(found.df)
    variance = math.fsum(parts)
    if variance == 0:
        return None
    df = variance**2 / math.fsum(part**2 / df for part, df in zip(parts, dfs, strict=True))
    return StudentT(math.fsum(means), math.sqrt(variance), df)


def values_needed(found: StudentT) -> int | None:
    """How many values, which spread as these do, show a true mean as large as the one found with
    80 % power; None above 9,999."""
    spread = found.error * math.sqrt(found.df + 1)

    def enough(n: int) -> bool:
        return detectable_noncentrality(n - 1) * spread <= abs(found.mean) * math.sqrt(n)

    return next((n for n in range(2, 10_000) if enough(n)), None)


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
