"""Adapters that are uploaded to the server, by requests as SDK 0.39's public reference has them.

uv run pytest tests/training/serving/test_uploads.py
"""

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.numpy
from host_world import OWNER, RANK_4, Client, data_of
from openai_world import BASE, KEYS, World, openai_world
from tiny_chat import save_chat_model

from training.serving.host_options import HostOptions
from training.serving.names import TinkerPath

LORA = {"rank": 4, "train_attn": True, "train_mlp": True, "train_unembed": True}
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    place = tmp_path_factory.mktemp("uploads")
    folder = save_chat_model(place / "model", favourites="yes no")
    with openai_world(place, folder, options=HostOptions(uploads=True)) as made:
        yield made


class Uploader:
    def __init__(self, world: World, owner: str = OWNER, sdk: str = "0.39.0") -> None:
        self._world = world
        self._headers = {"X-API-Key": KEYS[owner], "x-sdk-version": sdk}

    def post(self, route: str, **body: Any) -> httpx.Response:
        url = f"{self._world.url}/api/v1/external_weights_upload_{route}"
        return httpx.post(url, json=body, headers=self._headers, timeout=60)

    def start(self, **changes: Any) -> dict[str, Any]:
        lora = {**LORA, **changes}
        told = self.post("start", base_model=BASE, lora_config=lora, destination_project_id=None)
        assert told.status_code == 200, told.text
        return told.json()

    def finish(self, started: dict[str, Any]) -> httpx.Response:
        return self.post("finish", upload_id=started["upload_id"])


def put(started: dict[str, Any], files: dict[str, bytes]) -> None:
    """As the SDK says: a plain PUT, without a key."""
    for name, data in files.items():
        assert httpx.put(started["urls"][name], content=data).status_code == 200


def refused(reply: httpx.Response, status: int, *words: str) -> None:
    assert reply.status_code == status, reply.text
    assert all(word in reply.json()["detail"] for word in words), reply.text


@pytest.fixture(scope="module")
def trained(world: World) -> tuple[dict[str, bytes], np.ndarray]:
    """The files of an adapter, and what it says of some data."""

    async def work() -> tuple[str, np.ndarray]:
        client = Client(world.host)
        model = await client.create(BASE, **RANK_4)
        await client.train(model, data_of(5))
        await client.step(model)
        path = await client.save(model, "mine", kind="external_weights")
        return path, await said(client, model)

    path, logprobs = world.run(work())
    files = world.host.external_files(OWNER, TinkerPath.parse(path))
    return {name: files[name].read_bytes() for name in (CONFIG, WEIGHTS)}, logprobs


async def said(client: Client, model: str) -> np.ndarray:
    output = await client.train(model, data_of(0), forward_only=True)
    return np.concatenate([datum["logprobs"].to_numpy() for datum in output.loss_fn_outputs])


def test_an_uploaded_adapter_is_trained_on(world: World, trained: Any) -> None:
    files, wanted = trained
    uploader = Uploader(world)
    started = uploader.start()
    assert set(started["urls"]) == {CONFIG, WEIGHTS}
    expires = datetime.datetime.fromisoformat(started["expires"])
    assert expires - datetime.datetime.now(datetime.UTC) > datetime.timedelta(minutes=5)
    refused(uploader.finish(started), 400, CONFIG, WEIGHTS, "not uploaded")
    put(started, files)
    told = uploader.finish(started)
    assert told.status_code == 200, told.text
    path = told.json()["tinker_path"]
    assert TinkerPath.parse(path).kind == "external_weights"
    # sent again after a lost reply it is the same one; the links are of no use any more
    assert uploader.finish(started).json() == told.json()
    again = httpx.put(started["urls"][CONFIG], content=b"{}")
    refused(again, 400, "was finished")

    async def work() -> np.ndarray:
        client = Client(world.host)
        return await said(client, await client.load(path, with_optimizer=False))

    assert np.array_equal(world.run(work()), wanted)
    info = httpx.post(
        f"{world.url}/api/v1/weights_info",
        json={"tinker_path": path},
        headers={"X-API-Key": KEYS[OWNER]},
    ).json()
    assert (info["base_model"], info["lora_rank"]) == (BASE, 4)
    # the run is listed with its checkpoint, and nobody else has it
    run = TinkerPath.parse(path).run_id
    for owner, status in ((OWNER, 200), ("bob", 404)):
        url = f"{world.url}/api/v1/training_runs/{run}/checkpoints"
        assert httpx.get(url, headers={"X-API-Key": KEYS[owner]}).status_code == status


def test_later_sdks_get_a_url_with_headers(world: World) -> None:
    urls = Uploader(world, sdk="0.40.1").start()["urls"]
    assert all(set(url) == {"url", "headers"} for url in urls.values())
    assert all(isinstance(url, str) for url in Uploader(world, sdk="?").start()["urls"].values())


def test_what_is_no_such_adapter_is_refused(world: World, trained: Any) -> None:
    files, _ = trained
    uploader = Uploader(world)
    before = len(world.host.store.checkpoints.list(OWNER).rows)

    def finish(changed: dict[str, bytes], **lora: Any) -> httpx.Response:
        started = uploader.start(**lora)
        put(started, {**files, **changed})
        told = uploader.finish(started)
        assert str(world.host.store.folder) not in told.text
        # after that it may be mended
        if not lora:
            put(started, files)
            assert uploader.finish(started).status_code == 200
        return told

    tensors = safetensors.numpy.load(files[WEIGHTS])
    first = min(tensors)
    fewer = {name: value for name, value in tensors.items() if name != first}
    larger = {**tensors, first: np.zeros((5, 7), np.float32)}
    refused(finish({WEIGHTS: b"no safetensors"}), 400, "no adapter")
    refused(finish({WEIGHTS: safetensors.numpy.save(fewer)}), 400, f"{first}: got none, needed is")
    refused(finish({WEIGHTS: safetensors.numpy.save(larger)}), 400, f"{first}: got [5, 7], needed")
    refused(finish({CONFIG: b"{"}), 400, "no adapter")
    wrong = {**json.loads(files[CONFIG]), "r": 7}
    refused(finish({CONFIG: json.dumps(wrong).encode()}), 400, "no adapter")
    refused(finish({}, rank=8), 400, "tensors differ")
    refused(finish({}, train_unembed=False), 400, "needed is none")
    # of those that were mended
    assert len(world.host.store.checkpoints.list(OWNER).rows) == before + 5
    assert not list(world.host.store.staging.glob("example-*"))
    for body, words in (
        ({"base_model": "other", "lora_config": LORA}, ("base_model", "other")),
        ({"base_model": BASE, "lora_config": {**LORA, "rank": 999}}, ("rank", "999")),
        ({"base_model": BASE}, ("lora_config is missing",)),
    ):
        refused(uploader.post("start", **body), 400, *words)


def test_links_are_for_one_file_of_one_upload(world: World, trained: Any) -> None:
    files, _ = trained
    uploader = Uploader(world)
    started, other = uploader.start(), uploader.start()
    url = started["urls"][CONFIG]
    key = {"X-API-Key": KEYS[OWNER]}
    for wrong in (
        url.partition("?")[0],
        url.replace(CONFIG, WEIGHTS),
        url.replace(started["upload_id"], other["upload_id"]),
        url.replace(CONFIG, "..%2Fescaped"),
        url[:-1] + ("0" if url[-1] != "0" else "1"),
    ):
        for headers in ({}, key):
            assert httpx.put(wrong, content=b"x", headers=headers).status_code in (401, 404)
    assert not list(world.host.store.folder.rglob("*escaped*"))
    # too large for settings
    assert httpx.put(url, content=b"x" * (2 << 20)).status_code == 413
    put(started, files)
    refused(Uploader(world, "bob").finish(started), 404, started["upload_id"])
    refused(uploader.post("finish", upload_id="nothing"), 404, "nothing")
    assert httpx.post(f"{world.url}/api/v1/external_weights_upload_start").status_code == 401


def test_uploads_that_nobody_finishes_go(world: World) -> None:
    uploads = world.host.uploads
    assert uploads is not None
    uploader = Uploader(world)

    async def now(seconds: float) -> list[Path]:
        uploads._seconds = seconds
        uploads.sweep()
        return list(world.host.store.staging.glob("upload-*"))

    assert world.run(now(0)) == []
    started = [uploader.start() for _ in range(8)]
    refused(uploader.post("start", base_model=BASE, lora_config=LORA), 429, "8 uploads")
    assert len(world.run(now(3600))) == 8
    assert world.run(now(0)) == []
    refused(uploader.finish(started[0]), 404)


def test_they_are_off_by_default(tmp_path: Path) -> None:
    with openai_world(tmp_path, save_chat_model(tmp_path / "model")) as world:
        for route in ("start", "finish"):
            body = {"base_model": BASE, "lora_config": LORA, "upload_id": "a"}
            refused(Uploader(world).post(route, **body), 404, "external_uploads=true")
        url = f"{world.url}/api/v1/upload/a/{CONFIG}?token=1"
        assert httpx.put(url, content=b"").status_code == 401
