"""evaluation/behaviour/targets.py: names of models under test, and which checkpoints are theirs."""

import json
from pathlib import Path

import pytest

from evaluation.behaviour.targets import checkpoint_labels, checkpoint_problems, make_targets
from utils.llm.roles import RoleConfig


def save_adapter(folder: Path, base_model: str | None, weights: bytes = b"1") -> str:
    """A foreign adapter where `base_model` is None."""
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({}))
    (folder / "adapter_model.safetensors").write_bytes(weights)
    if base_model is not None:
        state = {"base_model": base_model, "fingerprint": "f"}
        (folder / "state.json").write_text(json.dumps(state))
    return str(folder)


def test_labels_are_short_and_differ() -> None:
    paths = [
        "runs/sft/20260101-aa/checkpoints/weights/000050",
        "runs/sft/20260101-aa/checkpoints/weights/000100",
        "/elsewhere/20260101-aa/checkpoints/weights/000050",
        "adapters/mine",
        "others/mine",
        "third/mine",
        "adapters/base",
    ]
    assert checkpoint_labels(paths) == [
        "20260101-aa/000050",
        "20260101-aa/000100",
        "20260101-aa/000050#2",
        "mine",
        "mine#2",
        "mine#3",
        "base#2",
    ]


def test_an_adapter_s_files_are_part_of_its_name(tmp_path: Path) -> None:
    paths = [save_adapter(tmp_path / name, "embedded", name.encode()) for name in "ab"]
    settings = RoleConfig(temperature=0.25, extra_body={"x": 1})
    base, *tuned = make_targets(settings, "embedded", paths, temperature=0.7, max_tokens=9, seed=3)
    assert (base.label, base.role.model, base.checkpoint) == ("base", "embedded", None)
    assert [target.label for target in tuned] == ["a", "b"]
    assert [target.checkpoint for target in tuned] == paths
    models = {target.role.model for target in tuned}
    assert len(models) == 2 and all(model.startswith("embedded@") for model in models)
    names = {target.role.name for target in (base, *tuned)}
    assert names == {"target base", "target a", "target b"}
    for target in (base, *tuned):
        role = target.role
        assert (role.base_url, role.temperature, role.max_tokens, role.seed) == (None, 0.25, 9, 3)


def test_a_served_target_is_alone() -> None:
    settings = RoleConfig(model="m", base_url="http://127.0.0.1:9/v1")
    [only] = make_targets(settings, "embedded", [], temperature=0.7, max_tokens=9, seed=0)
    assert (only.label, only.role.model, only.model_name) == ("base", "m", None)
    assert only.to_plain()["base_url"] == "http://127.0.0.1:9/v1"


def test_a_key_in_the_environment_does_not_move_the_target(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-1")
    [only] = make_targets(RoleConfig(), "org/model", [], temperature=0.7, max_tokens=9, seed=0)
    assert only.role.base_url is None and only.model_name == "org/model"


@pytest.mark.parametrize(
    ("trained_on", "model_name", "differ"),
    [
        ("embedded", "embedded", False),
        ("embedded", "FOLDER/one", True),
        ("FOLDER/one", "embedded", True),
        ("FOLDER/one", "FOLDER/one", False),
        ("FOLDER/one", "FOLDER/two/../one", False),
        ("FOLDER/one", "FOLDER/two", True),
        ("FOLDER/one", "~/two", True),
        ("~/one", "FOLDER/one", False),
        ("org/model-a", "org/model-b", True),
        ("org/model-a", "org/model-a", False),
        # only the weights can tell
        ("FOLDER/moved", "FOLDER/one", False),
        ("org/model-a", "FOLDER/one", False),
        ("org/model-a", "embedded", False),
        (None, "embedded", False),
    ],
)
def test_whose_adapter_it_is(
    tmp_path: Path,
    trained_on: str | None,
    model_name: str,
    differ: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    base = None if trained_on is None else trained_on.replace("FOLDER", str(tmp_path))
    path = save_adapter(tmp_path / "adapter", base)
    found = checkpoint_problems([path], model_name.replace("FOLDER", str(tmp_path)))
    assert len(found) == differ
    if differ:
        assert "was trained on" in found[0] and f"give model_name={base}" in found[0]


def test_wrong_paths_are_all_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    good = save_adapter(tmp_path / "good", "embedded")
    broken = save_adapter(tmp_path / "broken", "embedded")
    (tmp_path / "broken" / "state.json").write_text("{")
    paths = ["absent", str(tmp_path / "empty"), good, f"{tmp_path}/empty/../good", broken]
    found = checkpoint_problems(paths, "embedded")
    assert len(found) == 4
    assert "absent: no such checkpoint folder" in found[0]
    assert "not an adapter folder" in found[1]
    assert "more than once" in found[2]
    assert "broken" in found[3]
