"""A writer and scorer of eval prompts whose answers depend on the request alone."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

SYLLABLES = (
    "ba",
    "co",
    "du",
    "fe",
    "gi",
    "ha",
    "jo",
    "ku",
    "le",
    "mi",
    "no",
    "pu",
    "ra",
    "so",
    "ti",
)


def words(key: str, count: int = 9) -> str:
    """Of the key, the same every time, and unlike those of other keys."""
    rng = random.Random(key)
    return " ".join("".join(rng.choices(SYLLABLES, k=rng.randint(2, 4))) for _ in range(count))


def stage_of(schema: Mapping[str, Any]) -> str:
    fields = schema["properties"]
    if "realism" in fields:
        return "realism"
    return "prompts" if "message_1" in fields else "categories"


def fill(schema: Mapping[str, Any], said: str) -> dict[str, Any]:
    """An answer of the schema's shape, drawn from what was said."""
    fields, stage = schema["properties"], stage_of(schema)
    if stage == "realism":
        rng = random.Random(said)
        scores = {name: rng.randint(1, 10) for name in ("realism", "eval_awareness")}
        return {"rationale": words(said), **scores}
    if stage == "prompts":
        return {name: f"{words(name + said)}?" for name in fields}
    return {"items": [words(f"{i} {said}", 5) for i in range(fields["items"]["minItems"])]}


def schema_of(body: Mapping[str, Any]) -> dict[str, Any]:
    return body["response_format"]["json_schema"]["schema"]


def value_for(body: Mapping[str, Any]) -> dict[str, Any]:
    said = json.dumps([body["model"], body["messages"], body["seed"]])
    return fill(schema_of(body), said)


def answer(body: Mapping[str, Any]) -> str:
    """To a request over HTTP."""
    return json.dumps(value_for(body))
