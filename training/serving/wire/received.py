"""Bodies of requests as values: read, decompressed, decoded and checked, each failure one sentence.

What takes long is done in a thread, so that heartbeats and other clients' requests are answered
meanwhile.
"""

import hashlib
from collections.abc import Callable
from typing import Any, TypeVar

import anyio.to_thread
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import ClientDisconnect, Request

from training.serving.errors import bad_request
from training.serving.wire.bodies import decompress
from utils.json_files import half_pair, parse_json, texts_in

D = TypeVar("D")
T = TypeVar("T")
M = TypeVar("M", bound="Message")

# below, handing it to a thread and back takes longer than the work
_HEAVY_BYTES = 64 * 1024
_LONGEST_SHOWN = 60
_MOST_PROBLEMS = 5


class Message(BaseModel):
    """A request's JSON object. A number is no text and a text no number; fields that are not known
    are left alone, since newer clients have more of them."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True, protected_namespaces=())


async def read_body(request: Request) -> bytes:
    """The whole body, decompressed where Content-Encoding says so; its cap holds for both."""
    try:
        body = await request.body()
    except ClientDisconnect as error:
        raise bad_request("the client hung up before its body was there") from error
    encoding = request.headers.get("content-encoding", "identity")
    if encoding in ("", "identity"):
        return body
    return await anyio.to_thread.run_sync(decompress, body, encoding, request.state.body_cap)


async def worked(function: Callable[[D], T], data: D, num_bytes: int) -> T:
    """function(data), in a thread where there is much of it."""
    if num_bytes < _HEAVY_BYTES:
        return function(data)
    return await anyio.to_thread.run_sync(function, data)


async def read_object(request: Request) -> tuple[dict[str, Any], str]:
    """The body's JSON object and a digest of it."""
    body = await read_body(request)
    return await worked(lambda data: (json_object(data), digest_of(data)), body, len(body))


async def read_message(request: Request, form: type[M]) -> tuple[M, str]:
    """The body as a message of that form, and a digest of it, which tells a request sent again from
    another one of the same number."""
    value, digest = await read_object(request)
    return checked(form, value), digest


def checked(form: type[M], value: dict[str, Any]) -> M:
    """Raises ServingError with all that is wrong, each by its field."""
    try:
        return form.model_validate(value)
    except ValidationError as error:
        told = [_sentence(problem) for problem in error.errors(include_url=False)]
        more = f"; and {len(told) - _MOST_PROBLEMS} more" if len(told) > _MOST_PROBLEMS else ""
        message = "; ".join(told[:_MOST_PROBLEMS]) + more
        raise bad_request(message, param=_field(error.errors()[0]["loc"])) from None


def digest_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def json_object(body: bytes) -> dict[str, Any]:
    """Raises ServingError for what is no JSON object, and for text that UTF-8 cannot write."""
    try:
        value = parse_json(body, "the body")
    except ValueError as error:
        raise bad_request(str(error)) from error
    if not isinstance(value, dict):
        raise bad_request(f"the body is a JSON {type(value).__name__}; an object is needed")
    if b"\\u" in body:
        for field, text in texts_in(value):
            if (half := half_pair(text)) is not None:
                raise bad_request(f"{field} holds {half}", param=field)
    return value


def _sentence(problem: Any) -> str:
    """lora_config.rank: got 'x'; input should be a valid integer"""
    field = _field(problem["loc"])
    if problem["type"] == "missing":
        return f"{field} is missing"
    words = problem["msg"][:1].lower() + problem["msg"][1:]
    return f"{field}: got {shown(problem['input'])}; {words}"


def _field(place: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in place)


def shown(value: object) -> str:
    """A value in an error, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
