"""The store's SQLite file: its version, transactions, and errors as sentences."""

import contextlib
import datetime
import json
import sqlite3
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from training.serving.errors import ServingError, bad_request, server_fault

FILE = "serving.sqlite"
# "Atdt", which tells this file from any other program's
_APPLICATION = 0x41746474
VERSION = 1
# times are microseconds since 1970; what is a list or a mapping is JSON
_SCHEMA = """
CREATE TABLE sessions (
    session_id TEXT PRIMARY KEY, owner TEXT NOT NULL, tags TEXT NOT NULL,
    user_metadata TEXT NOT NULL, sdk_version TEXT NOT NULL, project_id TEXT, display_name TEXT,
    created_at INTEGER NOT NULL, finished_at INTEGER, finish_reason TEXT);
CREATE INDEX sessions_of ON sessions (owner, created_at);
CREATE TABLE runs (
    run_id TEXT PRIMARY KEY, owner TEXT NOT NULL, session_id TEXT NOT NULL,
    base_model TEXT NOT NULL, lora TEXT NOT NULL, user_metadata TEXT NOT NULL,
    optimizer TEXT NOT NULL, created_at INTEGER NOT NULL, last_request_at INTEGER NOT NULL);
CREATE INDEX runs_of ON runs (owner, created_at);
CREATE INDEX runs_in ON runs (session_id);
CREATE TABLE samplers (
    sampler_id TEXT PRIMARY KEY, owner TEXT NOT NULL, session_id TEXT NOT NULL,
    base_model TEXT NOT NULL, model_path TEXT, created_at INTEGER NOT NULL);
CREATE INDEX samplers_in ON samplers (session_id);
CREATE TABLE checkpoints (
    uid TEXT PRIMARY KEY, owner TEXT NOT NULL, run_id TEXT NOT NULL, kind TEXT NOT NULL,
    name TEXT NOT NULL, base_model TEXT NOT NULL, lora TEXT NOT NULL,
    has_optimizer INTEGER NOT NULL, user_metadata TEXT NOT NULL, public INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL, created_at INTEGER NOT NULL, expires_at INTEGER);
CREATE UNIQUE INDEX checkpoints_named ON checkpoints (owner, run_id, kind, name);
CREATE INDEX checkpoints_of ON checkpoints (owner, created_at);
CREATE TABLE futures (
    request_id TEXT PRIMARY KEY, owner TEXT NOT NULL, kind TEXT NOT NULL, scope TEXT NOT NULL,
    seq_id INTEGER, digest TEXT NOT NULL, state TEXT NOT NULL, created_at INTEGER NOT NULL);
CREATE UNIQUE INDEX futures_numbered ON futures (owner, scope, seq_id) WHERE seq_id IS NOT NULL;
CREATE INDEX futures_by_age ON futures (created_at);
"""
MAX_INTEGER = 2**63 - 1


class Database:
    """One connection that all threads share; `lock` makes several calls one."""

    def __init__(self, file: Path) -> None:
        """Raises ValueError for a file that is no store, of another version, or not writable."""
        self.lock = threading.RLock()
        try:
            self._connection = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
            try:
                self._open(file)
            except BaseException:
                self._connection.close()
                raise
        except sqlite3.Error as error:
            raise ValueError(f"{file}: cannot be opened as a store: {error}") from error

    def _open(self, file: Path) -> None:
        self._connection.row_factory = sqlite3.Row
        application = self._pragma("application_id")
        version = self._pragma("user_version")
        tables = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if application != _APPLICATION and (application or version or tables):
            raise ValueError(f"{file}: another program's file, no store; give another folder")
        if application == _APPLICATION and version != VERSION:
            raise ValueError(
                f"{file}: a store of version {version}, and this server has version {VERSION}; "
                "give another folder, or use the release that made it"
            )
        self._connection.execute("PRAGMA journal_mode=WAL")
        # with a write-ahead log a crash of the machine may cost the last writes, never the file
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            if not application:
                for statement in _SCHEMA.split(";"):
                    self._connection.execute(statement)
            # also where nothing is new: a file that cannot be written is told at the start
            self._connection.execute(f"PRAGMA application_id={_APPLICATION}")
            self._connection.execute(f"PRAGMA user_version={VERSION}")
            self._connection.execute("COMMIT")
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise

    def _pragma(self, name: str) -> int:
        return self._connection.execute(f"PRAGMA {name}").fetchone()[0]

    def close(self) -> None:
        with self.lock:
            self._connection.close()

    def read(self, sql: str, *values: Any) -> list[sqlite3.Row]:
        with self.lock, _told():
            return self._connection.execute(sql, _bound(values)).fetchall()

    def write(self, sql: str, *values: Any) -> int:
        """How many rows it changed; within a `transaction` a part of that."""
        with self.lock, _told():
            return self._connection.execute(sql, _bound(values)).rowcount

    @contextlib.contextmanager
    def transaction(self, *, durable: bool = False) -> Iterator[None]:
        """All of the block's writes or none, and no other thread's between them.

        `durable`: at the end they are on the disk, whatever happens to the machine.
        """
        with self.lock, _told():
            if durable:
                self._connection.execute("PRAGMA synchronous=FULL")
            try:
                self._connection.execute("BEGIN IMMEDIATE")
                yield
                self._connection.execute("COMMIT")
            finally:
                # after a full disk SQLite has rolled back itself
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                if durable:
                    self._connection.execute("PRAGMA synchronous=NORMAL")


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """A disk that is full or cannot be written is a sentence for the user."""
    try:
        yield
    except (sqlite3.IntegrityError, sqlite3.ProgrammingError):
        # our own mistakes
        raise
    except sqlite3.DatabaseError as error:
        raise _fault(error) from error


def _fault(error: sqlite3.DatabaseError) -> ServingError:
    return server_fault(f"{FILE}: {error}; the server could not note this request")


def _bound(values: tuple[Any, ...]) -> list[Any]:
    """As SQLite takes them. Half of a surrogate pair, which JSON can hold, becomes U+FFFD."""
    return [
        value.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        if isinstance(value, str)
        else value
        for value in values
    ]


# ---------------------------------------------------------------------------------- what is stored


def microseconds(time: datetime.datetime | None) -> int | None:
    if time is None:
        return None
    assert time.tzinfo is not None
    return (time - _EPOCH) // datetime.timedelta(microseconds=1)


def moment(value: int) -> datetime.datetime:
    return _EPOCH + datetime.timedelta(microseconds=value)


_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def packed(value: Mapping[str, Any] | list[Any]) -> str:
    return json.dumps(value)


def window(limit: int | None, offset: int) -> tuple[int, int]:
    """What LIMIT and OFFSET take; no limit is None. Raises ServingError 400."""
    for name, value in (("limit", limit), ("offset", offset)):
        if value is not None and not 0 <= value <= MAX_INTEGER:
            raise bad_request(f"{name}: got {value}, allowed is a number from 0", param=name)
    return -1 if limit is None else limit, offset
