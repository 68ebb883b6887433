"""Whether a reply is an answer: complete, not refused, not empty, and of the asked-for shape."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from utils.llm_api import Kind, LLMError, Reply

M = TypeVar("M", bound=BaseModel)

SHOWN_PROBLEMS = 5
SHOWN_TEXT = 120
FENCE = "```"
LANGUAGE = re.compile(r"^[\w-]*")


def require_text(reply: Reply, role: str, *, allow_truncated: bool = False) -> str:
    """The text of a reply, or the LLMError that says why there is none."""

    def fail(kind: Kind, detail: str) -> NoReturn:
        raise LLMError(kind, role, detail, reply=reply)

    if reply.finish_reason == "length" and not (allow_truncated and reply.text.strip()):
        spent = f" ({reply.usage.completion_tokens} tokens)" if reply.usage is not None else ""
        fail("truncated", f"cut off at the token limit{spent}: {_shown(reply.text)}")
    if reply.finish_reason == "content_filter":
        fail("content_filter", "the provider's filter stopped the answer")
    if reply.finish_reason == "error":
        fail("server", "the provider broke off the answer")
    if reply.refusal:
        fail("refusal", _shown(reply.refusal))
    if not reply.text.strip():
        fail("empty", f"no text, finish_reason {reply.finish_reason}")
    return reply.text


def require_model(reply: Reply, role: str, model: type[M]) -> M:
    """The answer as a `model`, or an LLMError; its detail tells the writer what to mend.

    The text is JSON, or has it after one think block, in one fence that ends it, or both.
    """
    text = require_text(reply, role)
    try:
        value = _json_in(text)
    except (ValueError, RecursionError) as error:
        detail = f"not JSON ({error}): {_shown(text)}"
        raise LLMError("invalid_json", role, detail, reply=reply) from None
    try:
        return model.model_validate(value)
    except ValidationError as error:
        detail = _problems_of(error)
        raise LLMError("invalid_schema", role, detail, reply=reply) from None


def _json_in(text: str) -> Any:
    """Raises the ValueError or RecursionError of reading the barest form of `text`, where no form
    of it is JSON."""
    answer = _after_thought(text)
    *wrapped, barest = dict.fromkeys([text, _in_fence(text), answer, _in_fence(answer)])
    for form in wrapped:
        with contextlib.suppress(ValueError, RecursionError):
            return _strict_json(form)
    return _strict_json(barest)


def _strict_json(text: str) -> Any:
    value = json.loads(text, parse_constant=_no_constant)
    # half of a surrogate pair can be written as \ud83d but never be sent or stored again
    json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _after_thought(text: str) -> str:
    """`text` without the think block that it begins with. Some templates open that in the prompt,
    so that only its end is in the answer."""
    thought, closed, rest = text.partition("</think>")
    leads = "<think>" not in thought or thought.lstrip().startswith("<think>")
    return rest if closed and leads else text


def _in_fence(text: str) -> str:
    """What stands in the fence that `text` ends with."""
    _, opened, fenced = text.partition(FENCE)
    fenced = fenced.rstrip()
    if opened and fenced.endswith(FENCE):
        return LANGUAGE.sub("", fenced.removesuffix(FENCE), count=1)
    return text


def _problems_of(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    shown = [
        f"{'.'.join(str(part) for part in problem['loc']) or 'the answer'}: {problem['msg']}"
        for problem in problems[:SHOWN_PROBLEMS]
    ]
    if len(problems) > SHOWN_PROBLEMS:
        shown.append(f"and {len(problems) - SHOWN_PROBLEMS} more")
    return "; ".join(shown)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN_TEXT else text[:SHOWN_TEXT] + "...")
