"""Requests to the host: in order, once, refused where they are made, answered as often as asked."""

import asyncio
import datetime
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_world import (
    GREEDY,
    OWNER,
    PROMPT,
    STEP,
    Client,
    Clock,
    data_of,
    make_host,
    open_store,
    serve,
    stopped_engine,
    weights_of,
)
from tiny_chat import save_chat_model

from training.api import AdamParams, Datum, LoraConfig, ModelInput, SamplingParams
from training.serving.errors import ServingError
from training.serving.host import Host
from training.serving.memory_sizes import OVERHEAD
from training.serving.storage.rows import utc_now


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def hosts(service: Any, tmp_path: Path, folder: str) -> Iterator[Callable[..., Host]]:
    """hosts(**options) -> a host over one service for the whole file."""
    store = open_store(tmp_path)
    # closing a host closes its service, which the next test needs
    kept = KeptOpen(service)
    yield lambda **options: make_host(kept, store, folder, **options)
    store.close()


class KeptOpen:
    def __init__(self, service: Any) -> None:
        self._service = service

    def __getattr__(self, name: str) -> Any:
        return getattr(self._service, name)

    def close(self) -> None:
        pass


async def refusal(awaited: Any) -> ServingError:
    with pytest.raises(ServingError) as caught:
        await awaited
    return caught.value


# ---------------------------------------------------------------------------------------- in order


def test_chunks_that_come_out_of_order_are_one_gradient(hosts, service, folder):
    """The SDK sends the first of three chunks last; a step and a save wait for all of them."""

    async def scenario(host: Host) -> np.ndarray:
        client = Client(host)
        model = await client.create()
        with stopped_engine(service, folder):
            posted = [await client.post_train(model, data_of(seq), seq=seq) for seq in (2, 3, 1)]
            posted.append(await client.post_step(model, seq=4))
            # a number that never comes is waited for by nobody
            saving = host.save_weights(OWNER, model, 9, "after", digest="")
            posted.append(await saving)
        for promise in posted:
            await client.result(promise)
        return weights_of(host, model)

    got = serve(hosts(), scenario)
    twin = service.create_lora_training_client(folder, rank=4, seed=1)
    for seed in (2, 3, 1):
        twin.forward_backward(data_of(seed), "cross_entropy")
    twin.optim_step(STEP).result()
    assert np.array_equal(got, twin._adapter.flat.numpy())
    whole = service.create_lora_training_client(folder, rank=4, seed=1)
    data = [datum for seed in (1, 2, 3) for datum in data_of(seed)]
    whole.forward_backward(data, "cross_entropy")
    whole.optim_step(STEP).result()
    assert got == pytest.approx(whole._adapter.flat.numpy(), abs=1e-4)


def test_forward_only_leaves_the_gradient(hosts):
    async def scenario(host: Host) -> None:
        client = Client(host)
        models = [await client.create(), await client.create()]
        outputs = []
        for model, looks in zip(models, (0, 3), strict=True):
            output = await client.train(model, data_of(0))
            for seed in range(looks):
                outputs.append(
                    (output, await client.train(model, data_of(seed), forward_only=True))
                )
            await client.step(model)
        assert np.array_equal(weights_of(host, models[0]), weights_of(host, models[1]))
        output, looked = outputs[0]
        for one, other in zip(output.loss_fn_outputs, looked.loss_fn_outputs, strict=True):
            assert one["logprobs"].to_numpy() == pytest.approx(other["logprobs"].to_numpy())

    serve(hosts(), scenario)


def test_one_models_step_leaves_the_others_bits(hosts):
    async def scenario(host: Host) -> None:
        client, other = Client(host), Client(host, "bob")
        a, b = await client.create(), await other.create(seed=2)
        before = weights_of(host, b)
        await asyncio.gather(client.train(a, data_of(0)), other.train(b, data_of(1)))
        moved = weights_of(host, a)
        await client.step(a)
        assert np.array_equal(weights_of(host, b), before)
        assert not np.array_equal(weights_of(host, a), moved)

    serve(hosts(), scenario)


def test_a_step_without_a_gradient_says_so(hosts):
    async def scenario(host: Host) -> None:
        client = Client(host)
        model = await client.create()
        before = weights_of(host, model)
        metrics = await client.step(model, AdamParams(weight_decay=0.5))
        assert metrics == {"grad_norm": 0.0, "num_steps": 0.0, "had_gradient": 0.0}
        assert np.array_equal(weights_of(host, model), before)
        await client.train(model, data_of(0))
        assert (await client.step(model))["had_gradient"] == 1.0

    serve(hosts(), scenario)


# -------------------------------------------------------------------------------------------- once


def test_a_step_that_is_sent_again_is_taken_once(hosts, service, folder):
    async def scenario(host: Host) -> np.ndarray:
        client = Client(host)
        model = await client.create()
        await client.train(model, data_of(0), seq=1)
        # the network repeats it before, while and after it runs
        with stopped_engine(service, folder):
            first, second = await asyncio.gather(
                client.post_step(model, seq=2), client.post_step(model, seq=2)
            )
        assert first is second
        metrics = await client.result(first)
        third = await client.post_step(model, seq=2)
        assert third.request_id == first.request_id
        assert await client.result(third) == metrics and metrics["metrics"]["num_steps"] == 1.0
        trained = await client.post_train(model, data_of(1), seq=3)
        assert (await client.post_train(model, data_of(1), seq=3)) is trained
        await client.result(trained)
        for other in (client.post_step(model, AdamParams(), seq=2), client.post_step(model, seq=3)):
            error = await refusal(other)
            assert error.status == 400 and "was used before" in error.message
        await client.result(await client.post_step(model, seq=4))
        return weights_of(host, model)

    got = serve(hosts(), scenario)
    twin = service.create_lora_training_client(folder, rank=4, seed=1)
    for seed in (0, 1):
        twin.forward_backward(data_of(seed), "cross_entropy")
        twin.optim_step(STEP).result()
    assert np.array_equal(got, twin._adapter.flat.numpy())


def test_a_model_that_is_asked_for_twice_is_made_once(hosts, service, monkeypatch):
    made: list[int] = []
    create = service.create_lora_training_client

    def counted(*args: Any, **given: Any) -> Any:
        made.append(1)
        return create(*args, **given)

    monkeypatch.setattr(service, "create_lora_training_client", counted)

    async def scenario(host: Host) -> None:
        client = Client(host)

        async def post(digest: str = "same", base: str = "an/alias") -> Any:
            return await host.create_model(
                OWNER, client.session_id, 0, base, LoraConfig(4, seed=1), digest=digest
            )

        first, second = await asyncio.gather(post(), post())
        wanted = {"model_id": f"{client.session_id}:train:0"}
        assert await client.result(first) == await client.result(second) == wanted
        assert (await post()) is first and len(made) == 1
        assert (await refusal(post("other"))).status == 400

    serve(hosts(), scenario)


def test_a_sample_that_is_sent_again_is_drawn_once(hosts):
    async def scenario(host: Host) -> None:
        client = Client(host)
        sampler = await client.sampler(base_model="an/alias")
        params = SamplingParams(max_tokens=5, stop=[])
        first, second = await asyncio.gather(
            client.post_sample(sampler, PROMPT, 3, params, seq=0),
            client.post_sample(sampler, PROMPT, 3, params, seq=0),
        )
        assert first is second and len(set(first.sample_sequence_ids)) == 3
        result = await client.result(first)
        # no seed: drawn again it would be another
        assert await client.result(await client.post_sample(sampler, PROMPT, 3, params, seq=0)) is (
            result
        )
        again = await client.post_sample(sampler, PROMPT, 3, params, seq=1)
        assert not set(again.sample_sequence_ids) & set(first.sample_sequence_ids)
        error = await refusal(client.post_sample(sampler, [9], 3, params, seq=0))
        assert error.status == 400

    serve(hosts(), scenario)


# ----------------------------------------------------------------------------------------- refused


def test_what_was_promised_a_day_ago_is_forgotten(hosts, monkeypatch):
    clock = Clock()

    async def scenario(host: Host) -> None:
        client = Client(host)
        model = await client.create()
        await client.train(model, data_of(0))

        def num_noted() -> int:
            return host.store.futures._database.read("SELECT count(*) FROM futures")[0][0]

        assert num_noted() == 2
        clock.now = 3601.0
        host.heartbeat(OWNER, client.session_id)
        host.sweep()
        assert num_noted() == 2
        later = utc_now() + datetime.timedelta(days=1, seconds=1)
        monkeypatch.setattr("training.serving.host.utc_now", lambda: later)
        # looked for once an hour
        host.sweep()
        assert num_noted() == 2
        clock.now = 7202.0
        host.sweep()
        assert num_noted() == 0

    serve(hosts(clock=clock), scenario)


def test_samples_can_be_cancelled_and_training_goes_on(hosts, service, folder):
    """What was asked after a pass counts on it."""

    async def scenario(host: Host) -> None:
        client = Client(host)
        model = await client.create()
        sampler = await client.sampler(base_model=folder)
        await client.sample(sampler)
        with stopped_engine(service, folder):
            # more than the engine is given at once, so that some wait
            trained = [await client.post_train(model, data_of(at)) for at in range(6)]
            drawn = await client.post_sample(sampler)
            for promise in (*trained, drawn):
                host.cancel(OWNER, promise.request_id)
            for owner, request_id in (("bob", drawn.request_id), (OWNER, "none")):
                with pytest.raises(ServingError) as caught:
                    host.cancel(owner, request_id)
                assert caught.value.status == 404
        for promise in trained:
            await client.result(promise)
        assert (await client.step(model))["had_gradient"] == 1.0
        outcome = await client.outcome(drawn)
        assert outcome.state == "error" and "nobody waits" in outcome.message

    serve(hosts(), scenario)


def test_what_cannot_be_is_refused_where_it_is_made(hosts, folder):
    async def scenario(host: Host) -> None:
        client = Client(host)
        model = await client.create()
        before = weights_of(host, model)
        bad = data_of(0)
        bad[1] = Datum(ModelInput.from_ints([5, 100_000]), {"target_tokens": [1, 2]})
        error = await refusal(client.post_train(model, bad))
        assert error.status == 400 and "data[1].model_input" in error.message
        assert "vocabulary" in error.message
        # it left no gradient, and no hole that anything waits for
        assert (await client.step(model))["had_gradient"] == 0.0
        assert np.array_equal(weights_of(host, model), before)

        async def create(base: str = folder, **lora: Any) -> Any:
            config = LoraConfig(**lora)
            return await host.create_model(OWNER, client.session_id, 7, base, config, digest="")

        for wrong, told in (
            (create("no/model"), f"this server has {folder}, an/alias"),
            (create(rank=999), "rank: got 999, allowed 1 to 256"),
            (create(train_attn=False, train_mlp=False, train_unembed=False), "at least one"),
            (client.save(model, ".hidden"), "checkpoint's name"),
            (client.save(model, "a", ttl_seconds=0), "ttl_seconds: got 0"),
            (client.sampler(), "exactly one of base_model and model_path"),
            (client.sampler(base_model="x"), "base_model: got 'x'"),
            (client.sampler(model_path="tinker://r/weights/a"), "needs sampler_weights"),
        ):
            error = await refusal(wrong)
            assert error.status == 400 and told in error.message
        assert host.status()["models"] == 1

        sampler = await client.sampler(base_model=folder)
        await client.sample(sampler)
        long = SamplingParams(max_tokens=4000)
        error = await refusal(client.post_sample(sampler, [5] * 100, 1, long))
        assert error.status == 400
        assert all(number in error.message for number in ("100", "4000", "4096"))
        error = await refusal(client.post_sample(sampler, PROMPT, 257))
        assert "num_samples: got 257, allowed 1 to 256" in error.message
        error = await refusal(client.post_sample(sampler, [100_000]))
        assert error.status == 400 and "vocabulary" in error.message
        hosted = await host.hosted(OWNER, folder)
        error = await refusal(hosted.sample(ModelInput.from_ints([100_000]), 1, GREEDY))
        assert error.status == 400 and "vocabulary" in error.message
        error = await refusal(host.hosted(OWNER, "gpt"))
        assert (error.status, error.code, error.param) == (404, "model_not_found", "model")
        assert folder in error.message and "weights/..." not in error.message
        error = await refusal(host.hosted(OWNER, "tinker://run/weights/a"))
        assert error.status == 404 and "sampler_weights/... answer" in error.message

    serve(hosts(), scenario)


def test_what_belongs_to_another_does_not_exist(hosts):
    async def scenario(host: Host) -> None:
        client, other = Client(host), Client(host, "bob")
        model = await client.create()
        promise = await client.post_train(model, data_of(0))
        await client.result(promise)
        path = await client.save(model, "s", "sampler_weights")
        state = await client.save(model, "s")
        sampler = await client.sampler(model_path=path)
        moment = await client.snapshot(model)
        for asked in (
            other.post_train(model, data_of(0)),
            other.post_step(model),
            other.save(model, "t"),
            other.post_sample(sampler),
            other.post_sample(moment),
            other.sampler(model_path=path),
            other.load(state, with_optimizer=True),
            host.wait("bob", promise.request_id, 0),
            host.hosted("bob", path),
            host.unload_model("bob", model, None, digest=""),
        ):
            error = await refusal(asked)
            assert error.status == 404, error.message
        for call in (
            lambda: host.info("bob", model),
            lambda: host.sampler_info("bob", sampler),
            lambda: host.sampler_info("bob", moment),
            lambda: host.heartbeat("bob", client.session_id),
            lambda: host.finish("bob", client.session_id),
            lambda: host.cancel("bob", promise.request_id),
        ):
            with pytest.raises(ServingError) as caught:
                call()
            assert caught.value.status == 404
        assert [entry.name for entry in host.models("bob")] == host.bases.names
        assert path in [entry.name for entry in host.models(OWNER)]

    serve(hosts(), scenario)


def test_too_many_open_requests_are_told_to_come_later(hosts, service, folder):
    async def scenario(host: Host) -> None:
        client, other = Client(host), Client(host, "bob")
        sampler = await client.sampler(base_model=folder)
        theirs = await other.sampler(base_model=folder)
        await client.sample(sampler)
        with stopped_engine(service, folder):
            posted = [await client.post_sample(sampler) for _ in range(3)]
            error = await refusal(client.post_sample(sampler))
            assert error.status == 429 and error.retry_after == 2.0
            posted.append(await other.post_sample(theirs))
        for promise in posted[:3]:
            await client.result(promise)
        await other.result(posted[3])
        await client.sample(sampler)

    serve(hosts(max_open_requests=3), scenario)


# ---------------------------------------------------------------------------------------- answered


def test_a_result_is_there_until_its_time_is_over(hosts):
    clock = Clock()

    async def scenario(host: Host) -> None:
        client = Client(host)
        model = await client.create()
        promise = await client.post_train(model, data_of(0))
        value = await client.result(promise)
        clock.now = 599.0
        assert await client.result(promise) is value
        clock.now = 600.0
        host.sweep()
        error = await refusal(host.wait(OWNER, promise.request_id, 0))
        assert error.status == 410 and "600 seconds" in error.message
        error = await refusal(host.wait(OWNER, "nothing", 0))
        assert error.status == 404

    serve(hosts(clock=clock), scenario)


def test_the_oldest_results_make_room(hosts):
    async def scenario(host: Host) -> None:
        client = Client(host)
        sampler = await client.sampler(base_model="an/alias")
        promises = [await client.post_sample(sampler) for _ in range(6)]
        for promise in promises:
            # either its result, or one that later ones took the place of
            await asyncio.wait([promise.done])
        assert host.status()["result_bytes"] <= 9_000
        assert (await refusal(host.wait(OWNER, promises[0].request_id, 0))).status == 410
        await client.result(promises[-1])

    serve(hosts(max_result_bytes=9_000), scenario)


def test_a_result_counts_with_what_it_holds(hosts):
    """Of a sample too, which comes with how it is to be written."""

    async def scenario(host: Host) -> None:
        client = Client(host)
        sampler = await client.sampler(base_model="an/alias")
        sampled = await client.sample(sampler, None, 4)
        pairs = [(s.tokens_np, s.logprobs_np) for s in sampled.response.sequences]
        arrays = [array for pair in pairs for array in pair if array is not None]
        assert len(arrays) == 8
        assert host.status()["result_bytes"] == OVERHEAD + sum(a.nbytes for a in arrays)

    serve(hosts(), scenario)


def test_thousands_wait_without_threads_and_one_may_give_up(hosts, service, folder):
    async def scenario(host: Host) -> None:
        client = Client(host)
        sampler = await client.sampler(base_model=folder)
        await client.sample(sampler)
        before = threading.active_count()
        with stopped_engine(service, folder):
            one = SamplingParams(max_tokens=1)
            promises = [await client.post_sample(sampler, params=one) for _ in range(300)]
            waits = [asyncio.create_task(client.outcome(p)) for p in promises for _ in range(7)]
            await asyncio.sleep(0)
            # the engine's gate is a thread less, the checkers at most two more
            assert threading.active_count() <= before + 2
            waits[0].cancel()
            # a poll that is over says so and changes nothing
            assert (await host.wait(OWNER, promises[1].request_id, 0)).state == "pending"
        outcomes = await asyncio.gather(*waits, return_exceptions=True)
        assert isinstance(outcomes[0], asyncio.CancelledError)
        assert all(getattr(outcome, "state", None) == "result" for outcome in outcomes[1:])

    serve(hosts(), scenario)


def test_an_adapter_that_does_not_fit_is_refused_with_a_figure(hosts, service, monkeypatch):
    adapter_memory = service.adapter_memory

    def nearly_full(*args: Any, **given: Any) -> Any:
        return adapter_memory(*args, **given)._replace(free=100_000)

    async def scenario(host: Host) -> None:
        client = Client(host)
        await client.create(rank=1)
        config = LoraConfig(rank=32)
        promise = await host.create_model(
            OWNER, client.session_id, 5, "an/alias", config, digest=""
        )
        outcome = await client.outcome(promise)
        assert (outcome.state, outcome.category) == ("error", "user")
        # 20 bytes for each of the adapter's numbers
        made = await client.result(
            await host.create_model(
                OWNER, client.session_id, 6, "an/alias", LoraConfig(1), digest=""
            )
        )
        size = weights_of(host, made["model_id"]).size * 32 * 20
        assert f"needs {size / 1e6:,.0f} MB" in outcome.message and "unload" in outcome.message
        error = await refusal(client.post_step(f"{client.session_id}:train:5"))
        assert error.status == 404

    monkeypatch.setattr(service, "adapter_memory", nearly_full)
    serve(hosts(), scenario)


def test_a_step_is_not_taken_again_when_its_result_is_gone(hosts):
    clock = Clock()

    async def scenario(host: Host) -> None:
        client = Client(host)
        model = await client.create()
        await client.train(model, data_of(0), seq=1)
        step = await client.post_step(model, seq=2)
        await client.result(step)
        before = weights_of(host, model)
        clock.now = 700.0
        host.heartbeat(OWNER, client.session_id)
        host.sweep()
        await client.train(model, data_of(1), seq=3)
        again = await client.post_step(model, seq=2)
        assert again.request_id == step.request_id
        assert (await refusal(host.wait(OWNER, again.request_id, 0))).status == 410
        assert np.array_equal(weights_of(host, model), before)

    serve(hosts(clock=clock), scenario)
