"""Sessions of the Tinker face: what a client asks before and beside its work."""

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from training.serving.host import Host
from training.serving.middleware import owner_of
from training.serving.wire.messages import CreateSession, FinishSession, OfSession
from training.serving.wire.received import (
    checked,
    json_object,
    read_body,
    read_message,
    read_object,
)

# what the SDK runs with; the fields that are not named keep its own defaults
CLIENT_CONFIG: dict[str, Any] = {"pjwt_auth_enabled": False, "credential_default_source": "api_key"}
# an abandoned sample is told to the server, which stops it
DYNAMIC_CONFIG = {
    "refresh_interval_sec": 300,
    "sample_cancel_enabled": True,
    "sample_cancel_max_batch_size": 64,
}


def session_routes(host: Host) -> APIRouter:
    router = APIRouter()

    @router.post("/client/config")
    async def client_config(request: Request) -> Response:
        await read_object(request)
        return JSONResponse(CLIENT_CONFIG)

    @router.post("/client/dynamic_config")
    async def dynamic_config(request: Request) -> Response:
        await read_object(request)
        return JSONResponse(DYNAMIC_CONFIG)

    @router.get("/healthz")
    async def healthz() -> Response:
        return JSONResponse({"status": "ok"})

    @router.get("/get_server_capabilities")
    async def capabilities() -> Response:
        models = [
            {
                "model_name": name,
                "max_context_length": host.context_length(name),
                "trainable": True,
                "sampleable": True,
            }
            for name in host.bases.names
        ]
        return JSONResponse({"supported_models": models})

    @router.post("/create_session")
    async def create_session(request: Request) -> Response:
        message, _ = await read_message(request, CreateSession)
        session_id = host.create_session(
            owner_of(request),
            tags=message.tags,
            user_metadata=message.user_metadata,
            sdk_version=message.sdk_version,
        )
        return JSONResponse({"type": "create_session", "session_id": session_id})

    @router.post("/session_heartbeat")
    async def heartbeat(request: Request) -> Response:
        message, _ = await read_message(request, OfSession)
        host.heartbeat(owner_of(request), message.session_id)
        return JSONResponse({"type": "session_heartbeat"})

    @router.post("/sessions/{session_id}/finish")
    async def finish(request: Request, session_id: str) -> Response:
        body = await read_body(request)
        message = checked(FinishSession, json_object(body)) if body else FinishSession()
        host.finish(owner_of(request), session_id, message.reason.type, message.detail)
        return JSONResponse({})

    @router.post("/telemetry")
    async def telemetry(request: Request) -> Response:
        # taken, so that the client does not send it again, and forgotten
        await read_body(request)
        return JSONResponse({"status": "accepted"})

    return router
