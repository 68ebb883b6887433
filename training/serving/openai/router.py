"""The routes, and what is said of those that are not there."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, TypeVar

from fastapi import APIRouter
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from training.serving.errors import ServingError, bad_request
from training.serving.host import Host
from training.serving.hosted_models import ModelEntry
from training.serving.named_adapters import NamedAdapters
from training.serving.openai.chat import ChatReply
from training.serving.openai.completions import CompletionReply
from training.serving.openai.errors import error_reply, json_reply
from training.serving.openai.requests import adapter_request, chat_request, completion_request
from utils.json_files import parse_texts

# the second is the hosted service's, so that code for it needs another host only
PREFIXES = ("/v1", "/oai/api/v1")
_ROUTES = {"/chat/completions": "POST", "/completions": "POST", "/models": "GET"}
# of vLLM's API, where the server has adapters_dir
_ADAPTER_ROUTES = {"/load_lora_adapter": "POST", "/unload_lora_adapter": "POST"}
_OWNER = "autodidact"
_GONE = 499

T = TypeVar("T")
Handler = Callable[[Request], Awaitable[Response]]


def router(host: Host) -> APIRouter:
    """For each of PREFIXES; `request.state.owner` has to be set before. Whatever is below the
    prefix is answered in OpenAI's shape."""
    routes = APIRouter()

    async def models(request: Request) -> Response:
        entries = host.models(request.state.owner)
        return json_reply({"object": "list", "data": [_model_body(entry) for entry in entries]})

    async def model(request: Request) -> Response:
        name, owner = request.path_params["name"], request.state.owner
        entries = {entry.name: entry for entry in host.models(owner)}
        if name not in entries:
            # other names of a checkpoint, such as BASE;PATH, are not listed
            hosted = await host.hosted(owner, name)
            path = hosted.adapter_path
            assert path is not None
            length = hosted.context_length
            # the list ends somewhere
            unlisted = ModelEntry(name, int(time.time()), hosted.base_model, path, length)
            entries[name] = replace(entries.get(path, unlisted), name=name)
        return json_reply(_model_body(entries[name]))

    async def chat(request: Request) -> Response:
        asked = await _read(request, chat_request)
        hosted = await host.hosted(request.state.owner, asked.sampling.model)
        return await ChatReply(hosted, asked).respond(request)

    async def completions(request: Request) -> Response:
        asked = await _read(request, completion_request)
        hosted = await host.hosted(request.state.owner, asked.sampling.model)
        return await CompletionReply(hosted, asked).respond(request)

    async def load_adapter(request: Request) -> Response:
        asked = await _read(request, adapter_request)
        if asked.path is None:
            raise bad_request("lora_path is missing: the request needs it", param="lora_path")
        await _adapters(host).load(
            request.state.owner, asked.name, asked.path, replaces=asked.replaces
        )
        return Response(f"Success: LoRA adapter '{asked.name}' added successfully.")

    async def unload_adapter(request: Request) -> Response:
        asked = await _read(request, adapter_request)
        _adapters(host).unload(request.state.owner, asked.name)
        return Response(f"Success: LoRA adapter '{asked.name}' removed successfully.")

    for path, method, handler in (
        ("/models", "GET", models),
        ("/models/{name:path}", "GET", model),
        ("/chat/completions", "POST", chat),
        ("/completions", "POST", completions),
        ("/load_lora_adapter", "POST", load_adapter),
        ("/unload_lora_adapter", "POST", unload_adapter),
    ):
        routes.add_route(path, _answered(handler), methods=[method])
    # of every method
    routes.add_route("/{rest:path}", _answered(_no_route), methods=[])
    return routes


def _adapters(host: Host) -> NamedAdapters:
    """Raises ServingError 404 where this server has none."""
    if host.adapters is None:
        raise ServingError(
            404,
            "adapters are loaded by name only where the server was started with adapters_dir=...; "
            "checkpoints are asked for by their tinker:// paths",
            code="unknown_url",
        )
    return host.adapters


async def _read(request: Request, check: Callable[[Any], T]) -> T:
    """The body as `check` reads it. Raises ServingError 400."""
    body = await request.body()

    def read() -> T:
        try:
            return check(parse_texts(body, "the body"))
        except RecursionError:
            raise bad_request("the body is nested too deep") from None
        except ValueError as error:
            raise bad_request(str(error)) from error

    # bodies of megabytes must not hold up the streams of others
    return await asyncio.to_thread(read)


def _answered(handler: Handler) -> Handler:
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except ServingError as error:
            return error_reply(error)
        except ClientDisconnect:
            return Response(status_code=_GONE)

    return answer


async def _no_route(request: Request) -> Response:
    path = f"/{request.path_params['rest']}"
    asked = f"{request.method} {request.url.path}"
    method = "GET" if path.startswith("/models/") else (_ROUTES | _ADAPTER_ROUTES).get(path)
    if method is not None:
        raise ServingError(405, f"{asked}: this route takes {method}", code="method_not_allowed")
    served = ", ".join(f"{method} {route}" for route, method in _ROUTES.items())
    raise ServingError(
        404, f"{asked}: no such route; there are {served}, GET /models/NAME", code="unknown_url"
    )


def _model_body(entry: ModelEntry) -> dict[str, Any]:
    return {
        "id": entry.name,
        "object": "model",
        "created": entry.created,
        "owned_by": _OWNER,
        "root": entry.root,
        "parent": entry.parent,
        "max_model_len": entry.max_model_len,
    }
