"""Which requests were accepted: so that one that is sent again is not carried out again, and one
that a restart cut off can be told from one that never was."""

import datetime
import sqlite3

from training.serving.errors import bad_request
from training.serving.storage.database import MAX_INTEGER, Database, microseconds, moment
from training.serving.storage.rows import FutureRow, utc_now


class Futures:
    def __init__(self, database: Database) -> None:
        """Those that are open in the file were lost by the restart that this is."""
        self._database = database
        database.write("UPDATE futures SET state = 'lost' WHERE state = 'open'")

    def record(
        self, owner: str, kind: str, scope: str, seq_id: int | None, digest: str, request_id: str
    ) -> tuple[FutureRow, bool]:
        """The request with this number, and whether it is new; without a number it always is.

        Raises ServingError 400 where the number was used by a request of another `digest`.
        """
        if seq_id is not None and not 0 <= seq_id <= MAX_INTEGER:
            raise bad_request(
                f"seq_id: got {seq_id}, allowed is 0 to {MAX_INTEGER}", param="seq_id"
            )
        with self._database.transaction():
            if seq_id is not None:
                sql = "SELECT * FROM futures WHERE owner = ? AND scope = ? AND seq_id = ?"
                for row in self._database.read(sql, owner, scope, seq_id):
                    if row["digest"] != digest:
                        raise bad_request(
                            f"seq_id: {seq_id} of {scope} was used by a request of other content, "
                            f"{row['kind']}; each request needs a number of its own",
                            param="seq_id",
                        )
                    return _future(row), False
            self._database.write(
                "INSERT INTO futures VALUES (?, ?, ?, ?, ?, ?, 'open', ?)",
                request_id,
                owner,
                kind,
                scope,
                seq_id,
                digest,
                microseconds(utc_now()),
            )
            found = self.get(owner, request_id)
        assert found is not None
        return found, True

    def end(self, request_id: str) -> None:
        """It has a result or an error."""
        self._database.write("UPDATE futures SET state = 'ended' WHERE request_id = ?", request_id)

    def get(self, owner: str, request_id: str) -> FutureRow | None:
        sql = "SELECT * FROM futures WHERE request_id = ? AND owner = ?"
        rows = self._database.read(sql, request_id, owner)
        return _future(rows[0]) if rows else None

    def forget(self, before: datetime.datetime) -> int:
        """Drops those that were accepted before that and are not open; how many there were."""
        sql = "DELETE FROM futures WHERE created_at < ? AND state != 'open'"
        return self._database.write(sql, microseconds(before))


def _future(row: sqlite3.Row) -> FutureRow:
    return FutureRow(
        row["request_id"],
        row["owner"],
        row["kind"],
        row["scope"],
        row["seq_id"],
        row["digest"],
        row["state"],
        moment(row["created_at"]),
    )
