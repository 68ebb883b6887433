"""Engines in other processes as one: collects requests as the local engine does, and hands them out
in batches when somebody waits.

What waits together goes to its engines together, a batch each, so that the same runs together as in
one process, and what runs with what depends on the program alone. Requests that nobody waits for
start after a second without new ones.
"""

import atexit
import itertools
import logging
import secrets
import shutil
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from training.api import CLOSED, CLOSED_BEFORE, APIFuture
from training.backends.pool.journal import sampler_from
from training.backends.pool.lane import Batch, Lane, LaneOptions, Waiting
from training.backends.pool.messages import Answer, Kept, Request, packed, unpacked
from training.backends.pool.placement import emptiest, spread
from training.backends.pool.transport import EngineLink, EngineLostError, Transport

logger = logging.getLogger(__name__)

UNATTENDED_SECONDS = 1.0
# a folder that another machine wrote may take as long to be seen here
SECONDS_TO_BE_SEEN = 10.0
# of a request without max_tokens
GUESSED_TOKENS = 1024


@dataclass
class SamplerPlace:
    """Where a sampler is: the engines that hold it, at home the first. `folder`: from where
    another one takes it, once that is `written`. `is_counted`: as held by its home, since it is no
    client's."""

    key: str
    base_model: str
    dtype: str | None
    engines: list[int]
    of_base_model: bool = False
    is_counted: bool = False
    folder: Path | None = None
    written: "Future[Any] | None" = None


@dataclass
class _Ask:
    """A request to a sampler, which more than one engine may answer, or to one engine. `holder`
    must not be let go before it is handed over."""

    waiting: Waiting
    holder: object
    engine: int | None = None
    sampler: SamplerPlace | None = None
    cost: float = 0.0


class _Release(NamedTuple):
    """Nobody needs what these engines hold as `key`, nor `folder`. `counted_by`: what counts it as
    the first one's."""

    key: str
    engines: Sequence[int]
    folder: Path | None = None
    counted_by: Counter[int] | None = None


@dataclass(frozen=True)
class PoolOptions:
    """spread_tokens: samples of one adapter that wait together go to several engines if they may
    have as many tokens; below that, handing over the adapter costs more than it saves."""

    lanes: LaneOptions = field(default_factory=LaneOptions)
    spread_tokens: int = 4096


class Pool:
    """`num_engines` engines of a transport. Raises ValueError where one does not begin, or does not
    see the same `checkpoint_dir` as this process."""

    def __init__(
        self, transport: Transport, num_engines: int, checkpoint_dir: Path, options: PoolOptions
    ) -> None:
        self.session = secrets.token_hex(4)
        self._transport = transport
        self._options = options
        self._store = checkpoint_dir / f".engines-{self.session}"
        # nothing is made there before there is something to be written
        self._checkpoint_dir = checkpoint_dir
        self._lock = threading.Condition()
        self._asked: list[_Ask] = []
        self._last_arrival = 0.0
        # clients, and samplers that are no client's, by engine
        self._clients: Counter[int] = Counter()
        self._samplers: Counter[int] = Counter()
        self._let_go: dict[int, list[Waiting]] = {}
        # put there by finalizers, in any thread at any time
        self._releases: SimpleQueue[_Release] = SimpleQueue()
        self._names = itertools.count()
        self._loaded: set[str] = set()
        self._closed = False
        self.lanes = [
            Lane(index, transport, self._store, options.lanes, self._check)
            for index in range(num_engines)
        ]
        try:
            for lane in self.lanes:
                lane.started.result()
        except EngineLostError as error:
            self.close()
            raise ValueError(f"an engine did not begin: {error}") from error
        except BaseException:
            self.close()
            raise
        threading.Thread(target=self._start_unattended, name="engines", daemon=True).start()
        atexit.register(self.close)

    def new_key(self, what: str) -> str:
        return f"{self.session}-{what}-{next(self._names)}"

    def folder(self, key: str) -> Path:
        return self._store / f"{key}-copy"

    # ------------------------------------------------------------------------ requests at once

    def call(self, engine: int, request: Request) -> Any:
        """What comes of a request that runs before all that is collected. Raises what it raises."""
        future: Future[Any] = Future()
        with self._lock:
            self._require_open()
            self._take_releases()
            waiting = [*self._let_go.pop(engine, []), Waiting(request, future)]
            self.lanes[engine].submit(Batch(waiting))
        return future.result()

    def create_client(self, base_model: str | None, request: Request) -> tuple[int, Kept]:
        """The engine that has the fewest clients, and what it tells of the new one."""
        return self._create(self._clients, base_model, request)

    def create_sampler(self, base_model: str | None, request: Request) -> SamplerPlace:
        """Of an adapter that lies in a folder, or of the base model."""
        assert request.keep_as is not None
        if request.kwargs["model_path"] is None:
            assert base_model is not None
            self.load(base_model)
            kept = self.call(0, request)
            return SamplerPlace(
                request.keep_as, kept.base_model, kept.dtype, [0], of_base_model=True
            )
        engine, kept = self._create(self._samplers, base_model, request)
        return SamplerPlace(request.keep_as, kept.base_model, kept.dtype, [engine], is_counted=True)

    def _create(
        self, held: Counter[int], base_model: str | None, request: Request
    ) -> tuple[int, Kept]:
        with self._lock:
            self._take_releases()
            engine = emptiest([held[e] for e in range(len(self.lanes))])
            held[engine] += 1
        try:
            if base_model is not None:
                self.load(base_model)
            return engine, self.call(engine, request)
        except BaseException:
            with self._lock:
                held[engine] -= 1
            raise

    def load(self, base_model: str) -> None:
        """Lets all engines load it, side by side; who needs it is told what goes wrong."""
        with self._lock:
            self._require_open()
            if base_model in self._loaded:
                return
            self._loaded.add(base_model)
            for lane in self.lanes:
                lane.submit(Batch([Waiting(Request("ask", None, "load", (base_model,)), Future())]))

    # -------------------------------------------------------------------- requests that collect

    def ask(self, engine: int, request: Request, holder: object) -> APIFuture[Any]:
        return self._collect(_Ask(Waiting(request, Future()), holder, engine))

    def ask_sampler(
        self, sampler: SamplerPlace, request: Request, tokens: float, holder: object
    ) -> APIFuture[Any]:
        waiting = Waiting(request, Future())
        return self._collect(_Ask(waiting, holder, sampler=sampler, cost=tokens))

    def _collect(self, ask: _Ask) -> APIFuture[Any]:
        with self._lock:
            self._require_open()
            self._asked.append(ask)
            self._last_arrival = time.monotonic()
            self._lock.notify()
        return APIFuture(ask.waiting.future, lambda _future: self.flush())

    def flush(self) -> None:
        """Lets all that was collected run."""
        with self._lock:
            if self._closed:
                return
            asked, self._asked = self._asked, []
            self._take_releases()
            batches: dict[int, list[Waiting]] = {}
            loads = [0.0] * len(self.lanes)
            self._place(asked, loads)
            for ask in asked:
                assert ask.engine is not None
                batches.setdefault(ask.engine, []).append(ask.waiting)
            for engine, waiting in sorted(batches.items()):
                self.lanes[engine].submit(Batch([*waiting, *self._let_go.pop(engine, [])]))

    def _place(self, asked: Sequence[_Ask], loads: list[float]) -> None:
        """Chooses the engine of each request to a sampler, which is made there if need be."""
        of_sampler: dict[str, list[_Ask]] = {}
        for ask in asked:
            if ask.sampler is not None:
                of_sampler.setdefault(ask.sampler.key, []).append(ask)
        for asks in of_sampler.values():
            sampler = asks[0].sampler
            assert sampler is not None
            engines = spread(
                [ask.cost for ask in asks],
                loads,
                sampler.engines[0],
                self._options.spread_tokens,
            )
            for ask, engine in zip(asks, engines, strict=True):
                ask.engine = engine
                loads[engine] += ask.cost
            for engine in dict.fromkeys(engines):
                if engine not in sampler.engines:
                    self._bring(sampler, engine)

    def _bring(self, sampler: SamplerPlace, engine: int) -> None:
        """Lets another engine make it too."""
        if sampler.of_base_model:
            arguments = {"base_model": sampler.base_model}
            made = Request(
                "create", None, "create_sampling_client", (), arguments, keep_as=sampler.key
            )
        else:
            if sampler.written is None:
                sampler.folder, sampler.written = self.folder(sampler.key), Future()
                save = Request("save", sampler.key, "save_into", (sampler.folder,))
                # before anything waits for it, so that no two engines wait for each other
                home = self.lanes[sampler.engines[0]]
                home.submit(Batch([Waiting(save, sampler.written)]))
            assert sampler.folder is not None
            made = sampler_from(sampler.key, sampler.folder, sampler.base_model)
        after = () if sampler.written is None else (sampler.written,)
        brought: Future[Any] = Future()

        def tell(done: Future[Any]) -> None:
            if (error := done.exception()) is not None:
                logger.warning("an adapter could not be brought to engine %d: %s", engine, error)
                sampler.engines.remove(engine)

        brought.add_done_callback(tell)
        self.lanes[engine].submit(Batch([Waiting(made, brought)], after))
        sampler.engines.append(engine)

    def _start_unattended(self) -> None:
        while True:
            with self._lock:
                while not self._closed and not self._asked:
                    self._lock.wait()
                if self._closed:
                    return
                left = self._last_arrival + UNATTENDED_SECONDS - time.monotonic()
                if left > 0:
                    self._lock.wait(left)
                    continue
            self.flush()

    # ------------------------------------------------------------------- what nobody needs now

    def release_client(self, key: str, engine: int) -> None:
        """May be called anywhere, also by a finalizer; takes effect with the next requests."""
        self._releases.put(_Release(key, [engine], None, self._clients))

    def release_sampler(self, sampler: SamplerPlace) -> None:
        """As release_client()."""
        counted_by = self._samplers if sampler.is_counted else None
        self._releases.put(_Release(sampler.key, sampler.engines, sampler.folder, counted_by))

    def _take_releases(self) -> None:
        with suppress(Empty):
            while True:
                self._prepare(self._releases.get_nowait())

    def _prepare(self, release: _Release) -> None:
        if release.counted_by is not None:
            release.counted_by[release.engines[0]] -= 1
        left = set(release.engines)

        def done(engine: int) -> None:
            left.discard(engine)
            if not left and release.folder is not None:
                shutil.rmtree(release.folder, ignore_errors=True)

        for engine in release.engines:
            future: Future[Any] = Future()
            future.add_done_callback(lambda _future, engine=engine: done(engine))
            waiting = Waiting(Request("release", None, release.key), future)
            self._let_go.setdefault(engine, []).append(waiting)

    # ---------------------------------------------------------------------------------- the end

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            asked, self._asked = self._asked, []
            self._lock.notify_all()
        for ask in asked:
            if ask.waiting.future.set_running_or_notify_cancel():
                ask.waiting.future.set_exception(RuntimeError(CLOSED_BEFORE))
        for lane in self.lanes:
            lane.close()
        self._transport.close()
        shutil.rmtree(self._store, ignore_errors=True)
        atexit.unregister(self.close)

    def _require_open(self) -> None:
        if self._closed:
            raise RuntimeError(CLOSED)

    def _check(self, index: int, link: EngineLink) -> None:
        """Whether that engine and this process see each other's files beside the checkpoints."""
        place = next(p for p in (self._checkpoint_dir, *self._checkpoint_dir.parents) if p.is_dir())
        name = f".engine-probe-{self.session}-{index}-{link.pid}"
        theirs, ours = place / f"{name}.driver", place / f"{name}.engine"
        try:
            theirs.touch()
            deadline = time.monotonic() + SECONDS_TO_BE_SEEN
            while not self._see_each_other(link, theirs, ours):
                if time.monotonic() > deadline:
                    raise ValueError(
                        f"checkpoint_dir={self._checkpoint_dir}: engine {index}, on {link.place}, "
                        "and this process do not see each other's files there; it has to be on "
                        "storage that all machines of the cluster have (log_path=... for a run)"
                    )
                time.sleep(0.1)
        except OSError as error:
            raise ValueError(
                f"checkpoint_dir={self._checkpoint_dir}: nothing can be written there ({error})"
            ) from error
        finally:
            theirs.unlink(missing_ok=True)
            ours.unlink(missing_ok=True)

    def _see_each_other(self, link: EngineLink, theirs: Path, ours: Path) -> bool:
        answer: Answer = unpacked(link.run(packed([Request("ask", None, "probe", (theirs, ours))])))
        [(seen, error)] = answer.outcomes
        if error is not None:
            raise error
        return seen and ours.exists()
