"""Bodies of answers and of the chunks that they come in."""

import secrets
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from training.api import StopReason
from training.serving.openai.thoughts import Piece


class Usage(NamedTuple):
    """Token counts of a whole request; a prompt counts once, however many answers it has."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0

    def body(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class Envelope:
    """What all bodies of one reply share. `model` is the name that was asked for."""

    def __init__(self, kind: str, prefix: str, model: str, fingerprint: str) -> None:
        self._head = {
            "id": f"{prefix}-{secrets.token_hex(12)}",
            "object": kind,
            "created": int(time.time()),
            "model": model,
            "system_fingerprint": fingerprint,
        }

    def body(self, choices: Sequence[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return {**self._head, "choices": list(choices), **more}


def chat_choice(
    index: int, piece: Piece, reason: StopReason, logprobs: dict[str, Any] | None, **more: Any
) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": piece.text, "refusal": None}
    if piece.thought:
        message["reasoning_content"] = piece.thought
    return {
        "index": index,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": reason,
        **more,
    }


def chat_delta(
    index: int,
    piece: Piece,
    reason: StopReason | None,
    logprobs: dict[str, Any] | None,
    **more: Any,
) -> dict[str, Any]:
    delta = {"content": piece.text} if piece.text else {}
    if piece.thought:
        delta["reasoning_content"] = piece.thought
    return {
        "index": index,
        "delta": delta,
        "logprobs": logprobs,
        "finish_reason": reason,
        **more,
    }


def completion_choice(
    index: int, text: str, reason: StopReason | None, logprobs: dict[str, Any] | None, **more: Any
) -> dict[str, Any]:
    """A whole one, or a chunk of one."""
    return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason, **more}
