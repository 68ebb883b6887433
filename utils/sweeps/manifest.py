"""A sweep: its axes, the grid of cells that they span, and the manifest that says how each went.

<folder>/
    sweep.json      the manifest: script, arguments, axes, cells, meta
    logs/<cell>.txt what each cell printed
    <cell>/         the cell's run directory
"""

from __future__ import annotations

import ast
import hashlib
import itertools
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from utils.config.entrypoint import ConfigError, raise_problems
from utils.json_files import read_json
from utils.runs.files import atomic_write_text
from utils.runs.inputs import Input, input_problems
from utils.runs.provenance import run_meta
from utils.terminal import argument_text

Axes = dict[str, list[Any]]
Status = Literal["pending", "running", "done", "failed", "interrupted"]
MANIFEST = "sweep.json"
LONGEST_NAME = 100
EXAMPLE = """'sweep={"lr":[1e-4,1e-3],"seed":[1,2]}'"""


# ---- axes


def parse_axes(text: str) -> Axes:
    """The axes in JSON or as a Python literal; a ValueError says what is wrong with them."""
    try:
        axes = json.loads(text, object_pairs_hook=_pairs)
    except json.JSONDecodeError:
        axes = _literal(text)
    if not isinstance(axes, dict):
        raise ValueError(f"sweep={text}: expected a mapping of keys to lists, such as {EXAMPLE}")
    return axes


def check_axes(axes: Mapping[str, Any], source: str) -> Axes:
    """The axes with plain values; a ConfigError tells everything that is wrong with them."""
    problems, checked = [], {}
    for key, values in axes.items():
        where = f"axis {key!r} (from {source})"
        if not isinstance(key, str) or not re.fullmatch(r"(\.\.\.)?[^\s=@.]+(\.[^\s=@.]+)*", key):
            problems.append(f"{where}: a key is written as on the command line, such as model.size")
        elif key == "log_path":
            problems.append(f"{where}: the sweep gives each cell a log_path of its own")
        elif not isinstance(values, (list, tuple)) or not values:
            problems.append(f"{where}: expected a list of values that is not empty, got {values!r}")
        else:
            try:
                checked[key] = [_plain(value) for value in values]
            except ValueError as error:
                problems.append(f"{where}: {error}")
                continue
            repeated = [text for text, n in _counted(checked[key]).items() if n > 1]
            if repeated:
                problems.append(f"{where}: {', '.join(repeated)} is there more than once")
    bare = [key.removeprefix("...") for key in checked]
    for key in sorted({key for key in bare if bare.count(key) > 1}):
        problems.append(f"axes {key!r} and '...{key}' (from {source}) set the same; keep one")
    raise_problems(problems)
    return checked


def same_text(value: Any) -> str:
    """Text that two values share when a script cannot tell them apart: 1 and 1.0, inf and "inf"."""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return argument_text(value)


def same_values(values: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """`same_text` for all values of a cell, whatever their order."""
    return tuple(sorted((key, same_text(value)) for key, value in values.items()))


def grid(axes: Axes) -> list[dict[str, Any]]:
    """The product of the axes, the first one slowest."""
    return [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]


def axis_labels(keys: Sequence[str]) -> dict[str, str]:
    """The shortest end of each dotted key that no other key ends with: `size` for `model.size`."""
    bare = {key: key.removeprefix("...") for key in keys}
    labels = {}
    for key, name in bare.items():
        parts = name.split(".")
        ends = [".".join(parts[-n:]) for n in range(1, len(parts) + 1)]
        others = [other for other_key, other in bare.items() if other_key != key]
        labels[key] = next(
            (end for end in ends if not any(f".{other}".endswith(f".{end}") for other in others)),
            name,
        )
    return labels


def folder_name(values: Mapping[str, Any]) -> str:
    """`hidden_size=32,num_tasks=4` for dotted keys and their values: letters, digits and ._+-,= and
    at most 100 of them, the last eight a hash where something had to be cut."""
    labels = axis_labels(list(values))
    name = ",".join(f"{_safe(labels[key])}={_safe(value)}" for key, value in values.items())
    return _with_hash(name, values) if len(name) > LONGEST_NAME else name


def last_lines(text: str, count: int = 8) -> str:
    """The last `count` lines that are not empty; progress bars end theirs with \\r."""
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", text) if line.strip()]
    return "\n".join(lines[-count:])


def is_seed(key: str) -> bool:
    """Whether cells along this axis repeat each other."""
    return key.removeprefix("...").split(".")[-1] == "seed"


# ---- the manifest


@dataclass
class Cell:
    """One run of a sweep. `folder` is relative to the sweep's, `seconds` of the last attempt."""

    name: str
    folder: str
    values: dict[str, Any]
    status: Status = "pending"
    returncode: int | None = None
    error: str | None = None  # the last lines of its log
    seconds: float | None = None
    started: str | None = None
    finished: str | None = None


@dataclass
class Manifest:
    """What sweep.json holds."""

    script: str
    arguments: list[str]
    axes: Axes
    cells: list[Cell]
    meta: dict[str, Any]
    inputs: dict[str, Input]  # what the cells' files held at the start, by path

    def save(self, folder: Path) -> None:
        """Write it, whole or not at all."""
        inputs = {path: held.sha256 for path, held in self.inputs.items()}
        plain = asdict(self) | {"inputs": inputs}
        atomic_write_text(folder / MANIFEST, json.dumps(plain, indent=2) + "\n")


def load_manifest(folder: Path) -> Manifest | None:
    """The manifest in `folder`, None where there is none; a ConfigError for what is not one."""
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        stored = read_json(path)
        cells = [Cell(**cell) for cell in stored.pop("cells")]
        # sweeps of older versions have none
        held = stored.pop("inputs", {})
        inputs = {path: Input(path, digest) for path, digest in held.items()}
        names = {field.name for field in fields(Manifest)} - {"cells", "inputs"}
        return Manifest(**{name: stored[name] for name in names}, cells=cells, inputs=inputs)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{path} is not the manifest of a sweep ({type(error).__name__}: {error}); "
            "move it away, or give another log_path="
        ) from error


def open_manifest(
    folder: Path,
    script: str,
    arguments: Sequence[str],
    axes: Axes,
    inputs: Mapping[str, Input] | None = None,
) -> tuple[Manifest, list[Cell]]:
    """The manifest for these axes, and its cells that they span, in the grid's order.

    Goes on with the one in `folder`, whose axes may get new values; a ConfigError tells what else
    differs from it, and which of the `inputs` (by path) hold something else than for its first
    cells. Nothing is written.
    """
    inputs = dict(inputs or {})
    manifest = load_manifest(folder)
    if manifest is None:
        manifest = Manifest(script, list(arguments), {}, [], run_meta(), {})
        axes_before: Axes = {key: [] for key in axes}
    else:
        _require_same(manifest, folder, script, arguments, axes)
        # files of other values of an axis are new, or not asked for now
        both = {path: held for path, held in manifest.inputs.items() if path in inputs}
        changed = input_problems(both, {path: inputs[path] for path in both})
        if changed:
            told = f"{folder} has cells of other data; the rest needs the same"
            raise ConfigError([told, *changed])
        axes_before = manifest.axes
    manifest.inputs |= inputs
    manifest.axes = {key: _joined(axes_before[key], axes[key]) for key in axes_before}
    by_values = {same_values(cell.values): cell for cell in manifest.cells}
    taken = {cell.name.casefold() for cell in manifest.cells}
    cells = []
    for values in grid(axes):
        values = {key: values[key] for key in manifest.axes}
        cell = by_values.get(same_values(values))
        if cell is None:
            name = folder_name(values)
            # names that differ only in case are one folder on some file systems
            if name.casefold() in taken:
                name = _with_hash(name, values)
            taken.add(name.casefold())
            cell = Cell(name, name, values)
            manifest.cells.append(cell)
        elif cell.status == "running":
            # its sweep was killed
            cell.status = "interrupted"
        cells.append(cell)
    return manifest, cells


# ---------------------------------------------------------------------------------------------


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    _require_once([key for key, _ in pairs])
    return dict(pairs)


def _require_once(keys: Sequence[Any]) -> None:
    for key in keys:
        if keys.count(key) > 1:
            raise ValueError(f"sweep: key {key!r} is given twice")


def _literal(text: str) -> Any:
    try:
        tree = ast.parse(text.strip(), mode="eval")
        value = ast.literal_eval(tree)
    except (ValueError, SyntaxError, TypeError, RecursionError) as error:
        raise ValueError(
            f"sweep={text}: neither JSON nor a Python literal ({error}); write it as {EXAMPLE}"
        ) from error
    if isinstance(tree.body, ast.Dict):
        _require_once([ast.literal_eval(key) for key in tree.body.keys if key is not None])
    return value


def _plain(value: Any) -> Any:
    """`value` as JSON keeps it."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        # JSON has no such numbers, and on the command line they are the same
        return value if math.isfinite(value) else str(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: _plain(item) for key, item in value.items()}
    raise ValueError(
        f"{value!r}: values are numbers, text, true, false, null, lists or mappings of them"
    )


def _counted(values: Sequence[Any]) -> dict[str, int]:
    texts = [same_text(value) for value in values]
    return {text: texts.count(text) for text in texts}


def _joined(before: Sequence[Any], now: Sequence[Any]) -> list[Any]:
    known = {same_text(value) for value in before}
    return [*before, *(value for value in now if same_text(value) not in known)]


def _with_hash(name: str, values: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(repr(same_values(values)).encode()).hexdigest()[:8]
    return f"{name[: LONGEST_NAME - 9]}-{digest}"


def _safe(value: Any) -> str:
    if isinstance(value, list):
        return "+".join(_safe(item) for item in value)
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", argument_text(value))


def _require_same(
    manifest: Manifest, folder: Path, script: str, arguments: Sequence[str], axes: Axes
) -> None:
    problems = []
    if manifest.script != script:
        problems.append(f"script: stored {manifest.script}, given {script}")
    else:
        stored, given = _last_values(manifest.arguments), _last_values(arguments)
        for key in {**stored, **given}:
            before, now = stored.get(key, "(absent)"), given.get(key, "(absent)")
            if before != now:
                problems.append(f"{key}: stored {before}, given {now}")
        if set(manifest.axes) != set(axes):
            problems.append(f"axes: stored {', '.join(manifest.axes)}, given {', '.join(axes)}")
    if problems:
        raise ConfigError(
            [
                f"{folder} holds a sweep that was started otherwise; to go on with it give the "
                "same (axes may get new values), for another one another log_path=",
                *problems,
            ]
        )


def _last_values(arguments: Sequence[str]) -> dict[str, str]:
    return {key: value for key, _, value in (a.partition("=") for a in arguments)}
