"""The host over the local engine: what a client trains, saves, loads and samples through it is what
it would get in process."""

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
    make_host,
    open_store,
    serve,
)
from tiny_chat import save_chat_model

from training.api import ModelInput, SamplingParams
from training.serving.errors import ServingError
from training.serving.host import Host

TOKENS = [5, 6, 7, 8, 9, 10, 11, 12]
LARGE = {"params": STEP}


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


def weights_of(host: Host, model_id: str) -> np.ndarray:
    client: Any = host._trained._models[model_id].ready.result()
    return client._adapter.flat.numpy().copy()


def refused(error: "pytest.ExceptionInfo[ServingError]") -> tuple[int, str]:
    return error.value.status, error.value.message


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
        assert results[2 * i + 1] == {"metrics": {**metrics, "step": i + 1, "had_gradient": 1.0}}
    assert np.array_equal(weights, twin._adapter.flat.numpy())
    alone = twin.save_weights_and_get_sampling_client().result()
    params = SamplingParams(max_tokens=8, seed=3, stop=[])
    wanted = alone.sample(ModelInput.from_ints(PROMPT), 3, params, True).result()
    got = sampled.response
    assert [s.tokens for s in got.sequences] == [s.tokens for s in wanted.sequences]
    assert got.prompt_logprobs[1:] == pytest.approx(wanted.prompt_logprobs[1:], abs=1e-5)


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
