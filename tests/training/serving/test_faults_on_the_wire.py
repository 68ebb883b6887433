"""What HTTP clients see where a disk is full, a queue is long, or the engine is busy.

uv run pytest tests/training/serving/test_faults_on_the_wire.py
"""

import contextlib
import resource
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from host_world import Client, data_of, make_host, open_store, stopped_engine
from live_app import live
from starlette.testclient import TestClient
from tiny_chat import save_chat_model
from wire_caller import KEYS, Caller

from training.api import AdamParams, LoraConfig, ModelInput, SamplingParams
from training.serving.app import make_app
from training.serving.host import Host
from training.serving.keys import Keys
from training.serving.links import Links
from training.serving.store import Store

SECONDS = 60.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_chat_model(tmp_path_factory.mktemp("chat"), favourites="AB")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = open_store(tmp_path)
    yield made
    made.close()


def app_of(host: Host, place: Path) -> Any:
    (place / "keys").write_text("".join(f"{name}:{key}\n" for name, key in KEYS.items()))
    return make_app(host, Keys.from_file(place / "keys"), Links())


# ------------------------------------------------------------------------------------ a full disk


@contextlib.contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """No file of this process can be larger: that stands for the end of the disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_told_and_earlier_checkpoints_load(
    connect_local: Any, store: Store, tmp_path: Path, folder: str
) -> None:
    """T58."""
    host = make_host(connect_local(), store, folder)
    with TestClient(app_of(host, tmp_path)) as client:
        ann = Caller(client, "ann")
        session = ann.session()
        model = ann.model(session, base="an/alias", rank=64)
        path = ann.done(ann.post("/save_weights", model_id=model, seq_id=1, path="old"))["path"]
        ann.train(model, 2)
        # what it noted so far goes from the log into the file, so that the next notes have room
        with contextlib.closing(sqlite3.connect(store.folder / "serving.sqlite")) as database:
            database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        listed = ann.ask("GET", "/checkpoints").json()
        kept = sorted(store.folder.rglob("*"))
        with largest_file(150_000):
            for seq_id, route in enumerate(
                ("/save_weights", "/save_weights_for_sampler", "/save_weights_external"), 3
            ):
                told = ann.done(ann.post(route, model_id=model, seq_id=seq_id, path="new"))
                assert told["category"] == "server", told
                assert "File too large" in told["error"] and "earlier checkpoints" in told["error"]
                assert told["error"].startswith("checkpoints/"), told
                assert str(store.folder) not in told["error"]
            sampled = ann.post("/save_weights_for_sampler", model_id=model, seq_id=6, path="../up")
            assert sampled.status_code == 400
            with largest_file(1):
                refused = ann.post("/save_weights", model_id=model, seq_id=7, path="new")
            assert refused.status_code == 500
            assert refused.json()["detail"].startswith("serving.sqlite: ")
            assert client.get("/healthz").status_code == 200
            assert ann.ask("GET", "/checkpoints").json() == listed
        assert sorted(store.folder.rglob("*")) == kept
        loaded = ann.post(
            "/load_weights", session_id=session, model_seq_id=1, path=path, optimizer=True
        )
        assert ann.done(loaded)["path"] == path
        # and what did not fit is saved when there is room
        ann.done(ann.post("/save_weights", model_id=model, seq_id=8, path="new"))
        assert len(ann.ask("GET", "/checkpoints").json()["checkpoints"]) == 2


# ----------------------------------------------------------------------------------- a long queue


def test_above_the_limit_of_the_queue_clients_are_told_to_wait(
    connect_local: Any,
    store: Store,
    tmp_path: Path,
    folder: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """T40, O22: a 429 makes the SDK hold back all its samples, so only then, and it is logged."""
    service = connect_local()
    host = make_host(service, store, folder, max_open_requests=3)
    chat = {"model": folder, "messages": [{"role": "user", "content": "A"}], "max_tokens": 1}
    with TestClient(app_of(host, tmp_path)) as client:
        ann, bob = Caller(client, "ann"), Caller(client, "bob")
        samplers = [
            caller.post(
                "/create_sampling_session",
                session_id=caller.session(),
                sampling_session_seq_id=0,
                base_model=folder,
            ).json()["sampling_session_id"]
            for caller in (ann, bob)
        ]

        def sample(caller: Caller, sampler: str, seq_id: int) -> Any:
            return caller.post(
                "/asample",
                sampling_session_id=sampler,
                seq_id=seq_id,
                num_samples=1,
                prompt={"chunks": [{"type": "encoded_text", "tokens": [5, 6]}]},
                sampling_params={"max_tokens": 2},
            )

        with stopped_engine(service, folder):
            taken = [sample(ann, samplers[0], at) for at in range(3)]
            assert [reply.status_code for reply in taken] == [200] * 3
            assert "refused" not in caplog.text
            refused = sample(ann, samplers[0], 3)
            assert refused.status_code == 429 and float(refused.headers["retry-after"]) > 0
            assert "3 requests of this key wait" in refused.json()["detail"]
            assert "ann has 3 open requests: refused one" in caplog.text
            headers = {"Authorization": f"Bearer {KEYS['ann']}"}
            reply = client.post("/v1/chat/completions", json=chat, headers=headers)
            assert reply.status_code == 429 and int(reply.headers["retry-after"]) > 0
            assert reply.json()["error"]["type"] == "rate_limit_error"
            # another owner's queue is not full, and one sent again is not one more
            taken.append(sample(bob, samplers[1], 0))
            assert taken[3].status_code == 200
            assert sample(ann, samplers[0], 2).json() == taken[2].json()
        for caller, reply in zip((ann, ann, ann, bob), taken, strict=True):
            request = {"request_id": reply.json()["request_id"]}
            assert caller.post("/retrieve_future", **request).status_code == 200
        assert sample(ann, samplers[0], 3).status_code == 200


# --------------------------------------------------------------------------------- a busy engine


def test_a_chat_is_answered_while_a_training_pass_runs(
    connect_local: Any, store: Store, tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O24: the pass waits at its next micro-batch until the answer is with the client, which it
    could not be if the engine did nothing else."""
    service = connect_local(max_train_tokens=32, decode_steps_while_training=16)
    host = make_host(service, store, folder)
    chat = {"model": folder, "messages": [{"role": "user", "content": "A"}], "max_tokens": 8}
    begun, asked, answered = (threading.Event() for _ in range(3))
    in_time: list[bool] = []
    with live(app_of(host, tmp_path)) as server:

        async def prepared() -> tuple[Client, str]:
            client = Client(host, "ann")
            return client, await client.create(folder)

        client, model = server.run(prepared())
        trainer = service.engine(folder).trainer
        run_batch = trainer._micro_batch

        def micro_batch(*args: Any) -> Any:
            done = run_batch(*args)
            in_time.append(asked.is_set())
            begun.set()
            if len(in_time) == 1:
                # until the chat has come as far as the scheduler
                assert asked.wait(SECONDS)
            elif len(in_time) == 3:
                # each of the two before was followed by 16 tokens for every sample
                in_time.append(answered.wait(SECONDS))
            return done

        monkeypatch.setattr(trainer, "_micro_batch", micro_batch)
        lengths = [20] * 8
        promise = server.run(client.post_train(model, data_of(0, lengths)))
        assert begun.wait(SECONDS)
        with httpx.Client(base_url=server.url, timeout=SECONDS) as http:

            def ask() -> None:
                headers = {"Authorization": f"Bearer {KEYS['ann']}"}
                reply = http.post("/v1/chat/completions", json=chat, headers=headers)
                assert reply.status_code == 200, reply.text
                answered.set()

            thread = threading.Thread(target=ask)
            thread.start()
            while host.status()["running"] < 2 and thread.is_alive():
                thread.join(0.01)
            asked.set()
            thread.join()
        server.run(client.result(promise))
    assert in_time[3] and len(in_time) > 6, in_time


# ----------------------------------------------------------------------------- a crowd of adapters

OWNERS = ("ann", "bob", "cid", "dot")
RANKS = (1, 2, 4, 8)
TOKENS = [5, 6, 7, 8, 9, 10]
DRAWN = SamplingParams(max_tokens=8, seed=5, stop=[])


def test_sixteen_adapters_at_once_answer_as_each_alone(
    connect_local: Callable[..., Any], store: Store, tmp_path: Path, folder: str
) -> None:
    """T44: of all ranks and owners, by snapshots and by checkpoints, beside the base model."""
    service: Any = connect_local(checkpoint_dir=store.staging)
    host = make_host(service, store, folder)
    sizes: list[int] = []

    async def trained(client: Client, number: int, rank: int) -> tuple[str, Path]:
        lora = LoraConfig(rank=rank, seed=number, train_mlp=number % 3 != 0)
        given = {name: getattr(lora, name) for name in ("rank", "seed", "train_mlp")}
        model = await client.create(folder, **given)
        await client.train(model, data_of(number))
        await client.step(model, AdamParams(learning_rate=0.1))
        path = await client.save(model, "kept", "sampler_weights")
        row = host.checkpoints.to_sample(client.owner, path)
        if number % 2:
            return await client.snapshot(model), row.folder
        return await client.sampler(model_path=path), row.folder

    async def all_of_them() -> list[tuple[Client, str, Path | None]]:
        made: list[tuple[Client, str, Path | None]] = []
        for owner in OWNERS:
            client = Client(host, owner)
            for rank in RANKS:
                sampler, saved = await trained(client, len(made), rank)
                made.append((client, sampler, saved))
        client = Client(host, OWNERS[0])
        return [*made, (client, await client.sampler(base_model=folder), None)]

    def asked(client: Client, sampler: str) -> Any:
        return client.post_sample(sampler, TOKENS, 1, DRAWN, prompt_logprobs=True)

    with live(app_of(host, tmp_path)) as server:
        samplers = server.run(all_of_them())
        for client, sampler, _ in samplers:
            # awake
            server.run(client.sample(sampler, TOKENS, 1, DRAWN))
        step = service.engine(folder).sampler.step

        def noted(*args: Any) -> Any:
            sizes.append(service.engine(folder).sampler.rows)
            return step(*args)

        service.engine(folder).sampler.step = noted
        with stopped_engine(service, folder):
            promises = [server.run(asked(client, sampler)) for client, sampler, _ in samplers]
        found = [
            server.run(client.result(promise)).response
            for (client, _, _), promise in zip(samplers, promises, strict=True)
        ]
        assert max(sizes) == len(samplers)
        alone = connect_local()
        for (_, _, saved), response in zip(samplers, found, strict=True):
            path = None if saved is None else str(saved)
            sampler = alone.create_sampling_client(model_path=path, base_model=folder)
            wanted = sampler.sample(ModelInput.from_ints(TOKENS), 1, DRAWN, True).result()
            [got], [expected] = response.sequences, wanted.sequences
            assert got.tokens == expected.tokens
            np.testing.assert_allclose(got.logprobs, expected.logprobs, atol=1e-5)
            np.testing.assert_allclose(
                response.prompt_logprobs_np[1:], wanted.prompt_logprobs_np[1:], atol=1e-5
            )
    # and no two of them say the same
    logprobs = np.array([response.prompt_logprobs_np[1:] for response in found])
    differences = np.abs(logprobs[:, None] - logprobs[None]).max(-1)
    assert differences[~np.eye(len(found), dtype=bool)].min() > 1e-3
