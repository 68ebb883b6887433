"""Sampling of the Tinker face."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from training.serving.host import Host
from training.serving.middleware import owner_of
from training.serving.wire.codec import decode_sample
from training.serving.wire.messages import CreateSamplingSession
from training.serving.wire.received import (
    digest_of,
    json_object,
    read_body,
    read_message,
    worked,
)
from training.serving.wire.replies import promise_reply


def sampling_routes(host: Host) -> APIRouter:
    router = APIRouter()

    @router.post("/create_sampling_session")
    async def create_sampling_session(request: Request) -> Response:
        message, _ = await read_message(request, CreateSamplingSession)
        sampler_id = await host.create_sampling_session(
            owner_of(request),
            message.session_id,
            message.sampling_session_seq_id,
            base_model=message.base_model,
            model_path=message.model_path,
        )
        return JSONResponse({"type": "create_sampling_session", "sampling_session_id": sampler_id})

    @router.get("/samplers/{sampler_id}")
    async def sampler(request: Request, sampler_id: str) -> Response:
        info = host.sampler_info(owner_of(request), sampler_id)
        reply = {"sampler_id": info.sampler_id, "base_model": info.base_model}
        if info.model_path is not None:
            reply["model_path"] = info.model_path
        return JSONResponse(reply)

    @router.post("/asample")
    async def asample(request: Request) -> Response:
        body = await read_body(request)
        decoded, digest = await worked(
            lambda data: (decode_sample(json_object(data)), digest_of(data)), body, len(body)
        )
        return promise_reply(await host.sample(owner_of(request), decoded, digest=digest))

    return router
