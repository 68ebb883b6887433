"""A sweep's runs on a Ray cluster, which starts each where there is room."""

import logging
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from signal import SIGKILL
from typing import Any, NamedTuple

from utils.ray_cluster import import_ray, is_own, join, leave, listed
from utils.sweeps.launch import SECONDS_TO_TERMINATE, Job, JobResult, LocalLauncher, Update

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LOOKS = 0.5


class RayLauncher:
    """At most `max_parallel` runs at a time, each with `threads` CPUs and `gpus` GPUs of the
    cluster at RAY_ADDRESS, else of one of this machine's own. A run counts as begun when Ray has
    it. Its folder and its log have to be where all machines see them. What ends with its machine
    has failed; nothing is started again by itself.

    Raises ImportError where Ray is not installed, ValueError where no cluster answers, or one of
    this machine's own can never have room for a run."""

    def __init__(self, *, max_parallel: int, threads: int, gpus: float = 0) -> None:
        self._ray = import_ray()
        join(self._ray, None, max_parallel * threads)
        self._require_room({"CPU": threads, "GPU": gpus})
        self._max_parallel = max_parallel
        self._threads = threads
        # an actor of its own each, since a task could not be told to save
        self._run = self._ray.remote(
            num_cpus=threads,
            num_gpus=gpus,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=2,
        )(_Run)
        self._waiting: deque[Job] = deque()
        # by what its end is known by
        self._running: dict[Any, _Running] = {}

    def submit(self, job: Job) -> str:
        self._waiting.append(job)
        return job.name

    def wait(self, timeout: float) -> list[Update]:
        updates = []
        while self._waiting and len(self._running) < self._max_parallel:
            job = self._waiting.popleft()
            actor = self._run.remote(job, self._threads)
            self._running[actor.run.remote()] = _Running(job, actor, time.perf_counter())
            updates.append(Update(job.name, None))
        # what has begun is told at once
        return updates + self._ended(0 if updates else timeout)

    def cancel(self, grace: float) -> list[Update]:
        self._waiting.clear()
        updates: list[Update] = []
        # Ctrl-C once more: no more patience
        with suppress(KeyboardInterrupt):
            for running in self._running.values():
                running.actor.stop.remote(grace)
            deadline = time.monotonic() + grace + 2 * SECONDS_TO_TERMINATE
            while self._running and time.monotonic() < deadline:
                updates += self._ended(SECONDS_BETWEEN_LOOKS)
        for running in self._running.values():
            self._ray.kill(running.actor)
        while self._running:
            updates += self._ended(SECONDS_BETWEEN_LOOKS)
        leave(self._ray)
        return updates

    def _require_room(self, needs: Mapping[str, float]) -> None:
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        if any(all(node.get(name, 0) >= needs[name] for name in needs) for node in nodes):
            return
        there = "; ".join(map(listed, nodes))
        if is_own():
            leave(self._ray)
            raise ValueError(
                f"gpus={needs['GPU']:g}: a cell needs {listed(needs)}, and this machine has {there}"
            )
        # it may grow
        logger.warning(
            "a cell needs %s on one machine, and the Ray cluster's have %s; cells wait for another",
            *(listed(needs), there),
        )

    def _ended(self, timeout: float) -> list[Update]:
        if not self._running:
            return []
        done, _ = self._ray.wait(list(self._running), num_returns=1, timeout=timeout)
        return [self._end(end) for end in done]

    def _end(self, end: Any) -> Update:
        job, actor, started = self._running.pop(end)
        try:
            result = self._ray.get(end)
        except self._ray.exceptions.RayError as error:
            with open(job.log, "a", encoding="utf-8") as log:
                log.write(f"lost: {type(error).__name__}: {error}\n")
            result = JobResult(-SIGKILL, time.perf_counter() - started)
        # gives back what it had
        self._ray.kill(actor)
        return Update(job.name, result)


class _Running(NamedTuple):
    job: Job
    actor: Any
    started: float


class _Run:
    """On the machine where it runs."""

    def __init__(self, job: Job, threads: int) -> None:
        self._job = job
        self._threads = threads
        self._grace: float | None = None

    def run(self) -> JobResult:
        launcher = LocalLauncher(max_parallel=1, threads=self._threads)
        launcher.submit(self._job)
        while True:
            if self._grace is None:
                updates = launcher.wait(SECONDS_BETWEEN_LOOKS)
            else:
                updates = launcher.cancel(self._grace)
            for update in updates:
                if update.result is not None:
                    return update.result

    def stop(self, grace: float) -> None:
        self._grace = grace
