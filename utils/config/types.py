"""What type a setting has at a dotted path, which classes can be chosen there, and how a value of
YAML or of the command line is made to fit."""

from __future__ import annotations

import ast
import difflib
import enum
import functools
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import chz
from chz.factories import MetaFromString
from chz.tiepin import is_subtype_instance, type_repr

from utils.runs.files import expanded


class Rejected:
    """Stands where a value was refused, so that its field is known to have been given."""


class Choice(NamedTuple):
    """A class by its name for the field at some path, or None for no object at all."""

    name: Any


class Missing(NamedTuple):
    """Where a dotted path leaves what there is: `name` is no field of the class at `path`."""

    path: str
    name: str


class Shape:
    """A config class whose fields may hold objects of several classes, and those that are chosen:
    `choices` by the dotted path of the field, None for no object. Elsewhere it is the class that
    chz would build."""

    def __init__(
        self, target: Callable[..., Any], choices: Mapping[str, type[Any] | None] | None = None
    ) -> None:
        self.target = target
        self.choices = choices or {}

    def type_at(self, key: str) -> Any:
        """The type of the field at a dotted path; None where there is no such field."""
        place = self._walk(key)
        return None if isinstance(place, Missing) else place.annotation

    def field_at(self, key: str) -> Any:
        """chz's description of that field, or None."""
        place = self._walk(key)
        return None if isinstance(place, Missing) else place.field

    def class_at(self, key: str) -> type[Any] | None:
        """The chz class whose object stands there ('' is the whole config), if any."""
        place = self._walk(key)
        return None if isinstance(place, Missing) else self._class_of(key, place)

    def default_class_at(self, key: str) -> type[Any] | None:
        """The class that chz builds where none is chosen."""
        place = self._walk(key)
        return None if isinstance(place, Missing) else place.default_class

    def classes_at(self, key: str) -> list[type[Any]]:
        """Those that can be chosen: the subclasses that have none themselves, and the default."""
        place = self._walk(key)
        if isinstance(place, Missing):
            return []
        allowed = [leaf for arm in chz_arms(place.annotation) for leaf in _leaves(arm)]
        default = place.default_class
        return allowed if default is None or default in allowed else [default, *allowed]

    def missing_at(self, key: str) -> Missing | None:
        place = self._walk(key)
        return place if isinstance(place, Missing) else None

    def takes_class(self, key: str, value: Any) -> bool:
        """Whether `value` at `key` names the class of an object, or its absence."""
        arms = arms_of(self.type_at(key))
        if not any(is_chz_class(arm) for arm in arms):
            return False
        if all(is_chz_class(arm) or arm is type(None) for arm in arms):
            return True
        return any(cls.__name__ == value for cls in self.classes_at(key))

    def parent_of_type(self, key: str) -> str | None:
        """The path of the object whose class a key `....type` names, unless that is a field."""
        path, _, name = key.rpartition(".")
        if name != "type" or not path or not chz_arms(self.type_at(path)):
            return None
        return None if "type" in fields_of(self.class_at(path)) else path

    def class_named(self, key: str, name: Any, *, allow_modules: bool) -> type[Any] | None:
        """The class that `name` chooses at `key`, None for no object; ValueError otherwise. With
        `allow_modules`, module:Class too, which imports the module."""
        if name in (None, "None") and type(None) in arms_of(self.type_at(key)):
            return None
        classes = self.classes_at(key)
        for allowed in classes:
            if allowed.__name__ == name:
                return allowed
        reason = ""
        if allow_modules and isinstance(name, str) and ":" in name:
            field = self.field_at(key)
            if field is not None and field.meta_factory is not None:
                try:
                    found = field.meta_factory.from_string(name)
                except MetaFromString as error:
                    reason = f" ({error})"
                else:
                    if is_chz_class(found):
                        return found
        names = [allowed.__name__ for allowed in classes]
        if type(None) in arms_of(self.type_at(key)):
            names.append("None")
        folded = {_fold(allowed): allowed for allowed in names}
        close = difflib.get_close_matches(_fold(str(name)), folded, n=1)
        advice = f". Did you mean {folded[close[0]]!r}?" if close else ""
        raise ValueError(f"unknown class {name!r}{reason}; allowed: {', '.join(names)}{advice}")

    def _walk(self, key: str) -> _Place | Missing:
        place = _Place(self.target, self.target, None)
        path = ""
        for part in key.split(".") if key else []:
            owner = self._class_of(path, place)
            found = fields_of(owner).get(part)
            if found is not None:
                factory = found.meta_factory
                unspecified = None if factory is None else factory.unspecified_factory()
                place = _Place(found.x_type, unspecified, found)
            elif part.isdecimal() and (items := _item_types(place.annotation)):
                factory = chz.factories.standard(annotation=items[0])
                place = _Place(items[0], factory.unspecified_factory(), None)
            else:
                return Missing(path, part)
            path = f"{path}.{part}" if path else part
        return place

    def _class_of(self, path: str, place: _Place) -> type[Any] | None:
        return self.choices.get(path, place.default_class)


class _Place(NamedTuple):
    annotation: Any
    unspecified: Any  # what chz calls where no class is chosen
    field: Any

    @property
    def default_class(self) -> type[Any] | None:
        made = self.unspecified
        made = made.func if isinstance(made, functools.partial) else made
        return made if is_chz_class(made) else None


def is_chz_class(annotation: Any) -> TypeGuard[type[Any]]:
    return isinstance(annotation, type) and chz.is_chz(annotation)


def fields_of(cls: Any) -> Mapping[str, Any]:
    return chz.chz_fields(cls) if is_chz_class(cls) else {}


def default_of(field: Any) -> Any:
    """The default of chz's description of a field; chz.util.MISSING where it has to be given."""
    if field._default_factory is not chz.util.MISSING:
        return field._default_factory()
    return field._default


def arms_of(annotation: Any) -> tuple[Any, ...]:
    """The members of a union, nested ones too; a lone type is its own only member."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return tuple(arm for member in typing.get_args(annotation) for arm in arms_of(member))
    return (annotation,)


def chz_arms(annotation: Any) -> list[type[Any]]:
    return [arm for arm in arms_of(annotation) if is_chz_class(arm)]


def holds_objects(annotation: Any) -> bool:
    """Whether it is a list or tuple of chz objects."""
    return any(chz_arms(item) for item in _item_types(annotation))


def _item_types(annotation: Any) -> list[Any]:
    return [
        typing.get_args(arm)[0]
        for arm in arms_of(annotation)
        if typing.get_origin(arm) in (list, tuple) and typing.get_args(arm)
    ]


def _leaves(cls: type[Any]) -> list[type[Any]]:
    below = [sub for sub in cls.__subclasses__() if is_chz_class(sub)]
    if not below:
        return [cls]
    return list(dict.fromkeys(leaf for sub in below for leaf in _leaves(sub)))


def _fold(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def cast_argument(text: str, annotation: Any) -> Any:
    """A value of the command line as chz wants it."""
    if Path in arms_of(annotation) and text.startswith("~"):
        return expanded(text)
    # chz splits tuple[str, ...] at the commas of '["a","b"]' and keeps brackets and quotes
    is_tuple = any(typing.get_origin(arm) is tuple for arm in arms_of(annotation))
    if text[:1] in ("[", "(") and is_tuple:
        try:
            return coerce(list(ast.literal_eval(text)), annotation)
        except (ValueError, SyntaxError, TypeError):
            return chz.Castable(text)
    return chz.Castable(text)


def coerce(value: Any, annotation: Any) -> Any:
    """`value` as YAML gave it, made to fit: '1e-4' to 1e-4, a list to a tuple, text to an enum or a
    path. Text that only chz can read is a Castable. Raises ValueError where nothing fits."""
    boolean_for_number = isinstance(value, bool) and not any(
        arm in (bool, object, Any) or typing.get_origin(arm) is typing.Literal
        for arm in arms_of(annotation)
    )
    if not boolean_for_number and is_subtype_instance(value, annotation):
        return value
    for arm in arms_of(annotation):
        origin, arguments = typing.get_origin(arm) or arm, typing.get_args(arm)
        try:
            if isinstance(value, dict) and origin in (dict, Mapping) and len(arguments) == 2:
                return {key: coerce(item, arguments[1]) for key, item in value.items()}
            if isinstance(value, list) and origin in (list, Sequence) and arguments:
                return [coerce(item, arguments[0]) for item in value]
            if isinstance(value, list) and origin is tuple:
                if arguments[1:] == (...,):
                    return tuple(coerce(item, arguments[0]) for item in value)
                pairs = zip(value, arguments, strict=True)
                return tuple(coerce(item, item_type) for item, item_type in pairs)
            if isinstance(value, str):
                return _cast_text(value, arm)
        except ValueError:
            continue
    raise ValueError(f"expected {expected_type(annotation)}, got {value!r}")


def wants_text(annotation: Any) -> bool:
    """Whether text belongs there, or lists or mappings of it."""
    return any(
        arm is str or any(map(wants_text, typing.get_args(arm))) for arm in arms_of(annotation)
    )


def _cast_text(text: str, arm: Any) -> Any:
    if arm is Path:
        return expanded(text)
    if arm in (int, float):
        return arm(text)
    if isinstance(arm, type) and issubclass(arm, enum.Enum):
        return arm[text] if text in arm.__members__ else arm(text)
    if arm is bool and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if isinstance(arm, type) and arm not in (bool, type(None), list, tuple, dict, set):
        return chz.Castable(text)
    raise ValueError(text)


def expected_type(annotation: Any) -> str:
    return " or ".join(_expected_arm(arm) for arm in arms_of(annotation))


def _expected_arm(arm: Any) -> str:
    if isinstance(arm, type) and issubclass(arm, enum.Enum):
        return f"one of {', '.join(str(member.value) for member in arm)}"
    if typing.get_origin(arm) is typing.Literal:
        return f"one of {', '.join(str(value) for value in typing.get_args(arm))}"
    if typing.get_origin(arm) is list:
        return f"list of {expected_type(typing.get_args(arm)[0])}"
    return "None" if arm is type(None) else type_repr(arm)
