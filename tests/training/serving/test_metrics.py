"""/metrics, as Prometheus reads it.

uv run pytest tests/training/serving/test_metrics.py
"""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from host_world import OWNER, PROMPT, Client, data_of
from openai_world import BASE, KEYS, World, openai_world
from prometheus_client.parser import text_string_to_metric_families
from tiny_chat import save_chat_model

from training.api import SamplingParams

AUTHORIZED = {"Authorization": f"Bearer {KEYS[OWNER]}"}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("metrics")
    with openai_world(place, save_chat_model(place / "model", favourites="yes no")) as made:
        yield made


def figures(world: World) -> dict[tuple[str, ...], float]:
    """By name and the values of the labels."""
    reply = httpx.get(f"{world.url}/metrics", headers=AUTHORIZED)
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


def test_figures_are_for_those_with_a_key(world: World) -> None:
    for headers in ({}, {"X-API-Key": "tml-wrong-0123456789"}):
        assert httpx.get(f"{world.url}/metrics", headers=headers).status_code == 401


def test_what_was_done_is_counted(world: World) -> None:
    before = figures(world)

    async def work() -> None:
        client = Client(world.host)
        model = await client.create(BASE)
        # 8 and 11 positions
        await client.train(model, data_of(0, (9, 12)))
        sampler = await client.snapshot(model)
        await client.sample(sampler, PROMPT, 3, SamplingParams(max_tokens=5, stop=[]))

    world.run(work())
    after = figures(world)

    def more(name: str) -> float:
        return after[(f"autodidact_{name}",)] - before[(f"autodidact_{name}",)]

    assert more("trained_tokens_total") == 19 and more("sampled_tokens_total") == 15
    assert (more("sessions"), more("models"), more("samplers")) == (1, 1, 1)
    assert after["autodidact_waiting",] == after["autodidact_running",] == 0
    assert more("uptime_seconds") > 0
    if ("process_resident_memory_bytes",) in after:
        assert after["process_resident_memory_bytes",] > 10e6


def test_what_waits_is_told(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> dict[str, Any]:
        client = Client(world.host)
        model = await client.create(BASE)
        world.host._scheduler.hold(world.host._trained._models[model].lane, is_held=True)
        await client.post_train(model, data_of(0))
        await asyncio.sleep(0)
        return {"lane": world.host._trained._models[model].lane}

    lane = world.run(scenario())["lane"]
    try:
        assert figures(world)["autodidact_waiting",] == 1
    finally:
        world.loop.call_soon_threadsafe(lambda: world.host._scheduler.hold(lane, is_held=False))


def test_latencies_are_by_route_and_not_by_what_clients_write(world: World) -> None:
    def count(method: str, route: str, status: str) -> float:
        found = figures(world)
        return found.get(("autodidact_request_seconds_count", method, route, status), 0.0)

    # the key of another is not there; names of models do not become routes
    for name in ("a", "b", "c"):
        httpx.get(f"{world.url}/v1/models/{name}", headers=AUTHORIZED)
    assert count("GET", "/v1/models/{name:path}", "404") == 3
    for path in ("x1", "x2"):
        httpx.get(f"{world.url}/v1/models/{path}")
    assert count("GET", "none", "401") >= 2
    httpx.request("BREW", f"{world.url}/healthz")
    assert count("other", "/healthz", "405") == 1
    httpx.post(
        f"{world.url}/v1/chat/completions",
        headers=AUTHORIZED,
        json={"model": BASE, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2},
    )
    assert count("POST", "/v1/chat/completions", "200") == 1
    assert not any("x1" in part or "BREW" in part for key in figures(world) for part in key)


def test_the_words_for_each_figure_are_there(world: World) -> None:
    text = httpx.get(f"{world.url}/metrics", headers=AUTHORIZED).text
    for family in text_string_to_metric_families(text):
        assert family.documentation, family.name
    documented = (Path(__file__).parents[3] / "docs/serving.md").read_text(encoding="utf-8")
    for name in ("waiting", "running", "sampled_tokens_total", "trained_tokens_total"):
        assert f"autodidact_{name}" in text and f"autodidact_{name}" in documented
