"""What a request says besides its messages, and what of that a model takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from utils.llm.api import MAX_TOKENS_FIELDS, Request, Role


def supported_parameters(listing: Any, model: str) -> frozenset[str] | None:
    """The parameters that `model` takes according to the body of GET {base_url}/models; None where
    that does not tell, as with most servers but OpenRouter.

    A variant that is not listed itself (`:nitro`, `:floor`, ...) takes what its model takes.
    """
    entries = listing.get("data") if isinstance(listing, Mapping) else None
    if not isinstance(entries, list):
        return None
    listed = {
        e["id"]: e for e in entries if isinstance(e, Mapping) and isinstance(e.get("id"), str)
    }
    entry = listed.get(model) or listed.get(model.rpartition(":")[0]) or {}
    names = entry.get("supported_parameters")
    return frozenset(map(str, names)) if isinstance(names, list) else None


def optional_arguments(
    role: Role, request: Request, supported: frozenset[str] | None = None
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The arguments of a call that a server can do without, and the names of those that are not
    sent since the model does not take them. What is not known (None) is sent."""
    wanted = {
        role.max_tokens_field: request.max_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
    }
    sent, left_out = {}, []
    for name, value in wanted.items():
        if value is None:
            continue
        # the limit has two names, and a model may know only the other
        names = [name, *MAX_TOKENS_FIELDS] if name in MAX_TOKENS_FIELDS else [name]
        taken = [name for name in names if supported is None or name in supported]
        if taken:
            sent[taken[0]] = value
        else:
            left_out.append(name)
    return sent, tuple(left_out)
