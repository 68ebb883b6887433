"""A bad line: a proxy between a client and a server that loses, cuts, delays and repeats.

The client sees broken connections; what the server has taken it has taken.
"""

import collections
import contextlib
import hashlib
import http.client
import random
import socketserver
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple
from urllib.parse import urlsplit

# hung up before the server saw it; after it answered, before a byte of the answer; within the
# answer; sent twice at once; sent again when others have passed; late
FAULTS = ("lost request", "lost reply", "cut reply", "twice", "again later", "late")
MOST_IN_A_ROW = 2
LONGEST_DELAY = 0.05
# requests that pass before one is sent again
MOST_PASSING = 6


class Asked(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Answer(NamedTuple):
    status: int
    headers: list[tuple[str, str]]
    body: bytes


class LossyProxy:
    """Which fault a request meets follows from `seed`, its path and how many came to that path;
    none meets one more than twice. `met`: paths and their faults, with how often."""

    def __init__(self, target: str, seed: int, share: float) -> None:
        self._target = urlsplit(target).netloc
        self._seed = seed
        self._share = share
        self._lock = threading.Lock()
        self._asked: collections.Counter[str] = collections.Counter()
        self._tried: collections.Counter[bytes] = collections.Counter()
        # how many have to pass before it is sent again
        self._later: list[tuple[int, Asked]] = []
        self.met: collections.Counter[tuple[str, str]] = collections.Counter()

    def answer(self, asked: Asked) -> tuple[Answer | None, bool]:
        """What the client gets, if anything, and whether it gets it whole."""
        fault, due = self._fault(asked)
        for earlier in due:
            self._send(earlier)
        if fault == "lost request":
            return None, False
        if fault == "late":
            time.sleep(random.Random(f"{self._seed} {asked.path}").uniform(0, LONGEST_DELAY))
        if fault == "twice":
            other = threading.Thread(target=self._send, args=(asked,))
            other.start()
            answer = self._send(asked)
            other.join()
            return answer, True
        answer = self._send(asked)
        return (None if fault == "lost reply" else answer), fault != "cut reply"

    def flush(self) -> None:
        """Sends what was to be sent again later."""
        with self._lock:
            due, self._later = self._later, []
        for _, asked in due:
            self._send(asked)

    def _fault(self, asked: Asked) -> tuple[str | None, list[Asked]]:
        """Its fault, and which requests are to be sent again now."""
        with self._lock:
            number = self._asked[asked.path]
            self._asked[asked.path] += 1
            key = hashlib.sha256(asked.path.encode() + asked.body).digest()
            chance = random.Random(f"{self._seed} {asked.path} {number}")
            fault = chance.choice(FAULTS) if chance.random() < self._share else None
            if fault is not None:
                fault = fault if self._tried[key] < MOST_IN_A_ROW else None
                self._tried[key] += 1
            counted = [(left - 1, earlier) for left, earlier in self._later]
            self._later = [pair for pair in counted if pair[0] > 0]
            if fault == "again later":
                self._later.append((chance.randint(1, MOST_PASSING), asked))
            if fault is not None:
                self.met[asked.path, fault] += 1
        return fault, [earlier for left, earlier in counted if left <= 0]

    def _send(self, asked: Asked) -> Answer:
        connection = http.client.HTTPConnection(self._target, timeout=60)
        with contextlib.closing(connection):
            connection.request(asked.method, asked.path, asked.body, asked.headers)
            reply = connection.getresponse()
            return Answer(reply.status, reply.getheaders(), reply.read())


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        assert isinstance(self.server, _Server)
        answer, is_whole = self.server.proxy.answer(
            Asked(self.command, self.path, dict(self.headers.items()), body)
        )
        self.close_connection = answer is None or not is_whole
        if answer is None:
            return
        self.send_response_only(answer.status)
        for name, value in answer.headers:
            if name.lower() not in ("connection", "transfer-encoding", "content-length"):
                self.send_header(name, value)
        self.send_header("content-length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body if is_whole else answer.body[: len(answer.body) // 2])

    do_GET = do_POST = do_PUT = do_DELETE = _pass

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True
    proxy: LossyProxy


@contextlib.contextmanager
def lossy(target: str, *, seed: int, share: float) -> Iterator[tuple[str, LossyProxy]]:
    """The URL of a proxy before the server at `target`, at which a `share` of requests goes wrong,
    and the proxy."""
    proxy = LossyProxy(target, seed, share)
    with _Server(("127.0.0.1", 0), _Handler) as server:
        server.proxy = proxy
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", proxy
        finally:
            server.shutdown()
            thread.join()
