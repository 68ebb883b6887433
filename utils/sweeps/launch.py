"""Where the runs of a sweep go: a launcher takes jobs, and tells when they begin and end.

launcher = LocalLauncher(max_parallel=2, threads=1)
launcher.submit(Job("lr=0.1", [sys.executable, "scripts/sft.py", "lr=0.1"], log, folder))
for update in launcher.wait(1.0): ...

A cluster's queue joins as another class with these three methods, named in launchers.py.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

SECONDS_BETWEEN_LOOKS = 0.05
SECONDS_TO_TERMINATE = 5.0
CANNOT_START = 127  # the shell's code for a command that it cannot run
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Job:
    """One run: its command without a shell, what its environment has besides this process's, the
    file that its output is appended to, and the folder it works in."""

    name: str
    argv: Sequence[str]
    log: Path
    folder: Path
    env: Mapping[str, str] = field(default_factory=dict)


class JobResult(NamedTuple):
    returncode: int  # -N where signal N ended it
    seconds: float


class Update(NamedTuple):
    """The job of that handle has begun, or it has ended with `result`."""

    handle: str
    result: JobResult | None


class Launcher(Protocol):
    def submit(self, job: Job) -> str:
        """Takes the job, to begin as soon as there is room, and gives its handle: the name, which
        no other job of this launcher has."""
        ...

    def wait(self, timeout: float) -> list[Update]:
        """What has happened since the last call; waits for something up to `timeout` seconds."""
        ...

    def cancel(self, grace: float) -> list[Update]:
        """Forgets what waits, interrupts what runs, so that it can save, and ends it by force after
        `grace` seconds; returns when nothing runs any more."""
        ...


class LocalLauncher:
    """Processes of this machine, `max_parallel` at a time with `threads` compute threads each.

    They share its devices. Each has a process group of its own, so that Ctrl-C reaches them through
    `cancel` alone. On Linux they are killed with the thread that made them, however it ends, and
    never go on beside a second start of the same sweep.
    """

    def __init__(self, *, max_parallel: int, threads: int) -> None:
        self._max_parallel = max_parallel
        self._threads = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
        self._waiting: deque[Job] = deque()
        self._running: dict[str, _Running] = {}
        self._in_child = _in_child(os.getpid())

    def submit(self, job: Job) -> str:
        self._waiting.append(job)
        return job.name

    def wait(self, timeout: float) -> list[Update]:
        deadline = time.monotonic() + timeout
        while True:
            updates = [*self._ended(), *self._begun()]
            if updates or time.monotonic() >= deadline:
                return updates
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def cancel(self, grace: float) -> list[Update]:
        self._waiting.clear()
        updates: list[Update] = []
        # Ctrl-C once more: no more patience
        with contextlib.suppress(KeyboardInterrupt):
            self._signal(signal.SIGINT)
            self._drain(updates, grace)
        self._signal(signal.SIGTERM)
        self._drain(updates, SECONDS_TO_TERMINATE)
        self._signal(signal.SIGKILL)
        self._drain(updates, float("inf"))
        return updates

    def _begun(self) -> list[Update]:
        updates = []
        while self._waiting and len(self._running) < self._max_parallel:
            job = self._waiting.popleft()
            updates.append(Update(job.name, None))
            try:
                self._running[job.name] = self._start(job)
            except OSError as error:
                with open(job.log, "a", encoding="utf-8") as log:
                    log.write(f"cannot start {job.argv[0]}: {error}\n")
                updates.append(Update(job.name, JobResult(CANNOT_START, 0.0)))
        return updates

    def _start(self, job: Job) -> _Running:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        with open(job.log, "ab") as log:
            process = subprocess.Popen(
                job.argv,
                cwd=job.folder,
                env={**os.environ, **self._threads, **job.env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
                # nothing but system calls: safe between fork and exec
                preexec_fn=self._in_child,
            )
        return _Running(process, time.perf_counter())

    def _ended(self) -> list[Update]:
        updates = []
        for name, running in list(self._running.items()):
            code = running.process.poll()
            if code is not None:
                seconds = time.perf_counter() - running.started
                updates.append(Update(name, JobResult(code, seconds)))
                del self._running[name]
        return updates

    def _drain(self, updates: list[Update], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            updates += self._ended()
            if not self._running or time.monotonic() >= deadline:
                return
            time.sleep(SECONDS_BETWEEN_LOOKS)

    def _signal(self, number: signal.Signals) -> None:
        """To the whole groups, as a terminal does: runs may have processes of their own."""
        for running in self._running.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.process.pid, number)


class _Running(NamedTuple):
    process: subprocess.Popen[bytes]
    started: float


def _in_child(parent: int) -> Callable[[], None]:
    """For a child to run before its program: it listens to SIGINT, which a sweep in the background
    of a shell script ignores, and on Linux the kernel kills it when `parent` is gone."""
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None

    def prepare() -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # which the threads of some programs do not let in
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        if libc is not None:
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            # it may be gone already, and then no signal comes
            if os.getppid() != parent:
                os._exit(CANNOT_START)

    return prepare
