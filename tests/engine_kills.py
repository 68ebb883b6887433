"""Engines that are child processes, lost at random while a program uses them (Linux)."""

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import pytest

from training.backends.pool.children import PROGRAM, ChildLink, ChildTransport
from training.backends.pool.clients import PoolServiceClient
from training.backends.pool.lane import MOST_LOSSES, Batch, Lane
from training.backends.pool.transport import EngineLostError

# killed; killed, and what takes its place too; killed, and no other one begins for a while; stopped
Loss = Literal["kill", "twice", "no place", "stop"]
SECONDS_WITHOUT_PLACE = 3.0


def engine_pids() -> list[int]:
    """Of all engines of this process, as the system knows them."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and PROGRAM in (folder / "cmdline").read_text():
                found.append(int(folder.name))
    return sorted(found)


class Losses:
    """Loses engines, each time after a random time of up to `longest` seconds, in the ways of
    `plan`, one after the other, as far as a program lasts; `moments` says what they were at.

    No request loses so many that it would be taken for what kills them, however slow the machine.
    """

    def __init__(self, plan: Sequence[Loss], *, seed: int, longest: float) -> None:
        self.plan = list(plan)
        self.moments: Counter[str] = Counter()
        self._rng = random.Random(seed)
        self._longest = longest
        self._no_place_until = 0.0

    @contextmanager
    def during(self, services: Sequence[PoolServiceClient]) -> Iterator[None]:
        """What is done meanwhile, with the last of the services as soon as there is one."""
        begin, ended = ChildTransport.start, threading.Event()
        # a pool that begins has to find places
        self._no_place_until = 0.0

        def start(transport: ChildTransport, index: int) -> ChildLink:
            if time.monotonic() < self._no_place_until:
                raise EngineLostError("there is no place")
            return begin(transport, index)

        thread = threading.Thread(target=self._work, args=[services, ended])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ChildTransport, "start", start)
            thread.start()
            try:
                yield
            finally:
                ended.set()
                thread.join()

    def _work(self, services: Sequence[PoolServiceClient], ended: threading.Event) -> None:
        # of each lane: all, and those that what runs on it now may have been told of
        losses: Counter[Lane] = Counter()
        recent: Counter[Lane] = Counter()
        while self.plan and not ended.wait(self._rng.uniform(0.0, self._longest)):
            number = 2 if self.plan[0] == "twice" else 1
            free = []
            for lane in services[-1].pool.lanes if services else []:
                if lane.link is None or lane.num_lost < losses[lane]:
                    # the last one was not noticed yet
                    continue
                if lane._running is None or not lane._running.losses:
                    recent[lane] = 0
                if recent[lane] + number < MOST_LOSSES:
                    free.append(lane)
            if not free:
                continue
            lane, way = self._rng.choice(free), self.plan.pop(0)
            for _ in range(number):
                lost = self._lose(lane, way)
                losses[lane] += lost is not None
                recent[lane] += lost is not None
                while number == 2 and lane.link in (None, lost) and not ended.wait(0.01):
                    pass

    def _lose(self, lane: Lane, way: Loss) -> ChildLink | None:
        link, running = lane.link, lane._running
        if not isinstance(link, ChildLink) or link._process.poll() is not None:
            return None
        if way == "no place":
            self._no_place_until = time.monotonic() + SECONDS_WITHOUT_PLACE
        link._process.send_signal(signal.SIGSTOP if way == "stop" else signal.SIGKILL)
        self.moments[_moment(running)] += 1
        return link


def _moment(running: Batch | None) -> str:
    """What an engine was at."""
    if running is None:
        return "nothing"
    if all(waiting.future.done() for waiting in running.waiting):
        return "a snapshot"
    if running.losses:
        return "what was repeated"
    return ", ".join(sorted({waiting.request.method for waiting in running.waiting}))
