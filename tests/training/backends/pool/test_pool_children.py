"""Engines as child processes: they compute what one process computes, and are killed for real.

uv run pytest tests/training/backends/pool/test_pool_children.py
"""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_kills import Loss, Losses, engine_pids
from places import ROOT

from training.api import AdamParams, Datum, ModelInput, RequestFailedError, SamplingParams
from training.connect import connect

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.skipif(CORES < 2, reason="two engines need two cores"),
]


@pytest.fixture
def connect_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Any]]:
    # one thread as in this process, so that sums have the same bits; and no notes of the user's
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("AUTODIDACT_CACHE", str(tmp_path / "cache"))
    made: list[Any] = []

    def make(**options: Any) -> Any:
        values: dict[str, Any] = {"num_engines": 2, "checkpoint_dir": tmp_path / "p"}
        made.append(connect("processes", device="cpu", **(values | options)))
        return made[-1]

    yield make
    for service in made:
        service.close()
    assert list((tmp_path / "p").glob(".engines-*")) == []


def datums(seed: int) -> list[Datum]:
    tokens = np.random.default_rng(seed).integers(3, 131, 12).tolist()
    inputs = {"target_tokens": tokens[1:], "weights": [1.0] * 11}
    return [Datum(ModelInput.from_ints(tokens[:-1]), inputs)]


def program(
    service: Any, model: str, seeds: tuple[int, ...] = (0, 1), steps: int = 4
) -> dict[str, Any]:
    """Trains an adapter per seed and samples from it; all that comes of it."""
    clients = [service.create_lora_training_client(model, rank=4, seed=seed) for seed in seeds]
    losses, texts, logprobs = [], [], []
    prompt = ModelInput.from_ints([3, 4, 5])
    for step in range(steps):
        futures = []
        for seed, client in zip(seeds, clients, strict=True):
            futures.append(client.forward_backward(datums(10 * step + seed), "cross_entropy"))
            futures.append(client.optim_step(AdamParams(learning_rate=1e-2)))
        losses += [sorted(future.result().metrics.items()) for future in futures]
        samplers = [client.save_weights_and_get_sampling_client().result() for client in clients]
        params = SamplingParams(max_tokens=6, seed=step)
        asked = [sampler.sample(prompt, 2, params) for sampler in samplers]
        for future in asked:
            for sequence in future.result().sequences:
                texts.append(sequence.tokens)
                logprobs += sequence.logprobs
    return {"losses": losses, "texts": texts, "logprobs": logprobs}


def test_one_client_on_each_engine_computes_the_bits_of_one_process(
    connect_children: Callable[..., Any],
    connect_local: Callable[..., Any],
    tiny_model: Callable[..., str],
) -> None:
    model = tiny_model("llama")
    service = connect_children()
    both = program(service, model)
    alone = [program(connect_local(), model, (seed,)) for seed in (0, 1)]
    assert both["losses"][::4] == alone[0]["losses"][::2]
    assert both["losses"][2::4] == alone[1]["losses"][::2]
    texts = [alone[k % 4 // 2]["texts"][k // 4 * 2 + k % 2] for k in range(len(both["texts"]))]
    assert both["texts"] == texts
    # the rest of the API, through the same engines
    client = service.create_lora_training_client(model, rank=2, seed=3, target_modules=["q_proj"])

    def squares(data: list[Datum], logprobs: list[Any]) -> tuple[Any, dict[str, float]]:
        return sum((row**2).sum() for row in logprobs), {"mine": 1.0}

    local = connect_local()
    twin = local.create_lora_training_client(model, rank=2, seed=3, target_modules=["q_proj"])
    for one in (client, twin):
        one.forward_backward_custom(datums(1), squares)
        one.optim_step(AdamParams(learning_rate=1e-2)).result()
    paths = [one.save_state("a").result().path for one in (client, twin)]
    loaded = [
        one.create_training_client_from_sum([(path, 0.5)], model)
        .forward_backward_custom(datums(2), squares)
        .result()
        .metrics
        for one, path in zip((service, local), paths, strict=True)
    ]
    assert loaded[0] == loaded[1] and loaded[0]["mine"] == 1.0
    assert service.size_of_b(paths[0]) == local.size_of_b(paths[1]) > 0
    assert client.get_info().lora_rank == 2 and client.get_info().model_id == client.model_id
    assert service.get_server_capabilities() == local.get_server_capabilities()
    with pytest.raises(ValueError, match=r"^target_modules has \['nothing'\]"):
        service.create_lora_training_client(model, target_modules=["nothing"])
    with pytest.raises(FileNotFoundError, match="no such checkpoint folder"):
        service.create_training_client_from_state("nowhere", model)
    wrong: Any = "none"
    with pytest.raises(ValueError, match="loss_fn"):
        client.forward(datums(1), wrong).result()
    [datum] = datums(1)
    huge = Datum(datum.model_input, {**datum.loss_fn_inputs, "weights": [3e38] * 11})
    with pytest.raises(RequestFailedError, match="float32 cannot hold") as told:
        client.forward_backward([huge], "cross_entropy").result()
    assert told.value.category == "user"


def test_what_cannot_be_sent_fails_alone(
    connect_children: Callable[..., Any],
    connect_local: Callable[..., Any],
    tiny_model: Callable[..., str],
) -> None:
    model = tiny_model("llama")
    losses = []
    for service in (connect_children(num_engines=1), connect_local()):
        client = service.create_lora_training_client(model, rank=4, seed=0)
        # read once, as a list is
        good = client.forward(iter(datums(0)), "cross_entropy")
        if not losses:
            config: Any = {"clip_low_threshold": lambda: 0.8}
            bad = client.forward(datums(0), "ppo", config)
            with pytest.raises(TypeError, match="an argument cannot be sent to an engine in anoth"):
                bad.result()
        losses.append(good.result().metrics["loss:sum"])
        # and the engine goes on
        losses.append(client.forward(datums(0), "cross_entropy").result().metrics["loss:sum"])
    assert losses[0] > 0 and len(set(losses)) == 1


@pytest.mark.slow
def test_a_killed_engine_comes_back_with_its_adapters(
    connect_children: Callable[..., Any],
    connect_local: Callable[..., Any],
    tiny_model: Callable[..., str],
) -> None:
    model = tiny_model("llama")
    wanted = program(connect_local(), model, (0,))
    service = connect_children(num_engines=1)
    program(service, model, (0,), steps=1)
    timer = threading.Timer(0.03, os.kill, [service.pool.lanes[0].link.pid, signal.SIGKILL])
    timer.start()
    assert program(service, model, (0,)) == wanted
    timer.join()
    # between two requests too
    os.kill(service.pool.lanes[0].link.pid, signal.SIGKILL)
    assert program(service, model, (0,)) == wanted
    assert service.num_lost == 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds engines in /proc")
def test_ten_random_kills_change_nothing(
    connect_children: Callable[..., Any], tiny_model: Callable[..., str]
) -> None:
    """In training passes, steps, samples, snapshots, between them and while one is replaced."""
    model = tiny_model("llama")
    service = connect_children(snapshot_seconds=0.2)
    wanted = program(service, model, steps=60)
    plan: list[Loss] = ["kill", "twice", "kill", "no place", "kill", "twice", "kill", "kill"]
    losses = Losses(plan, seed=0, longest=2)
    while losses.plan:
        with losses.during([service]):
            found = program(service, model, steps=60)
        assert found["texts"] == wanted["texts"]
        assert found["logprobs"] == pytest.approx(wanted["logprobs"], abs=1e-5)
        assert found["losses"] == wanted["losses"]
    # one that was killed at the end is missed with the next request
    assert len(engine_pids()) <= 2


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
def test_a_silent_engine_is_replaced(
    connect_children: Callable[..., Any], tiny_model: Callable[..., str]
) -> None:
    model = tiny_model("llama")
    service = connect_children(num_engines=1, silence_seconds=15)
    wanted = program(service, model, (0,))
    stopped = service.pool.lanes[0].link.pid
    os.kill(stopped, signal.SIGSTOP)
    assert program(service, model, (0,)) == wanted
    assert not is_there(stopped)


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=["kill", "ctrl-c"])
def test_no_engine_outlives_its_driver(number: signal.Signals, tmp_path: Path) -> None:
    driver = subprocess.Popen(
        # -P: beside it stands a folder `training`
        [sys.executable, "-P", str(ROOT / "tests" / "pool_driver.py"), str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=ROOT,
    )
    assert driver.stdout is not None
    with driver:
        pids = [int(pid) for pid in driver.stdout.readline().split()]
        assert len(pids) == 2 and all(map(is_there, pids))
        # one of them cannot read that its driver is gone
        os.kill(pids[0], signal.SIGSTOP)
        driver.send_signal(number)
        driver.wait(timeout=60)
    deadline = time.monotonic() + 60
    while any(map(is_there, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_there, pids))


def test_more_engines_than_cores_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"num_engines=999: this machine has {CORES} cores"):
        connect("processes", num_engines=999, checkpoint_dir=tmp_path)


def test_an_engine_that_cannot_begin_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.backends.pool.children.PROGRAM", "no_such_program")
    with pytest.raises(ValueError, match="an engine did not begin: ended with code 1"):
        connect("processes", num_engines=2, checkpoint_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []
