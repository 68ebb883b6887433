"""Requests that were promised an answer: accepted once, kept until fetched, waited for by many.

Lives on the server's event loop alone; nothing here blocks or takes a thread. Results are kept for
a while after they came, so that a reply that got lost can be fetched again, and only so many bytes
of them.
"""

import asyncio
import contextlib
import logging
import re
import secrets
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from training.serving.errors import (
    ServingError,
    bad_request,
    busy,
    gone,
    not_found,
    server_fault,
)
from training.serving.memory_sizes import OVERHEAD, result_bytes
from training.serving.storage.futures import Futures
from training.serving.workers import new_future

logger = logging.getLogger(__name__)

# the SDK's word for the only kind of request that belongs to no model
SAMPLE = "Sample"
_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{32}")

Category = Literal["user", "server"]
State = Literal["pending", "result", "error"]

# ids and numbers of results that are no longer kept, remembered to tell "expired" from "unknown"
_REMEMBERED = 20_000


@dataclass(frozen=True)
class Outcome:
    """What a promise has come to so far. `value` of a result is the API's type for the two that
    travel as protobuf, else a dict for JSON."""

    state: State
    kind: str
    value: Any = None
    message: str = ""
    category: Category = "user"


def _end(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


@dataclass(eq=False)
class Promise:
    """`kind`: the SDK's word for the request's type. `accepted` ends when the request was checked
    and has its place, or with the ServingError that refused it; `done` when the outcome is there.
    """

    request_id: str
    owner: str
    kind: str
    session_id: str
    model_id: str | None
    sample_sequence_ids: tuple[str, ...]
    key: Hashable
    digest: str
    accepted: "asyncio.Future[None]" = field(default_factory=new_future)
    done: "asyncio.Future[None]" = field(default_factory=new_future)
    outcome: Outcome = field(init=False)
    finished_at: float = 0.0
    num_bytes: int = 0
    request_bytes: int = 0
    # how many wait for it now: a client that polls is alive
    waiting: int = 0
    # nobody wants it any more
    is_dropped: bool = False

    def __post_init__(self) -> None:
        self.outcome = Outcome("pending", self.kind)

    @property
    def is_open(self) -> bool:
        return self.outcome.state == "pending"


class Promises:
    """`max_bytes` of results are kept at most, each for `seconds`, whichever ends first; an owner
    may have `max_open` requests without a result. `clock` gives seconds.

    `futures` remembers requests to models, so that after a restart their clients learn what
    happened. Samples come by the thousand and are sent again by the client: of a sample only its id
    tells that another server promised it.
    """

    def __init__(
        self,
        futures: Futures,
        *,
        seconds: float,
        max_bytes: int,
        max_open: int,
        max_open_bytes: int,
        clock: Callable[[], float],
    ) -> None:
        self._futures = futures
        self._boot = secrets.token_hex(4)
        self._seconds = seconds
        self._max_bytes = max_bytes
        self._max_open = max_open
        self._max_open_bytes = max_open_bytes
        self._clock = clock
        self._by_id: dict[str, Promise] = {}
        self._by_key: dict[Hashable, Promise] = {}
        # by the time they finished
        self._finished: OrderedDict[str, Promise] = OrderedDict()
        self._open: Counter[str] = Counter()
        self._open_bytes: Counter[str] = Counter()
        self._expired: OrderedDict[str, str] = OrderedDict()
        # numbers of requests to models whose results are gone, the oldest first
        self._spent: OrderedDict[Hashable, None] = OrderedDict()
        self.num_bytes = 0
        # is told every result
        self.on_result: Callable[[Any], None] = lambda value: None

    def begin(
        self,
        owner: str,
        kind: str,
        session_id: str,
        *,
        scope: str = "",
        seq_id: int | None = None,
        digest: str = "",
        model_id: str | None = None,
        num_sequences: int = 0,
        request_bytes: int = 0,
    ) -> tuple[Promise, bool]:
        """The promise, and whether it is a new one. The same `seq_id` within a `scope` (of a model,
        a sampling session, ...) is the same request, repeated by the network. Raises ServingError:
        400 where it comes with other content, 429 where the owner has too many open requests."""
        key = None if seq_id is None else (owner, scope, seq_id)
        known = None if key is None else self._by_key.get(key)
        if known is not None:
            if (known.kind, known.digest) != (kind, digest):
                raise bad_request(
                    f"seq_id: {seq_id} of {scope} was used before for another request "
                    f"({known.kind}); a new request needs the next number",
                    param="seq_id",
                )
            return known, False
        if self._open[owner] >= self._max_open:
            logger.warning("%s has %d open requests: refused one", owner, self._open[owner])
            raise busy(
                f"{self._open[owner]} requests of this key wait already, the most that is allowed; "
                "send more when some have been answered",
                retry_after=2.0,
            )
        if self._open_bytes[owner] and (
            self._open_bytes[owner] + request_bytes > self._max_open_bytes
        ):
            logger.warning("%s has too many bytes of open requests: refused one", owner)
            raise busy(
                f"requests of this key with {self._open_bytes[owner] / 2**20:,.0f} MiB wait "
                f"already, {self._max_open_bytes / 2**20:,.0f} MiB are allowed; send more when "
                "some have been answered",
                retry_after=2.0,
            )
        request_id = f"{self._boot}-{secrets.token_hex(16)}"
        if kind != SAMPLE:
            self._futures.record(owner, kind, scope, None, digest, request_id)
        sequence_ids = tuple(f"{request_id}:{i}" for i in range(num_sequences))
        promise = Promise(request_id, owner, kind, session_id, model_id, sequence_ids, key, digest)
        self._by_id[request_id] = promise
        if key is not None:
            self._by_key[key] = promise
        promise.request_bytes = request_bytes
        self._open[owner] += 1
        self._open_bytes[owner] += request_bytes
        return promise, True

    @contextlib.contextmanager
    def accepting(self, promise: Promise) -> Iterator[None]:
        """Around the checks of a new request: accepted where they end well, else refused where it
        was made, which leaves a hole in the numbers and no result."""
        try:
            yield
        except ServingError as error:
            self._reject(promise, error)
            raise
        except (ValueError, KeyError) as error:
            refusal = bad_request(str(error.args[0] if isinstance(error, KeyError) else error))
            self._reject(promise, refusal)
            raise refusal from error
        except BaseException:
            self._reject(promise, server_fault(f"{promise.kind}: the server could not take it"))
            raise
        else:
            promise.accepted.set_result(None)

    async def repeated(self, promise: Promise) -> Promise:
        """One that was begun before, once it is accepted; raises what refused it."""
        await asyncio.wait([promise.accepted])
        promise.accepted.result()
        return promise

    def discard(self, promise: Promise) -> None:
        """A result that was handed over and that nobody can ask for again."""
        if self._finished.pop(promise.request_id, None) is not None:
            self.num_bytes -= promise.num_bytes
        self._forget(promise)

    def _reject(self, promise: Promise, error: ServingError) -> None:
        self._forget(promise)
        if promise.is_open:
            self._settle(promise)
            promise.outcome = Outcome(
                "error", promise.kind, None, error.message, category_of(error)
            )
            _end(promise.done)
        promise.accepted.set_exception(error)
        # nobody else may be waiting for it
        promise.accepted.exception()

    def resolve(self, promise: Promise, value: Any) -> None:
        self.on_result(value)
        self._finish(promise, Outcome("result", promise.kind, value), result_bytes(value))

    def fail(self, promise: Promise, message: str, category: Category) -> None:
        self._finish(promise, Outcome("error", promise.kind, None, message, category), 0)

    def get(self, owner: str, request_id: str) -> Promise | None:
        """None where there is none, and for another owner's."""
        promise = self._by_id.get(request_id)
        return promise if promise is not None and promise.owner == owner else None

    async def wait(self, owner: str, request_id: str, timeout_seconds: float) -> Outcome:
        """The outcome, which is pending when the time is over. A request to a model that a restart
        cut off is an error of the server. Raises ServingError: 404 for an unknown request and
        another owner's, 410 for a result that is not kept any more, and for a sample from before a
        restart."""
        promise = self.get(owner, request_id)
        if promise is None:
            return self._past(owner, request_id)
        if promise.is_open:
            promise.waiting += 1
            try:
                # unlike wait_for() this leaves the future alone when one of many gives up
                await asyncio.wait([promise.done], timeout=timeout_seconds)
            finally:
                promise.waiting -= 1
        return promise.outcome

    def _past(self, owner: str, request_id: str) -> Outcome:
        """Of a request that is not in memory."""
        row = self._futures.get(owner, request_id)
        is_of_another = _ID.fullmatch(request_id) and not request_id.startswith(self._boot)
        # also where it was done, since its result and its model went with that server
        if row is not None and is_of_another:
            message = f"{row.kind}: the server was restarted; resume from the last checkpoint"
            return Outcome("error", row.kind, None, message, "server")
        if row is not None or self._expired.get(request_id) == owner:
            raise gone(
                f"request {request_id}: its result was kept for {self._seconds:g} seconds, or "
                "until newer results needed the memory, and is gone"
            )
        if is_of_another:
            raise gone(f"request {request_id}: the server was restarted; send it again")
        raise not_found(f"request {request_id!r}")

    def release_waiters(self) -> None:
        """The server ends: who waits gets what there is, at once."""
        for promise in self._by_id.values():
            _end(promise.done)

    def open_of(self, session_id: str) -> list[Promise]:
        return [p for p in self if p.session_id == session_id and p.is_open]

    def __iter__(self) -> Iterator[Promise]:
        return iter(list(self._by_id.values()))

    def num_open(self, owner: str | None = None) -> int:
        return self._open.total() if owner is None else self._open[owner]

    def sweep(self) -> None:
        """Lets go of results whose time is over, and of the oldest ones beyond the memory."""
        now = self._clock()
        while self._finished:
            oldest = next(iter(self._finished.values()))
            is_old = now - oldest.finished_at >= self._seconds
            if not is_old and self.num_bytes <= self._max_bytes:
                break
            self._by_id.pop(oldest.request_id, None)
            self._spend(oldest)
            self.num_bytes -= oldest.num_bytes
            del self._finished[oldest.request_id]
            if oldest.kind == SAMPLE:
                self._expired[oldest.request_id] = oldest.owner
            if len(self._expired) > _REMEMBERED:
                self._expired.popitem(last=False)

    def _spend(self, promise: Promise) -> None:
        """Its result goes; its number stays taken, or a step that is sent again would be taken
        again. A sample that is drawn again harms nobody."""
        promise.outcome = Outcome("error", promise.kind, None, "its result is not kept any more")
        if promise.key is None:
            return
        if promise.kind == SAMPLE:
            self._by_key.pop(promise.key, None)
            return
        self._spent[promise.key] = None
        if len(self._spent) > _REMEMBERED:
            del self._by_key[self._spent.popitem(last=False)[0]]

    def _finish(self, promise: Promise, outcome: Outcome, num_bytes: int) -> None:
        if not promise.is_open:
            return
        promise.outcome = outcome
        promise.finished_at = self._clock()
        promise.num_bytes = num_bytes + OVERHEAD
        self.num_bytes += promise.num_bytes
        self._finished[promise.request_id] = promise
        self._settle(promise)
        _end(promise.done)
        self.sweep()

    def _settle(self, promise: Promise) -> None:
        if promise.kind != SAMPLE:
            self._futures.end(promise.request_id)
        self._open[promise.owner] -= 1
        self._open_bytes[promise.owner] -= promise.request_bytes
        if not self._open[promise.owner]:
            del self._open[promise.owner], self._open_bytes[promise.owner]

    def _forget(self, promise: Promise) -> None:
        self._by_id.pop(promise.request_id, None)
        if promise.key is not None:
            self._by_key.pop(promise.key, None)


def category_of(error: ServingError) -> Category:
    return "server" if error.status >= 500 else "user"
