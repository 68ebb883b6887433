"""scripts/serve.py in a process of its own, for benchmarks that are its clients."""

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

ROOT = Path(__file__).parent.parent
END_SECONDS = 30
_LAST_LINES = 20


class Server:
    """One that runs. What only Linux tells of its process is 0 elsewhere."""

    def __init__(self, url: str, key: str, pid: int) -> None:
        self.url = url
        self.key = key
        self._folder = Path(f"/proc/{pid}")

    def status(self) -> dict[str, Any]:
        """What the page shows."""
        request = Request(f"{self.url}/page/status", headers={"X-API-Key": self.key})
        with urlopen(request) as reply:
            return json.load(reply)

    def num_threads(self) -> int:
        return self._figure("Threads")

    def resident_mib(self) -> float:
        return self._figure("VmRSS") / 1024

    def cpu_seconds(self) -> float:
        """Of all its threads, those that ended too."""
        if not self._folder.exists():
            return 0.0
        fields = (self._folder / "stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")

    def _figure(self, key: str) -> int:
        if not self._folder.exists():
            return 0
        found = re.search(rf"^{key}:\s+(\d+)", (self._folder / "status").read_text(), re.MULTILINE)
        assert found is not None
        return int(found[1])


@contextlib.contextmanager
def served(model: str, *settings: str, threads: int | None = None) -> Iterator[Server]:
    """A server of a model with a store of its own, which ends with the block. Raises SystemExit
    with the end of its log where it does not start."""
    environment = dict(os.environ)
    # under pytest's variable chz raises instead of exiting
    environment.pop("PYTEST_VERSION", None)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        command = [sys.executable, str(ROOT / "scripts/serve.py"), f"model_name={model}", "port=0"]
        command += [f"store_dir={folder}/store", "access_log=false", *settings]
        log_file = Path(folder) / "log"
        with (
            log_file.open("w") as log,
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=log, text=True, env=environment
            ) as process,
        ):
            try:
                url, key = _announced(process, log_file)
                yield Server(url, key, process.pid)
            finally:
                process.terminate()
                process.wait(END_SECONDS)


def _announced(process: "subprocess.Popen[str]", log_file: Path) -> tuple[str, str]:
    """The URL and the key that it prints when it is ready."""
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if found := re.search(r"URL +(\S+)\s+Key +(\S+)", said):
            return found[1], found[2]
    lines = log_file.read_text().splitlines()[-_LAST_LINES:]
    raise SystemExit("\n".join(["the server ended:", said, *lines]))
