import hashlib
import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from places import ROOT

from training.domains.arc import examples, grids
from training.domains.arc.examples import ExampleSet, build_examples, leave_n_out
from training.domains.arc.grids import Family, to_grid
from training.domains.arc.tasks import Pair, Task, load_tasks

COLUMNS: dict[str, tuple[Family, ...]] = {
    "none": (),
    "basic": ("basic",),
    "size": ("size",),
    "chain": ("chain",),
    "repeat": ("repeat",),
    "all": ("basic", "size", "chain", "repeat"),
}
# Sizes made by the published code, by task and column.
PUBLISHED = {
    "44f52bb0": (69, 250, 250, 250, 250, 250),
    "4be741c5": (10, 188, 44, 42, 44, 250),
    "5582e5ca": (10, 216, 72, 126, 72, 250),
    "5614dbcf": (4, 96, 32, 56, 32, 192),
    "6150a2bd": (4, 96, 32, 56, 32, 192),
    "c7d4e6ad": (4, 96, 32, 56, 32, 192),
    "66e6c45b": (4, 96, 32, 55, 32, 192),
    "5bd6f4ac": (23, 250, 128, 224, 128, 250),
    "67e8384a": (23, 250, 128, 224, 128, 250),
    "6d0aefbc": (23, 250, 128, 224, 128, 250),
    "59341089": (23, 250, 128, 224, 128, 250),
    "ce8d95cc": (23, 250, 128, 224, 128, 250),
    "6e02f1e3": (47, 250, 200, 250, 200, 250),
    "b1fc8b8e": (47, 250, 200, 250, 200, 250),
    "8be77c9e": (10, 212, 72, 126, 72, 250),
    "8d5021e8": (10, 200, 72, 118, 72, 250),
    "68b67ca3": (10, 216, 72, 126, 72, 250),
    "af24b4cc": (10, 216, 72, 126, 72, 250),
    "8e1813be": (10, 188, 44, 42, 44, 250),
    "358ba94e": (23, 250, 32, 32, 32, 250),
    "903d1b4a": (23, 250, 32, 32, 32, 250),
    "bc4146bd": (23, 250, 64, 32, 64, 250),
}
# Where our seed 0 makes another number of chance coincidences than the published run: grids of
# 8be77c9e that a shift turns into a flip (the published run shifts all tasks by the same (0, 1)),
# and colour maps of 66e6c45b, whose pairs differ in colours and orientation only.
INEXACT = {("8be77c9e", "basic"): 216, ("66e6c45b", "chain"): 56}
CELLS = [
    (task_id, column, size)
    for task_id, sizes in PUBLISHED.items()
    for column, size in zip(COLUMNS, sizes, strict=True)
]


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return {task.id: task for task in load_tasks(list(PUBLISHED))}


def random_task(num_train: int, side: int = 4, seed: int = 0) -> Task:
    """Grids without symmetry: eight colours drawn at random, so that nothing coincides."""
    rng = np.random.default_rng(seed)
    pairs = [
        Pair(*(to_grid(rng.integers(0, 8, size=(side, side + 1))) for _ in range(2)))
        for _ in range(num_train + 1)
    ]
    return Task(f"random{num_train}", tuple(pairs[1:]), (pairs[0],))


def digest(example_set: ExampleSet) -> str:
    return hashlib.sha256(b"".join(task.digest for task in example_set.tasks)).hexdigest()


@pytest.mark.parametrize(
    ("task_id", "column", "size"), [cell for cell in CELLS if cell[1] != "none"]
)
def test_published_sizes(tasks, task_id, column, size):
    """Exact in all but the two cells of INEXACT, which are pinned."""
    built = build_examples(tasks[task_id], COLUMNS[column])
    assert len(built.tasks) == INEXACT.get((task_id, column), size)
    assert len(set(built.tasks)) == len(built.tasks)


def test_published_size_with_the_published_shift(tasks, monkeypatch):
    monkeypatch.setattr(grids, "draw_shift", lambda grids, rng: (0, 1))
    assert len(build_examples(tasks["8be77c9e"], ["basic"]).tasks) == 212


@pytest.mark.parametrize(
    ("task_id", "size"), [(task_id, sizes[0]) for task_id, sizes in PUBLISHED.items()]
)
def test_published_sizes_without_augmentation(tasks, task_id, size, monkeypatch):
    """Only orders are drawn here, so the published random stream gives the size exactly.

    With our own stream the number of drawn orders that change nothing differs: the size stays
    within what is possible, and within 4 of the published one at seed 0.
    """
    num_train = len(tasks[task_id].train)
    num_originals = num_train + num_train * (num_train - 1)
    ours = len(build_examples(tasks[task_id], ()).tasks)
    assert num_originals <= ours <= 2 * num_originals
    assert abs(ours - size) <= 4

    monkeypatch.setattr(examples, "task_rng", lambda *_: np.random.RandomState(0))
    assert len(build_examples(tasks[task_id], ()).tasks) == size


@pytest.mark.parametrize("num_train", [1, 2, 3, 4])
@pytest.mark.parametrize(("column", "num_augmentations"), [("basic", 11), ("all", 23)])
def test_closed_form(num_train, column, num_augmentations):
    task = random_task(num_train)
    one = build_examples(task, COLUMNS[column], leave_n=(1,), cap=10_000)
    assert len(one.tasks) == 2 * num_train * (num_augmentations + 1)
    both = build_examples(task, COLUMNS[column], cap=10_000)
    expected = 2 * num_train * num_train * (num_augmentations + 1)
    assert len(both.tasks) == both.num_generated == expected
    assert both.num_too_long == 0


def test_counts_by_family():
    built = build_examples(random_task(2), COLUMNS["all"], leave_n=(1,), cap=10_000)
    assert built.counts == {"original": 4, "basic": 44, "size": 12, "chain": 24, "repeat": 12}
    capped = build_examples(random_task(4), COLUMNS["all"])
    assert sum(capped.counts.values()) == len(capped.tasks) == 250
    assert list(build_examples(random_task(2), ["repeat"]).counts) == ["original", "repeat"]


def test_leave_n_out_by_hand():
    task = random_task(3)
    a, b, c = task.train
    assert leave_n_out(task, 1) == [
        Task("", (b, c), (a,)),
        Task("", (a, c), (b,)),
        Task("", (a, b), (c,)),
    ]
    assert leave_n_out(task, 2) == [
        Task("", train, test)
        for test, *trains in [((a,), (c,), (b,)), ((b,), (c,), (a,)), ((c,), (b,), (a,))]
        for train in trains
    ]
    assert leave_n_out(task, 4) == []


def test_the_real_test_is_not_used():
    task = random_task(3)
    other = Task(task.id, task.train, random_task(3, seed=9).test)
    assert digest(build_examples(task, ["basic"])) == digest(build_examples(other, ["basic"]))


def test_too_large_augmentations_are_left_out():
    task = random_task(2, side=16)
    built = build_examples(task, COLUMNS["all"], leave_n=(1,), cap=10_000)
    assert all(example.max_side <= 30 for example in built.tasks)
    # of the basic ones the four reflections double a side
    assert built.counts == {"original": 4, "basic": 28, "size": 0, "chain": 0, "repeat": 0}


def test_colors_are_permuted_only_with_augmentations():
    task = random_task(3)
    plain = build_examples(task, (), cap=10_000).tasks
    assert {frozenset(example.train) for example in plain} == {
        frozenset(example.train) for n in (1, 2) for example in leave_n_out(task, n)
    }
    colored = build_examples(task, ["size"], cap=10_000).tasks
    assert any(9 in grid for example in colored for grid in example.grids)


def test_fits_is_applied_before_the_cap():
    task = random_task(4)
    built = build_examples(task, COLUMNS["all"], fits=lambda example: example.max_side <= 5)
    assert built.num_generated == 32 * 24
    # originals, seven basic ones and their permuted copies stay at 5 cells
    assert len(built.tasks) == 250
    assert built.num_too_long == 32 * 16
    assert all(example.max_side <= 5 for example in built.tasks)
    assert build_examples(task, (), fits=lambda _: False).tasks == []


def test_marc_combination():
    task = random_task(3)
    families = COLUMNS["basic"]
    one = build_examples(task, families, leave_n=(1,), cap=10_000, combine="marc").tasks
    two = build_examples(task, families, leave_n=(2,), cap=10_000).tasks
    assert (len(one), len(two)) == (72, 144)
    topped_up = build_examples(task, families, cap=100, combine="marc").tasks
    assert topped_up[:72] == one
    assert set(topped_up[72:]) < set(two)
    assert len(set(topped_up[72:])) == 28
    # the first set alone is above the cap
    cut = build_examples(task, families, cap=50, combine="marc").tasks
    assert set(cut) < set(one)
    assert len(cut) == 50
    # the first set is empty
    built = build_examples(
        task, families, cap=1000, combine="marc", fits=lambda example: len(example.train) == 1
    )
    assert built.tasks == two


def test_seal_combination_shuffles_only_above_the_cap():
    task = random_task(2)
    everything = build_examples(task, ["size"], cap=32).tasks
    assert everything[:4] == [*leave_n_out(task, 1), *everything[2:4]]
    cut = build_examples(task, ["size"], cap=31).tasks
    assert set(cut) < set(everything)
    assert cut != everything[:31]


def test_seed_and_id_choose_the_random_stream():
    task = random_task(3)
    renamed = Task("another", task.train, task.test)
    first = digest(build_examples(task, ["basic"]))
    assert first == digest(build_examples(task, ["basic"]))
    assert first != digest(build_examples(task, ["basic"], seed=1))
    assert first != digest(build_examples(renamed, ["basic"]))


def test_same_dataset_in_every_process():
    code = (
        "import hashlib;"
        "from training.domains.arc.examples import build_examples;"
        "from training.domains.arc.tasks import load_tasks;"
        "(task,) = load_tasks(['6e02f1e3']);"
        "tasks = build_examples(task, ['basic', 'chain'], seed=3).tasks;"
        "print(hashlib.sha256(b''.join(t.digest for t in tasks)).hexdigest())"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    (task,) = load_tasks(["6e02f1e3"])
    assert outputs == {digest(build_examples(task, ["chain", "basic"], seed=3))}


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"combine": "both"}, "combine='both': allowed are seal, marc"),
        ({"leave_n": ()}, "leave_n"),
        ({"leave_n": (0, 1)}, "leave_n"),
        ({"cap": 0}, "cap=0"),
        ({"permute_n": -1}, "permute_n=-1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_refuses(kwargs, reason):
    with pytest.raises(ValueError, match=reason):
        build_examples(random_task(2), ["basic"], **kwargs)


def test_refuses_unknown_families():
    families: Any = ["basics", "size"]
    with pytest.raises(ValueError, match=r"\['basics'\]: allowed are basic, size, chain, repeat"):
        build_examples(random_task(2), families)


def test_refuses_a_demonstration_without_output():
    pair = Pair(to_grid([[1]]))
    with pytest.raises(ValueError, match=r"x: demonstrations \[0\] have no output"):
        build_examples(Task("x", (pair,)), [])
    with pytest.raises(ValueError, match="x: demonstrations all have no output"):
        build_examples(Task("x", ()), [])
