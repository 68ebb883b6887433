"""chz configs from YAML layers and the command line, with every problem told at once."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import difflib
import enum
import inspect
import sys
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

import chz
import yaml
from chz.blueprint import (
    ConstructionException,
    ExtraneousBlueprintArg,
    InvalidBlueprintArg,
    MissingBlueprintArg,
    Reference,
)
from chz.tiepin import is_subtype_instance, type_repr

from utils.files import atomic_write_text

if TYPE_CHECKING:
    from yaml import SafeDumper, SafeLoader
else:
    try:
        from yaml import CSafeDumper as SafeDumper
        from yaml import CSafeLoader as SafeLoader
    except ImportError:  # PyYAML built without libyaml
        from yaml import SafeDumper, SafeLoader

T = TypeVar("T")
COMMAND_LINE = "command line"
REFUSALS = (ConstructionException, ExtraneousBlueprintArg, InvalidBlueprintArg, MissingBlueprintArg)


class ConfigError(ValueError):
    """What is wrong with the user's settings: `problems`, each one a message of its own."""

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        items = (problem.replace("\n", "\n    ") for problem in self.problems)
        return f"{len(self.problems)} problems:" + "".join(f"\n  - {item}" for item in items)


def raise_problems(problems: Sequence[str]) -> None:
    """Raise one ConfigError with all of `problems`; nothing happens when there are none."""
    if problems:
        raise ConfigError(problems)


@contextlib.contextmanager
def as_config_errors() -> Iterator[None]:
    """For calls whose ValueError, ImportError or OSError says what is wrong with the settings."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, ImportError, OSError) as error:
        raise ConfigError(str(error)) from error


def problems_of(*checks: Callable[[], object]) -> list[str]:
    """What those checks complain of that raise a ValueError, an ImportError or an OSError."""
    problems: list[str] = []
    for check in checks:
        try:
            with as_config_errors():
                check()
        except ConfigError as error:
            problems += error.problems
    return problems


def config_entrypoint(
    main: Callable[[Any], T],
    argv: Sequence[str] | None = None,
    *,
    layers: Sequence[str] = ("config_file",),
) -> T:
    """Like chz.nested_entrypoint, with `NAME=PATH` for each name in `layers` as a YAML layer.

    Later names lie above earlier ones and the command line above all of them, also where it repeats
    a default. All problems are told together on stderr with exit code 2, before `main` runs; so are
    those of a ConfigError that `main` raises. An async `main` is run to its end.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    target = chz.get_nested_target(main)
    if "--help" in argv or "-h" in argv:
        print(config_help(target, argv, layers=layers, color=sys.stdout.isatty()), end="")
        sys.exit(0)
    with exit_on_config_error():
        result: Any = main(load_config(target, argv, layers=layers))
        if inspect.iscoroutine(result):
            import asyncio

            result = asyncio.run(result)
        return result


@contextlib.contextmanager
def exit_on_config_error() -> Iterator[None]:
    """Prints a ConfigError tidily and ends the program with code 2."""
    try:
        yield
    except ConfigError as error:
        _exit_with(error)


def load_config(
    target: Callable[..., T], argv: Sequence[str], *, layers: Sequence[str] = ("config_file",)
) -> T:
    """The config object that `argv` and its YAML layers describe, or a ConfigError with every
    unknown key, wrong type, missing or malformed file, missing argument and failed validation.

    A path given for a field with `metadata={"must_exist": True}` has to exist.
    """
    sources = _read_sources(target, argv, layers)
    checked = _check(target, sources.layers)
    problems = sources.problems + checked.problems
    try:
        config = _blueprint(target, checked.layers).make()
    except MissingBlueprintArg as error:
        names = str(error).rpartition(": ")[2].split(", ")
        names = [name for name in names if name.split(".")[0] not in checked.rejected]
        # an unreadable file may well have held them
        if names and not sources.unreadable:
            problems.append(f"missing: {', '.join(f'{name}=...' for name in names)}")
    except REFUSALS as error:
        if not problems:
            problems.append(_tidy(str(error)))
    except ValueError as error:
        # with values left out, a validator may complain about what nobody wrote
        if not checked.rejected and not sources.unreadable:
            problems += error.problems if isinstance(error, ConfigError) else [str(error)]
    else:
        if not problems:
            return config
    raise ConfigError(problems)


def config_help(
    target: Callable[..., object],
    argv: Sequence[str],
    *,
    layers: Sequence[str] = ("config_file",),
    color: bool = False,
) -> str:
    """The help text: each field with its type, value, source and doc; problems come first."""
    sources = _read_sources(target, argv, layers)
    checked = _check(target, sources.layers)
    problems = sources.problems + checked.problems
    lines = [f"WARNING: {problem}\n" for problem in problems]
    try:
        lines.append(_blueprint(target, checked.layers).get_help(color=color).rstrip() + "\n")
    except REFUSALS as error:
        lines.append(f"WARNING: {_tidy(str(error))}\n")
    lines.append("Files, each a YAML mapping of these arguments, under the command line:")
    lines += [f"  {name}=PATH" for name in layers]
    return "\n".join(lines) + "\n"


def to_plain(obj: Any) -> Any:
    """`obj` as YAML and JSON know it: enums by value, paths as text, tuples and sets as lists, chz
    objects and dataclasses as mappings, arrays and their scalars by `tolist`."""
    if isinstance(obj, enum.Enum):
        return to_plain(obj.value)
    if obj is None or isinstance(obj, (bool, int, float, str)):
        # numpy.float64 is a float, but YAML would not know it
        for plain in (bool, int, float, str):
            if isinstance(obj, plain):
                return plain(obj)
        return None
    if isinstance(obj, Path):
        return str(obj)
    if chz.is_chz(obj) and not isinstance(obj, type):
        return {name: to_plain(getattr(obj, name)) for name in chz.chz_fields(obj)}
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        return {f.name: to_plain(getattr(obj, f.name)) for f in dataclasses.fields(obj)}
    if isinstance(obj, Mapping):
        return {to_plain(key): to_plain(value) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [to_plain(item) for item in obj]
    if isinstance(obj, (set, frozenset)):
        return sorted(to_plain(item) for item in obj)
    if hasattr(obj, "tolist"):
        return to_plain(obj.tolist())
    raise TypeError(f"{type(obj).__name__} has no plain form: {obj!r}")


def dump_yaml(path: Path | str, obj: Any) -> None:
    """Write `to_plain(obj)` as YAML, keys in their order, whole or not at all."""
    atomic_write_text(path, yaml_text(obj))


def yaml_text(obj: Any) -> str:
    return yaml.dump(to_plain(obj), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def load_yaml(path: Path | str) -> dict[str, Any]:
    """The mapping in a YAML file; every complaint is a ValueError (a FileNotFoundError where there
    is no file) that names it."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise ValueError(f"{where}: not valid YAML: {what}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        found = "an empty file" if values is None else type(values).__name__
        raise ValueError(f"{path}: expected a mapping of names to values, got {found}")
    return values


class _Loader(SafeLoader):
    """Safe, and a key given twice is an error instead of silently the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.value != "<<":
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key_node.value!r} is given twice", key_node.start_mark
                    )
                seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Dumper(SafeDumper):
    """Text of several lines as a block, and no anchors for values used twice."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def _represent_text(dumper: SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text.strip("\n") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


# ---------------------------------------------------------------------------------------------


class _Layer(NamedTuple):
    source: str
    values: dict[str, Any]  # as chz.Blueprint takes them


class _Sources(NamedTuple):
    layers: list[_Layer]  # lowest first
    problems: list[str]
    unreadable: bool


class _Checked(NamedTuple):
    layers: list[_Layer]  # what chz accepts
    problems: list[str]
    rejected: set[str]  # top-level fields with a value left out


def _exit_with(error: ConfigError) -> NoReturn:
    print(f"Error: {error}", file=sys.stderr)
    print(
        "Append --help for all arguments, their values and where they come from.", file=sys.stderr
    )
    sys.exit(2)


def _read_sources(
    target: Callable[..., object], argv: Sequence[str], layer_names: Sequence[str]
) -> _Sources:
    arguments, problems = _parse_argv(target, argv)
    fields = _fields_of(target)
    layers: list[_Layer] = []
    unreadable = False
    below: dict[str, Any] = {}
    for position, name in enumerate(layer_names):
        given = arguments.get(name, below.get(name))
        path = given.value if isinstance(given, chz.Castable) else given
        if name not in fields:
            arguments.pop(name, None)
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
        below |= values
        layer = _Layer(str(path), {})
        for key, value in values.items():
            layer.values.update(_blueprint_values(target, str(key), value, str(path), problems))
        for later in layer_names[position + 1 :]:
            if later not in fields:
                layer.values.pop(later, None)
        layers.append(layer)
    return _Sources([*layers, _Layer(COMMAND_LINE, arguments)], problems, unreadable)


def _parse_argv(
    target: Callable[..., object], argv: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    arguments: dict[str, Any] = {}
    problems = []
    for argument in argv:
        if argument in ("--help", "-h"):
            continue
        key, equals, value = argument.partition("=")
        if not equals or not key:
            problems.append(f"{argument!r}: arguments are written key=value")
        elif key.startswith("-"):
            problems.append(f"{argument!r}: write {argument.lstrip('-')}, without dashes")
        elif key.endswith("@"):
            arguments[key.removesuffix("@")] = Reference(value)
        else:
            arguments[key] = _command_line_value(value, _type_at(target, key))
    return arguments, problems


def _command_line_value(text: str, annotation: Any) -> Any:
    # chz splits tuple[str, ...] at the commas of '["a","b"]' and keeps brackets and quotes
    if text[:1] in ("[", "(") and any(typing.get_origin(arm) is tuple for arm in _arms(annotation)):
        try:
            return _coerce(list(ast.literal_eval(text)), annotation)
        except (ValueError, SyntaxError, TypeError):
            return chz.Castable(text)
    return chz.Castable(text)


def _blueprint_values(
    target: Any, key: str, value: Any, source: str, problems: list[str]
) -> Iterator[tuple[str, Any]]:
    """`key: value` of a YAML layer as chz wants it: mappings for nested configs taken apart, and
    every value coerced to the type of its field."""
    annotation = _type_at(target, key)
    nested = [arm for arm in _arms(annotation) if chz.is_chz(arm)]
    item_types = [
        typing.get_args(arm)[0]
        for arm in _arms(annotation)
        if typing.get_origin(arm) in (list, tuple) and typing.get_args(arm)
    ]
    if isinstance(value, dict) and nested:
        for name, item in value.items():
            yield from _blueprint_values(target, f"{key}.{name}", item, source, problems)
    elif isinstance(value, list) and value and any(chz.is_chz(t) for t in item_types):
        for index, item in enumerate(value):
            yield from _blueprint_values(target, f"{key}.{index}", item, source, problems)
    elif annotation is None:
        yield key, value
    else:
        try:
            yield key, _coerce(value, annotation)
        except ValueError as error:
            problems.append(f"{key} (from {source}): {error}")
            yield key, _Rejected()


class _Rejected:
    """Stands where a value was refused, so that its field is known to have been given."""


def _coerce(value: Any, annotation: Any) -> Any:
    """`value` as YAML gave it, made to fit: '1e-4' to 1e-4, a list to a tuple, text to an enum or a
    path. Text that only chz can read is a Castable. Raises ValueError where nothing fits."""
    boolean_for_number = isinstance(value, bool) and not any(
        arm in (bool, object, Any) or typing.get_origin(arm) is typing.Literal
        for arm in _arms(annotation)
    )
    if not boolean_for_number and is_subtype_instance(value, annotation):
        return value
    for arm in _arms(annotation):
        origin, arguments = typing.get_origin(arm) or arm, typing.get_args(arm)
        try:
            if isinstance(value, dict) and origin in (dict, Mapping) and len(arguments) == 2:
                return {key: _coerce(item, arguments[1]) for key, item in value.items()}
            if isinstance(value, list) and origin in (list, Sequence) and arguments:
                return [_coerce(item, arguments[0]) for item in value]
            if isinstance(value, list) and origin is tuple:
                if arguments[1:] == (...,):
                    return tuple(_coerce(item, arguments[0]) for item in value)
                pairs = zip(value, arguments, strict=True)
                return tuple(_coerce(item, item_type) for item, item_type in pairs)
            if isinstance(value, str):
                return _cast_text(value, arm)
        except ValueError:
            continue
    hint = ""
    if str in _arms(annotation) and not isinstance(value, (list, dict)):
        hint = "; put it in quotes"
    raise ValueError(f"expected {_expected(annotation)}, got {value!r}{hint}")


def _cast_text(text: str, arm: Any) -> Any:
    if arm in (int, float, Path):
        return arm(text)
    if isinstance(arm, type) and issubclass(arm, enum.Enum):
        return arm[text] if text in arm.__members__ else arm(text)
    if arm is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if isinstance(arm, type) and arm not in (bool, type(None), list, tuple, dict, set):
        return chz.Castable(text)
    raise ValueError(text)


def _check(target: Callable[..., object], layers: Sequence[_Layer]) -> _Checked:
    """Offer each value to chz, one at a time, so that every refusal is heard and not just the
    first. Values of one nested config are tried on top of each other: they depend on another."""
    problems: list[str] = []
    rejected: set[str] = set()
    accepted = [_Layer(layer.source, {}) for layer in layers]
    entries: dict[str, list[tuple[int, str]]] = {}
    for index, layer in enumerate(layers):
        for key in sorted(layer.values, key=lambda key: key.count(".")):
            entries.setdefault(_root(key), []).append((index, key))
    for root, places in entries.items():
        held = [_Layer(layer.source, {}) for layer in layers]
        for index, key in places:
            value = layers[index].values[key]
            if isinstance(value, _Rejected):
                rejected.add(root)
                continue
            held[index].values[key] = value
            try:
                _blueprint(target, held).apply({}, strict=True)
                _require_file(target, key, value)
            except (*REFUSALS, TypeError, ValueError, OSError) as error:
                del held[index].values[key]
                problems.append(_describe(target, key, value, layers[index].source, error))
                if not isinstance(error, ExtraneousBlueprintArg):
                    rejected.add(root)
        for index, layer in enumerate(held):
            accepted[index].values.update(layer.values)
    return _Checked(accepted, problems, rejected)


def _blueprint(target: Callable[..., T], layers: Sequence[_Layer]) -> chz.Blueprint[T]:
    blueprint = chz.Blueprint(target)
    for layer in layers:
        blueprint.apply(layer.values, layer_name=layer.source)
    return blueprint


def _describe(
    target: Callable[..., object], key: str, value: Any, source: str, error: Exception
) -> str:
    text = value.value if isinstance(value, chz.Castable) else value
    if isinstance(error, ExtraneousBlueprintArg):
        # for plain names chz suggests anything with a tenth of likeness
        starts = ("Did you mean '", "Did you get") if "." in key else ("Did you get",)
        advice = [line for line in str(error).split("\n") if line.startswith(starts)]
        names = [] if "." in key else list(_fields_of(target))
        close = difflib.get_close_matches(key, names, n=1)
        advice += [f"Did you mean {name!r}?" for name in close]
        return " ".join([f"{key} (from {source}): unknown key.", *advice])
    if isinstance(error, OSError):
        return f"{key} (from {source}): {error}"
    annotation = _type_at(target, key)
    if annotation is not None and not any(chz.is_chz(arm) for arm in _arms(annotation)):
        return f"{key} (from {source}): expected {_expected(annotation)}, got {text!r}"
    return f"{key} (from {source}): {_tidy(str(error))}"


def _require_file(target: Callable[..., object], key: str, value: Any) -> None:
    field = _fields_of(target).get(key)
    if field is None or not (field.metadata or {}).get("must_exist"):
        return
    text = value.value if isinstance(value, chz.Castable) else value
    items = text if isinstance(text, (list, tuple)) else [text]
    for path in items:
        if path not in (None, "None") and not Path(path).exists():
            raise FileNotFoundError(f"{path}: no such file or folder")


def _root(key: str) -> str:
    return key if key.startswith("...") else key.split(".")[0]


def _fields_of(target: Any) -> Mapping[str, Any]:
    return chz.chz_fields(target) if isinstance(target, type) and chz.is_chz(target) else {}


def _type_at(target: Any, key: str) -> Any:
    """The type of the field at a dotted path; None where there is no such field, or where it takes
    a choice of class to know."""
    annotation = target
    for part in key.split("."):
        candidates = [arm for arm in _arms(annotation) if part in _fields_of(arm)]
        if candidates:
            annotation = _fields_of(candidates[0])[part].x_type
            continue
        items = [
            typing.get_args(a) for a in _arms(annotation) if typing.get_origin(a) in (list, tuple)
        ]
        if part.isdecimal() and items and items[0]:
            annotation = items[0][0]
        else:
            return None
    return annotation


def _arms(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, nested ones too; a lone type is its own only member."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(arm for member in typing.get_args(annotation) for arm in _arms(member))
    return (annotation,)


def _expected(annotation: Any) -> str:
    return " or ".join(_expected_arm(arm) for arm in _arms(annotation))


def _expected_arm(arm: Any) -> str:
    if isinstance(arm, type) and issubclass(arm, enum.Enum):
        return f"one of {', '.join(str(member.value) for member in arm)}"
    if typing.get_origin(arm) is typing.Literal:
        return f"one of {', '.join(str(value) for value in typing.get_args(arm))}"
    if typing.get_origin(arm) is list:
        return f"list of {_expected(typing.get_args(arm)[0])}"
    return "None" if arm is type(None) else type_repr(arm)


def _tidy(text: str) -> str:
    """A message of chz without its blank lines and its advice about the command."""
    lines = [line.strip() for line in text.split("\n")]
    return " ".join(line for line in lines if line and not line.startswith("Append --help"))
