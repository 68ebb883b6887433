"""Test-time training sets: what a task's demonstrations are turned into before adapting to it.

Follows arXiv 2411.07279 §3.1 and SEAL's choice of families, with an order and a random stream that
do not depend on the process: the published code's depend on PYTHONHASHSEED.
"""

import itertools
import zlib
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from training.domains.arc.grids import FAMILIES, MAX_SIDE, Family, permute_colors
from training.domains.arc.tasks import Task

Combine = Literal["seal", "marc"]
Source = Literal["original"] | Family


@dataclass(frozen=True)
class ExampleSet:
    """`tasks` each hold one synthetic test with its output; `counts` says how they were made.

    `num_generated` counts before, `num_too_long` what `fits` refused, and the cap takes the rest.
    """

    tasks: list[Task]
    counts: dict[Source, int]
    num_generated: int
    num_too_long: int


def task_rng(seed: int, task_id: str, *stream: int) -> np.random.Generator:
    """A generator that depends on the seed, the task and the stream, and on nothing else."""
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(task_id.encode()), *stream]))


def adapter_seed(seed: int, task_id: str) -> int:
    """Of the adapter that is trained on the task."""
    return int(task_rng(seed, task_id).integers(2**31))


def leave_n_out(task: Task, n: int) -> list[Task]:
    """Each demonstration once as the test, with every way to drop n - 1 of the others."""
    indices = range(len(task.train))
    return [
        Task(
            task.id,
            tuple(task.train[k] for k in indices if k != i and k not in dropped),
            (task.train[i],),
        )
        for i in indices
        for dropped in itertools.combinations([k for k in indices if k != i], n - 1)
    ]


def _permuted(task: Task, rng: np.random.Generator, *, colors: bool) -> Task:
    if colors:
        table = permute_colors(task.grids, rng)
        task = task.map(lambda grid: table[grid])
    order = rng.permutation(len(task.train))
    return Task(task.id, tuple(task.train[i] for i in order), task.test)


def _leave_n_examples(
    task: Task, families: Sequence[Family], n: int, permute_n: int, rng: np.random.Generator
) -> dict[Task, Source]:
    originals = leave_n_out(task, n)
    # an ordered dict is a set whose order is the same in every process
    sources: dict[Task, Source] = dict.fromkeys(originals, "original")
    for family in families:
        for augmentation in FAMILIES[family]:
            for original in originals:
                augmented = original.map(augmentation.prepare(original.grids, rng))
                if augmented.max_side <= MAX_SIDE:
                    sources.setdefault(augmented, family)
    for example, source in list(sources.items()) * permute_n:
        sources.setdefault(_permuted(example, rng, colors=bool(families)), source)
    return sources


def build_examples(
    task: Task,
    families: Collection[Family],
    *,
    leave_n: Sequence[int] = (1, 2),
    permute_n: int = 1,
    combine: Combine = "seal",
    cap: int = 250,
    seed: int = 0,
    fits: Callable[[Task], bool] | None = None,
) -> ExampleSet:
    """At most `cap` synthetic tasks made of the demonstrations alone.

    "seal" joins the sets of all `leave_n` and cuts a shuffled list; "marc" takes the first set that
    is not empty, tops it up to `cap` from the following ones, and cuts it likewise. The published
    top-up takes the head of an unordered set; here that is a seeded sample.
    """
    unknown = sorted(set(families) - set(FAMILIES))
    if unknown:
        raise ValueError(f"unknown families {unknown}: allowed are {', '.join(FAMILIES)}")
    if combine not in ("seal", "marc"):
        raise ValueError(f"combine={combine!r}: allowed are seal, marc")
    if not leave_n or min(leave_n) < 1 or cap < 1 or permute_n < 0 or seed < 0:
        raise ValueError(
            f"leave_n={list(leave_n)}, cap={cap}, permute_n={permute_n}, seed={seed}: leave_n and "
            "cap must be at least 1, permute_n and seed at least 0"
        )
    unsolved = [i for i, pair in enumerate(task.train) if pair.output is None]
    if unsolved or not task.train:
        raise ValueError(f"{task.id}: demonstrations {unsolved or 'all'} have no output")

    ordered = [family for family in FAMILIES if family in families]
    rng = task_rng(seed, task.id, 0)
    chosen: list[tuple[Task, Source]] = []
    num_generated = num_too_long = 0
    for n in leave_n:
        sources = _leave_n_examples(task, ordered, n, permute_n, task_rng(seed, task.id, n))
        items = [item for item in sources.items() if fits is None or fits(item[0])]
        num_generated += len(sources)
        num_too_long += len(sources) - len(items)
        if combine == "marc" and chosen:
            kept = rng.permutation(len(items))[: max(0, cap - len(chosen))]
            items = [items[i] for i in kept]
        chosen += items
    if len(chosen) > cap:
        chosen = [chosen[i] for i in rng.permutation(len(chosen))[:cap]]

    by_source = Counter(source for _, source in chosen)
    counts: dict[Source, int] = {"original": by_source["original"]}
    counts |= {family: by_source[family] for family in ordered}
    return ExampleSet([example for example, _ in chosen], counts, num_generated, num_too_long)
