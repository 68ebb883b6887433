"""Which self-edits a page shows of a problem.

uv run pytest tests/training/domains/test_best_and_worst.py
"""

from training.domains.best_and_worst import best_and_worst


def named(*rewards: float) -> list[tuple[str, float]]:
    return best_and_worst(rewards, lambda reward: reward)


def test_the_best_and_the_worst() -> None:
    assert named(1, 3, 2) == [("best self-edit", 3), ("worst self-edit", 1)]


def test_equal_rewards_are_not_shown_as_if_they_differed() -> None:
    assert named(2, 2, 2) == [("one of 3 self-edits, all of the same reward", 2)]
    assert named(0) == [("the only self-edit", 0)]
