"""A scripted server on the loopback that answers /v1/chat/completions as badly as real ones do, and
/v1/models as OpenRouter does where it is told which parameters its models support.

with FakeEndpoint(in_order("http_500", "ok")) as server:
    ... Role("judge", "fake", base_url=server.base_url) ...
assert server.rows == ["http_500", "ok"]
"""

from __future__ import annotations

import contextlib
import json
import math
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

GOOD = {"rationale": "plain", "score": 7}
LIMIT_S = 20.0


@dataclass(frozen=True)
class Recorded:
    """A request: when it came, what was in it, and the row that was played."""

    number: int
    at: float
    path: str
    authorization: str
    body: dict[str, Any]
    row: str

    @property
    def prompt(self) -> str:
        """The first user message, which a re-ask keeps."""
        return next(m["content"] for m in self.body["messages"] if m["role"] == "user")


Script = Callable[[int, Mapping[str, Any]], str]


def in_order(*rows: str) -> Script:
    """The rows one after another, the last one for ever."""
    return lambda number, body: rows[min(number, len(rows) - 1)]


def by_prompt(rows: Mapping[str, list[str]]) -> Script:
    """For each first user message its own rows one after another, then "ok"."""
    seen: defaultdict[str, int] = defaultdict(int)

    def play(number: int, body: Mapping[str, Any]) -> str:
        prompt = next(m["content"] for m in body["messages"] if m["role"] == "user")
        seen[prompt] += 1
        own = rows.get(prompt, [])
        return own[seen[prompt] - 1] if seen[prompt] <= len(own) else "ok"

    return play


class Gate:
    """Holds the answers to requests from one number on until it is opened, so that a test and not
    the machine's speed decides what has happened when it goes on."""

    def __init__(self) -> None:
        self._number = math.inf
        self._opened = threading.Event()

    def close_at(self, number: int) -> None:
        self._number, self._opened = number, threading.Event()

    def open(self) -> None:
        self._number = math.inf
        self._opened.set()

    def __call__(self, request: Recorded) -> None:
        opened = self._opened
        if request.number >= self._number:
            opened.wait(LIMIT_S)


# what a request says besides its parameters
NOT_PARAMETERS = {"model", "messages", "provider", "plugins"}


class FakeEndpoint:
    """Plays `script(number, body)` for each request; `delay` seconds lie before every answer.

    `cost` in dollars is reported with each whole answer that has usage, and summed in `charged`.
    `text` replaces the content of the row "ok". `models` are the supported_parameters by model that
    GET /v1/models tells; without them there is no such page. A request that asks for
    provider.require_parameters and has others gets "http_404", as from OpenRouter. `listing` are
    other answers to GET /v1/models, status and body, one after another, and `refusal`
    is the body of the row "http_400_body". `before_answer` is called in the thread of each request,
    and may let it wait: a Gate, for example.
    """

    def __init__(
        self,
        script: Script,
        *,
        delay: float = 0.0,
        cost: float | None = 0.001,
        text: Callable[[Mapping[str, Any]], str] | None = None,
        retry_after: str = "0.05",
        models: Mapping[str, list[str]] | None = None,
        listing: Sequence[tuple[int, Any]] = (),
        refusal: Any = None,
        before_answer: Callable[[Recorded], None] | None = None,
    ) -> None:
        self.script = script
        self.delay = delay
        self.cost = cost
        self.text = text
        self.retry_after = retry_after
        self.models = models
        self.listing = list(listing) or [_models_page(models)]
        self.refusal = refusal
        self.before_answer = before_answer
        self.times_listed = 0
        self.requests: list[Recorded] = []
        self.charged = 0.0
        self.charged_tokens = 0
        self.most_in_flight = 0
        self.released = threading.Event()
        self._in_flight = 0
        self._lock = threading.Lock()
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/v1"

    @property
    def rows(self) -> list[str]:
        return [request.row for request in self.requests]

    def of(self, prompt: str) -> list[Recorded]:
        """The requests for this first user message."""
        return [request for request in self.requests if request.prompt == prompt]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.released.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def record(self, path: str, authorization: str, body: dict[str, Any]) -> Recorded:
        with self._lock:
            number = len(self.requests)
            row = "http_404" if self.excludes(body) else self.script(number, body)
            request = Recorded(number, time.monotonic(), path, authorization, body, row)
            self.requests.append(request)
            self._in_flight += 1
            self.most_in_flight = max(self.most_in_flight, self._in_flight)
            return request

    def excludes(self, body: Mapping[str, Any]) -> bool:
        """Whether no provider qualifies, since parameters are required that none supports."""
        supported = (self.models or {}).get(body["model"])
        if supported is None or not body.get("provider", {}).get("require_parameters"):
            return False
        return bool(set(body) - NOT_PARAMETERS - set(supported))

    def list_models(self) -> tuple[int, Any]:
        with self._lock:
            self.times_listed += 1
            return self.listing[min(self.times_listed, len(self.listing)) - 1]

    def settle(self) -> None:
        """Wait until all that clients sent which are gone by now is recorded."""
        # whoever connected before is accepted before
        with contextlib.suppress(urllib.error.HTTPError):
            urllib.request.urlopen(f"{self.base_url}/models", timeout=LIMIT_S).close()
        while self._server.open_connections:
            time.sleep(0.002)

    def leave(self) -> None:
        with self._lock:
            self._in_flight -= 1

    def charge(self, answer: Mapping[str, Any]) -> None:
        usage = answer.get("usage")
        if usage is not None:
            with self._lock:
                self.charged += usage.get("cost", 0.0)
                self.charged_tokens += usage["completion_tokens"]


def _models_page(models: Mapping[str, list[str]] | None) -> tuple[int, Any]:
    if models is None:
        return 404, {"error": {"code": 404, "message": "Not Found"}}
    data = [{"id": name, "supported_parameters": own} for name, own in models.items()]
    return 200, {"data": data}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.open_connections = 0
        self._counting = threading.Lock()

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._counting:
            self.open_connections += 1
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        with self._counting:
            self.open_connections -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that give up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    fake: FakeEndpoint
    protocol_version = "HTTP/1.1"
    timeout = LIMIT_S
    # headers and body are two writes, which Nagle's algorithm would keep 40 ms apart
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self.answer(*self.fake.list_models())

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        body = json.loads(self.rfile.read(length))
        request = self.fake.record(self.path, self.headers.get("Authorization", ""), body)
        if self.fake.delay:
            time.sleep(self.fake.delay)
        if self.fake.before_answer is not None:
            self.fake.before_answer(request)
        # before the client can know of the answer, and send its next request
        self.fake.leave()
        _ROWS[request.row](self, request)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(
        self,
        status: int,
        value: Any,
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> None:
        data = value.encode() if isinstance(value, str) else json.dumps(value).encode()
        if isinstance(value, dict):
            self.fake.charge(value)
        self.head(status, len(data), headers, content_type)
        self.wfile.write(data)
        self.wfile.flush()

    def head(
        self,
        status: int,
        length: int,
        headers: Mapping[str, str] | None = None,
        content_type: str = "application/json",
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()


def _handler(fake: FakeEndpoint) -> type[_Handler]:
    return type("Handler", (_Handler,), {"fake": fake})


def completion(
    handler: _Handler,
    request: Recorded,
    content: Any,
    finish_reason: str = "stop",
    *,
    message: Mapping[str, Any] | None = None,
    **more: Any,
) -> dict[str, Any]:
    """A chat completion as OpenRouter sends it; every 200 uses 11 and 5 tokens."""
    usage: dict[str, Any] = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}
    if handler.fake.cost is not None:
        usage["cost"] = handler.fake.cost
    return {
        "id": f"gen-{request.number}",
        "object": "chat.completion",
        "created": 1,
        "model": f"{request.body['model']}-dated",
        "provider": "Loopback",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish_reason,
                "message": {"role": "assistant", "content": content, **(message or {})},
            }
        ],
        "usage": usage,
        **more,
    }


def _content(value: Any, finish_reason: str = "stop", **more: Any) -> _Row:
    text = value if isinstance(value, str) or value is None else json.dumps(value)
    return lambda handler, request: handler.answer(
        200, completion(handler, request, text, finish_reason, **more)
    )


def _ok(handler: _Handler, request: Recorded) -> None:
    text = handler.fake.text(request.body) if handler.fake.text else json.dumps(GOOD)
    handler.answer(200, completion(handler, request, text))


def _status(status: int, **error: Any) -> _Row:
    error = {"code": status, "message": f"scripted {status}", **error}
    return lambda handler, request: handler.answer(status, {"error": error})


def _body_error(code: Any, **more: Any) -> _Row:
    def play(handler: _Handler, request: Recorded) -> None:
        error = {"code": code, "message": "scripted failure", **more}
        handler.answer(200, {"id": "gen-x", "choices": None, "error": error})

    return play


def _paused(status: int, seconds: str | None = None) -> _Row:
    def play(handler: _Handler, request: Recorded) -> None:
        wait = handler.fake.retry_after if seconds is None else seconds
        error = {"code": status, "message": "slow down"}
        handler.answer(status, {"error": error}, {"Retry-After": wait})

    return play


def _choice_error(handler: _Handler, request: Recorded) -> None:
    answer = completion(handler, request, "half an ans", "error")
    answer["choices"][0]["error"] = {
        "code": 502,
        "message": "the provider hung up",
        "metadata": {"error_type": "provider_unavailable"},
    }
    handler.answer(200, answer)


def _html(handler: _Handler, request: Recorded) -> None:
    handler.answer(200, "<html><body>Welcome</body></html>", content_type="text/html")


def _echo_key(status: int) -> _Row:
    def play(handler: _Handler, request: Recorded) -> None:
        message = f"Incorrect API key provided: {request.authorization.removeprefix('Bearer ')}"
        handler.answer(status, {"error": {"code": status, "message": message}})

    return play


def _reset(handler: _Handler, request: Recorded) -> None:
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.close_connection = True
    handler.rfile.close()
    handler.connection.close()


def _half_body(handler: _Handler, request: Recorded) -> None:
    data = json.dumps(completion(handler, request, json.dumps(GOOD))).encode()
    handler.head(200, len(data))
    handler.wfile.write(data[: len(data) // 2])
    handler.close_connection = True


def _half_json(handler: _Handler, request: Recorded) -> None:
    """Half an answer that a proxy framed as a whole one."""
    data = json.dumps(completion(handler, request, json.dumps(GOOD)))
    handler.answer(200, data[: len(data) // 2])


def _stall(handler: _Handler, request: Recorded) -> None:
    handler.fake.released.wait(LIMIT_S)
    handler.close_connection = True


def _drip(handler: _Handler, request: Recorded) -> None:
    """A byte now and then: no single read ever takes long."""
    data = json.dumps(completion(handler, request, json.dumps(GOOD))).encode()
    handler.head(200, len(data))
    for byte in data:
        handler.wfile.write(bytes([byte]))
        handler.wfile.flush()
        if handler.fake.released.wait(0.05):
            break
    handler.close_connection = True


_PARTS = [
    {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
    {"type": "text", "text": json.dumps(GOOD)[:9]},
    {"type": "text", "text": json.dumps(GOOD)[9:]},
]
_Row = Callable[[_Handler, Recorded], None]
_ROWS: dict[str, _Row] = {
    "ok": _ok,
    "error_200": _body_error(502, metadata={"error_type": "provider_unavailable"}),
    "error_200_no_choices": lambda handler, request: handler.answer(
        200, {"error": {"code": "503", "message": "scripted failure"}}
    ),
    "error_200_rate": _body_error(429, metadata={"error_type": "rate_limit_exceeded"}),
    "error_200_wait_300": _body_error("429", availability={"retry_after": 300}),
    "error_200_text": lambda handler, request: handler.answer(200, {"error": "out of memory"}),
    "error_200_charged": lambda handler, request: handler.answer(
        200, completion(handler, request, "", "error", error={"code": 500, "message": "broke"})
    ),
    "no_choices": lambda handler, request: handler.answer(200, {"id": "gen-x", "choices": []}),
    "not_an_object": lambda handler, request: handler.answer(200, ["what"]),
    "null": lambda handler, request: handler.answer(200, None),
    "no_message": lambda handler, request: handler.answer(200, {"id": "x", "choices": [{}]}),
    "parts": _content("", message={"content": _PARTS}),
    "parts_image": _content("", message={"content": [*_PARTS, {"type": "image_url"}]}),
    "choice_error": _choice_error,
    "finish_error": _content("", "error"),
    "length": _content('{"rationale": "plain and lo', "length"),
    "length_empty": _content(None, "length"),
    "prose": _content("My verdict is that it is good: a 7."),
    "in_a_sentence": _content(f"My verdict is {json.dumps(GOOD)}"),
    "fenced": _content(f"Sure!\n```json\n{json.dumps(GOOD)}\n```"),
    "nan": _content('{"rationale": "plain", "score": NaN}'),
    "half_surrogate": _content('{"rationale": "\\ud83d", "score": 7}'),
    "half_surrogate_text": _content("so \ud83d so"),
    "nested": _content("[" * 100_000),
    "refusal": _content(None, message={"refusal": "I cannot help with that."}),
    "content_none": _content(None),
    "content_empty": _content(""),
    "content_filter": _content(None, "content_filter"),
    "out_of_range": _content({**GOOD, "score": 42}),
    "extra_key": _content({**GOOD, "also": 1}),
    "no_usage": lambda handler, request: handler.answer(
        200, completion(handler, request, json.dumps(GOOD), usage=None)
    ),
    "html": _html,
    "http_400": _status(400),
    "http_400_long": _status(400, message="This model's maximum context length is 10 tokens."),
    "http_400_filter": _status(400, metadata={"error_type": "content_policy_violation"}),
    "http_400_body": lambda handler, request: handler.answer(400, handler.fake.refusal),
    "http_401": _echo_key(401),
    "http_402": _status(402),
    "http_403": _status(403),
    "http_403_flagged": _status(403, metadata={"reasons": ["violence"], "flagged_input": "..."}),
    "http_404": _status(
        404,
        metadata={"error_type": "constraint_filtered"},
        availability={"excluded_by": ["require_parameters"]},
    ),
    "http_408": _status(408),
    "http_422": lambda handler, request: handler.answer(
        422, {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]}
    ),
    "http_429": _paused(429),
    "http_429_bare": _status(429),
    "http_429_1": _paused(429, "1"),
    "http_429_300": _paused(429, "300"),
    "http_429_quota": _status(429, code="insufficient_quota"),
    "http_429_date": _paused(429, "Fri, 31 Dec 2100 23:59:59 GMT"),
    "http_500": _echo_key(500),
    "http_503": _paused(503),
    "http_503_300": _paused(503, "300"),
    "reset": _reset,
    "half_body": _half_body,
    "half_json": _half_json,
    "stall": _stall,
    "drip": _drip,
}
ROWS = tuple(_ROWS)
