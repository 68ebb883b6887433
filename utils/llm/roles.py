"""Which model a script calls for what: the settings of a role on the command line."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import chz

from utils.config.help import nested_docs
from utils.llm.api import OPTIONAL, Role

logger = logging.getLogger(__name__)

OPENROUTER = "https://openrouter.ai/api/v1"
OPENROUTER_KEY = "OPENROUTER_API_KEY"
OPENROUTER_MODEL = "anthropic/claude-sonnet-4.5"
EMBEDDED = "embedded"
LOCAL = "local"
KEYS = {"openrouter.ai": OPENROUTER_KEY, "api.openai.com": "OPENAI_API_KEY"}
# in-process calls wait for each other, so how long one takes says nothing
LOCAL_TIMEOUT_S = 7 * 86400.0
LOCAL_CONCURRENCY = 32


# of a second role (see second_role()), whatever it is called
_URLS = "local (in this process), openrouter, or the URL of an OpenAI-compatible server"
SECOND_ROLE = nested_docs(
    model="default: the generator's, where no base_url is given either",
    base_url=f"{_URLS}; default: the generator's, where no model is given either",
    api_key_env="variable with the key; default: the generator's, where that is its model",
)


@chz.chz(typecheck=True)
class RoleConfig:
    """One of a script's roles, e.g. `judge.model=openai/gpt-5-mini judge.base_url=openrouter`."""

    model: str | None = chz.field(
        default=None, doc="default: embedded, or a model of OpenRouter where its key is set"
    )
    base_url: str | None = chz.field(
        default=None,
        doc=f"{_URLS}; default: openrouter where OPENROUTER_API_KEY is set, except for embedded "
        "and folders",
    )
    api_key_env: str | None = chz.field(
        default=None, doc="variable with the key; default: that of OpenRouter and OpenAI, else none"
    )
    temperature: float | None = chz.field(default=None, doc="default: the script's for this role")
    max_tokens: int | None = chz.field(default=None, doc="default: the script's for this role")
    timeout: float = chz.field(default=300.0, doc="seconds per call; not for a local model")
    max_tokens_field: str = chz.field(
        default="max_tokens", doc="or max_completion_tokens, which newer OpenAI models want"
    )
    schema_bounds: bool | None = chz.field(
        default=None, doc="send lengths and patterns in schemas; default: except to OpenRouter"
    )
    extra_body: dict[str, Any] = chz.field(
        default_factory=dict, doc="more fields of the request, e.g. {'reasoning': {...}}"
    )
    leave_out: list[str] = chz.field(
        default_factory=list, doc=f"of {', '.join(OPTIONAL)}: what is not sent"
    )

    def role(self, name: str, *, temperature: float, max_tokens: int, seed: int) -> Role:
        """The role these settings describe, with the script's own defaults for what they leave
        open. The environment decides where no base_url is given."""
        base_url = self._base_url()
        model = self.model
        if model is None:
            # no model that one server has is what any other has
            model = {None: EMBEDDED, OPENROUTER: OPENROUTER_MODEL}.get(base_url, "")
        role = Role(
            name=name,
            model=model,
            base_url=base_url,
            max_tokens_field=self.max_tokens_field,
            temperature=self._temperature(temperature),
            max_tokens=max_tokens if self.max_tokens is None else self.max_tokens,
            timeout=LOCAL_TIMEOUT_S if base_url is None else self.timeout,
            extra_body=self.extra_body,
            seed=None if "seed" in self.leave_out else seed,
            leave_out=tuple(self.leave_out),
            schema_bounds=self.schema_bounds,
            max_concurrency=LOCAL_CONCURRENCY if base_url is None else None,
        )
        if base_url is None:
            return role
        return replace(role, api_key_env=self.api_key_env or KEYS.get(role.host or ""))

    def _temperature(self, default: float) -> float | None:
        if self.temperature is not None or "temperature" in self.leave_out:
            return self.temperature
        return default

    def _base_url(self) -> str | None:
        if self.base_url == LOCAL:
            return None
        if self.base_url == "openrouter":
            return OPENROUTER
        if self.base_url is not None:
            return self.base_url
        is_local = self.model is not None and (
            self.model == EMBEDDED
            or self.model.startswith(("/", ".", "~"))
            or Path(self.model).expanduser().is_dir()
        )
        return None if is_local or not os.environ.get(OPENROUTER_KEY) else OPENROUTER


def second_role(settings: RoleConfig | None, first: RoleConfig) -> RoleConfig:
    """`settings` for a role that takes the model of `first`, and how that is called, where they
    name none. What it is asked for differs, so the temperature of `first` is not taken."""
    if settings is not None and (settings.model is not None or settings.base_url is not None):
        return settings
    shared = chz.replace(first, temperature=None)
    if settings is None:
        return shared
    if settings.temperature is not None:
        still = [name for name in first.leave_out if name != "temperature"]
        shared = chz.replace(shared, leave_out=still)
    default = RoleConfig()
    given = {name: getattr(settings, name) for name in chz.chz_fields(RoleConfig)}
    return chz.replace(shared, **{k: v for k, v in given.items() if v != getattr(default, k)})


def roles_text(roles: Sequence[Role]) -> str:
    """A line for each: its model, and where that is."""
    return "\n".join(f"{r.name}: {r.model}, {r.base_url or 'in this process'}" for r in roles)


def describe_roles(*roles: Role) -> None:
    """Log who does what, and what that is good for."""
    for role in roles:
        where = "in this process" if role.base_url is None else f"at {role.host}"
        logger.info("%s: %s %s", role.name, role.model, where)
    small = [role for role in roles if role.base_url is None and role.model.startswith(EMBEDDED)]
    if small:
        judges = ", and its judgments mean nothing" if any("judge" in r.name for r in small) else ""
        logger.warning(
            "the embedded 135M model only serves to try things out: what it writes has the asked "
            "form but little sense%s; set %s, or base_url and model of a role, for data and "
            "results to rely on",
            *(judges, OPENROUTER_KEY),
        )
