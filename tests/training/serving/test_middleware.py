"""What every request passes before a route sees it.

uv run pytest tests/training/serving/test_middleware.py
"""

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient
from starlette.types import Message, Scope

from training.serving.errors import ServingError
from training.serving.keys import Keys
from training.serving.middleware import BodyCaps, KeyCheck, RequestLog, owner_of

KEYS = {"ann": "tml-" + "a" * 30, "bob": "tml-" + "b" * 30}
CAP = 100


def render(error: ServingError, path: str) -> Response:
    return JSONResponse({"told": error.message, "path": path}, status_code=error.status)


async def echo(request: Request) -> Response:
    body = await request.body()
    return JSONResponse({"owner": owner_of(request), "bytes": len(body)})


async def fail(request: Request) -> Response:
    raise RuntimeError("a secret of the inside")


async def open_page(request: Request) -> Response:
    return PlainTextResponse("open")


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServingError)
    return render(error, request.url.path)


@pytest.fixture
def client(tmp_path: Any) -> Iterator[TestClient]:
    (tmp_path / "keys").write_text("".join(f"{name}:{key}\n" for name, key in KEYS.items()))
    routes = [
        Route("/echo", echo, methods=["POST"]),
        Route("/fail", fail),
        Route("/open", open_page),
    ]
    app = Starlette(
        routes=routes,
        exception_handlers={ServingError: refused},
        middleware=[
            Middleware(RequestLog, render=render),
            Middleware(
                KeyCheck,
                keys=Keys.from_file(tmp_path / "keys"),
                is_open=lambda path: path == "/open",
                hosts=frozenset({"here"}),
                render=render,
            ),
            Middleware(BodyCaps, cap_of=lambda path: CAP, render=render),
        ],
    )
    with TestClient(app, base_url="http://here:8010") as client:
        yield client


def test_a_key_is_its_owner_in_either_header(client: TestClient) -> None:
    for name, key in KEYS.items():
        for headers in ({"X-API-Key": key}, {"Authorization": f"Bearer {key}"}):
            assert client.post("/echo", headers=headers).json()["owner"] == name


@pytest.mark.parametrize(
    "headers", [{}, {"X-API-Key": "tml-wrong"}, {"Authorization": f"Basic {KEYS['ann']}"}]
)
def test_no_route_without_a_key(client: TestClient, headers: dict[str, str]) -> None:
    for path in ("/echo", "/fail", "/nothing"):
        reply = client.post(path, headers=headers, content=b"x" * 10 * CAP)
        assert reply.status_code == 401 and reply.json()["path"] == path
    assert client.get("/open", headers=headers).text == "open"


def test_pages_of_other_sites_are_not_served(client: TestClient) -> None:
    key = {"X-API-Key": KEYS["ann"]}
    # a name that leads here, as an attacker's page can have
    assert client.post("/echo", headers={**key, "Host": "evil.test"}).status_code == 400
    assert client.get("/open", headers={"Host": "evil.test"}).status_code == 400
    assert client.post("/echo", headers={**key, "Origin": "http://evil.test"}).status_code == 400
    assert client.post("/echo", headers={**key, "Origin": "http://here:8010"}).status_code == 200


def test_a_body_over_the_cap_is_refused_told_or_not(client: TestClient) -> None:
    key = {"X-API-Key": KEYS["ann"]}
    assert client.post("/echo", headers=key, content=b"x" * CAP).json()["bytes"] == CAP
    told = client.post("/echo", headers=key, content=b"x" * (CAP + 1))

    def pieces() -> Iterator[bytes]:
        for _ in range(CAP):
            yield b"xx"

    untold = client.post("/echo", headers=key, content=pieces())
    for reply in (told, untold):
        assert reply.status_code == 413 and str(CAP) in reply.json()["told"]


def test_a_fault_is_told_by_its_number_alone(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    reply = client.get("/fail", headers={"X-API-Key": KEYS["ann"]})
    number = reply.headers["x-request-id"]
    assert reply.status_code == 500 and number in reply.json()["told"]
    assert "secret" not in reply.text
    [record] = [r for r in caplog.records if r.exc_info]
    assert number in record.getMessage()


def test_a_reply_that_cannot_be_sent_is_no_fault_of_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As where a client sends what is no HTTP while it waits."""
    tried = []

    async def send(message: Message) -> None:
        tried.append(message)
        raise RuntimeError("the connection must close")

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    asyncio.run(RequestLog(PlainTextResponse("a"), render)(scope, receive, send))
    assert len(tried) == 1
    [record] = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert record.exc_info is None and "the connection must close" in record.getMessage()


def test_the_log_tells_who_asked_what_and_no_secret(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "training.serving.access")
    headers = {
        "X-API-Key": KEYS["ann"],
        "x-sdk-version": "0.38.0",
        "x-sdk-method": "TrainingClient.forward_backward",
    }
    reply = client.post("/echo?token=signature", headers=headers)
    [line] = [r.getMessage() for r in caplog.records if r.name == "training.serving.access"]
    assert line.startswith(f"{reply.headers['x-request-id']} POST /echo 200 ")
    assert line.endswith(" sdk=0.38.0 method=TrainingClient.forward_backward")
    assert "tml-" not in line and "signature" not in line
    client.get("/open", headers={"x-sdk-method": "a b" * 50})
    line = [r.getMessage() for r in caplog.records if r.name == "training.serving.access"][-1]
    assert "\n" not in line and len(line) < 250
