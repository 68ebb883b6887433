"""A rival that runs in an environment of its own, as a process that is asked line by line."""

import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import Any

LAST_CHARACTERS = 2000


class MissingRivalError(Exception):
    """It cannot be compared with, and why."""


class RivalProcess:
    """`script` under `python`, which answers each line of JSON by one. `settings` is the first.

    Raises MissingRivalError where there is no such interpreter, or the script says that it cannot,
    or ends; RuntimeError with its last words where it ends later.
    """

    def __init__(
        self, python: Path, script: Path, settings: dict[str, Any], **environment: str
    ) -> None:
        if not python.is_file():
            raise MissingRivalError(
                f"there is no {python}; bash benchmarks/vllm_environment.sh makes it"
            )
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self._process = subprocess.Popen(
            [str(python), str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", **environment},
            text=True,
            # it has processes of its own
            start_new_session=True,
        )
        try:
            answer = self.ask(settings)
            if "error" in answer:
                raise MissingRivalError(answer["error"])
        except (RuntimeError, MissingRivalError) as error:
            self.close()
            raise MissingRivalError(str(error)) from error
        self.about: str = answer["ready"]

    def ask(self, values: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(values) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"{self._process.args} ended:\n{self._last_words()}")
        return json.loads(line)

    def close(self) -> None:
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.communicate()
        self._log.close()

    def _last_words(self) -> str:
        self._process.wait()
        self._log.seek(0)
        return self._log.read()[-LAST_CHARACTERS:]
