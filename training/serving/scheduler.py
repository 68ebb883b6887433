"""What the engine is given, and when: fair turns, order within a model, and no more than it needs.

Everything beyond a window waits here, where it can be dropped, and where one client's ten thousand
requests cannot stand before another's one. Lives on the event loop; the engine's worker tells it
through the loop what is finished.
"""

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Collection
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import Any

from training.api import APIFuture, RequestFailedError
from training.serving.errors import ServingError
from training.serving.fair_queue import FairQueue
from training.serving.promises import Category, Promise, Promises, category_of

logger = logging.getLogger(__name__)

# errors that are about the request, not about the disk
_TOLD = (ServingError, RequestFailedError, CancelledError)


@dataclass(eq=False)
class Work:
    """One request. `make` hands it to the engine; `finish` makes the promise's value of its result,
    `undo` cleans up where it never ran or failed. `rows`: samples that decode at once."""

    promise: Promise
    make: "Callable[[], APIFuture[Any]] | None" = None
    finish: Callable[[Any], Any] = lambda result: result
    undo: Callable[[], None] = lambda: None
    # tells a failure to write files without the paths of this machine
    fault: Callable[[Exception], ServingError] | None = None
    rows: int = 0
    lane: "Lane | None" = None
    running: "APIFuture[Any] | None" = None

    @property
    def client(self) -> tuple[str, str]:
        """OpenAI's API has no sessions: there an owner's requests are one client's."""
        return self.promise.owner, self.promise.session_id


@dataclass(eq=False)
class Lane:
    """The requests of one model, in the order they came. A request holds its place while it is
    being checked; what comes after it waits."""

    owner: str
    model_id: str
    waiting: deque[Work] = field(default_factory=deque)
    num_running: int = 0
    is_queued: bool = False
    is_held: bool = False


class Scheduler:
    """`rows`: samples that the engine is given at once; `reserved_rows` more, for clients (sessions
    of owners) that have less than that. `train_requests`: of all models, `depth` of them of one
    model, so that the engine need not wait for this loop between a model's requests."""

    def __init__(
        self,
        promises: Promises,
        *,
        rows: int,
        reserved_rows: int,
        train_requests: int,
        depth: int,
    ) -> None:
        self._promises = promises
        self._rows = rows
        self._reserved_rows = reserved_rows
        self._train_requests = train_requests
        self._depth = depth
        self._samples: FairQueue[Work] = FairQueue()
        self._lanes: FairQueue[Lane] = FairQueue()
        self._rows_of: Counter[tuple[str, str]] = Counter()
        self._num_rows = 0
        # of everything that waits or runs
        self._work: dict[Promise, Work] = {}
        self._num_training = 0
        self._num_running = 0
        # to the engine, since the start
        self.num_given = 0
        self._is_closed = False

    def close(self) -> None:
        """Nothing more is handed over, and what the engine leaves undone stays open: after the next
        start its clients learn that it is lost."""
        self._is_closed = True

    @property
    def num_waiting(self) -> int:
        return len(self._work) - self._num_running

    @property
    def num_running(self) -> int:
        return self._num_running

    # ------------------------------------------------------------------------------------ sampling

    def add_sample(self, lane: str, work: Work) -> None:
        """Ready to run; samples of one sampler need no order."""
        assert work.make is not None
        if work.promise.is_dropped:
            self._promises.fail(work.promise, *explain(CancelledError(), work.promise))
            return
        self._work[work.promise] = work
        self._samples.push(work.promise.owner, lane, work)
        self._start()

    def _fits(self, work: Work, is_first: bool) -> bool:
        total = self._num_rows + work.rows
        # who is first in turn waits for room, and nobody overtakes it in the common part
        if is_first and (not self._num_rows or total <= self._rows):
            return True
        own = self._rows_of[work.client] + work.rows
        return own <= self._reserved_rows and total <= self._rows + self._reserved_rows

    def _take_rows(self, work: Work, num_rows: int) -> None:
        """Or give them back, with a negative number."""
        self._num_rows += num_rows
        self._rows_of[work.client] += num_rows
        if not self._rows_of[work.client]:
            del self._rows_of[work.client]

    # ------------------------------------------------------------------------------------ training

    def reserve(self, lane: Lane, promise: Promise) -> Work:
        """A place in the lane, before the request is checked."""
        work = self._work[promise] = Work(promise, lane=lane)
        lane.waiting.append(work)
        return work

    def ready(self, work: Work, make: "Callable[[], APIFuture[Any]]") -> None:
        """The request was checked; it runs when its turn comes."""
        assert work.lane is not None
        if work.promise.is_dropped:
            # its place is gone already
            work.undo()
            return
        work.make = make
        self._queue(work.lane)
        self._start()

    def withdraw(self, work: Work) -> None:
        """The request was refused: its place is free."""
        assert work.lane is not None
        # unless it was dropped meanwhile
        if self._work.pop(work.promise, None) is not None:
            work.lane.waiting.remove(work)
        self._queue(work.lane)
        self._start()

    def hold(self, lane: Lane, *, is_held: bool) -> None:
        """A held lane starts nothing, as while its model is being loaded."""
        lane.is_held = is_held
        self._queue(lane)
        self._start()

    def _queue(self, lane: Lane) -> None:
        has_work = lane.waiting and lane.waiting[0].make is not None
        if has_work and not lane.is_held and not lane.is_queued and lane.num_running < self._depth:
            lane.is_queued = True
            self._lanes.push(lane.owner, lane.model_id, lane)

    # ------------------------------------------------------------------------------------- running

    def _start(self) -> None:
        if self._is_closed:
            return
        while self._num_training < self._train_requests:
            lane = self._lanes.pop()
            if lane is None:
                break
            lane.is_queued = False
            if lane.is_held or not lane.waiting or lane.waiting[0].make is None:
                continue
            work = lane.waiting.popleft()
            lane.num_running += 1
            self._num_training += 1
            self._hand_over(work)
            self._queue(lane)
        # with no row left the lanes need not be looked at: there may be thousands
        while self._num_rows < self._rows + self._reserved_rows:
            work = self._samples.pop(self._fits)
            if work is None:
                break
            self._take_rows(work, work.rows)
            self._hand_over(work)

    def _hand_over(self, work: Work) -> None:
        loop = asyncio.get_running_loop()
        assert work.make is not None
        self.num_given += 1
        self._num_running += 1
        try:
            work.running = work.make()
        except Exception as error:
            failed: Future[Any] = Future()
            failed.set_exception(error)
            work.running = APIFuture(failed)
        # its data are the engine's now
        work.make = None

        def done(future: "Future[Any]") -> None:
            # a loop that was closed has nobody who waits
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._done, work, future)

        work.running.start()
        work.running.future().add_done_callback(done)

    def _done(self, work: Work, future: "Future[Any]") -> None:
        self._num_running -= 1
        del self._work[work.promise]
        work.running = None
        if work.lane is None:
            self._take_rows(work, -work.rows)
        else:
            work.lane.num_running -= 1
            self._num_training -= 1
            self._queue(work.lane)
        is_undone = future.cancelled() or future.exception() is not None
        if not (self._is_closed and is_undone):
            self._settle(work, future)
        self._start()

    def _settle(self, work: Work, future: "Future[Any]") -> None:
        try:
            self._promises.resolve(work.promise, work.finish(future.result()))
        except Exception as error:
            work.undo()
            if work.fault is not None and not isinstance(error, _TOLD):
                logger.error("%s %s failed: %s", work.promise.kind, work.promise.request_id, error)
                error = work.fault(error)
            self._promises.fail(work.promise, *explain(error, work.promise))

    # ------------------------------------------------------------------------------------ dropping

    def drop(self, promises: Collection[Promise]) -> None:
        """What waits is dropped. Samples that run end within a token; a training request that runs
        goes on to its end, since its gradient may be half added up."""
        for promise in promises:
            # one that is still being checked has no work yet, or none that is ready
            promise.is_dropped = True
        unwanted = {self._work[promise] for promise in promises if promise in self._work}
        dropped = self._samples.remove(lambda work: work in unwanted)
        for lane in {work.lane for work in unwanted if work.lane is not None}:
            dropped += [work for work in lane.waiting if work in unwanted]
            lane.waiting = deque(work for work in lane.waiting if work not in unwanted)
        for work in dropped:
            del self._work[work.promise]
            work.undo()
            self._promises.fail(work.promise, *explain(CancelledError(), work.promise))
        for work in unwanted:
            if work.running is not None and work.lane is None:
                work.running.cancel()


def explain(error: BaseException, promise: Promise) -> tuple[str, Category]:
    """What the user is told of a request that failed, and whose fault it is."""
    if isinstance(error, ServingError):
        return error.message, category_of(error)
    if isinstance(error, RequestFailedError):
        return str(error), error.category
    if isinstance(error, CancelledError):
        return f"{promise.kind}: dropped, since nobody waits for it any more", "user"
    if isinstance(error, OSError) and not isinstance(error, (FileNotFoundError, FileExistsError)):
        logger.error("%s %s failed: %s", promise.kind, promise.request_id, error)
        return f"{promise.kind}: the server could not read or write ({error.strerror})", "server"
    if isinstance(error, (ValueError, KeyError, FloatingPointError, OSError)):
        return str(error.args[0] if isinstance(error, KeyError) else error), "user"
    logger.error("%s %s failed", promise.kind, promise.request_id, exc_info=error)
    return (
        f"{promise.kind}: the server failed ({type(error).__name__}); its log has the details of "
        f"request {promise.request_id}",
        "server",
    )
