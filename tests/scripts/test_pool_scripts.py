"""Scripts on several engines: one setting, the same results.

uv run pytest tests/scripts/test_pool_scripts.py
"""

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rl_loop
import ttt
from arc_world import ARC, arc_files
from bbh_world import NAMES, generated, save_bbh_model, write_files
from engine_kills import Loss, Losses, engine_pids
from run_results import loop_difference, ttt_difference

from training.connect import connect
from utils.runs.files import read_jsonl

logger = logging.getLogger(__name__)

# answers are 0 to 3, so that a random model that writes such digits is right now and then
GYM = (
    *("domain=gym", "task=letter_counting", 'task_config={"min_words": 1, "max_words": 2}'),
    *("train_size=30", "test_size=3", "groups_per_batch=2", "group_size=6", "max_tokens=1"),
    *("lora_rank=4", "learning_rate=0.01", "eval_size=3", "eval_temperature=1.0"),
)
BBH = ("k=3", "num_training_steps=4", "batch_size=2", "lora_rank=4", "lr=0.004")

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="two engines need two cores"),
]


@pytest.fixture(
    params=[
        pytest.param("processes", marks=pytest.mark.slow),
        pytest.param("ray", marks=pytest.mark.ray),
    ]
)
def pool_backend(request: pytest.FixtureRequest) -> str:
    if request.param == "ray":
        request.getfixturevalue("ray")
    return request.param


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    from tiny_chat import save_chat_model

    # engines have as many threads as this process
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("AUTODIDACT_CACHE", str(tmp_path / "cache"))
    return save_chat_model(tmp_path / "model", favourites="0123")


@pytest.mark.slow
def test_rl_loop_on_two_engines_has_the_bits_of_one_process(model: str, tmp_path: Path) -> None:
    runs = []
    for arguments in (["backend=local"], ["backend=processes", "num_engines=2"]):
        runs.append(tmp_path / arguments[0])
        shared = [f"model_name={model}", "num_steps=2", "eval_every=1", f"log_path={runs[-1]}"]
        rl_loop.entrypoint([*GYM, *shared, *arguments])
    assert loop_difference(runs[1], runs[0]) is None
    # it resumes with another number of engines
    shared = [f"model_name={model}", "num_steps=3", "eval_every=1"]
    for run, arguments in zip(
        runs, (["backend=local"], ["backend=processes", "num_engines=1"]), strict=True
    ):
        rl_loop.entrypoint([*GYM, *shared, f"log_path={run}", *arguments])
    assert loop_difference(runs[1], runs[0]) is None


@pytest.fixture
def engines_with(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """engines_with(**options): scripts' pools get these options too, and are put in the list."""

    def patch(**options: Any) -> list[Any]:
        services: list[Any] = []

        def connected(backend: str, **given: Any) -> Any:
            more = {} if backend == "local" else options
            services.append(connect(backend, **given, **more))
            return services[-1]

        monkeypatch.setattr("training.loop.connect", connected)
        return services

    return patch


def test_arc_on_two_engines_has_the_bits_of_one_process(
    pool_backend: str, model: str, engines_with: Callable[..., list[Any]], tmp_path: Path
) -> None:
    """As long as each of them has one adapter and the policy's samples, as the one process then."""
    engines_with(spread_tokens=10**9)
    # answers of one token are right for the smallest puzzle now and then
    files = arc_files(tmp_path / "data", 1, 2)
    inner = ["cap=4", "inner_rank=4", "max_inner_steps=16", "max_epochs=8", "max_answer_tokens=1"]
    inner += ["reward=cell_accuracy", "selection=best"]
    sizes = ["groups_per_batch=2", "group_size=3", "eval_size=2", "eval_every=1", "num_steps=2"]
    two = [f"backend={pool_backend}", "num_engines=2"]
    runs = []
    for parallel, engines in ((1, ["backend=local"]), (2, two)):
        runs.append(tmp_path / engines[0])
        settings = [f"model_name={model}", f"log_path={runs[-1]}", "lora_rank=2"]
        settings += [f"max_parallel_adapters={parallel}", *engines]
        rl_loop.entrypoint([*ARC, *files, *inner, *sizes, *settings])
    assert loop_difference(runs[1], runs[0]) is None
    assert len({sample["reward"] for sample in read_jsonl(runs[0] / "samples.jsonl")}) > 1


@pytest.fixture
def run_ttt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("AUTODIDACT_CACHE", str(tmp_path / "cache"))
    model = save_bbh_model(tmp_path / "model")
    folder = tmp_path / "bbh"
    folder.mkdir()
    data = write_files(folder, generated(NAMES[:3], 9))
    given = [f"model_name={model}", f"data_dir={data}", f"tasks={','.join(NAMES[:3])}", *BBH]

    def run(name: str, *arguments: str) -> Path:
        ttt.entrypoint([*given, f"log_path={tmp_path / name}", *arguments])
        return tmp_path / name

    return run


def test_ttt_on_two_engines_has_the_bits_of_one_process(
    pool_backend: str, run_ttt: Callable[..., Path]
) -> None:
    """As long as each of them has one adapter, as the one process then."""
    one = run_ttt("one", "max_parallel_adapters=1")
    two = run_ttt("two", "max_parallel_adapters=2", f"backend={pool_backend}", "num_engines=2")
    assert ttt_difference(two, one) is None


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds engines in /proc")
@pytest.mark.parametrize("script", ["rl_loop", "ttt"])
def test_ten_random_losses_of_engines_change_nothing(
    script: str,
    model: str,
    run_ttt: Callable[..., Path],
    tmp_path: Path,
    engines_with: Callable[..., list[Any]],
) -> None:
    """Two of them lose two in a row, one has no place for another one for a while, one hangs."""
    # so that some are lost in snapshots, and one that hangs is not waited for long
    services = engines_with(snapshot_seconds=0.2, silence_seconds=15)

    def run(name: str) -> Path:
        services.clear()
        engines = ["backend=processes", "num_engines=2"]
        if script == "ttt":
            return run_ttt(name, *engines, "epochs=20", "max_parallel_adapters=2")
        path = tmp_path / name
        shared = [f"model_name={model}", "num_steps=20", "eval_every=5", f"log_path={path}"]
        rl_loop.entrypoint([*GYM, *shared, *engines])
        return path

    difference = ttt_difference if script == "ttt" else loop_difference
    wanted, again = run("wanted"), 0
    plan: list[Loss] = ["kill", "twice", "stop", "no place", "twice", *["kill"] * 5]
    losses = Losses(plan, seed=0, longest=3)
    while losses.plan:
        again += 1
        with losses.during(services):
            path = run(f"lost-{again}")
        assert difference(path, wanted) is None
        assert engine_pids() == []
    assert losses.moments.total() >= 10
    logger.info("%s: %s", script, dict(losses.moments))
