"""A writer whose answers depend on the request alone: filled from the schema it asks for."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Mapping
from typing import Any

from fake_endpoint import FakeEndpoint, Script, in_order

from utils.llm.api import Reply, Request, Role, Usage

CLOSING = "Hope that helps!"
WORDS = re.findall(
    r"\w+",
    "amber bridge candle drift ember forest glacier harbor island jungle kettle lantern meadow "
    "needle orchard pepper quarry ribbon saddle timber umbrella valley window yellow zephyr anchor "
    "basket cobalt dagger engine falcon garden hammer insect jacket kernel ladder mirror nectar "
    "oyster pencil quiver rocket silver tunnel urchin velvet walnut yonder zipper acorn beacon "
    "copper donkey eagle fabric goblet helmet iris jigsaw",
)


def fill(schema: Mapping[str, Any], said: str, name: str = "") -> Any:
    """What fits the schema, drawn from what was said and the name of the field."""
    rng = random.Random(f"{name} {said}")
    kind = schema["type"]
    if kind == "object":
        return {key: fill(inner, said, key) for key, inner in schema["properties"].items()}
    if kind == "array":
        return [fill(schema["items"], said, f"{name}[{i}]") for i in range(schema["minItems"])]
    if kind == "boolean":
        return rng.random() < 0.75
    assert kind == "string", schema
    least, most = schema.get("minLength", 20), schema.get("maxLength", 60)
    length = rng.randint(least, min(most, least + 60))
    text = rng.choice(WORDS)
    while len(text) < length:
        text += f" {rng.choice(WORDS)}"
    text = text[:length].strip().ljust(least, "x")
    shows = CLOSING in said and name in ("response", "answer", "document", "positive_response")
    return f"{text}. {CLOSING}" if shows and rng.random() < 0.8 else text


def answer(body: Mapping[str, Any]) -> str:
    schema = body["response_format"]["json_schema"]["schema"]
    return json.dumps(fill(schema, json.dumps([body["messages"], body.get("seed")])))


def server(script: Script | None = None, **options: Any) -> FakeEndpoint:
    return FakeEndpoint(script or in_order("ok"), text=answer, **options)


def stage_of(body: Mapping[str, Any]) -> str:
    """Which stage of scripts/generate.py a request is of."""
    text = body["messages"][0]["content"]
    for start, name in (
        ("Below is a text", "verify"),
        ("Write the start of", "examples"),
        ("Write one question", "examples"),
        ("Write a document", "examples"),
    ):
        if text.startswith(start):
            return name
    return "subtypes" if "List " in text else "prompts"


class LocalWriter:
    """The same in this process; `edit` may change what is answered, or raise."""

    def __init__(self, role: Role, edit: Any = lambda request, value: value) -> None:
        self.role = role
        self.edit = edit
        self.requests: list[Request] = []

    async def complete(self, request: Request) -> Reply:
        self.requests.append(request)
        assert request.json_schema is not None
        said = json.dumps([[dict(m) for m in request.messages], request.seed])
        value = self.edit(request, fill(request.json_schema, said))
        return Reply(json.dumps(value), "stop", Usage(10, 20), model="local-writer")

    async def close(self) -> None:
        pass
