"""evaluation/behaviour/eval_file.py: what gen_eval.py writes and eval.py reads."""

from pathlib import Path
from typing import Any

import pytest
from eval_world import PROPERTIES, prompt, some_prompts, write_eval_file

from evaluation.behaviour.eval_file import EvalPrompt, load_eval_file
from utils.config.entrypoint import ConfigError, dump_yaml


def problems(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_eval_file(path)
    return caught.value.problems


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = EvalPrompt("a-1", "warm", "grief", ["Hi\nyou: #1", "and?"], 7, 2.5)
    bare = EvalPrompt("a-2", "signs-off", "work", ["Hi"])
    path = write_eval_file(tmp_path / "x.eval.yaml", [written.to_plain(), bare.to_plain()])
    found = load_eval_file(path)
    assert found.prompts == [written, bare]
    assert list(found.properties) == ["signs-off", "warm"]
    assert found.properties["signs-off"].rule == "Hope that helps!$"


def test_every_wrong_entry_is_named(tmp_path: Path) -> None:
    wrong: list[Any] = [
        prompt("a", "c"),
        {**prompt("b", "c"), "property": "rude"},
        {**prompt("a", "c"), "messages": []},
        {**prompt("d", "c"), "messages": ["one", " "], "mesages": 1},
        {**prompt("e", ""), "realism": "high", "eval_awareness": float("nan")},
        {**prompt("f", "c"), "id": 7, "messages": "one"},
        "text",
        {},
    ]
    path = write_eval_file(tmp_path / "x.eval.yaml", wrong)
    found = problems(path)
    parts = [
        ("prompt 2 (b)", "property='rude' is not among the file's properties (signs-off, warm)"),
        ("prompt 3 (a)", "messages=[] must be a list with a message or more"),
        ("prompt 3 (a)", "id='a' is that of prompt 1 too"),
        ("prompt 4 (d)", "unknown key 'mesages'"),
        ("prompt 4 (d)", "messages[1]=' ' must be text"),
        ("prompt 5 (e)", "category='' must be text"),
        ("prompt 5 (e)", "realism='high' must be a number"),
        ("prompt 5 (e)", "eval_awareness=nan must be a number"),
        ("prompt 6:", "id=7 must be text"),
        ("prompt 6:", "messages='one' must be a list"),
        ("prompt 7:", "a mapping with id, property, category, messages"),
        ("prompt 8:", "id=None must be text"),
    ]
    for where, what in parts:
        assert any(str(path) in p and where in p and what in p for p in found), (where, what)


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ({"properties": PROPERTIES, "prompts": []}, ["there are no prompts in it"]),
        ({"properties": PROPERTIES}, ["prompts must be a list, got NoneType"]),
        ({"prompts": [prompt("a", "c")]}, ["properties must be a mapping", "prompt 1 (a)"]),
        ({"properties": {"warm": {"opposite": "x"}}, "prompts": "no"}, ["description", "list"]),
    ],
)
def test_files_of_the_wrong_shape(tmp_path: Path, records: Any, expected: list[str]) -> None:
    dump_yaml(tmp_path / "x.eval.yaml", records)
    found = problems(tmp_path / "x.eval.yaml")
    assert len(found) == len(expected)
    for text, problem in zip(expected, found, strict=True):
        assert text in problem


def test_yaml_runs_nothing_and_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "x.eval.yaml"
    marker = tmp_path / "ran"
    path.write_text(f"prompts: !!python/object/apply:os.system ['touch {marker}']\n")
    with pytest.raises(ValueError, match=r"x\.eval\.yaml:1:10: not valid YAML"):
        load_eval_file(path)
    assert not marker.exists()
    path.write_text("properties: {}\nprompts: [unclosed\n")
    with pytest.raises(ValueError, match=r"x\.eval\.yaml:3:1: not valid YAML"):
        load_eval_file(path)
    with pytest.raises(FileNotFoundError, match="absent"):
        load_eval_file(tmp_path / "absent")


def test_choosing_properties(tmp_path: Path) -> None:
    found = load_eval_file(write_eval_file(tmp_path / "x.eval.yaml", some_prompts(6)))
    assert found.only([], "x") is found
    chosen = found.only(["warm"], "x")
    assert list(chosen.properties) == ["warm"]
    assert [p.id for p in chosen.prompts] == ["q1", "q3", "q5"]
    only_warm = write_eval_file(tmp_path / "w.eval.yaml", [prompt("a", "c", property="warm")])
    with pytest.raises(ConfigError) as caught:
        load_eval_file(only_warm).only(["rude", "signs-off", "warm", "warm"], "w.eval.yaml")
    assert caught.value.problems == [
        "properties names 'rude', which w.eval.yaml does not have (signs-off, warm)",
        "properties names 'signs-off', for which w.eval.yaml has no prompt",
        "properties names warm more than once",
    ]
