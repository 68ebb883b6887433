"""The points of the plots: each evaluated checkpoint and mode, with labels; means over runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evaluation.icl.results import what_varies

if TYPE_CHECKING:
    import pandas as pd

MODES = {
    "standard": "tasks of the mixture (ID)",
    "ood": "new tasks (OOD)",
    "iwl": "in-weights: the item is not in the context",
}
LOSS_NAMES = ("loss", "generalizing_loss", "memorizing_loss")
_SEEDS = ("model.init_seed", "setting.task_seed")

Row = dict[str, Any]


def points_of(frame: pd.DataFrame) -> list[Row]:
    """A row for each evaluated checkpoint and mode, with labels of what varies between the runs of
    a family: of the setting besides the number of tasks, and of the model and its training."""
    by_family: dict[str, list[Row]] = {}
    records: list[Any] = frame.to_dict("records")
    for record in records:
        if record["metrics"] is not None:
            by_family.setdefault(record["config"]["setting"]["type"], []).append(record)
    points = []
    for family, of_family in by_family.items():
        settings = what_varies(
            [r["config"] for r in of_family], ("setting",), ("setting.num_tasks", *_SEEDS)
        )
        models = _model_labels(of_family)
        for record, setting in zip(of_family, settings, strict=True):
            points += [
                {
                    "family": family,
                    "mode": mode,
                    "setting": _label(setting),
                    "model": models[record["run"]],
                    "num_tasks": record["config"]["setting"]["num_tasks"],
                    "step": record["checkpoint"],
                    "run": record["run"],
                    "record": record["metrics"][mode],
                }
                for mode in MODES
                if mode in record["metrics"]
            ]
    return points


def _model_labels(records: Sequence[Row]) -> dict[str, str]:
    """By run. Of trained ones, in what they differ; the others have names of their own."""
    labels = {}
    trained: dict[str, Any] = {}
    for record in records:
        model = record["config"]["model"]
        if model["type"] == "LLM":
            labels[record["run"]] = " + ".join(
                str(part) for part in (model["model_name"], model.get("checkpoint")) if part
            )
        elif model["type"] == "Bayes":
            labels[record["run"]] = f"{model['predictor']} predictor"
        else:
            trained[record["run"]] = record["config"]
    varying = what_varies(list(trained.values()), ("model", "training"), _SEEDS)
    for run, values in zip(trained, varying, strict=True):
        labels[run] = _label(values) or "model"
    return labels


def _label(values: Mapping[str, Any]) -> str:
    return ", ".join(
        str(value) if name == "model.type" else f"{name.rpartition('.')[2]}={value}"
        for name, value in values.items()
    )


def final_points(points: Sequence[Row]) -> list[Row]:
    """Those of each run's last checkpoint."""
    last: dict[str, int] = {}
    for point in points:
        last[point["run"]] = max(last.get(point["run"], -1), _number(point["step"]))
    return [point for point in points if _number(point["step"]) == last[point["run"]]]


def _number(step: int | None) -> int:
    return -1 if step is None else step


def averaged(points: Sequence[Row], keys: Sequence[str], names: Sequence[str]) -> list[Row]:
    """A row for each combination of `keys`: the means over runs of those numbers of `names` that
    are there, the standard error of the loss over runs, and how many runs there are."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for point in points:
        groups.setdefault(tuple(point[key] for key in keys), []).append(point["record"])
    rows = []
    for group, records in groups.items():
        row: Row = dict(zip(keys, group, strict=True))
        for name in names:
            values = [r[name] for r in records if r.get(name) is not None]
            row[name] = statistics.fmean(values) if values else None
        losses = [record["loss"] for record in records]
        several = len(losses) > 1
        row["error"] = statistics.stdev(losses) / math.sqrt(len(losses)) if several else None
        rows.append({**row, "runs": len(records)})
    return rows


def task_order(num_tasks: int | str) -> float:
    """To sort by; "inf" comes last."""
    return math.inf if num_tasks == "inf" else float(num_tasks)


def position_records(record: Row) -> list[Row]:
    """The losses of `record` at each position."""
    columns = {
        name: record[f"position_{name}"].tolist()
        for name in LOSS_NAMES
        if f"position_{name}" in record
    }
    count = len(record["position_loss"])
    return [{name: column[i] for name, column in columns.items()} for i in range(count)]


def grouped(rows: Sequence[Row], key: str) -> dict[Any, list[Row]]:
    """By the value of `key`, in order of first appearance."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[key], []).append(row)
    return groups
