"""What runs on BBH leave behind, and how several of them compare."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from training.domains.bbh.methods import Prediction, TaskResult
from utils.config.entrypoint import ConfigError, load_yaml, raise_problems
from utils.runs.files import append_jsonl, atomic_write_text, expanded, read_jsonl

LOG = "log.json"
TASKS = "tasks.jsonl"
SHOWN = 5


def append_result(run: Path, result: TaskResult) -> None:
    """One task is done: its line is what a resumed run goes by."""
    append_jsonl(run / TASKS, asdict(result), fsync=True)


def read_results(run: Path) -> list[TaskResult]:
    """What append_result wrote so far."""
    path = run / TASKS
    if not path.exists():
        return []
    results = []
    for record in read_jsonl(path):
        predictions = [Prediction(**p) for p in record.pop("predictions")]
        results.append(TaskResult(**record, predictions=predictions))
    return results


def write_log(run: Path, results: Sequence[TaskResult], name: str, *, trained: bool) -> Path:
    """log.json in the published structure, with all predictions besides the first few examples."""
    log = []
    for result in results:
        entry: dict[str, Any] = {
            "task": result.task,
            f"{name}_accuracy": round(result.accuracy, 4),
            "eval_time": result.eval_seconds,
        }
        if trained:
            entry["ft_time"] = result.train_seconds
        entry["examples"] = [
            {"question": p.question, "prediction": p.answer, "true_answer": p.target}
            for p in result.predictions[:SHOWN]
        ]
        entry |= {"events": result.events, "unscorable": result.num_unscorable}
        entry["predictions"] = [
            {"index": p.index, "prediction": p.answer, "true_answer": p.target, "right": p.right}
            | ({"votes": p.votes} if p.votes else {})
            | ({"event": p.event} if p.event else {})
            for p in result.predictions
        ]
        log.append(entry)
    path = run / LOG
    atomic_write_text(path, json.dumps(log, indent=1, ensure_ascii=False))
    return path


def copy_problems(output_file: Path, log_path: Path | None) -> list[str]:
    """Why log.json cannot be copied there. The copy that this very run left may be replaced."""
    told, path = f"output_file={output_file}", expanded(output_file)
    if path.is_dir():
        return [f"{told} is a folder; name a file in it"]
    if not path.parent.is_dir():
        return [f"{told}: there is no folder {path.parent}"]
    if not os.access(path.parent, os.W_OK):
        return [f"{told}: the folder {path.parent} cannot be written to"]
    log = None if log_path is None else log_path / LOG
    if path.exists() and not (log and log.is_file() and log.read_bytes() == path.read_bytes()):
        return [f"{told} exists; name another file"]
    return []


def mean_accuracy(results: Sequence[TaskResult]) -> float:
    """Every task weighs the same."""
    return sum(result.accuracy for result in results) / len(results)


def item_error(result: TaskResult) -> float:
    """Standard error of the accuracy over items, in percent."""
    share = result.accuracy / 100
    return 100 * math.sqrt(share * (1 - share) / result.num_items)


HEADERS = ("task", "accuracy", "s.e.", "chance", "items", "unscorable", "events", "train s", "s")


def result_rows(
    results: Sequence[TaskResult], chance: Callable[[str], float]
) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = [
        (
            *(r.task, r.accuracy, item_error(r), chance(r.task), r.num_items),
            *(r.num_unscorable, _event_text(r.events), r.train_seconds, r.eval_seconds),
        )
        for r in results
    ]
    error = math.sqrt(sum(item_error(r) ** 2 for r in results)) / len(results)
    mean_chance = sum(chance(r.task) for r in results) / len(results)
    totals = (sum(r.num_items for r in results), sum(r.num_unscorable for r in results))
    seconds = (sum(r.train_seconds for r in results), sum(r.eval_seconds for r in results))
    rows.append(("mean", mean_accuracy(results), error, mean_chance, *totals, "", *seconds))
    return rows


def _event_text(events: dict[str, int]) -> str:
    return ", ".join(f"{count} x {event}" for event, count in events.items())


# ------------------------------------------------------------------------------------- comparing


@dataclass(frozen=True)
class Finished:
    """A run that is compared; `label` is the same for runs that differ in their seed alone."""

    path: Path
    label: str
    seed: int
    results: dict[str, TaskResult]


class Cell(NamedTuple):
    """Accuracy of a label on a task: mean over seeds, and its standard error over seeds (over items
    where there is one seed alone)."""

    mean: float
    error: float
    num_seeds: int


IGNORED = ("seed", "log_path", "meta", "compare", "max_parallel_adapters", "device", "dry_run")


def load_finished(paths: Sequence[Path]) -> list[Finished]:
    """Runs from their folders or their log.json; a ConfigError names what is none or not whole."""
    folders = [path.parent if path.name == LOG else path for path in paths]
    problems = [
        f"compare names {folder}, where there is no {name}; run scripts/ttt.py domain=bbh"
        for folder in folders
        for name in ("config.yaml", TASKS, LOG)
        if not (folder / name).is_file()
    ]
    raise_problems(problems)
    configs = [load_yaml(folder / "config.yaml") for folder in folders]
    raise_problems(
        [
            f"compare names {folder}, a run of domain={config.get('domain')}; only runs of "
            "scripts/ttt.py domain=bbh are compared"
            for folder, config in zip(folders, configs, strict=True)
            if config.get("domain") != "bbh"
        ]
    )
    runs = [
        Finished(folder, label, config["seed"], {r.task: r for r in read_results(folder)})
        for folder, config, label in zip(folders, configs, _labels(configs), strict=True)
    ]
    _require_different(runs)
    return runs


def _require_different(runs: Sequence[Finished]) -> None:
    """A run that counts twice would make its errors over seeds too small."""
    first: dict[tuple[str, int], Finished] = {}
    problems = []
    for run in runs:
        other = first.setdefault((run.label, run.seed), run)
        if other is not run:
            problems.append(
                f"compare: {other.path} and {run.path} have the same settings and seed={run.seed}; "
                "name one of them"
            )
    raise_problems(problems)


def _labels(configs: Sequence[dict[str, Any]]) -> list[str]:
    """The method, and the settings in which runs of one method differ."""
    labels = []
    for config in configs:
        same = [other for other in configs if other["method"] == config["method"]]
        varying = [
            key
            for key in config
            if key not in IGNORED and any(other.get(key) != config[key] for other in same)
        ]
        parts = [f"{key}={config[key]}" for key in varying]
        labels.append(" ".join([config["method"], *parts]))
    return labels


def cells(runs: Sequence[Finished]) -> dict[str, dict[str, Cell]]:
    """By task, then by label; the task "mean" is over the tasks that all runs have."""
    labels = list(dict.fromkeys(run.label for run in runs))
    tasks = common_tasks(runs)
    table: dict[str, dict[str, Cell]] = {}
    for task in [*tasks, "mean"]:
        table[task] = {}
        for label in labels:
            of_label = [run for run in runs if run.label == label]
            if task == "mean":
                of_runs = [mean_accuracy([run.results[t] for t in tasks]) for run in of_label]
                single = math.sqrt(
                    sum(item_error(of_label[0].results[t]) ** 2 for t in tasks)
                ) / len(tasks)
            else:
                of_runs = [run.results[task].accuracy for run in of_label]
                single = item_error(of_label[0].results[task])
            table[task][label] = _cell(of_runs, single)
    return table


def _cell(accuracies: Sequence[float], single_error: float) -> Cell:
    n = len(accuracies)
    mean = sum(accuracies) / n
    if n == 1:
        return Cell(mean, single_error, 1)
    spread = math.sqrt(sum((value - mean) ** 2 for value in accuracies) / (n - 1))
    return Cell(mean, spread / math.sqrt(n), n)


def common_tasks(runs: Sequence[Finished]) -> list[str]:
    """Tasks that every run has, in the order of the first; a ConfigError where there is none."""
    tasks = [t for t in runs[0].results if all(t in run.results for run in runs)]
    if not tasks:
        raise ConfigError("compare: these runs have no task in common")
    return tasks


class Pairs(NamedTuple):
    """Right (1.0) or wrong (0.0) of the same questions under two labels, seed by seed."""

    base_P: list[float]
    tuned_P: list[float]
    questions_P: list[str]


def paired_items(runs: Sequence[Finished], base: str, tuned: str, task: str) -> Pairs:
    """Items that both labels answered with the same seed, which gives them the same split; items
    made by this project differ from seed to seed."""
    pairs = Pairs([], [], [])
    for first in (run for run in runs if run.label == base):
        for second in (run for run in runs if run.label == tuned and run.seed == first.seed):
            right = {(p.index, p.question): p.right for p in first.results[task].predictions}
            for p in second.results[task].predictions:
                if (p.index, p.question) in right:
                    pairs.base_P.append(float(right[p.index, p.question]))
                    pairs.tuned_P.append(float(p.right))
                    pairs.questions_P.append(p.question)
    return pairs
