"""The child process with vLLM, seen from here: requests as futures, and what becomes of them when
it ends."""

import contextlib
import logging
import os
import queue
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from training.api import CLOSED_BEFORE, RequestFailedError

logger = logging.getLogger(__name__)

WORKER = Path(__file__).with_name("worker.py")
CLOSE_SECONDS = 10.0
# multiprocessing's tracker, which gives back the memory that killed processes shared
TRACKER = b"multiprocessing.resource_tracker"
TRACKER_SECONDS = 5.0
_LAST_LINES = 3
_ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    # beside threads, a fork may lock up
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
    # the worker's folder has modules with common names
    "PYTHONSAFEPATH": "1",
}

# its index, and what worker.sampled() makes of its new tokens
OnTokens = Callable[[int, Any], None]


class StoppedError(RequestFailedError):
    """vLLM's process has ended; the requests that it had are lost."""

    def __init__(self, message: str) -> None:
        super().__init__(message, "server")


class RefusedError(Exception):
    """What vLLM cannot do, in its own words; `kind` is one of worker.py's."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class _Request(NamedTuple):
    future: "Future[Any]"
    on_tokens: OnTokens | None


class VllmProcess:
    """Starts at once; `ready` is the future of what worker.start() tells. Everything may be called
    from any thread, `tell` from a finalizer too. What is printed goes to `log`."""

    def __init__(self, command: list[str], settings: Mapping[str, Any], log: Path) -> None:
        ours, theirs = socket.socketpair()
        self._log = log
        with theirs, log.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_ENVIRONMENT},
                # vLLM has processes of its own, which end with it; Ctrl-C is not theirs
                start_new_session=True,
            )
        self._connection = Connection(ours.detach())
        self._connection.send(dict(settings))
        self._lock = threading.Condition()
        self._numbers = 0
        self._waiting: dict[int, _Request] = {0: _Request(Future(), None)}
        self.ready: Future[dict[str, Any]] = self._waiting[0].future
        self._ended: StoppedError | None = None
        self._closing = False
        self._close_lock = threading.Lock()
        self._outgoing: queue.SimpleQueue[tuple[int, str, Any] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=target, name=f"vllm-{target.__name__}", daemon=True)
            for target in (self._write, self._read)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def ended(self) -> bool:
        return self._ended is not None

    def ask(
        self, kind: str, values: Any, on_tokens: OnTokens | None = None
    ) -> "tuple[int, Future[Any]]":
        """The request's number, and the future of its value: of StoppedError, RefusedError or
        CancelledError where there is none."""
        future: Future[Any] = Future()
        with self._lock:
            self._numbers += 1
            number = self._numbers
            if self._ended is not None:
                future.set_exception(self._ended)
                return number, future
            self._waiting[number] = _Request(future, on_tokens)
        self._outgoing.put((number, kind, values))
        return number, future

    def wait_until_idle(self) -> None:
        """Until every request has its answer."""
        with self._lock:
            self._lock.wait_for(lambda: not self._waiting)

    def tell(self, number: int, kind: str, values: Any = None) -> None:
        """No answer comes; `number` is that of the request that is meant, or 0."""
        self._outgoing.put((number, kind, values))

    def close(self) -> None:
        """Ends it, and all its processes, whatever they are at. May be called again."""
        self._closing = True
        with self._close_lock:
            self._outgoing.put(None)
            # one that is still starting does not listen
            if self.ready.done():
                try:
                    self._process.wait(CLOSE_SECONDS)
                except subprocess.TimeoutExpired:
                    logger.warning("vLLM does not end by itself; its processes are killed")
            self._kill()
            for thread in self._threads:
                if thread is not threading.current_thread():
                    thread.join()
            self._connection.close()

    def _kill(self) -> None:
        """All processes of its group; the tracker last, when it has had time to end by itself."""
        for pid, is_tracker in _members(self._process.pid).items():
            if not is_tracker:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        # where there is no /proc, the others come last
        self._process.kill()
        self._process.wait()
        until = time.monotonic() + TRACKER_SECONDS
        while _members(self._process.pid) and time.monotonic() < until:
            time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def _write(self) -> None:
        try:
            while (message := self._outgoing.get()) is not None:
                self._connection.send(message)
            # the child reads to the end, and then shuts vLLM down
            with socket.socket(fileno=os.dup(self._connection.fileno())) as ours:
                ours.shutdown(socket.SHUT_WR)
        except OSError:
            # it has ended, which the reader finds too
            return

    def _read(self) -> None:
        try:
            while True:
                number, outcome, value = self._connection.recv()
                self._settle(number, outcome, value)
        except (EOFError, OSError):
            self._fail_all()

    def _settle(self, number: int, outcome: str, value: Any) -> None:
        if outcome == "tokens":
            with self._lock:
                request = self._waiting.get(number)
            if request is not None and request.on_tokens is not None:
                request.on_tokens(*value)
            return
        with self._lock:
            request = self._waiting.pop(number, None)
            self._lock.notify_all()
        if request is None:
            return
        if outcome == "done":
            request.future.set_result(value)
        elif value[0] == "cancelled" and self._closing:
            request.future.set_exception(StoppedError(self._why()))
        elif value[0] == "cancelled":
            request.future.cancel()
            request.future.set_running_or_notify_cancel()
        else:
            request.future.set_exception(RefusedError(*value))

    def _fail_all(self) -> None:
        # a process that closed its end may still hold a GPU
        self._kill()
        with self._lock:
            self._ended = error = StoppedError(self._why())
            waiting, self._waiting = list(self._waiting.values()), {}
            self._lock.notify_all()
        for request in waiting:
            if not request.future.done():
                request.future.set_exception(error)

    def _why(self) -> str:
        if self._closing:
            return CLOSED_BEFORE
        code = self._process.returncode
        how = f"signal {-code}" if code < 0 else f"exit status {code}"
        text = self._log.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()][-_LAST_LINES:]
        return f"vLLM stopped ({how}); its log is {self._log}, which ends: {' | '.join(lines)}"


def _members(group: int) -> dict[int, bool]:
    """The living processes of a group, and whether each is a tracker; none where the system has no
    /proc."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        # it may end meanwhile
        with contextlib.suppress(OSError):
            # pid (name) state parent group; a name may hold anything
            state, _, its_group = (folder / "stat").read_bytes().rpartition(b")")[2].split()[:3]
            if int(its_group) == group and state != b"Z":
                found[int(folder.name)] = TRACKER in (folder / "cmdline").read_bytes()
    return found
