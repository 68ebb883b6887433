"""Any OpenAI-compatible endpoint: OpenRouter, OpenAI, vLLM, llama.cpp, ...

What such servers answer besides what they should, and the order in which it is looked for, is
tested in tests/utils/llm/test_llm.py against tests/fake_endpoint.py.
"""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import math
import os
from collections.abc import Mapping
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from utils.config.entrypoint import raise_problems
from utils.llm.api import REQUIRE_PARAMETERS, Kind, LLMError, Reply, Request, Role, Usage
from utils.llm.errors import (
    error_in,
    excluded_by,
    kind_of,
    retry_after_of,
    stated_wait,
    wait_text,
    words_of,
)
from utils.llm.parameters import optional_arguments, supported_parameters
from utils.llm.schemas import without_bounds

logger = logging.getLogger(__name__)

CONNECT_SECONDS = 10.0
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SHOWN_TEXT = 300
# the client wants one, and servers without keys ignore it
NO_KEY = "none"


class OpenAIEndpoint:
    """Calls `role.base_url` over openai.AsyncOpenAI, once per call: retries are the client's.

    Before the first call it asks for the list of models. Where that names the parameters that the
    role's model takes, the optional ones that are missing there are not sent; the log says so, and
    each reply which.

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
        self._listing = asyncio.Lock()
        self._is_listed = False
        self._supported: frozenset[str] | None = None

    async def complete(self, request: Request) -> Reply:
        """One call; see Endpoint."""
        await self._look_up_model()
        arguments = create_arguments(self.role, request, self._supported)
        try:
            completion = await self._client.chat.completions.create(**arguments)
        except openai.APIError as error:
            problem = self._error_of(error, arguments)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            problem = self._fail("transport", f"the body is not whole JSON: {error}")
        else:
            _, not_sent = optional_arguments(self.role, request, self._supported)
            return self._reply_of(completion, not_sent)
        # raised here and not above: the library's errors hold the request with its headers
        raise problem

    async def close(self) -> None:
        await self._client.close()

    async def _look_up_model(self) -> None:
        """Ask once which parameters the model takes. Most servers do not tell, and some have no
        such list; an error that may pass is raised where the next call depends on it."""
        async with self._listing:
            if self._is_listed:
                return
            listing: Any = None
            problem: LLMError | None = None
            try:
                listing = await self._client.get("/models", cast_to=object)
            except openai.APIError as error:
                problem = self._error_of(error)
            except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
                logger.debug("%s: the list of models is no JSON", self.role.host)
            passing = ("transport", "timeout", "rate", "server")
            if problem is not None and problem.kind in passing and self.role.is_openrouter:
                raise problem
            self._is_listed = True
            self._supported = supported_parameters(listing, self.role.model)
        request = Request([], None, 0, self.role.max_tokens, self.role.temperature, self.role.seed)
        _, not_sent = optional_arguments(self.role, request, self._supported)
        if not_sent:
            logger.info(
                "%s: %s does not list %s for %s, so it is not sent",
                *(self.role.name, self.role.host, " and ".join(not_sent), self.role.model),
            )

    def _reply_of(self, completion: Any, not_sent: tuple[str, ...]) -> Reply:
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
            said = f": {words_of(extra)}" if extra else ""
            raise self._fail(
                "server", f"an answer without choices{said}", reply=_no_text(completion)
            )
        finish_reason = _text_or_none(getattr(choice, "finish_reason", None))
        error = (choice.model_extra or {}).get("error")
        if finish_reason == "error" and error:
            raise self._body_error(error, completion)
        content = getattr(message, "content", None)
        text, refusal = _read_content(content)
        if text is None:
            raise self._fail(
                "server", f"content that is no text: {content!r}", reply=_no_text(completion)
            )
        refusal = getattr(message, "refusal", None) or refusal
        return Reply(
            text=_whole(text),
            finish_reason=finish_reason,
            usage=usage,
            provider=_text_or_none(extra.get("provider")),
            model=_text_or_none(getattr(completion, "model", None)),
            generation_id=_text_or_none(getattr(completion, "id", None)),
            refusal=None if refusal is None else _whole(str(refusal)),
            not_sent=not_sent,
        )

    def _error_of(
        self, error: openai.APIError, arguments: Mapping[str, Any] | None = None
    ) -> LLMError:
        if isinstance(error, openai.APITimeoutError):
            return self._fail("timeout", f"no answer within {self.role.timeout:g} s")
        if isinstance(error, openai.APIStatusError):
            status, body = error.status_code, error_in(_body_of(error))
            retry_after = retry_after_of(error.response.headers)
            if retry_after is None:
                retry_after = stated_wait(body)
            words = f"{words_of(body)}{wait_text(retry_after)}"
            if arguments is not None and REQUIRE_PARAMETERS in excluded_by(body):
                words = f"{_too_many(arguments)}; {words}"
            return self._fail(
                kind_of(status, body), f"HTTP {status}: {words}", retry_after=retry_after
            )
        cause = error.__cause__ or error
        return self._fail("transport", f"the connection failed: {cause!r}")

    def _body_error(self, error: Any, completion: ChatCompletion) -> LLMError:
        code = error.get("code") if isinstance(error, Mapping) else None
        status = int(code) if isinstance(code, int | str) and str(code).isdecimal() else 500
        retry_after = stated_wait(error)
        words = f"{words_of(error)}{wait_text(retry_after)}"
        return self._fail(
            kind_of(status, error),
            f"an error instead of an answer, code {code}: {words}",
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


def create_arguments(
    role: Role, request: Request, supported: frozenset[str] | None = None
) -> dict[str, Any]:
    """What `chat.completions.create` is called with; of what is optional, only what is in
    `supported`, if that is known."""
    optional, _ = optional_arguments(role, request, supported)
    arguments: dict[str, Any] = {
        "model": role.model,
        "messages": [dict(message) for message in request.messages],
        **optional,
    }
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
        if role.is_openrouter and REQUIRE_PARAMETERS not in role.leave_out:
            # without it, a provider that cannot do this is asked for plain text
            extra["provider"] = {REQUIRE_PARAMETERS: True, **extra.get("provider", {})}
    if extra:
        arguments["extra_body"] = extra
    return arguments


def _body_of(error: openai.APIStatusError) -> Any:
    """The whole body: of one with an `error`, the library keeps nothing else."""
    try:
        return json.loads(error.response.text)
    except (ValueError, RecursionError):
        return error.response.text


def _too_many(arguments: Mapping[str, Any]) -> str:
    """What to do where no provider takes all that is asked for."""
    parameters = sorted(set(arguments) - {"model", "messages", "extra_body"})
    return (
        f"no provider takes {', '.join(parameters)} together: the role's leave_out="
        f'["seed","temperature","{REQUIRE_PARAMETERS}"] lists what not to send'
    )


def _read_content(content: Any) -> tuple[str | None, str | None]:
    """The text of a message's content and a refusal in it, also where it comes in parts; what the
    model thought to itself is no part of the text. No text (None) where there is anything else."""
    if content is None or isinstance(content, str):
        return content or "", None
    if not isinstance(content, list):
        return None, None
    texts, refusals = [], []
    for part in content:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind in ("thinking", "reasoning"):
            continue
        text = part.get("refusal" if kind == "refusal" else "text") if kind else part
        if not isinstance(text, str):
            return None, None
        (refusals if kind == "refusal" else texts).append(text)
    return "".join(texts), "".join(refusals) or None


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
