"""scripts/serve.py as a process of its own, for tests that talk to it over HTTP."""

import contextlib
import os
import queue
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from places import ROOT

START_SECONDS = 400.0
END_SECONDS = 30.0


@dataclass
class Served:
    """A running server: its URL, a key of it, its process and the file with its log."""

    url: str
    key: str
    process: "subprocess.Popen[str]"
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit code after that signal."""
        self.process.send_signal(number)
        return self.process.wait(END_SECONDS)


def server_environment() -> dict[str, str]:
    # under pytest's variable chz raises instead of exiting
    kept = {name: v for name, v in os.environ.items() if name != "PYTEST_VERSION"}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "100"}


@contextlib.contextmanager
def served(folder: Path, settings: Sequence[str] = ()) -> Iterator[Served]:
    """Runs in `folder`, with its store there, until the block ends; a later one goes on with it."""
    command = [sys.executable, str(ROOT / "scripts/serve.py"), "device=cpu", *settings]
    if not any(setting.startswith("port=") for setting in settings):
        command.append("port=0")
    log_file = folder / "server.log"
    with open(log_file, "a", encoding="utf-8") as log:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=server_environment(),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        url, key = _announced(process, log_file)
        yield Served(url, key, process, log_file)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _announced(process: "subprocess.Popen[str]", log_file: Path) -> tuple[str, str]:
    """The URL and the key that it prints once it is ready."""
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process.stdout, lines), daemon=True).start()
    said = ""
    while (line := lines.get(timeout=START_SECONDS)) is not None:
        said += line
        url = re.search(r"^ *URL +(\S+)", said, re.MULTILINE)
        key = re.search(r"^ *Key +(\S+)", said, re.MULTILINE)
        if url and key:
            return url[1], key[1]
    raise AssertionError(f"it ended with {process.wait()}:\n{said}\n{log_file.read_text()}")


def _read(stream: Any, lines: "queue.Queue[str | None]") -> None:
    """To the end, so that the process is never held up by a full pipe."""
    for line in stream:
        lines.put(line)
    lines.put(None)
