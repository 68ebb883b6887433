"""One engine as the driver sees it: its batches in order, and another engine in its place, with all
its clients, where it is lost.

The work is done on a thread of its own, which waits for most of its time.
"""

import itertools
import logging
import queue
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from training import checks
from training.api import CLOSED_BEFORE, RequestFailedError
from training.backends.pool.journal import Journal
from training.backends.pool.messages import (
    Answer,
    Request,
    UnpackableError,
    packed_requests,
    unpacked,
)
from training.backends.pool.transport import EngineLink, EngineLostError, Transport

logger = logging.getLogger(__name__)

# a batch that was on this many engines when they were lost is what loses them
MOST_LOSSES = 3
# what is saved may take this share of the time
SAVING_SHARE = 0.02
_BACK_OFF = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


@dataclass(frozen=True)
class LaneOptions:
    """In seconds. snapshot_seconds: of training that is repeated at most when an engine is lost (or
    50 times as long as a snapshot takes, where that is more; 0: none is repeated).
    replace_seconds: how long a place for another engine is waited for."""

    snapshot_seconds: float = 60.0
    replace_seconds: float = 300.0

    def __post_init__(self) -> None:
        from_zero = checks.real("a number from 0", lambda seconds: seconds >= 0)
        checks.check_fields(self, snapshot_seconds=from_zero, replace_seconds=from_zero)


class Waiting(NamedTuple):
    """A request that was made, and who waits for it."""

    request: Request
    future: "Future[Any]"


@dataclass
class Batch:
    """Requests that run together. `after`: what has to be done before, on another engine."""

    waiting: list[Waiting]
    after: "Sequence[Future[Any]]" = ()
    losses: int = 0
    # folders that were there before this batch was first sent
    existing: set[Path] = field(default_factory=set)

    @property
    def writes(self) -> bool:
        return any(waiting.request.kind == "save" for waiting in self.waiting)

    def requests(self) -> list[Request]:
        """As they are sent; after a loss what the lost engine may have written is overwritten."""
        return [
            _overwriting(waiting.request, self.existing) if self.losses else waiting.request
            for waiting in self.waiting
        ]


class Lane:
    """`check` is called with the link of every engine that has begun, and raises ValueError where
    it cannot be used. What goes wrong with the first one is in `started`."""

    def __init__(
        self,
        index: int,
        transport: Transport,
        store: Path,
        options: LaneOptions,
        check: Callable[[int, EngineLink], None],
    ) -> None:
        self.index = index
        self.link: EngineLink | None = None
        self.num_lost = 0
        self.started: Future[None] = Future()
        self._transport = transport
        self._options = options
        self._check = check
        self._journal = Journal(store)
        self._last_snapshot = 0.0
        self._batches: queue.SimpleQueue[Batch | None] = queue.SimpleQueue()
        self._running: Batch | None = None
        self._broken: Exception | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=f"engine-{index}", daemon=True)
        self._thread.start()

    def submit(self, batch: Batch) -> None:
        self._batches.put(batch)

    def close(self) -> None:
        """Ends the engine, after the folder that it writes at this moment; what waits fails."""
        self._closing = True
        self._batches.put(None)
        running = self._running
        link = self.link
        if link is not None and not (running is not None and running.writes):
            link.kill()
        self._thread.join()

    # ----------------------------------------------------------------------------- its thread

    def _work(self) -> None:
        try:
            self._start()
        except (EngineLostError, ValueError) as error:
            self.started.set_exception(error)
            return
        self.started.set_result(None)
        while (batch := self._batches.get()) is not None:
            self._running = batch
            try:
                self._serve(batch)
            except Exception as error:
                # nobody may wait for ever for a thread that has ended
                logger.exception("engine %d", self.index)
                self._broken = error
                _fail(batch, error)
            self._running = None
        if self.link is not None:
            self.link.kill()
        with suppress(queue.Empty):
            while (batch := self._batches.get_nowait()) is not None:
                _fail(batch, RuntimeError(CLOSED_BEFORE))

    def _start(self) -> None:
        link = self._transport.start(self.index)
        try:
            self._check(self.index, link)
        except BaseException:
            link.kill()
            raise
        self.link = link

    def _serve(self, batch: Batch) -> None:
        batch.waiting = [w for w in batch.waiting if w.future.set_running_or_notify_cancel()]
        if not batch.waiting:
            return
        for future in batch.after:
            if (error := future.exception()) is not None:
                _fail(batch, error)
                return
        if self._broken is not None or self._closing:
            _fail(batch, self._broken or RuntimeError(CLOSED_BEFORE))
            return
        for waiting in batch.waiting:
            if waiting.request.kind == "save" and Path(waiting.request.args[0]).exists():
                batch.existing.add(Path(waiting.request.args[0]))
        try:
            answer = self._run_until_done(batch)
        except RequestFailedError as error:
            _fail(batch, error)
            return
        if answer is None:
            return
        requests = [waiting.request for waiting in batch.waiting]
        if batch.losses:
            _remove_torn(requests)
        self._journal.record(requests, answer.outcomes, answer.seconds)
        if self._journal.must_save:
            # before anybody can change the folder that it was made of
            self._save()
        for waiting, outcome in zip(batch.waiting, answer.outcomes, strict=True):
            if outcome.error is None:
                waiting.future.set_result(outcome.value)
            else:
                waiting.future.set_exception(outcome.error)
        self._save_if_due()

    def _run_until_done(self, batch: Batch) -> Answer | None:
        """None where no request of it can be sent. Raises RequestFailedError where that cannot
        be."""
        while batch.waiting:
            try:
                return self._run(batch.requests())
            except UnpackableError as error:
                _fail_unpackable(batch, error)
                continue
            except EngineLostError as error:
                batch.losses += 1
                self._replace(error)
            if batch.losses == MOST_LOSSES:
                raise RequestFailedError(
                    f"{MOST_LOSSES} engines were lost one after the other while they ran this "
                    "request, so it probably takes more memory than they have; use shorter "
                    "sequences or fewer samples, or a device with more memory",
                    "server",
                )
        return None

    def _run(self, requests: Sequence[Request]) -> Answer:
        """Raises EngineLostError, and UnpackableError before anything is sent."""
        if self.link is None or self._closing:
            raise EngineLostError("it was closed")
        answer: Answer = unpacked(self.link.run(packed_requests(requests)))
        for line in answer.log:
            logging.getLogger(line.name).log(line.level, "engine %d: %s", self.index, line.text)
        return answer

    def _save_if_due(self) -> None:
        most = self._options.snapshot_seconds
        if most:
            most = max(most, self._last_snapshot / SAVING_SHARE)
        if self._journal.seconds > most:
            self._save()

    def _save(self, tries: int = MOST_LOSSES) -> None:
        started = time.perf_counter()
        requests = self._journal.snapshot()
        try:
            outcomes = self._run(requests).outcomes
        except EngineLostError as error:
            # who asks next is told if there is no other one
            with suppress(RequestFailedError):
                self._replace(error)
                if tries > 1:
                    self._save(tries - 1)
            return
        written = zip(requests, outcomes, strict=True)
        self._journal.saved(request for request, outcome in written if outcome.error is None)
        if errors := [outcome.error for outcome in outcomes if outcome.error is not None]:
            logger.warning(
                "engine %d could not save its adapters (%s); if it is lost, more has to be "
                "repeated",
                *(self.index, errors[0]),
            )
        self._last_snapshot = time.perf_counter() - started

    # -------------------------------------------------------------------------- another engine

    def _replace(self, error: EngineLostError) -> None:
        """Raises RequestFailedError where there is no other engine, or its state cannot be made."""
        for _ in range(MOST_LOSSES):
            self._fence()
            if self._closing:
                self._broken = RequestFailedError("the service was closed while this ran", "server")
                raise self._broken
            self.num_lost += 1
            logger.warning(
                "engine %d is lost (%s); another one takes its place, with its %d clients and "
                "%.0f s of training",
                *(self.index, error, self._journal.num_clients, self._journal.seconds),
            )
            try:
                self._start_another()
                self._rebuild()
            except EngineLostError as again:
                error = again
            else:
                logger.info("engine %d is there again", self.index)
                return
        self._break(f"its clients could not be made again: {error}")

    def _fence(self) -> None:
        """Half dead it must neither write a checkpoint nor keep its device."""
        if self.link is not None:
            self.link.kill()
        self.link = None

    def _start_another(self) -> None:
        deadline = time.monotonic() + self._options.replace_seconds
        for wait in itertools.chain(_BACK_OFF, itertools.repeat(_BACK_OFF[-1])):
            try:
                return self._start()
            except (EngineLostError, ValueError) as error:
                if time.monotonic() + wait > deadline or self._closing:
                    self._break(f"there is no place for another one: {error}")
                time.sleep(wait)

    def _rebuild(self) -> None:
        for requests in self._journal.rebuild():
            answer = self._run(requests)
            for outcome in answer.outcomes:
                if outcome.error is not None:
                    self._break(f"what it had done could not be repeated: {outcome.error}")

    def _break(self, reason: str) -> None:
        self._broken = RequestFailedError(
            f"engine {self.index} was lost, and {reason}. Run the same command again: it goes on "
            "from the last checkpoint",
            "server",
        )
        raise self._broken


def _overwriting(request: Request, existing: set[Path]) -> Request:
    if request.kind != "save" or Path(request.args[0]) in existing:
        return request
    return Request(
        request.kind,
        request.target,
        request.method,
        request.args,
        {**request.kwargs, "overwrite": True},
    )


def _remove_torn(requests: Sequence[Request]) -> None:
    """What engines that are gone have left beside the folders that they were writing."""
    for request in requests:
        if request.kind == "save":
            folder = Path(request.args[0])
            for torn in folder.parent.glob(f".{folder.name}.*"):
                shutil.rmtree(torn, ignore_errors=True)


def _fail_unpackable(batch: Batch, error: UnpackableError) -> None:
    """The requests that cannot be sent; the others stay."""
    left = []
    for waiting in batch.waiting:
        try:
            packed_requests([waiting.request])
            left.append(waiting)
        except UnpackableError as of_one:
            waiting.future.set_exception(of_one)
    if len(left) == len(batch.waiting):
        _fail(batch, error)
        left = []
    batch.waiting = left


def _fail(batch: Batch, error: BaseException) -> None:
    for waiting in batch.waiting:
        if not waiting.future.done():
            waiting.future.set_exception(error)
