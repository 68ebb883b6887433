"""The last held-out evaluation of a run against its first: what is known of the difference for new
problems, and for new answers to the same problems."""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from training.domains.base import Table
from utils.student_t import StudentT, student_t, values_needed, weighted_means

MOST_LISTED = 20


class HeldOut(NamedTuple):
    """Rewards by problem, in the order of the problems; `num_batches` lie between the two."""

    before_P_G: dict[str, list[float]]
    after_P_G: dict[str, list[float]]
    num_batches: int

    @property
    def num_problems(self) -> int:
        return len(self.before_P_G)

    @property
    def has_groups(self) -> bool:
        """Whether every problem was answered twice or more, each time."""
        groups = [*self.before_P_G.values(), *self.after_P_G.values()]
        return min(map(len, groups)) > 1

    @property
    def differences_P(self) -> list[float]:
        return [fmean(self.after_P_G[p]) - fmean(self.before_P_G[p]) for p in self.before_P_G]


def held_out(samples: Sequence[Mapping[str, Any]]) -> HeldOut | None:
    """From a run's lines of samples.jsonl; None before the second evaluation."""
    rewards: dict[int, dict[str, list[float]]] = {}
    for sample in samples:
        if sample["kind"] == "eval":
            by_problem = rewards.setdefault(sample["step"], {})
            by_problem.setdefault(sample["problem"], []).append(sample["reward"])
    if len(rewards) < 2:
        return None
    first, last = min(rewards), max(rewards)
    return HeldOut(rewards[first], rewards[last], last - first)


def for_new_problems(values_P: Sequence[float]) -> StudentT | None:
    """Of the mean over problems, which are a sample of all; None of fewer than two, or of problems
    that are all alike."""
    found = student_t(values_P) if len(values_P) > 1 else None
    return found if found is not None and found.error > 0 else None


def for_new_answers(*sides_P_G: Sequence[Sequence[float]]) -> StudentT | None:
    """Of the mean over these very problems, whose answers are a sample: of one side, or of a second
    minus a first. None where the rewards of no problem differ."""
    share = 1 / len(sides_P_G[0])
    signs = [1.0] if len(sides_P_G) == 1 else [-1.0, 1.0]
    groups = [group for side in sides_P_G for group in side]
    weights = [sign * share for sign, side in zip(signs, sides_P_G, strict=True) for _ in side]
    return weighted_means(groups, weights)


def problem_table(found: HeldOut) -> Table | None:
    """Mean rewards by problem; None where problems have one answer each or are too many."""
    if not found.has_groups or found.num_problems > MOST_LISTED:
        return None
    rows = [
        [
            problem,
            f"{len(before)} + {len(found.after_P_G[problem])}",
            f"{fmean(before):.3f}",
            f"{fmean(found.after_P_G[problem]):.3f}",
            f"{difference:+.3f}",
        ]
        for (problem, before), difference in zip(
            found.before_P_G.items(), found.differences_P, strict=True
        )
    ]
    return ["held-out problem", "answers", "before", "after", "after - before"], rows


def interval_table(found: HeldOut) -> Table | None:
    """The two means and their difference with 95 % intervals, problems weighed alike; None where
    problems have one answer each."""
    if not found.has_groups:
        return None
    before_P_G, after_P_G = list(found.before_P_G.values()), list(found.after_P_G.values())
    parts = [
        ("before", list(map(fmean, before_P_G)), for_new_answers(before_P_G)),
        ("after", list(map(fmean, after_P_G)), for_new_answers(after_P_G)),
        ("after - before", found.differences_P, for_new_answers(before_P_G, after_P_G)),
    ]
    rows = [
        [
            name,
            f"{fmean(values_P):{'+' if '-' in name else ''}.3f}",
            _interval(for_new_problems(values_P)),
            _interval(answers),
        ]
        for name, values_P, answers in parts
    ]
    return ["held out", "mean", "95% for new problems", "95% for new answers to these"], rows


def verdict(found: HeldOut) -> str | None:
    """Whether the mean reward has changed and how sure that is, or what would be needed to know;
    None of one problem that was answered once."""
    if found.num_problems < 2 and not found.has_groups:
        return None
    problems = for_new_problems(found.differences_P)
    answers = None
    if found.has_groups:
        answers = for_new_answers([*found.before_P_G.values()], [*found.after_P_G.values()])
    mean = fmean(found.differences_P)
    told = f"Held out, after against before: {mean:+.3f}"
    if problems is None and answers is None and found.num_problems == 1:
        return f"{told} on one problem, whose answers earned the same each time"
    if problems is None and answers is None:
        return f"{told} for each of {found.num_problems} problems"
    told += f" ({', '.join(_told_intervals(found, problems, answers))})."
    if problems is not None and _excludes_0(problems):
        return told
    if answers is not None and _excludes_0(answers):
        told += " These problems changed; whether others do is not known."
    else:
        told += " No significant change."
    return told + _needed(found, problems)


def _told_intervals(
    found: HeldOut, problems: StudentT | None, answers: StudentT | None
) -> list[str]:
    parts = []
    if problems is not None:
        over = f"paired by problem, {found.num_problems} of them"
        parts.append(f"95% interval {_interval(problems)}, {over}")
    if answers is not None:
        parts.append(f"{_interval(answers)} for new answers to the same problems")
    return parts


def _needed(found: HeldOut, problems: StudentT | None) -> str:
    """What finds a difference of this size with 80 % power."""
    if problems is None:
        return ""
    told = f" {problems.detectable:.3f} would be found with 80% power"
    if problems.mean == 0:
        return f"{told}."
    if (needed := values_needed(problems)) is not None:
        told += f"; {abs(problems.mean):.3f} takes {needed:,} problems"
        if found.num_batches and problems.mean > 0:
            batches = math.ceil(found.num_batches * problems.detectable / problems.mean)
            told += f", or {batches:,} batches if each gains as much"
    return f"{told}."


def _excludes_0(found: StudentT) -> bool:
    low, high = found.interval
    return low > 0 or high < 0


def _interval(found: StudentT | None) -> str | None:
    if found is None:
        return None
    low, high = found.interval
    return f"{low:+.3f} to {high:+.3f}"
