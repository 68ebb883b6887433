"""Sessions of clients: alive while they give signs of life, finished once, stale when silent."""

import uuid
from collections.abc import Callable, Mapping, Sequence

from training.serving.errors import gone, not_found
from training.serving.promises import Promise
from training.serving.storage.rows import Session
from training.serving.store import Store


class Sessions:
    """After `seconds` without a heartbeat or a request a client is taken for dead."""

    def __init__(self, store: Store, *, seconds: float, clock: Callable[[], float]) -> None:
        self._rows = store.sessions
        self._seconds = seconds
        self._clock = clock
        # of those that are not finished and were heard of since the server started
        self._seen: dict[str, float] = {}

    @property
    def num_alive(self) -> int:
        return len(self._seen)

    def alive(self, owner: str) -> list[tuple[Session, float]]:
        """An owner's sessions that are not finished nor silent, with the seconds since each was
        heard of; the newest first."""
        now = self._clock()
        found = [
            (self._rows.get(owner, session_id), seen) for session_id, seen in self._seen.items()
        ]
        alive = [(session, now - seen) for session, seen in found if session is not None]
        return sorted(alive, key=lambda pair: pair[0].created_at, reverse=True)

    def create(
        self,
        owner: str,
        *,
        tags: Sequence[str] = (),
        user_metadata: Mapping[str, str] | None = None,
        sdk_version: str = "",
        project_id: str | None = None,
        display_name: str | None = None,
    ) -> str:
        # nobody can guess it, and a client may count on the ids of what it makes in it
        session_id = str(uuid.uuid4())
        self._rows.add(
            Session(
                session_id,
                owner,
                tuple(tags),
                dict(user_metadata or {}),
                sdk_version,
                project_id,
                display_name,
            )
        )
        self._seen[session_id] = self._clock()
        return session_id

    def require(self, owner: str, session_id: str) -> Session:
        """The session, which gave a sign of life. Raises ServingError: 404 for an unknown one and
        another owner's, 410 for one that is finished."""
        session = self._rows.get(owner, session_id)
        if session is None:
            raise not_found(f"session_id {session_id!r}", param="session_id")
        if session.finished_at is not None:
            raise gone(
                f"session {session_id} was finished; make a new ServiceClient, and load what was "
                "saved"
            )
        self._seen[session_id] = self._clock()
        return session

    def is_alive(self, session_id: str) -> bool:
        """Heard of lately, and not finished."""
        return session_id in self._seen

    def is_known(self, owner: str, session_id: str) -> bool:
        return self._rows.get(owner, session_id) is not None

    def finish(self, owner: str, session_id: str, reason: str) -> bool:
        """Whether it was not finished before. Raises 404."""
        session = self._rows.get(owner, session_id)
        if session is None:
            raise not_found(f"session_id {session_id!r}", param="session_id")
        self._seen.pop(session_id, None)
        return self._rows.finish(owner, session_id, reason)

    def touch(self, session_id: str) -> None:
        """A request that tells of no session, as one for a result, is a sign of life too."""
        if session_id in self._seen:
            self._seen[session_id] = self._clock()

    def silent(self, open_promises: Sequence[Promise]) -> list[str]:
        """Those of clients that are dead: not heard of, and nobody waits for their requests."""
        now = self._clock()
        waited_for = {promise.session_id for promise in open_promises if promise.waiting}
        return [
            session_id
            for session_id, seen in self._seen.items()
            if now - seen >= self._seconds and session_id not in waited_for
        ]

    def forget(self, session_id: str) -> None:
        """A silent one, whose adapters were freed; it may be heard of again."""
        self._seen.pop(session_id, None)
