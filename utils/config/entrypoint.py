"""chz configs from presets, YAML layers and the command line, with every problem told at once.

The layers, each over those before it: the preset of `experiment=NAME` (presets.py), the files
(`config_file=PATH`), the command line. Text in them may name environment variables,
`${oc.env:VAR}` or `${oc.env:VAR,default}`. How the layers agree on the class of a nested config is
said in layers.py (`settle`).
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import json
import logging
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeVar

import chz
from chz.blueprint import (
    ConstructionException,
    ExtraneousBlueprintArg,
    InvalidBlueprintArg,
    MissingBlueprintArg,
)

from utils.config.errors import (
    ConfigError,
    as_config_errors,
    held_log,
    problems_of,
    raise_problems,
)
from utils.config.help import (
    GivenValue,
    Page,
    terminal_width,
    wants_color,
    wrapped,
    wrapped_docstring,
)
from utils.config.layers import (
    COMMAND_LINE,
    PRESET_KEY,
    Given,
    Layer,
    Settled,
    given_value,
    read_sources,
    script_name,
    settle,
)
from utils.config.plain_yaml import dump_yaml, load_yaml, to_plain, yaml_text
from utils.config.presets import presets_text
from utils.config.types import Rejected, Shape, chz_arms, expected_type, fields_of, wants_text
from utils.openmp import bound_spinning
from utils.runs.inputs import file_inputs
from utils.terminal import print_anything

__all__ = [
    "COMMAND_LINE",
    "ConfigError",
    "Given",
    "as_config_errors",
    "check_config",
    "config_entrypoint",
    "config_help",
    "dump_yaml",
    "exit_on_config_error",
    "given_value",
    "held_log",
    "load_config",
    "load_yaml",
    "problems_of",
    "raise_problems",
    "script_name",
    "to_plain",
    "yaml_text",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")
REFUSALS = (ConstructionException, ExtraneousBlueprintArg, InvalidBlueprintArg, MissingBlueprintArg)
CHECK = "--check"


def config_entrypoint(
    main: Callable[[Any], T],
    argv: Sequence[str] | None = None,
    *,
    layers: Sequence[str] = ("config_file",),
    script: str | None = None,
) -> T:
    """Like chz.nested_entrypoint, with `experiment=NAME` as a preset of `script` (default: the file
    that defines `main`) and `NAME=PATH` for each name in `layers` as a YAML layer over it.

    Later names lie above earlier ones and the command line above all of them, also where it repeats
    a default. All problems are told together on stderr with exit code 2, before `main` runs; so are
    those of a ConfigError that `main` raises. An async `main` is run to its end.

    With `--check` the result of `check_config` is printed, one line of JSON, and the program ends,
    with 0 where there are no problems and else with 2.
    """
    print_anything()
    bound_spinning()
    argv = sys.argv[1:] if argv is None else list(argv)
    script = script or script_name(main)
    target = chz.get_nested_target(main)
    if wants_help(argv):
        doc = inspect.unwrap(main).__globals__.get("__doc__")
        exit_with_help(target, argv, layers=layers, script=script, doc=doc)
    if CHECK in argv:
        _exit_checked(check_config(target, argv, layers=layers, script=script))
    with exit_on_config_error(argv):
        result: Any = main(load_config(target, argv, layers=layers, script=script))
        if inspect.iscoroutine(result):
            import asyncio

            result = asyncio.run(result)
        return result


@contextlib.contextmanager
def exit_on_config_error(argv: Sequence[str] | None = None) -> Iterator[None]:
    """Prints a ConfigError tidily and ends the program with code 2; as check_config's JSON where
    `argv` (default: the process's) has `--check`."""
    try:
        yield
    except ConfigError as error:
        if CHECK in (sys.argv[1:] if argv is None else argv):
            _exit_checked(_checked(error.problems))
        _exit_with(error)


def wants_help(argv: Sequence[str]) -> bool:
    return "--help" in argv or "-h" in argv


def exit_with_help(
    target: Callable[..., object],
    argv: Sequence[str],
    *,
    layers: Sequence[str] = ("config_file",),
    script: str | None = None,
    doc: str | None = None,
) -> NoReturn:
    """Prints config_help as fits the terminal and ends the program. Words of `argv` that are
    neither flags nor key=value are the settings to show."""
    topics = [a for a in argv if "=" not in a and not a.startswith("-")]
    others = [a for a in argv if a not in topics]
    with exit_on_config_error(argv):
        text = config_help(
            target,
            others,
            layers=layers,
            script=script,
            doc=doc,
            topics=topics,
            width=terminal_width(),
            color=wants_color(),
        )
        print(text, end="")
        sys.exit(0)
    raise AssertionError("both ways end the program")


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
    view = _view(target, argv, layers, script)
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


def check_config(
    target: Callable[..., object],
    argv: Sequence[str],
    *,
    layers: Sequence[str] = ("config_file",),
    script: str | None = None,
) -> dict[str, Any]:
    """What load_config makes of `argv`, as plain values: its `problems`, the `config` (None with
    problems) and the config's `experiment_dir` as text where it has such an attribute."""
    try:
        config = load_config(target, argv, layers=layers, script=script)
    except ConfigError as error:
        return _checked(error.problems)
    return _checked([], config)


def _checked(problems: Sequence[str], config: object = None) -> dict[str, Any]:
    folder = getattr(config, "experiment_dir", None)
    return {
        "problems": list(problems),
        "config": to_plain(config),
        "experiment_dir": None if folder is None else str(folder),
        "inputs": {name: held._asdict() for name, held in file_inputs(config).items()},
    }


def _exit_checked(checked: dict[str, Any]) -> NoReturn:
    print(json.dumps(checked), flush=True)
    sys.exit(2 if checked["problems"] else 0)


def _exit_with(error: ConfigError) -> NoReturn:
    print(f"Error: {error}", file=sys.stderr)
    print(
        "Append --help for all arguments, their values and where they come from.", file=sys.stderr
    )
    sys.exit(2)


def config_help(
    target: Callable[..., object],
    argv: Sequence[str],
    *,
    layers: Sequence[str] = ("config_file",),
    script: str | None = None,
    doc: str | None = None,
    topics: Sequence[str] = (),
    width: int = 80,
    color: bool = False,
) -> str:
    """The help text: `doc`, then each setting with its type, its value (and where that is from) or
    default, and its doc; problems come first. Of `topics`, settings by dotted name, there is all
    that is folded on the whole page. Raises ConfigError for a topic that is no setting."""
    script = script or script_name(target)
    view = _view(target, argv, layers, script)
    notes = [f"WARNING: {problem}" for problem in view.problems]
    notes += [f"NOTE: {note}" for note in view.notes]
    lines = [
        line for note in notes for part in note.split("\n") for line in wrapped(part, width, "    ")
    ]
    lines += [""] if lines else []
    page = Page(view.shape, _given_values(view.layers), width=width, color=color)
    if topics:
        lines += [line for topic in topics for line in page.topic(topic)]
        return "\n".join(lines).rstrip() + "\n"
    lines += wrapped_docstring(doc, width) if doc else []
    lines += page.settings()
    if layers:
        lines += _sources_help(target, layers, script, width)
    return "\n".join(lines).rstrip() + "\n"


def _given_values(layers: Sequence[Layer]) -> dict[str, GivenValue]:
    return {
        key: GivenValue(value, layer.source)
        for layer in layers
        for key, value in layer.values.items()
    }


def _sources_help(
    target: Callable[..., object], layers: Sequence[str], script: str | None, width: int
) -> list[str]:
    """How settings are written, and where they may stand besides the command line."""
    files = " and ".join(f"{name}=PATH" for name in layers)
    has_presets = PRESET_KEY not in fields_of(target)
    presets = presets_text(script, indent="  ") if has_presets else ""
    texts = [
        'Settings are key=value; lists are a,b or \'["a","b"]\', entries of a map name.key=value. '
        "`--help NAME` shows one setting in full, and what is folded under it.",
        f"{files}: a YAML file of settings, under the command line."
        + (f" {PRESET_KEY}=NAME: experiments/NAME.yaml, under that" if has_presets else "")
        + (":" if presets else "." if has_presets else ""),
    ]
    lines = [line for text in texts for line in wrapped(text, width)]
    for preset in presets.split("\n") if presets else []:
        indent = len(preset) - len(re.sub(r"^ *\S+ *", "", preset))
        lines += wrapped(preset, width, " " * indent)
    more = (
        "${oc.env:VAR} and ${oc.env:VAR,default} in values stand for environment variables. "
        f"{CHECK} looks for mistakes in all of this and stops; it prints a line of JSON."
    )
    return lines + wrapped(more, width)


# ---------------------------------------------------------------------------------------------


class _View(NamedTuple):
    """What there is to build a config of, and all that is wrong with it."""

    shape: Shape
    layers: list[Layer]  # what chz accepts, lowest first
    problems: list[str]
    rejected: set[str]  # top-level fields with a value left out
    unreadable: bool
    notes: list[str]


def _view(
    target: Callable[..., object], argv: Sequence[str], layers: Sequence[str], script: str | None
) -> _View:
    sources = read_sources(target, argv, layers, script or script_name(target))
    settled = settle(target, sources.layers)
    accepted, problems, rejected = _offer(target, settled)
    return _View(
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
