"""Any OpenAI-compatible endpoint: OpenRouter, OpenAI, vLLM, llama.cpp, ...

What such servers answer besides what they should, and the order in which it is looked for, is
tested in tests/test_llm.py against tests/fake_endpoint.py.
"""

from __future__ import annotations

import copy
import email.utils
import json
import logging
import math
import os
import time
from collections.abc import Mapping
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from utils.config import raise_problems
from utils.llm_api import Kind, LLMError, Reply, Request, Role, Usage
from utils.schemas import without_bounds

CONNECT_SECONDS = 10.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SHOWN_TEXT = 300
# the client wants one, and servers without keys ignore it
NO_KEY = "none"

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


class OpenAIEndpoint:
    """Calls `role.base_url` over openai.AsyncOpenAI, once per call: retries are the client's.

    Raises a ConfigError for a role that `role.check()` complains of. Used in one event loop. Errors
    and logs never hold the key, even if the server repeats it.
    """

    def __init__(self, role: Role) -> None:
        base_url = role.base_url
        problems = role.check()
        if base_url is None:
            problems.append(
                f"{role.name}.base_url=None: a model in this process has no URL to call"
            )
        raise_problems(problems)
        self.role = role
        self._key = None if role.api_key_env is None else os.environ[role.api_key_env]
        # a line per request at INFO would drown a script's own
        for name in ("httpx2", "openai"):
            if logging.getLogger(name).level == logging.NOTSET:
                logging.getLogger(name).setLevel(logging.WARNING)
        timeout = openai.Timeout(role.timeout, connect=min(CONNECT_SECONDS, role.timeout))
        # a proxy of the environment cannot reach this machine's own servers
        http_client = openai.DefaultAsyncHttpxClient(
            timeout=timeout, trust_env=role.host not in LOOPBACK
        )
        self._client = openai.AsyncOpenAI(
            api_key=self._key or NO_KEY,
            base_url=base_url,
            timeout=timeout,
            max_retries=0,
            http_client=http_client,
        )
        if role.host != "api.openai.com":
            # read from the environment, and nobody else's business
            self._client.organization = self._client.project = None

    async def complete(self, request: Request) -> Reply:
        """One call; see Endpoint."""
        arguments = create_arguments(self.role, request)
        try:
            completion = await self._client.chat.completions.create(**arguments)
        except openai.APIError as error:
            problem = self._error_of(error)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            problem = self._fail("transport", f"the body is not whole JSON: {error}")
        else:
            return self._reply_of(completion)
        # raised here and not above: the library's errors hold the request with its headers
        raise problem

    async def close(self) -> None:
        await self._client.close()

    def _reply_of(self, completion: Any) -> Reply:
        if isinstance(completion, str):
            raise self._fail(
                "server",
                f"text instead of JSON (is base_url={self.role.base_url} right?): {completion}",
            )
        if not isinstance(completion, ChatCompletion):
            raise self._fail("server", f"no chat completion but {completion!r}")
        extra = completion.model_extra or {}
        usage = _usage_of(completion)
        if error := extra.get("error"):
            raise self._body_error(error, completion)
        # the library builds its objects from whatever it gets
        choices = completion.choices if isinstance(completion.choices, list) else []
        choice = choices[0] if choices else None
        message = getattr(choice, "message", None)
        if choice is None or message is None:
            raise self._fail("server", "an answer without choices", reply=_no_text(completion))
        finish_reason = _text_or_none(getattr(choice, "finish_reason", None))
        error = (choice.model_extra or {}).get("error")
        if finish_reason == "error" and error:
            raise self._body_error(error, completion)
        content = getattr(message, "content", None)
        refusal = getattr(message, "refusal", None)
        if content is not None and not isinstance(content, str):
            raise self._fail(
                "server", f"content that is no text: {content!r}", reply=_no_text(completion)
            )
        return Reply(
            text=_whole(content or ""),
            finish_reason=finish_reason,
            usage=usage,
            provider=_text_or_none(extra.get("provider")),
            model=_text_or_none(getattr(completion, "model", None)),
            generation_id=_text_or_none(getattr(completion, "id", None)),
            refusal=None if refusal is None else _whole(str(refusal)),
        )

    def _error_of(self, error: openai.APIError) -> LLMError:
        if isinstance(error, openai.APITimeoutError):
            return self._fail("timeout", f"no answer within {self.role.timeout:g} s")
        if isinstance(error, openai.APIStatusError):
            status = error.status_code
            retry_after = _retry_after(error.response.headers)
            if retry_after is None:
                retry_after = _stated_wait(error.body)
            return self._fail(
                _kind_of(status, error.body),
                f"HTTP {status}: {_words(error.body)}{_wait_text(retry_after)}",
                retry_after=retry_after,
            )
        cause = error.__cause__ or error
        return self._fail("transport", f"the connection failed: {cause!r}")

    def _body_error(self, error: Any, completion: ChatCompletion) -> LLMError:
        code = error.get("code") if isinstance(error, Mapping) else None
        status = int(code) if isinstance(code, int | str) and str(code).isdecimal() else 500
        retry_after = _stated_wait(error)
        return self._fail(
            _kind_of(status, error),
            f"an error instead of an answer, code {code}: {_words(error)}{_wait_text(retry_after)}",
            retry_after=retry_after,
            reply=_no_text(completion),
        )

    def _fail(
        self,
        kind: Kind,
        detail: str,
        *,
        retry_after: float | None = None,
        reply: Reply | None = None,
    ) -> LLMError:
        if self._key is not None:
            detail = detail.replace(self._key, "[key]")
        detail = detail if len(detail) <= SHOWN_TEXT else detail[:SHOWN_TEXT] + "..."
        return LLMError(kind, self.role.name, detail, retry_after=retry_after, reply=reply)


def create_arguments(role: Role, request: Request) -> dict[str, Any]:
    """What `chat.completions.create` is called with."""
    arguments: dict[str, Any] = {
        "model": role.model,
        "messages": [dict(message) for message in request.messages],
        role.max_tokens_field: request.max_tokens,
    }
    if request.temperature is not None:
        arguments["temperature"] = request.temperature
    if request.seed is not None:
        arguments["seed"] = request.seed
    extra = copy.deepcopy(dict(role.extra_body))
    if request.json_schema is not None:
        bounds = not role.is_openrouter if role.schema_bounds is None else role.schema_bounds
        schema = dict(request.json_schema)
        arguments["response_format"] = {
            "type": "json_schema",
            "json_schema": {
                "name": "answer",
                "strict": True,
                "schema": schema if bounds else without_bounds(schema),
            },
        }
        if role.is_openrouter:
            # without it, a provider that cannot do this is asked for plain text
            extra["provider"] = {**extra.get("provider", {}), "require_parameters": True}
    if extra:
        arguments["extra_body"] = extra
    return arguments


def _kind_of(status: int, error: Any) -> Kind:
    if isinstance(error, Mapping):
        metadata = error.get("metadata")
        metadata = metadata if isinstance(metadata, Mapping) else {}
        if status == 403 and {"reasons", "flagged_input", "patterns"} & set(metadata):
            return "content_filter"
        for word in (metadata.get("error_type"), error.get("code"), error.get("type")):
            if isinstance(word, str) and word in KIND_OF_WORD:
                return KIND_OF_WORD[word]
        # vLLM and others have no code for it
        if status == 400 and "maximum context length" in str(error.get("message")):
            return "too_long"
    if status >= 500:
        return KIND_OF_STATUS.get(status, "server")
    return KIND_OF_STATUS.get(status, "bad_request")


def _words(error: Any) -> str:
    if not isinstance(error, Mapping):
        return " ".join(str(error).split())
    parts = [str(error.get("message") or "no message")]
    metadata = error.get("metadata")
    if isinstance(metadata, Mapping):
        known = ("error_type", "provider_name", "provider_code", "reasons", "raw")
        parts += [f"{name} {metadata[name]}" for name in known if metadata.get(name)]
    availability = error.get("availability")
    if isinstance(availability, Mapping) and availability.get("excluded_by"):
        parts.append(f"excluded by {availability['excluded_by']}")
    return "; ".join(parts)


def _wait_text(retry_after: float | None) -> str:
    return "" if retry_after is None else f" (asks to wait {retry_after:g} s)"


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that Retry-After asks for, be it a number or a date; None where it says nothing."""
    text = headers.get("retry-after")
    seconds = _seconds(text)
    if seconds is not None or text is None:
        return seconds
    date = email.utils.parsedate_tz(text)
    return None if date is None else max(0.0, email.utils.mktime_tz(date) - time.time())


def _stated_wait(error: Any) -> float | None:
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


def _usage_of(completion: ChatCompletion) -> Usage | None:
    usage = getattr(completion, "usage", None)
    prompt_tokens = getattr(usage, "prompt_tokens", None)
    completion_tokens = getattr(usage, "completion_tokens", None)
    if not isinstance(prompt_tokens, int) or not isinstance(completion_tokens, int):
        return None
    cost = (getattr(usage, "model_extra", None) or {}).get("cost")
    reported = isinstance(cost, int | float) and math.isfinite(cost) and cost >= 0
    return Usage(prompt_tokens, completion_tokens, float(cost) if reported else None)


def _no_text(completion: ChatCompletion) -> Reply:
    """What a failed answer took: it may have been charged for."""
    return Reply(text="", finish_reason="error", usage=_usage_of(completion))


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _whole(text: str) -> str:
    """`text` with halves of surrogate pairs replaced: they can neither be sent nor stored."""
    return text.encode("utf-8", "replace").decode("utf-8")
