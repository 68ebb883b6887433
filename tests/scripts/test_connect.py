"""What is typed for another backend is refused by every script, before anything is loaded.

uv run pytest tests/scripts/test_connect.py
"""

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chat
import chz
import pytest
import rl_loop
import self_edit
import sft

from training.connect import SamplerOptions, connect
from training.loop import connect_for_run
from utils.config.entrypoint import config_entrypoint

SCRIPTS: dict[str, Callable[[list[str]], None]] = {
    "rl_loop": rl_loop.entrypoint,
    "sft": lambda arguments: config_entrypoint(sft.main, arguments),
    "chat": lambda arguments: config_entrypoint(chat.main, arguments),
    "self_edit": lambda arguments: config_entrypoint(self_edit.main, arguments),
}
NEEDED = {"sft": ["examples_file=none.jsonl"], "self_edit": ["task_id=none"]}


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (
            ["backend=tinker", "device=cpu", "model_name=./nowhere"],
            "device='cpu': only for backend='local'; got backend='tinker'",
        ),
        (["base_url=http://x"], "base_url='http://x' needs backend='tinker'; got backend='local'"),
        (
            ["num_engines=2"],
            "num_engines=2 needs backend='processes' or 'ray'; got backend='local'",
        ),
        (["backend=ray"], "Ray is needed, which is an extra: uv sync --extra ray"),
    ],
    ids=["tinker", "local", "engines", "ray"],
)
def test_options_of_the_other_backend_are_refused(
    script: str,
    typed: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # a model that exists as far as the first look goes
    (tmp_path / "config.json").touch()
    (tmp_path / "none.jsonl").touch()
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    # as where it is not installed
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = [f"model_name={tmp_path}", *typed, *NEEDED.get(script, [])]
    with pytest.raises(SystemExit) as caught:
        SCRIPTS[script](arguments)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert f"Error: {message}\nAppend --help" in error
    assert sorted(tmp_path.rglob("*")) == before


def test_wrong_options_of_ray_are_told_before_a_cluster_is_joined() -> None:
    with pytest.raises(ValueError) as caught:
        connect("ray", device="cpu", cpus=0, patience=-1)
    assert str(caught.value) == (
        "connect: cpus=0: a whole number from 1 is needed; "
        "patience=-1: a number of seconds from 0 is needed"
    )


@chz.chz(typecheck=True)
class Settings:
    sampler_options: SamplerOptions = chz.field(default_factory=dict)


def test_the_samplers_options_are_of_their_types() -> None:
    found: list[Settings] = []

    def main(config: Settings) -> None:
        found.append(config)

    typed = {"max_loras": "1", "sleep": "true", "start_seconds": "0.5", "python": "1/bin/python"}
    config_entrypoint(main, [f"sampler_options.{name}={text}" for name, text in typed.items()])
    [config] = found
    assert config.sampler_options == {
        **{"max_loras": 1, "sleep": True},
        **{"start_seconds": 0.5, "python": "1/bin/python"},
    }
    assert type(config.sampler_options["max_loras"]) is int


def test_only_the_local_backend_saves_into_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-none")
    monkeypatch.setattr("training.backends.tinker._check_server", lambda _url: None)
    url = "http://127.0.0.1:9"
    with contextlib.closing(connect_for_run(tmp_path, "tinker", base_url=url, device=None)):
        pass
    monkeypatch.setattr("training.loop.connect", lambda backend, **options: options)
    options: Any = connect_for_run(tmp_path, "local", base_url=None, device="cpu", dtype="auto")
    assert options == {
        "base_url": None,
        "device": "cpu",
        "dtype": "auto",
        "num_engines": None,
        "checkpoint_dir": tmp_path.resolve() / "checkpoints",
        "sampler": "local",
        "sampler_options": None,
        "sampling_weights": None,
    }
