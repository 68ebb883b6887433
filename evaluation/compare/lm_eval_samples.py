"""What lm-eval writes with --log_samples: samples_<task>_<date>.jsonl, a line per item and
filter."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from evaluation.compare.items import Item, Sample, Side, as_score, join_samples
from utils.config.entrypoint import raise_problems
from utils.json_files import read_json_lines

FORM = "samples of lm-eval"
_NAME = re.compile(r"samples_(.+)_\d{4}-\d\d-\d\dT[\d.-]+\.jsonl")
NEEDED = ("doc_id", "doc", "metrics", "filter")


def is_samples_folder(path: Path) -> bool:
    return any(path.rglob("samples_*.jsonl"))


def read_samples(path: Path) -> Side:
    """One file, or a folder of lm-eval's with a file for each task. Items and metrics carry the
    name of the task where there are several; a metric of a named filter is metric,filter, as
    lm-eval prints it.

    Raises ValueError for other files, an item twice, and a task with two files.
    """
    files = sorted(path.rglob("samples_*.jsonl")) if path.is_dir() else [path]
    by_task: dict[str, Path] = {}
    for file in files:
        match = _NAME.fullmatch(file.name)
        task = match[1] if match else file.stem
        if task in by_task:
            raise ValueError(
                f"{path}: {by_task[task].name} and {file.name} are both of task {task}; name one "
                "of the files"
            )
        by_task[task] = file
    unusable: dict[str, str] = {}
    samples: list[Sample] = []
    for task, file in by_task.items():
        samples += _read_file(file, f"{task}/" if len(by_task) > 1 else "", unusable)
    items, notes = join_samples(samples, str(path))
    folder = path if path.is_dir() else path.parent
    return Side(
        path, FORM, f"{folder.name}, {', '.join(by_task)}", items, unusable=unusable, notes=notes
    )


def _read_file(path: Path, prefix: str, unusable: dict[str, str]) -> list[Sample]:
    problems: list[str] = []
    records: dict[tuple[Any, str], tuple[str, dict[str, Any]]] = {}
    for where, record in read_json_lines(path, problems):
        if not isinstance(record, dict) or any(key not in record for key in NEEDED):
            problems.append(
                f"{where}: no sample of lm-eval, which has {', '.join(NEEDED)} (written by "
                "lm_eval --log_samples)"
            )
            continue
        key = (record["doc_id"], record["filter"])
        if key in records:
            problems.append(
                f"{where}: item {key[0]} with filter {key[1]!r} stands there twice (before: "
                f"{records[key][0]})"
            )
        records[key] = (where, record)
    raise_problems(problems, at_most=5)
    by_item: dict[Any, list[dict[str, Any]]] = {}
    for (doc_id, _), (_, record) in records.items():
        by_item.setdefault(doc_id, []).append(record)
    return [Sample(None, _item(path, prefix, own, unusable)) for own in by_item.values()]


def _item(path: Path, prefix: str, records: list[dict[str, Any]], unusable: dict[str, str]) -> Item:
    scores: dict[str, float | None] = {}
    for record in records:
        for metric in record["metrics"]:
            own = "" if record["filter"] == "none" else f",{record['filter']}"
            name = f"{prefix}{metric}{own}"
            try:
                scores[name] = as_score(record.get(metric))
            except ValueError as error:
                unusable.setdefault(
                    name,
                    f"{path.name}, item {record['doc_id']!r} has {error}; a number of the item's "
                    "own is needed",
                )
    first = records[0]
    doc = first["doc"] if isinstance(first["doc"], dict) else {}
    arguments = first.get("arguments") or {}
    request = next(iter(arguments.values()), {}) if isinstance(arguments, dict) else {}
    return Item(
        f"{prefix}{first['doc_id']}",
        scores,
        doc,
        question=str(request.get("arg_0", "")) if isinstance(request, dict) else "",
        answer="\n".join(f"{r['filter']}: {r.get('filtered_resps')}" for r in records),
        fingerprint=first.get("doc_hash"),
    )
