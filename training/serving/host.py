"""What both faces of the server ask for, between HTTP and any service client.

It knows no HTTP. Everything here runs on one event loop; what would hold it up runs on threads or
on the engine's worker. Every refusal is a ServingError.
"""

import asyncio
import contextlib
import datetime
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from training.api import ServiceClient
from training.models import context_length
from training.serving.activity import Activity
from training.serving.backend import Backend
from training.serving.base_models import BaseModels
from training.serving.checkpoint_access import CheckpointAccess
from training.serving.errors import bad_request, not_found
from training.serving.host_options import HostOptions
from training.serving.hosted_models import HostedModels
from training.serving.named_adapters import NamedAdapters
from training.serving.promises import SAMPLE, Outcome, Promise, Promises
from training.serving.sampler_weights import SamplerCache
from training.serving.samplers import Samplers
from training.serving.scheduler import Scheduler
from training.serving.sessions import Sessions
from training.serving.storage.rows import utc_now
from training.serving.store import Store
from training.serving.trained_models import TrainedModels
from training.serving.training_requests import TrainingRequests
from training.serving.uploads import Uploads
from training.serving.workers import Workers
from utils.heap import return_freed_memory

logger = logging.getLogger(__name__)

_HOUR = 3600.0


class Host:
    """`adapters_dir`: below it lie adapters that clients may load by a name; None: they may not.
    `clock` gives seconds that never go back."""

    def __init__(
        self,
        service: ServiceClient,
        store: Store,
        models: BaseModels,
        options: HostOptions | None = None,
        *,
        adapters_dir: Path | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        options = self.options = options or HostOptions()
        self.store = store
        self.bases = models
        self._clock = clock
        self._started_at = clock()
        self._forgot_at = clock()
        # adapters, whose memory the C library would keep
        self._has_freed = False
        # how many requests the engine was given, and since when that has been so
        self._num_given = 0
        self._quiet_since = clock()
        self._lengths: dict[str, int | None] = {}
        self._backend = Backend(service)
        self._activity = Activity(
            clock, lambda: self._backend.tokens_trained, lambda: self._backend.tokens_sampled
        )
        self._workers = Workers()
        self._promises = Promises(
            store.futures,
            seconds=options.result_seconds,
            max_bytes=options.max_result_bytes,
            max_open=options.max_open_requests,
            max_open_bytes=options.max_open_bytes,
            clock=clock,
        )
        self._promises.on_result = self._activity.note
        self._scheduler = Scheduler(
            self._promises,
            rows=options.engine_rows,
            reserved_rows=options.reserved_rows,
            train_requests=options.train_requests,
            depth=options.train_depth,
        )
        self._sessions = Sessions(store, seconds=options.session_seconds, clock=clock)
        self.checkpoints = CheckpointAccess(store)
        cache = self._cache = SamplerCache(
            self._backend,
            models,
            self.checkpoints,
            self._workers,
            folder=store.staging,
            max_awake=options.sampler_adapters,
        )
        self.checkpoints.on_removed = cache.forget
        self._trained = TrainedModels(
            self._backend,
            store,
            models,
            self.checkpoints,
            self._sessions,
            self._promises,
            self._workers,
            max_rank=options.max_rank,
            max_models=options.max_models,
        )
        self._training = TrainingRequests(
            self._trained, store, self._promises, self._scheduler, self._workers
        )
        self._samplers = Samplers(
            store,
            models,
            self.checkpoints,
            self._sessions,
            cache,
            self._promises,
            self._scheduler,
            self._workers,
            max_num_samples=options.engine_rows,
        )
        self.uploads: Uploads | None = None
        if options.uploads:
            self.uploads = Uploads(
                store,
                models,
                self._backend,
                self._trained,
                self._workers,
                seconds=options.upload_seconds,
                clock=clock,
            )
        self.adapters: NamedAdapters | None = None
        if adapters_dir is not None:
            self.adapters = NamedAdapters(
                adapters_dir, cache, models, self._workers, staging=store.staging
            )
        self._hosted = HostedModels(
            models,
            self.checkpoints,
            cache,
            self._promises,
            self._scheduler,
            self._workers,
            self.context_length,
            max_num_samples=options.engine_rows,
            started_at=time.time(),
            named=self.adapters,
        )
        # the parts' own methods, under one name for the routes
        self.create_session = self._sessions.create
        self.create_model = self._trained.create_model
        self.load_model = self._trained.load_model
        self.load_into = self._trained.load_into
        self.info = self._trained.info
        self.unload_model = self._training.unload_model
        self.forward_backward = self._training.forward_backward
        self.optim_step = self._training.optim_step
        self.save_weights = self._training.save_weights
        self.save_weights_external = self._training.save_weights_external
        self.create_sampling_session = self._samplers.create
        self.sampler_info = self._samplers.info
        self.sample = self._samplers.sample
        self.delete_checkpoint = self.checkpoints.delete
        self.set_ttl = self.checkpoints.set_ttl
        self.publish = self.checkpoints.publish
        self.external_files = self.checkpoints.external_files
        self.hosted = self._hosted.find
        self.models = self._hosted.entries

    async def startup(self) -> None:
        """Begins the sweeps, and to load the default model and what its first requests need."""
        self._workers.begin(self._sweep_forever())
        self._workers.begin(self._read_lengths())
        self._workers.begin(self._hosted.warm_up())

    def context_length(self, name: str) -> int | None:
        """Of a base model; None before it is known."""
        source = self.bases.resolve(name)
        return self._backend.context_length(source) or self._lengths.get(source)

    async def _read_lengths(self) -> None:
        """From the models' configs: no weights are loaded."""
        for name in self.bases.names:
            source = self.bases.resolve(name)
            with contextlib.suppress(OSError, ValueError):
                self._lengths[source] = await self._workers.load(partial(context_length, source))

    def release_waiters(self) -> None:
        """Who waits for a result gets what there is, at once: of an answer that is not done, that
        the server is being stopped."""
        self._promises.release_waiters()

    async def aclose(self) -> None:
        """Waiters get what there is; then the service is closed."""
        self._scheduler.close()
        self.release_waiters()
        await self._workers.close()
        await asyncio.get_running_loop().run_in_executor(None, self._backend.close)

    # ------------------------------------------------------------------------------------ sessions

    def heartbeat(self, owner: str, session_id: str) -> None:
        """Raises ServingError: 404 for an unknown session, 410 for one that is finished."""
        self._sessions.require(owner, session_id)

    def finish(
        self, owner: str, session_id: str, status: str = "success", detail: str | None = None
    ) -> None:
        """The client is done: its adapters and samplers are freed. What still waits is dropped,
        unless the session ended well. A session that is finished already may be finished again."""
        if self._sessions.finish(owner, session_id, status):
            logger.info("session %s: finished, %s%s", session_id, status, _told(detail))
            if status != "success":
                self._scheduler.drop(self._promises.open_of(session_id))
            self._free(session_id)

    def _free(self, session_id: str) -> None:
        models = self._trained.free_session(session_id)
        samplers = self._samplers.free_session(session_id)
        if models or samplers:
            self._has_freed = True
            logger.info("session %s: freed %d models, %d samplers", session_id, models, samplers)

    # ------------------------------------------------------------------------------------ training

    async def save_weights_for_sampler(
        self,
        owner: str,
        model_id: str,
        seq_id: int | None,
        *,
        digest: str,
        name: str | None = None,
        sampling_session_seq_id: int | None = None,
        ttl_seconds: int | None = None,
        user_metadata: Mapping[str, str] | None = None,
    ) -> Promise:
        """A named checkpoint, or with sampling_session_seq_id a sampler that is never saved."""
        if (name is None) == (sampling_session_seq_id is None):
            raise bad_request(
                "save_weights_for_sampler: exactly one of path (a name) and "
                "sampling_session_seq_id is needed",
                param="path",
            )
        if name is not None:
            return await self._training.save_sampler_weights(
                owner,
                model_id,
                seq_id,
                name,
                digest=digest,
                ttl_seconds=ttl_seconds,
                user_metadata=user_metadata,
            )
        assert sampling_session_seq_id is not None
        return await self._training.snapshot(
            owner,
            model_id,
            seq_id,
            digest=digest,
            check=partial(self._samplers.check_new, model_id, sampling_session_seq_id),
            keep=partial(self._samplers.add_moment, sampling_session_seq_id),
        )

    # ------------------------------------------------------------------------------------- results

    async def wait(self, owner: str, request_id: str, timeout_seconds: float) -> Outcome:
        """Raises ServingError: 404 for an unknown request and another owner's, 410 for one whose
        result is gone."""
        promise = self._promises.get(owner, request_id)
        if promise is not None:
            self._sessions.touch(promise.session_id)
        return await self._promises.wait(owner, request_id, timeout_seconds)

    def cancel(self, owner: str, request_id: str) -> None:
        """A sample that nobody wants any more. Training requests go on: those that were made
        after them count on them. Raises 404 and 410, see wait()."""
        promise = self._promises.get(owner, request_id)
        if promise is None:
            raise not_found(f"request {request_id!r}")
        if promise.kind == SAMPLE:
            self._scheduler.drop([promise])

    # -------------------------------------------------------------------------------------- sweeps

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(self.options.sweep_seconds)
            self.sweep()
            quiet = self._quiet_seconds()
            # a busy server keeps what its next clients would have to ask the system for again
            if self._has_freed and quiet >= self.options.idle_seconds:
                self._has_freed = False
                await self._workers.load(return_freed_memory)

    def _quiet_seconds(self) -> float:
        """Since the engine had anything to do, as of the calls of this method."""
        if self._scheduler.num_running or self._scheduler.num_given != self._num_given:
            self._num_given = self._scheduler.num_given
            self._quiet_since = self._clock()
        return self._clock() - self._quiet_since

    def sweep(self) -> None:
        """Frees what silent clients hold, expired results and expired checkpoints."""
        self._promises.sweep()
        self._activity.look()
        self._forget_futures()
        open_promises = [promise for promise in self._promises if promise.is_open]
        for session_id in self._sessions.silent(open_promises):
            self._scheduler.drop([p for p in open_promises if p.session_id == session_id])
            # a pass that runs ends first
            if not self._trained.is_training(session_id):
                logger.info(
                    "session %s: silent for %g s, taken for dead",
                    session_id,
                    self.options.session_seconds,
                )
                self._free(session_id)
                self._sessions.forget(session_id)
        self.checkpoints.sweep()
        if self.uploads is not None:
            self.uploads.sweep()

    def _forget_futures(self) -> None:
        """Nobody asks any more for what was promised a day ago."""
        now = self._clock()
        if now - self._forgot_at >= _HOUR:
            self._forgot_at = now
            self.store.futures.forget(utc_now() - datetime.timedelta(days=1))

    def status(self) -> dict[str, Any]:
        """For the page and for metrics: what runs now, of all owners."""
        self._activity.look()
        return {
            "uptime_seconds": self._clock() - self._started_at,
            "base_models": self.bases.names,
            "sessions": self._sessions.num_alive,
            "models": self._trained.num_models,
            "samplers": self._samplers.num_open,
            "waiting": self._scheduler.num_waiting,
            "running": self._scheduler.num_running,
            "sampled_per_second": self._activity.sampled.per_second(),
            "trained_per_second": self._activity.trained.per_second(),
            "sampled_tokens": self._activity.sampled.total,
            "trained_tokens": self._activity.trained.total,
            "result_bytes": self._promises.num_bytes,
        }

    def clients(self, owner: str) -> list[dict[str, Any]]:
        """For the page: an owner's clients that are alive, the newest first."""
        num_open = Counter(p.session_id for p in self._promises if p.is_open)
        return [
            {
                "session_id": session.session_id,
                "name": session.display_name or " ".join(session.tags),
                "sdk_version": session.sdk_version,
                "created_at": session.created_at.isoformat(),
                "silent_seconds": silent,
                "models": self._trained.num_of(session.session_id),
                "open_requests": num_open[session.session_id],
            }
            for session, silent in self._sessions.alive(owner)
        ]

    def num_open(self, owner: str) -> int:
        """Requests of an owner that have no result yet."""
        return self._promises.num_open(owner)


def _told(detail: str | None) -> str:
    """What a client says goes into the log as one short line."""
    return "" if not detail else f" ({ascii(detail)[:200]})"
