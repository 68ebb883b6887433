"""Requests that nobody meant, at every route of both faces: no fault, no hang, no harm to others.

uv run pytest tests/training/serving/test_faces_fuzz.py
uv run pytest tests/training/serving/test_faces_fuzz.py -m slow
"""

import asyncio
import json
import random
import resource
import shutil
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
import pytest
from fuzzing import (
    ODD,
    OPENAI_BODIES,
    Asked,
    changed,
    json_body,
    mutated,
    request_to,
    routes_of,
)
from host_world import OWNER, Client, data_of, weights_of
from live_app import Live, live
from tiny_chat import save_chat_model
from tiny_models import engine_gradients

from training.connect import connect
from training.serving.app import TINKER, AppOptions, make_app
from training.serving.base_models import BaseModels
from training.serving.host import Host
from training.serving.host_options import HostOptions
from training.serving.keys import Keys
from training.serving.links import Links
from training.serving.openai.router import PREFIXES
from training.serving.store import Store
from training.serving.wire import messages, routes_futures
from training.serving.wire import tinker_public_pb2 as pb
from training.serving.wire.received import Message
from training.serving.wire.routes_unserved import UNSERVED

MANY, FEW = 10_000, 300
# on a socket a request takes a connection of its own
SHARE_ON_SOCKET = 0.2
AT_ONCE = 4
KEYS = {OWNER: "tml-of-the-tests-1", "bob": "tml-of-the-tests-2"}
CONTEXT = 64
ALWAYS_REFUSED = {
    f"POST {TINKER}/forward",
    f"DELETE {TINKER}/training_runs/{{run_id}}/checkpoints/{{name}}",
    # not served unless the server was started with external_uploads=true
    f"POST {TINKER}/external_weights_upload_start",
    f"PUT {TINKER}/upload/{{upload_id}}/{{file}}",
    f"POST {TINKER}/external_weights_upload_finish",
}
# a request that was not meant may ask for all that is allowed, so little is
OPTIONS = AppOptions(max_training_bytes=4 << 20, max_json_bytes=2 << 20)
SIZES = HostOptions(
    max_models=12, max_rank=8, engine_rows=8, reserved_rows=4, max_result_bytes=4 << 20
)
# of the process's peak, once each kind of request has been there
MEMORY_GROWTH_KB = 150_000
SECONDS = 120


class World(NamedTuple):
    app: Any
    host: Host
    server: Live
    folder: str
    store: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("fuzz")
    folder = save_chat_model(place / "model", favourites="yes no")
    config = json.loads((place / "model" / "config.json").read_text())
    config["max_position_embeddings"] = CONTEXT
    (place / "model" / "config.json").write_text(json.dumps(config))
    (place / "keys").write_text("".join(f"{name}:{key}\n" for name, key in KEYS.items()))
    store = Store(place / "store")
    service = connect("local", device="cpu", checkpoint_dir=store.staging, max_rows=12)
    adapters = place / "adapters"
    bases = BaseModels([folder], {"tiny": folder})
    host = Host(service, store, bases, SIZES, adapters_dir=adapters)
    app = make_app(host, Keys.from_file(place / "keys"), Links(), OPTIONS)
    with pytest.MonkeyPatch.context() as patch, live(app) as server:
        patch.setattr(routes_futures, "POLL_SECONDS", 0.05)
        made = World(app, host, server, folder, store.folder)
        known = server.run(introduce(made, Client(host)))
        row = host.checkpoints.to_sample(OWNER, known.paths[1])
        shutil.copytree(row.folder, adapters / "a")
        yield made
    store.close()


# ---------------------------------------------------------------------------------- what they know


def message_fields() -> list[str]:
    """Of every message of the Tinker face; a new one's join by themselves."""
    forms = [form for form in vars(messages).values() if isinstance(form, type)]
    return sorted(
        {name for f in forms if issubclass(f, Message) for name in f.model_fields} - {"reason"}
    )


FIELDS = message_fields()
PROMPT = {"chunks": [{"type": "encoded_text", "tokens": [5, 6, 7]}]}


class Known:
    """What a client knows of the server: its own things, and things of another."""

    def __init__(self, session: str, model: str, sampler: str, paths: list[str]) -> None:
        self.session, self.model, self.sampler, self.paths = session, model, sampler, paths
        self.requests: list[str] = ["0"]
        self._numbers = iter(range(100, 10**9))

    def field(self, name: str, rng: random.Random) -> Any:
        """A value that the field of a message may have."""
        values: dict[str, list[Any]] = {
            "session_id": [self.session],
            "model_id": [self.model],
            "sampling_session_id": [self.sampler],
            "request_id": self.requests[-20:],
            "path": [f"name-{next(self._numbers)}", *self.paths],
            "model_path": [None, self.paths[1]],
            "tinker_path": self.paths,
            "base_model": ["tiny", None],
            "lora_config": [{"rank": 2, "seed": 1}],
            "user_metadata": [{"a": "b"}],
            "optimizer_config": [{"type": "adamw"}],
            "optimizer_params": [None],
            "adam_params": [{"learning_rate": 0.01}],
            "kind": ["snapshot"],
            "type": ["adamw"],
            "tags": [["a"]],
            "sdk_version": ["0.38.0"],
            "detail": ["done"],
            "ttl_seconds": [None, 7200],
            "age_encryption_recipients": [None],
        }
        if name.endswith("seq_id"):
            return next(self._numbers)
        # numbers and flags, or those of a message that came later
        return rng.choice(values.get(name, [True, 1, 0.5]))

    def parts(self) -> dict[str, list[str]]:
        """Parameters of paths."""
        kinds = ["weights", "sampler_weights", "external_weights"]
        return {
            "session_id": [self.session],
            "run_id": [self.model],
            "sampler_id": [self.sampler],
            "kind": kinds,
            "name": ["a", *self.paths, "tiny"],
            "owner": list(KEYS),
            "file": ["adapter_config.json", "../serving.sqlite"],
        }


def training_body(known: Known, rng: random.Random) -> bytes:
    tokens = np.array([5, 6, 7], dtype="<i4")
    targets = np.array([6, 7, 8], dtype="<i8")
    weights = np.array(rng.choice([[1, 1, 1], [0, 0, 0], [1, np.nan, -1]]), dtype="<f4")
    tensors = {
        "target_tokens": pb.Tensor(dense=targets.tobytes(), dtype=pb.DTYPE_INT64, shape=[3]),
        "weights": pb.Tensor(dense=weights.tobytes(), dtype=pb.DTYPE_FLOAT32, shape=[3]),
    }
    chunk = pb.Chunk(encoded_text=pb.EncodedTextChunk(tokens=tokens.tobytes()))
    request = pb.ForwardBackwardRequest(
        model_id=known.model,
        seq_id=known.field("seq_id", rng),
        data=[pb.Datum(model_input=[chunk], loss_fn_inputs=tensors)],
        loss_fn=rng.choice(["cross_entropy", "ppo", "zap"]),
        forward_only=rng.random() < 0.3,
    )
    data = request.SerializeToString()
    return mutated(rng, data) if rng.random() < 0.5 else data


def body_of(known: Known, route: str, rng: random.Random) -> bytes:
    if route.startswith(PREFIXES):
        _, _, rest = route.rpartition("/v1")
        return json_body(rng.choice(OPENAI_BODIES.get(f"/v1{rest}", [{}])), rng)
    if route == f"{TINKER}/forward_backward":
        return training_body(known, rng)
    if route == f"{TINKER}/asample":
        body = {name: known.field(name, rng) for name in ("sampling_session_id", "seq_id")}
        body |= {"num_samples": 1, "prompt": PROMPT, "topk_prompt_logprobs": 2}
        body["sampling_params"] = {"max_tokens": 2, "stop": ["a"], "temperature": 0.5}
    else:
        # a field that a message does not know changes nothing, so one body is right for all others
        body = {name: known.field(name, rng) for name in FIELDS if rng.random() < 0.9}
    if rng.random() < 0.5:
        return json.dumps(body).encode()
    for _ in range(rng.randrange(1, 3)):
        name = rng.choice(list(body))
        body[name] = rng.choice([rng.choice(ODD), changed(body[name], rng)])
    return json_body(body, rng) if rng.random() < 0.3 else json.dumps(body).encode()


# ------------------------------------------------------------------------------------ the requests


async def answer(app: Any, asked: Asked, hangs_up: bool) -> tuple[int, str, bytes]:
    """Status, content type and body of the reply. The client may hang up within its body."""
    path, _, query = asked.path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": asked.method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode("utf-8", "replace"),
        "query_string": query.encode("utf-8", "replace"),
        "headers": [(b"host", b"server"), *asked.headers],
        "client": ("1.2.3.4", 5),
        "server": ("server", 80),
        "root_path": "",
    }
    half = len(asked.body) // 2
    events = [
        {"type": "http.request", "body": asked.body[:half], "more_body": True},
        {"type": "http.request", "body": asked.body[half:], "more_body": False},
    ]
    if hangs_up:
        events = [*events[:1], {"type": "http.disconnect"}]
    is_over = asyncio.Event()
    sent: list[Any] = []

    async def receive() -> Any:
        if events:
            return events.pop(0)
        await is_over.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    await app(scope, receive, send)
    is_over.set()
    start = sent[0] if sent else {"status": 499, "headers": []}
    headers = dict(start["headers"])
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return start["status"], headers.get(b"content-type", b"").decode(), body


def check_reply(world: World, asked: Asked, status: int, kind: str, body: bytes) -> None:
    text = body.decode("utf-8", "replace")
    assert status < 500, (asked, text)
    assert "Traceback" not in text and str(world.store) not in text, (asked, text)
    if status >= 400 and status != 499 and body:
        told = json.loads(body)
        is_poll = asked.route.endswith("/retrieve_future") and status == 408
        assert is_poll or told.keys() <= {"detail", "error"}, asked
        assert len(body) < 5000, asked
    if kind.startswith("application/json") and asked.route.endswith("/retrieve_future"):
        # what failed later was the user's fault too
        assert json.loads(body).get("category") != "server", (asked, text)
    if kind.startswith("text/event-stream"):
        assert text.endswith("data: [DONE]\n\n"), (asked, text)


async def introduce(world: World, client: Client) -> Known:
    """What a client has made before it goes mad."""
    model = await client.create("tiny", rank=2)
    await client.train(model, data_of(0))
    paths = [await client.save(model, "a", kind) for kind in ("weights", "sampler_weights")]
    await client.save(model, "a", "external_weights")
    sampler = await client.sampler(model_path=paths[1])
    return Known(client.session_id, model, sampler, paths)


def requests_of(world: World, known: Known, theirs: Known, rng: random.Random) -> list[Asked]:
    """A few at once. Now and then they are about another owner's things."""
    routes = routes_of(world.app)
    keys = [KEYS[OWNER]] * 20 + ["tml-of-nobody-at-all", ""]
    made = []
    for _ in range(AT_ONCE):
        meant = theirs if rng.random() < 0.15 else known
        made.append(
            request_to(routes, meant.parts(), lambda r, g, k=meant: body_of(k, r, g), keys, rng)
        )
    return made


async def fuzz(world: World, theirs: Known, num: int, seed: int) -> Counter[str]:
    """Asserts of every reply that it is none of a fault; how many of each status, and which routes
    did what was asked."""
    rng = random.Random(seed)
    counted: Counter[str] = Counter()
    known: Known | None = None
    mine = Client(world.host)
    peak = 0
    for at in range(0, num, AT_ONCE):
        if at % 200 == 0 or known is None:
            # what it was may be deleted, finished or too many by now
            world.host.finish(OWNER, mine.session_id)
            for session, _ in world.host._sessions.alive(OWNER):
                world.host.finish(OWNER, session.session_id, "errored")
            for row in world.host.store.checkpoints.list(OWNER).rows:
                world.host.delete_checkpoint(OWNER, row.path)
            mine = Client(world.host)
            known = await introduce(world, mine)
        asked = requests_of(world, known, theirs, rng)
        works = [answer(world.app, request, rng.random() < 0.03) for request in asked]
        try:
            replies = await asyncio.wait_for(asyncio.gather(*works), SECONDS)
        except TimeoutError:
            pytest.fail(f"no end of one of {asked}")
        for request, (status, kind, body) in zip(asked, replies, strict=True):
            check_reply(world, request, status, kind, body)
            counted[str(status)] += 1
            if status < 400:
                counted[f"{request.method} {request.route}"] += 1
                if b'"request_id"' in body and kind == "application/json":
                    known.requests.append(json.loads(body).get("request_id", "0"))
        if at <= num // 4:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    print(
        f"{num} requests: peak {peak // 1000} MB at a quarter, {grown // 1000} MB more at the end"
    )
    assert grown < MEMORY_GROWTH_KB
    return counted


class Bystander:
    """Another owner's model, with a gradient that no step has used, and what it was. `known`: the
    names of its things."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._client = Client(world.host, "bob")
        self.before = world.server.run(self._begin())

    async def _begin(self) -> Any:
        self._model = await self._client.create("tiny", rank=4)
        await self._client.train(self._model, data_of(3))
        await self._client.step(self._model)
        paths = [
            await self._client.save(self._model, "a", kind)
            for kind in ("weights", "sampler_weights")
        ]
        sampler = await self._client.sampler(model_path=paths[1])
        self.known = Known(self._client.session_id, self._model, sampler, paths)
        await self._client.train(self._model, data_of(4))
        return await self.state()

    async def state(self) -> Any:
        trained: Any = self._world.host._trained._models[self._model].ready.result()
        drawn = await self._client.sample(self.known.sampler)
        store = self._world.host.store.checkpoints
        return (
            weights_of(self._world.host, self._model).tobytes(),
            {name: g.numpy().tobytes() for name, g in engine_gradients(trained).items()},
            [
                (row, [f.read_bytes() for f in store.files(row).values()])
                for row in store.list("bob").rows
            ],
            drawn.response.sequences[0].tokens,
        )

    def check(self) -> None:
        assert self._world.server.run(self.state()) == self.before


@pytest.mark.parametrize("num", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_no_request_is_the_servers_fault_or_harms_another(world: World, num: int) -> None:
    """O29, and the same of the Tinker face."""
    other = Bystander(world)
    counted = world.server.run(fuzz(world, other.known, num, seed=num))
    other.check()
    assert counted["200"] > num / 20 and counted["400"] > num / 10 and counted["404"] > num / 50
    if num == MANY:
        # whatever can be reached without a signature was
        there = {
            f"{method} {route}"
            for route, methods in routes_of(world.app)
            for method in set(methods) - {"HEAD"}
            if "{rest" not in route and "/download/" not in route
        }
        never = {f"{method} {TINKER}{path}" for method, path, _ in UNSERVED}
        assert there - counted.keys() - never <= ALWAYS_REFUSED


# ---------------------------------------------------------------------------------------- a socket


def exchange(url: str, data: bytes) -> bytes:
    """What a server says to these bytes, to the end."""
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=SECONDS) as connection:
        said = b""
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 16):
                said += part
        except OSError as error:
            # it hung up on what it would not read
            assert not isinstance(error, TimeoutError), data
        return said


def bytes_of(asked: Asked, rng: random.Random) -> bytes:
    """A request as it travels, whole, cut, changed, with another length, or no request at all."""
    data = asked.as_http()
    kind = rng.randrange(7)
    if kind == 0:
        return rng.randbytes(rng.choice([1, 100, 5000]))
    if kind == 1:
        return data[: rng.randrange(len(data))]
    if kind == 2:
        return mutated(rng, data)
    if kind == 3:
        told = rng.choice([b"-1", b"99999999999999", b"1, 2", b"0x10", b""])
        return data.replace(b"content-length: ", b"content-length: " + told + b"\r\nx: ", 1)
    if kind == 4:
        return data.replace(b"content-length: ", b"transfer-encoding: chunked\r\nx: ", 1)
    if kind == 5:
        return data.replace(b"\r\n", b"\r\nx-long: " + b"y" * 100_000 + b"\r\n", 1)
    return data + data


@pytest.mark.parametrize("num", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_a_socket_takes_whatever_comes(world: World, num: int) -> None:
    rng = random.Random(num)
    other = Bystander(world)
    known = world.server.run(introduce(world, Client(world.host)))
    answered = 0
    for _ in range(int(num * SHARE_ON_SOCKET) // AT_ONCE):
        for asked in requests_of(world, known, other.known, rng):
            said = exchange(world.server.url, bytes_of(asked, rng))
            assert b"HTTP/1.1 5" not in said and b"Traceback" not in said, (asked, said)
            answered += said.startswith(b"HTTP/1.1 ")
    assert answered > num * SHARE_ON_SOCKET / 3
    healthy = exchange(world.server.url, Asked("", "GET", "/healthz", [], b"").as_http())
    assert healthy.startswith(b"HTTP/1.1 200")
    other.check()
