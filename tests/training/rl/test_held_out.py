"""Held-out rewards before and after: intervals in closed form, and what is said of them.

uv run pytest tests/training/rl/test_held_out.py
"""

import math
from typing import Any

import pytest

from training.rl.held_out import (
    MOST_LISTED,
    for_new_answers,
    for_new_problems,
    held_out,
    interval_table,
    problem_table,
    verdict,
)
from utils.student_t import t_critical


def evaluated(step: int, problem: str, *rewards: float) -> list[dict[str, Any]]:
    return [{"kind": "eval", "step": step, "problem": problem, "reward": r} for r in rewards]


def said(samples: list[dict[str, Any]]) -> str | None:
    found = held_out(samples)
    return None if found is None else verdict(found)


def test_rewards_are_compared_by_problem() -> None:
    """Problems differ by 10, and each gains 1 or 2: unpaired, nothing could be seen."""
    samples = [*evaluated(0, "a", 1.0, 3.0), *evaluated(0, "b", 12.0)]
    assert held_out(samples) is None
    samples += [*evaluated(3, "a", 9.0), *evaluated(5, "b", 13.0), *evaluated(5, "a", 4.0)]
    samples.append({"kind": "train", "step": 6, "problem": "a", "reward": 99.0})
    found = held_out(samples)
    assert found is not None and found.num_batches == 5 and found.differences_P == [2.0, 1.0]
    line = verdict(found)
    # the last against the first; t of one degree of freedom, standard error 0.5
    assert line is not None and "+1.500 (95% interval -4.853 to +7.853" in line
    assert "2 of them" in line and "No significant change" in line
    # without groups there is nothing to tell of new answers
    assert problem_table(found) is None and interval_table(found) is None


def test_one_answer_to_one_problem_says_nothing_and_equal_gains_have_no_interval() -> None:
    assert said([*evaluated(0, "a", 1.0), *evaluated(2, "a", 2.0)]) is None
    same = [r for p in "ab" for step in (0, 2) for r in evaluated(step, p, float(step))]
    assert said(same) == "Held out, after against before: +2.000 for each of 2 problems"


def test_the_interval_for_new_answers_is_welchs_over_all_groups() -> None:
    """Two problems with 4 + 4 answers: squared standard errors 1/12, 0, 1/16 and 1/12, and a fourth
    of each in the mean of the two differences."""
    before = [[0.0, 0.0, 1.0, 1.0], [0.0] * 4]
    after = [[1.0, 1.0, 1.0, 0.0], [0.0, 1.0, 1.0, 0.0]]
    found = for_new_answers(before, after)
    assert found is not None
    parts = [1 / 12 / 4, 1 / 16 / 4, 1 / 12 / 4]
    assert found.mean == (0.25 + 0.5) / 2
    assert found.error == pytest.approx(math.sqrt(sum(parts)), rel=1e-12)
    assert found.df == pytest.approx(sum(parts) ** 2 / sum(v**2 / 3 for v in parts), rel=1e-12)
    # of one side alone, only its own groups count
    alone = for_new_answers(before)
    assert alone is not None and alone.mean == 0.25 and alone.df == pytest.approx(3)
    assert alone.error == pytest.approx(math.sqrt(1 / 12 / 4), rel=1e-12)
    assert for_new_answers([[0.0, 0.0], [1.0, 1.0]]) is None


def test_the_interval_for_new_problems_takes_problems_as_the_units() -> None:
    """As many answers as one likes do not narrow it."""
    found = for_new_problems([0.25, 0.5])
    assert found is not None and found.df == 1
    assert found.interval[1] == pytest.approx(0.375 + t_critical(1) * 0.125)
    assert for_new_problems([0.5]) is None
    assert for_new_problems([0.5, 0.5]) is None


def groups(step: int, **solved: int) -> list[dict[str, Any]]:
    """Eight answers to each problem, so many of them solved."""
    return [
        row
        for problem, n in solved.items()
        for row in evaluated(step, problem, *([1.0] * n + [0.0] * (8 - n)))
    ]


def test_tables_and_a_change_that_holds_for_new_problems() -> None:
    found = held_out(groups(0, a=1, b=2, c=0, d=1) + groups(3, a=6, b=7, c=6, d=5))
    assert found is not None
    table = problem_table(found)
    assert table is not None and table[1][2] == ["c", "8 + 8", "0.000", "0.750", "+0.750"]
    intervals = interval_table(found)
    assert intervals is not None
    assert [row[:2] for row in intervals[1]] == [
        ["before", "0.125"],
        ["after", "0.750"],
        ["after - before", "+0.625"],
    ]
    line = verdict(found)
    assert line is not None and "No significant" not in line and "not known" not in line
    low, high = (float(x) for x in intervals[1][2][2].split(" to "))
    assert 0 < low < 0.625 < high


def test_a_change_of_these_problems_alone_says_so() -> None:
    """Sure for new answers to these two problems; with one degree of freedom for no other."""
    line = said(groups(0, a=0, b=0) + groups(1, a=8, b=5))
    assert line is not None and "These problems changed; whether others do is not known." in line
    assert "would be found with 80% power" in line


def test_no_change_says_what_would_be_needed() -> None:
    line = said(groups(0, a=2, b=3, c=1) + groups(4, a=3, b=3, c=1))
    assert line is not None and "No significant change." in line
    # d = 1/24, standard error 1/24: 9 problems with this spread (sd 0.0722), or 4 batches and more
    assert "0.042 takes" in line and "batches if each gains as much" in line
    # a loss does not grow into a gain
    worse = said(groups(0, a=3, b=3, c=1) + groups(4, a=2, b=3, c=1))
    assert worse is not None and "0.042 takes" in worse and "batches" not in worse
    # nor does nothing
    none = said(groups(0, a=2, b=3) + groups(4, a=3, b=2))
    assert none is not None and "takes" not in none and "would be found" in none


def test_one_problem_has_the_interval_for_new_answers_alone() -> None:
    found = held_out(groups(0, a=1) + groups(1, a=7))
    assert found is not None
    table, line = interval_table(found), verdict(found)
    assert table is not None and table[1][2][2] is None and table[1][2][3] is not None
    assert line is not None and "for new answers to the same problems" in line
    assert "paired by problem" not in line
    alike = said(groups(0, a=0) + groups(1, a=8))
    assert alike == (
        "Held out, after against before: +1.000 on one problem, whose answers earned the same each "
        "time"
    )


def test_many_problems_are_not_listed() -> None:
    names = [f"p{i}" for i in range(MOST_LISTED + 1)]
    samples = [r for step in (0, 1) for n in names for r in evaluated(step, n, 0.0, 1.0)]
    found = held_out(samples)
    assert found is not None and problem_table(found) is None and interval_table(found) is not None
