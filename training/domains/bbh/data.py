"""BBH's items: from a folder, the hub, or made here; and how they are split."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from training.domains.bbh.generated import FAMILIES, generate_items
from training.domains.bbh.items import Item
from training.domains.bbh.tasks import BBHTask
from utils.config.entrypoint import ConfigError, raise_problems
from utils.json_files import read_json

logger = logging.getLogger(__name__)

HUB_ID = "lukaemon/bbh"
Source = Literal["auto", "hub", "generated"]


class Split(NamedTuple):
    """`indices` are those of `evaluated` in the task's file."""

    demonstrations: list[Item]
    evaluated: list[Item]
    indices: list[int]


@dataclass(frozen=True)
class TaskData:
    task: BBHTask
    items: list[Item]
    source: str


def load_data(
    tasks: Sequence[BBHTask],
    *,
    data_dir: Path | None,
    source: Source,
    all_named: bool,
    seed: int,
    size: int,
    k: int,
) -> list[TaskData]:
    """The items of each task: from `data_dir`; else from the hub; else made here (`size` each).
    The log says which.

    Tasks that cannot be made here are left out, unless they were `all_named`. Raises a ConfigError
    that names every file and record that is wrong, and every task that has no item left to evaluate
    after `k` demonstrations.
    """
    problems: list[str] = []
    if data_dir is not None:
        data = _from_folder(tasks, data_dir, problems)
    elif source == "generated":
        data = _generated(tasks, all_named, seed, size)
    else:
        try:
            data = _from_hub(tasks)
        except (OSError, ValueError) as error:
            if source == "hub":
                raise ConfigError(
                    f"the hub's {HUB_ID} could not be loaded ({error}); give data_dir=, or "
                    "source=generated"
                ) from error
            logger.info("the hub cannot be reached (%s)", type(error).__name__)
            data = _generated(tasks, all_named, seed, size)
    problems += [
        f"k={k}: {found.task.name} has {len(found.items)} items; k must be smaller"
        for found in data
        if len(found.items) <= k
    ]
    raise_problems(problems)
    for found in data:
        logger.info("%s: %d items from %s", found.task.name, len(found.items), found.source)
    return data


def split(items: Sequence[Item], k: int, rng: random.Random) -> Split:
    """Shuffled by `rng`, random.Random(seed) in the published splits: the first k are
    demonstrations, the rest is evaluated; with k=0 everything is."""
    order = list(range(len(items)))
    rng.shuffle(order)
    return Split([items[i] for i in order[:k]], [items[i] for i in order[k:]], order[k:])


def _from_folder(tasks: Sequence[BBHTask], folder: Path, problems: list[str]) -> list[TaskData]:
    """Tasks without a file that can be read are left out, and are among the `problems`."""
    if not folder.is_dir():
        raise ConfigError(f"data_dir={folder}: no such folder; it holds <task>.json files")
    read = [(task, _read_file(folder / f"{task.name}.json", problems)) for task in tasks]
    return [TaskData(task, items, str(folder)) for task, items in read if items]


def _read_file(path: Path, problems: list[str]) -> list[Item]:
    if not path.is_file():
        problems.append(f"{path}: no such file")
        return []
    try:
        content = read_json(path)
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error})")
        return []
    except ValueError as error:
        problems.append(str(error))
        return []
    records = content.get("examples") if isinstance(content, dict) else None
    if not isinstance(records, list) or not records:
        problems.append(f'{path}: an object with a list "examples" is needed')
        return []
    items = []
    for number, record in enumerate(records):
        item = _item(record)
        if item is None:
            problems.append(f"{path}, examples[{number}]: needs text as input and target")
        else:
            items.append(item)
    return items


def _item(record: Any) -> Item | None:
    if not isinstance(record, dict):
        return None
    given, target = record.get("input"), record.get("target")
    if not isinstance(given, str) or not isinstance(target, str) or not target.strip():
        return None
    return Item(given, target)


def _from_hub(tasks: Sequence[BBHTask]) -> list[TaskData]:
    from datasets import load_dataset

    data = []
    for task in tasks:
        rows: Any = load_dataset(HUB_ID, task.name, split="test")
        data.append(TaskData(task, [Item(r["input"], r["target"]) for r in rows], HUB_ID))
    return data


def _generated(tasks: Sequence[BBHTask], all_named: bool, seed: int, size: int) -> list[TaskData]:
    missing = [task.name for task in tasks if task.name not in FAMILIES]
    if missing and (all_named or len(missing) == len(tasks)):
        raise ConfigError(
            f"{', '.join(missing)}: these cannot be generated; what can are {', '.join(FAMILIES)}. "
            "Give data_dir= with BBH's files"
        )
    if missing:
        logger.warning("%d of %d tasks cannot be generated: left out", len(missing), len(tasks))
    return [
        TaskData(task, generate_items(task.name, size, seed), "a generator of this project")
        for task in tasks
        if task.name in FAMILIES
    ]
