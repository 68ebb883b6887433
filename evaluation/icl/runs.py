"""What of a run is evaluated, and the files of that.

A folder that was evaluated (`checkpoints/<step>` of a trained run, the run's own folder for a
language model or a predictor) holds
    metrics.pt      {mode: what ModelEvaluator gives for it, "meta": settings, step, ...}
    metrics.csv     a row per mode, and per task of single_task: the numbers
    positions.csv   a row per mode and position
metrics.pt is written last and in one step: where it is, the evaluation is whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from evaluation.icl.checks import hidden_problems, kept_layers, mode_problems, total_sequences
from evaluation.icl.evaluator import ModelEvaluator, Sequences, trained_answers
from evaluation.icl.results import METRICS, StoredRun, load_metrics, read_run
from training.icl.config import TASKS, Evaluation
from training.icl.families import make_family
from training.icl.settings import Setting
from training.icl.tasks import load_task_set
from utils.config.entrypoint import as_config_errors, problems_of, raise_problems, to_plain
from utils.runs.files import atomic_write_text, atomic_writer, shown_path
from utils.runs.progress import progress
from utils.runs.tables import csv_text, truncate

# what is computed changes with none of these
FREE_SETTINGS = ("batch_size", "max_hidden_gb")


class RunPlan(NamedTuple):
    """What is to be done for a run: `steps` of `num_checkpoints`, unless there are `problems`."""

    run: StoredRun
    steps: list[int]
    num_checkpoints: int
    problems: list[str]


def plan_run(run: StoredRun, evaluation: Evaluation, *, overwrite: bool = False) -> RunPlan:
    """Which checkpoints lack an evaluation, and what stands against it; nothing is computed."""
    assert run.is_trained
    all_steps = [step for step in run.steps() if step is not None]
    problems = [] if all_steps else ["no checkpoint yet; train it with scripts/icl_train.py"]
    problems += mode_problems(run.setting, evaluation)
    problems += hidden_problems(
        evaluation,
        run.setting,
        num_layers=run.config["model"]["num_layers"],
        hidden_size=run.config["model"]["hidden_size"],
    )
    steps = all_steps
    if not overwrite:
        done = [step for step in all_steps if (run.metrics_folder(step) / METRICS).exists()]
        steps = [step for step in all_steps if step not in done]
        for step in done:
            problems += settings_problems(run.metrics_folder(step), evaluation)
    if steps:
        family, runs_dir = make_family(run.setting), Path(run.config["runs_dir"])
        problems += problems_of(
            lambda: load_task_set(run.setting, family, runs_dir / TASKS, keep=False)
        )
    told = [f"{shown_path(run.path)}: {problem}" for problem in problems]
    return RunPlan(run, steps, len(all_steps), told)


def evaluate_run(
    run_dir: Path,
    evaluation: Evaluation,
    *,
    overwrite: bool = False,
    device: torch.device | str = "cpu",
) -> list[int]:
    """Evaluates those checkpoints of a run of icl_train.py that are not yet, or all of them with
    `overwrite`, and returns their steps. Killed, it goes on at the checkpoint it was at.

    Raises a ConfigError where a checkpoint was evaluated with other settings, for modes that the
    run's setting does not have, and for hidden states beyond max_hidden_gb.
    """
    plan = plan_run(read_run(run_dir), evaluation, overwrite=overwrite)
    raise_problems(plan.problems)
    return evaluate_plan(plan, evaluation, device=device)


def evaluate_plan(
    plan: RunPlan, evaluation: Evaluation, *, device: torch.device | str = "cpu"
) -> list[int]:
    """See `evaluate_run`."""
    from training.icl.train import load_model

    assert not plan.problems
    if not plan.steps:
        return []
    run = plan.run
    sequences = sequences_of(run.setting, evaluation, Path(run.config["runs_dir"]))
    layers = None
    if evaluation.hidden_states:
        layers = kept_layers(evaluation, run.config["model"]["num_layers"])
    already = plan.num_checkpoints - len(plan.steps)
    tokens = total_sequences(run.setting, evaluation) * run.setting.input_length
    name = truncate(run.path.name, 40)
    with progress(plan.num_checkpoints, name, "checkpoint", initial=already) as bar:
        for step in plan.steps:
            model = load_model(run.path, step, sequences.family, device=str(device))
            answers = trained_answers(model, sequences.family, device=device, hidden_layers=layers)
            modes = ModelEvaluator(answers, sequences).evaluate()
            if layers is not None:
                for record in modes.values():
                    record["hidden_layers"] = layers
            write_metrics(run.metrics_folder(step), modes, evaluation, step=step)
            bar.add(tokens=tokens, **{mode: record["loss"] for mode, record in modes.items()})
            bar.update()
    return plan.steps


def sequences_of(setting: Setting, evaluation: Evaluation, runs_dir: Path) -> Sequences:
    """With the tasks of the mixture from the cache in `runs_dir`. A ConfigError says what is wrong
    with that."""
    family = make_family(setting)
    with as_config_errors():
        tasks = load_task_set(setting, family, runs_dir / TASKS)
    return Sequences(family, tasks, evaluation)


# ------------------------------------------------------------------------------------------ files


def compared_settings(evaluation: Evaluation) -> dict[str, Any]:
    """Those that an evaluation depends on."""
    plain = to_plain(evaluation)
    return {name: value for name, value in plain.items() if name not in FREE_SETTINGS}


def settings_problems(folder: Path, evaluation: Evaluation) -> list[str]:
    """In which settings the evaluation in `folder` differs from `evaluation`."""
    stored = load_metrics(folder)["meta"]["evaluation"]
    given = compared_settings(evaluation)
    different = [name for name in given if stored.get(name) != given[name]]
    if not different:
        return []
    told = ", ".join(
        f"evaluation.{name} was {stored.get(name)!r} and is {given[name]!r}" for name in different
    )
    return [
        f"{folder.name} was evaluated with other settings ({told}); give the same, or "
        "overwrite=true to evaluate it anew"
    ]


def write_metrics(
    folder: Path,
    modes: Mapping[str, dict[str, Any]],
    evaluation: Evaluation,
    *,
    step: int | None,
    **extra: Any,
) -> None:
    """metrics.csv, positions.csv and, last, metrics.pt; each whole or not at all."""
    atomic_write_text(folder / "metrics.csv", csv_text(number_rows(modes)))
    atomic_write_text(folder / "positions.csv", csv_text(position_rows(modes)))
    meta = {"evaluation": compared_settings(evaluation), "step": step, **extra}
    # with hidden states it is too large to be made in memory first
    with atomic_writer(folder / METRICS) as file:
        torch.save({**modes, "meta": meta}, file)


def number_rows(modes: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per mode, with task None, and one per task of single_task."""
    rows = []
    for mode, record in modes.items():
        for entry in (record, *record.get("tasks", ())):
            numbers = {
                name: value
                for name, value in entry.items()
                if name != "task" and (value is None or isinstance(value, (int, float, str)))
            }
            rows.append({"mode": mode, "task": entry.get("task"), **numbers})
    return rows


def position_rows(modes: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per mode and position, the first position is 0."""
    rows = []
    for mode, record in modes.items():
        columns = {
            name.removeprefix("position_"): values.tolist()
            for name, values in record.items()
            if name.startswith("position_")
        }
        for position in range(len(record["position_loss"])):
            values = {name: column[position] for name, column in columns.items()}
            rows.append({"mode": mode, "position": position, **values})
    return rows
