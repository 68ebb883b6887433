"""How long OpenMP's threads spin while they wait for each other.

libgomp, which torch's wheels bring on Linux, lets a thread that waits at the end of a parallel
region spin before it sleeps, by default for about 3 ms. Alone that saves a wake-up; where other
processes want the cores too, a thread then burns its share of them waiting for one that was sent
off its core, and the program slows down far more than its share. So spinning is bounded from the
start, and a thread that watches the scheduler's figures all but ends it for as long as others want
the cores. The number of threads, which decides the last bits of a sum, stays as it is.

benchmarks/busy.py measures it, benchmarks/LOG.md says how the figures were chosen.
"""

import contextlib
import ctypes
import functools
import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

SPIN_COUNT = 10_000
# what users may have set themselves; libgomp takes the first over the second
OWN_CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
WATCH_SECONDS = 0.5
# looks in a row that must find the cores busy: requests of a server's clients that come together
# are over within one look
BUSY_LOOKS = 2
# seconds that this process's threads waited for a core, per second: 0.0 to 0.07 on a quiet machine,
# 0.3 and more beside one busy process
BUSY_SHARE, QUIET_SHARE = 0.2, 0.1
_SCHEDULER_FIGURES = Path("/proc/self/schedstat")


def bound_spinning() -> None:
    """Bounds the spinning of this process and its children, unless the user has chosen.

    libgomp reads its environment when torch loads it; where torch is imported already, the bound
    holds for the children alone and the watch for both.
    """
    if sys.platform != "linux" or "OMP_WAIT_POLICY" in os.environ:
        return
    if os.environ.setdefault("GOMP_SPINCOUNT", str(SPIN_COUNT)) == str(SPIN_COUNT):
        _watch(os.getpid())


@functools.cache
def _watch(pid: int) -> None:
    """One watch per process; threads do not survive a fork, hence the key."""
    if _SCHEDULER_FIGURES.exists():
        threading.Thread(target=_keep_watch, name="openmp-watch", daemon=True).start()


def _keep_watch() -> None:
    short_spins: ShortSpins | None = None
    before, waited = time.monotonic(), _waited_seconds()
    shares: deque[float] = deque(maxlen=BUSY_LOOKS)
    while True:
        time.sleep(WATCH_SECONDS)
        now, waited_now = time.monotonic(), _waited_seconds()
        shares.append((waited_now - waited) / (now - before))
        before, waited = now, waited_now
        wanted = short_spins_wanted(shares, short_spins is not None)
        if short_spins is None and wanted and (library := loaded_libgomp()) is not None:
            logger.debug("other processes want the cores: OpenMP's threads hardly spin")
            short_spins = ShortSpins(library)
        elif short_spins is not None and not wanted:
            logger.debug("the cores are free again: OpenMP's threads spin")
            short_spins.end()
            short_spins = None


def short_spins_wanted(shares: Sequence[float], now: bool) -> bool:
    """`shares`: of the last looks, the latest one last, seconds that this process's threads waited
    for a core, per second. `now`: whether spinning is short already."""
    if now:
        return shares[-1] >= QUIET_SHARE
    return len(shares) >= BUSY_LOOKS and min(shares) > BUSY_SHARE


def _waited_seconds() -> float:
    """How long this process's threads were ready to run and had no core. Of those that live: the
    sum falls when one ends."""
    waited = 0
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(ProcessLookupError, FileNotFoundError):
            # time on a core, time waited for one (both ns), number of time slices
            waited += int((task / "schedstat").read_text().split()[1])
    return waited / 1e9


def loaded_libgomp() -> ctypes.CDLL | None:
    """The one that torch loaded, once it has."""
    if "torch" not in sys.modules:
        return None
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if "/libgomp" in path and not path.endswith(" (deleted)"):
            return ctypes.CDLL(path)
    return None


class ShortSpins:
    """While it lives, libgomp spins 100 times at most: what it does by itself whenever the process
    has more OpenMP threads than cores. Here another thread holds that many more, all asleep."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._end = threading.Event()
        self._thread = threading.Thread(
            target=self._hold, args=(library,), name="openmp-short-spins", daemon=True
        )
        self._thread.start()

    def _hold(self, library: ctypes.CDLL) -> None:
        # a parallel region as compilers write it; what it calls does nothing, and libgomp keeps its
        # threads until the thread that asked for them ends
        nothing = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p)
        library.GOMP_parallel(nothing, None, library.omp_get_num_procs() + 1, 0)
        self._end.wait()

    def end(self) -> None:
        self._end.set()
        self._thread.join()
