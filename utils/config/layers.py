"""The layers of a config: what the command line, the files and the preset say, and how they are
settled with each other before chz sees them."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chz
from chz.blueprint import Reference

from utils.config.env_values import OPENING, resolve_env
from utils.config.errors import ConfigError
from utils.config.plain_yaml import load_yaml, unquoted
from utils.config.presets import load_preset
from utils.config.types import (
    Choice,
    Missing,
    Rejected,
    Shape,
    cast_argument,
    chz_arms,
    coerce,
    fields_of,
    holds_objects,
    wants_text,
)
from utils.runs.files import expanded, shown_path

COMMAND_LINE = "command line"
PRESET_KEY = "experiment"
# names of earlier systems, for the setting that means the same
ALSO = {"model_dir": "model_name"}
FLAGS = ("--help", "-h", "--check")


class RawLayer(NamedTuple):
    """What one source says, environment variables filled in."""

    source: str  # as --help names it
    place: str  # as errors name it
    values: dict[str, Any]
    is_text: bool  # of the command line, not of YAML
    file: Path | None = None  # that it was read from


class Sources(NamedTuple):
    layers: list[RawLayer]  # lowest first
    problems: list[str]
    unreadable: bool  # a source is missing that may have held more


class Layer(NamedTuple):
    source: str
    place: str
    values: dict[str, Any]  # as chz.Blueprint takes them, or Rejected


class Settled(NamedTuple):
    """Layers that agree on the classes of all objects."""

    shape: Shape
    layers: list[Layer]
    choice_keys: set[str]  # the keys that name classes
    problems: list[str]
    rejected: set[str]  # top-level fields with a value left out
    notes: list[str]  # what lower layers said that fits no more


class Given(NamedTuple):
    value: Any  # text from the command line, else as YAML has it
    source: str


def script_name(defined: Any) -> str:
    """The stem of the file that defines a function or class, by which presets know the script."""
    try:
        return Path(inspect.getfile(inspect.unwrap(defined))).stem
    except (TypeError, OSError):  # of an interpreter without a file
        return Path(sys.argv[0]).stem


def given_value(
    target: Callable[..., object],
    argv: Sequence[str],
    name: str,
    *,
    layers: Sequence[str] = ("config_file",),
    script: str | None = None,
) -> Given | None:
    """What the highest layer says of the top-level field `name` that mentions it, and which layer
    that is (COMMAND_LINE, `preset NAME` or a file); None where none does. Layers that cannot be
    read are passed over: load_config complains of them."""
    sources = read_sources(target, argv, layers, script or script_name(target))
    for layer in reversed(sources.layers):
        if name in layer.values and not isinstance(layer.values[name], Rejected):
            return Given(layer.values[name], layer.source)
    return None


def read_sources(
    target: Callable[..., object],
    argv: Sequence[str],
    layer_names: Sequence[str],
    script: str | None,
) -> Sources:
    """All layers as they stand: the preset, the files, the command line."""
    fields = fields_of(target)
    arguments, problems = _parse_argv(argv)
    _rename(arguments, fields, COMMAND_LINE, problems)
    layers: list[RawLayer] = []
    unreadable = False
    below: dict[str, Any] = {}

    def path_of(name: str) -> Any:
        given = arguments.get(name, below.get(name))
        if name not in fields:
            arguments.pop(name, None)
        return given

    def add(
        source: str, place: str, file: Path, values: dict[str, Any], files_above: Sequence[str]
    ) -> None:
        if PRESET_KEY not in fields and PRESET_KEY in values:
            problems.append(
                f"{PRESET_KEY} (from {place}): a preset is chosen on the command line, "
                f"{PRESET_KEY}={values.pop(PRESET_KEY)}"
            )
        values = {str(key): value for key, value in values.items()}
        resolved = {k: _resolved(v, k, place, problems) for k, v in values.items()}
        _rename(resolved, fields, place, problems)
        below.update(resolved)
        # a layer may name the files above it, which need not be fields
        kept = {k: v for k, v in resolved.items() if k in fields or k not in files_above}
        layers.append(RawLayer(source, place, kept, is_text=False, file=file))

    if PRESET_KEY not in fields and (name := path_of(PRESET_KEY)) is not None:
        unreadable = True
        if not isinstance(name, Rejected):
            try:
                preset = load_preset(str(name), script)
            except ConfigError as error:
                problems += error.problems
            else:
                unreadable = False
                name_field = {"name": preset.name} if "name" in fields else {}
                values = {**name_field, **preset.values}
                source = f"preset {preset.name}"
                place = f"{source}, {shown_path(preset.path)}"
                add(source, place, preset.path, values, layer_names)
    for position, name in enumerate(layer_names):
        path = path_of(name)
        if isinstance(path, Rejected):
            unreadable = True
            continue
        if path in (None, "", "None"):
            continue
        try:
            values = load_yaml(path)
        except (OSError, ValueError) as error:
            problems.append(f"{name}={error}" if isinstance(error, OSError) else str(error))
            unreadable = True
            continue
        if "meta" not in fields:
            # a run's config.yaml keeps how it was made beside the settings
            values.pop("meta", None)
        add(str(path), str(path), expanded(path), values, layer_names[position + 1 :])
    layers.append(RawLayer(COMMAND_LINE, COMMAND_LINE, arguments, is_text=True))
    return Sources(layers, problems, unreadable)


def _rename(
    values: dict[str, Any], fields: Mapping[str, Any], place: str, problems: list[str]
) -> None:
    """Gives the settings of one layer their own names; both names with different values are a
    problem."""
    for other, name in ALSO.items():
        if other not in values or other in fields or name not in fields:
            continue
        value = values.pop(other)
        if name in values and values[name] != value:
            problems.append(
                f"{other}={value} and {name}={values[name]} (from {place}) are one setting; keep "
                "one of them"
            )
        values.setdefault(name, value)


def _parse_argv(argv: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    arguments: dict[str, Any] = {}
    problems: list[str] = []
    for argument in argv:
        if argument in FLAGS:
            continue
        key, equals, value = argument.partition("=")
        if not equals or not key:
            problems.append(f"{argument!r}: arguments are written key=value")
        elif key == "--help":
            problems.append(f"{argument!r}: write --help {value}")
        elif key.startswith("-"):
            problems.append(f"{argument!r}: write {argument.lstrip('-')}, without dashes")
        elif key.endswith("@"):
            arguments[key.removesuffix("@")] = Reference(value)
        elif not _is_text(value):
            problems.append(
                f"{key} (from {COMMAND_LINE}): {value!r} has bytes that are no UTF-8; a run's "
                "files cannot name it, so give it another name"
            )
            arguments[key] = Rejected()
        else:
            resolved = _resolved(value, key, COMMAND_LINE, problems)
            arguments[key] = "None" if resolved is None else resolved
    return arguments, problems


def _is_text(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _resolved(value: Any, key: str, place: str, problems: list[str]) -> Any:
    """`value` with its environment variables filled in, Rejected where one is not set."""
    if isinstance(value, str) and OPENING in value:
        try:
            return resolve_env(value)
        except ValueError as error:
            problems.append(f"{key} (from {place}): {error}")
            return Rejected()
    if isinstance(value, dict):
        return {k: _resolved(v, f"{key}.{k}", place, problems) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolved(v, f"{key}.{i}", place, problems) for i, v in enumerate(value)]
    return value


# ------------------------------------------------------------------------------ settling the layers


class _Flat(NamedTuple):
    """One layer taken apart: a value per dotted key, of the type of its field."""

    values: dict[str, Any]
    problems: list[str]


class _Chosen(NamedTuple):
    layer: int
    cls: type[Any] | None


def settle(target: Callable[..., object], raw: Sequence[RawLayer]) -> Settled:
    """Bring the layers together. The class that the highest layer names for an object counts, by
    `model=MLP`, `model: MLP`, `model: {type: MLP, ...}` or `model.type`. What lower layers set for
    a field that this class has is kept; where only the class they were written for has the field,
    it is left out with a note. A field that neither has is unknown."""
    shape = Shape(target)
    while True:
        # classes chosen inside of an object are known once its own class is
        flats = [_flatten(shape, layer) for layer in raw]
        chosen, problems, invalid = _choices(shape, raw, flats)
        choices = {key: of_key[-1].cls for key, of_key in chosen.items()}
        if choices == shape.choices:
            break
        shape = Shape(target, choices)
    problems += [problem for flat in flats for problem in flat.problems]
    layers: list[Layer] = []
    left_out: dict[tuple[int, str], list[str]] = {}
    for index, (layer, flat) in enumerate(zip(raw, flats, strict=True)):
        kept: dict[str, Any] = {}
        for key, value in flat.values.items():
            missing = shape.missing_at(key)
            if any(key == path or key.startswith(f"{path}.") for path in invalid):
                continue
            if missing is not None and _was_meant(shape, chosen, missing, index):
                left_out.setdefault((index, missing.path), []).append(key)
            elif not isinstance(value, Choice):
                kept[key] = value
            elif key in chosen:
                kept[key] = None if value.name in (None, "None") else chz.Castable(value.name)
        layers.append(Layer(layer.source, layer.place, kept))
    rejected = {key.split(".")[0] for key in invalid}
    rejected |= {
        key.split(".")[0] for layer in layers for key, v in layer.values.items() if _is_rejected(v)
    }
    notes = [
        f"{path}: left out {', '.join(keys)} (from {raw[index].place}), no fields of "
        f"{_class_name(shape.class_at(path))} (from {raw[chosen[path][-1].layer].place})"
        for (index, path), keys in left_out.items()
    ]
    return Settled(shape, layers, set(choices), problems, rejected, notes)


def _is_rejected(value: Any) -> bool:
    if isinstance(value, dict):
        return any(_is_rejected(item) for item in value.values())
    if isinstance(value, list):
        return any(_is_rejected(item) for item in value)
    return isinstance(value, Rejected)


def _class_name(cls: type[Any] | None) -> str:
    return "None" if cls is None else cls.__name__


def _flatten(shape: Shape, layer: RawLayer) -> _Flat:
    flat = _Flat({}, [])
    for key, value in layer.values.items():
        for path, item in _taken_apart(shape, key, value, layer, flat.problems):
            if path in flat.values:
                flat.problems.append(f"{path} (from {layer.place}): given twice")
            flat.values[path] = item
    return flat


def _taken_apart(
    shape: Shape, key: str, value: Any, layer: RawLayer, problems: list[str]
) -> Iterator[tuple[str, Any]]:
    annotation = shape.type_at(key)
    if isinstance(value, dict) and chz_arms(annotation):
        for name, item in value.items():
            yield from _taken_apart(shape, f"{key}.{name}", item, layer, problems)
    elif isinstance(value, list) and value and holds_objects(annotation):
        for index, item in enumerate(value):
            yield from _taken_apart(shape, f"{key}.{index}", item, layer, problems)
    elif _is_rejected(value):
        yield key, Rejected()
    elif isinstance(value, Reference):
        yield key, value
    elif (path := shape.parent_of_type(key)) is not None:
        yield path, Choice(value)
    elif shape.takes_class(key, value):
        yield key, Choice(value)
    elif annotation is None and not layer.is_text:
        yield key, value
    else:
        fit = cast_argument if layer.is_text else coerce
        try:
            yield key, fit(value, annotation)
        except ValueError as error:
            hint = _quoting_hint(layer.file, key, annotation)
            problems.append(f"{key} (from {layer.place}): {error}{hint}")
            yield key, Rejected()


def _quoting_hint(file: Path | None, key: str, annotation: Any) -> str:
    """Where YAML made numbers of what should be text: what is written there."""
    found = unquoted(file, key) if file is not None and wants_text(annotation) else []
    if not found:
        return ""
    quoted = ", ".join(f'"{text}"' for text in found)
    return f"; {', '.join(found)} is no text to YAML: put it in quotes, {quoted}"


def _choices(
    shape: Shape, raw: Sequence[RawLayer], flats: Sequence[_Flat]
) -> tuple[dict[str, list[_Chosen]], list[str], set[str]]:
    """The classes chosen at each path, lowest layer first; what is wrong, and at which paths."""
    chosen: dict[str, list[_Chosen]] = {}
    problems: list[str] = []
    invalid: set[str] = set()
    for index, (layer, flat) in enumerate(zip(raw, flats, strict=True)):
        for key, value in flat.values.items():
            if not isinstance(value, Choice):
                continue
            try:
                cls = shape.class_named(key, value.name, allow_modules=layer.is_text)
            except ValueError as error:
                problems.append(f"{key} (from {layer.place}): {error}")
                invalid.add(key)
            else:
                chosen.setdefault(key, []).append(_Chosen(index, cls))
    for key, of_key in list(chosen.items()):
        # an object that a lower layer leaves out is there again when a higher one sets its fields
        last = of_key[-1]
        if last.cls is None and any(
            path.startswith(f"{key}.") for flat in flats[last.layer + 1 :] for path in flat.values
        ):
            del chosen[key]
    return chosen, problems, invalid


def _was_meant(
    shape: Shape, chosen: Mapping[str, Sequence[_Chosen]], missing: Missing, layer: int
) -> bool:
    """Whether a layer set the field for a class that a higher layer replaced."""
    if missing.path not in chosen:
        return False
    below = [choice.cls for choice in chosen[missing.path] if choice.layer <= layer]
    return missing.name in fields_of(below[-1] if below else shape.default_class_at(missing.path))
