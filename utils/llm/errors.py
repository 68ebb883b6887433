"""What the errors of OpenAI-compatible servers mean, and what they say."""

from __future__ import annotations

import email.utils
import json
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

from utils.llm.api import Kind

# OpenRouter's error.metadata.error_type, and the error.code or error.type of others, where they say
# more than the status; https://openrouter.ai/docs/api/reference/errors-and-debugging
KIND_OF_WORD: dict[str, Kind] = {
    "authentication": "auth",
    "invalid_api_key": "auth",
    "permission_denied": "auth",
    "payment_required": "payment",
    "token_limit_exceeded": "payment",
    "insufficient_quota": "payment",
    "rate_limit_exceeded": "rate",
    "provider_overloaded": "server",
    "provider_unavailable": "server",
    "server": "server",
    "unmapped": "server",
    "timeout": "timeout",
    "max_tokens_exceeded": "truncated",
    "context_length_exceeded": "too_long",
    "string_too_long": "too_long",
    "payload_too_large": "too_long",
    "content_policy_violation": "content_filter",
    "content_filter": "content_filter",
    "refusal": "refusal",
    "not_found": "not_found",
    "model_not_found": "not_found",
}
KIND_OF_STATUS: dict[int, Kind] = {
    401: "auth",
    402: "payment",
    403: "auth",
    404: "not_found",
    408: "timeout",
    409: "server",
    413: "too_long",
    425: "server",
    429: "rate",
    504: "timeout",
}


# where servers put their words, the telling ones first: OpenAI and OpenRouter, FastAPI and Mistral,
# Cloudflare, pydantic, RFC 9457
WORDS_AT = ("message", "detail", "errors", "error", "msg", "title")
DEEPEST = 6


def error_in(body: Any) -> Any:
    """The part of an answer's body that is about the error: its `error` where that is an object,
    also inside a list, which Google's servers make of it."""
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    inner = body.get("error") if isinstance(body, Mapping) else None
    return inner if isinstance(inner, Mapping) else body


def kind_of(status: int, error: Any) -> Kind:
    if isinstance(error, Mapping):
        metadata = error.get("metadata")
        metadata = metadata if isinstance(metadata, Mapping) else {}
        if status == 403 and {"reasons", "flagged_input", "patterns"} & set(metadata):
            return "content_filter"
        for word in (metadata.get("error_type"), error.get("code"), error.get("type")):
            if isinstance(word, str) and word in KIND_OF_WORD:
                return KIND_OF_WORD[word]
        # vLLM and others have no code for it
        if status == 400 and "maximum context length" in words_of(error):
            return "too_long"
    if status >= 500:
        return KIND_OF_STATUS.get(status, "server")
    return KIND_OF_STATUS.get(status, "bad_request")


def words_of(error: Any) -> str:
    """What an error's body says, in one line; all of it where its words are at no known place."""
    said = list(dict.fromkeys(_said(error)))
    parts = said or [_whole(error) if error else "no message"]
    if isinstance(error, Mapping):
        metadata = error.get("metadata")
        if isinstance(metadata, Mapping):
            known = ("error_type", "provider_name", "provider_code", "reasons", "raw")
            parts += [f"{name} {metadata[name]}" for name in known if metadata.get(name)]
        if excluded := excluded_by(error):
            parts.append(f"excluded by {excluded}")
    return "; ".join(parts)


def excluded_by(error: Any) -> list[Any]:
    """Which of a request's wishes left no provider, as OpenRouter tells."""
    availability = error.get("availability") if isinstance(error, Mapping) else None
    excluded = availability.get("excluded_by") if isinstance(availability, Mapping) else None
    return excluded if isinstance(excluded, list) else []


def _whole(error: Any) -> str:
    try:
        return json.dumps(error)
    except RecursionError:
        return "a body too deep to show"


def _said(value: Any, depth: int = 0) -> Iterator[str]:
    if isinstance(value, str):
        if text := " ".join(value.split()):
            yield text
    elif depth == DEEPEST:
        return
    elif isinstance(value, list):
        for item in value:
            yield from _said(item, depth + 1)
    elif isinstance(value, Mapping):
        # pydantic says apart what is wrong, and where
        place = value.get("loc")
        where = ".".join(map(str, place)) + ": " if isinstance(place, list) and place else ""
        for name in WORDS_AT:
            for text in _said(value.get(name), depth + 1):
                yield where + text


def wait_text(retry_after: float | None) -> str:
    return "" if retry_after is None else f" (asks to wait {retry_after:g} s)"


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """Seconds that Retry-After asks for, be it a number or a date; None where it says nothing."""
    text = headers.get("retry-after")
    seconds = _seconds(text)
    if seconds is not None or text is None:
        return seconds
    date = email.utils.parsedate_tz(text)
    return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())


def stated_wait(error: Any) -> float | None:
    """Seconds that the body of an error asks for, as some of OpenRouter's do."""
    if not isinstance(error, Mapping):
        return None
    for part in (error.get("availability"), error.get("metadata")):
        if isinstance(part, Mapping):
            seconds = _seconds(part.get("retry_after"))
            if seconds is not None:
                return seconds
    return None


def _seconds(value: Any) -> float | None:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None
