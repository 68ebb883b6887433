"""What a terminal is shown: text that it may not be able to write, and commands to copy."""

from __future__ import annotations

import codecs
import io
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any

# our own tables' and messages' signs, of the same width where there is one
PLAIN_SIGNS = {"─": "-", "…": "~", "→": ">", "±": "+-"}
# control characters, ends of lines, and what turns the direction of writing round
_STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
# what Python takes where nobody asked for anything else
DEFAULT_ERRORS = ("strict", "surrogateescape")


def print_anything() -> None:
    """Lets print show on stdout what its encoding (ASCII, Latin-1, ...) does not have: our own
    signs as plain ones, all else as escapes. Python's stderr does so by itself."""
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper) and stream.errors in DEFAULT_ERRORS:
        codecs.register_error("plain_signs", _plain)
        stream.reconfigure(errors="plain_signs")


def wants_colour() -> bool:
    """Whether stdout is a terminal, and neither NO_COLOR (https://no-color.org) nor TERM=dumb asks
    for none."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return sys.stdout is not None and sys.stdout.isatty()


def _plain(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    missing = error.object[error.start : error.end]
    escaped = (c.encode("ascii", "backslashreplace").decode("ascii") for c in missing)
    shown = [PLAIN_SIGNS.get(c, e) for c, e in zip(missing, escaped, strict=True)]
    return "".join(shown), error.end


def visible(text: str) -> str:
    """`text`, from outside, on one line: characters that would steer a terminal as escapes."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def argument_text(value: Any) -> str:
    """The value as the command line has it after the `=`."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, Path)):
        return str(value)
    return repr(value)


def setting(name: str, value: Any) -> str:
    """`name=value` to be pasted into a shell."""
    # JSON's double quotes are easier to read than Python's inside the shell's single ones
    is_texts = isinstance(value, list) and all(isinstance(item, str) for item in value)
    text = json.dumps(value, ensure_ascii=False) if is_texts else argument_text(value)
    return shell_word(f"{name}={text}")


def shell_word(text: str) -> str:
    """`text` quoted for a shell: as it is where stdout and stderr show it as it is, else as the
    ASCII of bash's and zsh's $'...', which stands for the bytes that a file's name has."""
    sent = _bytes_of(text)
    if text.isprintable() and all(_shown(text, s) == sent for s in (sys.stdout, sys.stderr)):
        return shlex.quote(text)
    quoted = {ord("\\"): "\\\\", ord("'"): "\\'"}
    # a shell reads two digits at most
    escaped = (quoted.get(b, chr(b) if 32 <= b < 127 else f"\\x{b:02x}") for b in sent)
    return f"$'{''.join(escaped)}'"


def _bytes_of(text: str) -> bytes:
    try:
        return os.fsencode(text)
    except UnicodeEncodeError:
        # no name of a file here, whatever the shell makes of it
        return text.encode("utf-8", "surrogatepass")


def _shown(text: str, stream: object) -> bytes | None:
    """What a terminal gets of it; None where the stream has to write something else."""
    try:
        return text.encode(getattr(stream, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return None


def command(script: str, **settings: Any) -> str:
    """How to start `scripts/<script>.py` with these settings, to be pasted into a shell; those that
    are None are left out."""
    given = [setting(name, value) for name, value in settings.items() if value is not None]
    return " ".join(["uv run", f"scripts/{script}.py", *given])
