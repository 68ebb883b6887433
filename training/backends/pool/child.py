"""The program of an engine that is a child process; children.py starts it.

    python -m training.backends.pool.child SOCKET_NUMBER PARENT_ID

Its first message is its number and its settings, every other one a batch of requests. While it
works it gives a sign of life every second. It ends with its parent, however that ends.
"""

import ctypes
import os
import signal
import socket
import sys
import threading
import time

from training.backends.pool.frames import receive_frame, send_frame
from training.backends.pool.host import begin
from training.backends.pool.messages import unpacked

SECONDS_BETWEEN_SIGNS = 1.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(number: int, parent: int) -> None:
    end_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = socket.socket(fileno=number)
    sending = threading.Lock()

    def give_signs() -> None:
        while True:
            time.sleep(SECONDS_BETWEEN_SIGNS)
            try:
                with sending:
                    send_frame(connection, b"")
            except OSError:
                # nobody is there; the engine's worker must not keep the process
                os._exit(0)

    threading.Thread(target=give_signs, name="signs-of-life", daemon=True).start()
    try:
        host = begin(*unpacked(receive_frame(connection)))
        answer = b"ready"
        while True:
            with sending:
                send_frame(connection, answer)
            answer = host.run(receive_frame(connection))
    except (EOFError, OSError):
        os._exit(0)


def end_with(parent: int) -> None:
    """Linux kills this process with its parent, also where it is stopped and reads no socket."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
