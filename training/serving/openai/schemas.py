"""JSON schemas that answers cannot be held to are refused with the place of what is wrong."""

import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import llguidance

from training.serving.errors import ServingError, bad_request

_SHARED = ("$defs", "definitions")
# what is shared first: other parts only point there
_OF_NAMES = (*_SHARED, "properties", "patternProperties", "dependentSchemas")
_OF_PLACES = ("prefixItems", "allOf", "anyOf", "oneOf")
_SINGLE = ("items", "additionalProperties", "not", "if", "then", "else", "contains")
# of parts that are tried alone to find what is wrong
_MOST_TRIED = 500


def check_schema(schema: dict[str, Any]) -> None:
    """Raises ServingError 400 where answers cannot be held to it; the message has a JSON pointer
    (RFC 6901) to the smallest part with that fault."""
    try:
        text = json.dumps(schema, sort_keys=True)
    except RecursionError:
        raise _refused("", "it is nested too deep") from None
    problem = _problem(text)
    if problem is not None:
        raise _refused(_place(schema, problem), problem)


def _refused(pointer: str, problem: str) -> ServingError:
    return bad_request(
        f"response_format.json_schema.schema at #{pointer}: {problem}; answers cannot be "
        "held to this schema",
        param="response_format",
        code="invalid_json_schema",
    )


@lru_cache(maxsize=256)
def _problem(text: str) -> str | None:
    """The first line of what is wrong with a schema."""
    try:
        grammar = llguidance.LLMatcher.grammar_from_json_schema(text)
    except ValueError as error:
        return str(error).split("\n", 1)[0]
    is_wrong, messages = llguidance.LLMatcher.validate_grammar_with_warnings(grammar)
    return messages[0].split("\n", 1)[0].rstrip(":") if is_wrong else None


def _place(schema: dict[str, Any], problem: str) -> str:
    """Where the smallest part stands that has this problem by itself."""
    shared = {name: schema[name] for name in _SHARED if name in schema}
    pointer, part, tried = "", schema, 0
    while True:
        for name, inner in _parts(part):
            tried += 1
            if tried > _MOST_TRIED:
                return pointer
            if _problem(json.dumps({**shared, **inner}, sort_keys=True)) == problem:
                pointer, part = f"{pointer}/{name}", inner
                break
        else:
            return pointer


def _parts(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schemas right below one, with their pointers from it."""
    for key in _OF_NAMES:
        if isinstance(named := schema.get(key), dict):
            for name, inner in named.items():
                if isinstance(inner, dict):
                    yield f"{key}/{_escaped(name)}", inner
    for key in _OF_PLACES:
        if isinstance(listed := schema.get(key), list):
            for at, inner in enumerate(listed):
                if isinstance(inner, dict):
                    yield f"{key}/{at}", inner
    for key in _SINGLE:
        if isinstance(inner := schema.get(key), dict):
            yield key, inner


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
