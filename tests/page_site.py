"""A site with the page and canned answers of the two faces, for its tests in a browser."""

import asyncio
import datetime
import json
import threading
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from training.serving.page.routes import OPEN, page_routes

KEY = "tml-0123456789abcdef"
RUN = "0ac02541-d7d2-4a7a-9ad4-b6d3cd1a9d4c:train:0"
EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def path_of(name: str, kind: str = "sampler_weights") -> str:
    return f"tinker://{RUN}/{kind}/{name}"


def checkpoint(name: str, kind: str = "sampler_weights", *, minutes: float = 5) -> dict[str, Any]:
    types = {"weights": "training", "sampler_weights": "sampler", "external_weights": "external"}
    return {
        "checkpoint_id": f"{kind}/{name}",
        "checkpoint_type": types[kind],
        "time": ago(minutes),
        "tinker_path": path_of(name, kind),
        "size_bytes": 12_345_678,
        "public": False,
        "user_metadata": None,
        "expires_at": None,
    }


def ago(minutes: float) -> str:
    now = datetime.datetime.now(datetime.UTC)
    return (now - datetime.timedelta(minutes=minutes)).isoformat()


class Site:
    """Served from a thread. What it answers are attributes that a test sets; `asked` are the bodies
    of requests for text."""

    def __init__(self) -> None:
        self.reset()
        config = uvicorn.Config(self._app(), port=0, log_level="warning", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def reset(self) -> None:
        """As it was at the start."""
        self.state: dict[str, Any] = {
            "uptime_seconds": 3723,
            "base_models": ["embedded"],
            "sessions": 2,
            "models": 2,
            "samplers": 1,
            "running": 3,
            "waiting": 14,
            "sampled_per_second": 412.4,
            "trained_per_second": 0.0,
        }
        self.clients_of_anne: list[dict[str, Any]] = [
            {
                "session_id": "0ac02541-d7d2-4a7a-9ad4-b6d3cd1a9d4c",
                "name": "rl-loop",
                "sdk_version": "0.38.0",
                "created_at": ago(12),
                "silent_seconds": 4,
                "models": 1,
                "open_requests": 5,
            }
        ]
        self.runs: list[dict[str, Any]] = []
        self.checkpoints: list[dict[str, Any]] = []
        # model -> pieces of its answer; an Exception among them is an error event
        self.answers: dict[str, list[Any]] = {}
        self.refusal: dict[str, tuple[int, Any]] = {}
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.keys_seen: list[tuple[str, str | None]] = []
        # streams wait here before they end
        self.gate = threading.Event()
        self.gate.set()
        self.num_cut = 0

    def __enter__(self) -> "Site":
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive()
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"
        return self

    def __exit__(self, *_exc: object) -> None:
        self.gate.set()
        self._server.should_exit = True
        self._server.force_exit = True
        self._thread.join(10)

    def _models(self) -> list[dict[str, Any]]:
        base = {"id": "embedded", "object": "model", "created": 0, "parent": None}
        rows = [row for row in self.checkpoints if "/sampler_weights/" in row["tinker_path"]]
        return [
            base,
            *(
                {
                    "id": row["tinker_path"],
                    "object": "model",
                    "created": datetime.datetime.fromisoformat(row["time"]).timestamp(),
                    "parent": "embedded",
                }
                for row in rows
            ),
        ]

    def _app(self) -> FastAPI:
        app = FastAPI()
        app.include_router(page_routes(self))

        @app.middleware("http")
        async def check(request: Request, call_next: Any) -> Response:
            key = request.headers.get("authorization", "").removeprefix("Bearer ") or None
            path = request.url.path
            self.keys_seen.append((path, key))
            if path in self.refusal:
                status, body = self.refusal[path]
                return JSONResponse(body, status)
            if path not in OPEN and key != KEY:
                return JSONResponse({"detail": "the API key is not one of this server's"}, 401)
            request.state.owner = "anne"
            return await call_next(request)

        @app.get("/v1/models")
        async def models() -> dict[str, Any]:
            return {"object": "list", "data": self._models()}

        @app.get("/api/v1/training_runs")
        async def runs(limit: int, offset: int) -> dict[str, Any]:
            cursor = {"limit": limit, "offset": offset, "total_count": len(self.runs)}
            return {"training_runs": self.runs[offset : offset + limit], "cursor": cursor}

        @app.get("/api/v1/checkpoints")
        async def checkpoints(limit: int, offset: int) -> dict[str, Any]:
            cursor = {"limit": limit, "offset": offset, "total_count": len(self.checkpoints)}
            return {"checkpoints": self.checkpoints[offset : offset + limit], "cursor": cursor}

        @app.post("/v1/chat/completions")
        async def chat(request: Request) -> Response:
            body = await request.json()
            self.asked.append(("chat", body))
            return StreamingResponse(self._events(body), media_type="text/event-stream")

        @app.post("/v1/completions")
        async def completions(request: Request) -> Response:
            body = await request.json()
            self.asked.append(("plain", body))
            return StreamingResponse(self._events(body), media_type="text/event-stream")

        return app

    def status(self) -> dict[str, Any]:
        return self.state

    def clients(self, owner: str) -> list[dict[str, Any]]:
        assert owner == "anne"
        return self.clients_of_anne

    def num_open(self, owner: str) -> int:
        return sum(client["open_requests"] for client in self.clients(owner))

    async def _events(self, body: dict[str, Any]) -> AsyncIterator[str]:
        pieces = self.answers[body["model"]]
        try:
            for piece in pieces:
                if isinstance(piece, Exception):
                    yield event({"error": {"message": str(piece), "type": "server_error"}})
                    return
                if isinstance(piece, dict):
                    choice = {"index": 0, "delta": piece, "finish_reason": None}
                elif "messages" in body:
                    choice = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
                else:
                    choice = {"index": 0, "text": piece, "finish_reason": None}
                yield event({"choices": [choice]})
                await asyncio.sleep(0)
            while not self.gate.is_set():
                await asyncio.sleep(0.01)
            yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
            yield event({"choices": [], "usage": {"completion_tokens": len(pieces)}})
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.num_cut += 1
            raise


def event(body: dict[str, Any]) -> str:
    return f"data: {json.dumps(body)}\n\n"
