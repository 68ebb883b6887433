"""How often at least one of k answers is right (pass@k), from n answers to each problem."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from utils.student_t import student_t


class PassAtK(NamedTuple):
    """Mean over problems, with its 95 % interval over problems (Student's t, cut to 0..1); None
    where the interval cannot be given: one problem, or all alike."""

    k: int
    mean: float
    interval: tuple[float, float] | None
    n_problems: int


def pass_at_k(n: int, c: int, k: int) -> float:
    """The share of the sets of k among n answers that hold one of the c right ones: an unbiased
    estimate of pass@k, 1 - C(n-c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1).

    As a product, whose factors are all in 0..1: nothing overflows. ValueError unless 0 <= c <= n
    and 1 <= k <= n.
    """
    if not 0 <= c <= n:
        raise ValueError(f"c={c} right answers of n={n}: a number from 0 to n is needed")
    if not 1 <= k <= n:
        raise ValueError(f"k={k}: a number from 1 to the n={n} answers to a problem is needed")
    if c > n - k:
        return 1.0
    return 1 - math.prod(1 - k / i for i in range(n - c + 1, n + 1))


def ks_up_to(n: int) -> list[int]:
    """1, 2, 4, ... and n itself: what a table shows of n answers to a problem."""
    return [*(2**i for i in range(n.bit_length()) if 2**i < n), n]


def pass_at_ks(solved_P_G: Sequence[Sequence[bool]]) -> list[PassAtK]:
    """For 1, 2, 4, ... up to the answers that every problem has."""
    if not solved_P_G or not all(solved_P_G):
        raise ValueError("pass@k needs a problem, and an answer to each")
    rows = []
    for k in ks_up_to(min(map(len, solved_P_G))):
        estimates_P = [pass_at_k(len(group), sum(group), k) for group in solved_P_G]
        rows.append(PassAtK(k, fmean(estimates_P), _interval(estimates_P), len(estimates_P)))
    return rows


def _interval(values_P: Sequence[float]) -> tuple[float, float] | None:
    if len(values_P) < 2 or max(values_P) == min(values_P):
        return None
    low, high = student_t(values_P).interval
    return max(0.0, low), min(1.0, high)
