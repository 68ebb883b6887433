"""Training of the Tinker face: models, passes, optimizer steps, saving and loading."""

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from training.api import AdamParams, LoraConfig
from training.serving.errors import bad_request, wrong_media_type
from training.serving.host import Host
from training.serving.middleware import owner_of
from training.serving.wire.bodies import require_protobuf
from training.serving.wire.codec import decode_forward_backward
from training.serving.wire.messages import (
    CreateModel,
    LoadWeights,
    Lora,
    OfModel,
    OptimStep,
    SaveExternal,
    SaveForSampler,
    SaveWeights,
)
from training.serving.wire.received import digest_of, read_body, read_message, worked
from training.serving.wire.replies import promise_reply


def training_routes(host: Host) -> APIRouter:
    router = APIRouter()

    @router.post("/create_model")
    async def create_model(request: Request) -> Response:
        message, digest = await read_message(request, CreateModel)
        lora = message.lora_config or Lora()
        try:
            config = LoraConfig(**lora.model_dump())
        except ValueError as error:
            raise bad_request(f"lora_config: {error}", param="lora_config") from error
        promise = await host.create_model(
            owner_of(request),
            message.session_id,
            message.model_seq_id,
            message.base_model,
            config,
            digest=digest,
            user_metadata=message.user_metadata,
        )
        return promise_reply(promise)

    @router.post("/load_weights")
    async def load_weights(request: Request) -> Response:
        message, digest = await read_message(request, LoadWeights)
        owner = owner_of(request)
        if message.session_id is not None and message.model_seq_id is not None:
            promise = await host.load_model(
                owner,
                message.session_id,
                message.model_seq_id,
                message.path,
                with_optimizer=message.optimizer,
                digest=digest,
                base_model=message.base_model,
                user_metadata=message.user_metadata,
            )
        elif message.model_id is not None:
            promise = await host.load_into(
                owner,
                message.model_id,
                message.seq_id,
                message.path,
                with_optimizer=message.optimizer,
                digest=digest,
            )
        else:
            raise bad_request("session_id and model_seq_id are missing; a new model needs both")
        return promise_reply(promise)

    @router.post("/unload_model")
    async def unload_model(request: Request) -> Response:
        message, digest = await read_message(request, OfModel)
        return promise_reply(
            await host.unload_model(
                owner_of(request), message.model_id, message.seq_id, digest=digest
            )
        )

    @router.post("/get_info")
    async def get_info(request: Request) -> Response:
        message, _ = await read_message(request, OfModel)
        info = host.info(owner_of(request), message.model_id)
        return JSONResponse(
            {
                "type": "get_info",
                "model_id": info.run.run_id,
                "model_name": info.run.base_model,
                "model_data": {
                    "model_name": info.run.base_model,
                    "tokenizer_id": info.tokenizer_id,
                    "max_context_length": info.max_context_length,
                    # of the untempered softmax, the one that the losses use
                    "sampled_logprobs": "untempered",
                },
                "is_lora": True,
                "lora_rank": info.run.lora.rank,
                "lora_seed": info.run.lora.seed,
                "optimizer_config": {"type": info.run.optimizer},
            }
        )

    @router.post("/forward_backward")
    async def forward_backward(request: Request) -> Response:
        require_protobuf(request.headers.get("content-type"))
        body = await read_body(request)
        decoded, digest = await worked(
            lambda data: (decode_forward_backward(data), digest_of(data)), body, len(body)
        )
        return promise_reply(await host.forward_backward(owner_of(request), decoded, digest=digest))

    @router.post("/forward")
    async def forward() -> Response:
        raise wrong_media_type(
            "forward passes come to /forward_backward with forward_only; use an SDK from 0.25 on"
        )

    @router.post("/optim_step")
    async def optim_step(request: Request) -> Response:
        message, digest = await read_message(request, OptimStep)
        given = message.adam_params.model_dump() if message.adam_params is not None else {}
        try:
            params = AdamParams(**given)
        except ValueError as error:
            raise bad_request(f"adam_params: {error}", param="adam_params") from error
        return promise_reply(
            await host.optim_step(
                owner_of(request), message.model_id, message.seq_id, params, digest=digest
            )
        )

    @router.post("/save_weights")
    async def save_weights(request: Request) -> Response:
        message, digest = await read_message(request, SaveWeights)
        promise = await host.save_weights(
            owner_of(request),
            message.model_id,
            message.seq_id,
            message.path,
            digest=digest,
            overwrite=message.overwrite,
            ttl_seconds=message.ttl_seconds,
            user_metadata=message.user_metadata,
        )
        return promise_reply(promise)

    @router.post("/save_weights_for_sampler")
    async def save_weights_for_sampler(request: Request) -> Response:
        message, digest = await read_message(request, SaveForSampler)
        if message.kind != "snapshot":
            raise bad_request(
                f"kind: got {message.kind!r}; a sampler is a 'snapshot' here, whose answers stay "
                "the same while training goes on",
                param="kind",
            )
        promise = await host.save_weights_for_sampler(
            owner_of(request),
            message.model_id,
            message.seq_id,
            digest=digest,
            name=message.path,
            sampling_session_seq_id=message.sampling_session_seq_id,
            ttl_seconds=message.ttl_seconds,
            user_metadata=message.user_metadata,
        )
        return promise_reply(promise)

    @router.post("/save_weights_external")
    async def save_weights_external(request: Request) -> Response:
        message, digest = await read_message(request, SaveExternal)
        if message.age_encryption_recipients:
            raise bad_request(
                "age_encryption_recipients: exports are not encrypted here; leave it out",
                param="age_encryption_recipients",
            )
        promise = await host.save_weights_external(
            owner_of(request),
            message.model_id,
            message.seq_id,
            message.path,
            digest=digest,
            ttl_seconds=message.ttl_seconds,
        )
        return promise_reply(promise)

    return router
