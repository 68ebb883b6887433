"""Errors in the shape that OpenAI's clients show whole."""

import json
from typing import Any

from starlette.responses import Response

from training.serving.errors import ServingError

_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    429: "rate_limit_error",
}


def error_body(error: ServingError) -> dict[str, Any]:
    """{"error": {message, type, param, code}}; the type follows from the status."""
    default = "server_error" if error.status >= 500 else "invalid_request_error"
    return {
        "error": {
            "message": error.message,
            "type": _TYPES.get(error.status, default),
            "param": error.param,
            "code": error.code,
        }
    }


def error_reply(error: ServingError) -> Response:
    """With what the client needs to wait or to give up: it repeats 408, 409, 429 and 5xx twice
    unless it is told not to, and a fault of the server would be the same again."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after)))
    elif error.status >= 500:
        headers["x-should-retry"] = "false"
    return json_reply(error_body(error), error.status, headers)


def json_reply(body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # a random model's text may hold what UTF-8 cannot write
    data = text.encode("utf-8", "replace")
    return Response(data, status, headers, media_type="application/json")
