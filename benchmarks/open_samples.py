"""Thousands of samples open at once on a server, asked without the SDK: one of its clients sends
about 80 a second, so that the first are answered before the last are sent."""

import asyncio
import contextlib
import resource
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import httpx
import numpy as np
from server_process import Server

from training.serving.app import TINKER
from training.serving.wire import tinker_public_pb2 as pb
from training.serving.wire.bodies import PROTOBUF

LOOK_SECONDS = 0.1
# a poll is answered within 40 seconds; connecting may wait for thousands of others
TIMEOUT = httpx.Timeout(120.0)


class Asked(NamedTuple):
    """A greedy sample."""

    prompt: list[int]
    max_tokens: int


class Opened(NamedTuple):
    """`answers`: the tokens of each. `most_open`, `most_threads`, `most_mib`: at one time, as the
    server and its system told. `posted`, `seconds`: until the last was accepted, and until the last
    answer."""

    answers: list[list[int]]
    most_open: int
    most_threads: int
    most_mib: float
    posted: float
    seconds: float


def open_at_once(
    server: Server, name: str, asked: Sequence[Asked], clients: int, num_first: int
) -> Opened:
    """Asks for all of them as so many clients, without waiting for an answer in between; the first
    `num_first` are accepted before the others are sent."""
    # a connection each, and what this process has open besides
    allow_open_files(len(asked) + 1000)
    return asyncio.run(_opened(server, name, asked, clients, num_first))


def allow_open_files(number: int) -> None:
    """Raises ValueError where the system does not."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))


async def _opened(
    server: Server, name: str, asked: Sequence[Asked], clients: int, num_first: int
) -> Opened:
    async with contextlib.AsyncExitStack() as opened:
        # a pool of connections each: what one does for a request grows with the open ones
        https = [
            await opened.enter_async_context(
                httpx.AsyncClient(
                    base_url=f"{server.url}{TINKER}",
                    headers={"X-API-Key": server.key},
                    limits=httpx.Limits(max_connections=None, max_keepalive_connections=None),
                    timeout=TIMEOUT,
                )
            )
            for _ in range(clients)
        ]
        samplers = [await _sampler(http, name) for http in https]
        watch = _Watch(server)
        watching = asyncio.ensure_future(watch.look())
        started = time.perf_counter()
        answers: list[asyncio.Future[list[int]]] = []

        async def accepted(number: int, sample: Asked) -> asyncio.Future[list[int]]:
            seq_id, client = divmod(number, clients)
            request_id = await _post(https[client], samplers[client], seq_id, sample)
            return asyncio.ensure_future(_answer(https[client], request_id))

        numbered = list(enumerate(asked))
        try:
            for part in (numbered[:num_first], numbered[num_first:]):
                answers += await asyncio.gather(*(accepted(*one) for one in part))
            posted = time.perf_counter() - started
            tokens = await asyncio.gather(*answers)
        finally:
            watching.cancel()
        seconds = time.perf_counter() - started
    return Opened(tokens, watch.most_open, watch.most_threads, watch.most_mib, posted, seconds)


class _Watch:
    def __init__(self, server: Server) -> None:
        self._server = server
        self.most_open = 0
        self.most_threads = 0
        self.most_mib = 0.0

    async def look(self) -> None:
        """Until it is cancelled."""
        while True:
            status = await asyncio.to_thread(self._server.status)
            self.most_open = max(self.most_open, status["waiting"] + status["running"])
            self.most_threads = max(self.most_threads, self._server.num_threads())
            self.most_mib = max(self.most_mib, self._server.resident_mib())
            await asyncio.sleep(LOOK_SECONDS)


async def _sampler(http: httpx.AsyncClient, name: str) -> str:
    session = await _json(http, "/create_session", tags=[], sdk_version="0.38.0")
    made = await _json(
        http,
        "/create_sampling_session",
        session_id=session["session_id"],
        sampling_session_seq_id=0,
        base_model=name,
    )
    return made["sampling_session_id"]


async def _post(http: httpx.AsyncClient, sampler: str, seq_id: int, sample: Asked) -> str:
    made = await _json(
        http,
        "/asample",
        sampling_session_id=sampler,
        seq_id=seq_id,
        num_samples=1,
        prompt={"chunks": [{"type": "encoded_text", "tokens": sample.prompt}]},
        sampling_params={"max_tokens": sample.max_tokens, "temperature": 0.0, "stop": []},
    )
    return made["request_id"]


async def _answer(http: httpx.AsyncClient, request_id: str) -> list[int]:
    while True:
        reply = await http.post(
            "/retrieve_future", json={"request_id": request_id}, headers={"Accept": PROTOBUF}
        )
        if reply.status_code == 408:
            continue
        if reply.headers["content-type"] != PROTOBUF:
            raise RuntimeError(f"a sample came to {reply.status_code} {reply.text[:300]}")
        [sequence] = pb.SampleResponse.FromString(reply.content).sequences
        return np.frombuffer(sequence.tokens, np.int32).tolist()


async def _json(http: httpx.AsyncClient, path: str, **body: Any) -> dict[str, Any]:
    reply = await http.post(path, json=body)
    reply.raise_for_status()
    return reply.json()
