"""Engines that compute nothing, for benchmarks of the driver: they wait for a stated time.

    python benchmarks/stand_in_engines.py SOCKET SERVICE_SECONDS

One process answers for all of them, so that what the driver's process spends is the driver's.
"""

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from training.api import ForwardBackwardOutput, GetInfoResponse, ModelData, TensorData
from training.backends.pool.frames import receive_frame, send_frame
from training.backends.pool.messages import Answer, Kept, Outcome, Request, packed, unpacked
from training.backends.pool.transport import EngineLostError


class StandInTransport:
    """A new engine takes `start_seconds`."""

    def __init__(self, folder: Path, service_seconds: float, start_seconds: float) -> None:
        self._address = str(folder / "engines.sock")
        self._start_seconds = start_seconds
        self._process = subprocess.Popen(
            [sys.executable, __file__, self._address, str(service_seconds)]
        )
        while not os.path.exists(self._address):
            time.sleep(0.01)

    def start(self, index: int) -> "StandInLink":
        time.sleep(self._start_seconds)
        return StandInLink(self._address)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()


class StandInLink:
    pid = 0
    place = "nowhere"

    def __init__(self, address: str) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address)

    def run(self, message: bytes) -> bytes:
        try:
            send_frame(self._connection, message)
            return receive_frame(self._connection)
        except (OSError, EOFError) as error:
            raise EngineLostError(str(error)) from error

    def kill(self) -> None:
        with contextlib.suppress(OSError):
            # the lane's thread may be reading
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def serve(address: str, service_seconds: float) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen(128)
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=answer, args=(connection, service_seconds), daemon=True).start()


def answer(connection: socket.socket, service_seconds: float) -> None:
    with connection:
        while True:
            try:
                requests: list[Request] = unpacked(receive_frame(connection))
                outcomes = [Outcome(result(request), None) for request in requests]
                works = any(request.kind == "train" for request in requests)
                time.sleep(service_seconds if works else 0)
                send_frame(connection, packed(Answer(outcomes, service_seconds, [])))
            except (EOFError, OSError):
                return


def result(request: Request) -> Any:
    if request.method == "probe":
        theirs, ours = request.args
        ours.touch()
        return theirs.exists()
    if request.kind == "create":
        return Kept("stand-in", None, GetInfoResponse(ModelData(), "", True, 32, "stand-in"))
    if request.method == "forward_backward":
        outputs = [
            {"logprobs": TensorData.from_numpy(np.zeros(datum.model_input.length, np.float32))}
            for datum in request.args[0]
        ]
        return ForwardBackwardOutput("cross_entropy", outputs, {"loss:sum": 0.0})
    return None


if __name__ == "__main__":
    serve(sys.argv[1], float(sys.argv[2]))
