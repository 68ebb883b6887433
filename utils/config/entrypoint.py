"""The command line of a script: its settings from presets, YAML layers and key=value, its help.

The layers, each over those before it: the preset of `experiment=NAME` (presets.py), the files
(`config_file=PATH`), the command line. Text in them may name environment variables,
`${oc.env:VAR}` or `${oc.env:VAR,default}`. How the layers agree on the class of a nested config is
said in layers.py (`settle`).
"""

from __future__ import annotations

import contextlib
import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import chz

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
    wrapped,
    wrapped_docstring,
)
from utils.config.layers import COMMAND_LINE, PRESET_KEY, Given, Layer, given_value, script_name
from utils.config.load import load_config, view_of
from utils.config.plain_yaml import dump_yaml, load_yaml, to_plain, yaml_text
from utils.config.presets import presets_text
from utils.config.types import fields_of
from utils.openmp import bound_spinning
from utils.runs.inputs import file_inputs
from utils.terminal import print_anything, visible, wants_colour

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

T = TypeVar("T")
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
            color=wants_colour(),
        )
        print(text, end="")
        sys.exit(0)
    raise AssertionError("both ways end the program")


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
    shown = "\n".join(visible(line) for line in f"Error: {error}".split("\n"))
    print(shown, file=sys.stderr)
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
    view = view_of(target, argv, layers, script)
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
