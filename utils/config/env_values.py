"""`${oc.env:VAR}` and `${oc.env:VAR,default}` in the text of settings, as OmegaConf writes them."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

OPENING = "${oc.env:"
_NAME = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_]*)\s*([,}])")


class _Part(NamedTuple):
    text: str | None
    end: int


def resolve_env(text: str) -> str | None:
    """`text` with the values of the variables it names: those of the environment, else of the
    nearest `.env` file. Other text stays as it is. A default may name further variables, which
    count only when it is needed; None comes out where `text` is one variable whose default `null`
    is taken.

    Raises ValueError for a variable that is not set and has no default, and for a missing brace.
    """
    parts: list[str | None] = []
    position = 0
    while (start := text.find(OPENING, position)) >= 0:
        value, end = _variable(text, start, needed=True)
        parts += [text[position:start], value]
        position = end
    parts.append(text[position:])
    pieces = [part for part in parts if part != ""]
    return None if pieces == [None] else "".join("null" if p is None else p for p in pieces)


def _variable(text: str, start: int, *, needed: bool) -> _Part:
    """The value of the variable whose `${oc.env:` begins at `start`, and where it ends."""
    found = _NAME.match(text, start + len(OPENING))
    if found is None:
        raise ValueError(f"{text[start:]!r}: expected {OPENING}NAME}} or {OPENING}NAME,default}}")
    name, separator = found.groups()
    value = _value(name) if needed else ""
    if separator == "}":
        if value is None:
            raise ValueError(
                f"environment variable {name} is not set; set it, here or in a .env file, or "
                f"write {OPENING}{name},default}}"
            )
        return _Part(value, found.end())
    default, end = _default(text, found.end(), needed=needed and value is None)
    return _Part(default if value is None else value, end)


def _default(text: str, start: int, *, needed: bool) -> _Part:
    """The default that begins at `start`, up to its closing brace; variables in it resolved."""
    pieces: list[str] = []
    position = start
    while position < len(text):
        if text.startswith(OPENING, position):
            value, position = _variable(text, position, needed=needed)
            pieces.append("null" if value is None else value)
        elif text[position] == "}":
            default = "".join(pieces).strip()
            if default == "null":
                return _Part(None, position + 1)
            if len(default) > 1 and default[0] == default[-1] and default[0] in "'\"":
                default = default[1:-1]
            return _Part(default, position + 1)
        else:
            pieces.append(text[position])
            position += 1
    raise ValueError(f"{text!r}: a closing brace is missing")


def _value(name: str) -> str | None:
    if name in os.environ:
        return os.environ[name]
    from dotenv import dotenv_values, find_dotenv

    # the process's environment stays as it is: only a script's main() may load the file into it
    path = find_dotenv(usecwd=True)
    return dotenv_values(path).get(name) if path else None
