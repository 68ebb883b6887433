"""Evaluation of in-context learners: sequences, numbers, files, resuming, the table of results.

uv run pytest tests/evaluation/icl/test_icl_eval.py
"""

import csv
import json
import logging
import shutil
import signal
from pathlib import Path
from typing import Any

import chz
import icl_eval
import pytest
import torch
from tiny_chat import save_chat_model

from evaluation.icl import evaluator as icl
from evaluation.icl import plots as icl_plots
from evaluation.icl import runs as icl_runs
from evaluation.icl.checks import hidden_gb, hidden_problems, mode_problems, total_sequences
from evaluation.icl.evaluator import (
    ModelEvaluator,
    Sequences,
    predictor_answers,
    trained_answers,
)
from evaluation.icl.results import load_eval_results, load_metrics
from evaluation.icl.runs import evaluate_run
from training.icl.base import Family, Predictor, TaskSet
from training.icl.config import MLP, Evaluation, Trained, Training, Transformer
from training.icl.families import make_family
from training.icl.models import build_model
from training.icl.settings import BallsAndUrns, Classification, LinearRegression, Setting
from training.icl.tasks import load_task_set
from training.icl.train import Trainer, save_checkpoint
from utils.config.entrypoint import ConfigError, dump_yaml, to_plain

URNS = BallsAndUrns(num_tasks=4, num_dims=3, context_length=6)
SMALL = Evaluation(num_sequences=20, batch_size=8)


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take seconds and are tested for themselves."""
    monkeypatch.setattr(icl_plots, "make_plots", lambda frame: ([], {}))


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_torch_thread: None) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def of(
    setting: Setting, evaluation: Evaluation = SMALL
) -> tuple[Family, TaskSet | None, Sequences]:
    family = make_family(setting)
    tasks = load_task_set(setting, family, Path("tasks"))
    return family, tasks, Sequences(family, tasks, evaluation)


def evaluate(setting: Setting, which: Predictor, evaluation: Evaluation = SMALL) -> dict[str, Any]:
    family, tasks, sequences = of(setting, evaluation)
    return ModelEvaluator(predictor_answers(which, family, tasks), sequences).evaluate()


# --- numbers


@pytest.mark.parametrize(
    "setting",
    [
        URNS,
        LinearRegression(num_tasks=4, num_dims=3, context_length=6),
        Classification(num_tasks=16, num_dims=4, context_length=8),
    ],
)
def test_a_model_that_is_a_predictor_is_found_to_be_it(setting: Setting):
    for which, distance in (("generalizing", 0.0), ("memorizing", 1.0)):
        modes = evaluate(setting, which)
        assert list(modes) == ["standard", "ood"]
        for record in modes.values():
            assert record[f"divergence_{which}"] == pytest.approx(0, abs=1e-7)
            assert record["loss"] == pytest.approx(record[f"{which}_loss"], abs=1e-6)
            assert record["relative_distance"] == pytest.approx(distance, abs=1e-6)
            assert record["relative_distance_note"] == ""
            other = {"generalizing": "memorizing", "memorizing": "generalizing"}[which]
            assert record[f"divergence_{other}"] == pytest.approx(record["divergence_between"])
    constant = evaluate(setting, "constant")["standard"]
    assert constant["loss"] == pytest.approx(constant["constant_loss"], abs=1e-6)


def test_losses_of_the_generalizing_predictor_equal_the_closed_form():
    """Expected KL of the posterior mean, K=8, C=128: .07214; K=8 position 8: .19252."""
    setting = BallsAndUrns(num_tasks=4, num_dims=8, context_length=128)
    modes = evaluate(setting, "generalizing", Evaluation(num_sequences=1500, num_ood_tasks=1500))
    record = modes["ood"]
    assert record["loss"] == pytest.approx(0.07214, abs=0.003)
    assert record["position_loss"][8].item() == pytest.approx(0.19252, rel=0.05)
    assert record["memorizing_loss"] > 0.25 > modes["standard"]["memorizing_loss"]
    # the standard error is that of sequences, and says how far the mean may be off
    assert 0.0002 < record["loss_error"] < 0.003
    per_sequence = record["all_loss"].mean(1)
    assert record["loss_error"] == pytest.approx(float(per_sequence.std()) / 1500**0.5, rel=1e-4)


def test_a_record_has_the_documented_form():
    evaluation = chz.replace(SMALL, save_outputs=True, modes=["standard", "single_task"])
    modes = evaluate(URNS, "memorizing", evaluation)
    for mode, count in (("standard", 20), ("single_task", 80)):
        record = modes[mode]
        assert record["all_loss"].shape == (count, 6) and record["all_loss"].dtype == torch.float32
        assert record["outputs"].shape == (count, 6, 3)
        assert record["labels"]["labels"].shape == (count, 6)
        assert record["labels"]["eval_labels"].shape == (count, 6, 3)
        assert record["task_ids"].shape == (count,)
        assert record["position_loss"].shape == (6,)
        assert record["loss"] == pytest.approx(float(record["all_loss"].mean()), rel=1e-5)
        # the outputs are those the losses are of
        truth, outputs = record["labels"]["eval_labels"], record["outputs"]
        kl = (truth * (truth.log() - outputs)).sum(-1)
        assert torch.allclose(kl.float(), record["all_loss"], atol=1e-5)
    lean = evaluate(URNS, "memorizing")["standard"]
    assert "outputs" not in lean and "labels" not in lean and "hidden_states" not in lean


def test_single_task_covers_every_task():
    evaluation = chz.replace(SMALL, modes=["single_task"], save_outputs=True)
    record = evaluate(URNS, "generalizing", evaluation)["single_task"]
    assert record["task_ids"].tolist() == [task for task in range(4) for _ in range(20)]
    assert [entry["task"] for entry in record["tasks"]] == [0, 1, 2, 3]
    _, tasks, _ = of(URNS)
    assert tasks is not None
    for task, entry in enumerate(record["tasks"]):
        rows = slice(20 * task, 20 * task + 20)
        urns = record["labels"]["eval_labels"][rows, 0]
        assert torch.allclose(urns, tasks.values["urns"][task].expand(20, -1))
        assert entry["loss"] == pytest.approx(float(record["all_loss"][rows].mean()), rel=1e-5)
        assert set(entry) >= {"memorizing_loss", "generalizing_loss", "relative_distance"}
    assert len({round(entry["loss"], 6) for entry in record["tasks"]}) == 4


def test_without_a_number_of_tasks_nothing_is_said_of_memorizing():
    record = evaluate(chz.replace(URNS, num_tasks="inf"), "generalizing")["standard"]
    assert record["relative_distance"] is None and "inf" in record["relative_distance_note"]
    assert not any("memorizing" in name or "between" in name for name in record)
    assert record["task_ids"].tolist() == [-1] * 20


def test_relative_distance_is_withheld_where_the_predictors_agree():
    """One urn of nearly even contents: alpha 1e5 makes both predictors say the same."""
    setting = BallsAndUrns(num_tasks=64, num_dims=3, context_length=4, dirichlet_alpha=1e5)
    record = evaluate(setting, "generalizing")["standard"]
    assert record["relative_distance"] is None and "differ by" in record["relative_distance_note"]


def test_in_weights_evaluation_can_only_be_answered_from_memory():
    setting = Classification(num_tasks=16, num_dims=16, context_length=12)
    evaluation = Evaluation(num_sequences=400, modes=["standard", "iwl"])
    modes = evaluate(setting, "memorizing", evaluation)
    assert modes["iwl"]["memorizing_loss"] < 0.4
    assert modes["iwl"]["generalizing_loss"] > 0.65
    assert modes["standard"]["generalizing_loss"] < 0.5


# --- sequences


def test_sequences_depend_on_the_seed_and_not_on_the_batch_size_or_who_answers():
    evaluation = chz.replace(SMALL, modes=["standard", "ood", "single_task"], save_outputs=True)
    first = evaluate(URNS, "generalizing", evaluation)
    again = evaluate(URNS, "constant", chz.replace(evaluation, batch_size=7))
    other = evaluate(URNS, "generalizing", chz.replace(evaluation, seed=2))
    for mode in first:
        labels = [m[mode]["labels"] for m in (first, again, other)]
        for name in labels[0]:
            assert torch.equal(labels[0][name], labels[1][name])
            if mode != "single_task" or name == "labels":
                assert not torch.equal(labels[0][name], labels[2][name])
        generalizing = [m[mode]["generalizing_loss"] for m in (first, again)]
        assert generalizing[0] == pytest.approx(generalizing[1], rel=1e-6)


def test_new_tasks_are_num_ood_tasks_others_than_those_of_the_mixture():
    evaluation = Evaluation(num_sequences=60, modes=["ood"], num_ood_tasks=5, save_outputs=True)
    record = evaluate(URNS, "generalizing", evaluation)["ood"]
    urns = {tuple(row) for row in record["labels"]["eval_labels"][:, 0].tolist()}
    assert len(urns) == 5 and set(record["task_ids"].tolist()) == set(range(5))
    _, tasks, _ = of(URNS)
    assert tasks is not None
    assert not urns & {tuple(row) for row in tasks.values["urns"].tolist()}


def test_a_full_cache_changes_nothing(monkeypatch: pytest.MonkeyPatch):
    first = evaluate(URNS, "generalizing")
    monkeypatch.setattr(icl, "_CACHED_BYTES", 3000)
    again = evaluate(URNS, "generalizing")
    assert torch.equal(first["ood"]["all_loss"], again["ood"]["all_loss"])


def test_exact_predictions_are_made_once_for_all_checkpoints(monkeypatch: pytest.MonkeyPatch):
    family, tasks, sequences = of(URNS)
    ModelEvaluator(predictor_answers("constant", family, tasks), sequences).evaluate()

    def fail(*_given: Any) -> None:
        raise AssertionError("predicted again")

    monkeypatch.setattr(icl, "references", fail)
    ModelEvaluator(predictor_answers("constant", family, tasks), sequences).evaluate()


# --- hidden states


@pytest.mark.parametrize("layers", [[], [2, 0]])
def test_hidden_states_are_those_of_the_forward_pass(layers: list[int]):
    model_config = Transformer(hidden_size=8, num_layers=2)
    evaluation = chz.replace(SMALL, hidden_states=True, hidden_layers=layers, save_outputs=True)
    family, _, sequences = of(URNS, evaluation)
    model = build_model(model_config, family, 0).eval()
    kept = layers or [0, 1, 2]
    answers = trained_answers(model, family, hidden_layers=kept)
    record = ModelEvaluator(answers, sequences).evaluate()["standard"]
    states = record["hidden_states"]
    assert states.shape == (20, len(kept), 6, 8) and states.dtype == torch.float16
    labels = record["labels"]["labels"]
    inputs = torch.cat([torch.full((20, 1), 3), labels[:, :-1]], 1)
    with torch.no_grad():
        output, wanted = model(inputs, output_hidden_states=True)
    for i, layer in enumerate(kept):
        assert torch.allclose(states[:, i].float(), wanted[layer], atol=2e-3, rtol=2e-3)
    assert torch.allclose(record["outputs"], family.predictions(output), atol=1e-5)
    # the estimate is the size of what is kept
    size = sum(
        m["hidden_states"].numel() * 2 / 1e9
        for m in ModelEvaluator(answers, sequences).evaluate().values()
    )
    count = total_sequences(URNS, evaluation)
    assert hidden_gb(count, len(kept), 6, 8) == pytest.approx(size)


def test_hidden_states_beyond_the_limit_are_refused_with_the_number():
    """640 sequences of 129 tokens, 27 states of 2304 numbers: about 20 GB in float32."""
    assert hidden_gb(640, 27, 129, 2304) == pytest.approx(20.5 / 2, rel=0.01)
    evaluation = Evaluation(hidden_states=True, num_sequences=100_000)
    setting = BallsAndUrns(num_dims=8, context_length=64)
    [problem] = hidden_problems(evaluation, setting, num_layers=1, hidden_size=512)
    assert "26.2 GB" in problem and "max_hidden_gb=4" in problem
    assert "200000 sequences x 2 layers x 64 inputs x 512" in problem
    allowed = chz.replace(evaluation, max_hidden_gb=30.0)
    assert hidden_problems(allowed, setting, num_layers=1, hidden_size=512) == []
    wrong = chz.replace(evaluation, hidden_layers=[0, 2])
    [problem] = hidden_problems(wrong, setting, num_layers=1, hidden_size=8)
    assert "hidden_layers=[2]" in problem and "0 (the embedding) to 1" in problem


def test_modes_that_a_setting_does_not_have():
    every = Evaluation(modes=["single_task", "iwl"])
    inf, iwl = mode_problems(chz.replace(URNS, num_tasks="inf"), every)
    assert "single_task" in inf and "num_tasks=inf" in inf
    assert "iwl" in iwl and "Classification" in iwl and "BallsAndUrns" in iwl
    [one] = mode_problems(Classification(num_tasks=1), Evaluation(modes=["iwl"]))
    assert "2 or more" in one
    assert mode_problems(URNS, Evaluation(modes=["ood", "ood"])) != []
    with pytest.raises(ConfigError):
        of(chz.replace(URNS, num_tasks="inf"), every)


# --- runs of icl_train.py


def make_run(
    folder: Path, setting: Setting = URNS, model: Trained | None = None, *, seed: int = 0
) -> Path:
    """What icl_train.py leaves: its settings, and checkpoints of steps 2 and 4."""
    model = model or Transformer(hidden_size=8)
    training = Training(num_steps=4, batch_size=4)
    family = make_family(setting)
    tasks = load_task_set(setting, family, Path("runs/icl/tasks"))
    trainer = Trainer(model, training, family, tasks, seed=seed)
    config = icl_eval.Config(
        setting=setting, model=model, training=training, seed=seed, name=folder.parent.name
    )
    plain = to_plain(config)
    dump_yaml(folder / "config.yaml", {**plain, "meta": {"run_id": folder.name}})
    for step in range(1, 5):
        trainer.train_step()
        if step % 2 == 0:
            save_checkpoint(folder, trainer, setting, model)
    return folder


RUNS = Path("runs/icl/e")


def test_all_checkpoints_are_evaluated_once():
    run = make_run(RUNS / "a")
    assert evaluate_run(run, SMALL) == [2, 4]
    before = {step: load_metrics(run / "checkpoints" / str(step)) for step in (2, 4)}
    assert before[2]["standard"]["loss"] != before[4]["standard"]["loss"]
    stamps = [path.stat().st_mtime_ns for path in sorted(run.glob("checkpoints/*/metrics.pt"))]
    assert evaluate_run(run, SMALL) == []
    # the batch size is no matter
    assert evaluate_run(run, chz.replace(SMALL, batch_size=5, max_hidden_gb=1.0)) == []
    assert stamps == [p.stat().st_mtime_ns for p in sorted(run.glob("checkpoints/*/metrics.pt"))]
    # a checkpoint folder that holds anything but metrics.pt is not evaluated
    (run / "checkpoints" / "4" / "metrics.pt").unlink()
    assert evaluate_run(run, SMALL) == [4]
    again = load_metrics(run / "checkpoints" / "4")
    assert torch.equal(again["ood"]["all_loss"], before[4]["ood"]["all_loss"])
    assert evaluate_run(run, SMALL, overwrite=True) == [2, 4]


def test_evaluation_equals_a_direct_computation():
    run = make_run(RUNS / "a")
    evaluate_run(run, chz.replace(SMALL, save_outputs=True))
    record = load_metrics(run / "checkpoints" / "4")["standard"]
    family = make_family(URNS)
    model = build_model(Transformer(hidden_size=8), family, 0)
    from safetensors.torch import load_file

    model.load_state_dict(load_file(run / "checkpoints" / "4" / "model.safetensors"))
    labels = record["labels"]["labels"]
    inputs = torch.cat([torch.full((20, 1), 3), labels[:, :-1]], 1)
    with torch.no_grad():
        logits = model.eval()(inputs)[..., :3].double()
    truth = record["labels"]["eval_labels"]
    kl = (truth * (truth.log() - logits.log_softmax(-1))).sum(-1)
    assert record["loss"] == pytest.approx(float(kl.mean()), abs=1e-5)


def test_other_settings_are_refused_unless_it_is_done_anew():
    run = make_run(RUNS / "a")
    evaluate_run(run, SMALL)
    other = chz.replace(SMALL, seed=5, num_ood_tasks=7)
    with pytest.raises(ConfigError) as caught:
        evaluate_run(run, other)
    assert len(caught.value.problems) == 2
    for part in ("evaluation.seed was 1 and is 5", "num_ood_tasks was 500 and is 7", "overwrite"):
        assert part in caught.value.problems[0]
    assert evaluate_run(run, other, overwrite=True) == [2, 4]
    assert load_metrics(run / "checkpoints" / "2")["meta"]["evaluation"]["seed"] == 5


def test_overwrite_leaves_the_tasks_alone():
    run = make_run(RUNS / "a")
    [tasks] = Path("runs/icl/tasks").glob("*.pt")
    before = tasks.stat().st_mtime_ns
    evaluate_run(run, SMALL, overwrite=True)
    assert tasks.stat().st_mtime_ns == before


def test_an_evaluation_that_is_cut_off_leaves_no_metrics(monkeypatch: pytest.MonkeyPatch):
    run = make_run(RUNS / "a")

    def torn(value: Any, file: Any) -> None:
        file.write(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", torn)
        with pytest.raises(KeyboardInterrupt):
            evaluate_run(run, SMALL)
    assert not list(run.glob("checkpoints/*/*metrics.pt*"))
    assert evaluate_run(run, SMALL) == [2, 4]


@pytest.mark.usefixtures("no_pictures")
def test_sigterm_between_two_runs_is_ctrl_c(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    for name in "ab":
        make_run(RUNS / name)
    original = icl_runs.evaluate_plan
    evaluated: list[str] = []

    def signalled(plan: Any, *given: Any, **named: Any) -> None:
        if evaluated:
            signal.raise_signal(signal.SIGTERM)
        evaluated.append(plan.run.path.name)
        original(plan, *given, **named)

    with monkeypatch.context() as patched:
        patched.setattr(icl_runs, "evaluate_plan", signalled)
        with pytest.raises(SystemExit) as ended:
            run_script("name=e", "evaluation.num_sequences=4")
    assert ended.value.code == 143
    assert "Stopped; what is evaluated is kept" in capsys.readouterr().err
    assert evaluated == ["a"] and len(list(RUNS.glob("*/checkpoints/*/metrics.pt"))) == 2
    run_script("name=e", "evaluation.num_sequences=4")
    assert len(list(RUNS.glob("*/checkpoints/*/metrics.pt"))) == 4


@pytest.mark.parametrize(
    "setting",
    [LinearRegression(num_tasks=3, num_dims=2, context_length=4), Classification(context_length=5)],
)
def test_other_families_and_models(setting: Setting):
    run = make_run(RUNS / "a", setting, MLP(hidden_size=8))
    evaluation = chz.replace(SMALL, hidden_states=True)
    assert evaluate_run(run, evaluation) == [2, 4]
    record = load_metrics(run / "checkpoints" / "4")["standard"]
    inputs = setting.input_length
    assert record["hidden_states"].shape == (20, 3, inputs, 8)
    assert record["hidden_layers"] == [0, 1, 2]


def test_the_csv_files_hold_the_same_numbers():
    run = make_run(RUNS / "a")
    evaluate_run(run, chz.replace(SMALL, modes=["standard", "single_task"]))
    folder = run / "checkpoints" / "4"
    metrics = load_metrics(folder)
    rows = list(csv.DictReader((folder / "metrics.csv").open()))
    assert [(row["mode"], row["task"]) for row in rows] == [
        ("standard", ""),
        ("single_task", ""),
        *(("single_task", str(task)) for task in range(4)),
    ]
    assert float(rows[0]["loss"]) == metrics["standard"]["loss"]
    assert float(rows[0]["memorizing_loss"]) == metrics["standard"]["memorizing_loss"]
    assert float(rows[4]["loss"]) == metrics["single_task"]["tasks"][2]["loss"]
    positions = list(csv.DictReader((folder / "positions.csv").open()))
    assert len(positions) == 12
    assert float(positions[3]["loss"]) == metrics["standard"]["position_loss"][3].item()
    assert positions[3]["position"] == "3" and positions[3]["mode"] == "standard"


# --- the table


def test_the_frame_has_what_is_documented():
    for name, setting in (("x", URNS), ("y", chz.replace(URNS, num_tasks="inf"))):
        make_run(RUNS / name, setting)
    make_run(RUNS / "alone")
    evaluate_run(RUNS / "x", SMALL)
    cells = [
        {
            "name": "x",
            "folder": "x",
            "values": {"setting.num_tasks": 4, "training.save_steps": [2]},
        },
        {"name": "y", "folder": "y", "values": {"setting.num_tasks": "inf", "seed": 5}},
        {"name": "failed", "folder": "failed", "values": {"setting.num_tasks": 99}},
    ]
    (RUNS / "sweep.json").write_text(json.dumps({"script": "icl_train", "cells": cells}))
    frame = load_eval_results("balls_and_urns", "e")
    assert list(frame.columns) == [
        "config",
        "metrics",
        "checkpoint",
        "run",
        "setting.num_tasks",
        "training.save_steps",
        "seed",
    ]
    rows = frame.to_dict("records")
    assert [(Path(row["run"]).name, row["checkpoint"]) for row in rows] == [
        ("alone", 2),
        ("alone", 4),
        ("x", 2),
        ("x", 4),
        ("y", 2),
        ("y", 4),
    ]
    assert [row["setting.num_tasks"] for row in rows] == [None, None, 4, 4, "inf", "inf"]
    assert rows[2]["training.save_steps"] == [2] and rows[4]["training.save_steps"] is None
    # whole numbers stay what they are beside runs that have none
    assert [repr(seed) for seed in frame["seed"].tolist()] == ["None"] * 4 + ["5", "5"]
    assert rows[0]["metrics"] is None and rows[4]["metrics"] is None
    stored = load_metrics(RUNS / "x" / "checkpoints" / "4")
    assert rows[3]["metrics"]["standard"]["loss"] == stored["standard"]["loss"]
    assert rows[3]["config"]["setting"]["num_tasks"] == 4
    assert len(load_eval_results(BallsAndUrns, "e")) == len(load_eval_results(None, "e")) == 6


def test_values_come_from_the_manifest_and_not_from_folder_names():
    make_run(RUNS / "num_tasks=77,hidden_size=5")
    cells = [{"folder": "num_tasks=77,hidden_size=5", "values": {"setting.num_tasks": 4}}]
    (RUNS / "sweep.json").write_text(json.dumps({"cells": cells}))
    frame = load_eval_results("BallsAndUrns", "e")
    assert frame["setting.num_tasks"].tolist() == [4, 4]


def test_what_is_not_there_is_told_with_what_is(caplog: pytest.LogCaptureFixture):
    make_run(RUNS / "a")
    with pytest.raises(ConfigError, match=r"icl/other: no such experiment; .* holds e$"):
        load_eval_results("balls_and_urns", "other")
    with pytest.raises(ConfigError, match=r"no run of setting=Classification; .* BallsAndUrns"):
        load_eval_results("classification", "e")
    with pytest.raises(ConfigError, match="setting='urns': one of BallsAndUrns, Linear"):
        load_eval_results("urns", "e")
    (RUNS / "sweep.json").write_text("[]")
    with pytest.raises(ConfigError, match=r"sweep.json: not a manifest"):
        load_eval_results(None, "e")
    (RUNS / "sweep.json").unlink()
    (RUNS / "foreign").mkdir()
    (RUNS / "foreign" / "config.yaml").write_text("lr: 1\n")
    with caplog.at_level(logging.WARNING):
        assert len(load_eval_results(None, "e")) == 2
    assert "foreign" in caplog.text and "names no setting" in caplog.text


# --- the script


def run_script(*given: str) -> None:
    icl_eval.entrypoint(list(given))


def problems(capsys: pytest.CaptureFixture[str], *given: str) -> str:
    """What the script complains of before it does anything."""
    before = sorted(Path().rglob("*"))
    with pytest.raises(SystemExit) as caught:
        run_script(*given)
    assert caught.value.code == 2
    assert sorted(Path().rglob("*")) == before
    return capsys.readouterr().err


FEW = ("evaluation.num_sequences=20", "name=e")


def test_the_script_evaluates_an_experiment(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    for name, count in (("a", 4), ("b", 16)):
        make_run(RUNS / name, chz.replace(URNS, num_tasks=count))
    run_script(*FEW)
    shown = capsys.readouterr().out
    assert len(list(RUNS.glob("*/checkpoints/*/metrics.pt"))) == 4
    loss = load_metrics(RUNS / "b" / "checkpoints" / "4")["ood"]["loss"]
    assert f"{loss:.4g}" in shown and "report.html" in shown
    assert {path.name for path in (RUNS / "plots").iterdir()} == {
        *("threshold.png", "threshold.csv", "phase_diagram.png", "phase_diagram.csv"),
        *("context.png", "context.csv"),
    }
    page = (RUNS / "report.html").read_text()
    assert "<svg" in page and "transience" in page and "three or more" in page
    with caplog.at_level(logging.INFO):
        run_script(*FEW)
    assert "nothing was left to evaluate" in caplog.text
    assert f"{loss:.4g}" in capsys.readouterr().out


@pytest.mark.usefixtures("no_pictures")
def test_the_command_line_chooses_among_trained_runs(capsys: pytest.CaptureFixture[str]):
    make_run(RUNS / "a")
    make_run(RUNS / "b", chz.replace(URNS, num_tasks="inf"))
    make_run(RUNS / "c", model=MLP(hidden_size=8), seed=3)
    run_script(*FEW, "setting.num_tasks=inf")
    assert [p.parts[3] for p in sorted(RUNS.glob("*/checkpoints/4/metrics.pt"))] == ["b"]
    run_script(*FEW, "model=MLP")
    assert [p.parts[3] for p in sorted(RUNS.glob("*/checkpoints/4/metrics.pt"))] == ["b", "c"]
    capsys.readouterr()
    told = problems(capsys, *FEW, "setting.num_tasks=5", "seed=3")
    assert "none of its 3 trained runs has setting.num_tasks=5, seed=3" in told
    assert "setting.num_tasks: 4, inf" in told and "seed: 0, 3" in told
    shutil.move(RUNS / "b", "away")
    (RUNS / "c" / "checkpoints" / "4" / "metrics.pt").unlink()
    run_script(*FEW, "...seed=0")
    assert [p.parts[3] for p in sorted(RUNS.glob("*/checkpoints/4/metrics.pt"))] == ["a"]


@pytest.mark.usefixtures("no_pictures")
def test_a_preset_of_training_finds_its_runs(capsys: pytest.CaptureFixture[str]):
    Path("experiments").mkdir()
    Path("experiments/e.yaml").write_text(
        "doc: mine\nscript: [icl_train, icl_eval]\nmodel: Transformer\nmodel.hidden_size: 8\n"
        "setting.num_tasks: 99\ntraining.num_steps: 4\nevaluation.num_sequences: 12\n"
    )
    make_run(RUNS / "a")
    run_script("experiment=e")
    assert load_metrics(RUNS / "a" / "checkpoints" / "4")["standard"]["all_loss"].shape == (12, 6)
    run_script("experiment=e", "overwrite=true", "evaluation.num_sequences=14")
    assert load_metrics(RUNS / "a" / "checkpoints" / "4")["standard"]["all_loss"].shape == (14, 6)


@pytest.mark.usefixtures("no_pictures")
def test_an_experiment_is_found_in_a_runs_dir_named_anywhere(monkeypatch: pytest.MonkeyPatch):
    make_run(RUNS / "a")
    RUNS.parent.rename("elsewhere")
    monkeypatch.setenv("HOME", str(Path.cwd()))
    metrics = Path("elsewhere", RUNS.name, "a", "checkpoints", "2", "metrics.pt")
    Path("x.yaml").write_text("runs_dir: ~/elsewhere\n")
    for given in ("runs_dir=~/elsewhere", "config_file=x.yaml"):
        run_script("experiment=e", given, "evaluation.num_sequences=20")
        metrics.unlink()


@pytest.mark.usefixtures("no_pictures")
def test_an_experiment_without_a_preset_is_found_by_its_runs(capsys: pytest.CaptureFixture[str]):
    make_run(RUNS / "a")
    run_script("experiment=e", "evaluation.num_sequences=20")
    assert (RUNS / "a" / "checkpoints" / "2" / "metrics.pt").is_file()
    capsys.readouterr()
    assert "experiment=nowhere: unknown preset" in problems(capsys, "experiment=nowhere")


def test_one_run_by_its_path():
    make_run(Path("elsewhere/a"))
    run_script("log_path=elsewhere/a", "evaluation.num_sequences=20")
    assert (Path("elsewhere/a/checkpoints/2/metrics.pt")).is_file()
    assert (Path("elsewhere/a/plots/context.png")).is_file()
    # icl_train.py's own page stays as it is
    assert not Path("elsewhere/a/report.html").exists()
    assert "context" in Path("elsewhere/a/plots/report.html").read_text()


def test_a_dry_run_writes_nothing(capsys: pytest.CaptureFixture[str]):
    make_run(RUNS / "a")
    before = sorted(Path().rglob("*"))
    run_script(*FEW, "dry_run=true")
    run_script(*FEW, "model=Bayes", "setting.num_tasks=4", "dry_run=true")
    assert sorted(Path().rglob("*")) == before
    shown = capsys.readouterr().out
    assert "to evaluate" in shown and "Nothing was written" in shown and "folder" in shown


@pytest.mark.usefixtures("no_pictures")
def test_predictors_are_evaluated_like_models(capsys: pytest.CaptureFixture[str]):
    common = (*FEW, "model=Bayes", "setting.num_tasks=4", "setting.context_length=6")
    for which in ("generalizing", "memorizing", "constant"):
        run_script(*common, f"model.predictor={which}")
    frame = load_eval_results("balls_and_urns", "e")
    assert frame["checkpoint"].tolist() == [None] * 3
    by_name = {c["model"]["predictor"]: m for c, m in zip(frame.config, frame.metrics, strict=True)}
    for which, metrics in by_name.items():
        record = metrics["standard"]
        assert record["loss"] == pytest.approx(record[f"{which}_loss"], abs=1e-6)
    [logged] = [
        json.loads(line) for line in (Path(frame.run[0]) / "metrics.jsonl").read_text().splitlines()
    ]
    assert logged["eval/id/loss"] == frame.metrics[0]["standard"]["loss"]
    stamp = {p: p.stat().st_mtime_ns for p in RUNS.glob("*/metrics.pt")}
    run_script(*common, "model.predictor=constant")
    assert stamp == {p: p.stat().st_mtime_ns for p in RUNS.glob("*/metrics.pt")}
    told = problems(capsys, *common, "model.predictor=constant", "evaluation.seed=9")
    assert "evaluation.seed was 1 and is 9" in told
    run_script(*common, "model.predictor=constant", "evaluation.seed=9", "overwrite=true")
    folder = next(p.parent for p, old in stamp.items() if p.stat().st_mtime_ns != old)
    assert load_metrics(folder)["meta"]["evaluation"]["seed"] == 9
    assert "seed: 9" in (folder / "config.yaml").read_text()


@pytest.mark.usefixtures("no_pictures")
def test_a_language_model_is_evaluated_on_words(capsys: pytest.CaptureFixture[str]):
    save_chat_model(Path("model"), favourites="AB")
    common = ("name=llm", "model=LLM", "model.model_name=model", "setting.num_dims=3")
    common = (*common, "setting.context_length=6", "setting.num_tasks=4")
    run_script(*common, "evaluation.num_sequences=5", "evaluation.batch_size=2")
    [folder] = [path.parent for path in Path("runs/icl/llm").glob("*/metrics.pt")]
    metrics = load_metrics(folder)
    assert metrics["meta"]["items"]["words_K"] == ["A", "B", "C"]
    record = metrics["standard"]
    assert record["all_loss"].shape == (5, 6) and 0 < record["item_mass"] < 1
    assert {"memorizing_loss", "generalizing_loss", "relative_distance"} <= set(record)
    assert load_eval_results("balls_and_urns", "llm")["checkpoint"].tolist() == [None]
    capsys.readouterr()
    told = problems(capsys, *common, 'model.words=["A","BC","D"]', "evaluation.num_sequences=5")
    assert "'BC' is 2 tokens ['B', 'C']" in told
    shutil.rmtree("runs")
    told = problems(capsys, *common, "setting.context_length=5000")
    assert "reads 4096 tokens at most" in told


def test_bad_input_is_told_before_anything_is_done(capsys: pytest.CaptureFixture[str]):
    cases = {
        ("model=LLM", "setting=LinearRegression"): ["reads setting=BallsAndUrns only"],
        ("model=LLM", 'model.words=["a","b"]'): ["names 2 words for setting.num_dims=8"],
        ("model=LLM", "evaluation.hidden_states=true"): ["only models of icl_train.py have them"],
        ("model=Bayes", "model.predictor=memorizing"): ["num_tasks=inf has no tasks to memorise"],
        ("model=Bayes", "evaluation.modes=iwl"): ["iwl", "Classification"],
        ("model=Bayes", "training.num_steps=5", "seed=1"): [
            "training.num_steps: model=Bayes is not"
        ],
        ("model=LLM", "model.model_name=nowhere/at/all"): ["the folder does not exist"],
        ("model=LLM", "model.checkpoint=nowhere"): ["nowhere"],
        ("name=nothing",): ["no such experiment"],
        ("log_path=nowhere",): ["no config.yaml"],
        ("model=Bayes", "device=tpu"): ["tpu"],
        ("evaluation.modes=standard,foo",): ["standard, ood, single_task, iwl"],
        ("model=Oracle",): ["Oracle"],
        ("model=Model",): ["Transformer, MLP, LLM, Bayes"],
    }
    for given, parts in cases.items():
        told = problems(capsys, *given)
        for part in parts:
            assert part in told, (given, told)
        assert "Traceback" not in told


def test_a_run_without_checkpoints_is_told(capsys: pytest.CaptureFixture[str]):
    make_run(RUNS / "a")
    shutil.rmtree(RUNS / "a" / "checkpoints")
    assert "no checkpoint yet" in problems(capsys, *FEW)
