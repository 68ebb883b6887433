"""Run directories: new, resumed, refused."""

import enum
import importlib
import json
import os
import re
import socket
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chz
import numpy as np
import pytest
from places import ROOT

from utils.config.entrypoint import ConfigError, load_config, load_yaml, to_plain
from utils.runs import run_dir
from utils.runs.inputs import Input
from utils.runs.provenance import git_state, run_meta
from utils.runs.run_dir import RunDir


class Kind(enum.Enum):
    A = "a"


@chz.chz
class Inner:
    rank: int = 8


@chz.chz
class Config:
    log_path: Path | None = None
    learning_rate: float = 1e-4
    num_steps: int = 10
    kind: Kind = Kind.A
    words: tuple[str, ...] = ("x",)
    inner: Inner = chz.field(default_factory=Inner)
    ceiling: float = float("nan")


def test_a_new_run_records_how_it_was_made(tmp_path: Path):
    run = RunDir.open("sft", None, Config(), root=tmp_path)
    assert run.path.parent == tmp_path / "sft" and run.path.name == run.run_id
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{6}", run.run_id) and not run.resumed
    stored = load_yaml(run.path / "config.yaml")
    meta = stored.pop("meta")
    assert stored["kind"] == "a" and stored["words"] == ["x"] and stored["inner"] == {"rank": 8}
    assert meta["script"] == "sft" and meta["packages"]["chz"] and meta["python"].startswith("3.")
    assert meta["started"].endswith("+00:00") and meta["command"]
    other = RunDir.open("sft", None, Config(), root=tmp_path)
    assert other.path != run.path
    again = load_config(Config, [f"config_file={run.path / 'config.yaml'}"])
    assert chz.replace(again, ceiling=0.0) == chz.replace(Config(), ceiling=0.0)


def test_the_same_settings_resume(tmp_path: Path):
    config = Config(log_path=tmp_path / "run")
    assert not RunDir.open("sft", config.log_path, config).resumed
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    moved = Config(log_path=tmp_path / "sub" / ".." / "run", num_steps=20)
    (tmp_path / "sub").mkdir()
    run = RunDir.open("sft", moved.log_path, moved, resume_fields_ignored=["num_steps"])
    assert run.resumed and run.run_id == "run"
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    (line,) = (tmp_path / "run" / "resumes.jsonl").read_text().splitlines()
    assert json.loads(line)["config"]["num_steps"] == 20


def test_other_settings_are_refused_field_by_field(tmp_path: Path):
    RunDir.open("sft", tmp_path / "run", Config())
    other = Config(learning_rate=2e-4, words=("x", "y"), inner=Inner(rank=4), num_steps=3)
    with pytest.raises(ConfigError) as caught:
        RunDir.open("sft", tmp_path / "run", other, resume_fields_ignored=["num_steps"])
    head, *fields = caught.value.problems
    assert str(tmp_path / "run") in head
    assert fields == [
        "learning_rate: stored 0.0001, given 0.0002; give learning_rate=0.0001 to go on, "
        "or start a new run",
        "words: stored ['x'], given ['x', 'y']; give 'words=[\"x\"]' to go on, or start a new run",
        "inner.rank: stored 8, given 4; give inner.rank=8 to go on, or start a new run",
    ]
    assert not (tmp_path / "run" / "resumes.jsonl").exists()


def test_a_field_of_another_version_is_refused(tmp_path: Path):
    RunDir.open("sft", tmp_path / "run", {"a": 1, "old": 2})
    with pytest.raises(ConfigError, match=r"old: stored 2, given '\(absent\)'"):
        RunDir.open("sft", tmp_path / "run", {"a": 1})


def test_models_are_what_the_run_began_with(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first, other = Input("model", "a" * 64), Input("model", "b" * 64)
    with RunDir.open("sft", tmp_path, Config()) as run:
        run.require_models({"model_name": first})
        run.require_models({"model_name": first, "judge.model": other})
    stored = (tmp_path / "config.yaml").read_bytes()
    assert load_yaml(tmp_path / "config.yaml")["meta"]["models"] == {
        "model_name": first._asdict(),
        "judge.model": other._asdict(),
    }
    with RunDir.open("sft", tmp_path, Config()) as run:
        # one that is not asked for now says nothing
        run.require_models({"model_name": first})
        with pytest.raises(ConfigError) as caught:
            run.require_models({"model_name": other})
    assert (tmp_path / "config.yaml").read_bytes() == stored
    assert caught.value.problems == [
        f"{tmp_path} was started with another model; resume needs the same",
        "model_name: model holds something else than at the start (sha256 aaaaaaaaaaaa then, "
        "bbbbbbbbbbbb now); bring back what it held, or start a new run",
    ]
    assert "goes on with no other" not in caplog.text


WRITER = """
import sys
from pathlib import Path
from utils.runs.run_dir import RunDir
run = RunDir.open("sft", Path(sys.argv[1]), {})
print("open", flush=True)
if sys.stdin.readline():
    run.close()
    print("closed", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has the run open; a line closes it there."""
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None and process.stdin is not None
    assert process.stdout.readline() == "open\n"
    yield process
    process.kill()
    process.communicate()


def refused_to_write(folder: Path) -> str:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(ConfigError) as caught:
        RunDir.open("sft", folder, {})
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    return str(caught.value)


def test_a_second_writer_is_refused_until_the_first_is_killed(
    tmp_path: Path, writer: subprocess.Popen[str]
) -> None:
    error = refused_to_write(tmp_path / "run")
    who = f"another process (pid {writer.pid} on {socket.gethostname()})"
    assert error == (
        f"log_path={tmp_path / 'run'}: {who} is at work here; wait for it or stop it, "
        "or give another"
    )
    writer.kill()
    writer.wait()
    with RunDir.open("sft", tmp_path / "run", {}) as run:
        assert run.resumed
        assert f"pid {os.getpid()} " in refused_to_write(tmp_path / "run")
    # and leaves no lock behind
    assert {p.name for p in (tmp_path / "run").iterdir()} == {"config.yaml", "resumes.jsonl"}


def test_a_writer_that_closes_its_run_lets_others_write(
    tmp_path: Path, writer: subprocess.Popen[str]
) -> None:
    assert writer.stdin is not None and writer.stdout is not None
    writer.stdin.write("close\n")
    writer.stdin.flush()
    assert writer.stdout.readline() == "closed\n"
    RunDir.open("sft", tmp_path / "run", {}).close()


def test_a_refused_run_is_not_held(tmp_path: Path) -> None:
    RunDir.open("sft", tmp_path / "run", {"a": 1}).close()
    for _ in range(2):
        with pytest.raises(ConfigError, match="a: stored 1, given 2"):
            RunDir.open("sft", tmp_path / "run", {"a": 2})


def test_a_folder_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    below = tmp_path / "file" / "run"
    with pytest.raises(ConfigError, match=f"^log_path={below}: nothing can be written there"):
        RunDir.open("sft", below, {})
    with pytest.raises(ConfigError, match="nothing can be written there"):
        RunDir.open("sft", None, {}, root=tmp_path / "file")


def test_foreign_folders_are_left_alone(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    assert not RunDir.open("sft", tmp_path / "empty", Config()).resumed
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(ConfigError, match=r"no config\.yaml"):
        RunDir.open("sft", tmp_path / "full", Config())
    with pytest.raises(ConfigError, match="is a file"):
        RunDir.open("sft", tmp_path / "full" / "thesis.tex", Config())


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_logs_are_cut_where_the_checkpoint_was(tmp_path: Path):
    run = RunDir.open("sft", tmp_path, {})
    run.truncate_logs({})
    sizes = run.log_sizes()
    assert sizes == {}
    for step in range(4):
        if step == 2:
            sizes = run.log_sizes()
        run.log_metrics(step, {"loss": np.float32(0.5), "n": np.int64(step), "done": step == 3})
        run.log_sample({"step": step, "text": "é"})
    with open(run.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 4, "lo')
    run.truncate_logs(sizes)
    run.log_metrics(2, {"loss": 0.25})
    assert lines(run.path / "metrics.jsonl") == [
        {"step": 0, "loss": 0.5, "n": 0, "done": False},
        {"step": 1, "loss": 0.5, "n": 1, "done": False},
        {"step": 2, "loss": 0.25},
    ]
    assert [r["step"] for r in lines(run.path / "samples.jsonl")] == [0, 1]
    run.truncate_logs({})
    assert run.log_sizes() == {"metrics.jsonl": 0, "samples.jsonl": 0}
    with pytest.raises(ValueError, match="'step' is the first argument"):
        run.log_metrics(1, {"step": 2})


def test_checkpoints(tmp_path: Path):
    run = RunDir.open("sft", tmp_path, {})
    assert run.last_checkpoint() is None
    run.log_checkpoint("000010", 10, "state", "tinker://a/weights/000010", epoch=1)
    run.log_checkpoint("final", 20, "sampler", tmp_path / "s")
    last = {"name": "000010", "step": 10, "batch": 10, "epoch": 1}
    assert run.last_checkpoint() == {**last, "state_path": "tinker://a/weights/000010"}
    sampler = run.last_checkpoint("sampler")
    assert sampler is not None and sampler["sampler_path"] == str(tmp_path / "s")
    with open(run.path / "checkpoints.jsonl", "a") as file:
        file.write('{"name": "000030", "state_pa')
    assert run.last_checkpoint()["name"] == "000010"  # type: ignore[index]


def test_checkpoints_move_with_their_run(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = RunDir.open("sft", Path("a"), {})
    both = {"sampler_path": "tinker://a/sampler_weights/1"}
    run.log_checkpoint("1", 1, "state", tmp_path / "a" / "checkpoints" / "x" / "1", **both)
    run.log_checkpoint("2", 2, "state", "a/checkpoints/x/2", sampler_path=tmp_path / "else" / "2")
    (tmp_path / "sub").mkdir()
    run.close()
    moved = (tmp_path / "a").rename(tmp_path / "sub" / "b")
    monkeypatch.chdir(tmp_path / "sub")
    first, second = RunDir.open("sft", Path("b"), {}).checkpoints()
    assert first["state_path"] == str(moved / "checkpoints" / "x" / "1")
    assert first["sampler_path"] == "tinker://a/sampler_weights/1"
    assert second["state_path"] == str(moved / "checkpoints" / "x" / "2")
    assert second["sampler_path"] == str(tmp_path / "else" / "2")
    written = lines(moved / "checkpoints.jsonl")
    assert [record["state_path"] for record in written] == ["checkpoints/x/1", "checkpoints/x/2"]


def test_a_run_keeps_its_id_under_another_name(tmp_path: Path):
    RunDir.open("sft", tmp_path / "a", {})
    (tmp_path / "a").rename(tmp_path / "b")
    assert RunDir.open("sft", tmp_path / "b", {}).run_id == "a"


def test_a_run_killed_while_it_was_made_is_made_anew(tmp_path: Path):
    (tmp_path / ".config.yaml.0a1b2c3d.tmp").write_text("see")
    run = RunDir.open("sft", tmp_path, {})
    assert not run.resumed and load_yaml(tmp_path / "config.yaml")["meta"]["run_id"] == run.run_id


def refused(run: RunDir) -> None:
    with pytest.raises(ConfigError, match="wrong"), run:
        raise ConfigError("wrong")


def test_a_new_run_that_settings_end_leaves_nothing(tmp_path: Path) -> None:
    refused(RunDir.open("sft", tmp_path / "runs" / "sft" / "a", {}))
    assert not list(tmp_path.iterdir())
    # folders that were there stay
    (tmp_path / "mine").mkdir()
    run = RunDir.open("sft", tmp_path / "mine" / "a", {})
    run.require_models({"model_name": Input("m", "0")})
    (run.path / "adapter_proof.json").write_text("{}")
    refused(run)
    assert list(tmp_path.iterdir()) == [tmp_path / "mine"] and not list(
        (tmp_path / "mine").iterdir()
    )
    RunDir.open("sft", tmp_path / "mine" / "a", {}).close()


def test_what_a_run_has_done_stays(tmp_path: Path) -> None:
    run = RunDir.open("sft", tmp_path / "run", {})
    (run.path / "calls.jsonl").write_text("{}")
    refused(run)
    assert (tmp_path / "run" / "config.yaml").is_file()
    (tmp_path / "run" / "calls.jsonl").unlink()
    # resumed, it was there before
    refused(RunDir.open("sft", tmp_path / "run", {}))
    assert (tmp_path / "run" / "config.yaml").is_file()
    # only errors of settings are over before anything was done
    with pytest.raises(KeyError), RunDir.open("sft", tmp_path / "other", {}):
        raise KeyError("a bug")
    assert (tmp_path / "other" / "config.yaml").is_file()


def test_what_sinks_wrote_goes_with_a_refused_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Sink:
        def __init__(self, script: str, run: RunDir, config: dict[str, Any]) -> None:
            self.file = run.path / "sink" / "events"
            self.file.parent.mkdir()
            self.file.touch()

        def log(self, step: int, values: Any) -> None: ...

        def close(self) -> None:
            self.file.write_text("closed")

    monkeypatch.setattr(run_dir, "sink_factories", lambda names: [Sink])
    refused(RunDir.open("sft", tmp_path / "run", {}, sinks=["x"]))
    assert not list(tmp_path.iterdir())


def test_sinks_are_checked_before_anything_is_made(tmp_path: Path, monkeypatch):
    real = importlib.import_module

    def missing(name: str) -> object:
        if name in ("wandb", "torch.utils.tensorboard", "trackio"):
            raise ImportError(f"No module named {name!r}")
        return real(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ConfigError) as caught:
        RunDir.open(
            "sft", tmp_path / "run", {}, sinks=["wandb", "tensorboard", "trackio", "mlflow"]
        )
    wandb, tensorboard, trackio, mlflow = caught.value.problems
    assert trackio.startswith("sinks asks for trackio, which cannot be imported (No module")
    assert "run `uv sync --extra trackio`, or leave it out" in trackio
    assert "uv pip install wandb" in wandb and "uv pip install tensorboard" in tensorboard
    assert mlflow == "sinks names 'mlflow'; allowed: wandb, tensorboard, trackio"
    assert not (tmp_path / "run").exists()


def test_tensorboard_gets_every_number_with_its_step(tmp_path: Path, monkeypatch):
    writers = []

    class SummaryWriter:
        def __init__(self, log_dir: str) -> None:
            self.log_dir, self.closed = log_dir, False
            self.scalars: list[tuple[str, float, int]] = []
            writers.append(self)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.scalars.append((name, value, step))

        def close(self) -> None:
            self.closed = True

    module: Any = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    with RunDir.open("sft", tmp_path / "run", {}, sinks=["tensorboard"]) as run:
        run.log_metrics(0, {"heldout/loss": np.float32(0.25)})
        run.log_metrics(3, {"loss": 0.5, "kind": "text", "n": 2})
        assert not writers[0].closed
    with RunDir.open("sft", tmp_path / "run", {}, sinks=["tensorboard"]) as run:
        run.log_metrics(4, {"loss": 0.125})
    first, second = writers
    assert first.scalars == [("heldout/loss", 0.25, 0), ("loss", 0.5, 3), ("n", 2.0, 3)]
    assert second.scalars == [("loss", 0.125, 4)]
    # one folder is one run to tensorboard
    assert first.log_dir == second.log_dir == str(tmp_path / "run" / "tensorboard")
    assert first.closed and second.closed


def test_trackio_gets_every_number_with_its_step(tmp_path: Path, monkeypatch):
    made = []

    class Run:
        def __init__(self, **options: Any) -> None:
            self.options, self.finished = options, False
            self.logged: list[tuple[int, dict[str, float]]] = []
            made.append(self)

        def log(self, metrics: dict[str, float], step: int) -> None:
            self.logged.append((step, metrics))

        def finish(self) -> None:
            self.finished = True

    trackio: Any = types.ModuleType("trackio")
    trackio.init = Run
    trackio.finish = lambda: made[-1].finish()
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    config = Config(log_path=tmp_path / "run")
    for step in (1, 2):
        with RunDir.open("sft", config.log_path, config, sinks=["trackio"]) as run:
            run.log_metrics(step, {"loss": 0.5, "kind": "text", "n": 2, "done": True})
            assert not made[-1].finished
    first, second = made
    assert first.logged == [(1, {"loss": 0.5, "n": 2.0, "done": 1.0})]
    assert second.logged == [(2, {"loss": 0.5, "n": 2.0, "done": 1.0})]
    assert first.finished and second.finished
    # a new run is never mixed with another of its name, a resumed one is gone on with
    assert [run.options["resume"] for run in made] == ["never", "allow"]
    assert first.options["name"] == second.options["name"] == "run"
    assert first.options["project"] == "autodidact" and first.options["group"] == "sft"
    assert first.options["config"] == to_plain(config)


def test_wandb_gets_every_number_with_its_step(tmp_path: Path, monkeypatch):
    made = []

    class Run:
        def __init__(self, **options: Any) -> None:
            self.options, self.finished = options, False
            self.logged: list[tuple[int, dict[str, float]]] = []
            made.append(self)

        def log(self, values: dict[str, float], *, step: int) -> None:
            self.logged.append((step, values))

        def finish(self) -> None:
            self.finished = True

    wandb: Any = types.ModuleType("wandb")
    wandb.init = Run
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    config = Config(log_path=tmp_path / "run")
    with RunDir.open("sft", config.log_path, config, sinks=["wandb"]) as run:
        run.log_metrics(0, {"heldout/loss": np.float32(0.25)})
        run.log_metrics(1, {"loss": 0.5, "kind": "text", "n": 2, "done": True})
        assert not made[0].finished
    (tmp_path / "run").rename(tmp_path / "moved")
    config = Config(log_path=tmp_path / "moved")
    with RunDir.open("sft", config.log_path, config, sinks=["wandb"]) as run:
        run.log_metrics(2, {"loss": 0.125})
    first, second = made
    assert first.logged == [(0, {"heldout/loss": 0.25}), (1, {"loss": 0.5, "n": 2.0, "done": 1.0})]
    assert second.logged == [(2, {"loss": 0.125})]
    assert first.finished and second.finished
    # the same id, and leave to go on with it: the same run to wandb
    assert first.options["id"] == second.options["id"] == "run"
    assert first.options["resume"] == second.options["resume"] == "allow"
    assert (first.options["name"], first.options["group"]) == ("run", "sft")
    assert first.options["config"]["learning_rate"] == 1e-4
    assert second.options["dir"] == str(tmp_path / "moved")


def test_git_state(tmp_path: Path):
    assert git_state(tmp_path) == (None, None)

    def git(*arguments: str) -> str:
        settings = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(tmp_path), *settings, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    assert git_state(tmp_path) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "a").write_text("2")
    assert git_state(tmp_path)[1] is True
    # somebody else's repository around an installed copy says nothing about ours
    (tmp_path / "site-packages").mkdir()
    assert git_state(tmp_path / "site-packages") == (None, None)


def test_run_meta_is_plain():
    assert json.loads(json.dumps(run_meta()))
