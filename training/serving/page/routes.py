"""The page at /: what the server does, runs and checkpoints, a talk with two models.

The page itself is a shell without any data, the same for everybody. What it shows it asks for with
the key that its user gives it, by the routes that other clients use too.
"""

import base64
import hashlib
import re
from importlib import resources
from typing import Any, Protocol

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, JSONResponse, Response

# what may be asked for without a key
OPEN = ("/", "/favicon.ico")


class Watched(Protocol):
    """What the page needs of the host."""

    def status(self) -> dict[str, Any]: ...

    def clients(self, owner: str) -> list[dict[str, Any]]: ...

    def num_open(self, owner: str) -> int: ...


def page_routes(host: Watched) -> APIRouter:
    text = resources.files("training.serving.page").joinpath("page.html").read_text("utf-8")
    headers = {
        "Content-Security-Policy": _policy(text),
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    routes = APIRouter()

    @routes.get("/")
    async def page() -> Response:
        return HTMLResponse(text, headers=headers)

    @routes.get("/favicon.ico")
    async def no_icon() -> Response:
        # browsers ask for it, without a key
        return Response(status_code=204)

    @routes.get("/page/status")
    async def page_status(request: Request) -> Response:
        owner = request.state.owner
        status = {
            **host.status(),
            "your_open_requests": host.num_open(owner),
            "your_clients": host.clients(owner),
        }
        return JSONResponse(status, headers={"Cache-Control": "no-store"})

    return routes


def _policy(text: str) -> str:
    """The page runs its own script and nothing that anybody managed to write into it, loads nothing
    from elsewhere, sends what it knows nowhere else, and stands in no other page's frame."""
    script, style = (
        " ".join(f"'sha256-{_digest(part)}'" for part in _contents(text, tag))
        for tag in ("script", "style")
    )
    return (
        f"default-src 'none'; script-src {script}; style-src {style}; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def _contents(text: str, tag: str) -> list[str]:
    return re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
