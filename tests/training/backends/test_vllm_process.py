"""What is left of vLLM's process and of its adapters' folders, however either side ends.

uv run pytest tests/training/backends/test_vllm_process.py
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from training.backends.vllm import process as process_module
from training.backends.vllm.folders import PREFIX, AdapterFolders
from training.backends.vllm.process import CLOSE_SECONDS, StoppedError, VllmProcess

# shares memory as vLLM does, in a process of its own too, and says so
SHARING = """
import multiprocessing, sys, time
from multiprocessing import shared_memory
from multiprocessing.connection import Connection

def share(names):
    memory = shared_memory.SharedMemory(create=True, size=4096)
    names.put(memory.name)
    time.sleep(600)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    names = context.Queue()
    context.Process(target=share, args=(names,), daemon=True).start()
    theirs = names.get()
    ours = shared_memory.SharedMemory(create=True, size=4096)
    connection = Connection(int(sys.argv[1]))
    connection.recv()
    connection.send((0, "done", [ours.name, theirs]))
    {then}
"""
ENDS = "\n    ".join(("try:", "    connection.recv()", "except EOFError:", "    sys.exit()"))
HANGS = "time.sleep(600)"
STARTS_FOR_LONG = "import time\ntime.sleep(600)\n"

Begin = Callable[[str], VllmProcess]


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    begun: list[VllmProcess] = []

    def make(text: str) -> VllmProcess:
        script = tmp_path / "worker.py"
        script.write_text(text)
        begun.append(VllmProcess([sys.executable, str(script)], {}, tmp_path / "vllm.log"))
        return begun[-1]

    yield make
    for process in begun:
        process.close()


def shared(names: list[str]) -> list[str]:
    return [name for name in names if Path("/dev/shm", name).exists()]


def lives(group: int) -> bool:
    return bool(process_module._members(group))


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "closed"])
def test_what_it_shared_is_given_back(begin: Begin, kill: bool) -> None:
    process = begin(SHARING.format(then=ENDS))
    names: Any = process.ready.result(60)
    assert shared(names) == names
    if kill:
        _, lost = process.ask("sample", {})
        os.kill(process.pid, signal.SIGKILL)
        with pytest.raises(StoppedError, match=r"vLLM stopped \(signal 9\); its log is"):
            lost.result(60)
    else:
        process.close()
    assert shared(names) == [] and not lives(process.pid)


def test_one_that_hangs_is_killed(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.backends.vllm.process.CLOSE_SECONDS", 0.1)
    process = begin(SHARING.format(then=HANGS))
    names: Any = process.ready.result(60)
    process.close()
    assert shared(names) == [] and not lives(process.pid)


def test_one_that_is_still_starting_is_killed_at_once(begin: Begin) -> None:
    process = begin(STARTS_FOR_LONG)
    started = time.monotonic()
    process.close()
    process.close()
    # no time to end by itself
    assert time.monotonic() - started < CLOSE_SECONDS
    assert not lives(process.pid)
    with pytest.raises(StoppedError, match="the service was closed"):
        process.ready.result(60)


KILLED = """
import os, signal
from pathlib import Path
from training.backends.vllm import folders
folders.MEMORY = Path("in memory")
own = folders.AdapterFolders(Path("on disk"), lambda number: None)
print(own._root(1), own._root(10**15), flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_folders_of_killed_processes_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = tmp_path / "in memory"
    memory.mkdir()
    monkeypatch.setattr("training.backends.vllm.folders.MEMORY", memory)
    options: dict[str, Any] = {"cwd": tmp_path, "capture_output": True, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    run = subprocess.run([sys.executable, "-c", KILLED], env=environment, **options)
    assert run.returncode == -signal.SIGKILL, run.stderr
    left = [*memory.glob(f"{PREFIX}*/"), *(tmp_path / "on disk").glob(f"{PREFIX}*/")]
    assert len(left) == 2
    first, second = (AdapterFolders(tmp_path / "on disk", lambda _n: None) for _ in range(2))
    for size in (1, 10**15):
        mine, others = first._root(size), second._root(size)
        # what lives stays
        assert mine.is_dir() and others.is_dir() and mine != others
    assert not any(folder.exists() for folder in left)
    first.close()
    second.close()
    assert [*memory.iterdir(), *(tmp_path / "on disk").iterdir()] == []
