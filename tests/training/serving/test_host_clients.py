"""Clients of the host: many at once in fair turns, dying, silent, and back after a restart."""

import asyncio
import gc
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_world import (
    OWNER,
    PROMPT,
    Client,
    Clock,
    data_of,
    make_host,
    open_store,
    serve,
    stopped_engine,
)
from tiny_chat import save_chat_model

from training.api import ModelInput, SamplingParams
from training.serving.errors import ServingError
from training.serving.host import Host
from training.serving.names import TinkerPath

LONG = SamplingParams(max_tokens=3000, seed=1, stop=[])
SHORT = SamplingParams(max_tokens=3, seed=1, stop=[])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture
def service(connect_local: Any) -> Any:
    return connect_local(decode_steps_while_training=2)


@pytest.fixture
def hosts(service: Any, tmp_path: Path, folder: str) -> Iterator[Callable[..., Host]]:
    store = open_store(tmp_path)
    yield lambda **options: make_host(service, store, folder, **options)
    store.close()


async def refusal(awaited: Any) -> ServingError:
    with pytest.raises(ServingError) as caught:
        await awaited
    return caught.value


async def until(condition: Callable[[], bool]) -> None:
    """For what the engine's worker does in its own time."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.002)


# ------------------------------------------------------------------------------------------- turns


@pytest.mark.parametrize("owner", ["bob", OWNER])
def test_a_crowd_of_samples_does_not_starve_a_single_one(hosts, service, folder, owner):
    """Of 50 requests of one client that came first, a late one of another, with the same key too,
    passes all but those that the engine has."""

    async def scenario(host: Host) -> None:
        crowd, single = Client(host), Client(host, owner)
        many = await crowd.sampler(base_model=folder)
        few = await single.sampler(base_model=folder)
        await crowd.sample(many)
        finished: list[str] = []
        with stopped_engine(service, folder):
            for i in range(50):
                promise = await crowd.post_sample(many, params=SHORT)
                promise.done.add_done_callback(lambda _, i=i: finished.append(f"ann {i}"))
            late = await single.post_sample(few, params=SHORT)
            late.done.add_done_callback(lambda _: finished.append("bob"))
            assert host.status()["running"] == 5
        await single.result(late)
        await until(lambda: len(finished) == 51)
        # in the first batch, with the four of the crowd that were there before
        assert finished.index("bob") <= 4
        assert [name for name in finished if name != "bob"] == [f"ann {i}" for i in range(50)]

    serve(hosts(engine_rows=4, reserved_rows=1), scenario)


def test_a_large_request_gets_its_turn(hosts, service, folder):
    """One that needs all rows is not overtaken for ever by small ones."""

    async def scenario(host: Host) -> None:
        small, large = Client(host), Client(host, "bob")
        a = await small.sampler(base_model=folder)
        b = await large.sampler(base_model=folder)
        await small.sample(a)
        finished: list[str] = []
        with stopped_engine(service, folder):
            for i in range(20):
                promise = await small.post_sample(a, params=SHORT)
                promise.done.add_done_callback(lambda _, i=i: finished.append(f"ann {i}"))
            big = await large.post_sample(b, PROMPT, 4, SHORT)
            big.done.add_done_callback(lambda _: finished.append("bob"))
        await until(lambda: len(finished) == 21)
        # the four that ran, and at most the one that the reserved row lets by
        assert finished.index("bob") <= 8

    serve(hosts(engine_rows=4, reserved_rows=1), scenario)


def test_owners_take_turns_in_training_too(hosts, service, folder):
    async def scenario(host: Host) -> None:
        crowd, single = Client(host), Client(host, "bob")
        models = [await crowd.create() for _ in range(4)]
        own = await single.create()
        finished: list[str] = []
        promises = []
        with stopped_engine(service, folder):
            for seed in range(4):
                for model in models:
                    promise = await crowd.post_train(model, data_of(seed))
                    promise.done.add_done_callback(lambda _: finished.append("ann"))
                    promises.append(promise)
            late = await single.post_train(own, data_of(9))
            late.done.add_done_callback(lambda _: finished.append("bob"))
            # two are with the engine, one of a model at a time
            assert host.status()["running"] == 2
        await single.result(late)
        for promise in promises:
            await crowd.result(promise)
        assert finished.index("bob") <= 4

    serve(hosts(train_requests=2, train_depth=1), scenario)


def test_a_model_that_is_busy_holds_up_no_other(hosts, service, folder):
    """What is queued behind one model's request waits alone, and a request that fails frees it."""

    async def scenario(host: Host) -> None:
        client = Client(host)
        first, second = await client.create(), await client.create()
        with stopped_engine(service, folder):
            posted = [await client.post_train(first, data_of(seed)) for seed in range(5)]
            other = await client.post_train(second, data_of(9))
            assert host.status()["running"] == 2 + 1
        await client.result(other)
        for promise in posted:
            await client.result(promise)
        saved = await client.save(first, "same")
        assert saved.endswith("/weights/same")
        error = await refusal(client.save(first, "same"))
        assert error.status == 400 and "exists" in error.message
        assert (await client.step(first))["had_gradient"] == 1.0

    serve(hosts(train_depth=2), scenario)


# -------------------------------------------------------------------------------------------- ends


def test_a_client_that_breaks_off_takes_its_work_along(hosts, service, folder):
    async def scenario(host: Host) -> None:
        dying, other = Client(host), Client(host, "bob")
        model = await dying.create()
        moment = await dying.snapshot(model)
        theirs = await other.sampler(base_model=folder)
        wanted = (await other.sample(theirs, PROMPT, 1, SHORT)).response.sequences[0].tokens
        engine = service.engine(folder)
        running = [await dying.post_sample(moment, PROMPT, 2, LONG) for _ in range(2)]
        waiting = [await dying.post_sample(moment, PROMPT, 2, LONG) for _ in range(20)]
        await until(lambda: engine.sampler.rows == 4)
        kept = await other.post_sample(theirs, PROMPT, 1, SHORT)
        with stopped_engine(service, folder):
            training = [await dying.post_train(model, data_of(i)) for i in range(3)]
            decoded = engine.sampler.sampled_tokens
            host.finish(OWNER, dying.session_id, "interrupted", "Ctrl-C")
            # those that wait are gone at once
            assert all(not promise.is_open for promise in waiting)
            assert training[1].outcome.state == "error"
        outcomes = [await dying.outcome(promise) for promise in running]
        assert {o.state for o in outcomes} == {"error"} and "dropped" in outcomes[0].message
        assert (await other.result(kept)).response.sequences[0].tokens == wanted
        # each of the four rows had one token more, and the other client's its own three
        assert engine.sampler.sampled_tokens - decoded <= 4 + 3
        # what the engine had of its training ran to its end
        assert (await dying.outcome(training[0])).state == "result"
        for asked in (
            dying.post_sample(moment),
            dying.post_train(model, data_of(0)),
            dying.sampler(base_model=folder),
        ):
            assert (await refusal(asked)).status == 410
        with pytest.raises(ServingError, match="finished") as caught:
            host.heartbeat(OWNER, dying.session_id)
        assert caught.value.status == 410
        host.finish(OWNER, dying.session_id, "success")

    serve(hosts(engine_rows=4, reserved_rows=1, train_depth=1), scenario)


def test_open_requests_of_a_session_that_ends_well_are_answered(hosts, service, folder):
    async def scenario(host: Host) -> None:
        client = Client(host)
        model = await client.create()
        await client.train(model, data_of(0))
        await client.step(model)
        moment = await client.snapshot(model)
        wanted = (await client.sample(moment, PROMPT, 2, SHORT)).response
        with stopped_engine(service, folder):
            promises = [await client.post_sample(moment, PROMPT, 2, SHORT) for _ in range(4)]
            host.finish(OWNER, client.session_id)
        for promise in promises:
            got = (await client.result(promise)).response
            assert [s.tokens for s in got.sequences] == [s.tokens for s in wanted.sequences]
        assert host.status()["models"] == host.status()["samplers"] == 0

    serve(hosts(engine_rows=2), scenario)


def test_what_a_silent_client_holds_is_freed(hosts, service, folder):
    clock = Clock()

    async def scenario(host: Host) -> None:
        silent, alive = Client(host), Client(host, "bob")
        model = await silent.create()
        await silent.train(model, data_of(0))
        saved = await silent.save(model, "kept")
        named = await silent.sampler(model_path=await silent.save(model, "s", "sampler_weights"))
        moment = await silent.snapshot(model)
        own = await alive.create()
        held = host._trained._models[model].ready.result()
        adapter: Any = held
        watched = [weakref.ref(adapter._adapter.flat)]
        sampling: Any = host._samplers._open[moment][1].loaded
        watched.append(weakref.ref(sampling.result().client._weights))
        del held, adapter, sampling
        clock.now = 299.0
        host.heartbeat("bob", alive.session_id)
        host.sweep()
        assert host.status()["models"] == 2
        # somebody who waits for a request is not silent
        with stopped_engine(service, folder):
            promise = await silent.post_train(model, data_of(0))
            clock.now = 700.0
            host.heartbeat("bob", alive.session_id)
            waiter = asyncio.create_task(silent.outcome(promise))
            await asyncio.sleep(0)
            host.sweep()
            assert host.status()["models"] == 2
            waiter.cancel()
            await asyncio.gather(waiter, return_exceptions=True)
            # nor is anything freed under a pass that runs
            clock.now = 1000.0
            host.heartbeat("bob", alive.session_id)
            host.sweep()
            assert host.status()["models"] == 2
        await asyncio.wait([promise.done])
        clock.now = 1300.0
        host.heartbeat("bob", alive.session_id)
        host.sweep()
        assert host.status()["models"] == 1 and host.status()["samplers"] == 0
        del promise

        def is_freed() -> bool:
            gc.collect()
            return [ref() for ref in watched] == [None, None]

        # the worker may be about to leave the pass
        await until(is_freed)
        error = await refusal(silent.post_train(model, data_of(0)))
        assert error.status == 410 and saved in error.message
        error = await refusal(silent.post_sample(moment))
        assert error.status == 410 and "never saved" in error.message
        # the session itself goes on, and what was saved too
        host.heartbeat(OWNER, silent.session_id)
        await silent.sample(named, PROMPT, 1, SHORT)
        await silent.load(saved, with_optimizer=True)
        await alive.train(own, data_of(0))

    serve(hosts(clock=clock), scenario)


def test_a_sampler_never_answers_with_weights_that_came_later(hosts):
    """Nor where the server has to look them up again."""
    clock = Clock()

    async def scenario(host: Host) -> None:
        silent, other = Client(host), Client(host)
        model = await other.create()
        path = await other.save(model, "s", "sampler_weights")
        sampler = await silent.sampler(model_path=path)
        for last_heard in (0.0, 301.0):
            await silent.sample(sampler, PROMPT, 1, SHORT)
            clock.now = last_heard + 299.0
            host.heartbeat(OWNER, other.session_id)
            clock.now = last_heard + 301.0
            host.sweep()
            assert host.status()["samplers"] == 0 and host.status()["models"] == 1
        host.delete_checkpoint(OWNER, TinkerPath.parse(path))
        assert await other.save(model, "s", "sampler_weights") == path
        error = await refusal(silent.post_sample(sampler))
        assert error.status == 410 and "overwritten" in error.message

    serve(hosts(clock=clock), scenario)


def test_a_client_that_asks_for_results_is_alive(hosts):
    clock = Clock()

    async def scenario(host: Host) -> None:
        client = Client(host)
        model = await client.create()
        promise = await client.post_train(model, data_of(0))
        await asyncio.wait([promise.done])
        for clock.now in (200.0, 400.0, 600.0):
            await host.wait(OWNER, promise.request_id, 0)
            host.sweep()
            assert host.status()["models"] == 1
        clock.now = 901.0
        host.sweep()
        assert host.status()["models"] == 0

    # its results stay for longer than it is silent
    serve(hosts(clock=clock, result_seconds=5000.0), scenario)


def test_a_stream_that_is_closed_frees_its_row(hosts, service, folder):
    async def scenario(host: Host) -> None:
        hosted = await host.hosted(OWNER, folder)
        prompt = ModelInput.from_ints(PROMPT)
        stream = hosted.stream(prompt, LONG, num_samples=3)
        seen = [await anext(stream) for _ in range(6)]
        assert {token.sample for token in seen} == {0, 1, 2}
        await stream.aclose()
        task = asyncio.create_task(hosted.sample(prompt, 2, LONG))
        engine = service.engine(folder)
        await until(lambda: engine.sampler.rows > 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: host.status()["running"] == 0)
        assert engine.sampler.rows == 0
        # nothing is kept of requests that nobody can ask for again
        assert host.status()["result_bytes"] == 0 and not list(host._promises)

    serve(hosts(), scenario)


# ---------------------------------------------------------------------------------------- restarts


def test_after_a_restart_clients_learn_what_is_left(connect_local, tmp_path, folder):
    remembered: dict[str, Any] = {}

    async def before(host: Host) -> None:
        client = remembered["client"] = Client(host)
        model = remembered["model"] = await client.create()
        await client.train(model, data_of(0))
        await client.step(model)
        remembered["saved"] = await client.save(model, "kept")
        path = await client.save(model, "s", "sampler_weights")
        remembered["named"] = await client.sampler(model_path=path)
        remembered["moment"] = await client.snapshot(model)
        remembered["logprobs"] = await client.logprobs(remembered["named"], PROMPT)
        remembered["ended"] = await client.post_train(model, data_of(1))
        await client.result(remembered["ended"])
        remembered["sampled"] = await client.post_sample(remembered["named"])
        with stopped_engine(remembered["service"], folder):
            remembered["open"] = await client.post_train(model, data_of(1))
            # what kill -9 would leave: nothing is settled
            shutil.copytree(tmp_path / "before", tmp_path / "after")

    async def after(host: Host) -> None:
        client = remembered["client"]
        client.host = host
        # one that was done as well: its result and its model are gone
        for promise in (remembered["open"], remembered["ended"]):
            lost = await host.wait(OWNER, promise.request_id, 0)
            assert (lost.state, lost.category, lost.kind) == ("error", "server", "ForwardBackward")
            assert "restarted; resume from the last checkpoint" in lost.message
        error = await refusal(host.wait(OWNER, remembered["sampled"].request_id, 0))
        assert error.status == 410
        # to another owner it is like any number from before the restart
        made_up = f"00000000-{'0' * 32}"
        for request_id in (remembered["open"].request_id, made_up):
            assert (await refusal(host.wait("bob", request_id, 0))).status == 410
        error = await refusal(client.post_step(remembered["model"]))
        assert error.status == 410 and remembered["saved"] in error.message
        assert host.info(OWNER, remembered["model"]).run.lora.rank == 4
        assert (await refusal(client.post_sample(remembered["moment"]))).status == 410
        host.heartbeat(OWNER, client.session_id)
        again = await client.logprobs(remembered["named"], PROMPT)
        assert again == pytest.approx(remembered["logprobs"], abs=1e-5)
        assert not np.allclose(
            again, await client.logprobs(await client.sampler(base_model=folder), PROMPT)
        )
        await client.load(remembered["saved"], with_optimizer=True)

    for scenario in (before, after):
        store = open_store(tmp_path / scenario.__name__)
        remembered["service"] = connect_local()
        serve(make_host(remembered["service"], store, folder), scenario)
        store.close()


# --------------------------------------------------------------------------------------- memory


def test_freed_adapters_memory_goes_back_to_the_system(
    hosts: Callable[..., Host], folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When nothing has run for long, once, and not for clients that had none."""
    returned: list[int] = []
    monkeypatch.setattr(
        "training.serving.host.return_freed_memory", lambda: returned.append(len(returned))
    )
    clock = Clock()
    host = hosts(clock=clock, sweep_seconds=0.01, idle_seconds=60.0)
    sweeps: list[None] = []
    sweep = host.sweep
    monkeypatch.setattr(host, "sweep", lambda: (sweep(), sweeps.append(None)))

    async def some_sweeps() -> None:
        seen = len(sweeps)
        await until(lambda: len(sweeps) >= seen + 3)

    async def scenario(host: Host) -> None:
        other = Client(host, "bob")
        sampler = await other.sampler(base_model=folder)
        for wanted in (1, 2):
            client = Client(host)
            await client.create()
            await other.sample(sampler, PROMPT, 1, SHORT)
            host.finish(OWNER, client.session_id)
            await some_sweeps()
            clock.now += 59.0
            await some_sweeps()
            # somebody else's work, although it ends between two looks
            await other.sample(sampler, PROMPT, 1, SHORT)
            await some_sweeps()
            clock.now += 59.0
            await some_sweeps()
            assert len(returned) == wanted - 1
            clock.now += 1.0
            await until(lambda wanted=wanted: len(returned) >= wanted)
            await some_sweeps()
            assert len(returned) == wanted
        host.finish(OWNER, Client(host).session_id)
        clock.now += 100.0
        await some_sweeps()
        assert len(returned) == 2

    serve(host, scenario)
