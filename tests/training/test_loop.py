"""Loop state, checkpoints, schedules and interruption, without any model.

uv run pytest tests/training/test_loop.py
"""

import asyncio
import json
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.api import APIFuture, SaveWeightsResponse
from training.loop import (
    LoopState,
    Recorder,
    epoch_batches,
    exit_on_interrupt,
    learning_rate_factor,
)
from utils.interrupts import uninterrupted
from utils.runs.run_dir import RunDir


class FolderTrainer:
    """Writes a checkpoint as a folder with one file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.saved: list[str] = []

    def save_state(self, name: str, overwrite: bool = False) -> APIFuture[SaveWeightsResponse]:
        from concurrent.futures import Future

        path = self.folder / name
        path.mkdir(parents=True, exist_ok=overwrite)
        (path / "weights").write_text(name)
        self.saved.append(name)
        future: Future[SaveWeightsResponse] = Future()
        future.set_result(SaveWeightsResponse(str(path)))
        return APIFuture(future)


def open_run(path: Path) -> tuple[RunDir, Recorder, Any]:
    run = RunDir.open("rl_loop", path, {})
    return run, Recorder(run), FolderTrainer(path.resolve() / "checkpoints")


# ------------------------------------------------------------------------------------- checkpoints


def test_a_loop_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    run, recorder, trainer = open_run(tmp_path)
    state = recorder.load()
    assert state == LoopState()
    for step in (1, 2):
        state.step = step
        run.log_metrics(step, {"loss": float(step)})
        run.log_sample({"step": step})
        state.domain = {"known": {"a": step}}
        recorder.save(trainer, state, keep=0)
    run.log_metrics(3, {"loss": 3.0})
    run.log_sample({"step": 3})

    run.close()
    again = Recorder(RunDir.open("rl_loop", tmp_path, {})).load()
    assert (again.step, again.evaluated, again.domain) == (2, False, {"known": {"a": 2}})
    assert again.checkpoint is not None
    assert Path(again.checkpoint, "weights").read_text() == "000002"
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2]
    assert len((tmp_path / "samples.jsonl").read_text().splitlines()) == 2


def test_a_loop_goes_on_where_its_folder_was_moved(tmp_path: Path) -> None:
    run, recorder, trainer = open_run(tmp_path / "a")
    state = recorder.load()
    for step in (1, 2):
        state.step = step
        recorder.save(trainer, state, keep=0)
    run.close()
    (tmp_path / "b").mkdir()
    (tmp_path / "a").rename(tmp_path / "b" / "c")
    assert str(tmp_path) not in (tmp_path / "b" / "c" / "checkpoints.jsonl").read_text()

    run, recorder, trainer = open_run(tmp_path / "b" / "c")
    state = recorder.load()
    assert state.step == 2
    assert state.checkpoint == str(tmp_path / "b" / "c" / "checkpoints" / "000002")
    state.step = 3
    recorder.save(trainer, state, keep=1)
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["000003"]
    assert [path.name for path in (run.path / "loop_state").iterdir()] == ["000003.json"]
    assert [record["step"] for record in run.checkpoints()] == [1, 2, 3]


def test_records_with_absolute_paths_are_read(tmp_path: Path) -> None:
    """As they were written before runs could be moved."""
    run, recorder, _ = open_run(tmp_path)
    checkpoint, file = tmp_path / "checkpoints" / "000007", tmp_path / "loop_state" / "000007.json"
    checkpoint.mkdir(parents=True)
    old = {"step": 7, "evaluated": True, "domain": {}, "checkpoint": str(checkpoint), "logged": {}}
    file.parent.mkdir()
    file.write_text(json.dumps(old))
    record = {"name": "000007", "step": 7, "batch": 7, "state_path": str(checkpoint)}
    record["loop_state"] = str(file)
    (tmp_path / "checkpoints.jsonl").write_text(json.dumps(record) + "\n")
    state = recorder.load()
    assert (state.step, state.evaluated, state.checkpoint) == (7, True, str(checkpoint))
    trainer: Any = FolderTrainer(tmp_path / "checkpoints")
    state.step = 8
    recorder.save(trainer, state, keep=1)
    assert not checkpoint.exists() and not file.exists()
    assert run.last_checkpoint()["name"] == "000008"  # type: ignore[index]


def test_a_run_without_checkpoint_begins_anew(tmp_path: Path) -> None:
    run, recorder, _ = open_run(tmp_path)
    recorder.load()
    run.log_metrics(0, {"eval/reward": 0.0})
    assert recorder.load() == LoopState()
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_an_evaluation_cut_short_is_logged_once(tmp_path: Path) -> None:
    """Ctrl-C in an evaluation saves a state that is not evaluated yet."""
    run, recorder, trainer = open_run(tmp_path)
    state = recorder.load()
    state.step = 1
    recorder.save(trainer, state, keep=0)
    run.log_sample({"step": 1, "kind": "eval"})
    run.log_metrics(1, {"eval/reward": 0.5})
    again = recorder.load()
    assert not again.evaluated
    assert (tmp_path / "samples.jsonl").read_text() == ""
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_the_same_state_is_saved_once(tmp_path: Path) -> None:
    run, recorder, trainer = open_run(tmp_path)
    state = recorder.load()
    recorder.save(trainer, state, keep=0)
    recorder.save(trainer, state, keep=0)
    assert trainer.saved == ["000000"]
    recorder.load()
    recorder.save(trainer, state, keep=0)
    assert len(run.checkpoints()) == 1
    state.evaluated = True
    recorder.save(trainer, state, keep=0)
    assert len(run.checkpoints()) == 2


@pytest.mark.parametrize(("keep", "left"), [(0, [1, 2, 3, 4]), (1, [4]), (2, [3, 4])])
def test_older_checkpoints_are_deleted(tmp_path: Path, keep: int, left: list[int]) -> None:
    run, recorder, trainer = open_run(tmp_path)
    state = recorder.load()
    for step in range(1, 5):
        state.step = step
        recorder.save(trainer, state, keep=keep)
    folders = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert folders == [f"{step:06d}" for step in left]
    states = sorted(path.name for path in (tmp_path / "loop_state").iterdir())
    assert states == [f"{step:06d}.json" for step in left]
    assert [record["step"] for record in run.checkpoints()] == [1, 2, 3, 4]


def test_checkpoints_elsewhere_are_not_deleted(tmp_path: Path) -> None:
    _, recorder, _ = open_run(tmp_path / "run")
    trainer: Any = FolderTrainer(tmp_path / "elsewhere")
    state = recorder.load()
    for step in range(3):
        state.step = step
        recorder.save(trainer, state, keep=1)
    assert len(list((tmp_path / "elsewhere").iterdir())) == 3


# ---------------------------------------------------------------------------------------- schedules


def test_learning_rate_factors() -> None:
    assert [learning_rate_factor("constant", i, 4) for i in range(4)] == [1.0] * 4
    assert [learning_rate_factor("linear", i, 4) for i in range(4)] == [1.0, 0.75, 0.5, 0.25]
    cosine = [learning_rate_factor("cosine", i, 4) for i in range(5)]
    wanted = [1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5, 0.0]
    np.testing.assert_allclose(cosine, wanted, atol=1e-15)
    assert [learning_rate_factor("linear", i, 4, 2) for i in range(4)] == [0.0, 0.5, 1.0, 0.5]
    # a run that is continued beyond its plan
    assert learning_rate_factor("linear", 9, 4) == 0.0


def test_epoch_batches_are_passes_in_new_orders() -> None:
    batches = epoch_batches("abcde", 2, 3, np.random.default_rng(0))
    assert [len(batch) for batch in batches] == [2, 2, 1] * 3
    passes = ["".join(map("".join, batches[i : i + 3])) for i in (0, 3, 6)]
    assert [sorted(one) for one in passes] == [list("abcde")] * 3
    assert len(set(passes)) == 3
    assert batches == epoch_batches("abcde", 2, 3, np.random.default_rng(0))
    assert epoch_batches("", 2, 3, np.random.default_rng(0)) == []


# ------------------------------------------------------------------------------------ interruption


def test_ctrl_c_waits_for_the_end_of_the_block() -> None:
    done = []
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        done.append("whole")
    assert done == ["whole"]
    assert signal.getsignal(signal.SIGINT) is before


def test_an_error_inside_is_not_hidden_by_ctrl_c() -> None:
    with pytest.raises(ZeroDivisionError), uninterrupted():
        os.kill(os.getpid(), signal.SIGINT)
        _ = 1 / 0


def test_uninterrupted_nests() -> None:
    done = []
    with pytest.raises(KeyboardInterrupt), uninterrupted():
        try:
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGINT)
                done.append("inner")
        finally:
            done.append("outer")
    assert done == ["inner", "outer"]


def test_uninterrupted_in_another_thread_does_nothing() -> None:
    done = []

    def work() -> None:
        with uninterrupted():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]


def test_ctrl_c_exits_with_130_and_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, recorder, trainer = open_run(tmp_path)
    with pytest.raises(SystemExit) as exit_info, exit_on_interrupt(run):
        raise KeyboardInterrupt
    assert exit_info.value.code == 130
    assert "Stopped before the first checkpoint" in capsys.readouterr().err
    recorder.save(trainer, LoopState(step=7), keep=0)
    with pytest.raises(SystemExit), exit_on_interrupt(run):
        raise KeyboardInterrupt
    error = capsys.readouterr().err
    assert f"Stopped after step 7; the same command with log_path={tmp_path} goes on" in error


def test_sigterm_is_ctrl_c_and_exits_with_143(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, _, _ = open_run(tmp_path)
    before = signal.getsignal(signal.SIGTERM)
    done = []
    with pytest.raises(SystemExit) as exit_info, exit_on_interrupt(run):
        try:
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGTERM)
                os.kill(os.getpid(), signal.SIGTERM)
                done.append("whole")
            done.append("never")
        except KeyboardInterrupt:
            done.append("saved")
            raise
    assert done == ["whole", "saved"]
    assert exit_info.value.code == 143
    assert f"the same command with log_path={tmp_path} goes on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_stops_what_ignores_ctrl_c(tmp_path: Path) -> None:
    """As programs in the background of a shell script do."""
    run, _, _ = open_run(tmp_path)
    done = []
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with pytest.raises(SystemExit) as exit_info, exit_on_interrupt(run):
            with uninterrupted():
                os.kill(os.getpid(), signal.SIGINT)
            done.append("ignored")
            os.kill(os.getpid(), signal.SIGTERM)
            done.append("never")
    finally:
        signal.signal(signal.SIGINT, before)
    assert done == ["ignored"]
    assert exit_info.value.code == 143


def test_sigterm_cancels_an_event_loop_as_ctrl_c_does(tmp_path: Path) -> None:
    """And a second one, passed on by who started this process, leaves it time to end."""
    run, _, _ = open_run(tmp_path)
    done = []

    async def wait() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0)
            done.append("cancelled")
            raise

    with pytest.raises(SystemExit) as exit_info, exit_on_interrupt(run):
        asyncio.run(wait())
    assert done == ["cancelled"]
    assert exit_info.value.code == 143
