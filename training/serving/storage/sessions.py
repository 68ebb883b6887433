"""Sessions of clients, and what was made in them: runs and samplers."""

import json
import sqlite3
from dataclasses import asdict

from training.api import LoraConfig
from training.serving.storage.database import Database, microseconds, moment, packed, window
from training.serving.storage.rows import Listed, Run, Sampler, Session, utc_now


class Sessions:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, session: Session) -> None:
        self._database.write(
            "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, ?, ?, ?, NULL, NULL)",
            session.session_id,
            session.owner,
            packed(list(session.tags)),
            packed(dict(session.user_metadata)),
            session.sdk_version,
            session.project_id,
            session.display_name,
            microseconds(session.created_at),
        )

    def get(self, owner: str, session_id: str) -> Session | None:
        sql = "SELECT * FROM sessions WHERE session_id = ? AND owner = ?"
        rows = self._database.read(sql, session_id, owner)
        return _session(rows[0]) if rows else None

    def finish(self, owner: str, session_id: str, reason: str) -> bool:
        """False, and nothing changed, for one that is unknown or was finished before."""
        changed = self._database.write(
            "UPDATE sessions SET finished_at = ?, finish_reason = ?"
            " WHERE session_id = ? AND owner = ? AND finished_at IS NULL",
            microseconds(utc_now()),
            reason,
            session_id,
            owner,
        )
        return changed == 1

    def list(self, owner: str, limit: int | None = None, offset: int = 0) -> Listed[Session]:
        """Newest first. Raises ServingError 400 for a negative limit or offset."""
        limit, offset = window(limit, offset)
        sql = "FROM sessions WHERE owner = ?"
        with self._database.lock:
            total = self._database.read(f"SELECT count(*) {sql}", owner)[0][0]
            order = "ORDER BY created_at DESC, rowid DESC LIMIT ? OFFSET ?"
            rows = self._database.read(f"SELECT * {sql} {order}", owner, limit, offset)
        return Listed([_session(row) for row in rows], total)


class Runs:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, run: Run) -> Run:
        """The run of that id: this one, or the one that was there, which stays as it is."""
        with self._database.transaction():
            self._database.write(
                "INSERT OR IGNORE INTO runs VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                run.run_id,
                run.owner,
                run.session_id,
                run.base_model,
                packed(asdict(run.lora)),
                packed(dict(run.user_metadata)),
                run.optimizer,
                microseconds(run.created_at),
                microseconds(run.last_request_at),
            )
            found = self.get(run.owner, run.run_id)
        assert found is not None, "ids begin with a session's, which nobody can guess"
        return found

    def get(self, owner: str, run_id: str) -> Run | None:
        sql = "SELECT * FROM runs WHERE run_id = ? AND owner = ?"
        rows = self._database.read(sql, run_id, owner)
        return _run(rows[0]) if rows else None

    def touch(self, run_id: str) -> None:
        """A request was made to it now."""
        sql = "UPDATE runs SET last_request_at = ? WHERE run_id = ?"
        self._database.write(sql, microseconds(utc_now()), run_id)

    def of_session(self, owner: str, session_id: str) -> list[Run]:
        """In the order in which they were made."""
        sql = "SELECT * FROM runs WHERE session_id = ? AND owner = ? ORDER BY created_at, rowid"
        return [_run(row) for row in self._database.read(sql, session_id, owner)]

    def list(self, owner: str, limit: int | None = None, offset: int = 0) -> Listed[Run]:
        """Newest first. Raises ServingError 400 for a negative limit or offset."""
        limit, offset = window(limit, offset)
        sql = "FROM runs WHERE owner = ?"
        with self._database.lock:
            total = self._database.read(f"SELECT count(*) {sql}", owner)[0][0]
            order = "ORDER BY created_at DESC, rowid DESC LIMIT ? OFFSET ?"
            rows = self._database.read(f"SELECT * {sql} {order}", owner, limit, offset)
        return Listed([_run(row) for row in rows], total)


class Samplers:
    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, sampler: Sampler) -> Sampler:
        """The sampler of that id: this one, or the one that was there, which stays as it is."""
        with self._database.transaction():
            self._database.write(
                "INSERT OR IGNORE INTO samplers VALUES (?, ?, ?, ?, ?, ?)",
                sampler.sampler_id,
                sampler.owner,
                sampler.session_id,
                sampler.base_model,
                sampler.model_path,
                microseconds(sampler.created_at),
            )
            found = self.get(sampler.owner, sampler.sampler_id)
        assert found is not None, "ids begin with a session's, which nobody can guess"
        return found

    def get(self, owner: str, sampler_id: str) -> Sampler | None:
        sql = "SELECT * FROM samplers WHERE sampler_id = ? AND owner = ?"
        rows = self._database.read(sql, sampler_id, owner)
        return _sampler(rows[0]) if rows else None

    def of_session(self, owner: str, session_id: str) -> list[Sampler]:
        """In the order in which they were made."""
        sql = "SELECT * FROM samplers WHERE session_id = ? AND owner = ? ORDER BY created_at, rowid"
        return [_sampler(row) for row in self._database.read(sql, session_id, owner)]


def _session(row: sqlite3.Row) -> Session:
    return Session(
        row["session_id"],
        row["owner"],
        tuple(json.loads(row["tags"])),
        json.loads(row["user_metadata"]),
        row["sdk_version"],
        row["project_id"],
        row["display_name"],
        moment(row["created_at"]),
        None if row["finished_at"] is None else moment(row["finished_at"]),
        row["finish_reason"],
    )


def _run(row: sqlite3.Row) -> Run:
    return Run(
        row["run_id"],
        row["owner"],
        row["session_id"],
        row["base_model"],
        LoraConfig(**json.loads(row["lora"])),
        json.loads(row["user_metadata"]),
        row["optimizer"],
        moment(row["created_at"]),
        moment(row["last_request_at"]),
    )


def _sampler(row: sqlite3.Row) -> Sampler:
    return Sampler(
        row["sampler_id"],
        row["owner"],
        row["session_id"],
        row["base_model"],
        row["model_path"],
        moment(row["created_at"]),
    )
