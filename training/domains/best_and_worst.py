"""Which self-edits to one problem a page shows."""

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def best_and_worst(edits: Sequence[T], reward_of: Callable[[T], float]) -> list[tuple[str, T]]:
    """The first of the highest and of the lowest reward, with what to call them; one where all
    rewards are equal."""
    best, worst = max(edits, key=reward_of), min(edits, key=reward_of)
    if len(edits) == 1:
        return [("the only self-edit", best)]
    if reward_of(best) == reward_of(worst):
        return [(f"one of {len(edits)} self-edits, all of the same reward", best)]
    return [("best self-edit", best), ("worst self-edit", worst)]
