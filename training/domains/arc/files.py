"""Result files in the layouts published with SEAL, and Kaggle submissions. Written atomically."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.domains.arc.grids import Grid
from utils.json_files import read_json_object
from utils.runs.files import atomic_write_text

CONFIGS_NAME = "final_configs_and_indices.json"
RESULTS_NAME = "final_results.json"

Results = dict[int, dict[str, bool]]


@dataclass(frozen=True)
class SelfEditRecord:
    """One sampled self-edit: the parsed JSON and the sample it came from."""

    config: dict[str, Any]
    prompt: str
    response: str
    token_ids: list[int]


def _write_json(path: Path, data: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json.dumps(data))


def write_configs(path: Path, records: Mapping[str, Mapping[int, SelfEditRecord]]) -> None:
    """`{task_id: {edit index: {config, prompt, response, token_ids}}}`."""
    _write_json(
        path,
        {
            task_id: {str(index): asdict(record) for index, record in by_index.items()}
            for task_id, by_index in records.items()
        },
    )


def read_configs(path: Path) -> dict[str, dict[int, SelfEditRecord]]:
    """ValueError names the file and the entry that is not of the published layout."""
    records: dict[str, dict[int, SelfEditRecord]] = {}
    for task_id, by_index in read_json_object(path).items():
        try:
            records[task_id] = {int(i): _self_edit(entry) for i, entry in by_index.items()}
        except (AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: {task_id}: {error}") from None
    return records


def _self_edit(entry: Mapping[str, Any]) -> SelfEditRecord:
    record = SelfEditRecord(**entry)
    for name, kind in (("config", dict), ("prompt", str), ("response", str), ("token_ids", list)):
        if not isinstance(getattr(record, name), kind):
            raise ValueError(f"{name}={getattr(record, name)!r:.80}: not a {kind.__name__}")
    wrong = [token for token in record.token_ids if type(token) is not int]
    if wrong:
        raise ValueError(f"token_ids has {wrong[0]!r}, which is no whole number")
    return record


def write_results(path: Path, results: Mapping[int, Mapping[str, bool]]) -> None:
    """`{edit index: {"task_id": {row: id}, "correct": {row: bool}}}`, rows sorted by id."""
    data = {}
    for index, correct in results.items():
        task_ids = sorted(correct)
        data[str(index)] = {
            "task_id": {str(row): task_id for row, task_id in enumerate(task_ids)},
            "correct": {str(row): correct[task_id] for row, task_id in enumerate(task_ids)},
        }
    _write_json(path, data)


def read_results(path: Path) -> Results:
    """Edit index -> task id -> solved. ValueError names the file and the edit that is malformed."""
    results: Results = {}
    for index, table in read_json_object(path).items():
        try:
            task_ids, correct = table["task_id"], table["correct"]
            if task_ids.keys() != correct.keys():
                raise ValueError("task_id and correct have different rows")
            wrong = [row for row, value in correct.items() if not isinstance(value, bool)]
            if wrong:
                raise ValueError(f"correct is not true or false in rows {wrong}")
            results[int(index)] = {task_ids[row]: correct[row] for row in task_ids}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: edit {index!r}: {error!r}") from None
    return results


def write_submission(path: Path, attempts: Mapping[str, Sequence[Sequence[Grid]]]) -> None:
    """Kaggle's `{task_id: [{attempt_1, attempt_2} per test]}`; `attempts[id][t]` are two grids."""
    wrong = [i for i, tests in attempts.items() if not tests or any(len(t) != 2 for t in tests)]
    if wrong:
        raise ValueError(f"tasks {wrong}: expected two attempts at every test")
    _write_json(
        path,
        {
            task_id: [
                {"attempt_1": first.tolist(), "attempt_2": second.tolist()}
                for first, second in tests
            ]
            for task_id, tests in attempts.items()
        },
    )
