"""ARC's part of a run's report: the table of self-edits, coloured grids, published file formats."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from training.domains.arc.files import (
    CONFIGS_NAME,
    RESULTS_NAME,
    SelfEditRecord,
    write_configs,
    write_results,
)
from training.domains.arc.self_edit import Bounds, SelfEdit, SelfEditError, parse_self_edit
from training.domains.arc.tasks import Task
from training.domains.base import Problem, Samples
from training.domains.best_and_worst import best_and_worst
from utils.runs.grid_pictures import ArcPair
from utils.runs.report import Report


def edit_summary(text: str, bounds: Bounds) -> str:
    """A self-edit in a few words: families, what is trained, learning rate x epochs."""
    try:
        return describe(parse_self_edit(text, bounds))
    except SelfEditError:
        return "invalid: " + " ".join(text.split())


def describe(edit: SelfEdit) -> str:
    families = "+".join(edit.families) or "no augmentation"
    trained = "all tokens" if edit.strategy == "train_using_all_tokens" else "outputs"
    return f"{families}, {trained}, lr {edit.learning_rate:.2g} x {edit.num_train_epochs}"


def write_published_files(folder: Path, samples: Samples, bounds: Bounds) -> None:
    """final_configs_and_indices.json and final_results.json of the published few-shot code."""
    records: dict[str, dict[int, SelfEditRecord]] = {}
    results: dict[int, dict[str, bool]] = {}
    for sample in samples:
        by_index = records.setdefault(sample["problem"], {})
        index = len(by_index)
        try:
            config = parse_self_edit(sample["answer"], bounds).to_json()
        except SelfEditError:
            config = {}
        by_index[index] = SelfEditRecord(
            config, sample["prompt"], sample["answer"], sample["tokens"]
        )
        results.setdefault(index, {})[sample["problem"]] = bool(sample["solved"])
    write_configs(folder / CONFIGS_NAME, records)
    write_results(folder / RESULTS_NAME, results)


def add_tasks(
    report: Report,
    problems: Sequence[Problem],
    samples: Samples,
    outcome_of: Callable[[Problem, str | None], dict[str, Any] | None],
    bounds: Bounds,
) -> None:
    """Every task with the answers of the base model and of its best and worst self-edit."""
    for problem in problems:
        mine = [s for s in samples if s["problem"] == problem.id]
        outcomes = [("base model", outcome_of(problem, None))]
        for name, sample in best_and_worst(mine, lambda s: s["reward"]):
            summary = edit_summary(sample["answer"], bounds)
            label = f"{name}: {summary} (reward {sample['reward']:.2f})"
            outcomes.append((label, outcome_of(problem, sample["answer"])))
        add_task(report, problem.data, outcomes)


def add_task(
    report: Report, task: Task, outcomes: Sequence[tuple[str, dict[str, Any] | None]]
) -> None:
    """Demonstrations and, for every label and the `attempts` that go with it, the answers to the
    tests."""
    pairs = [
        ArcPair(pair.input.tolist(), pair.output.tolist(), label=f"demonstration {i + 1}")
        for i, pair in enumerate(task.train)
        if pair.output is not None
    ]
    report.arc_pairs(pairs, caption=f"Task {task.id}: demonstrations")
    answered = []
    for label, outcome in outcomes:
        if outcome is None:
            continue
        for pair, attempts in zip(task.test, outcome["attempts"], strict=True):
            expected = None if pair.output is None else pair.output.tolist()
            for number, grid in enumerate(attempts, start=1):
                # two attempts are often the same
                if number > 1 and grid == attempts[0]:
                    continue
                name = label if number == 1 else f"{label}, attempt {number}"
                answered.append(ArcPair(pair.input.tolist(), grid, expected=expected, label=name))
    if answered:
        report.arc_pairs(answered, caption=f"Task {task.id}: answers to the test")
