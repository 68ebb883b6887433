"""Domains of the user's own: `domain=path/to/file.py:Class` or `domain=package.module:Class`."""

import contextlib
import functools
import hashlib
import importlib
import inspect
import os
import sys
import traceback
import types
import typing
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import chz
from chz.tiepin import type_repr
from chz.util import MISSING

from training.domains.base import Domain
from utils.config.entrypoint import ConfigError, raise_problems
from utils.runs.files import expanded

FORMS = "path/to/file.py:Class or package.module:Class"
METHODS = tuple(name for name in vars(Domain) if not name.startswith("_"))


class OwnDomain(NamedTuple):
    """What `domain=` names, and the chz class of its settings."""

    domain_class: type[Any]
    config_class: type[Any]


def is_own(name: str) -> bool:
    return ":" in name


def own_file(name: str) -> Path | None:
    """The file of an own domain, of which runs store what it holds; None for those that come with
    the project."""
    if not is_own(name):
        return None
    where, _ = _parts(name)
    if _is_path(where):
        return expanded(where)
    file = _module(name, where).__file__
    return None if file is None else Path(file)


def load_own(name: str) -> OwnDomain:
    """Runs the file, or imports the module. The class of the settings is the type of the first
    argument of the domain's constructor, as with `chz.nested_entrypoint`.

    Raises ConfigError where there is no such file, module or class, where Python refuses it, and
    where the class is no domain.
    """
    where, class_name = _parts(name)
    module = _file_module(name, where) if _is_path(where) else _module(name, where)
    found = getattr(module, class_name, None)
    if not isinstance(found, type):
        own = [c for c, value in vars(module).items() if _is_class_of(module, value)]
        raise ConfigError(
            f"domain={name!r}: {where} has no class {class_name}; its classes are "
            f"{', '.join(own) or 'none'}"
        )
    missing = [method for method in METHODS if not callable(getattr(found, method, None))]
    problems = []
    if missing:
        problems.append(
            f"domain={name!r}: {class_name} lacks {', '.join(f'{m}()' for m in missing)}; deriving "
            "from training.domains.base.Stateless gives all but problems() and rewards()"
        )
    config_class = _config_class(name, found, problems)
    raise_problems(problems)
    return OwnDomain(found, config_class)


@contextlib.contextmanager
def told_as_own(name: str) -> Generator[None, None, None]:
    """What the domain's own code raises in the block becomes a ConfigError with its file and line;
    nothing is changed for the domains that come with the project. The file is not read again: it
    may have been edited since the run began."""
    if not is_own(name):
        yield
        return
    with _as_config_error(name, own_file(name)):
        yield


def making_told_as_own(name: str, config_class: type[Any]) -> type[Any]:
    """`config_class`, whose validators and defaults are partly an own domain's: what they raise
    besides a ValueError, which says what is wrong with the settings, is told_as_own."""
    make: Any = config_class.__init__

    @functools.wraps(make)
    def told(self: Any, *arguments: Any, **settings: Any) -> None:
        with _as_config_error(name, own_file(name), passed=ValueError):
            make(self, *arguments, **settings)

    config_class.__init__ = told
    return config_class


def clashes(config_class: type[Any], script: type[Any], reserved: Iterable[str]) -> list[str]:
    """Settings of a domain that have the name of one of the script's, and mean something else:
    only with the same type and default they are one and the same."""
    of_script, of_domain = chz.chz_fields(script), chz.chz_fields(config_class)
    problems = []
    for name in dir(config_class):
        if name in reserved:
            problems.append(f"{name} has a meaning of its own in all scripts")
        elif name in of_script and name not in of_domain:
            problems.append(f"{name} is a setting of the script")
        elif name in of_script and _nature(of_script[name]) != _nature(of_domain[name]):
            problems.append(
                f"{name} is a setting of the script too, {_told(of_script[name])}, not "
                f"{_told(of_domain[name])}"
            )
    where = config_class.__name__
    return [f"{where}.{problem}; give it another name" for problem in problems]


def _nature(field: Any) -> tuple[Any, ...]:
    return field.x_type, field._default, field._default_factory


def _told(field: Any) -> str:
    default = "" if field._default is MISSING else f" = {field._default!r}"
    return f"{type_repr(field.x_type)}{default}"


def _parts(name: str) -> tuple[str, str]:
    where, _, class_name = name.rpartition(":")
    # no package that a module's name could be relative to
    unnamed = not _is_path(where) and "" in where.split(".")
    if unnamed or not class_name.isidentifier():
        raise ConfigError(f"domain={name!r}: an own domain is written {FORMS}")
    return where, class_name


def _is_path(where: str) -> bool:
    return where.endswith(".py") or "/" in where or os.sep in where


def _is_class_of(module: types.ModuleType, value: Any) -> bool:
    return isinstance(value, type) and value.__module__ == module.__name__


def _file_module(name: str, where: str) -> types.ModuleType:
    path = expanded(where)
    if path.is_dir():
        raise ConfigError(f"domain={name!r}: {path} is a folder; an own domain is written {FORMS}")
    if not path.is_file():
        raise ConfigError(f"domain={name!r}: {path}: no such file")
    return _run(name, path, path.read_bytes())


@functools.cache
def _run(name: str, path: Path, source: bytes) -> types.ModuleType:
    """The module that this source makes; once, so that its classes are the same each time."""
    digest = hashlib.sha256(str(path.absolute()).encode() + source).hexdigest()
    module = types.ModuleType(f"{path.stem}_{digest[:8]}")
    module.__file__ = str(path.absolute())
    # type hints are looked up there
    sys.modules[module.__name__] = module
    with _as_config_error(name, path), _found_in(path.absolute().parent):
        exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    return module


def _module(name: str, where: str) -> types.ModuleType:
    # after a file was added, in this process too
    importlib.invalidate_caches()
    with _as_config_error(name, None), _found_in(Path.cwd()):
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{where}.".startswith(f"{error.name}."):
                raise
            raise ConfigError(
                f"domain={name!r}: there is no module {error.name} in this folder, nor installed"
            ) from error


@contextlib.contextmanager
def _found_in(folder: Path) -> Generator[None, None, None]:
    """Modules of the folder can be imported, after all others, while the block runs: what lies in
    it must not be taken for a library later on."""
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextlib.contextmanager
def _as_config_error(
    name: str, path: Path | None, *, passed: type[ValueError] = ConfigError
) -> Generator[None, None, None]:
    """Of the lines that led to an error, the last in the folder of `path` is told."""
    try:
        yield
    except passed:
        raise
    except SyntaxError as error:
        # of null bytes no line is known
        line = "" if error.lineno is None else f", line {error.lineno}"
        where = f"{error.filename or path}{line}"
        raise ConfigError(f"domain={name!r}: {where}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        # the user's code, which may raise whatever there is, and end the program
        frames = traceback.extract_tb(error.__traceback__)
        folder = None if path is None else path.absolute().parent
        own = [f for f in frames if Path(f.filename).absolute().parent == folder]
        frame = (own or frames)[-1]
        raise ConfigError(
            f"domain={name!r}: {frame.filename}, line {frame.lineno}: "
            f"{type(error).__name__}: {error}"
        ) from error


def _config_class(name: str, domain_class: type[Any], problems: list[str]) -> Any:
    wanted = (
        f"domain={name!r}: {domain_class.__name__}.__init__ has to take (self, config: Settings, "
        "service), Settings a chz class with the domain's settings"
    )
    try:
        parameters = inspect.signature(domain_class).parameters
        inspect.signature(domain_class).bind(None, None)
        hints = typing.get_type_hints(domain_class.__init__)
    except (TypeError, ValueError, NameError) as error:
        problems.append(f"{wanted} ({error})")
        return None
    config_class = hints.get(next(iter(parameters)))
    if not (isinstance(config_class, type) and chz.is_chz(config_class)):
        problems.append(wanted)
        return None
    return config_class
