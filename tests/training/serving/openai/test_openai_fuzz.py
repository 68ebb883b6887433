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
from fuzzing import OPENAI_BODIES, json_body
from openai_world import KEYS, OWNER, World, openai_world
from tiny_chat import save_chat_model

NUM_BODIES = int(os.environ.get("OPENAI_FUZZ_BODIES", "400"))


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


def test_malformed_bodies_are_never_the_servers_fault(world: World) -> None:
    """O29: nothing above 4xx, no trace of the server's insides, and others' answers stay."""
    rng = random.Random(17)
    statuses: dict[int, int] = {}

    async def scenario() -> None:
        transport = httpx.ASGITransport(world.app, raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {KEYS[OWNER]}"}
        good = OPENAI_BODIES["/v1/chat/completions"][0] | {"temperature": 0, "max_tokens": 8}
        async with httpx.AsyncClient(
            transport=transport, base_url="http://server", headers=headers
        ) as client:

            async def answer() -> Any:
                reply = await client.post("/v1/chat/completions", json=good)
                return reply.json()["choices"]

            before = await answer()
            for _ in range(NUM_BODIES):
                path = rng.choice([p for p in OPENAI_BODIES if p.endswith("completions")])
                body = json_body(rng.choice(OPENAI_BODIES[path]), rng)
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
