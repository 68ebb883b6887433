"""The pool on Ray: a cluster of raylets on this machine, of which some are killed.

    uv sync --extra ray
    uv run pytest tests/training/backends/pool/test_pool_ray.py -m ray -n 0

Skipped where Ray is not installed.
"""

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.api import AdamParams, Datum, ModelInput, RequestFailedError, SamplingParams
from training.connect import connect
from utils.sweeps.launch import Job
from utils.sweeps.launchers import make_launcher

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("one_torch_thread")]


@pytest.fixture
def cluster(ray: Any) -> Iterator[Any]:
    """A head that engines have no room on; nodes are added by the test."""
    utils: Any = importlib.import_module("ray.cluster_utils")
    made = utils.Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
    )
    yield made
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def connect_ray(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def make(**options: Any) -> Any:
        values: dict[str, Any] = {"num_engines": 1, "device": "cpu", **options}
        made.append(connect("ray", checkpoint_dir=tmp_path / "checkpoints", **values))
        return made[-1]

    yield make
    for service in made:
        service.close()


def datums(seed: int) -> list[Datum]:
    tokens = np.random.default_rng(seed).integers(3, 131, 12).tolist()
    inputs = {"target_tokens": tokens[1:], "weights": [1.0] * 11}
    return [Datum(ModelInput.from_ints(tokens[:-1]), inputs)]


def program(service: Any, model: str, at: Callable[[str], None] = lambda _: None) -> list[Any]:
    """One adapter trained and sampled; `at` is told where it is."""
    client = service.create_lora_training_client(model, rank=4, seed=0)
    results: list[Any] = []
    for step in range(4):
        loss = client.forward_backward(datums(step), "cross_entropy")
        stepped = client.optim_step(AdamParams(learning_rate=1e-2))
        loss.start()
        at(f"training {step}")
        results += [loss.result().metrics, stepped.result().metrics]
        at(f"between {step}")
    sampler = client.save_weights_and_get_sampling_client().result()
    params = SamplingParams(max_tokens=40, seed=1, stop=[])
    sampled = sampler.sample(ModelInput.from_ints([3, 4]), 4, params)
    sampled.start()
    at("sampling")
    results += [(s.tokens, s.logprobs) for s in sampled.result().sequences]
    return results


def test_a_laptop_needs_no_cluster(
    ray: Any,
    connect_ray: Callable[..., Any],
    connect_local: Callable[..., Any],
    tiny_model: Callable[..., str],
) -> None:
    model = tiny_model("llama")
    wanted = program(connect_local(), model)
    service = connect_ray(num_engines=2)
    # two services in one process
    other = connect_ray()
    assert program(service, model) == program(other, model) == wanted
    # an engine whose process is killed, and one that is stopped
    os.kill(service.pool.lanes[0].link.pid, signal.SIGKILL)
    assert program(service, model) == wanted
    with pytest.raises(ValueError, match=r"^loss_fn='none'"):
        client = service.create_lora_training_client(model, rank=4)
        wrong: Any = "none"
        client.forward(datums(0), wrong).result()
    service.close()
    assert program(other, model) == wanted
    other.close()
    assert not ray.is_initialized()


def test_a_silent_engine_is_replaced(
    ray: Any, connect_ray: Callable[..., Any], tiny_model: Callable[..., str]
) -> None:
    model = tiny_model("llama")
    service = connect_ray(silence_seconds=10)
    wanted = program(service, model)
    stopped = service.pool.lanes[0].link.pid
    os.kill(stopped, signal.SIGSTOP)
    assert program(service, model) == wanted
    assert service.num_lost == 1
    wait_until_gone(stopped)


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("moment", ["training 2", "between 2", "sampling"])
def test_a_lost_node_changes_nothing(
    moment: str,
    cluster: Any,
    connect_ray: Callable[..., Any],
    connect_local: Callable[..., Any],
    tiny_model: Callable[..., str],
) -> None:
    """With no other node at first."""
    model = tiny_model("llama")
    wanted = program(connect_local(), model)
    node = cluster.add_node(num_cpus=1)
    service = connect_ray(address=cluster.address, patience=10)
    engine = service.pool.lanes[0].link.pid

    def lose(where: str) -> None:
        if where == moment:
            cluster.remove_node(node, allow_graceful=False)
            # it may outlive its node by some seconds, and answer what it was asked
            wait_until_gone(engine)
            # long enough that a replacement is tried in vain, where something waits already
            time.sleep(5)
            cluster.add_node(num_cpus=1)

    assert program(service, model, lose) == wanted
    # at the latest now
    assert program(service, model) == wanted
    assert service.num_lost >= 1


def test_more_engines_than_cores_are_refused(ray: Any, connect_ray: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match=r"num_engines=999: this machine has \d+ cores"):
        connect_ray(num_engines=999)
    assert not ray.is_initialized()


def test_what_is_wrong_is_told_in_a_sentence(
    cluster: Any, connect_ray: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.add_node(num_cpus=1)
    with pytest.raises(ValueError, match=r"address='127.0.0.1:9': no Ray cluster answers there"):
        connect_ray(address="127.0.0.1:9")
    monkeypatch.setenv("RAY_ADDRESS", cluster.address)
    with pytest.raises(ValueError, match=r"no room .* each needs 1 CPU, 0 GPU, there are 1 CPU"):
        connect_ray(num_engines=2, patience=5)
    with pytest.raises(ValueError, match="device='cuda': the Ray cluster has 1 CPU, 0 GPU"):
        connect_ray(device="cuda")


def test_without_another_node_the_run_ends_with_a_sentence(
    cluster: Any, connect_ray: Callable[..., Any], tiny_model: Callable[..., str]
) -> None:
    model = tiny_model("llama")
    node = cluster.add_node(num_cpus=1)
    service = connect_ray(address=cluster.address, patience=3, replace_seconds=3)
    client = service.create_lora_training_client(model, rank=4)
    engine = service.pool.lanes[0].link.pid
    cluster.remove_node(node, allow_graceful=False)
    # it may outlive its node by some seconds, and answer
    wait_until_gone(engine)
    with pytest.raises(RequestFailedError, match="no place for another one"):
        client.forward(datums(0), "cross_entropy").result()


def test_a_sweep_runs_on_the_cluster(ray: Any, tmp_path: Path) -> None:
    launcher = make_launcher("ray", max_parallel=2, threads=1)

    def job(name: str, code: str) -> Job:
        return Job(name, [sys.executable, "-c", code], tmp_path / f"{name}.txt", tmp_path)

    launcher.submit(job("good", "import os; print(os.environ['OMP_NUM_THREADS'])"))
    launcher.submit(job("bad", "print('out'); raise SystemExit(3)"))
    launcher.submit(job("third", "print('third')"))
    ends: dict[str, int] = {}
    while len(ends) < 3:
        for update in launcher.wait(1.0):
            if update.result is not None:
                ends[update.handle] = update.result.returncode
    assert ends == {"good": 0, "bad": 3, "third": 0}
    assert (tmp_path / "good.txt").read_text().strip() == "1"
    assert (tmp_path / "bad.txt").read_text().strip() == "out"
    # one that is interrupted may save
    saving = "import time, signal\ntry:\n print('on', flush=True); time.sleep(60)\n"
    saving += "except KeyboardInterrupt:\n print('saved')"
    launcher.submit(job("long", saving))
    launcher.wait(0.1)
    log = tmp_path / "long.txt"
    while not (log.exists() and "on" in log.read_text()):
        time.sleep(0.1)
    [update] = launcher.cancel(20)
    assert update.handle == "long" and update.result is not None
    assert "saved" in log.read_text()
    assert not ray.is_initialized()
