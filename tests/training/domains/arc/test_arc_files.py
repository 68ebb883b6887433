import json
import os

import pytest
from places import SHARED_DATA

from training.domains.arc.files import (
    SelfEditRecord,
    read_configs,
    read_results,
    write_configs,
    write_results,
    write_submission,
)
from training.domains.arc.grids import to_grid
from training.domains.arc.self_edit import ORACLE

PUBLISHED = SHARED_DATA / "seal_results" / "final_results.json"


def test_results_layout(tmp_path):
    path = tmp_path / "deep" / "final_results.json"
    results = {0: {"b": True, "a": False}, 10: {"a": True}}
    write_results(path, results)
    assert json.loads(path.read_text()) == {
        "0": {"task_id": {"0": "a", "1": "b"}, "correct": {"0": False, "1": True}},
        "10": {"task_id": {"0": "a"}, "correct": {"0": True}},
    }
    assert read_results(path) == results


@pytest.mark.skipif(not PUBLISHED.is_file(), reason="the published results are not here")
def test_published_results_round_trip_byte_for_byte(tmp_path):
    results = read_results(PUBLISHED)
    assert list(results) == [0]
    assert len(results[0]) == 8
    assert not any(results[0].values())
    write_results(tmp_path / "copy.json", results)
    assert (tmp_path / "copy.json").read_bytes() == PUBLISHED.read_bytes()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "line 1, byte 2: no JSON"),
        ("[]", "expected a JSON object, got list"),
        ('{"0": {"task_id": {}}}', r"edit '0': KeyError\('correct'\)"),
        ('{"0": 3}', "edit '0'"),
        ('{"x": {"task_id": {}, "correct": {}}}', "edit 'x'"),
        ('{"0": {"task_id": {"0": "a"}, "correct": {"1": true}}}', "different rows"),
        ('{"0": {"task_id": {"0": "a"}, "correct": {"0": 1}}}', "not true or false"),
    ],
)
def test_malformed_results(tmp_path, text, reason):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"results\.json: {reason}|results\.json.*{reason}"):
        read_results(path)


def test_configs_layout(tmp_path):
    path = tmp_path / "final_configs_and_indices.json"
    record = SelfEditRecord(ORACLE.to_json(), "prompt", "réponse", [1, 2])
    write_configs(path, {"44f52bb0": {0: record, 1: record}})
    data = json.loads(path.read_text())
    assert list(data) == ["44f52bb0"]
    assert list(data["44f52bb0"]) == ["0", "1"]
    assert data["44f52bb0"]["1"] == {
        "config": ORACLE.to_json(),
        "prompt": "prompt",
        "response": "réponse",
        "token_ids": [1, 2],
    }
    assert read_configs(path) == {"44f52bb0": {0: record, 1: record}}


@pytest.mark.parametrize("text", ['{"a": 1}', '{"a": {"0": {"config": {}}}}', '{"a": {"x": {}}}'])
def test_malformed_configs(tmp_path, text):
    path = tmp_path / "configs.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"configs\.json: a: "):
        read_configs(path)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("config", "{}", "config='{}': not a dict"),
        ("response", None, "response=None: not a str"),
        ("token_ids", [1, True], "token_ids has True, which is no whole number"),
    ],
)
def test_configs_of_wrong_types_are_refused(tmp_path, name, value, told):
    path = tmp_path / "configs.json"
    entry = {"config": {}, "prompt": "p", "response": "r", "token_ids": [1], name: value}
    path.write_text(json.dumps({"a": {"0": entry}}))
    with pytest.raises(ValueError) as caught:
        read_configs(path)
    assert str(caught.value) == f"{path}: a: {told}"


def test_submission_layout(tmp_path):
    path = tmp_path / "submission.json"
    one, two = to_grid([[1, 2]]), to_grid([[3]])
    write_submission(path, {"a": [(one, two), (two, two)]})
    assert json.loads(path.read_text()) == {
        "a": [
            {"attempt_1": [[1, 2]], "attempt_2": [[3]]},
            {"attempt_1": [[3]], "attempt_2": [[3]]},
        ]
    }
    with pytest.raises(ValueError, match=r"\['b', 'c'\]: expected two attempts"):
        write_submission(path, {"a": [(one, two)], "b": [(one,)], "c": []})


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_results(path, {0: {"a": True}})

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_results(path, {0: {"a": False}})
    assert read_results(path) == {0: {"a": True}}
    assert os.listdir(tmp_path) == ["results.json"]
