"""Task sets: made from seeds, kept in files, drawn from; and the seeds of everything random."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from training.icl.base import Family, TaskSet
from training.icl.priors import draw_ids, log_prior, uniform_log_prior
from training.icl.settings import Setting
from utils.runs.files import atomic_writer, shown_path
from utils.runs.inputs import Input

Purpose = Literal["tasks", "ood", "data", "evaluation", "weights"]
_PURPOSES: tuple[Purpose, ...] = get_args(Purpose)
# torch's CPU generator reads 32 bits of a seed: 3 say what it is for, the others are hashed
_HASH_BITS = 29


def derived_seed(purpose: Purpose, *parts: int | str) -> int:
    """A seed of 32 bits. Those of two purposes are never equal, whatever their parts; those of one
    purpose differ with their parts but for a chance of 2^-29."""
    digest = hashlib.sha256(json.dumps(parts).encode()).digest()
    hashed = int.from_bytes(digest[:8], "big") % 2**_HASH_BITS
    return _PURPOSES.index(purpose) << _HASH_BITS | hashed


def make_generator(purpose: Purpose, *parts: int | str) -> torch.Generator:
    """A CPU generator of its own for each purpose and seed: `make_generator("data", config.seed)`;
    more parts tell streams of one purpose apart."""
    return torch.Generator().manual_seed(derived_seed(purpose, *parts))


def load_task_set(
    setting: Setting, family: Family, cache_dir: Path, *, keep: bool = True
) -> TaskSet | None:
    """The mixture's tasks, read from `cache_dir` or made and, with `keep`, written there; None for
    inf.

    A file is keyed by all that its values depend on. The prior is none of that: it is computed from
    the setting, so runs with different priors share their tasks. Several processes may ask at
    once: they write the same. Raises ValueError when the file is not what its name says.
    """
    if setting.num_tasks == "inf":
        return None
    path = task_file(setting, family, cache_dir)
    if path.exists():
        values = _read(path, setting, family)
    else:
        values = family.sample_tasks(
            setting.num_tasks, make_generator("tasks", type(setting).__name__, setting.task_seed)
        )
        if keep:
            _write(path, setting, family, values)
    return TaskSet(values, log_prior(setting))


def keep_task_set(setting: Setting, family: Family, cache_dir: Path, tasks: TaskSet | None) -> None:
    """Writes what `load_task_set` made and did not keep."""
    if tasks is not None and not (path := task_file(setting, family, cache_dir)).exists():
        _write(path, setting, family, tasks.values)


def task_input(tasks: TaskSet | None) -> dict[str, Input]:
    """What a run stores of the mixture's tasks: made anew from their seed by another version of
    torch, they may be others."""
    if tasks is None:
        return {}
    return {"tasks": Input("the task set of these settings", _digest(tasks.values))}


def new_task_set(setting: Setting, family: Family, count: int, seed: int) -> TaskSet:
    """`count` equally frequent tasks that are not those of the mixture: seeds of this purpose never
    equal a mixture's (`derived_seed`). Not kept: the same arguments give the same tasks."""
    generator = make_generator("ood", type(setting).__name__, setting.task_seed, seed)
    return TaskSet(family.sample_tasks(count, generator), uniform_log_prior(count))


def task_file(setting: Setting, family: Family, cache_dir: Path) -> Path:
    """Where `load_task_set` keeps the tasks: `<family>-<D>dims-<M>tasks-<seed>seed-<hash>.pt`, the
    hash being that of everything the tasks depend on."""
    key = _key(setting, family)
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:10]
    name = "{setting}-{num_dims}dims-{num_tasks}tasks-{task_seed}seed".format(**key)
    return cache_dir / f"{name}-{digest}.pt"


def draw_tasks(
    family: Family,
    tasks: TaskSet | None,
    batch_size: int,
    generator: torch.Generator,
    task_ids: Tensor | None,
) -> tuple[dict[str, Tensor], Tensor]:
    """One row of tasks for each sequence, and their ids (B,): `Family.sample` says of which."""
    if tasks is None:
        if task_ids is not None:
            raise ValueError("task_ids: without a task set (num_tasks=inf) there is none to choose")
        ids_B = torch.full((batch_size,), -1)
        return family.sample_tasks(batch_size, generator), ids_B
    ids_B = chosen_ids(tasks, batch_size, generator, task_ids)
    return {name: values[ids_B] for name, values in tasks.values.items()}, ids_B


def chosen_ids(
    tasks: TaskSet, batch_size: int, generator: torch.Generator, task_ids: Tensor | None
) -> Tensor:
    """(B,) rows of the set: `task_ids` after a check, else drawn by the prior."""
    if task_ids is None:
        return draw_ids(tasks.log_prior, batch_size, generator)
    count = len(tasks.log_prior)
    if task_ids.shape != (batch_size,):
        raise ValueError(
            f"task_ids of shape {tuple(task_ids.shape)}: one for each of the {batch_size} "
            "sequences is needed"
        )
    if batch_size and not 0 <= int(task_ids.min()) <= int(task_ids.max()) < count:
        raise ValueError(f"task_ids from {task_ids.min()} to {task_ids.max()}: of 0..{count - 1}")
    return task_ids


def _key(setting: Setting, family: Family) -> dict[str, Any]:
    fields = ("num_dims", "num_tasks", "task_seed", *family.task_fields)
    return {"setting": type(setting).__name__} | {name: getattr(setting, name) for name in fields}


def _write(path: Path, setting: Setting, family: Family, values: dict[str, Tensor]) -> None:
    held = {"key": _key(setting, family), "values": values, "digest": _digest(values)}
    with atomic_writer(path) as file:
        torch.save(held, file)


def _read(path: Path, setting: Setting, family: Family) -> dict[str, Tensor]:
    remedy = "delete it to have the tasks made anew"
    try:
        held = torch.load(path, weights_only=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{shown_path(path)}: not a readable task file; {remedy}") from error
    if not isinstance(held, dict) or set(held) != {"key", "values", "digest"}:
        raise ValueError(f"{shown_path(path)}: not a task file; {remedy}")
    key, values = held["key"], held["values"]
    wanted = _key(setting, family)
    if key != wanted:
        raise ValueError(
            f"{shown_path(path)} holds the tasks of {_as_text(key)}, where those of "
            f"{_as_text(wanted)} belong; {remedy}"
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in values.items()}
    needed = {name: (setting.num_tasks, *row) for name, row in family.task_shapes.items()}
    if shapes != needed:
        raise ValueError(f"{shown_path(path)} holds {shapes}, {needed} is needed; {remedy}")
    if held["digest"] != _digest(values):
        raise ValueError(f"{shown_path(path)}: its tasks are not those written to it; {remedy}")
    return values


def _digest(values: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(values):
        digest.update(f"{name} {values[name].dtype}".encode())
        digest.update(values[name].contiguous().numpy().tobytes())
    return digest.hexdigest()


def _as_text(key: dict[str, Any]) -> str:
    return " ".join(f"{name}={value}" for name, value in key.items())
