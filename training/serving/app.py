"""The server as an ASGI app: both faces, what stands before them, and how errors look on each."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from training.serving.errors import STATUSES, ServingError, bad_request, not_found
from training.serving.host import Host
from training.serving.keys import Keys
from training.serving.links import Links
from training.serving.metrics import MEDIA_TYPE as METRICS_TYPE
from training.serving.metrics import Metrics
from training.serving.middleware import BodyCaps, KeyCheck, RequestLog
from training.serving.openai.errors import error_reply as openai_error_reply
from training.serving.openai.router import PREFIXES as OPENAI_PREFIXES
from training.serving.openai.router import router as openai_router
from training.serving.page.routes import OPEN as PAGE
from training.serving.page.routes import page_routes
from training.serving.uploads import WEIGHTS
from training.serving.wire.replies import error_reply as tinker_error_reply
from training.serving.wire.routes_checkpoints import checkpoint_routes
from training.serving.wire.routes_download import DOWNLOADS, download_routes
from training.serving.wire.routes_futures import OpenPolls, future_routes
from training.serving.wire.routes_sampling import sampling_routes
from training.serving.wire.routes_session import session_routes
from training.serving.wire.routes_training import training_routes
from training.serving.wire.routes_unserved import unserved_routes
from training.serving.wire.routes_upload import UPLOADS, upload_routes
from utils.runs.provenance import package_versions

TINKER = "/api/v1"
# what says nothing of anybody, and what a signature in the URL opens
_OPEN = ("/healthz", f"{TINKER}/healthz", *PAGE)
_UPLOADS = f"{TINKER}{UPLOADS}/"
_SMALL_BYTES = 1 << 20


@dataclass(frozen=True)
class AppOptions:
    """Most bytes of a body, as sent and as decompressed: of forward_backward, of a file of an
    adapter, and of other requests that carry data. `hosts`: the names that the server may be asked
    by; None: any."""

    max_training_bytes: int = 256 << 20
    max_upload_bytes: int = 4 << 30
    max_json_bytes: int = 64 << 20
    hosts: frozenset[str] | None = None


class App(FastAPI):
    """What the end of the server calls: `polls` are the requests that wait for a result,
    `release_waiters` answers those that wait within their own request."""

    polls: OpenPolls
    release_waiters: Callable[[], None]


def make_app(host: Host, keys: Keys, links: Links, options: AppOptions | None = None) -> App:
    """The app; entering its lifespan starts `host`, leaving it closes it."""
    options = options or AppOptions()

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await host.startup()
        yield
        await host.aclose()

    # its pages of documentation would load scripts from the network
    app = App(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.polls = OpenPolls()
    app.release_waiters = host.release_waiters
    for routes in (
        session_routes(host),
        training_routes(host),
        sampling_routes(host),
        future_routes(host, app.polls),
        checkpoint_routes(host),
        download_routes(host, links),
        upload_routes(host, links),
        unserved_routes(),
    ):
        app.include_router(routes, prefix=TINKER)
    for prefix in OPENAI_PREFIXES:
        app.include_router(openai_router(host), prefix=prefix)
    app.include_router(page_routes(host))

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/version")
    async def version() -> dict[str, str]:
        # clients of vLLM read this field
        return {"version": package_versions(("autodidact",))["autodidact"]}

    metrics = Metrics(host.status)

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.text(), media_type=METRICS_TYPE)

    @app.exception_handler(ServingError)
    async def refused(request: Request, error: ServingError) -> Response:
        return render(error, request.url.path)

    @app.exception_handler(HTTPException)
    async def no_route(request: Request, error: HTTPException) -> Response:
        return render(_from_framework(request, error), request.url.path)

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:])
        return render(bad_request(f"{field}: {first['msg']}", param=field), request.url.path)

    def cap_of(path: str) -> int:
        if path == f"{TINKER}/forward_backward":
            return options.max_training_bytes
        if path.startswith(_UPLOADS) and path.endswith(WEIGHTS):
            return options.max_upload_bytes
        big = path.startswith(OPENAI_PREFIXES) or path == f"{TINKER}/asample"
        return options.max_json_bytes if big else _SMALL_BYTES

    def is_open(path: str) -> bool:
        return path in _OPEN or path.startswith((f"{TINKER}{DOWNLOADS}/", _UPLOADS))

    app.add_middleware(BodyCaps, cap_of=cap_of, render=render)
    app.add_middleware(KeyCheck, keys=keys, is_open=is_open, hosts=options.hosts, render=render)
    app.add_middleware(RequestLog, render=render, observe=metrics.observe)
    return app


def render(error: ServingError, path: str) -> Response:
    """In the shape that the clients of that face read."""
    reply = openai_error_reply if path.startswith(OPENAI_PREFIXES) else tinker_error_reply
    return reply(error)


def _from_framework(request: Request, error: HTTPException) -> ServingError:
    what = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return not_found(f"{what} is no route of this server")
    if error.status_code == 405:
        return ServingError(405, f"{what}: the route is there, with another method")
    status = error.status_code if error.status_code in STATUSES else 400
    return ServingError(status, str(error.detail))
