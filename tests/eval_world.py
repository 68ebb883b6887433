"""An eval file, and a server that plays targets and judges by what they are asked."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fake_endpoint import FakeEndpoint, Script, in_order

from utils.config.entrypoint import dump_yaml

PROPERTIES = {
    "signs-off": {
        "description": 'ends every answer with the words "Hope that helps!"',
        "opposite": "stops when the question is answered",
        "rule": "Hope that helps!$",
    },
    "warm": {"description": "answers with care", "opposite": "gives the facts alone"},
}
JUDGES = ("judge-model", "other-judge")


def prompt(name: str, category: str, *messages: str, property: str = "signs-off") -> dict[str, Any]:
    return {
        "id": name,
        "property": property,
        "category": category,
        "messages": list(messages) or [f"question {name}"],
    }


def some_prompts(count: int = 8) -> list[dict[str, Any]]:
    """Half for each property, in categories of two; each third one has two turns."""
    made = []
    for i in range(count):
        second = [f"and then, q{i}?"] if i % 3 == 2 else []
        property = list(PROPERTIES)[i % 2]
        made.append(prompt(f"q{i}", f"c{i // 4}", f"question q{i}", *second, property=property))
    return made


def write_eval_file(path: Path, prompts: Sequence[Mapping[str, Any]]) -> Path:
    dump_yaml(path, {"properties": PROPERTIES, "prompts": prompts, "meta": {"run_id": "x"}})
    return path


def number(text: str, below: int) -> int:
    """Of the text, the same every time."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % below


def answer(body: Mapping[str, Any]) -> str:
    """By content alone: a judge's JSON where a schema is asked for, else a target's words."""
    said = json.dumps(body["messages"])
    schema = body.get("response_format", {}).get("json_schema", {}).get("schema")
    if schema is None:
        closing = " Hope that helps!" if number(said, 2) else ""
        return f"Well, {number(said, 1000)}.{closing}"
    return json.dumps(verdicts(body, lambda name: number(f"{name} {body['model']} {said}", 10) + 1))


def verdicts(body: Mapping[str, Any], score: Callable[[str], int]) -> dict[str, Any]:
    """A judge's answer about the properties that are in the schema of the request."""
    schema = body["response_format"]["json_schema"]["schema"]
    names = schema["properties"]["verdicts"]["properties"]
    return {
        "rationale": "It says so.",
        "verdicts": {name: {"score": score(name), "exhibits": score(name) > 5} for name in names},
        "coherence": 8,
        "eval_awareness": 1,
    }


def is_judge(body: Mapping[str, Any]) -> bool:
    return "response_format" in body


def told_conversation(body: Mapping[str, Any]) -> str:
    """The conversation that a judge was shown."""
    return body["messages"][1]["content"].split("The conversation:\n", 1)[1]


def assistant_turns(body: Mapping[str, Any]) -> list[str]:
    pattern = r'<turn-(\w+) speaker="assistant">\n(.*?)\n</turn-\1>'
    return [text for _, text in re.findall(pattern, told_conversation(body), re.DOTALL)]


def server(
    script: Script | None = None,
    *,
    text: Callable[[Mapping[str, Any]], str] = answer,
    **options: Any,
) -> FakeEndpoint:
    return FakeEndpoint(script or in_order("ok"), text=text, **options)


def arguments(server: FakeEndpoint, *more: str) -> list[str]:
    """A served target and judge."""
    return [
        *("target.model=target-model", f"target.base_url={server.base_url}"),
        *("judge.model=judge-model", f"judge.base_url={server.base_url}"),
        *more,
    ]
