"""Answers as server-sent events."""

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Send

from training.serving.errors import ServingError, server_fault
from training.serving.openai.errors import error_body

logger = logging.getLogger(__name__)


class EventStream(StreamingResponse):
    """`chunks` as events, then `[DONE]`. What fails after the first byte is an event too: a stream
    that ends without a word looks like a short answer to clients. The chunks' source is closed as
    soon as nobody reads."""

    def __init__(self, chunks: AsyncGenerator[dict[str, Any], None]) -> None:
        self._events = _events(chunks)
        # proxies would hold the events back
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._events, media_type="text/event-stream", headers=headers)

    async def stream_response(self, send: Send) -> None:
        async with aclosing(self._events):
            await super().stream_response(send)


async def _events(chunks: AsyncGenerator[dict[str, Any], None]) -> AsyncGenerator[bytes, None]:
    try:
        async with aclosing(chunks):
            async for chunk in chunks:
                yield _event(chunk)
    except ServingError as error:
        yield _event(error_body(error))
    except Exception:
        # the status is sent, so that nobody above could tell the client
        logger.exception("a stream failed")
        yield _event(error_body(server_fault("the server failed; its log says why")))
    else:
        yield b"data: [DONE]\n\n"


def _event(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # of the bytes that a random model writes not all are characters
    return b"data: " + text.encode("utf-8", "replace") + b"\n\n"
