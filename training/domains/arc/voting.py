"""Augmented inference: the prompts of one test, the vote over their answers, and the score.

Follows arXiv 2411.07279 §5; ties that the published code leaves to set order go to the grid that
was predicted first.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np

from training.domains.arc.examples import task_rng
from training.domains.arc.grids import INVERSES, TRANSFORMS, Grid, to_grid
from training.domains.arc.tasks import Pair, Task

Value = TypeVar("Value", bound=Hashable)
Rows = tuple[tuple[int, ...], ...]

# Groups that vote, after the group of all predictions.
GROUPS = ("identity", "transpose", "flip0", "flip1", "rotate180", "rotate270")
GEOMETRIC = ("transpose", "flip0", "flip1", "rotate90", "rotate180")
UNDECODABLE = to_grid([[0]])


class VotingPrompt(NamedTuple):
    """A variant of a task with one test, and the transform that turns its answer back."""

    task: Task
    inverse: str


class Prediction(NamedTuple):
    """A grid that was already turned back, and the transform that did it."""

    grid: Grid
    inverse: str


class Attempts(NamedTuple):
    first: Grid
    second: Grid


class Score(NamedTuple):
    """`solved`: every test has a right attempt. `cell_accuracy`: mean over tests of the best."""

    solved: bool
    num_correct: int
    num_tests: int
    cell_accuracy: float


def _leave_n_prompts(
    task: Task, n: int, permute_n: int, rng: np.random.Generator
) -> list[VotingPrompt]:
    variants: dict[Task, None] = {}
    for kept in itertools.combinations(task.train, len(task.train) - n):
        variants[Task(task.id, kept, task.test)] = None
        for _ in range(permute_n):
            order = rng.permutation(len(kept))
            variants[Task(task.id, tuple(kept[i] for i in order), task.test)] = None
    plain = list(variants)
    prompts = dict.fromkeys(plain, "identity")
    for name in GEOMETRIC:
        chosen = plain[rng.integers(len(plain))]
        prompts.setdefault(chosen.map(TRANSFORMS[name]), INVERSES[name])
    return [VotingPrompt(variant, inverse) for variant, inverse in prompts.items()]


def voting_prompts(
    task: Task,
    *,
    test_index: int = 0,
    include_n: Sequence[int] = (1,),
    permute_n: int = 2,
    seed: int = 0,
    fits: Callable[[Task], bool] | None = None,
) -> list[VotingPrompt]:
    """Prompts for one test: for each n all ways to leave n demonstrations out, permutations of
    each, and five geometric versions of random ones, without duplicates.

    If `fits` refuses all, max(include_n) + 1 is tried too; an empty list means nothing fits.
    """
    if not include_n or min(include_n) < 0 or permute_n < 0:
        raise ValueError(
            f"include_n={list(include_n)}, permute_n={permute_n}: expected non-negative numbers"
        )
    if not 0 <= test_index < len(task.test):
        raise ValueError(f"test_index={test_index}: {task.id} has {len(task.test)} tests")
    # the solution stays out of the prompts
    single = Task(task.id, task.train, (Pair(task.test[test_index].input),))
    for n_values in (tuple(include_n), (max(include_n) + 1,)):
        prompts = [
            prompt
            for n in n_values
            if n <= len(task.train)
            for prompt in _leave_n_prompts(
                single, n, permute_n, task_rng(seed, task.id, test_index, n)
            )
            if fits is None or fits(prompt.task)
        ]
        if prompts:
            return prompts
    return []


def invert(grid: Grid, inverse: str) -> Prediction:
    """A model's answer to a VotingPrompt, turned back."""
    return Prediction(to_grid(TRANSFORMS[inverse](grid)), inverse)


def _by_count(values: Sequence[Value]) -> list[Value]:
    """Distinct values, most frequent first, then first seen (Counter keeps that order)."""
    return [value for value, _ in Counter(values).most_common()]


def _row_majority(grids: Sequence[Rows]) -> Rows:
    height, width = _by_count([(len(grid), len(grid[0])) for grid in grids])[0]
    return tuple(
        _by_count([grid[r] for grid in grids if len(grid) > r and len(grid[r]) == width])[0]
        for r in range(height)
    )


def _transposed(grid: Rows) -> Rows:
    return tuple(zip(*grid, strict=True))


def _top_three(grids: Sequence[Rows]) -> list[Rows]:
    """The three most frequent grids; gaps take the row-majority grid, else the column-majority."""
    top = _by_count(grids)[:3]
    by_row = _row_majority(grids)
    by_column = _transposed(_row_majority([_transposed(grid) for grid in grids]))
    while len(top) < 3:
        top.append(by_row if by_row not in top else by_column)
    return top


def vote(predictions: Sequence[Prediction]) -> Attempts:
    """Two attempts by hierarchical voting; both are [[0]] if there is no prediction."""
    if not predictions:
        return Attempts(UNDECODABLE, UNDECODABLE)
    groups: dict[str, list[Rows]] = {}
    everything: list[Rows] = []
    for prediction in predictions:
        rows = tuple(tuple(row) for row in prediction.grid.tolist())
        groups.setdefault(prediction.inverse, []).append(rows)
        everything.append(rows)
    unknown = sorted(set(groups) - set(GROUPS))
    if unknown:
        raise ValueError(f"predictions inverted by {unknown}: allowed are {', '.join(GROUPS)}")

    candidates = _top_three(everything)
    for name in GROUPS:
        if name in groups:
            candidates += _top_three(groups[name])
    first, second, third = _top_three(candidates)
    # with two candidates alone the third is one of them again, and must not become both attempts
    if third != first and candidates.count(second) == candidates.count(third):
        identity = groups.get("identity", [])
        second = max(second, third, key=identity.count)
    return Attempts(to_grid(first), to_grid(second))


def cell_accuracy(predicted: Grid, target: Grid) -> float:
    """The fraction of equal cells; 0 where the shapes differ."""
    return float((predicted == target).mean()) if predicted.shape == target.shape else 0.0


def score(task: Task, attempts: Sequence[Sequence[Grid]]) -> Score:
    """Pass@2 over all tests of a task; `attempts[t]` are the attempts at test t.

    ValueError if a solution is not known or the numbers of tests differ.
    """
    targets = [pair.output for pair in task.test if pair.output is not None]
    if len(targets) != len(task.test) or not targets:
        raise ValueError(f"{task.id}: {len(targets)} of {len(task.test)} tests have a solution")
    if len(attempts) != len(targets):
        raise ValueError(f"{task.id}: attempts at {len(attempts)} of {len(targets)} tests")
    accuracies = [
        max((cell_accuracy(grid, target) for grid in grids), default=0.0)
        for grids, target in zip(attempts, targets, strict=True)
    ]
    num_correct = sum(accuracy == 1.0 for accuracy in accuracies)
    return Score(
        num_correct == len(targets), num_correct, len(targets), sum(accuracies) / len(accuracies)
    )
