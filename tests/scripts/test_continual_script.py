"""scripts/continual.py from end to end on a tiny random model.

uv run pytest tests/scripts/test_continual_script.py
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from continual import main
from kills import kill_again_and_again
from places import SHARED_DATA
from run_results import continual_difference
from tiny_chat import save_chat_model

from evaluation.knowledge.matrix import measures
from evaluation.knowledge.summaries import read_summary
from training.domains.knowledge.sources import open_source
from utils.config.entrypoint import config_entrypoint
from utils.llm.roles import OPENROUTER_KEY
from utils.runs.files import read_jsonl

RELEASED = SHARED_DATA / "seal_results" / "continual_self_edits"
QUICK = ("source=made", "preset=small", "inner_epochs=1", "inner_rank=2", "max_answer_tokens=3")
SIZE = ("n_passages=2", "n_sequences=2", "n_untouched=1")
METHODS = ("merge", "replay=2", "gate=em", "distill", "library", "joint")

pytestmark = pytest.mark.usefixtures("one_torch_thread")

Run = Callable[..., Path]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    # letters of names and numbers, so that some answers are right
    return save_chat_model(tmp_path_factory.mktemp("model"), favourites="1789\n")


@pytest.fixture(scope="module")
def run(model: str) -> Run:
    def start(path: Path, *arguments: str) -> Path:
        given = [f"model_name={model}", *QUICK, *SIZE, f"log_path={path}", *arguments]
        config_entrypoint(main, given)
        return path

    return start


@pytest.fixture(scope="module")
def finished(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "all"
    return run(path, f"methods={json.dumps(METHODS)}")


def results_of(path: Path) -> dict[str, Any]:
    return json.loads((path / "results.json").read_text(encoding="utf-8"))


def test_what_a_run_writes(finished: Path) -> None:
    results = results_of(finished)
    assert list(results["methods"]) == list(METHODS)
    made = [p.id for p in open_source("made", num_train=0, num_test=5).passages("test")]
    assert results["passages_S_K"] == [made[:2], made[2:4]]
    merge, joint = results["methods"]["merge"], results["methods"]["joint"]
    for matrix in merge["matrices_S"]:
        assert [[cell is not None for cell in row] for row in matrix] == [
            *([True, True], [True, False], [True, True])
        ]
    assert joint["matrices_S"][0][1] == [None, None]
    assert joint["matrices_S"][0][0] == merge["matrices_S"][0][0]
    summary = read_summary(finished / "summary.merge.json")
    assert (summary.n_sequences, summary.n_datapoints, summary.method) == (2, 2, "merge")
    finals = [measures(matrix).final or 0.0 for matrix in merge["matrices_S"]]
    assert merge["measures"]["final"]["mean"] == pytest.approx(sum(finals) / 2)
    assert [len(row) for rows in merge["probes"].values() for row in rows] == [3] * 4
    page = (finished / "report.html").read_text(encoding="utf-8")
    assert "Against merge" in page
    assert all(method in page for method in METHODS)
    samples = read_jsonl(finished / "samples.jsonl")
    assert len(samples) == 2 * (5 * 2 + 1)
    assert len(samples[-1]["edits"]) == len(samples[-1]["passages"]) == 2
    # only what is still needed: one adapter of each sequence, two of a library's
    assert len(list(finished.glob("checkpoints/*"))) == 2 * 5 + 4


def test_a_finished_run_says_the_same_again(finished: Path, run: Run, tmp_path: Path) -> None:
    path = tmp_path / "copy"
    shutil.copytree(finished, path)
    run(path, f"methods={json.dumps(METHODS)}")
    assert results_of(path) == results_of(finished)
    assert continual_difference(path, finished) is None


def test_methods_may_come_later(finished: Path, run: Run, tmp_path: Path) -> None:
    path = run(tmp_path / "run", "method=merge")
    run(path, 'methods=["merge","library"]')
    first, second = results_of(path)["methods"], results_of(finished)["methods"]
    for method in ("merge", "library"):
        assert first[method]["matrices_S"] == second[method]["matrices_S"]
    assert len(read_jsonl(path / "steps.jsonl")) == 1 + 2 * 2


def test_the_plan(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    config_entrypoint(main, [f"model_name={model}", *QUICK, *SIZE, "dry_run=true"])
    rows = capsys.readouterr().out.splitlines()
    # 16 questions each: one passage and then two in both sequences, and an untouched one each time
    assert any(row.split()[:2] == ["merge", "4"] and row.split()[3] == "160" for row in rows)
    assert list(tmp_path.iterdir()) == []


def test_edits_of_the_model_as_it_is_by_then(run: Run, tmp_path: Path) -> None:
    given = ("edits=model", "form=rewrite", "max_tokens=6", 'methods=["merge","joint"]')
    path = run(tmp_path / "run", *given)
    samples = read_jsonl(path / "samples.jsonl")
    texts = [[edit["text"] or edit["note"] for edit in s["edits"]] for s in samples]
    assert all(text for row in texts for text in row)
    of = {}
    for sample, row in zip(samples, texts, strict=True):
        of[sample["method"], sample["step"], sample["sequence"]] = row
    # the base model has written the first of both
    assert of["joint", 2, 0][0] == of["merge", 1, 0][0]
    assert of["joint", 2, 0][1] != of["merge", 2, 0][0]
    again = run(tmp_path / "again", *given)
    assert continual_difference(again, path) is None


def test_unreadable_edits_of_the_model_are_told(
    run: Run, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("edits=model", "form=qa", "max_tokens=4", 'methods=["merge","joint"]')
    path = run(tmp_path / "run", *given)
    # of two sequences of two passages, step by step and all at the end
    for name in ("merge", "joint"):
        assert results_of(path)["methods"][name]["edits_failed"] == 4
    assert "2 of 2 passages are trained on without a self-edit (form qa: none of" in caplog.text
    assert "4 of 4 passages are trained on without a self-edit (form qa: none of" in caplog.text
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["4", "0"] in [row[-2:] for row in rows if row[:1] == ["joint"]]


def test_edits_of_a_file_and_of_a_role(
    run: Run,
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv(OPENROUTER_KEY, "")
    passages = open_source("made", num_train=0, num_test=4).passages("test")
    file = tmp_path / "edits.jsonl"
    # of no form: they are trained on as they are
    rows = [{"id": p.id, "edit": f"It is said of {p.title} alone."} for p in passages[:3]]
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    path = run(tmp_path / "file", f"edits_file={file}", "method=merge")
    edits = {s["passages"][0]: s["edits"][0] for s in read_jsonl(path / "samples.jsonl")}
    assert edits[passages[0].id]["text"] == rows[0]["edit"]
    assert edits[passages[3].id] == {
        **{"text": "", "learning_rate": None},
        "note": "there is no self-edit of this passage",
    }
    assert results_of(path)["methods"]["merge"]["edits_failed"] == 1
    assert "1 of 4 passages are trained on without a self-edit (there is no self" in caplog.text
    caplog.clear()
    path = run(tmp_path / "read", f"edits_file={file}", "form=qa", "method=merge")
    assert results_of(path)["methods"]["merge"]["edits_failed"] == 4
    assert "4 of 4 passages are trained on without a self-edit (form qa: none of 1" in caplog.text
    role = ("edits=generator", f"generator.model={model}", "form=rewrite", "max_tokens=5")
    path = run(tmp_path / "role", *role, "method=merge")
    assert len(read_jsonl(path / "calls.jsonl")) == 4
    assert all(s["edits"][0]["text"] for s in read_jsonl(path / "samples.jsonl"))


def test_sequences_of_a_file_are_drawn_as_seal_does(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import random

    items = [
        {"title": f"T{i}", "context": f"C {i}.", "questions": [{"question": "q?", "answer": "1"}]}
        for i in range(20)
    ]
    (tmp_path / "own.json").write_text(json.dumps(items), encoding="utf-8")
    given = [f"model_name={model}", *QUICK[1:], "n_passages=3", "n_sequences=2", "n_untouched=1"]
    given += ["source=own", f"data_path={tmp_path / 'own.json'}", "draw_from=20", "form=none"]
    given += ["edits=model", "max_tokens=2", "method=merge", f"log_path={tmp_path / 'run'}"]
    config_entrypoint(main, given)
    drawn = results_of(tmp_path / "run")["passages_S_K"]
    for index, row in enumerate(drawn):
        random.seed(42 + index)
        assert row == [f"own/{i}" for i in random.sample(range(20), 3)]
    capsys.readouterr()
    without = [setting for setting in given if not setting.startswith("draw_from=")]
    for settings, asked in (
        ([*given, "draw_from=21"], "(draw_from=21)"),
        (
            [*without, "n_passages=10"],
            "(n_passages=10 for each of n_sequences=2, and n_untouched=1",
        ),
    ):
        with pytest.raises(SystemExit):
            config_entrypoint(main, settings)
        told = " ".join(capsys.readouterr().err.split())
        assert "and there are 20; ask for fewer " + asked in told


def test_a_wild_learning_rate_is_counted(run: Run, tmp_path: Path) -> None:
    path = run(tmp_path / "run", "inner_learning_rate=1e30", 'methods=["merge","library"]')
    for method in results_of(path)["methods"].values():
        assert len(method["failed"]) == 4
        assert method["matrices_S"][0][2] == method["matrices_S"][0][0]


@pytest.mark.slow
def test_kills_change_nothing(model: str, tmp_path: Path) -> None:
    methods = 'methods=["merge","gate=nats","library"]'
    kill_again_and_again("continual", tmp_path, f"model_name={model}", *QUICK, *SIZE, methods)


def test_the_average_of_runs(
    finished: Path, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = run(tmp_path / "other", "seed=1", "method=merge")
    paths = json.dumps([str(finished / "summary.merge.json"), str(other)])
    given = [f"aggregate={paths}", f"log_path={tmp_path / 'mean'}"]
    capsys.readouterr()
    config_entrypoint(main, [*given, "dry_run=true"])
    told = capsys.readouterr().out
    assert "4 sequences, made" in told and told.endswith("Nothing was written.\n")
    assert not (tmp_path / "mean").exists()
    config_entrypoint(main, given)
    summary = read_summary(tmp_path / "mean" / "summary.merge.json")
    assert summary.n_sequences == 4
    parts = [results_of(path)["methods"]["merge"]["matrices_S"] for path in (finished, other)]
    cells = [matrix[0][1] for matrices_S in parts for matrix in matrices_S]
    assert summary.mean_over_sequences[0][1] == pytest.approx(sum(cells) / 4, abs=1e-4)
    assert "4 sequences, made" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        config_entrypoint(main, [f"aggregate={json.dumps([str(other), str(other)])}"])
    assert "was given before as" in capsys.readouterr().err


@pytest.mark.skipif(not RELEASED.is_dir(), reason="needs SEAL's released results")
def test_seals_released_averages(tmp_path: Path) -> None:
    paths = json.dumps([str(path) for path in sorted(RELEASED.glob("run*/*.json"))])
    given = [f"aggregate={paths}", "deviation=averaged", f"log_path={tmp_path / 'mean'}"]
    config_entrypoint(main, given)
    released = json.loads((RELEASED / "overall_results.json").read_text())
    assert json.loads((tmp_path / "mean" / "overall_results.json").read_text()) == released
    assert (tmp_path / "mean" / "report.html").is_file()
