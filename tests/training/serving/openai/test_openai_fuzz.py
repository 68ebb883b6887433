"""Malformed bodies at both routes: refused in one shape, never a fault of the server.

uv run pytest tests/training/serving/openai/test_openai_fuzz.py
OPENAI_FUZZ_BODIES=10000 uv run pytest tests/training/serving/openai/test_openai_fuzz.py
"""

import asyncio
import json
import os
import random
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai_world import BASE, KEYS, OWNER, World, openai_world
from tiny_chat import save_chat_model

NUM_BODIES = int(os.environ.get("OPENAI_FUZZ_BODIES", "400"))
MESSAGES = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
VALID: dict[str, list[dict[str, Any]]] = {
    "/v1/chat/completions": [
        {"model": BASE, "messages": MESSAGES, "max_tokens": 2},
        {
            "model": BASE,
            "messages": MESSAGES,
            "max_tokens": 2,
            "logprobs": True,
            "top_logprobs": 2,
            "stop": ["x"],
            "stream": True,
            "stream_options": {"include_usage": True},
        },
        {
            "model": BASE,
            "messages": MESSAGES,
            "max_tokens": 2,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "a", "schema": SCHEMA},
            },
        },
    ],
    "/v1/completions": [
        {"model": BASE, "prompt": ["a", "b"], "max_tokens": 2, "echo": True, "logprobs": 2},
        {"model": BASE, "prompt": [5, 6, 7], "max_tokens": 1, "n": 2, "seed": 3, "stream": True},
    ],
}
ODD: list[Any] = [
    *(None, True, False, 0, -1, 1, 2**31, -(2**63), 10**40, 1.5, 1e308, -0.0, "", "a", "\x00"),
    *("🙂" * 50, "<|im_end|>", "../../etc/passwd", "tinker://a/sampler_weights/b", f"{BASE};x"),
    *(
        [],
        {},
        [[]],
        [None],
        ["a", 1],
        [[1], [2**40]],
        {"type": "zap"},
        {"a": {"b": []}},
        "y" * 9000,
    ),
    *([{"role": "user"}], [{"role": "user", "content": [{"type": "image_url"}]}]),
    *({"minLength": 10**9, "type": "string"}, {"pattern": "(a{900}){900}"}, {"$ref": "#"}),
    *({"allOf": [{"$ref": "#"}]}, {"minItems": 10**8, "items": {}, "type": "array"}),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("fuzz")
    folder = save_chat_model(place / "model", favourites="yes no")
    # answers without a limit end soon
    config = json.loads((place / "model" / "config.json").read_text())
    config["max_position_embeddings"] = 96
    (place / "model" / "config.json").write_text(json.dumps(config))
    with openai_world(place, folder) as made:
        yield made


def changed(value: Any, rng: random.Random) -> Any:
    """The value with one place of it made odd, left out or said again."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        key = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.2:
            return {**value, rng.choice(["tools", "zzz", key + "s", "n", "stop"]): rng.choice(ODD)}
        return {**value, key: changed(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.6:
        at = rng.randrange(len(value))
        return [*value[:at], changed(value[at], rng), *value[at + rng.randrange(2) :]]
    return rng.choice(ODD)


def body_of(valid: dict[str, Any], rng: random.Random) -> bytes:
    kind = rng.random()
    if kind < 0.05:
        return rng.randbytes(rng.randrange(60))
    value: Any = valid
    for _ in range(rng.randrange(1, 4)):
        value = changed(value, rng)
    data = json.dumps(value).encode()
    if kind < 0.2 and data:
        at = rng.randrange(len(data))
        return data[:at] + rng.randbytes(rng.randrange(3)) + data[at + rng.randrange(3) :]
    return data


def test_malformed_bodies_are_never_the_servers_fault(world: World) -> None:
    """O29: nothing above 4xx, no trace of the server's insides, and others' answers stay."""
    rng = random.Random(17)
    statuses: dict[int, int] = {}

    async def scenario() -> None:
        transport = httpx.ASGITransport(world.app, raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {KEYS[OWNER]}"}
        good = VALID["/v1/chat/completions"][0] | {"temperature": 0, "max_tokens": 8}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://server", headers=headers
        ) as client:

            async def answer() -> Any:
                reply = await client.post("/v1/chat/completions", json=good)
                return reply.json()["choices"]

            before = await answer()
            for _ in range(NUM_BODIES):
                path = rng.choice(list(VALID))
                body = body_of(rng.choice(VALID[path]), rng)
                try:
                    reply = await asyncio.wait_for(client.post(path, content=body), 600)
                except TimeoutError:
                    pytest.fail(f"no end of {path} {body!r}")
                statuses[reply.status_code] = statuses.get(reply.status_code, 0) + 1
                assert reply.status_code < 500, (body, reply.text)
                assert "Traceback" not in reply.text and ".py" not in reply.text, body
                if reply.status_code >= 400:
                    error = reply.json()["error"]
                    assert error["message"] and len(reply.content) < 4000, body
                elif reply.headers["content-type"].startswith("text/event-stream"):
                    assert reply.text.endswith("data: [DONE]\n\n"), (body, reply.text)
            assert await answer() == before

    world.run(scenario())
    assert statuses[400] > NUM_BODIES / 3 and statuses[200] > NUM_BODIES / 50
    assert world.service.engine(world.folder).sampler.rows == 0
