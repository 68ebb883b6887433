"""What an LLM endpoint is asked, what it answers and how it fails; every provider speaks this."""

from __future__ import annotations

import json
import math
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Message = Mapping[str, str]
Kind = Literal[
    "transport",
    "timeout",
    "rate",
    "server",
    "auth",
    "payment",
    "bad_request",
    "not_found",
    "too_long",
    "refusal",
    "content_filter",
    "truncated",
    "empty",
    "invalid_json",
    "invalid_schema",
    "budget",
    "not_started",
]

MAX_TOKENS_FIELDS = ("max_tokens", "max_completion_tokens")
HOSTS_THAT_WANT_KEYS = ("openrouter.ai", "api.openai.com")
REQUIRE_PARAMETERS = "require_parameters"
# what a role need not send
OPTIONAL = ("seed", "temperature", REQUIRE_PARAMETERS)
# what a request says itself, what would change the shape of the answer, and what providers ignore
NOT_IN_EXTRA_BODY = (
    *("model", "messages", "response_format", "temperature", "seed", *MAX_TOKENS_FIELDS),
    *("stream", "n", "usage"),
)


@dataclass(frozen=True)
class Role:
    """One model with one job in a run: generator, judge, target, ...

    `base_url` None is a model in this process. `api_key_env` names the variable with the key; None
    sends none. `timeout` is seconds per call, everything included. `seed` is what each sample's own
    seed is derived from. `schema_bounds` says whether an endpoint is sent the bounds of a schema or
    reads them in descriptions; None sends them except to OpenRouter, some of whose providers answer
    400 to them. They are checked here in any case. `max_concurrency` overrides the client's.
    `leave_out` names what is never sent: the seed or the temperature, so that the server's own
    counts, or OpenRouter's provider.require_parameters, which structured calls have otherwise.
    """

    name: str
    model: str
    base_url: str | None = None
    api_key_env: str | None = None
    max_tokens_field: str = "max_tokens"
    temperature: float | None = None
    max_tokens: int = 1024
    timeout: float = 300.0
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    schema_bounds: bool | None = None
    max_concurrency: int | None = None
    leave_out: Sequence[str] = ()

    @property
    def host(self) -> str | None:
        """The host that base_url names, in lower case."""
        return None if self.base_url is None else urllib.parse.urlsplit(self.base_url).hostname

    @property
    def is_openrouter(self) -> bool:
        host = self.host or ""
        return host == "openrouter.ai" or host.endswith(".openrouter.ai")

    def check(self) -> list[str]:
        """What is wrong with this role, a message each; nothing is called."""
        problems = []

        def require(good: bool, name: str, wanted: str) -> None:
            if not good:
                problems.append(f"{self.name}.{name}={getattr(self, name)!r}: {wanted}")

        require(bool(self.name), "name", "must not be empty")
        require(bool(self.model), "model", "must name a model")
        require(
            self.max_tokens_field in MAX_TOKENS_FIELDS,
            "max_tokens_field",
            f"must be one of {', '.join(MAX_TOKENS_FIELDS)}",
        )
        require(
            self.temperature is None or 0 <= self.temperature <= 2,
            "temperature",
            "must be in 0..2, or None for the provider's own",
        )
        require(self.max_tokens >= 1, "max_tokens", "must be at least 1")
        require(
            math.isfinite(self.timeout) and self.timeout > 0,
            "timeout",
            "must be a finite number of seconds above 0",
        )
        require(self.seed is None or self.seed >= 0, "seed", "must be 0 or more, or None")
        require(
            self.max_concurrency is None or self.max_concurrency >= 1,
            "max_concurrency",
            "must be at least 1, or None for the client's",
        )
        problems += self._leave_out_problems() + self._extra_body_problems()
        if self.base_url is not None:
            url_problems = self._url_problems(self.base_url)
            problems += url_problems or self._key_problems() + self._provider_problems()
        return problems

    def _leave_out_problems(self) -> list[str]:
        problems = []
        unknown = [name for name in self.leave_out if name not in OPTIONAL]
        if unknown:
            problems.append(
                f"{self.name}.leave_out names {unknown}; allowed are {', '.join(OPTIONAL)}"
            )
        for name in ("seed", "temperature"):
            if name in self.leave_out and getattr(self, name) is not None:
                problems.append(
                    f"{self.name}.{name}={getattr(self, name)!r} is set, and leave_out names it; "
                    "take one of them out"
                )
        return problems

    def _extra_body_problems(self) -> list[str]:
        problems = []
        for name in NOT_IN_EXTRA_BODY:
            if name in self.extra_body:
                advice = f'; leave_out=["{name}"] keeps it unsent' if name in OPTIONAL else ""
                problems.append(
                    f"{self.name}.extra_body sets {name!r}, which is not its place; take it out"
                    f"{advice}"
                )
        try:
            json.dumps(self.extra_body, allow_nan=False)
        except (TypeError, ValueError) as error:
            problems.append(f"{self.name}.extra_body is no JSON: {error}")
        return problems

    def _provider_problems(self) -> list[str]:
        provider = self.extra_body.get("provider", {})
        if not self.is_openrouter or isinstance(provider, Mapping):
            return []
        return [f"{self.name}.extra_body.provider={provider!r}: must be a mapping"]

    def _url_problems(self, base_url: str) -> list[str]:
        wanted = "must look like https://host[:port]/v1"
        try:
            url = urllib.parse.urlsplit(base_url)
            plain = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
        except ValueError:
            return [f"{self.name}.base_url={base_url!r}: {wanted}"]
        # such a URL may hold a secret, so it is not repeated
        if url.username is not None or url.password is not None or url.query or url.fragment:
            return [
                f"{self.name}.base_url {wanted}, without user, password, query or fragment; "
                "a key belongs into the variable that api_key_env names"
            ]
        return [] if plain else [f"{self.name}.base_url={base_url!r}: {wanted}"]

    def _key_problems(self) -> list[str]:
        if self.api_key_env is None:
            if self.host in HOSTS_THAT_WANT_KEYS:
                return [
                    f"{self.name}.api_key_env=None: {self.host} wants a key; name the environment "
                    "variable that holds it"
                ]
            return []
        key = os.environ.get(self.api_key_env, "")
        if not key:
            return [
                f"{self.name}.api_key_env: {self.api_key_env} is not set; export it or write it "
                "into .env"
            ]
        if not key.isascii() or not key.isprintable() or " " in key:
            return [
                f"{self.name}.api_key_env: {self.api_key_env} holds a space or another character "
                "that no key has"
            ]
        return []


@dataclass(frozen=True)
class Request:
    """One chat to be continued. `json_schema` is strict and asks for JSON; `sample_index` tells
    apart samples of the same prompt, and `seed` already differs between them."""

    messages: Sequence[Message]
    json_schema: Mapping[str, Any] | None
    sample_index: int
    max_tokens: int
    temperature: float | None
    seed: int | None


@dataclass(frozen=True)
class Usage:
    """Tokens of one call, and its cost in US dollars where the provider reports it."""

    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None = None


@dataclass(frozen=True)
class Reply:
    """What came back. `finish_reason` is stop, length, content_filter, error, or what the provider
    says; `usage` None where it says none; `model` is the one that answered, which need not be the
    one asked for. `not_sent` are the parameters of the request that the endpoint left out since the
    model does not take them."""

    text: str
    finish_reason: str | None
    usage: Usage | None
    provider: str | None = None
    model: str | None = None
    generation_id: str | None = None
    refusal: str | None = None
    not_sent: tuple[str, ...] = ()


class LLMError(Exception):
    """A call without a usable answer; `kind` says why.

    `retry_after` is the wait in seconds the server asked for; `reply` is what came back where
    something did, with its usage, which was paid for all the same.
    """

    def __init__(
        self,
        kind: Kind,
        role: str,
        detail: str,
        *,
        retry_after: float | None = None,
        reply: Reply | None = None,
    ) -> None:
        super().__init__(f"{role}: {kind}: {detail}")
        self.kind: Kind = kind
        self.role = role
        self.detail = detail
        self.retry_after = retry_after
        self.reply = reply


class Endpoint(Protocol):
    """A provider of one role's model.

    `complete` makes one call without retries. It returns whatever the model said, also when it is
    cut off, empty, a refusal or no JSON, and raises LLMError where there is no reply. The client
    cancels it after `role.timeout` seconds.
    """

    @property
    def role(self) -> Role: ...

    async def complete(self, request: Request) -> Reply: ...

    async def close(self) -> None: ...
