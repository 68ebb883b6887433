"""vLLM's routes for adapters: folders on the server's machine, by names that clients choose.

uv run pytest tests/training/serving/openai/test_named_adapters.py
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openai_world import BASE, KEYS, OWNER, World, openai_world
from tiny_chat import save_chat_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("named")


@pytest.fixture(scope="module")
def world(place: Path) -> Iterator[World]:
    folder = save_chat_model(place / "model", favourites="yes no")
    adapters = place / "adapters"
    adapters.mkdir()
    with openai_world(place, folder, adapters) as made:
        for name, path in zip(("a", "b"), made.adapters, strict=True):
            row = made.host.checkpoints.to_sample(OWNER, path)
            (adapters / "sub" / name).mkdir(parents=True)
            for file in ("adapter_config.json", "adapter_model.safetensors"):
                shutil.copy(row.folder / file, adapters / "sub" / name)
        yield made


class Caller:
    def __init__(self, world: World, owner: str) -> None:
        self._http = httpx.Client(
            base_url=world.url, headers={"Authorization": f"Bearer {KEYS[owner]}"}, timeout=60
        )

    def post(self, route: str, **body: Any) -> httpx.Response:
        return self._http.post(f"/v1/{route}", json=body)

    def load(self, name: str, path: str, **more: Any) -> httpx.Response:
        return self.post("load_lora_adapter", lora_name=name, lora_path=path, **more)

    def refused(self, reply: httpx.Response, status: int) -> str:
        assert reply.status_code == status, reply.text
        return reply.json()["error"]["message"]

    def logprobs(self, model: str) -> list[float]:
        asked = {"prompt": [5, 6, 7, 8], "max_tokens": 1, "echo": True, "logprobs": 0}
        reply = self.post("completions", model=model, **asked)
        assert reply.status_code == 200, reply.text
        return reply.json()["choices"][0]["logprobs"]["token_logprobs"][1:4]

    def listed(self) -> dict[str, Any]:
        return {entry["id"]: entry for entry in self._http.get("/v1/models").json()["data"]}


@pytest.fixture
def ann(world: World) -> Caller:
    return Caller(world, OWNER)


@pytest.fixture
def bob(world: World) -> Caller:
    return Caller(world, "bob")


def copies(place: Path) -> list[Path]:
    return sorted((place / "store" / "staging").glob("adapter-*"))


def test_an_adapter_answers_by_its_name_until_it_is_unloaded(
    world: World, ann: Caller, bob: Caller, place: Path
) -> None:
    by_a, by_b = (pytest.approx(ann.logprobs(path), abs=1e-5) for path in world.adapters)
    base = ann.logprobs(BASE)
    assert base != by_a and base != by_b and by_b != ann.logprobs(world.adapters[0])
    assert ann.load("mine", "sub/a").status_code == 200
    assert ann.logprobs("mine") == by_a
    entry = ann.listed()["mine"]
    assert (entry["parent"], entry["root"]) == (world.folder, "sub/a")
    # of this owner alone
    assert "mine" not in bob.listed()
    assert "mine" in bob.refused(bob.post("completions", model="mine", prompt="a"), 404)
    assert bob.load("mine", str(place / "adapters" / "sub" / "b")).status_code == 200
    assert bob.logprobs("mine") == by_b
    # what is written there later changes no answer
    weights = place / "adapters" / "sub" / "a" / "adapter_model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes((weights.parent.parent / "b" / weights.name).read_bytes())
    assert ann.logprobs("mine") == by_a
    assert "is taken" in ann.refused(ann.load("mine", "sub/a"), 400)
    assert ann.load("mine", "sub/a", load_inplace=True).status_code == 200
    assert ann.logprobs("mine") == by_b
    weights.write_bytes(before)
    assert len(copies(place)) == 2
    for caller in (ann, bob):
        assert caller.post("unload_lora_adapter", lora_name="mine").status_code == 200
        assert "not found" in caller.refused(
            caller.post("unload_lora_adapter", lora_name="mine"), 404
        )
        caller.refused(caller.post("completions", model="mine", prompt="a"), 404)
    assert copies(place) == [] and "mine" not in ann.listed()


def test_what_is_no_adapter_below_the_folder_is_refused(
    ann: Caller, world: World, place: Path
) -> None:
    adapters = place / "adapters"
    shutil.copytree(adapters / "sub" / "a", place / "outside")
    (adapters / "link").symlink_to(place / "outside")
    for name, file in (("links", "adapter_model.safetensors"), ("broken", "adapter_config.json")):
        shutil.copytree(adapters / "sub" / "a", adapters / name)
        (adapters / name / file).unlink()
    (adapters / "links" / "adapter_model.safetensors").symlink_to(place / "keys.txt")
    (adapters / "broken" / "adapter_config.json").write_text("{")
    (adapters / "empty").mkdir()
    for path, status, told in (
        ("../outside", 400, "not below adapters_dir"),
        (str(place / "outside"), 400, "not below adapters_dir"),
        ("link", 400, "not below adapters_dir"),
        (".", 400, "not below adapters_dir"),
        ("sub/../../outside", 400, "not below adapters_dir"),
        ("a\x00b", 400, "is no path"),
        ("x" * 500, 400, "is no path"),
        ("x" * 5000, 400, "a text of 1 to 1000 characters"),
        ("nothere", 404, "not found"),
        ("empty", 400, "needed are adapter_config.json and adapter_model.safetensors"),
        ("links", 400, "is a link"),
        ("broken", 400, "lora_path: broken: "),
    ):
        said = ann.refused(ann.load("new", path), status)
        assert told in said and str(place / "store") not in said, said
        assert "tml-" not in said and len(said) < 1000
    for name in (BASE, world.folder, "../x", "a/b", "", 7, None):
        ann.refused(ann.load(name, "sub/a"), 400)  # pyrefly: ignore
    ann.refused(ann.post("load_lora_adapter", lora_name="new"), 400)
    ann.refused(ann.load("new", "sub/a", zap=1), 400)
    assert copies(place) == [] and "new" not in ann.listed()


def test_without_the_setting_there_are_no_such_routes(world: World, ann: Caller) -> None:
    adapters, world.host.adapters = world.host.adapters, None
    for route in ("load_lora_adapter", "unload_lora_adapter"):
        said = ann.refused(ann.post(route, lora_name="a", lora_path="sub/a"), 404)
        assert "adapters_dir" in said
    world.host.adapters = adapters
