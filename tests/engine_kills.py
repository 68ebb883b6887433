"""Engines of this process that are child processes, found and killed at random (Linux)."""

import os
import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from training.backends.pool.children import PROGRAM
from training.backends.pool.lane import MOST_LOSSES


def engine_pids() -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            if parent == os.getpid() and PROGRAM in (folder / "cmdline").read_text():
                found.append(int(folder.name))
    return sorted(found)


def has_begun(pid: int) -> bool:
    """Whether it works on a request; one that ends before is told as one that cannot begin."""
    with suppress(OSError):
        return "libtorch" in Path(f"/proc/{pid}/maps").read_text()
    return False


@contextmanager
def killed_again_and_again(
    seed: int, longest: float, number: int = signal.SIGKILL
) -> Iterator[list[int]]:
    """Meanwhile an engine is killed after every random time of up to `longest` seconds, so often
    that it may be the same request each time and yet not be taken for what kills them, however
    slow the machine is; gives the process ids of those that were."""
    pids: list[int] = []
    ended = threading.Event()

    def work() -> None:
        rng = random.Random(seed)
        while len(pids) < MOST_LOSSES - 1 and not ended.wait(rng.uniform(0, longest)):
            if there := [pid for pid in engine_pids() if has_begun(pid)]:
                pid = rng.choice(there)
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
                    pids.append(pid)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield pids
    finally:
        ended.set()
        thread.join()
