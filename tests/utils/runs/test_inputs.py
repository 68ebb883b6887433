"""What decides a run besides its settings: nothing of it changes between the parts of a run.

uv run pytest tests/utils/runs/test_inputs.py
"""

import importlib
from collections.abc import Callable
from pathlib import Path

import chz
import pytest

from utils.config.entrypoint import ConfigError, dump_yaml, load_yaml
from utils.runs.inputs import INPUT, Input, data_input, file_inputs
from utils.runs.run_dir import RunDir


@chz.chz
class Config:
    examples_file: Path | None = chz.field(default=None, metadata=INPUT)
    checkpoint_paths: list[str] = chz.field(default_factory=list, metadata=INPUT)
    log_path: Path | None = None
    note: str = ""


def open_run(folder: Path, config: Config, **data: Input) -> None:
    RunDir.open("sft", folder / "run", config, data=data).close()


def refused(folder: Path, config: Config, **data: Input) -> list[str]:
    with pytest.raises(ConfigError) as error:
        open_run(folder, config, **data)
    return error.value.problems


@pytest.fixture
def config(tmp_path: Path) -> Config:
    (tmp_path / "chats.jsonl").write_text("1\n2\n")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(b"weights")
    return Config(examples_file=tmp_path / "chats.jsonl", checkpoint_paths=[str(adapter)])


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"3\n")


@pytest.mark.parametrize(
    ("change", "name", "path"),
    [
        (lambda f: append(f / "chats.jsonl"), "examples_file", "chats.jsonl"),
        # another of the same length
        (lambda f: (f / "chats.jsonl").write_text("1\n3\n"), "examples_file", "chats.jsonl"),
        (lambda f: (f / "chats.jsonl").unlink(), "examples_file", "chats.jsonl"),
        (
            lambda f: append(f / "adapter" / "adapter_model.safetensors"),
            "checkpoint_paths.0",
            "adapter",
        ),
        (
            lambda f: (f / "adapter" / "train.jsonl").write_text("{}"),
            "checkpoint_paths.0",
            "adapter",
        ),
    ],
)
def test_a_file_that_changed_is_refused(
    change: Callable[[Path], object], name: str, path: str, config: Config, tmp_path: Path
) -> None:
    open_run(tmp_path, config)
    open_run(tmp_path, config)
    change(tmp_path)
    [told, problem] = refused(tmp_path, config)
    assert told == f"{tmp_path / 'run'} was started with other data; resume needs the same"
    assert problem.startswith(f"{name}: {tmp_path / path} holds something else than at the start")
    assert problem.endswith("bring back what it held, or start a new run")


def test_what_is_no_input_may_change(config: Config, tmp_path: Path) -> None:
    open_run(tmp_path, config)
    (tmp_path / "adapter" / "README.md").write_text("hello")
    open_run(tmp_path, config)


def test_data_from_elsewhere_is_told_apart_by_its_items(config: Config, tmp_path: Path) -> None:
    rows = [{"question": "1 + 1", "answer": 2}, {"question": "1 + 2", "answer": 3}]
    open_run(tmp_path, config, problems=data_input("some/hub", rows))
    # the order of keys is none of its contents
    again = [dict(reversed(row.items())) for row in rows]
    open_run(tmp_path, config, problems=data_input("a copy", again))
    [_, problem] = refused(tmp_path, config, problems=data_input("a copy", rows[::-1]))
    assert problem.startswith("problems: a copy holds something else than at the start (sha256 ")
    assert "none now" in refused(tmp_path, config)[1]
    # the file that they come from is what the user can mend
    append(tmp_path / "chats.jsonl")
    [_, problem] = refused(tmp_path, config, problems=data_input("a copy", rows[::-1]))
    assert problem.startswith("examples_file: ")


def test_a_run_of_before_takes_its_data_up(config: Config, tmp_path: Path) -> None:
    open_run(tmp_path, config)
    path = tmp_path / "run" / "config.yaml"
    known = load_yaml(path)
    dump_yaml(path, {k: v for k, v in known.items() if k != "meta"})
    open_run(tmp_path, config)
    assert load_yaml(path)["meta"]["inputs"] == known["meta"]["inputs"]
    append(tmp_path / "chats.jsonl")
    assert "examples_file: " in refused(tmp_path, config)[1]


def test_the_stored_config_says_what_was_read(config: Config, tmp_path: Path) -> None:
    open_run(tmp_path, config)
    stored = load_yaml(tmp_path / "run" / "config.yaml")["meta"]["inputs"]["examples_file"]
    # as sha256sum says of 1 and 2, a line each
    digest = "a6e2b7a040683432de03a18fd8a1939a2fdf82585b364bfc874bdd4095c4cae1"
    assert stored == {"source": str(tmp_path / "chats.jsonl"), "sha256": digest}


def test_home_folders(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    typed = Config(examples_file=Path("~/chats.jsonl"), checkpoint_paths=["~/adapter"])
    assert file_inputs(typed) == file_inputs(config)
    assert set(file_inputs(typed)) == {"examples_file", "checkpoint_paths.0"}


@pytest.mark.parametrize(
    ("module", "name", "fields"),
    [
        ("sft", "Config", {"examples_file"}),
        ("generate", "Config", {"properties_file", "params_file", "eval_file"}),
        ("gen_eval", "Config", {"properties_file", "params_file", "examples_file"}),
        (
            "evaluation.behaviour.plan",
            "Config",
            {"eval_file", "responses_file", "checkpoint_paths"},
        ),
        ("training.domains.gsm8k", "Gsm8kConfig", {"data_path"}),
        ("training.domains.bbh.config", "BBHConfig", {"data_dir"}),
        (
            "training.domains.arc.config",
            "ArcConfig",
            {
                f"{test}{what}_file"
                for test in ("", "test_")
                for what in ("challenges", "solutions")
            },
        ),
        (
            "training.domains.arc.ttt_config",
            "ArcTTTConfig",
            {"challenges_file", "solutions_file"},
        ),
    ],
)
def test_which_settings_name_inputs(module: str, name: str, fields: set[str]) -> None:
    found = chz.chz_fields(getattr(importlib.import_module(module), name))
    assert {n for n, field in found.items() if (field.metadata or {}).get("input")} == fields
