"""A config object from all its layers, or every problem of them at once.

Each value is offered to chz by itself, so that every refusal is heard and not just the first.
"""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import chz
from chz.blueprint import (
    ConstructionException,
    ExtraneousBlueprintArg,
    InvalidBlueprintArg,
    MissingBlueprintArg,
)

from utils.config.errors import ConfigError
from utils.config.layers import Layer, Settled, read_sources, script_name, settle
from utils.config.types import Rejected, Shape, chz_arms, expected_type, fields_of, wants_text

logger = logging.getLogger(__name__)

T = TypeVar("T")
REFUSALS = (ConstructionException, ExtraneousBlueprintArg, InvalidBlueprintArg, MissingBlueprintArg)


def load_config(
    target: Callable[..., T],
    argv: Sequence[str],
    *,
    layers: Sequence[str] = ("config_file",),
    script: str | None = None,
) -> T:
    """The config object that `argv`, its preset and its YAML layers describe, or a ConfigError with
    every unknown key, class, preset or environment variable, wrong type, missing or malformed file,
    missing argument and failed validation.

    `script` is whose presets are taken; default: the file that defines `target`. A path given for a
    field with `metadata={"must_exist": True}` has to exist. Settings of lower layers that do not
    fit a class which a higher layer chose are left out, and logged.
    """
    view = view_of(target, argv, layers, script)
    problems = list(view.problems)
    try:
        config = _blueprint(target, view.layers).make()
    except MissingBlueprintArg as error:
        names = str(error).rpartition(": ")[2].split(", ")
        names = [name for name in names if name.split(".")[0] not in view.rejected]
        # an unreadable file may well have held them
        if names and not view.unreadable:
            problems.append(f"missing: {', '.join(f'{name}=...' for name in names)}")
    except REFUSALS as error:
        if not problems:
            problems.append(_tidy(str(error)))
    except ValueError as error:
        # with values left out, a validator may complain about what nobody wrote
        if not view.rejected and not view.unreadable:
            problems += error.problems if isinstance(error, ConfigError) else [str(error)]
    else:
        if not problems:
            for note in view.notes:
                logger.warning("%s", note)
            return config
    raise ConfigError(problems)


class View(NamedTuple):
    """What there is to build a config of, and all that is wrong with it."""

    shape: Shape
    layers: list[Layer]  # what chz accepts, lowest first
    problems: list[str]
    rejected: set[str]  # top-level fields with a value left out
    unreadable: bool
    notes: list[str]


def view_of(
    target: Callable[..., object], argv: Sequence[str], layers: Sequence[str], script: str | None
) -> View:
    """Of `target`, as load_config takes them."""
    sources = read_sources(target, argv, layers, script or script_name(target))
    settled = settle(target, sources.layers)
    accepted, problems, rejected = _offer(target, settled)
    return View(
        settled.shape,
        accepted,
        [*sources.problems, *settled.problems, *problems],
        settled.rejected | rejected,
        sources.unreadable,
        settled.notes,
    )


def _offer(
    target: Callable[..., object], settled: Settled
) -> tuple[list[Layer], list[str], set[str]]:
    """Offer each value to chz, one at a time, so that every refusal is heard and not just the
    first. Values of one nested config are tried on top of each other: they depend on another, and
    all depend on the classes that are chosen. The layers that chz accepts, the problems, and the
    top-level fields with a value left out."""
    problems: list[str] = []
    rejected: set[str] = set()
    classes = [
        layer._replace(values={k: v for k, v in layer.values.items() if k in settled.choice_keys})
        for layer in settled.layers
    ]
    accepted = [layer._replace(values=dict(layer.values)) for layer in classes]
    entries: dict[str, list[tuple[int, str]]] = {}
    for index, layer in enumerate(settled.layers):
        for key in sorted(layer.values, key=lambda key: key.count(".")):
            if key not in settled.choice_keys and not isinstance(layer.values[key], Rejected):
                entries.setdefault(_root(key), []).append((index, key))
    for places in entries.values():
        held = [layer._replace(values=dict(layer.values)) for layer in classes]
        for index, key in places:
            layer = settled.layers[index]
            value = held[index].values[key] = layer.values[key]
            try:
                _blueprint(target, held).apply({}, strict=True)
                _require_file(settled.shape, key, value)
            except (*REFUSALS, TypeError, ValueError, OSError) as error:
                del held[index].values[key]
                problems.append(_describe(settled.shape, key, value, layer.place, error))
                if not isinstance(error, ExtraneousBlueprintArg):
                    rejected.add(_root(key))
            else:
                accepted[index].values[key] = value
    return accepted, problems, rejected


def _blueprint(target: Callable[..., T], layers: Sequence[Layer]) -> chz.Blueprint[T]:
    blueprint = chz.Blueprint(target)
    for layer in layers:
        blueprint.apply(layer.values, layer_name=layer.source)
    return blueprint


def _describe(shape: Shape, key: str, value: Any, place: str, error: Exception) -> str:
    text = value.value if isinstance(value, chz.Castable) else value
    if isinstance(error, ExtraneousBlueprintArg):
        return f"{key} (from {place}): {_unknown(shape, key, error)}"
    if isinstance(error, OSError):
        return f"{key} (from {place}): {error}"
    missing = shape.missing_at(key)
    if missing is not None and shape.choices.get(missing.path, missing) is None:
        return f"{key} (from {place}): {missing.path} is None, so nothing of it can be set"
    annotation = shape.type_at(key)
    if annotation is not None and not chz_arms(annotation):
        # a shell takes the double quotes away where there are no single ones around them
        typed = isinstance(value, chz.Castable) and text.startswith("[")
        quoted = f'; write \'{key}=["first","second"]\', quotes included'
        hint = quoted if typed and wants_text(annotation) else ""
        return f"{key} (from {place}): expected {expected_type(annotation)}, got {text!r}{hint}"
    return f"{key} (from {place}): {_tidy(str(error))}"


def _unknown(shape: Shape, key: str, error: ExtraneousBlueprintArg) -> str:
    """What is to be said of a key that chz has no use for."""
    missing = shape.missing_at(key)
    owner = shape.class_at(missing.path) if missing else None
    if missing is None or owner is None:
        advice = [line for line in str(error).split("\n") if line.startswith("Did you")]
        return " ".join(["unknown key.", *advice])
    path, name = missing
    prefix = f"{path}." if path else ""
    of_class = f" of {owner.__name__}" if path else ""
    advice = [line for line in str(error).split("\n") if line.startswith("Did you get")]
    others = [cls.__name__ for cls in shape.classes_at(path) if name in fields_of(cls)]
    close = [] if others else difflib.get_close_matches(name, list(fields_of(owner)), n=1)
    advice += [f"Did you mean {prefix + other!r}?" for other in close]
    if path and others:
        advice.append(f"{' and '.join(others)} has it: {path}={others[0]}.")
    return " ".join([f"unknown key{of_class}.", *advice])


def _require_file(shape: Shape, key: str, value: Any) -> None:
    field = shape.field_at(key)
    if field is None or not (field.metadata or {}).get("must_exist"):
        return
    text = value.value if isinstance(value, chz.Castable) else value
    items = text if isinstance(text, (list, tuple)) else [text]
    for path in items:
        if path not in (None, "None") and not Path(path).exists():
            raise FileNotFoundError(f"{path}: no such file or folder")


def _root(key: str) -> str:
    return key if key.startswith("...") else key.split(".")[0]


def _tidy(text: str) -> str:
    """A message of chz without its blank lines and its advice about the command."""
    lines = [line.strip() for line in text.split("\n")]
    return " ".join(line for line in lines if line and not line.startswith("Append --help"))
