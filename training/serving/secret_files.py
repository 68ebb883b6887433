"""Secrets of a store: made by chance once, in a file that only the server's user can read."""

import contextlib
import os
import secrets
from pathlib import Path

from utils.runs.files import fsync_directory


def kept_secret(path: Path, what: str, prefix: str = "") -> str:
    """What the file says; where there is none it is made. Two servers that start at once have the
    same. Raises ValueError, which calls it `what`."""
    try:
        with contextlib.suppress(FileExistsError):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write(path, prefix + secrets.token_urlsafe(24))
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
        raise ValueError(f"{path}: {what}: {reason}") from error


def _write(path: Path, text: str) -> None:
    """Raises FileExistsError."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, path)
    finally:
        temporary.unlink()
    fsync_directory(path.parent)
