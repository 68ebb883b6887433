"""One writer at a time for a folder or a file, for as long as that process lives."""

from __future__ import annotations

import contextlib
import json
import os
import socket
from collections.abc import Generator
from pathlib import Path

from filelock import FileLock, Timeout

from utils.config.errors import ConfigError
from utils.runs.files import atomic_write_text


class Claim:
    """Held until `release`, or the process's end, however that comes (the system then lets go).
    Folders that were made for it and are still empty at the release go with it.

    `lock` is the file that is locked; who holds it stands in a file beside it. Raises ConfigError
    where another holds it, or `lock` cannot be written, beginning with `what` the claim is for.
    """

    def __init__(self, lock: Path, what: str) -> None:
        self._lock = FileLock(lock, thread_local=False)
        self._holder = lock.with_suffix(".json")
        # the innermost first
        self._made = [folder for folder in lock.parents if not folder.exists()]
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            me = {"pid": os.getpid(), "host": socket.gethostname()}
            atomic_write_text(self._holder, json.dumps(me))
        except Timeout:
            raise ConfigError(
                f"{what}: {_told(self._holder)} is at work here; wait for it or stop it, or give "
                "another"
            ) from None
        except OSError as error:
            self._lock.release()
            self._remove_empty()
            raise ConfigError(
                f"{what}: nothing can be written there ({error.strerror}: {error.filename}); give "
                "another"
            ) from error

    def release(self) -> None:
        if not self._lock.is_locked:
            return
        # in this order: who gets hold of a file without a name knows that it guards nothing
        self._holder.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            os.unlink(self._lock.lock_file)
        self._lock.release()
        self._remove_empty()

    def _remove_empty(self) -> None:
        with contextlib.suppress(OSError):
            for folder in self._made:
                folder.rmdir()


@contextlib.contextmanager
def claimed(lock: Path, what: str) -> Generator[None, None, None]:
    """A `Claim` for the block."""
    claim = Claim(lock, what)
    try:
        yield
    finally:
        claim.release()


def _told(holder: Path) -> str:
    try:
        found = json.loads(holder.read_text(encoding="utf-8"))
        return f"another process (pid {found['pid']} on {found['host']})"
    except (OSError, ValueError, KeyError):
        # it has the lock, and has not said so yet
        return "another process"
