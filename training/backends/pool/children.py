"""Engines as child processes of this one, on its machine: no cluster, no package besides."""

import os
import socket
import subprocess
import sys

from training.backends.pool.frames import receive_frame, send_frame
from training.backends.pool.host import THREADS, EngineSettings
from training.backends.pool.messages import packed
from training.backends.pool.transport import EngineLostError, share_of_cores

PROGRAM = "training.backends.pool.child"


class ChildTransport:
    """Each engine gets its share of the cores as threads, unless the environment says how many.

    `silence`: seconds without a sign of life after which an engine counts as lost.
    Raises ValueError for more engines than cores.
    """

    def __init__(self, settings: EngineSettings, *, silence: float) -> None:
        share = share_of_cores(settings.num_engines)
        self._settings = settings
        self._silence = silence
        # torch takes MKL's number before OpenMP's, so that a share beside the user's would win
        told = any(name in os.environ for name in THREADS)
        self._threads = {} if told else dict.fromkeys(THREADS, str(share))

    def start(self, index: int) -> "ChildLink":
        ours, theirs = socket.socketpair()
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", PROGRAM, str(theirs.fileno()), str(os.getpid())],
                env={**self._threads, **os.environ},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                # Ctrl-C in a terminal is the driver's to handle
                process_group=0,
            )
        ours.settimeout(self._silence)
        link = ChildLink(process, ours)
        try:
            link.run(packed((index, self._settings)))
        except EngineLostError:
            link.kill()
            raise
        return link

    def close(self) -> None:
        """Its engines are all there is."""


class ChildLink:
    place = "this machine"

    def __init__(self, process: "subprocess.Popen[bytes]", connection: socket.socket) -> None:
        self._process = process
        self._connection = connection

    @property
    def pid(self) -> int:
        return self._process.pid

    def run(self, message: bytes) -> bytes:
        try:
            send_frame(self._connection, message)
            while not (answer := receive_frame(self._connection)):
                pass
        except TimeoutError as error:
            raise EngineLostError(
                f"no sign of life for {self._connection.gettimeout():g} s"
            ) from error
        except (OSError, EOFError) as error:
            raise EngineLostError(self._how_it_ended()) from error
        return answer

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            return "its connection ended"
        return f"ended by signal {-code}" if code < 0 else f"ended with code {code}"
