"""What every request passes before a route sees it: a request id and a line in the access log, the
cap on its body, the key.

They are plain ASGI, not FastAPI dependencies, so that no route of either face can be without them.
"""

import logging
import secrets
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from training.serving.errors import ServingError, bad_request, server_fault, too_large
from training.serving.keys import Keys

logger = logging.getLogger(__name__)
access_log = logging.getLogger("training.serving.access")

# a client that sends too much is answered when it is done, or it would never read the answer
_DRAIN_BYTES = 1 << 30
_DRAIN_SECONDS = 20.0
_LONGEST_LOGGED = 80

Render = Callable[[ServingError, str], Response]
Observe = Callable[[Scope, int, float], None]


class RequestLog:
    """The outermost: gives `scope["state"]["request_id"]`, sends it as x-request-id, and writes one
    line per request with what the SDK says of itself. Query strings, which may hold signatures, and
    keys are never written. What no route caught becomes a server fault with that id. `observe` is
    told the scope, the status and the seconds of each request."""

    def __init__(self, app: ASGIApp, render: Render, observe: Observe = lambda *_: None) -> None:
        self._app = app
        self._render = render
        self._observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        request_id = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0
        is_closed = False

        async def send_with_id(message: Message) -> None:
            nonlocal status, is_closed
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            try:
                await send(message)
            except Exception:
                is_closed = True
                raise

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if is_closed:
                # nobody is left to answer: what came after it was no HTTP, say, and was told so
                logger.warning("request %s: its reply cannot be sent: %s", request_id, error)
                return
            # whatever it is, it must not be another request's fault, and is to be found again
            logger.exception("request %s failed", request_id)
            if not status:
                error = server_fault(
                    f"the server failed; its log says why, at request {request_id}"
                )
                await self._render(error, scope["path"])(scope, receive, send_with_id)
        finally:
            seconds = time.perf_counter() - started
            self._observe(scope, status, seconds)
            access_log.info(
                "%s %s %s %d %.0f ms%s",
                request_id,
                scope["method"],
                _shown(scope["path"]),
                status,
                1000 * seconds,
                _client_words(Headers(scope=scope)),
            )


class BodyCaps:
    """Refuses bodies over `cap_of(path)` bytes with 413 before anything reads them whole; routes
    find the cap, which holds for what a body is decompressed to as well, as `state.body_cap`."""

    def __init__(self, app: ASGIApp, cap_of: Callable[[str], int], render: Render) -> None:
        self._app = app
        self._cap_of = cap_of
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        cap = self._cap_of(scope["path"])
        scope["state"]["body_cap"] = cap
        told = Headers(scope=scope).get("content-length", "")
        if told.isdecimal() and int(told) > cap:
            await _drain(receive)
            await self._render(_over(cap), scope["path"])(scope, receive, send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            if seen > cap:
                if message.get("more_body", False):
                    await _drain(receive)
                raise _over(cap)
            return message

        await self._app(scope, counted, send)


class KeyCheck:
    """Refuses requests without a key of ours, unless `is_open(path)`; gives `state.owner`.

    `hosts`: the names under which the server may be asked, or None for any. A page of another site
    can make a browser on this machine ask it, under a name of its own or with its Origin; neither
    is served.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys,
        is_open: Callable[[str], bool],
        hosts: frozenset[str] | None,
        render: Render,
    ) -> None:
        self._app = app
        self._keys = keys
        self._is_open = is_open
        self._hosts = hosts
        self._render = render

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                self._check_site(headers)
                if not self._is_open(scope["path"]):
                    scope["state"]["owner"] = self._keys.owner(presented_key(headers))
            except ServingError as error:
                await self._render(error, scope["path"])(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check_site(self, headers: Headers) -> None:
        host = headers.get("host", "")
        if self._hosts is not None and _name_of(host) not in self._hosts:
            raise bad_request(
                f"host {host[:_LONGEST_LOGGED]!r}: this server is asked as "
                f"{' or '.join(sorted(self._hosts))}"
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise bad_request(
                f"origin {origin[:_LONGEST_LOGGED]!r}: pages of other sites are not served"
            )


def presented_key(headers: Headers) -> str | None:
    """Of X-API-Key, or of Authorization: Bearer."""
    given = headers.get("x-api-key")
    if given is None:
        scheme, _, rest = headers.get("authorization", "").partition(" ")
        given = rest if scheme.lower() == "bearer" else None
    return given.strip() if given is not None and given.strip() else None


def owner_of(request: Request) -> str:
    """Who asks, as KeyCheck found."""
    return request.state.owner


async def _drain(receive: Receive) -> None:
    """Lets the client finish what it sends, and forgets it."""
    seen = 0
    with anyio.move_on_after(_DRAIN_SECONDS):
        while seen < _DRAIN_BYTES:
            message = await receive()
            seen += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body", False):
                return


def _over(cap: int) -> ServingError:
    return too_large(
        f"the body is larger than the {cap} bytes that are read here; send less at once"
    )


def _name_of(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _client_words(headers: Headers) -> str:
    """sdk=0.38.0 method=TrainingClient.forward_backward, where the client says so."""
    said = {"sdk": headers.get("x-sdk-version"), "method": headers.get("x-sdk-method")}
    return "".join(f" {name}={_shown(value)}" for name, value in said.items() if value)


def _shown(text: str) -> str:
    """For one line of a log, whatever a client sends."""
    cut = text if len(text) <= _LONGEST_LOGGED else f"{text[:_LONGEST_LOGGED]}..."
    return cut if cut.isprintable() and " " not in cut else repr(cut)
