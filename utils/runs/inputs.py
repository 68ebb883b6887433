"""What decides a run besides its settings: the files and the data that it reads, by what they hold.

A setting that names such a file or folder says so: `chz.field(..., metadata=INPUT)`. One whose
value only leads to a file has a function instead of INPUT's True, which gives the path, or None.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import chz

from utils.config.plain_yaml import to_plain
from utils.runs.files import expanded

INPUT = {"input": True}
MUST_EXIST = {"must_exist": True, **INPUT}
# of a folder, what is read: data sets, and adapters
_READ = (".json", ".jsonl", ".safetensors", ".bin")
_SHOWN = 12


class Input(NamedTuple):
    """`source` is for people: a path, or what the data is."""

    source: str
    sha256: str


def file_inputs(config: object) -> dict[str, Input]:
    """The files that the settings of a chz object name, by setting. Of a folder its data files and
    weights count. What does not exist, or is no path here, is left to who reads it."""
    return {name: Input(str(path), _digest(path)) for name, path in _named(config) if path.exists()}


def data_input(source: str, items: Iterable[object]) -> Input:
    """Data that is no file of the user's, such as rows from a hub: by `to_plain` of its items."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps(to_plain(item), sort_keys=True, default=str).encode() + b"\n")
    return Input(source, digest.hexdigest())


def input_problems(stored: Mapping[str, Input], given: Mapping[str, Input]) -> list[str]:
    """How `given` differs from what a run or a sweep began with, a message each."""
    problems = []
    for name in {**stored, **given}:
        before, now = stored.get(name), given.get(name)
        if before is not None and now is not None and before.sha256 == now.sha256:
            continue
        source = (now or before or Input("", "")).source
        problems.append(
            f"{name}: {source} holds something else than at the start (sha256 "
            f"{_short(before)} then, {_short(now)} now); bring back what it held, or start a new "
            "run"
        )
    return problems


def _named(config: object) -> Iterator[tuple[str, Path]]:
    if not chz.is_chz(config) or isinstance(config, type):
        return
    for name, field in chz.chz_fields(config).items():
        value: Any = getattr(config, name)
        says = (field.metadata or {}).get("input")
        value = says(value) if callable(says) else value
        if not says or value is None:
            continue
        if isinstance(value, (list, tuple)):
            yield from ((f"{name}.{i}", expanded(item)) for i, item in enumerate(value))
        elif str(value) not in ("", "."):
            yield name, expanded(value)


def _digest(path: Path) -> str:
    if path.is_file():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.is_file() and file.suffix in _READ:
            digest.update(f"{file.name} {_digest(file)}\n".encode())
    return digest.hexdigest()


def _short(value: Input | None) -> str:
    return "none" if value is None else value.sha256[:_SHOWN]
