"""JSON, JSON lines and text that come from outside: what cannot be read is named by its place.

Lines end with "\\n" and nothing else: U+2028, U+0085 and form feeds are characters of a text. NaN
and Infinity pass, which Python and others write.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(path: Path | str) -> Any:
    """The value in a file; a ValueError names file, line and byte where it is not UTF-8 JSON, and
    the field that holds half a surrogate pair, which is no text."""
    return parse_texts(Path(path).read_bytes(), str(path))


def read_json_object(path: Path | str) -> dict[str, Any]:
    """`read_json` of a file that has to hold an object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(value).__name__}")
    return value


def read_json_lines(path: Path | str, problems: list[str]) -> Iterator[tuple[str, Any]]:
    """The value of each line that is not blank, with the line's name for messages. A line that is
    not what read_json() takes goes to `problems`, named by file, line and byte or field."""
    for number, line in numbered_lines(path):
        try:
            value = parse_texts(line, str(path), line=number)
        except ValueError as error:
            problems.append(str(error))
        else:
            yield line_name(path, number), value


def line_name(path: Path | str, number: int) -> str:
    return f"{path}, line {number}"


def numbered_lines(path: Path | str) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, as they are, numbered from 1."""
    # a binary file is cut at b"\n" alone, and is never in memory whole
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.isspace():
                yield number, line


def parse_json(data: bytes, name: str, *, line: int = 1) -> Any:
    """The value of `data`, which stands in `name` from the start of `line` on. A ValueError names
    line and byte, both counted from 1, where it is not UTF-8 JSON."""
    text = utf8_text(data, name, line=line)
    # some editors open a file with a byte order mark
    start = int(line == 1 and text.startswith("\ufeff"))
    try:
        return json.loads(text[start:] if start else text, object_pairs_hook=unique_keys)
    except json.JSONDecodeError as error:
        position = len(text[: start + error.pos].encode())
        # what ends too early is missed at its end, not on the next line
        place = _place(data, min(position, len(data.rstrip())), line)
        raise ValueError(f"{name}, {place}: no JSON ({error.msg})") from error
    except RecursionError as error:
        raise ValueError(f"{line_name(name, line)}: JSON nested too deep to be read") from error
    except ValueError as error:
        # numbers of thousands of digits, keys that stand twice
        raise ValueError(f"{line_name(name, line)}: no JSON ({error})") from error


def parse_texts(data: bytes, name: str, *, line: int = 1) -> Any:
    """parse_json(), with a ValueError that names the field where a text is none: where it holds
    half a surrogate pair."""
    value = parse_json(data, name, line=line)
    # such halves can only come from escapes; looking through every text would cost time
    if _SURROGATE.search(data):
        for field, text in texts_in(value):
            half = half_pair(text)
            if half is not None:
                raise ValueError(f"{line_name(name, line)}: {field} holds {half}")
    return value


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """For json's `object_pairs_hook`: a ValueError names the keys that stand twice."""
    made = dict(pairs)
    if len(made) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise ValueError(f"repeated keys {sorted(key for key, n in counts.items() if n > 1)}")
    return made


def utf8_text(data: bytes, name: str, *, line: int = 1) -> str:
    """`data` as text; a ValueError names line and byte of what is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        place = _place(data, error.start, line)
        raise ValueError(
            f"{name}, {place}: not UTF-8 ({error.reason}, {data[error.start]:#04x}); save the file "
            "as UTF-8"
        ) from error


def half_pair(text: str) -> str | None:
    """What to say of a text that UTF-8 cannot write, because it holds half a surrogate pair."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        half = f"\\u{ord(text[error.start]):04x}"
        return f"half a surrogate pair ({half} at character {error.start + 1}), which is no text"
    return None


def texts_in(value: Any, field: str = "") -> Iterator[tuple[str, str]]:
    """Every text in mappings and lists, keys too, with where it stands: messages[1].content."""
    if isinstance(value, str):
        yield field or "the value", value
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from texts_in(item, f"{field}[{i}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            yield f"the key {key!r}", key
            yield from texts_in(item, f"{field}.{key}" if field else key)


def _place(data: bytes, position: int, line: int) -> str:
    before = data[:position]
    number, byte = line + before.count(b"\n"), position - before.rfind(b"\n")
    return f"line {number}, byte {byte}"
