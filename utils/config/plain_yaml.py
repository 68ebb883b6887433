"""Objects as plain values, and YAML in and out."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import chz
import yaml

from utils.json_files import utf8_text
from utils.runs.files import atomic_write_text, expanded

if TYPE_CHECKING:
    from yaml import SafeDumper, SafeLoader
else:
    try:
        from yaml import CSafeDumper as SafeDumper
        from yaml import CSafeLoader as SafeLoader
    except ImportError:  # PyYAML built without libyaml
        from yaml import SafeDumper, SafeLoader


def to_plain(obj: Any) -> Any:
    """`obj` as YAML and JSON know it: enums by value, paths as text, tuples and sets as lists, chz
    objects and dataclasses as mappings, arrays and their scalars by `tolist`.

    A chz object inside of another says by a first key `type` which class it is, if that derives
    from another chz class: a config layer then builds it again.
    """
    return _plain(obj, inside=False)


def _plain(obj: Any, *, inside: bool) -> Any:
    if isinstance(obj, enum.Enum):
        return _plain(obj.value, inside=inside)
    if obj is None or isinstance(obj, (bool, int, float, str)):
        # numpy.float64 is a float, but YAML would not know it
        for plain in (bool, int, float, str):
            if isinstance(obj, plain):
                return plain(obj)
        return None
    if isinstance(obj, Path):
        return str(obj)
    if chz.is_chz(obj) and not isinstance(obj, type):
        values = {name: _plain(getattr(obj, name), inside=True) for name in chz.chz_fields(obj)}
        derived = any(chz.is_chz(base) for base in type(obj).__mro__[1:])
        return {"type": type(obj).__name__, **values} if inside and derived else values
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        names = [field.name for field in dataclasses.fields(obj)]
        return {name: _plain(getattr(obj, name), inside=inside) for name in names}
    if isinstance(obj, Mapping):
        return {to_plain(key): _plain(value, inside=inside) for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [_plain(item, inside=inside) for item in obj]
    if isinstance(obj, (set, frozenset)):
        return sorted(_plain(item, inside=inside) for item in obj)
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
    path = expanded(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    text = utf8_text(path.read_bytes(), str(path))
    try:
        values = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise ValueError(f"{where}: not valid YAML: {what}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        found = "an empty file" if values is None else type(values).__name__
        raise ValueError(f"{path}: expected a mapping of names to values, got {found}")
    return values


def unquoted(path: Path | str, key: str) -> list[str]:
    """What stands at a dotted key of a YAML file, inside lists and mappings too, that YAML does not
    read as text, as it is written: 00576224, which is 195732 to YAML, or 1e5, no, 2020-01-01."""
    with open(path, encoding="utf-8") as file:
        node: yaml.Node | None = yaml.compose(file, Loader=_Loader)
    for part in key.split("."):
        node = _child(node, part)
    return list(_unquoted(node))


def _child(node: yaml.Node | None, part: str) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for name, value in node.value if name.value == part), None)
    if isinstance(node, yaml.SequenceNode) and part.isdecimal() and int(part) < len(node.value):
        return node.value[int(part)]
    return None


def _unquoted(node: yaml.Node | None) -> Iterator[str]:
    if isinstance(node, yaml.ScalarNode) and node.tag != "tag:yaml.org,2002:str":
        yield node.value
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from _unquoted(item)
    elif isinstance(node, yaml.MappingNode):
        for _, value in node.value:
            yield from _unquoted(value)


def leaves_of(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values inside nested mappings by dotted name; an empty mapping is a value."""
    leaves: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            leaves |= leaves_of(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves


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
