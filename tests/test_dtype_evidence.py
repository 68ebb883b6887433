"""benchmarks/dtype_evidence.py: what it runs, where it goes on, and its table; nothing is trained.

uv run pytest tests/test_dtype_evidence.py
"""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from utils.runs.files import read_jsonl

LINES = {
    "sft": [
        {"step": 0, "heldout/loss": 3.0},
        *({"step": step, "train/loss": 3.0 - step / 4} for step in range(1, 9)),
        {"step": 8, "heldout/loss": 2.0},
    ],
    "rl_loop": [
        {"step": 0, "eval/reward": 0.25},
        {"step": 1, "train/reward": 0.25, "policy/rms_sampler_trainer": 0.5},
        {"step": 2, "train/reward": 0.75, "policy/rms_sampler_trainer": 0.25},
        {"step": 2, "eval/reward": 0.75},
    ],
    "ttt": [
        {"step": 1, "accuracy/dyck_languages": 50.0, "accuracy/mean": 50.0},
        {"step": 2, "accuracy/boolean_expressions": 75.0, "accuracy/mean": 62.5},
    ],
}


@pytest.fixture
def evidence(load_benchmark: Callable[[str], Any]) -> Any:
    return load_benchmark("dtype_evidence")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that were run; each writes the metrics of a finished run. bfloat16's numbers are
    a tenth larger, by the seed."""
    seen: list[list[str]] = []

    def run(command: list[str], *, cwd: Path, check: bool) -> None:
        seen.append(command)
        values = dict(argument.split("=", 1) for argument in command[2:])
        factor = 1 + (values["dtype"] == "bfloat16") * (1 + int(values["seed"])) / 10
        folder = Path(values["log_path"])
        folder.mkdir(parents=True)
        lines = [
            {k: v if k == "step" else v * factor for k, v in line.items()}
            for line in LINES[Path(command[1]).stem]
        ]
        text = "".join(f"{json.dumps(line)}\n" for line in lines)
        (folder / "metrics.jsonl").write_text(text)

    monkeypatch.setattr(subprocess, "run", run)
    return seen


def config_of(evidence: Any, folder: Path, **settings: Any) -> Any:
    return evidence.Config(runs_dir=folder / "runs", results_dir=folder, **settings)


def test_each_seed_runs_once_in_both_dtypes_and_is_paired(
    evidence: Any, started: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evidence.main(config_of(evidence, tmp_path, seeds=[0, 1]))
    assert len(started) == 3 * 2 * 2
    assert len({command[-3] for command in started}) == 12, "each has a folder of its own"
    lines = [re.split(r"\s{2,}", line.strip()) for line in capsys.readouterr().out.splitlines()]
    # seeds, float32, bfloat16, difference, from, to, p; bfloat16 is 10 % and 20 % larger
    known = {line[1]: line[2:] for line in lines if len(line) == len(evidence.HEADERS)}
    after = known["held-out loss after"]
    assert after[:4] == ["2", "2", "2.3", "0.3"]
    assert float(after[4]) < 0.3 < float(after[5])
    assert known["training loss, last quarter"][1] == "1.125"
    assert known["training reward, all batches"][1] == "0.5"
    assert known["sampler against trainer, nats"][1] == "0.375"
    assert known["right, %: dyck_languages"][1] == "50"


def test_what_is_stored_is_not_run_again(
    evidence: Any, started: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(evidence, tmp_path, parts=["gym"], seeds=[0])
    evidence.main(config)
    first = capsys.readouterr().out
    evidence.main(config)
    assert len(started) == 2
    assert capsys.readouterr().out == first
    records = read_jsonl(tmp_path / "dtype_evidence.jsonl")
    assert [record["dtype"] for record in records] == ["float32", "bfloat16"]
    # other settings are other runs, in other folders
    evidence.main(config_of(evidence, tmp_path, parts=["gym"], seeds=[0], gym_steps=3))
    assert len(started) == 4


def test_nothing_begins_after_the_time(
    evidence: Any, started: list[list[str]], tmp_path: Path
) -> None:
    evidence.main(config_of(evidence, tmp_path, max_minutes=-1))
    assert not started


def test_curves_are_compared_step_by_step(
    evidence: Any, started: list[list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    evidence.main(config_of(evidence, tmp_path, parts=["sft"], seeds=[0]))
    # a tenth of 2.75, the first loss, and of their mean
    told = "Training losses of sft, 8 steps in all: 0.19 apart on average, 0.28 at most"
    assert told in capsys.readouterr().out


def test_parts_that_there_are(evidence: Any) -> None:
    with pytest.raises(ValueError, match=r"parts=\['icl'\]: allowed are sft, gym, ttt"):
        evidence.Config(parts=["icl"])
