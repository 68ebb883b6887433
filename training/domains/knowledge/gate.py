"""A self-edit is let in only as far as it does not cost too much of what was known before (STABLE,
arXiv 2510.16089): its adapter's delta is scaled down until the cost fits a budget, without training
again, or the edit is refused."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

# em: accuracy lost; nats: log-probability lost of right answers; kl: divergence from what the model
# said before. Means over questions of what was learned before.
GateKind = Literal["em", "nats", "kl"]

# what STABLE allows: no accuracy, 2 bits of a right answer, 0.3 bits of divergence
BUDGETS: dict[GateKind, float] = {"em": 0.0, "nats": 2 * math.log(2), "kl": 0.3 * math.log(2)}
NUM_HALVINGS = 7
SMALLEST_SCALE = 0.1


@dataclass(frozen=True)
class GateDecision:
    """`scale` of the adapter's delta and its `cost`; both None where the edit is refused. `tried`
    are all scales with their costs, in the order of trying."""

    scale: float | None
    cost: float | None
    tried: tuple[tuple[float, float], ...]


def scale_search(
    budget: float, *, num_halvings: int = NUM_HALVINGS, smallest: float = SMALLEST_SCALE
) -> Generator[float, float, GateDecision]:
    """Yields the scales to be tried, is sent their costs, and returns the largest in [smallest, 1]
    that it found to cost at most `budget`, so that many edits can be searched side by side.

    1 is tried first, then `smallest`: an edit that costs too much there is refused. A cost that is
    NaN is too much. There are 2 + num_halvings tries at most.
    """
    tried: list[tuple[float, float]] = []

    def fits(scale: float) -> Generator[float, float, bool]:
        cost = yield scale
        tried.append((scale, cost))
        return cost <= budget

    if (yield from fits(1.0)):
        return GateDecision(1.0, tried[-1][1], tuple(tried))
    if not (yield from fits(smallest)):
        return GateDecision(None, None, tuple(tried))
    good, bad = tried[-1], 1.0
    for _ in range(num_halvings):
        middle = (good[0] + bad) / 2
        if (yield from fits(middle)):
            good = tried[-1]
        else:
            bad = middle
    return GateDecision(*good, tuple(tried))


def largest_scale(
    cost_at: Callable[[float], float],
    budget: float,
    *,
    num_halvings: int = NUM_HALVINGS,
    smallest: float = SMALLEST_SCALE,
) -> GateDecision:
    """What scale_search() returns for the costs that `cost_at` tells."""
    search = scale_search(budget, num_halvings=num_halvings, smallest=smallest)
    scale = next(search)
    while True:
        try:
            scale = search.send(cost_at(scale))
        except StopIteration as end:
            return end.value


def accuracy_lost(before_Q: Sequence[bool | None], after_Q: Sequence[bool | None]) -> float:
    """Below 0 where more is right after; over questions with both verdicts, 0 without any."""
    pairs = zip(before_Q, after_Q, strict=True)
    lost = [b - a for b, a in pairs if b is not None and a is not None]
    return fmean(lost) if lost else 0.0


def nats_lost(before_Q: Sequence[float], after_Q: Sequence[float]) -> float:
    """Of the log-probabilities of right answers; 0 without any."""
    lost = [b - a for b, a in zip(before_Q, after_Q, strict=True)]
    return fmean(lost) if lost else 0.0
