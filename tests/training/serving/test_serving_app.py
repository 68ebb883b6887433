"""The Tinker face over HTTP, without the SDK: keys, owners, repeated and malformed requests.

uv run pytest tests/training/serving/test_serving_app.py
"""

import datetime
import gzip
import importlib.metadata
import io
import re
import tarfile
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
from starlette.routing import Route
from starlette.testclient import TestClient
from wire_caller import KEYS, PROTO, Caller, training_body

from training.connect import connect
from training.serving.app import TINKER, AppOptions, make_app
from training.serving.base_models import BaseModels
from training.serving.host import Host
from training.serving.keys import Keys
from training.serving.links import Links
from training.serving.names import TinkerPath
from training.serving.store import Store
from training.serving.wire import routes_futures
from training.serving.wire.bodies import PROTOBUF
from training.serving.wire.routes_download import DOWNLOADS
from training.serving.wire.routes_unserved import UNSERVED

OPTIONS = AppOptions(max_training_bytes=100_000, max_json_bytes=100_000)


@pytest.fixture(scope="module")
def client(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., str]
) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("app")
    (folder / "keys").write_text("".join(f"{name}:{key}\n" for name, key in KEYS.items()))
    store = Store(folder / "store")
    service = connect("local", device="cpu", checkpoint_dir=store.staging)
    host = Host(service, store, BaseModels([tiny_model("llama")], {"tiny": tiny_model("llama")}))
    app = make_app(host, Keys.from_file(folder / "keys"), Links(), OPTIONS)
    app.state.store = store
    with TestClient(app, base_url="http://here:8010") as client:
        yield client
    store.close()


@pytest.fixture
def ann(client: TestClient) -> Caller:
    return Caller(client, "ann")


@pytest.fixture
def bob(client: TestClient) -> Caller:
    return Caller(client, "bob")


def routes_of(client: TestClient) -> list[tuple[str, str]]:
    """Method and path of every route of this face."""
    app: Any = client.app
    found = []
    for route in app.routes:
        if isinstance(route, Route) and route.path.startswith(TINKER):
            found += [(method, route.path.removeprefix(TINKER)) for method in route.methods or ()]
    return sorted(found)


def test_no_route_answers_without_a_key(client: TestClient) -> None:
    asked = 0
    for method, path in routes_of(client):
        if path == "/healthz" or path.startswith(DOWNLOADS):
            continue
        concrete = re.sub(r"{\w+}", "x", path)
        for headers in ({}, {"X-API-Key": "tml-" + "c" * 30}):
            reply = client.request(method, TINKER + concrete, headers=headers)
            assert reply.status_code == 401, (method, path)
            if method != "HEAD":
                assert set(reply.json()) == {"detail"}
            asked += 1
    assert asked > 60


def test_the_version_is_for_those_with_a_key(client: TestClient) -> None:
    assert client.get("/version").status_code == 401
    told = client.get("/version", headers={"Authorization": f"Bearer {KEYS['ann']}"})
    assert told.json() == {"version": importlib.metadata.version("autodidact")}


def test_what_one_key_made_does_not_exist_for_another(ann: Caller, bob: Caller) -> None:
    session = ann.session()
    model = ann.model(session)
    work = ann.train(model, 1)
    path = ann.done(ann.post("/save_weights", model_id=model, seq_id=2, path="a"))["path"]
    saved = ann.post("/save_weights_for_sampler", model_id=model, seq_id=3, path="a")
    sampler_path = ann.done(saved)["path"]
    external = ann.post("/save_weights_external", model_id=model, seq_id=4, path="a")
    ann.done(external)
    sampler = ann.post(
        "/create_sampling_session",
        session_id=session,
        sampling_session_seq_id=0,
        model_path=sampler_path,
    ).json()["sampling_session_id"]
    sample = {
        "sampling_session_id": sampler,
        "seq_id": 0,
        "num_samples": 1,
        "prompt": {"chunks": [{"type": "encoded_text", "tokens": [5, 6]}]},
        "sampling_params": {"max_tokens": 2},
    }
    run = f"/training_runs/{model}"
    checkpoint = f"{run}/checkpoints/weights/a"
    own = {"session_id": bob.session()}
    loaded = {"path": path, "optimizer": True}
    sampled = {"sampling_session_seq_id": 0, "model_path": sampler_path}
    for method, where, body in (
        ("POST", "/session_heartbeat", {"session_id": session}),
        ("POST", f"/sessions/{session}/finish", {}),
        ("GET", f"/sessions/{session}", None),
        ("POST", "/get_info", {"model_id": model}),
        ("POST", "/optim_step", {"model_id": model, "seq_id": 9}),
        ("POST", "/save_weights", {"model_id": model, "seq_id": 9, "path": "b"}),
        ("POST", "/save_weights_for_sampler", {"model_id": model, "seq_id": 9, "path": "b"}),
        ("POST", "/save_weights_external", {"model_id": model, "seq_id": 9, "path": "b"}),
        ("POST", "/unload_model", {"model_id": model, "seq_id": 9}),
        ("POST", "/load_weights", {**own, **loaded, "model_seq_id": 0}),
        ("POST", "/load_weights", {**loaded, "model_id": model, "seq_id": 9}),
        ("POST", "/create_model", {"session_id": session, "model_seq_id": 9, "base_model": "tiny"}),
        ("POST", "/create_sampling_session", {**own, **sampled}),
        ("GET", f"/samplers/{sampler}", None),
        ("POST", "/asample", sample),
        ("POST", "/retrieve_future", {"request_id": work.json()["request_id"]}),
        ("POST", "/cancel_future", {"request_id": work.json()["request_id"]}),
        ("POST", "/weights_info", {"tinker_path": path}),
        ("GET", run, None),
        ("GET", f"{run}/checkpoints", None),
        ("PUT", f"{checkpoint}/ttl", {"ttl_seconds": None}),
        ("POST", f"{checkpoint}/publish", None),
        ("DELETE", f"{checkpoint}/publish", None),
        ("DELETE", checkpoint, None),
        ("GET", f"{run}/checkpoints/external_weights/a/external_weights_urls", None),
    ):
        reply = bob.ask(method, where, json=body)
        assert reply.status_code == 404, (method, where, reply.text)
        # nor is anything of the run named
        assert "there is" not in reply.text
    reply = bob.ask("POST", "/forward_backward", content=training_body(model, 9), headers=PROTO)
    assert reply.status_code == 404
    assert bob.ask("GET", "/training_runs").json()["training_runs"] == []
    assert bob.ask("GET", "/checkpoints").json()["checkpoints"] == []
    # and it is all still there for its owner
    assert len(ann.ask("GET", f"{run}/checkpoints").json()["checkpoints"]) == 3
    assert ann.post("/session_heartbeat", session_id=session).status_code == 200


def test_a_repeated_request_is_carried_out_once(ann: Caller) -> None:
    session = ann.session()
    model = ann.model(session)
    again = ann.post(
        "/create_model",
        session_id=session,
        model_seq_id=0,
        base_model="tiny",
        lora_config={"rank": 2, "seed": 0},
    )
    assert ann.done(again)["model_id"] == model
    first, second = ann.train(model, 1), ann.train(model, 1)
    assert first.json() == second.json()
    steps = [
        ann.post("/optim_step", model_id=model, seq_id=2, adam_params={"learning_rate": 0.1})
        for _ in range(3)
    ]
    assert len({reply.json()["request_id"] for reply in steps}) == 1
    assert ann.done(steps[0])["metrics"]["num_steps"] == 1
    other = ann.post("/optim_step", model_id=model, seq_id=2, adam_params={"learning_rate": 0.2})
    assert other.status_code == 400 and "seq_id" in other.json()["detail"]
    fetch = {"request_id": first.json()["request_id"]}
    replies = [ann.ask("POST", "/retrieve_future", json=fetch, headers=PROTO) for _ in range(2)]
    assert replies[0].content == replies[1].content
    assert replies[0].headers["content-type"] == PROTOBUF


def test_bodies_that_are_none(ann: Caller) -> None:
    model = ann.model(ann.session())
    body = training_body(model, 1)

    def told(status: int, content: bytes, **headers: str) -> str:
        reply = ann.ask("POST", "/forward_backward", content=content, headers={**PROTO, **headers})
        assert reply.status_code == status, reply.text
        return reply.json()["detail"]

    assert PROTOBUF in told(415, b"{}", **{"content-type": "application/json"})
    told(400, b"\xff" * 50)
    told(400, b"")
    told(413, body * 5000)
    told(413, gzip.compress(b"\0" * 10_000_000), **{"content-encoding": "gzip"})
    told(400, body, **{"content-encoding": "gzip"})
    told(415, body, **{"content-encoding": "br"})
    packed = {**PROTO, "content-encoding": "gzip"}
    reply = ann.ask("POST", "/forward_backward", content=gzip.compress(body), headers=packed)
    assert reply.status_code == 200
    for content in (b"", b"[]", b"{", b'"x"', b"\xff"):
        reply = ann.ask("POST", "/optim_step", content=content)
        assert reply.status_code == 400 and "the body" in reply.json()["detail"]
    for fields, word in (
        ({}, "model_id is missing"),
        ({"model_id": 7}, "model_id: got 7"),
        ({"model_id": model, "seq_id": "1"}, "seq_id: got '1'"),
        ({"model_id": model, "adam_params": {"learning_rate": -1}}, "learning_rate=-1"),
        ({"model_id": model, "optimizer_params": {"type": "dimuon"}}, "'dimuon'"),
    ):
        reply = ann.post("/optim_step", **fields)
        assert reply.status_code == 400 and word in reply.json()["detail"], reply.text
    new = {"session_id": ann.session(), "model_seq_id": 9, "optimizer_config": {"type": "adam"}}
    for route, more in (
        ("/create_model", {"base_model": "tiny"}),
        ("/load_weights", {"path": f"tinker://{model}/weights/a", "optimizer": False}),
    ):
        told = ann.post(route, **new, **more)
        assert told.status_code == 400
        assert told.json()["detail"] == "optimizer_config.type: got 'adam'; input should be 'adamw'"


def test_a_poll_ends_and_unknown_results_are_told(
    ann: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ann.post("/retrieve_future", request_id="nothing").status_code == 404
    monkeypatch.setattr(routes_futures, "POLL_SECONDS", 0.0)
    model = ann.post("/create_model", session_id=ann.session(), model_seq_id=0, base_model="tiny")
    reply = ann.post("/retrieve_future", request_id=model.json()["request_id"])
    # silent for the SDK, which asks again
    assert (reply.status_code, reply.json()) in (
        (408, {"queue_state": "active"}),
        (200, {"model_id": model.json()["model_id"]}),
    )


def test_a_signed_link_opens_one_file(ann: Caller, client: TestClient, tmp_path: Path) -> None:
    model = ann.model(ann.session())
    ann.done(ann.post("/save_weights_external", model_id=model, seq_id=1, path="out"))
    where = f"/training_runs/{model}/checkpoints/external_weights/out/external_weights_urls"
    urls = ann.ask("GET", where).json()["urls"]
    assert {"adapter_config.json", "adapter_model.safetensors"} <= set(urls)
    url = urls["adapter_config.json"]
    assert url.startswith("http://here:8010/")
    fetched = client.get(url)
    assert fetched.status_code == 200 and fetched.json()["peft_type"] == "LORA"
    token = url.partition("token=")[2]
    for wrong in (
        url.replace("adapter_config.json", "adapter_model.safetensors"),
        url.replace("token=", "token=9"),
        url.partition("?")[0],
        url.replace("/ann/", "/bob/"),
        url.replace("adapter_config.json", "..%2F..%2Fserving.sqlite"),
        url.replace("/out/", "/other/"),
    ):
        assert client.get(wrong).status_code in (401, 404), wrong
        assert token not in client.get(wrong).text
    # another one of that name is not what was signed for
    assert ann.ask("DELETE", f"/training_runs/{model}/checkpoints/external_weights/out").is_success
    assert client.get(url).status_code == 401
    ann.done(ann.post("/save_weights_external", model_id=model, seq_id=2, path="out"))
    assert client.get(url).status_code == 401
    bare = ann.ask("DELETE", f"/training_runs/{model}/checkpoints/out")
    assert bare.status_code == 400 and "weights/out" in bare.json()["detail"]


def test_a_session_is_finished_as_its_client_says(ann: Caller, client: TestClient) -> None:
    app: Any = client.app
    for body, reason in (
        ({"reason": {"type": "errored"}, "detail": "a\nb"}, "errored"),
        ({"reason": {"type": "interrupted"}}, "interrupted"),
        ({}, "success"),
    ):
        session = ann.session()
        for _ in range(2):
            assert ann.post(f"/sessions/{session}/finish", **body).status_code == 200
        assert app.state.store.sessions.get("ann", session).finish_reason == reason
        late = ann.post("/session_heartbeat", session_id=session)
        assert late.status_code == 410 and "finished" in late.json()["detail"]
    wrong = ann.post(f"/sessions/{ann.session()}/finish", reason={"type": "zap"})
    assert wrong.status_code == 400 and "reason.type" in wrong.json()["detail"]


def test_a_sampler_tells_what_it_was_made_from(ann: Caller) -> None:
    session = ann.session()
    model = ann.model(session)
    saved = ann.post("/save_weights_for_sampler", model_id=model, seq_id=1, path="s")
    path = ann.done(saved)["path"]
    for number, what in enumerate(({"base_model": "tiny"}, {"model_path": path})):
        made = ann.post(
            "/create_sampling_session", session_id=session, sampling_session_seq_id=number, **what
        ).json()["sampling_session_id"]
        told = ann.ask("GET", f"/samplers/{made}").json()
        assert told["sampler_id"] == made and told["base_model"]
        assert told.get("model_path") == what.get("model_path")


def test_saves_are_what_was_asked_for_or_refused(ann: Caller) -> None:
    model = ann.model(ann.session())
    for at, (route, more, word) in enumerate(
        (
            ("/save_weights_for_sampler", {"path": "a", "kind": "inflight"}, "'inflight'"),
            ("/save_weights_for_sampler", {}, "exactly one of path"),
            ("/save_weights_external", {"path": "a", "age_encryption_recipients": ["x"]}, "age_"),
            ("/save_weights", {"path": "a", "ttl_seconds": 5}, "ttl_seconds"),
        ),
        1,
    ):
        reply = ann.post(route, model_id=model, seq_id=at, **more)
        assert reply.status_code == 400 and word in reply.json()["detail"], reply.text
    for seq_id, overwrite, status in ((11, False, 200), (12, False, 400), (13, True, 200)):
        body = {"path": "a", "overwrite": overwrite}
        reply = ann.post("/save_weights", model_id=model, seq_id=seq_id, **body)
        assert reply.status_code == status, reply.text
        if status == 200:
            assert "path" in ann.done(reply)
    listed = ann.ask("GET", f"/training_runs/{model}/checkpoints").json()["checkpoints"]
    assert [c["checkpoint_id"] for c in listed] == ["weights/a"]


def test_only_ones_own_requests_can_be_cancelled(ann: Caller, bob: Caller) -> None:
    model = ann.model(ann.session())
    work = ann.train(model, 1).json()["request_id"]
    assert ann.post("/cancel_future", request_id=work).status_code == 204
    # a training request goes on
    told = ann.ask("POST", "/retrieve_future", json={"request_id": work}, headers=PROTO)
    assert told.status_code == 200 and told.headers["content-type"] == PROTOBUF
    for caller, request_id in ((bob, work), (ann, "none")):
        assert caller.post("/cancel_future", request_id=request_id).status_code == 404


def test_an_archive_has_a_checkpoints_files(ann: Caller, bob: Caller, client: TestClient) -> None:
    """What the command line of SDKs before 0.38 asks for."""
    model = ann.model(ann.session())
    for seq_id, (route, kind) in enumerate(
        [("/save_weights", "weights"), ("/save_weights_for_sampler", "sampler_weights")], 1
    ):
        ann.done(ann.post(route, model_id=model, seq_id=seq_id, path="out"))
        where = f"/training_runs/{model}/checkpoints/{kind}/out/archive"
        told = ann.ask("GET", where, follow_redirects=False)
        assert told.status_code == 302
        left = parsedate_to_datetime(told.headers["expires"]) - datetime.datetime.now(datetime.UTC)
        assert datetime.timedelta(minutes=50) < left < datetime.timedelta(minutes=61)
        url = told.headers["location"]
        fetched = client.get(url)
        assert fetched.status_code == 200
        assert int(fetched.headers["content-length"]) == len(fetched.content)
        with tarfile.open(fileobj=io.BytesIO(fetched.content)) as tar:
            found = {m.name: tar.extractfile(m).read() for m in tar.getmembers()}  # pyrefly: ignore
        assert found.pop("checkpoint_complete") == b""
        row = client.app.state.store.checkpoints.get(  # pyrefly: ignore
            "ann", TinkerPath(model, kind, "out")
        )
        files = client.app.state.store.checkpoints.files(row)  # pyrefly: ignore
        assert found == {name: file.read_bytes() for name, file in files.items()}
        assert {"adapter_config.json", "adapter_model.safetensors"} <= set(found)
        for wrong in (url.replace("archive.tar", "adapter_config.json"), url.partition("?")[0]):
            assert client.get(wrong).status_code == 401
        for other, place in ((bob, where), (ann, where.replace("/out/", "/none/"))):
            assert other.ask("GET", place, follow_redirects=False).status_code == 404


def test_what_is_not_served_is_said_in_a_sentence(ann: Caller) -> None:
    for method, path, why in UNSERVED:
        reply = ann.ask(method, re.sub(r"{\w+}", "x", path), json={})
        assert reply.status_code == 404 and reply.json() == {"detail": f"not served here: {why}"}
    for method, path in (("GET", "/nothing"), ("GET", "/optim_step")):
        reply = ann.ask(method, path)
        assert reply.status_code in (404, 405) and path in reply.json()["detail"]
