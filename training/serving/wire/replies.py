"""What the Tinker face answers with: promises, errors, results."""

from typing import Any

from starlette.responses import JSONResponse, Response

from training.api import ForwardBackwardOutput
from training.serving.errors import ServingError, bad_request
from training.serving.memory_sizes import result_bytes
from training.serving.promises import Outcome, Promise
from training.serving.sampled import Sampled
from training.serving.wire.bodies import PROTOBUF
from training.serving.wire.codec import encode_output, encode_sample
from training.serving.wire.received import shown, worked


def error_reply(error: ServingError) -> Response:
    """`{"detail": sentence}`, which the SDK shows in the exception it raises."""
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = f"{error.retry_after:g}"
    return JSONResponse({"detail": error.message}, status_code=error.status, headers=headers)


def promise_reply(promise: Promise) -> Response:
    """Where the result will be found: what every request for work is answered with at once."""
    body: dict[str, Any] = {"request_id": promise.request_id}
    if promise.model_id is not None:
        body["model_id"] = promise.model_id
    if promise.sample_sequence_ids:
        body["sample_sequence_ids"] = list(promise.sample_sequence_ids)
    return JSONResponse(body)


async def outcome_reply(outcome: Outcome, accept: str) -> Response:
    """The SDK polls again, silently, after a 408; an error comes with status 200, since any other
    would make it ask again."""
    if outcome.state == "pending":
        return JSONResponse({"queue_state": "active"}, status_code=408)
    if outcome.state == "error":
        return JSONResponse({"error": outcome.message, "category": outcome.category})
    value = outcome.value
    if not isinstance(value, ForwardBackwardOutput | Sampled):
        return JSONResponse(value)
    if PROTOBUF not in accept and "*/*" not in accept:
        raise bad_request(
            f"accept: got {shown(accept)}; {PROTOBUF} is the only form of this result"
        )
    encoded = await worked(_encoded, value, result_bytes(value))
    return Response(encoded, media_type=PROTOBUF)


def _encoded(value: ForwardBackwardOutput | Sampled) -> bytes:
    if isinstance(value, ForwardBackwardOutput):
        return encode_output(value)
    return encode_sample(value.response, prompt_logprobs_last_n=value.prompt_logprobs_last_n)
