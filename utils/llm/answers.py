"""Whether a reply is an answer: complete, not refused, not empty, and of the asked-for shape."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from utils.json_files import unique_keys
from utils.llm.api import Kind, LLMError, Reply

M = TypeVar("M", bound=BaseModel)

SHOWN_PROBLEMS = 5
SHOWN_TEXT = 120
# <think>, <thinking>, [THINK], and their ends
TAG = re.compile(
    r"[<\[](?P<end>/?)(?P<name>think(?:ing)?|thoughts?|reasoning|reflection|scratchpad)[>\]]",
    re.IGNORECASE,
)
BRACE = re.compile(r"[{}]")
# a string without an end reaches to the end of the text, so that none is read twice
INSIDE = re.compile(r'[{}]|"(?:[^"\\]|\\.)*+"?', re.DOTALL)


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

    The text is JSON, or holds exactly one object: between sentences, in a fence, after a think
    block. A key that stands twice in an object is no answer, nor are two objects that differ.
    """
    text = require_text(reply, role)
    try:
        value = _json_in(text)
    except (ValueError, RecursionError) as error:
        detail = f"not JSON ({error}): {_shown(text)}"
        raise LLMError("invalid_json", role, detail, reply=reply) from None
    try:
        # strict, because "no" would pass for False and True for a score of 1
        return model.model_validate(value, strict=True)
    except ValidationError as error:
        detail = _problems_of(error)
        raise LLMError("invalid_schema", role, detail, reply=reply) from None


def _json_in(text: str) -> Any:
    """Raises the ValueError or RecursionError of reading the barest form of `text`, where no form
    of it is JSON."""
    text = text.removeprefix("\ufeff")
    answer = _after_thought(text)
    readings: list[tuple[Callable[[str], Any], str]] = [(_strict_json, text), (_only_object, text)]
    # strings of an answer may hold all that answers are wrapped in, so the whole text comes first
    readings += [(_strict_json, answer), (_only_object, answer)] if answer != text else []
    for read, form in readings[:-1]:
        with contextlib.suppress(ValueError, RecursionError):
            return read(form)
    read, form = readings[-1]
    return read(form)


def _strict_json(text: str) -> Any:
    value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=unique_keys)
    # half of a surrogate pair can be written as \ud83d but never be sent or stored again
    json.dumps(value, ensure_ascii=False).encode("utf-8")
    return value


def _after_thought(text: str) -> str:
    """`text` without the think block that it begins with. Some templates open that in the prompt,
    so that only its end is in the answer."""
    opened = None
    for tag in TAG.finditer(text):
        name = tag["name"].lower()
        if tag["end"] and opened in (None, name):
            return text[tag.end() :]
        if opened is None:
            if text[: tag.start()].strip():
                return text
            opened = name
    return text


def _only_object(text: str) -> Any:
    """The one object in `text`, between sentences, fences or nothing. The same object again is no
    other; of two that differ, or beside a thought, nobody knows which is meant."""
    around, spans = _objects_in(text)
    if not spans:
        raise ValueError("no JSON object in it")
    if any(TAG.search(part) for part in around):
        raise ValueError("a thought beside the answer")
    before, after = around[0].rstrip(), around[-1].lstrip()
    if before.endswith("[") or after.startswith("]"):
        raise ValueError("a list around the answer")
    first = _strict_json(spans[0])
    # written, since 1 == True in Python
    written = json.dumps(first, sort_keys=True)
    for span in spans[1:]:
        if json.dumps(_strict_json(span), sort_keys=True) != written:
            raise ValueError("several objects that differ; write one")
    return first


def _objects_in(text: str) -> tuple[list[str], list[str]]:
    """What stands in outermost braces and has members, and the parts of the text around it.

    Raises ValueError where a brace has no partner, since a part of an object is not what was meant.
    Every character is passed once.
    """
    around, spans, done = [], [], 0
    place = BRACE.search(text)
    while place is not None:
        start, end, depth = place.start(), len(text), 0
        for piece in INSIDE.finditer(text, start):
            depth += {"{": 1, "}": -1}.get(piece[0], 0)
            if depth <= 0:
                end = piece.end()
                break
        # -1 of one that closes and was never opened
        if depth != 0:
            raise ValueError(f"the brace at character {start + 1} has no partner")
        # as of a set or of a formula
        if ":" in text[start:end]:
            around.append(text[done:start])
            spans.append(text[start:end])
            done = end
        place = BRACE.search(text, end)
    return [*around, text[done:]], spans


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
