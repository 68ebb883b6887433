"""Rewards of self-edits, and how much of the differences between them is noise.

Intraclass correlation: Shrout & Fleiss 1979 (10.1037/0033-2909.86.2.420), ICC(1,1) and ICC(3,1);
of a mean of repeats: Spearman-Brown. SEAL's own rewards reach 0.13, and 0.32 for the mean of 3.
"""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

import numpy as np

from training.domains.knowledge.grading import accuracy
from training.domains.knowledge.inner import InnerOutcome

logger = logging.getLogger(__name__)

RewardKind = Literal["accuracy", "gain", "logprob"]
REWARDS: tuple[RewardKind, ...] = ("accuracy", "gain", "logprob")
# below it, most of what a selection takes for better is luck
RELIABLE = 0.5
WANTED = 0.7
# sums of squares below this share of that of the rewards themselves are rounding
_ROUNDING = 1e-26


def reward(kind: RewardKind, after: InnerOutcome, before: InnerOutcome) -> float | None:
    """accuracy: the share of right answers. gain: minus that of the base model (`before`) on the
    same questions. logprob: the mean gain of the right answers' log-probability, in nats.

    Over the questions that are scored on both sides (of accuracy, after training); None where
    there are none, as of a run that failed.
    """
    if kind not in REWARDS:
        raise ValueError(f"reward={kind!r}: allowed are {', '.join(REWARDS)}")
    if after.failed is not None:
        return None
    if kind == "accuracy":
        return accuracy(after.correct_Q)
    before_Q, after_Q = (o.correct_Q if kind == "gain" else o.logprobs_Q for o in (before, after))
    gains_Q = [
        float(new) - float(old)
        for old, new in zip(before_Q, after_Q, strict=True)
        if old is not None and new is not None
    ]
    return fmean(gains_Q) if gains_Q else None


@dataclass(frozen=True)
class BestOf:
    """How much better the best edit of a passage is than its mean edit: `apparent` where it is
    chosen and read on the same repeats; `honest` chosen on all repeats but one and read on that
    one, with its standard error over passages."""

    k: int
    apparent: float
    honest: float
    error: float | None


@dataclass(frozen=True)
class Reliability:
    """Of a reward, from `num_repeats` runs of each edit; edits are compared within a passage.

    `icc`: the share of the variance of one run's reward that is between edits; `of_mean`: the same
    for the mean of the repeats. At least 0; None where no reward differs. `repeats_needed`: for
    WANTED of the mean; None where no number will do.
    """

    num_passages: int
    num_edits: int
    num_repeats: int
    icc: float | None
    of_mean: float | None
    repeats_needed: int | None
    best: BestOf

    def told(self, kind: RewardKind) -> str:
        """In a sentence, in nats or points of accuracy."""
        if self.icc is None or self.of_mean is None:
            return f"all {self.num_edits} edits of a passage have one reward"
        factor, digits, unit = (1, 2, "nats") if kind == "logprob" else (100, 1, "points")
        apparent, honest = (
            f"{factor * gain:+.{digits}f}" for gain in (self.best.apparent, self.best.honest)
        )
        error = "" if self.best.error is None else f" ± {factor * self.best.error:.{digits}f}"
        return (
            f"reliability {self.of_mean:.2f} of the mean of {self.num_repeats} repeats (of one "
            f"{self.icc:.2f}); the best of {self.best.k} looks {apparent} {unit} better than the "
            f"mean, cross-validated {honest}{error}"
        )


def spearman_brown(reliability: float, factor: float) -> float:
    """Reliability of the mean of `factor` times as many measurements."""
    return factor * reliability / (1 + (factor - 1) * reliability)


def repeats_for(icc: float, wanted: float = WANTED) -> int | None:
    """The repeats whose mean has a reliability of at least `wanted`, below 1."""
    if icc <= 0:
        return None
    if icc >= 1:
        return 1
    needed = wanted * (1 - icc) / (icc * (1 - wanted))
    # a whole number must not become the next one by rounding
    return max(1, math.ceil(needed - 1e-9))


def reliability(
    rewards_P_K_R: Sequence[Sequence[Sequence[float]]] | np.ndarray, *, blocked: bool = True
) -> Reliability:
    """Of rewards [passage][edit][repeat]; every edit has as many repeats, and passages may have
    different numbers of edits (those with one edit tell nothing of differences between edits).

    blocked: a repeat has the same random numbers for all edits of a passage, as in the inner loop.
    What it does to all of them alike is then no error of a comparison (ICC(3,1)); taken for one,
    as without blocks (ICC(1,1)), it would make ICCs too small.

    Raises ValueError with fewer than 2 repeats, or without a passage of 2 edits.
    """
    repeats = {len(rewards_R) for rewards_K_R in rewards_P_K_R for rewards_R in rewards_K_R}
    if len(repeats) != 1 or min(repeats) < 2:
        raise ValueError(
            f"rewards_P_K_R has {sorted(repeats)} repeats per edit: the reliability of a reward "
            "takes equally many of each, at least 2 (repeats=2)"
        )
    arrays_P = [np.asarray(r, dtype=np.float64) for r in rewards_P_K_R if len(r) >= 2]
    if not arrays_P:
        raise ValueError(
            "rewards_P_K_R has no passage with 2 edits: edits are compared within a passage"
        )
    [num_repeats] = repeats
    between = error = size = 0.0
    df_between = df_error = 0
    for rewards_K_R in arrays_P:
        means_K = rewards_K_R.mean(axis=1, keepdims=True)
        mean, k = rewards_K_R.mean(), len(rewards_K_R)
        means_R = rewards_K_R.mean(axis=0, keepdims=True) if blocked else mean
        between += num_repeats * float(((means_K - mean) ** 2).sum())
        error += float(((rewards_K_R - means_K - means_R + mean) ** 2).sum())
        size += float((rewards_K_R**2).sum())
        df_between += k - 1
        df_error += (k - 1 if blocked else k) * (num_repeats - 1)
    between, error = (0.0 if s <= _ROUNDING * size else s for s in (between, error))
    icc = _icc(between / df_between, error / df_error, num_repeats)
    return Reliability(
        num_passages=len(arrays_P),
        num_edits=sum(map(len, arrays_P)),
        num_repeats=num_repeats,
        icc=icc,
        of_mean=None if icc is None else spearman_brown(icc, num_repeats),
        repeats_needed=None if icc is None else repeats_for(icc),
        best=_best_of(arrays_P),
    )


def warn_unreliable(found: Reliability, kind: RewardKind) -> None:
    """Logs a warning where the mean of the repeats is less reliable than RELIABLE."""
    if found.of_mean is not None and found.of_mean >= RELIABLE:
        return
    if found.repeats_needed is None:
        remedy = "edits do not differ beyond noise: more questions or other edits are needed"
    else:
        remedy = f"repeats={found.repeats_needed} would give {WANTED}"
    logger.warning("The reward is mostly noise: %s. %s", found.told(kind), remedy)


def _icc(between: float, error: float, num_repeats: int) -> float | None:
    """From mean squares. An estimate below 0 is 0."""
    total = between + (num_repeats - 1) * error
    return max(0.0, (between - error) / total) if total > 0 else None


def _best_of(arrays_P: Sequence[np.ndarray]) -> BestOf:
    apparent_P, honest_P = [], []
    for rewards_K_R in arrays_P:
        means_K = rewards_K_R.mean(axis=1)
        apparent_P.append(float(means_K.max() - means_K.mean()))
        gains = []
        for left_out in range(rewards_K_R.shape[1]):
            # of equals the first, as the selection itself does it
            chosen = int(np.delete(rewards_K_R, left_out, axis=1).mean(axis=1).argmax())
            read_K = rewards_K_R[:, left_out]
            gains.append(float(read_K[chosen] - read_K.mean()))
        honest_P.append(fmean(gains))
    n = len(honest_P)
    error = float(np.std(honest_P, ddof=1)) / math.sqrt(n) if n > 1 else None
    return BestOf(max(map(len, arrays_P)), fmean(apparent_P), fmean(honest_P), error)
