"""sampler="vllm" end to end, with a fake vLLM in the worker's process.

uv run pytest tests/training/backends/test_vllm_sampler.py
"""

import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import fake_vllm
import pytest
import vllm_contract
from vllm_contract import World, check_death, make_world

from training.api import ModelInput, SamplingParams
from training.backends.vllm.service import VllmServiceClient
from training.connect import connect

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tiny_chat import save_chat_model

    return save_chat_model(tmp_path_factory.mktemp("chat"), favourites="abc ")


@pytest.fixture(scope="module")
def connected(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., VllmServiceClient]]:
    """connected(wrong="", **options) -> a service whose vLLM is the fake one."""
    site = tmp_path_factory.mktemp("site") / "fake"
    fake_vllm.install(site)
    opened: list[VllmServiceClient] = []
    before = dict(os.environ)

    def make(wrong: str = "", **options: Any) -> VllmServiceClient:
        os.environ.update(PYTHONPATH=str(site), FAKE_VLLM=wrong)
        service = connect(
            "local",
            device="cpu",
            checkpoint_dir=tmp_path_factory.mktemp("checkpoints"),
            sampler="vllm",
            sampler_options={"python": sys.executable, **options},
        )
        assert isinstance(service, VllmServiceClient)
        opened.append(service)
        return service

    yield make
    for service in opened:
        service.close()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def world(connected: Callable[..., VllmServiceClient], model: str) -> World:
    return make_world(connected(), model)


@pytest.mark.parametrize("check", vllm_contract.CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Callable[[World], None], world: World) -> None:
    check(world)


def test_it_sleeps_while_training(world: World) -> None:
    """From the next pass on, when nothing runs any more; a sample wakes it, with its adapters."""
    vllm = world.service.vllm(world.service.engine(world.model))
    before, vllm._options = vllm._options, replace(vllm._options, sleep=True)
    try:
        # as on a GPU
        sampler = vllm_contract.sampler_of(world)
        params = SamplingParams(max_tokens=20, seed=1, stop=[])
        running = sampler.prepare_sample(world.prompt, 2, params, on_token=lambda _token: True)()
        vllm_contract.train(world.trainer, world.prompt.to_ints())
        vllm_contract.train(world.trainer, world.prompt.to_ints())
        told = [s.tokens for s in running.result().sequences]
        again = sampler.sample(world.prompt, 2, params).result()
        assert [s.tokens for s in again.sequences] == told
        vllm_contract.check_logprobs_are_the_trainers(world)
    finally:
        vllm._options = before
    log = [line for line in vllm._log.read_text().splitlines() if line.startswith("a")]
    assert log[:2] == ["asleep at level 1", "awake"]


# last: it uses up the world
def test_closing_leaves_nothing(world: World, caplog: pytest.LogCaptureFixture) -> None:
    params = SamplingParams(max_tokens=200, seed=8, stop=[])
    sampler, engine = vllm_contract.sampler_of(world), world.service.engine(world.model)
    future = sampler.sample(world.prompt, 1, params)
    pid, folder = world.pid, world.service.vllm(engine).base.path
    world.service.close()
    with pytest.raises(RuntimeError, match="the service was closed"):
        future.result(60)
    assert not folder.parent.exists()
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)
    caplog.set_level(logging.INFO)
    # nothing starts it again
    for ask in (
        lambda: sampler.sample(world.prompt, 1, params).result(60),
        lambda: world.service.vllm(engine),
    ):
        with pytest.raises(RuntimeError, match="the service was closed"):
            ask()
    assert "vLLM starts" not in caplog.text


def test_closing_while_it_starts(connected: Callable[..., VllmServiceClient], model: str) -> None:
    service = connected("starts for long")
    with ThreadPoolExecutor() as pool:
        client = pool.submit(service.create_sampling_client, base_model=model)
        vllm_contract.wait_until(lambda: service._vllms)
        [vllm] = service._vllms.values()
        service.close()
        with pytest.raises(RuntimeError, match="the service was closed"):
            client.result(60)
    with pytest.raises(ProcessLookupError):
        os.killpg(vllm.pid, 0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("no adapters", "vLLM cannot serve .* with adapters: its class Model takes no adapters"),
        ("unknown architecture", r"architectures \['Odd'\] are not supported for now; use samp"),
        ("does not start", r"vLLM does not start \(RuntimeError: Engine core .*its log is /"),
        pytest.param(
            "ignores adapters",
            r"with an adapter on every layer vLLM's logprobs of a test text are .* from the local "
            r"engine's; vLLM answers as the base model does; allowed is 0\.0001",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_vllm_cannot_serve(
    connected: Callable[..., VllmServiceClient], model: str, wrong: str, message: str
) -> None:
    service = connected(wrong)
    with pytest.raises(ValueError, match=message) as caught:
        service.create_sampling_client(base_model=model)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_death(connected: Callable[..., VllmServiceClient], model: str) -> None:
    check_death(make_world(connected(), model), lambda pid: os.kill(pid, signal.SIGKILL))


@pytest.mark.slow
def test_a_larger_rank_starts_it_again(world: World, caplog: pytest.LogCaptureFixture) -> None:
    before, sampler = world.pid, vllm_contract.sampler_of(world)
    params = SamplingParams(max_tokens=4, temperature=0.0, stop=[])
    told = sampler.sample(world.prompt, 1, params).result().sequences[0].tokens
    with caplog.at_level(logging.INFO, "training.backends.vllm"):
        world.service.create_lora_training_client(world.model, rank=8, seed=0)
        assert world.pid == before
        world.service.create_lora_training_client(world.model, rank=9, seed=0)
    assert world.pid != before and "room for adapters of rank 16" in caplog.text
    assert re.search(r"vLLM 0\.32\.0 is ready after .* nats at most \(RMS", caplog.text)
    assert sampler.sample(world.prompt, 1, params).result().sequences[0].tokens == told
    with pytest.raises(ValueError, match="rank=600: vLLM serves adapters up to rank 512"):
        world.service.create_lora_training_client(world.model, rank=600, seed=0)


@pytest.mark.slow
def test_without_the_head_and_with_errors_later(
    connected: Callable[..., VllmServiceClient], model: str
) -> None:
    service = connected("no head,loses samples,refuses adapters")
    with pytest.raises(ValueError, match=r"train_unembed=True: vLLM's Model takes no adapter on"):
        service.create_lora_training_client(model, rank=4)
    trainer = service.create_lora_training_client(model, rank=4, train_unembed=False, seed=0)
    with pytest.raises(ValueError, match=r"vLLM cannot serve this adapter .*no room"):
        trainer.save_weights_and_get_sampling_client().result()
    sampler = service.create_sampling_client(base_model=model)
    prompt = ModelInput.from_ints([1, 2])
    with pytest.raises(RuntimeError, match=r"ended a sample before its end \(abort\)"):
        sampler.sample(prompt, 1, SamplingParams(max_tokens=3)).result()
    with pytest.raises(RuntimeError, match="vLLM: 13 is no good number") as caught:
        sampler.sample(prompt, 1, SamplingParams(max_tokens=13)).result()
    assert caught.value.category == "user"  # type: ignore[attr-defined]
