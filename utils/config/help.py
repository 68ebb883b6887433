"""The text of `--help`: what a script does, then its settings in groups, from their own fields.

A field may begin a group, `chz.field(..., metadata=SAMPLING)`; those below it in its class belong
to the same one until another begins. Groups of one's own are made by `group`.
"""

from __future__ import annotations

import difflib
import enum
import inspect
import re
import shutil
import textwrap
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chz

from utils.config.errors import ConfigError
from utils.config.layers import ALSO
from utils.config.types import Shape, arms_of, chz_arms, default_of, fields_of, is_chz_class
from utils.terminal import argument_text, shell_word

_GROUP = "group"
_NESTED = "nested docs"


def group(title: str) -> dict[str, str]:
    """Metadata of the first field of a group. Groups of this module stand in their order, those of
    one's own after WHAT."""
    return {_GROUP: title}


def nested_docs(**docs: str) -> dict[str, dict[str, str]]:
    """Metadata of a field that is a chz object: what its fields mean there, where their own doc
    would say something else."""
    return {_NESTED: docs}


WHAT = group("What to run")
MODEL = group("Model and training")
SAMPLING = group("Sampling")
EVALUATION = group("Evaluation")
OUTPUT = group("Output")
_ORDER = [g[_GROUP] for g in (WHAT, MODEL, SAMPLING, EVALUATION, OUTPUT)]

_NARROWEST, _WIDEST = 60, 120
_LONGEST_NAME = 28
# a space at which no line ends
_TIE = "\0"
_TYPES: dict[Any, str] = {
    str: "text", int: "int", float: "float", bool: "bool", Path: "path", list: "list",
    tuple: "list", dict: "map", Mapping: "map",
}  # fmt: skip


class GivenValue(NamedTuple):
    """What a layer says of a setting."""

    value: Any
    source: str


class Page:
    """The settings of one config, as `shape` has them with the classes that were chosen, and what
    the layers say: `given` by dotted key."""

    def __init__(
        self, shape: Shape, given: Mapping[str, GivenValue], *, width: int = 80, color: bool = False
    ) -> None:
        self._shape = shape
        self._given = given
        self._width = width
        self._color = color

    def settings(self) -> list[str]:
        """All top-level settings in their groups."""
        groups: dict[str, list[str]] = {title: [] for title in _ORDER[:1]}
        for name, title in grouped_fields(self._shape.target):
            groups.setdefault(title, []).append(name)
        own = [title for title in groups if title not in _ORDER]
        order = [*_ORDER[:1], *own, *_ORDER[1:]]
        for names in groups.values():
            names.sort(key=lambda name: not self._is_required(name))
        columns = self._columns([name for names in groups.values() for name in names])
        lines: list[str] = []
        for title in order:
            if groups.get(title):
                lines += [self._bold(title)]
                lines += [row for name in groups[title] for row in self._rows(name, columns)]
                lines += [""]
        return lines

    def topic(self, key: str) -> list[str]:
        """What there is to say of one setting: all of a nested config, the classes that can be
        chosen. Raises ConfigError where there is no such setting."""
        if self._shape.field_at(key) is None:
            # other systems' name of it, which is taken too
            key = ALSO.get(key, key)
        if self._shape.field_at(key) is None:
            raise ConfigError(f"--help {shell_word(key)}: {self._unknown(key)}")
        lines = [*self._rows(key, self._columns([key]), folded=False), ""]
        classes = self._classes(key)
        chosen = self._shape.class_at(key)
        if len(classes) < 2:
            return lines + (self._nested(key, chosen) if chosen or classes else [])
        for cls in [chosen] if key in self._shape.choices and chosen else classes:
            summary = _summary(cls)
            lines += wrapped(f"{key}={cls.__name__}{summary and f': {summary}'}", self._width)
            of_class = Shape(self._shape.target, {**self._shape.choices, key: cls})
            page = Page(of_class, self._given, width=self._width, color=self._color)
            lines += page._nested(key, cls)
        return lines

    def _nested(self, key: str, cls: type[Any] | None) -> list[str]:
        cls = cls or self._classes(key)[0]
        keys = [f"{key}.{name}" for name, _ in grouped_fields(cls)]
        columns = self._columns(keys)
        return [line for k in keys for line in self._rows(k, columns)] + [""]

    def _unknown(self, key: str) -> str:
        missing = self._shape.missing_at(key)
        path = missing.path if missing else ""
        owner = self._shape.class_at(path)
        if path and owner is None:
            return f"{path} has no settings of its own"
        prefix = f"{path}." if path else ""
        known = [prefix + name for name in fields_of(owner or self._shape.target)]
        close = difflib.get_close_matches(key, known, n=1)
        advice = f" Did you mean {close[0]!r}?" if close else ""
        return f"there is no such setting.{advice} Known: {', '.join(known)}"

    # ------------------------------------------------------------------------------- one setting

    def _columns(self, keys: Sequence[str]) -> tuple[int, int]:
        """Widths of names and types."""
        names = max((len(k) for k in keys if len(k) <= _LONGEST_NAME), default=0)
        types = [len(short_type(self._shape.type_at(key))) for key in keys]
        return max(names, 1), max(types, default=0)

    def _rows(self, key: str, columns: tuple[int, int], *, folded: bool = True) -> list[str]:
        names, types = columns
        kind = short_type(self._shape.type_at(key))
        head = f"  {key:<{names}}  {kind:<{types}}  "
        indent = names + types + 6
        text = self._text(key, folded=folded)
        lines = wrapped(text, self._width - indent) or [""]
        if len(key) > names:
            rows = [f"  {key}  {kind}".rstrip(), *(" " * indent + line for line in lines)]
        else:
            rows = [head + lines[0], *(" " * indent + line for line in lines[1:])]
        rows = [row.rstrip() for row in rows]
        rows[0] = rows[0].replace(f"  {key}", f"  {self._bold(key)}", 1)
        if folded and self._classes(key):
            inside = [k for k in self._given if k.startswith(f"{key}.")]
            for k in inside:
                shown = f"{k} {self._given_text(k)}"
                rows += [" " * indent + line for line in wrapped(shown, self._width - indent)]
        return rows

    def _text(self, key: str, *, folded: bool) -> str:
        field = self._shape.field_at(key)
        owner, _, name = key.rpartition(".")
        there = (self._shape.field_at(owner).metadata or {}).get(_NESTED, {}) if owner else {}
        doc = " ".join(str(there.get(name) or field._doc or "").split())
        choices = _choices(self._shape.type_at(key))
        classes = self._classes(key)
        if len(classes) > 1:
            choices = [cls.__name__ for cls in classes]
        if choices and not (
            doc.startswith(choices[0])
            and all(re.search(rf"\b{re.escape(choice)}\b", doc) for choice in choices)
        ):
            doc = f"{_listed(choices)}; {doc}" if doc else _listed(choices)
        value = self._given_text(key) or self._default_text(key, doc, classes)
        text = "; ".join(filter(None, [doc, value]))
        if not (folded and classes):
            return text
        chosen = self._shape.class_at(key)
        if len(classes) > 1 and key not in self._shape.choices:
            more = f"`--help{_TIE}{key}` shows the settings of each"
        else:
            number = len(fields_of(chosen or classes[0]))
            more = f"`--help{_TIE}{key}` shows its {number}{_TIE}settings"
        return f"{text}; {more}" if text else more

    def _classes(self, key: str) -> list[type[Any]]:
        return self._shape.classes_at(key) if chz_arms(self._shape.type_at(key)) else []

    def _given_text(self, key: str) -> str:
        given = self._given.get(key) or next(
            (g for k, g in self._given.items() if _is_wildcard_of(k, key)), None
        )
        if given is None:
            return ""
        return f"={_TIE}{_value_text(given.value)} (from {given.source})"

    def _is_required(self, key: str) -> bool:
        is_object = bool(self._classes(key))
        return not is_object and default_of(self._shape.field_at(key)) is chz.util.MISSING

    def _default_text(self, key: str, doc: str, classes: Sequence[type[Any]]) -> str:
        default = default_of(self._shape.field_at(key))
        if classes:
            chosen = None if default is None else self._shape.default_class_at(key)
            return f"default:{_TIE}{chosen.__name__}" if chosen and len(classes) > 1 else ""
        if self._is_required(key):
            return "required"
        # of those, the doc says what stands for them
        if "default:" in doc or default is None or default in ("", [], {}, ()):
            return ""
        return f"default:{_TIE}{_value_text(default)}"

    def _bold(self, text: str) -> str:
        return f"\033[1m{text}\033[0m" if self._color else text


def grouped_fields(cls: Any) -> list[tuple[str, str]]:
    """The fields of a chz class with the titles of their groups, base classes' first and in the
    order of the bases; a field that begins none and has none above it is of WHAT."""
    found: dict[str, str] = {}
    fields = fields_of(cls)
    for owner in _lineage(cls):
        title = _ORDER[0]
        own = fields_of(owner)
        for name in inspect.get_annotations(owner):
            if name in own:
                title = (own[name].metadata or {}).get(_GROUP, title)
                if name in fields:
                    found.setdefault(name, title)
    return list(found.items())


def _lineage(cls: type[Any]) -> Iterator[type[Any]]:
    for base in cls.__bases__:
        if is_chz_class(base):
            yield from _lineage(base)
    yield cls


def short_type(annotation: Any) -> str:
    """A type in a word, as users know it: text, int, path, list, ..."""
    words = []
    for arm in arms_of(annotation):
        origin = typing.get_origin(arm) or arm
        if arm is type(None) or is_chz_class(arm):
            continue
        is_choice = origin is typing.Literal or (
            isinstance(origin, type) and issubclass(origin, enum.Enum)
        )
        words.append("choice" if is_choice else _TYPES.get(origin, "any"))
    # int or "inf"
    plain = [word for word in dict.fromkeys(words) if word != "choice"]
    return " or ".join(plain) if plain else "choice" if words else ""


def _choices(annotation: Any) -> list[str]:
    found: list[str] = []
    for arm in arms_of(annotation):
        if typing.get_origin(arm) is typing.Literal:
            found += [str(value) for value in typing.get_args(arm)]
        elif isinstance(arm, type) and issubclass(arm, enum.Enum):
            found += [str(member.value) for member in arm]
    return found


def _listed(words: Sequence[str]) -> str:
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _value_text(value: Any) -> str:
    if isinstance(value, chz.Castable):
        value = value.value
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return ", ".join(value)
    return argument_text(value) or "''"


def _is_wildcard_of(given: str, key: str) -> bool:
    """Whether `given` is chz's ...name, which sets it wherever it is."""
    name = given.removeprefix("...")
    return given != name and (key == name or key.endswith(f".{name}"))


def _summary(cls: type[Any]) -> str:
    return " ".join((cls.__dict__.get("__doc__") or "").split("\n\n")[0].split()).rstrip(".")


# --------------------------------------------------------------------------------------- the page


def wrapped(text: str, width: int, indent: str = "") -> list[str]:
    """Lines of at most `width`, those after the first indented; words stay whole."""
    lines = textwrap.wrap(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return [line.replace(_TIE, " ") for line in lines]


def terminal_width() -> int:
    """Of stdout's terminal; 80 where there is none and COLUMNS says nothing."""
    return max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size((80, 24)).columns))


def wrapped_docstring(doc: str, width: int) -> list[str]:
    """The paragraphs of a module's docstring wrapped anew; commands, which are indented, are cut
    where a shell goes on."""
    lines: list[str] = []
    for part in re.split(r"\n\s*\n", doc.strip()):
        if part.startswith("    "):
            for line in re.sub(r" *\\\n *", " ", part).split("\n"):
                lines += _cut_command(line, width)
        else:
            lines += wrapped(" ".join(part.split()), width)
        lines.append("")
    return lines


def _cut_command(line: str, width: int) -> list[str]:
    """The command over several lines, each but the last ending in a backslash; words that are
    quoted stay whole."""
    indent = line[: len(line) - len(line.lstrip())]
    words = re.findall(r"""(?:'[^']*'|"[^"]*"|[^\s'"])+""", line)
    rows = [indent + words[0]]
    for word in words[1:]:
        if len(rows[-1]) + len(word) + 3 > width:
            rows[-1] += " \\"
            rows.append(f"{indent}    {word}")
        else:
            rows[-1] += f" {word}"
    return rows
