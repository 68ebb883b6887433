"""The host over the local engine: what a client trains, saves, loads and samples through it is what
it would get in process."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_world import (
    OWNER,
    PROMPT,
    STEP,
    Client,
    data_of,
    digest_of,
    make_host,
    open_store,
    serve,
    weights_of,
)
from tiny_chat import save_chat_model

from training.api import ModelInput, SamplingParams
from training.serving.errors import ServingError, not_found
from training.serving.host import Host
from training.serving.names import TinkerPath

TOKENS = [5, 6, 7, 8, 9, 10, 11, 12]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Any]:
    opened = open_store(tmp_path)
    yield opened
    opened.close()


@pytest.fixture
def host(connect_local: Any, store: Any, folder: str) -> Host:
    return make_host(connect_local(decode_steps_while_training=2), store, folder)


def test_a_run_through_the_host_is_the_run_in_process(host, service, folder):
    async def scenario(host: Host) -> tuple[Any, ...]:
        client = Client(host)
        model = await client.create()
        # submitted together, as a loop does that waits once
        promises = []
        for i in range(3):
            promises.append(await client.post_train(model, data_of(i)))
            promises.append(await client.post_step(model))
        results = [await client.result(promise) for promise in promises]
        sampler = await client.snapshot(model)
        params = SamplingParams(max_tokens=8, seed=3, stop=[])
        sampled = await client.sample(sampler, PROMPT, 3, params, prompt_logprobs=True)
        return model, results, weights_of(host, model), sampled

    _, results, weights, sampled = serve(host, scenario)
    twin = service.create_lora_training_client(folder, rank=4, seed=1)
    for i in range(3):
        output = twin.forward_backward(data_of(i), "cross_entropy").result()
        assert results[2 * i].metrics == output.metrics
        metrics = twin.optim_step(STEP).result().metrics
        assert results[2 * i + 1] == {
            "metrics": {**metrics, "num_steps": i + 1, "had_gradient": 1.0}
        }
    assert np.array_equal(weights, twin._adapter.flat.numpy())
    alone = twin.save_weights_and_get_sampling_client().result()
    params = SamplingParams(max_tokens=8, seed=3, stop=[])
    wanted = alone.sample(ModelInput.from_ints(PROMPT), 3, params, True).result()
    got = sampled.response
    assert [s.tokens for s in got.sequences] == [s.tokens for s in wanted.sequences]
    assert got.prompt_logprobs[1:] == pytest.approx(wanted.prompt_logprobs[1:], abs=1e-5)


def test_what_first_requests_need_is_there_before_they_come(connect_local, store, folder):
    service = connect_local()
    host = make_host(service, store, folder)

    async def scenario(_host: Host) -> None:
        while folder not in service._engines:
            await asyncio.sleep(0.01)
        engine = service.engine(folder)
        while "_constraints" not in vars(engine) or engine._constraints._wrapped is None:
            await asyncio.sleep(0.01)
        assert "tokenizer" in vars(engine)

    serve(host, scenario)


def test_every_way_to_name_a_model_answers_with_its_own_weights(host, folder):
    """The canary: silently wrong weights are the field's commonest serving bug."""

    async def scenario(host: Host) -> None:
        client = Client(host)
        model = await client.create()
        seen: dict[str, np.ndarray] = {}
        trained: dict[str, np.ndarray] = {}
        for name in ("a", "b"):
            await client.train(model, data_of(len(seen)))
            await client.step(model)
            path = await client.save(model, name, "sampler_weights")
            sampler = await client.sampler(model_path=path)
            seen[name] = await client.logprobs(sampler, TOKENS)
            trained[name] = await client.trained_logprobs(model, TOKENS)
            hosted = [path, f"{model}/{name}", f"{folder};{path}", f"an/alias;{path}"]
            for spelled in hosted:
                found = await host.hosted(OWNER, spelled)
                assert (found.name, found.adapter_path) == (spelled, path)
                seen[spelled] = await hosted_logprobs(found)
                trained[spelled] = trained[name]
        await client.train(model, data_of(7))
        await client.step(model)
        # an ephemeral one is of this moment, whatever is trained after it
        moment = await client.snapshot(model)
        trained["moment"] = await client.trained_logprobs(model, TOKENS)
        await client.train(model, data_of(8))
        await client.step(model)
        seen["moment"] = await client.logprobs(moment, TOKENS)
        for name, logprobs in seen.items():
            assert logprobs == pytest.approx(trained[name], abs=1e-4), name
        for base in (folder, "an/alias"):
            sampler = await client.sampler(base_model=base)
            found = await host.hosted(OWNER, base)
            seen[f"base {base}"] = await client.logprobs(sampler, TOKENS)
            assert await hosted_logprobs(found) == pytest.approx(seen[f"base {base}"], abs=1e-5)
        distinct = [seen["a"], seen["b"], seen["moment"], seen["base an/alias"]]
        for i, first in enumerate(distinct):
            for second in distinct[:i]:
                assert np.abs(first - second).max() > 0.01
        assert seen[f"base {folder}"] == pytest.approx(seen["base an/alias"], abs=1e-6)
        names = {(await host.hosted(OWNER, name)).fingerprint for name in (folder, path)}
        assert len(names) == 2

    serve(host, scenario)


async def hosted_logprobs(hosted: Any) -> np.ndarray:
    response = await hosted.sample(
        ModelInput.from_ints(TOKENS), 1, SamplingParams(max_tokens=1), include_prompt_logprobs=True
    )
    return response.prompt_logprobs_np[1:]


def test_a_stream_has_the_tokens_of_the_plain_answer(host, folder):
    async def scenario(host: Host) -> None:
        hosted = await host.hosted(OWNER, folder)
        params = SamplingParams(max_tokens=7, seed=5, stop=[])
        prompt = ModelInput.from_ints(PROMPT)
        plain = await hosted.sample(prompt, 2, params, topk_sample_logprobs=2)
        streamed = [token async for token in hosted.stream(prompt, params, 2, topk=2)]
        for number, sequence in enumerate(plain.sequences):
            own = [token for token in streamed if token.sample == number]
            assert [token.token for token in own] == sequence.tokens
            assert [token.logprob for token in own] == pytest.approx(sequence.logprobs)
            assert [token.topk for token in own] == sequence.topk_logprobs
            assert [token.stop_reason for token in own] == [None] * 6 + ["length"]
        assert host.status()["running"] == 0 and host.status()["result_bytes"] == 0

    serve(host, scenario)


# ------------------------------------------------------------------------------------- checkpoints


def test_a_loaded_model_goes_on_bit_by_bit(host):
    async def scenario(host: Host) -> None:
        client = Client(host)
        config = {"rank": 3, "seed": 5, "train_mlp": False}
        model = await client.create(**config)
        await client.train(model, data_of(0))
        await client.step(model)
        # a gradient that no step has used goes along
        await client.train(model, data_of(1))
        state = await client.save(model, "now")
        loaded = await client.load(state, with_optimizer=True)
        fresh = await client.load(state, with_optimizer=False, base_model="an/alias")
        for one in (loaded, fresh):
            run = host.info(OWNER, one).run
            assert (run.lora.rank, run.lora.train_mlp, run.base_model) == (3, False, "an/alias")
            assert np.array_equal(weights_of(host, one), weights_of(host, model))
        metrics = [await client.step(one) for one in (model, loaded, fresh)]
        assert metrics[0] == metrics[1] and metrics[0]["num_steps"] == 2.0
        assert metrics[2] == {"grad_norm": 0.0, "num_steps": 0.0, "had_gradient": 0.0}
        assert np.array_equal(weights_of(host, loaded), weights_of(host, model))
        assert not np.array_equal(weights_of(host, fresh), weights_of(host, model))

    serve(host, scenario)


def already_gone(row: Any) -> Any:
    raise not_found("gone by now")


def test_what_cannot_be_loaded_is_refused(host, folder):
    async def scenario(host: Host) -> None:
        client = Client(host)
        model = await client.create()
        state = await client.save(model, "state")
        weights = await client.save(model, "w", "sampler_weights")
        number = 50

        async def load(path: str, *, with_optimizer: bool = False, **given: Any) -> Any:
            return await host.load_model(
                OWNER,
                client.session_id,
                number,
                path,
                with_optimizer=with_optimizer,
                digest="",
                **given,
            )

        for wrong, status, told in (
            (load(weights, with_optimizer=True), 400, "no optimizer state"),
            (load(state, base_model="other"), 400, "was trained from 'an/alias'"),
            (load("tinker://no/weights/x"), 404, "not found"),
            (load(f"tinker://{model}/weights/x"), 404, f"there is {weights}, {state}"),
            (load("/etc/passwd"), 400, "needed is tinker://"),
        ):
            with pytest.raises(ServingError) as caught:
                await wrong
            assert caught.value.status == status and told in caught.value.message
        # deleted after it was found: no model is left behind that will never be ready
        models = host.status()["models"]
        host.checkpoints.hold = already_gone
        with pytest.raises(ServingError, match="gone by now"):
            await load(state)
        del host.checkpoints.hold
        assert host.status()["models"] == models
        # weights alone can be trained on, with fresh moments
        await client.load(weights, with_optimizer=False)
        into = await client.create()
        promise = await host.load_into(
            OWNER, into, 1, state, with_optimizer=True, digest=digest_of(1)
        )
        assert (await client.result(promise))["path"] == state
        await client.train(into, data_of(0), seq=2)
        with pytest.raises(ServingError, match="before anything else"):
            await host.load_into(OWNER, into, 3, state, with_optimizer=True, digest="")

    serve(host, scenario)


def test_a_damaged_checkpoint_is_refused_by_the_name_that_clients_know(host):
    async def scenario(host: Host) -> None:
        client = Client(host)
        model = await client.create()
        path = await client.save(model, "w", "sampler_weights")
        folder = host.checkpoints.to_sample(OWNER, path).folder
        (folder / "adapter_model.safetensors").write_bytes(b"not that")
        with pytest.raises(ServingError) as caught:
            await client.post_sample(await client.sampler(model_path=path))
        promise = await host.load_model(
            OWNER, client.session_id, 50, path, with_optimizer=False, digest=""
        )
        for told in (caught.value.message, (await client.outcome(promise)).message):
            assert f"{path}/adapter_model.safetensors" in told, told
            assert str(folder) not in told

    serve(host, scenario)


def test_a_save_tells_whether_a_gradient_is_in_it(host):
    async def scenario(host: Host) -> None:
        client = Client(host)
        model = await client.create()
        said = []
        for name in ("none", "pending", "used"):
            promise = await host.save_weights(OWNER, model, None, name, digest="")
            said.append((await client.result(promise))["includes_pending_gradient"])
            await (client.train(model, data_of(0)) if name == "none" else client.step(model))
        assert said == [False, True, False]

    serve(host, scenario)


def test_a_sampler_keeps_what_its_name_was_when_it_was_made(host):
    """Deleting or overwriting a checkpoint changes no sampler, and its name answers as the new one
    at once, on every route."""

    async def scenario(host: Host) -> None:
        client = Client(host)
        model = await client.create()
        await client.train(model, data_of(0))
        await client.step(model)
        path = await client.save(model, "s", "sampler_weights")
        first = await client.sampler(model_path=path)
        old = await client.logprobs(first, TOKENS)
        assert await hosted_logprobs(await host.hosted(OWNER, path)) == pytest.approx(old, abs=1e-5)
        # more adapters than stay in memory, so that the first must be read again
        for _ in range(3):
            await client.logprobs(await client.snapshot(model), TOKENS)
        host.delete_checkpoint(OWNER, TinkerPath.parse(path))
        with pytest.raises(ServingError) as caught:
            await host.hosted(OWNER, path)
        assert caught.value.status == 404
        assert np.array_equal(await client.logprobs(first, TOKENS), old)
        await client.train(model, data_of(1))
        await client.step(model)
        assert await client.save(model, "s", "sampler_weights") == path
        new = await client.trained_logprobs(model, TOKENS)
        assert np.abs(new - old).max() > 0.01
        second = await client.sampler(model_path=path)
        assert await client.logprobs(second, TOKENS) == pytest.approx(new, abs=1e-4)
        hosted = await hosted_logprobs(await host.hosted(OWNER, path))
        assert hosted == pytest.approx(new, abs=1e-4)
        assert np.array_equal(await client.logprobs(first, TOKENS), old)
        folders = list((host.store.folder / "checkpoints").iterdir())
        assert len(folders) == 2
        host.finish(OWNER, client.session_id)
        # the deleted one's files go with the last who used them
        assert len(list((host.store.folder / "checkpoints").iterdir())) == 1

    serve(few_awake(host), scenario)


def test_samplers_that_are_not_used_sleep_in_files(host):
    """A loop that makes a sampler a step and closes none."""

    async def scenario(host: Host) -> None:
        client = Client(host)
        model = await client.create()
        moments, wanted = [], []
        for i in range(5):
            await client.train(model, data_of(i))
            await client.step(model)
            moments.append(await client.snapshot(model))
            wanted.append(await client.logprobs(moments[-1], TOKENS))
        await asyncio.sleep(0)
        assert host._cache.num_awake == 2
        for moment, logprobs in zip(moments, wanted, strict=True):
            assert np.array_equal(await client.logprobs(moment, TOKENS), logprobs)
        awake = [w for _, w in host._samplers._open.values() if w.loaded is not None]
        assert len(awake) <= 3
        host.finish(OWNER, client.session_id)
        await asyncio.gather(*host._workers._tasks - {sweeper(host)}, return_exceptions=True)
        assert not list(host.store.staging.iterdir())

    serve(few_awake(host), scenario)


def few_awake(host: Host) -> Host:
    host._cache._max_awake = 2
    return host


def sweeper(host: Host) -> "asyncio.Task[Any]":
    [task] = [t for t in host._workers._tasks if "sweep" in repr(t.get_coro())]
    return task
