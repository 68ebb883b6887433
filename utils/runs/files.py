"""Files that survive a crash: written whole or not at all, and JSON lines with a torn end."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from utils.json_files import line_name, numbered_lines, parse_json

logger = logging.getLogger(__name__)


@contextlib.contextmanager
def atomic_writer(path: Path | str) -> Generator[BinaryIO, None, None]:
    """A file to write to, which replaces `path` in one step when the block ends well; parent
    folders are made. After an error or a crash `path` holds what it held, never a mixture."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(temporary, path.stat().st_mode & 0o7777)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)


def atomic_write_bytes(path: Path | str, data: bytes) -> None:
    """Replace `path` by `data` in one step, see `atomic_writer`."""
    with atomic_writer(path) as file:
        file.write(data)


def atomic_write_text(path: Path | str, text: str) -> None:
    """`atomic_write_bytes` of UTF-8 text, newlines as they are."""
    atomic_write_bytes(path, text.encode("utf-8"))


def fsync_directory(path: Path | str) -> None:
    """Make renames inside `path` durable, where the platform can."""
    # Windows cannot open folders, and some network file systems refuse to sync them
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def expanded(path: Path | str) -> Path:
    """With the home folder for a leading ~ or ~name; ValueError where there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path}: {error}") from error


def shown_path(path: Path | str) -> str:
    """As one would type it: relative where it lies below the working directory."""
    below = Path(path).is_relative_to(Path.cwd())
    return str(Path(path).relative_to(Path.cwd())) if below else str(path)


def append_jsonl(path: Path | str, record: Mapping[str, Any], *, fsync: bool = False) -> None:
    """Append one line and flush it; a torn line that a crash left at the end is removed first."""
    path = Path(path)
    line = json.dumps(record, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    _mend_tail(path)
    with open(path, "ab") as file:
        file.write(line)
        file.flush()
        if fsync:
            os.fsync(file.fileno())


def read_jsonl(path: Path | str, *, missing_ok: bool = False) -> list[dict[str, Any]]:
    """The records of a file written by `append_jsonl`; with `missing_ok` none where it is absent.

    A last line without its newline that does not parse was torn by a crash: it is dropped with a
    warning. Any other broken line is a ValueError naming file and line.
    """
    records: list[dict[str, Any]] = []
    if missing_ok and not Path(path).exists():
        return records
    for number, line in numbered_lines(path):
        try:
            record = parse_json(line, str(path), line=number)
        except ValueError:
            if line.endswith(b"\n"):
                raise
            logger.warning("%s: dropped a line torn by a crash", line_name(path, number))
            break
        if not isinstance(record, dict):
            raise ValueError(f"{line_name(path, number)}: expected a JSON object, got {record!r}")
        records.append(record)
    return records


def _mend_tail(path: Path) -> None:
    if not path.exists():
        return
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        if size == 0:
            return
        file.seek(-1, os.SEEK_END)
        if file.read(1) == b"\n":
            return
        file.seek(0)
        start = file.read().rfind(b"\n") + 1
        file.seek(start)
        try:
            json.loads(file.read())
        except ValueError:
            logger.warning("%s: removed a line torn by a crash", path)
            file.truncate(start)
        else:
            file.write(b"\n")
