"""Lists of the Tinker face, and what is done to checkpoints: what the SDK's RestClient and the
`tinker` command line ask."""

from collections.abc import Mapping
from typing import Any

import anyio.to_thread
from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from training.serving.errors import not_found
from training.serving.host import Host
from training.serving.middleware import owner_of
from training.serving.names import TinkerPath
from training.serving.storage.rows import CheckpointRow, Listed, Run
from training.serving.wire.messages import OfPath, TimeToLive
from training.serving.wire.received import read_message

CHECKPOINTS = "/training_runs/{run_id}/checkpoints"
CHECKPOINT = CHECKPOINTS + "/{kind}/{name}"


def checkpoint_routes(host: Host) -> APIRouter:
    router = APIRouter()
    store, access = host.store, host.checkpoints

    @router.get("/training_runs")
    async def training_runs(request: Request, limit: int = 20, offset: int = 0) -> Response:
        owner = owner_of(request)
        listed = store.runs.list(owner, limit, offset)
        runs = [_run(host, owner, run) for run in listed.rows]
        return JSONResponse({"training_runs": runs, "cursor": _cursor(listed, limit, offset)})

    @router.get("/training_runs/{run_id}")
    async def training_run(request: Request, run_id: str) -> Response:
        owner = owner_of(request)
        return JSONResponse(_run(host, owner, _required(host, owner, run_id)))

    @router.get(CHECKPOINTS)
    async def checkpoints_of_run(request: Request, run_id: str) -> Response:
        owner = owner_of(request)
        _required(host, owner, run_id)
        listed = store.checkpoints.list(owner, run_id)
        return JSONResponse({"checkpoints": [_checkpoint(row) for row in listed.rows]})

    @router.get("/checkpoints")
    async def checkpoints(request: Request, limit: int = 100, offset: int = 0) -> Response:
        listed = store.checkpoints.list(owner_of(request), None, limit, offset)
        rows = [_checkpoint(row) for row in listed.rows]
        return JSONResponse({"checkpoints": rows, "cursor": _cursor(listed, limit, offset)})

    @router.delete(CHECKPOINT)
    async def delete(request: Request, run_id: str, kind: str, name: str) -> Response:
        owner, path = owner_of(request), TinkerPath.of(run_id, f"{kind}/{name}")
        # what its files take to go is not for the event loop
        await anyio.to_thread.run_sync(access.delete, owner, path)
        return Response(status_code=204)

    @router.delete(CHECKPOINTS + "/{name}")
    async def delete_bare(run_id: str, name: str) -> Response:
        # two checkpoints may have that name: this says so
        raise not_found(str(TinkerPath.of(run_id, name)))

    @router.put(CHECKPOINT + "/ttl")
    async def set_ttl(request: Request, run_id: str, kind: str, name: str) -> Response:
        owner, path = owner_of(request), TinkerPath.of(run_id, f"{kind}/{name}")
        message, _ = await read_message(request, TimeToLive)
        await anyio.to_thread.run_sync(access.set_ttl, owner, path, message.ttl_seconds)
        return Response(status_code=204)

    @router.post(CHECKPOINT + "/publish")
    async def publish(request: Request, run_id: str, kind: str, name: str) -> Response:
        access.publish(owner_of(request), TinkerPath.of(run_id, f"{kind}/{name}"), True)
        return Response(status_code=204)

    @router.delete(CHECKPOINT + "/publish")
    async def unpublish(request: Request, run_id: str, kind: str, name: str) -> Response:
        access.publish(owner_of(request), TinkerPath.of(run_id, f"{kind}/{name}"), False)
        return Response(status_code=204)

    @router.post("/weights_info")
    async def weights_info(request: Request) -> Response:
        message, _ = await read_message(request, OfPath)
        path = TinkerPath.parse(message.tinker_path, "tinker_path")
        row = access.find(owner_of(request), path, "tinker_path")
        return JSONResponse(
            {
                "base_model": row.base_model,
                "is_lora": True,
                "lora_rank": row.lora.rank,
                "train_attn": row.lora.train_attn,
                "train_mlp": row.lora.train_mlp,
                "train_unembed": row.lora.train_unembed,
                "optimizer_config": {"type": "adamw"},
            }
        )

    @router.get("/sessions")
    async def sessions(request: Request, limit: int = 20, offset: int = 0) -> Response:
        listed = store.sessions.list(owner_of(request), limit, offset)
        ids = [session.session_id for session in listed.rows]
        return JSONResponse({"sessions": ids, "cursor": _cursor(listed, limit, offset)})

    @router.get("/sessions/{session_id}")
    async def session(request: Request, session_id: str) -> Response:
        owner = owner_of(request)
        row = store.sessions.get(owner, session_id)
        if row is None:
            raise not_found(f"session {session_id!r}")
        runs = store.runs.of_session(owner, session_id)
        samplers = store.samplers.of_session(owner, session_id)
        return JSONResponse(
            {
                "training_run_ids": [run.run_id for run in runs],
                "sampler_ids": [sampler.sampler_id for sampler in samplers],
                "user_metadata": _texts(row.user_metadata),
                "display_name": row.display_name,
            }
        )

    return router


def _required(host: Host, owner: str, run_id: str) -> Run:
    run = host.store.runs.get(owner, run_id)
    if run is None:
        raise not_found(f"training run {run_id!r}")
    return run


def _run(host: Host, owner: str, run: Run) -> dict[str, Any]:
    latest = host.store.checkpoints.latest
    last, last_sampler = (latest(owner, run.run_id, k) for k in ("weights", "sampler_weights"))
    return {
        "training_run_id": run.run_id,
        "base_model": run.base_model,
        "model_owner": run.owner,
        "is_lora": True,
        "corrupted": False,
        "lora_rank": run.lora.rank,
        "last_request_time": run.last_request_at.isoformat(),
        "last_checkpoint": None if last is None else _checkpoint(last),
        "last_sampler_checkpoint": None if last_sampler is None else _checkpoint(last_sampler),
        "user_metadata": _texts(run.user_metadata),
    }


def _checkpoint(row: CheckpointRow) -> dict[str, Any]:
    return {
        "checkpoint_id": row.path.checkpoint_id,
        "checkpoint_type": row.path.checkpoint_type,
        "time": row.created_at.isoformat(),
        "tinker_path": str(row.path),
        "size_bytes": row.size_bytes,
        "public": row.public,
        "user_metadata": _texts(row.user_metadata),
        "expires_at": None if row.expires_at is None else row.expires_at.isoformat(),
        # of SDKs from 0.39 on
        "base_model": row.base_model,
    }


def _cursor(listed: Listed[Any], limit: int, offset: int) -> dict[str, int]:
    return {"offset": offset, "limit": limit, "total_count": listed.total}


def _texts(metadata: Mapping[str, Any]) -> dict[str, str] | None:
    """The SDK takes texts alone in what it lists, and anything where it is given."""
    return {key: str(value) for key, value in metadata.items()} or None
