"""Checkpoints: a row in the database and a folder of files, there together or not at all.

A folder's name is drawn by chance, so that no text from a request becomes a path and a checkpoint
that overwrites another never touches its files: the row that names the folder changes in one step.
"""

import datetime
import errno
import json
import logging
import os
import re
import secrets
import shutil
import sqlite3
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.api import LoraConfig
from training.serving.errors import ServingError, bad_request, not_found
from training.serving.names import TinkerPath
from training.serving.storage.database import Database, microseconds, moment, packed, window
from training.serving.storage.rows import CheckpointRow, Listed, utc_now
from utils.runs.files import fsync_directory

logger = logging.getLogger(__name__)

MAX_TTL_SECONDS = 10 * 365 * 24 * 3600
# with what the engine's writer may have left beside it
_OURS = re.compile(r"\.?[0-9a-f]{32}(\.[0-9a-f]{16}(\.old)?)?")


@dataclass(frozen=True)
class Begun:
    """A checkpoint that is being written. `folder` does not exist yet."""

    uid: str
    owner: str
    path: TinkerPath
    folder: Path
    base_model: str
    lora: LoraConfig
    has_optimizer: bool
    overwrite: bool
    ttl_seconds: int | None
    user_metadata: Mapping[str, str]


class Checkpoints:
    def __init__(
        self,
        database: Database,
        folder: Path,
        fault: Callable[[Exception], ServingError],
        now: Callable[[], datetime.datetime] = utc_now,
    ) -> None:
        """Files that no row names go, as those of what an earlier server began and did not commit.
        `fault` makes an error of the disk a sentence."""
        self._database = database
        self._folder = folder
        self._fault = fault
        self._now = now
        # by uid; in memory alone, since nothing of them outlives the server
        self._begun: dict[str, Begun] = {}
        # uid -> how many hold it; one that is not in the database any more goes with the last
        self._held: Counter[str] = Counter()
        self._clean()

    # ------------------------------------------------------------------------------------ writing

    def begin(
        self,
        owner: str,
        path: TinkerPath,
        *,
        base_model: str,
        lora: LoraConfig,
        has_optimizer: bool,
        overwrite: bool = False,
        ttl_seconds: int | None = None,
        user_metadata: Mapping[str, str] | None = None,
    ) -> Begun:
        """A place for its files. Raises ServingError 400 where it cannot be saved so."""
        _check_ttl(ttl_seconds)
        uid = secrets.token_hex(16)
        begun = Begun(
            uid,
            owner,
            path,
            self._folder / uid,
            base_model,
            lora,
            has_optimizer,
            overwrite,
            ttl_seconds,
            dict(user_metadata or {}),
        )
        with self._database.lock:
            if not overwrite:
                self._refuse_existing(owner, path)
                if any((b.owner, b.path) == (owner, path) for b in self._begun.values()):
                    raise bad_request(
                        f"path: {path} is being written by another request; choose another name, "
                        "or wait for it and pass overwrite=True",
                        param="path",
                    )
            self._begun[uid] = begun
        return begun

    def commit(self, begun: Begun, source: Path | None = None) -> CheckpointRow:
        """The checkpoint is there from now on, whatever happens to the machine, in place of one of
        the same name if it was begun so. `source`: the folder that its files were written to, if
        not begun.folder; it is taken in. The time to live begins now.

        Raises ServingError, and then it is aborted: 500 for an error of the disk.
        """
        assert begun.uid in self._begun, "committed or aborted before"
        try:
            if source is not None:
                _move(source, begun.folder)
            row, replaced = self._enter(begun, _flush(begun.folder))
        except OSError as error:
            self.abort(begun)
            raise self._fault(error) from error
        except BaseException:
            self.abort(begun)
            raise
        if replaced is not None:
            self._remove_files(replaced)
        return row

    def abort(self, begun: Begun) -> None:
        """It will not be committed; its files go. One that is committed stays."""
        with self._database.lock:
            is_begun = self._begun.pop(begun.uid, None) is not None
        if is_begun:
            _remove(begun.folder)

    # ------------------------------------------------------------------------------------- reading

    def get(self, owner: str, path: TinkerPath) -> CheckpointRow | None:
        sql = f"SELECT * FROM checkpoints WHERE {_NAMED}"
        rows = self._database.read(sql, owner, path.run_id, path.kind, path.name)
        return self._row(rows[0]) if rows else None

    def list(
        self,
        owner: str,
        run_id: str | None = None,
        limit: int | None = None,
        offset: int = 0,
        *,
        kind: str | None = None,
    ) -> Listed[CheckpointRow]:
        """Newest first, of one run or of all, of one kind or of all. Raises ServingError 400 for a
        negative limit."""
        limit, offset = window(limit, offset)
        sql = "FROM checkpoints WHERE owner = ?"
        values: list[Any] = [owner]
        for column, value in (("run_id", run_id), ("kind", kind)):
            if value is not None:
                sql += f" AND {column} = ?"
                values.append(value)
        with self._database.lock:
            total = self._database.read(f"SELECT count(*) {sql}", *values)[0][0]
            order = "ORDER BY created_at DESC, rowid DESC LIMIT ? OFFSET ?"
            rows = self._database.read(f"SELECT * {sql} {order}", *values, limit, offset)
        return Listed([self._row(row) for row in rows], total)

    def latest(self, owner: str, run_id: str, kind: str) -> CheckpointRow | None:
        rows = self._database.read(
            "SELECT * FROM checkpoints WHERE owner = ? AND run_id = ? AND kind = ?"
            " ORDER BY created_at DESC, rowid DESC LIMIT 1",
            owner,
            run_id,
            kind,
        )
        return self._row(rows[0]) if rows else None

    def files(self, row: CheckpointRow) -> dict[str, Path]:
        """Name -> path of what can be downloaded: plain files of its folder, no links."""
        try:
            with os.scandir(row.folder) as entries:
                names = [e.name for e in entries if e.is_file(follow_symlinks=False)]
        except OSError as error:
            raise self._fault(error) from error
        return {name: row.folder / name for name in sorted(names)}

    # ------------------------------------------------------------------------------------ changing

    def set_ttl(
        self, owner: str, path: TinkerPath, ttl_seconds: int | None
    ) -> CheckpointRow | None:
        """It expires so many seconds from now, or never with None; None where there is no such
        checkpoint. Raises ServingError 400."""
        _check_ttl(ttl_seconds)
        expires_at = _expiry(self._now(), ttl_seconds)
        with self._database.transaction(durable=True):
            self._database.write(
                f"UPDATE checkpoints SET expires_at = ? WHERE {_NAMED}",
                microseconds(expires_at),
                owner,
                path.run_id,
                path.kind,
                path.name,
            )
            return self.get(owner, path)

    def publish(self, owner: str, path: TinkerPath, public: bool) -> CheckpointRow | None:
        """Marks it; None where there is no such checkpoint."""
        with self._database.transaction():
            self._database.write(
                f"UPDATE checkpoints SET public = ? WHERE {_NAMED}",
                public,
                owner,
                path.run_id,
                path.kind,
                path.name,
            )
            return self.get(owner, path)

    def delete(self, owner: str, path: TinkerPath) -> bool:
        """False where there is no such checkpoint. Files that are held go when they are let go."""
        with self._database.transaction(durable=True):
            row = self.get(owner, path)
            if row is None:
                return False
            self._database.write("DELETE FROM checkpoints WHERE uid = ?", row.uid)
        self._remove_files(row.uid)
        return True

    def remove_expired(self) -> Sequence[CheckpointRow]:
        """Removes those whose time is over and which nobody holds; which they were."""
        with self._database.transaction(durable=True):
            sql = "SELECT * FROM checkpoints WHERE expires_at <= ?"
            found = self._database.read(sql, microseconds(self._now()))
            rows = [self._row(row) for row in found if not self._held[row["uid"]]]
            for row in rows:
                self._database.write("DELETE FROM checkpoints WHERE uid = ?", row.uid)
        for row in rows:
            self._remove_files(row.uid)
        return rows

    def hold(self, row: CheckpointRow) -> Callable[[], None]:
        """Keeps its files until the function that comes back is called, also when meanwhile it
        expires, is deleted or overwritten. Raises ServingError 404 where it is gone already."""
        with self._database.lock:
            if not self._held[row.uid] and self._by_uid(row.uid) is None:
                raise not_found(str(row.path), param="path")
            self._held[row.uid] += 1
        is_held = [True]

        def let_go() -> None:
            with self._database.lock:
                if not is_held[0]:
                    return
                is_held[0] = False
                self._held[row.uid] -= 1
                is_gone = self._by_uid(row.uid) is None
            if is_gone:
                self._remove_files(row.uid)

        return let_go

    # -------------------------------------------------------------------------------------- within

    def _enter(self, begun: Begun, size: int) -> tuple[CheckpointRow, str | None]:
        """Makes it a row; the uid of the one that it replaces."""
        now = self._now()
        path = begun.path
        with self._database.transaction(durable=True):
            if not begun.overwrite:
                self._refuse_existing(begun.owner, path)
            old = self.get(begun.owner, path)
            if old is not None:
                self._database.write("DELETE FROM checkpoints WHERE uid = ?", old.uid)
            self._database.write(
                "INSERT INTO checkpoints VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, 0, ?, ?, ?)",
                begun.uid,
                begun.owner,
                path.run_id,
                path.kind,
                path.name,
                begun.base_model,
                packed(asdict(begun.lora)),
                begun.has_optimizer,
                packed(begun.user_metadata),
                size,
                microseconds(now),
                microseconds(_expiry(now, begun.ttl_seconds)),
            )
            row = self._by_uid(begun.uid)
        assert row is not None
        del self._begun[begun.uid]
        return row, None if old is None else old.uid

    def _refuse_existing(self, owner: str, path: TinkerPath) -> None:
        if self.get(owner, path) is not None:
            raise bad_request(
                f"path: {path} exists; choose another name, delete it, or pass overwrite=True "
                "where the method has it",
                param="path",
            )

    def _by_uid(self, uid: str) -> CheckpointRow | None:
        sql = "SELECT * FROM checkpoints WHERE uid = ?"
        rows = self._database.read(sql, uid)
        return self._row(rows[0]) if rows else None

    def _row(self, row: sqlite3.Row) -> CheckpointRow:
        return CheckpointRow(
            row["uid"],
            row["owner"],
            TinkerPath(row["run_id"], row["kind"], row["name"]),
            self._folder / row["uid"],
            row["base_model"],
            LoraConfig(**json.loads(row["lora"])),
            bool(row["has_optimizer"]),
            row["size_bytes"],
            json.loads(row["user_metadata"]),
            moment(row["created_at"]),
            None if row["expires_at"] is None else moment(row["expires_at"]),
            bool(row["public"]),
        )

    def _remove_files(self, uid: str) -> None:
        """Of a checkpoint that no row names any more, unless somebody holds it."""
        with self._database.lock:
            if self._held[uid]:
                return
            del self._held[uid]
        _remove(self._folder / uid)

    def _clean(self) -> None:
        with self._database.transaction():
            sql = "SELECT uid, run_id, kind, name FROM checkpoints"
            for row in self._database.read(sql):
                if not (self._folder / row["uid"]).is_dir():
                    path = TinkerPath(row["run_id"], row["kind"], row["name"])
                    logger.warning("%s: its files are gone; it is not listed any more", path)
                    self._database.write("DELETE FROM checkpoints WHERE uid = ?", row["uid"])
            known = {row["uid"] for row in self._database.read("SELECT uid FROM checkpoints")}
        for entry in self._folder.iterdir():
            if entry.name not in known and _OURS.fullmatch(entry.name):
                _remove(entry)


_NAMED = "owner = ? AND run_id = ? AND kind = ? AND name = ?"


def _check_ttl(ttl_seconds: int | None) -> None:
    if ttl_seconds is not None and not 1 <= ttl_seconds <= MAX_TTL_SECONDS:
        raise bad_request(
            f"ttl_seconds: got {ttl_seconds}, allowed is 1 to {MAX_TTL_SECONDS}, or null for a "
            "checkpoint that never expires",
            param="ttl_seconds",
        )


def _expiry(start: datetime.datetime, ttl_seconds: int | None) -> datetime.datetime | None:
    return None if ttl_seconds is None else start + datetime.timedelta(seconds=ttl_seconds)


def _move(source: Path, folder: Path) -> None:
    try:
        source.rename(folder)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        shutil.copytree(source, folder, symlinks=True)
        shutil.rmtree(source)


def _flush(folder: Path) -> int:
    """Bytes of the files, which are on the disk then. Raises OSError, also for what is no plain
    file of the folder."""
    size = 0
    if folder.is_symlink():
        raise OSError(errno.EINVAL, "a checkpoint is a folder, no link", str(folder))
    with os.scandir(folder) as entries:
        for entry in entries:
            if not entry.is_file(follow_symlinks=False):
                raise OSError(errno.EINVAL, "a checkpoint has plain files only", entry.path)
            descriptor = os.open(entry.path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            size += entry.stat(follow_symlinks=False).st_size
    fsync_directory(folder)
    fsync_directory(folder.parent)
    return size


def _remove(path: Path) -> None:
    """A link goes, what it points to stays. What cannot be removed now goes at the next start."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        logger.warning("%s: cannot be removed: %s", path.name, error.strerror)
