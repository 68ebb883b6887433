"""scripts/sweep.py with utils/sweeps/, on scripts that only pretend to train.

uv run pytest tests/utils/sweeps/test_sweep.py
"""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import sweep
from places import ROOT

from utils.config.entrypoint import ConfigError
from utils.runs.files import read_jsonl
from utils.runs.locks import claimed
from utils.sweeps.launch import CANNOT_START, Job, JobResult, LocalLauncher, Update
from utils.sweeps.launchers import make_launcher
from utils.sweeps.manifest import (
    Cell,
    Manifest,
    axis_labels,
    check_axes,
    folder_name,
    grid,
    load_manifest,
    open_manifest,
    parse_axes,
)
from utils.sweeps.plan import _merged
from utils.sweeps.report import (
    Result,
    choose_columns,
    curves,
    plot,
    read_results,
    seed_table,
    table,
    write_outcome,
)
from utils.terminal import argument_text

# learns nothing, but resumes, fails, waits and says who it is
TOY = """
import json, os, sys, time
from pathlib import Path
import chz
from utils.config.entrypoint import config_entrypoint
from utils.runs.files import read_jsonl
from utils.runs.inputs import INPUT
from utils.runs.run_dir import RunDir

@chz.chz(typecheck=True)
class Model:
    size: int = 1
    layers: list[int] = chz.field(default_factory=lambda: [1])
    seed: int = 0

@chz.chz(typecheck=True)
class Config:
    model: Model = chz.field(default_factory=Model)
    lr: float = 0.5
    word: str = "a"
    steps: int = 2
    wait: bool = False
    data: Path | None = chz.field(default=None, metadata=INPUT)
    log_path: Path | None = None

    @chz.validate
    def _check(self):
        if self.lr < 0:
            raise ValueError("lr: a number from 0 is needed")

def main(config: Config):
    with RunDir.open("toy", config.log_path, config) as run:
        (run.path / "pid").write_text(str(os.getpid()))
        print("threads", os.environ["OMP_NUM_THREADS"], os.environ["MKL_NUM_THREADS"])
        print("given", json.dumps(sys.argv[1:]))
        path = run.path / "metrics.jsonl"
        first = len(read_jsonl(path)) if path.exists() else 0
        print("from step", first, flush=True)
        try:
            for step in range(first, config.steps):
                if config.word.startswith("bad"):
                    raise RuntimeError(f"no good: {config.word}")
                loss = config.lr * config.model.size / (step + 1) + 0.25 * config.model.seed
                values = {"train/loss": loss, "eval/accuracy": 1 / (1 + loss), "time/step": 0.1}
                run.log_metrics(step, {**values, "lr": config.lr, "constant": 3})
                while config.wait and step >= 3 and not Path("go").exists():
                    time.sleep(0.02)
        except KeyboardInterrupt:
            print("saved")
            sys.exit(130)

if __name__ == "__main__":
    config_entrypoint(main)
"""
# an experiment's script: its runs lie together, and what it makes lies elsewhere
STUDY = """
from pathlib import Path
import chz
from utils.config.entrypoint import config_entrypoint

@chz.chz(typecheck=True)
class Config:
    name: str = "default"
    number: int = 0
    output_dir: Path = Path("results")
    log_path: Path | None = None

    @property
    def experiment_dir(self):
        return Path("studies") / self.name

def main(config: Config):
    config.log_path.mkdir(parents=True)
    config.output_dir.mkdir(parents=True, exist_ok=True)
    (config.output_dir / f"{config.log_path.name}.txt").write_text(str(config.number))

if __name__ == "__main__":
    config_entrypoint(main)
"""
BARE = """
import chz
from utils.config.entrypoint import config_entrypoint

@chz.chz(typecheck=True)
class Config:
    question: str = ""

def main(config: Config):
    print("asked", config.question)

if __name__ == "__main__":
    config_entrypoint(main)
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scripts")
    for name, text in {"toy": TOY, "study": STUDY, "bare": BARE}.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    (folder / "broken.py").write_text("import nothing_of_that_name\n", encoding="utf-8")
    return folder


class Ended(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def run(
    scripts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> Callable[..., Ended]:
    """run(*arguments) -> how sweep.py ended, in a folder of its own."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Ended:
        capfd.readouterr()
        code = 0
        try:
            sweep.entrypoint(arguments, scripts)
        except SystemExit as end:
            code = int(end.code or 0)
        return Ended(code, *capfd.readouterr())

    return run


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "sweep.json").read_text(encoding="utf-8"))


def statuses(folder: Path) -> dict[str, str]:
    return {cell["name"]: cell["status"] for cell in manifest_of(folder)["cells"]}


# ---- axes, names, grid


@pytest.mark.parametrize(
    "text",
    [
        '{"lr": [1e-4, 0.001], "flag": [true, null], "steps": [[1, 2], [3]]}',
        "{'lr': [1e-4, 0.001], 'flag': [True, None], 'steps': [(1, 2), [3]]}",
    ],
)
def test_axes_are_read_as_json_and_as_python(text: str) -> None:
    axes = check_axes(parse_axes(text), "sweep=")
    assert axes == {"lr": [1e-4, 1e-3], "flag": [True, None], "steps": [[1, 2], [3]]}
    assert list(axes) == ["lr", "flag", "steps"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "expected a mapping"),
        ("{lr: [1]}", "neither JSON nor a Python literal"),
        ("lr=1", "neither JSON nor a Python literal"),
        ('{"lr": [1], "lr": [2]}', "'lr' is given twice"),
        ("{'lr': [1], 'lr': [2]}", "'lr' is given twice"),
    ],
)
def test_what_is_no_mapping_of_axes(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_axes(text)


def test_all_that_is_wrong_with_axes_is_told_together() -> None:
    axes = {
        "a": [],
        "b": 3,
        "c": [1, 2, 1.0],
        "d": ["inf", math.inf],
        "e f": [1],
        "log_path": ["x"],
        "g": [{1}],
        "seed": [1],
        "...seed": [2],
    }
    with pytest.raises(ConfigError) as caught:
        check_axes(axes, "preset p")
    problems = caught.value.problems
    expected = [
        "'a' (from preset p): expected a list of values that is not empty, got []",
        "'b' (from preset p): expected a list of values that is not empty, got 3",
        "'c' (from preset p): 1 is there more than once",
        "'d' (from preset p): inf is there more than once",
        "'e f' (from preset p): a key is written as on the command line",
        "'log_path' (from preset p): the sweep gives each cell a log_path",
        "'g' (from preset p): {1}: values are numbers",
        "'seed' and '...seed' (from preset p) set the same",
    ]
    assert len(problems) == len(expected)
    for problem, words in zip(problems, expected, strict=True):
        assert words in problem
    # True is no second 1, and text is what the command line has
    assert check_axes({"x": [1, True, "a", "A"]}, "s") == {"x": [1, True, "a", "A"]}


def test_grid_has_its_first_axis_slowest() -> None:
    cells = grid({"b": [1, 2], "a": ["x", "y"], "one": [None]})
    assert [tuple(cell.values()) for cell in cells] == [
        *[(1, "x", None), (1, "y", None), (2, "x", None), (2, "y", None)]
    ]


def test_values_are_written_as_the_command_line_reads_them() -> None:
    values = [True, None, 3, 1e-5, "a b", [1, 2], ["a", "b,c"], [True, 0.5], "", {"a": 1}]
    assert [argument_text(value) for value in values] == [
        *["true", "None", "3", "1e-05", "a b", "[1, 2]", "['a', 'b,c']", "[True, 0.5]", ""],
        "{'a': 1}",
    ]


def test_labels_are_the_shortest_ends_that_no_other_key_has() -> None:
    keys = ["model.size", "seed", "model.seed", "data.x.size", "...width", "training.lr"]
    assert axis_labels(keys) == {
        "model.size": "model.size",
        "seed": "seed",
        "model.seed": "model.seed",
        "data.x.size": "x.size",
        "...width": "width",
        "training.lr": "lr",
    }


def test_folder_names_are_safe_and_short() -> None:
    assert folder_name({"model.hidden_size": 32, "setting.num_tasks": "inf"}) == (
        "hidden_size=32,num_tasks=inf"
    )
    assert folder_name({"steps": [1, -2], "name": "a/b c\nd", "x": 1e-4}) == (
        "steps=1+-2,name=a-b-c-d,x=0.0001"
    )
    long = [folder_name({"words": "w" * 200 + end, "seed": 1}) for end in "ab"]
    assert [len(name) for name in long] == [100, 100]
    assert long[0] != long[1]
    assert long[0] == folder_name({"words": "w" * 200 + "a", "seed": 1})


def test_names_that_would_be_one_folder_are_told_apart(tmp_path: Path) -> None:
    axes = {"word": ["a/b", "a b", "A b"]}
    manifest, cells = open_manifest(tmp_path, "toy", [], axes)
    names = [cell.name for cell in cells]
    assert names[0] == "word=a-b"
    assert len({name.casefold() for name in names}) == 3
    assert all(name.casefold().startswith("word=a-b-") for name in names[1:])
    # a later value does not rename what is there
    manifest.save(tmp_path)
    _, again = open_manifest(tmp_path, "toy", [], {"word": ["a_b", "A b", "a b", "a/b"]})
    assert [cell.name for cell in again] == ["word=a_b", names[2], names[1], names[0]]


# ---- the manifest


def test_axes_may_get_new_values_and_nothing_else_may_change(tmp_path: Path) -> None:
    axes = {"lr": [0.1, 1], "seed": [0]}
    manifest, cells = open_manifest(tmp_path, "toy", ["steps=3", "word=a"], axes)
    cells[0].status, cells[1].status = "done", "running"
    manifest.save(tmp_path)
    more = {"seed": [1, 0], "lr": [1.0, 2]}
    manifest, cells = open_manifest(tmp_path, "toy", ["word=a", "steps=3"], more)
    assert manifest.axes == {"lr": [0.1, 1, 2], "seed": [0, 1]}
    assert [cell.name for cell in cells] == [
        *["lr=1.0,seed=1", "lr=2,seed=1", "lr=1,seed=0", "lr=2,seed=0"]
    ]
    assert [cell.status for cell in cells] == ["pending", "pending", "interrupted", "pending"]
    assert manifest.cells[0].name == "lr=0.1,seed=0" and manifest.cells[0].status == "done"
    assert len(manifest.cells) == 5

    with pytest.raises(ConfigError) as caught:
        open_manifest(tmp_path, "toy", ["steps=4", "model.size=1"], {"lr": [1]})
    told = caught.value.problems[1:]
    assert told == [
        "steps: stored 3, given 4",
        "word: stored a, given (absent)",
        "model.size: stored (absent), given 1",
        "axes: stored lr, seed, given lr",
    ]
    with pytest.raises(ConfigError, match="script: stored toy, given bare"):
        open_manifest(tmp_path, "bare", [], axes)


@pytest.mark.parametrize("text", ["[]", "{}", "nonsense", '{"cells": [{"colour": 1}]}'])
def test_a_file_that_is_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "sweep.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"sweep\.json is not the manifest of a sweep"):
        load_manifest(tmp_path)


def test_one_sweep_at_a_time_in_a_folder(tmp_path: Path) -> None:
    lock = tmp_path / ".sweep.lock"
    refused = pytest.raises(
        ConfigError, match=rf"another process \(pid {os.getpid()} on .*\) is at work here"
    )
    with claimed(lock, "log_path"), refused, claimed(lock, "log_path"):
        pass
    with claimed(lock, "log_path"):
        pass


# ---- the launcher


def shell(name: str, command: str, folder: Path, **env: str) -> Job:
    return Job(name, ["/bin/sh", "-c", command], folder / f"{name}.txt", folder, env)


def collect(launcher: LocalLauncher, num_ends: int) -> list[Update]:
    updates: list[Update] = []
    deadline = time.monotonic() + 20
    while sum(u.result is not None for u in updates) < num_ends:
        assert time.monotonic() < deadline
        updates += launcher.wait(0.2)
    return updates


@pytest.mark.parametrize("max_parallel", [1, 2])
def test_jobs_run_in_order_and_no_more_than_allowed(tmp_path: Path, max_parallel: int) -> None:
    launcher = LocalLauncher(max_parallel=max_parallel, threads=3)
    command = "echo $OMP_NUM_THREADS $MKL_NUM_THREADS $EXTRA; pwd; sleep 0.15"
    for i in range(4):
        assert launcher.submit(shell(f"j{i}", command, tmp_path, EXTRA="x")) == f"j{i}"
    updates = collect(launcher, 4)
    running = most = 0
    for update in updates:
        running += 1 if update.result is None else -1
        most = max(most, running)
    assert most == max_parallel
    assert [u.handle for u in updates if u.result is None] == ["j0", "j1", "j2", "j3"]
    results = [u.result for u in updates if u.result is not None]
    assert all(r.returncode == 0 and r.seconds >= 0.15 for r in results)
    assert (tmp_path / "j2.txt").read_text() == f"3 3 x\n{tmp_path}\n"


def test_output_is_appended_and_failures_are_results(tmp_path: Path) -> None:
    launcher = LocalLauncher(max_parallel=2, threads=1)
    (tmp_path / "a.txt").write_text("before\n")
    launcher.submit(shell("a", "echo out; echo err >&2; exit 7", tmp_path))
    missing = Job("b", [str(tmp_path / "nothing")], tmp_path / "b.txt", tmp_path)
    launcher.submit(missing)
    ends = {u.handle: u.result for u in collect(launcher, 2) if u.result is not None}
    assert ends["a"].returncode == 7
    assert (tmp_path / "a.txt").read_text() == "before\nout\nerr\n"
    assert ends["b"] == JobResult(CANNOT_START, 0.0)
    assert "cannot start" in (tmp_path / "b.txt").read_text()


def test_cancel_interrupts_then_insists(tmp_path: Path) -> None:
    launcher = LocalLauncher(max_parallel=2, threads=1)
    saving = "trap 'echo saved; exit 130' INT; echo ready; while :; do sleep 0.05; done"
    stubborn = "trap '' INT TERM; echo ready; while :; do sleep 0.05; done"
    for name, command in {"saving": saving, "stubborn": stubborn, "waiting": "echo no"}.items():
        launcher.submit(shell(name, command, tmp_path))
    deadline = time.monotonic() + 10
    while not all(
        (tmp_path / f"{n}.txt").exists() and "ready" in (tmp_path / f"{n}.txt").read_text()
        for n in ("saving", "stubborn")
    ):
        assert time.monotonic() < deadline
        launcher.wait(0.05)
    ends = {u.handle: u.result for u in cancel_soon(launcher)}
    assert ends["saving"] is not None and ends["saving"].returncode == 130
    assert ends["stubborn"] is not None and ends["stubborn"].returncode == -signal.SIGKILL
    assert "saved" in (tmp_path / "saving.txt").read_text()
    assert not (tmp_path / "waiting.txt").exists()
    assert launcher.wait(0) == []


def cancel_soon(launcher: LocalLauncher) -> list[Update]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("utils.sweeps.launch.SECONDS_TO_TERMINATE", 0.2)
        return launcher.cancel(grace=0.5)


@pytest.mark.parametrize(
    ("code", "stopped", "status"),
    [
        (0, True, "done"),
        (1, False, "failed"),
        (1, True, "interrupted"),
        (130, False, "interrupted"),
        (-9, False, "failed"),
    ],
)
def test_how_a_cell_ended(tmp_path: Path, code: int, stopped: bool, status: str) -> None:
    log = tmp_path / "log.txt"
    old = b"an older error\n"
    log.write_bytes(old + b"10%\r20%\n\n" + b"".join(b"line %d\n" % i for i in range(7)))
    cell = Cell("c", "c", {}, "running")
    sweep.finish(cell, JobResult(code, 1.23456), log, len(old), stopped=stopped)
    assert (cell.status, cell.returncode, cell.seconds) == (status, code, 1.235)
    lines = ["20%", *(f"line {i}" for i in range(7))]
    assert cell.error == (None if code == 0 else "\n".join(lines))
    log.write_bytes(old)
    sweep.finish(cell, JobResult(3, 1.0), log, len(old), stopped=False)
    assert cell.error == ""


def test_an_unknown_launcher_is_an_error_that_lists_them() -> None:
    with pytest.raises(ValueError, match="launcher='moon': known are local, ray"):
        make_launcher("moon", max_parallel=1, threads=1)


# ---- what is found before anything runs


def test_a_problem_is_told_once_with_the_values_that_bring_it() -> None:
    axes = {"a": [1, 2, 3], "b": ["x", "y"]}
    changes = [("a", 2), ("a", 3), ("b", "y")]
    told = [["all"], ["all"], ["all"], ["all"]]
    assert _merged(axes, changes, told) == ["all"]
    assert _merged(axes, changes, [[], ["p"], ["p"], ["q"]]) == ["a=2, 3: p", "b=y: q"]
    # a=1 is in the first check and in those that change b
    assert _merged(axes, changes, [["p"], [], [], ["p"]]) == ["a=1: p"]
    assert _merged(axes, changes, [["p"], ["p"], [], ["p"]]) == ["a=1, 2: p"]
    assert _merged(axes, changes, [["p"], [], [], []]) == ["a=1; b=x: p"]
    assert _merged({"a": [1]}, [], [["p"]]) == ["p"]


def test_everything_wrong_is_told_before_a_cell_runs(run: Callable[..., Ended]) -> None:
    ended = run(
        "script=toy",
        """sweep={"model.size": [1, "many"], "lr": [-1, 0.1]}""",
        "max_paralel=2",
        "word@=nothing",
        "oops",
        "log_path=s",
    )
    assert ended.code == 2
    assert "max_paralel" in ended.err and "unknown key" in ended.err
    assert "(sweep.py itself has 'max_parallel')" in ended.err
    assert "model.size=many: model.size" in ended.err
    assert "'oops': arguments are written key=value" in ended.err
    assert ended.err.count("max_paralel") == 1
    assert not Path("s").exists()
    ended = run("script=toy", 'sweep={"lr": [-1, 0.1]}', "log_path=s")
    assert ended.code == 2 and "lr=-1: lr: a number from 0 is needed" in ended.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["script=nothing"], "script='nothing': known are bare, broken, study, toy"),
        (["script=toy"], "no axes: give sweep={...}"),
        (["script=toy", "sweep={}"], "no axes"),
        (["sweep={}"], "missing: script=..."),
        (["script=toy", 'sweep={"lr":[1]}', "lr=2"], "lr=2: lr is an axis"),
        (["script=toy", 'sweep={"lr":[1]}', "lr@=model.size"], "lr is an axis"),
        (["script=toy", 'sweep={"model.size":[1]}', "...size=2"], "model.size is an axis"),
        (["script=toy", 'sweep={"lr":[1]}', "experiment=nothing"], "unknown preset"),
        (["script=broken", 'sweep={"lr":[1]}'], "No module named 'nothing_of_that_name'"),
    ],
)
def test_wrong_arguments(run: Callable[..., Ended], arguments: list[str], message: str) -> None:
    ended = run(*arguments)
    assert ended.code == 2
    assert message in ended.err
    assert not Path("runs").exists()


def test_own_settings_are_checked_together(run: Callable[..., Ended]) -> None:
    ended = run("script=toy", "max_parallel=0", "threads=0", "launcher=moon")
    assert ended.code == 2
    for words in ("max_parallel=0: at least 1", "threads=0: at least 1", "known are local, ray"):
        assert words in ended.err


def test_a_launcher_that_is_not_there_leaves_no_folder(
    run: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    ended = run("script=toy", 'sweep={"lr": [1]}', "launcher=ray", "log_path=mine")
    assert ended.code == 2 and ended.err.startswith("Error: Ray is needed, which is an extra")
    assert not Path("mine").exists()


def test_help_is_quick_and_says_what_belongs_to_whom(scripts: Path) -> None:
    started = time.perf_counter()
    command = [sys.executable, str(ROOT / "scripts/sweep.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    for words in ("handed to the script", "max_parallel", "launcher", "dry_run", "sweep.json"):
        assert words in done.stdout
    assert "config_file" not in done.stdout
    seconds = time.perf_counter() - started
    assert seconds < 2 or os.getloadavg()[0] > (os.cpu_count() or 1), seconds


def test_check_of_the_sweep_itself(run: Callable[..., Ended]) -> None:
    ended = run("script=toy", 'sweep={"lr":[-1]}', "log_path=s", "--check")
    assert ended.code == 2 and json.loads(ended.out)["problems"] == [
        "lr: a number from 0 is needed"
    ]
    ended = run("script=toy", 'sweep={"lr":[1]}', "log_path=s", "--check")
    told = json.loads(ended.out)
    assert ended.code == 0 and told["problems"] == [] and told["config"]["script"] == "toy"
    assert told["experiment_dir"] == "s" and not Path("s").exists()


# ---- whole sweeps


def test_a_sweep_from_plan_to_report_and_again(run: Callable[..., Ended]) -> None:
    arguments = ("script=toy", "steps=3", "model.seed=1", "log_path=s")
    axes = 'sweep={"model.layers": [[1, 2], [3]], "word": ["it\'s \\"so\\"; $HOME", "bad luck"]}'
    planned = run(*arguments, axes, "dry_run=true")
    assert planned.code == 0 and not Path("s").exists()
    assert "layers=1+2,word=bad-luck" in planned.out and "4 cells" in planned.out
    assert "steps=3 model.seed=1 'model.layers=[1, 2]'" in planned.out

    ended = run(*arguments, axes, "max_parallel=2", "threads=1")
    assert ended.code == 1
    good, bad = "layers=1+2,word=it-s-so-HOME", "layers=1+2,word=bad-luck"
    found = manifest_of(Path("s"))
    assert list(found) == ["script", "arguments", "axes", "cells", "meta", "inputs"]
    assert found["script"] == "toy" and found["arguments"] == ["steps=3", "model.seed=1"]
    assert found["meta"]["packages"]["chz"]
    cells = {cell["name"]: cell for cell in found["cells"]}
    assert list(cells) == [good, bad, *(n.replace("1+2", "3") for n in (good, bad))]
    assert cells[good]["values"] == {"model.layers": [1, 2], "word": """it's "so"; $HOME"""}
    assert cells[good]["status"] == "done" and cells[good]["returncode"] == 0
    assert cells[good]["error"] is None and cells[good]["seconds"] > 0
    assert cells[good]["started"] <= cells[good]["finished"]
    assert cells[bad]["status"] == "failed" and cells[bad]["returncode"] == 1
    assert cells[bad]["error"].endswith("RuntimeError: no good: bad luck")

    # each value came through as it was
    log = Path(f"s/logs/{good}.txt").read_text()
    given = json.loads(next(x for x in log.splitlines() if x.startswith("given "))[6:])
    assert given == [
        *["steps=3", "model.seed=1", "model.layers=[1, 2]", """word=it's "so"; $HOME"""],
        f"log_path=s/{good}",
    ]
    assert "threads 1 1" in log
    assert f"{bad}: failed, see s/logs/{bad}.txt" in ended.err
    assert "RuntimeError: no good: bad luck" in ended.err
    assert "2 of 4 cells are not done" in ended.err and "log_path=s" in ended.err
    assert "failed" in ended.out and "eval/accuracy" in ended.out

    rows = list(csv.DictReader(Path("s/sweep.csv").read_text().splitlines()))
    assert [row["status"] for row in rows] == ["done", "failed", "done", "failed"]
    assert float(rows[0]["train/loss"]) == 0.5 / 3 + 0.25 and rows[0]["step"] == "2"
    assert rows[1]["train/loss"] == ""
    html = Path("s/sweep.html").read_text()
    assert "<svg" in html and "no good: bad luck" in html
    assert Path("s/sweep.png").read_bytes().startswith(b"\x89PNG")

    # done cells stay as they are, failed ones run again and their logs grow
    again = run(*arguments, axes)
    assert again.code == 1
    assert Path(f"s/logs/{good}.txt").read_text() == log
    assert Path(f"s/logs/{bad}.txt").read_text().count("threads ") == 2
    assert manifest_of(Path("s"))["cells"][0] == cells[good]
    planned = run(*arguments, axes, "dry_run=true")
    assert planned.out.count("done") == 2 and planned.out.count("failed") == 2
    refused = run("script=toy", "steps=4", "log_path=s", axes)
    assert refused.code == 2 and "steps: stored 3, given 4" in refused.err


def test_axes_of_a_preset_and_new_values(run: Callable[..., Ended], tmp_path: Path) -> None:
    folder = tmp_path / "experiments"
    folder.mkdir()
    (folder / "mine.yaml").write_text(
        textwrap.dedent("""\
            doc: a study
            script: [study, toy]
            number: 5
            sweep: {number: [1, 2], name: [a]}
            """)
    )
    (folder / "broken.yaml").write_text("script: study\nsweep: {number: [1, 1]}\n")
    ended = run("script=study", "experiment=mine", 'sweep={"name": ["b"]}')
    assert ended.code == 0, ended.err
    # the experiment's own folder, and what the script writes by the run's name beside the cells
    base = Path("studies/b")
    assert statuses(base) == {"number=1,name=b": "done", "number=2,name=b": "done"}
    assert (base / "outputs/number=2,name=b.txt").read_text() == "2"
    assert manifest_of(base)["arguments"] == ["experiment=mine"]
    more = run("script=study", "experiment=mine", 'sweep={"name": ["b"], "number": [2, 3]}')
    assert more.code == 0 and manifest_of(base)["axes"] == {"number": [1, 2, 3], "name": ["b"]}
    assert set(statuses(base).values()) == {"done"} and len(statuses(base)) == 3
    # an output_dir of the user's stays
    run("script=study", "output_dir=mine", 'sweep={"number": [7]}')
    assert Path("mine/number=7.txt").exists()
    broken = run("script=study", "experiment=broken")
    assert broken.code == 2 and "'number' (from preset broken): 1 is there more than" in broken.err
    # two experiments have no folder in common
    ended = run("script=study", 'sweep={"name": ["x", "y"]}')
    assert ended.code == 0 and len(list(Path("runs/sweep").glob("*-study-*/sweep.json"))) == 1


def test_a_script_without_a_run_directory(run: Callable[..., Ended]) -> None:
    arguments = ("script=bare", 'sweep={"question": ["why?", "how?"]}', "log_path=s")
    ended = run(*arguments)
    assert ended.code == 0, ended.err
    assert "asked how?" in Path("s/logs/question=how-.txt").read_text()
    assert run(*arguments).code == 0
    assert Path("s/logs/question=how-.txt").read_text().count("asked") == 1


def test_a_done_cell_whose_folder_is_gone_runs_again(
    run: Callable[..., Ended], tmp_path: Path
) -> None:
    import shutil

    arguments = ("script=toy", 'sweep={"lr": [0.5]}', "log_path=s", "steps=1")
    assert run(*arguments).code == 0
    shutil.rmtree(tmp_path / "s/lr=0.5")
    assert "pending" in run(*arguments, "dry_run=true").out
    assert run(*arguments).code == 0
    assert (tmp_path / "s/lr=0.5/metrics.jsonl").exists()


# ---- killed and interrupted


DRIVER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import sweep
sweep.entrypoint(sys.argv[3:], Path(sys.argv[2]))
"""
WAITING = ("script=toy", "steps=20", "wait=true", "log_path=s", "max_parallel=2")
THREE = 'sweep={"lr": [0.1, 0.2, 0.3]}'


@pytest.fixture
def start(scripts: Path, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DRIVER, str(ROOT / "scripts"), str(scripts), *arguments]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this took too long"
        time.sleep(0.02)


def wait_until_both_work(process: subprocess.Popen[str], folder: Path) -> None:
    wait_until(
        lambda: (
            process.poll() is not None
            or (num_steps(folder / "lr=0.1") == num_steps(folder / "lr=0.2") == 4)
        )
    )
    assert process.poll() is None, process.communicate()


def num_steps(cell: Path) -> int:
    path = cell / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def alive(pid: int) -> bool:
    """Not a zombie either: those wait for a parent that may never look."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def check_finished(folder: Path) -> None:
    """All cells are done, each step once, whatever happened in between."""
    assert set(statuses(folder).values()) == {"done"}
    for cell in manifest_of(folder)["cells"]:
        records = read_jsonl(folder / cell["folder"] / "metrics.jsonl")
        assert [record["step"] for record in records] == list(range(20))


def test_cells_of_other_data_do_not_join_a_sweep(run: Callable[..., Ended], tmp_path: Path) -> None:
    data = tmp_path / "data.txt"
    data.write_text("first")
    (tmp_path / "other.txt").write_text("other")
    arguments = ("script=toy", "log_path=s")
    assert run(*arguments, 'sweep={"lr":[0.1],"data":["data.txt"]}').code == 0
    data.write_text("second")
    # another file as a new value of its axis is no change
    wider = 'sweep={"lr":[0.1,0.2],"data":["data.txt","other.txt"]}'
    refused = run(*arguments, wider)
    assert refused.code == 2
    assert "s has cells of other data; the rest needs the same" in refused.err
    assert "data.txt: data.txt holds something else than at the start" in refused.err
    assert list(statuses(tmp_path / "s").values()) == ["done"]
    data.write_text("first")
    assert run(*arguments, wider).code == 0
    assert list(statuses(tmp_path / "s").values()) == ["done"] * 4


@pytest.mark.skipif(sys.platform != "linux", reason="children die with their parent on Linux")
def test_kill_9_leaves_nobody_behind_and_a_second_start_finishes(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "s"
    first = start(*WAITING, THREE)
    wait_until_both_work(first, folder)
    assert statuses(folder) == {"lr=0.1": "running", "lr=0.2": "running", "lr=0.3": "pending"}
    # while it is at work nobody else may be
    second = start(*WAITING, THREE)
    _, err = second.communicate(timeout=60)
    assert second.returncode == 2 and f"(pid {first.pid} on " in err
    pids = [int((folder / f"lr={lr}/pid").read_text()) for lr in (0.1, 0.2)]
    assert all(alive(pid) for pid in pids)
    os.kill(first.pid, signal.SIGKILL)
    wait_until(lambda: not any(alive(pid) for pid in pids), seconds=5)

    (tmp_path / "go").touch()
    third = start(*WAITING, THREE)
    _, err = third.communicate(timeout=60)
    assert third.returncode == 0, err
    check_finished(folder)
    assert "from step 4" in (folder / "logs/lr=0.1.txt").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_lets_cells_save_and_says_how_to_go_on(
    start: Callable[..., subprocess.Popen[str]], tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "s"
    # a sweep in the background of a shell script, whose children ignore Ctrl-C unless told
    ignored = number == signal.SIGTERM
    before = signal.signal(signal.SIGINT, signal.SIG_IGN) if ignored else None
    first = start(*WAITING, THREE)
    if ignored:
        signal.signal(signal.SIGINT, before)
    wait_until_both_work(first, folder)
    os.kill(first.pid, number)
    out, err = first.communicate(timeout=30)
    assert first.returncode == 128 + number
    assert "Stopped with 0 of 3 cells done" in err and "log_path=s goes on" in err
    assert statuses(folder) == {
        "lr=0.1": "interrupted",
        "lr=0.2": "interrupted",
        "lr=0.3": "pending",
    }
    assert manifest_of(folder)["cells"][0]["returncode"] == 130
    assert (folder / "logs/lr=0.2.txt").read_text().endswith("saved\n")
    assert "interrupted" in out
    if number == signal.SIGINT:
        (tmp_path / "go").touch()
        again = start(*WAITING, THREE)
        _, err = again.communicate(timeout=60)
        assert again.returncode == 0, err
        check_finished(folder)


# ---- table and plot


def result(values: dict[str, Any], status: Any = "done", **metrics: float) -> Result:
    name = folder_name(values)
    named = {key.replace("__", "/"): value for key, value in metrics.items()}
    return Result(Cell(name, name, values, status), named, 1)


def test_the_last_value_of_each_number_is_read(tmp_path: Path) -> None:
    lines = [
        {"step": 0, "loss": 2.0, "eval/loss": 1.5, "note": "text", "ok": True},
        {"step": 3, "loss": 1.0},
    ]
    (tmp_path / "c").mkdir()
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "c/metrics.jsonl").write_text(text + '{"step": 4, "lo')
    cells = [Cell("c", "c", {}), Cell("d", "d", {})]
    found, none = read_results(tmp_path, cells)
    assert found.metrics == {"loss": 1.0, "eval/loss": 1.5} and found.step == 3
    assert none.metrics == {} and none.step is None


def test_default_columns_are_headlines_that_differ() -> None:
    common = {"constant_loss": 1.0, "time__step_loss": 1.0}
    results = [
        result({"lr": i}, **common, lr=i, other=i, train__loss=i, eval__id__loss=i,
               eval__ood__loss=i, eval__id__relative_distance=i, eval__id__divergence_g=i,
               eval__task_0__loss=i)
        for i in (1, 2)
    ]  # fmt: skip
    shown = choose_columns(results, {"lr": [1, 2]}, []).shown
    assert shown == [
        "eval/id/loss",
        "eval/id/divergence_g",
        "eval/id/relative_distance",
        "eval/ood/loss",
    ]
    failed = result({"lr": 3}, status="failed", strange=1)
    columns = choose_columns([*results, failed], {"lr": [1, 2, 3]}, ["other", "strange"])
    assert columns.shown == ["other"] and "strange" not in columns.found
    # an axis has its column already
    logged = [result({"lr": i}, lr=i, other=i) for i in (1, 2)]
    assert choose_columns(logged, {"lr": [1, 2]}, []).shown == ["other"]
    same = [result({"lr": i}, loss=2.0) for i in (1, 2)]
    assert choose_columns(same, {"lr": [1, 2]}, []).shown == ["loss"]
    tasks = [
        result({"lr": lr}, **{"accuracy/dyck": lr, "accuracy/sort": -lr, "accuracy/mean": 2.0 * lr})
        for lr in (1, 2)
    ]
    assert choose_columns(tasks, {"lr": [1, 2]}, []).shown[0] == "accuracy/mean"


def test_rows_show_a_status_only_where_cells_are_not_done() -> None:
    done = [result({"m.x": 1, "y": [1, 2]}, loss=0.5)]
    axes = {"m.x": [1], "y": [[1, 2]]}
    assert table(done, axes, ["loss"]) == (["x", "y", "loss"], [[1, "[1, 2]", 0.5]])
    headers, rows = table([*done, result({"m.x": 2, "y": 3}, "failed", loss=9.0)], axes, ["loss"])
    assert headers == ["x", "y", "status", "loss"]
    assert rows[1] == [2, 3, "failed", None]


SEEDS = [0, 1, 2]
LOSSES = {(m, h): [m * h + s * s for s in SEEDS] for m in (4, 64, 512) for h in (32, 64)}


def seeded() -> tuple[list[Result], dict[str, list[Any]]]:
    axes: dict[str, list[Any]] = {
        "setting.num_tasks": ["inf", 64, 4],
        "model.hidden_size": [32, 64],
        "training.seed": SEEDS,
    }
    results = []
    for values in grid(axes):
        tasks, width, seed = values.values()
        loss = LOSSES[512 if tasks == "inf" else tasks, width][seed]
        results.append(result(values, loss=float(loss)))
    return results, axes


def test_seeds_are_put_together_with_their_standard_error() -> None:
    results, axes = seeded()
    found = curves(results, axes, "loss")
    assert found is not None
    assert found.key == "setting.num_tasks" and found.seeds == ["training.seed"]
    assert list(found.points_L) == ["hidden_size=32", "hidden_size=64"]
    for label, width in (("hidden_size=32", 32), ("hidden_size=64", 64)):
        points = found.points_L[label]
        assert [point.x for point in points] == [4, 64, "inf"]
        for point, tasks in zip(points, (4, 64, 512), strict=True):
            losses = np.array(LOSSES[tasks, width], dtype=float)
            assert point.y.value == pytest.approx(losses.mean())
            assert point.y.error == pytest.approx(losses.std(ddof=1) / math.sqrt(3))
            assert point.y.count == 3
    # powers of two, and infinity one step further right
    assert found.log_base == 2
    assert found.ticks == {"4": 4.0, "64": 64.0, "inf": 64.0 * 16}
    headers, rows = seed_table(results, axes, ["loss"]) or ([], [])
    assert headers == ["num_tasks", "hidden_size", "seeds", "loss"]
    assert rows[0] == ["inf", 32, 3, "1.639e+04 ± 1.2"]
    assert len(rows) == 6
    # what failed takes no part
    results[0].cell.status = "failed"
    found = curves(results, axes, "loss")
    assert found is not None and found.points_L["hidden_size=32"][2].y.count == 2


@pytest.mark.parametrize(
    ("values", "base", "places"),
    [
        ([1, 2, 3, "inf"], None, [1, 2, 3, 4]),
        ([1e-4, "1e-3", 0.1], 10, [1e-4, 1e-3, 0.1]),
        ([0, 1, 100], None, [0, 1, 100]),
        (list(range(1, 13)), None, list(range(1, 13))),
        ([1, 3, 30, "inf"], 10, [1, 3, 30, 30 * 30**0.5]),
        ([3, 5], None, [3, 5]),
        ([2, 8, "inf"], 2, [2, 8, 32]),
        (["a", "b"], None, [0, 1]),
        ([True, False], None, [0, 1]),
        ([[1], [2, 3]], None, [0, 1]),
        ([8, "inf"], None, [8, 16]),
    ],
)
def test_places_on_the_axis(values: list[Any], base: int | None, places: list[float]) -> None:
    results = [result({"x": value}, loss=1.0 + i) for i, value in enumerate(values)]
    found = curves(results, {"x": values}, "loss")
    assert found is not None
    assert found.log_base == base
    assert [point.place for point in found.points_L["loss"]] == pytest.approx(places)
    assert [point.y.value for point in found.points_L["loss"]] == [
        1.0 + i for i in range(len(values))
    ]


def test_the_axis_that_is_drawn_along() -> None:
    def key(axes: dict[str, list[Any]]) -> str | None:
        found = curves([result(values, loss=1.0) for values in grid(axes)], axes, "loss")
        return None if found is None else found.key

    assert key({"kind": ["a", "b"], "seed": [1, 2], "width": [1, 2]}) == "width"
    assert key({"width": [1], "kind": ["a", "b"]}) == "kind"
    assert key({"width": [1], "depth": [2, 3]}) == "depth"
    assert key({"seed": [1, 2]}) == "seed"
    assert key({"a": ["x"], "seed": [1]}) == "a"
    assert curves([result({"a": 1}, loss=math.nan)], {"a": [1]}, "loss") is None
    assert curves([result({"a": 1}, other=1.0)], {"a": [1]}, "loss") is None


def test_the_picture_shows_the_numbers() -> None:
    results, axes = seeded()
    found = curves(results, axes, "loss")
    assert found is not None
    figure = plot(found, "num_tasks")
    [drawn] = figure.axes
    assert drawn.get_xscale() == "log" and drawn.get_xlabel() == "num_tasks"
    assert [text.get_text() for text in drawn.get_xticklabels()] == ["4", "64", "inf"]
    lines = {line.get_label(): line for line in drawn.lines if "=" in str(line.get_label())}
    for label, points in found.points_L.items():
        assert np.asarray(lines[label].get_ydata()).tolist() == [point.y.value for point in points]
    # error bars are of a line's own colour
    bars = drawn.containers
    assert len(bars) == 2


def test_what_was_asked_for_and_is_missing_is_told(tmp_path: Path) -> None:
    axes = {"lr": [1, 2]}
    manifest = Manifest("toy", ["a=1"], axes, [], {}, {})
    for lr in axes["lr"]:
        name = f"lr={lr}"
        manifest.cells.append(Cell(name, name, {"lr": lr}, "done"))
        (tmp_path / name).mkdir()
        line = {"step": 1, "loss": 0.5 * lr, "lr": 7}
        (tmp_path / name / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    text = write_outcome(tmp_path, manifest, ["loss", "gain"], "profit")
    assert "No done cell has gain, profit; found were loss, lr" in text
    assert "0.5" in text
    assert not (tmp_path / "sweep.png").exists()
    text = write_outcome(tmp_path, manifest, [], "loss")
    assert "No done cell" not in text
    rows = list(csv.reader((tmp_path / "sweep_plot.csv").read_text().splitlines()))
    assert rows == [
        ["line", "lr", "loss", "standard_error", "cells"],
        ["loss", "1", "0.5", "", "1"],
        ["loss", "2", "1.0", "", "1"],
    ]
    # what an axis' name is logged as is a column beside it
    write_outcome(tmp_path, manifest, [], "lr")
    rows = list(csv.reader((tmp_path / "sweep_plot.csv").read_text().splitlines()))
    assert rows[:2] == [
        ["line", "lr", "lr", "standard_error", "cells"],
        ["lr", "1", "7.0", "", "1"],
    ]
    rows = list(csv.reader((tmp_path / "sweep.csv").read_text().splitlines()))
    assert rows[0] == [
        *["cell", "lr", "status", "returncode", "seconds", "step", "loss", "last lr"]
    ]
    assert rows[1] == ["lr=1", "1", "done", "", "", "1", "0.5", "7"]
    assert "<svg" in (tmp_path / "sweep.html").read_text()
