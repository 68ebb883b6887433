"""sampling_weights= in the scripts that have it: it reaches the engine, or is refused before
anything is loaded.

uv run pytest tests/scripts/test_sampling_weights.py
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chat
import eval as eval_script
import pytest
import rl_loop
import self_edit
import serve
import ttt
from bbh_world import generated, write_files
from eval_world import some_prompts, write_eval_file

from training.backends.local import embedded
from training.backends.local.service import LocalServiceClient
from utils.config.entrypoint import config_entrypoint

GYM = ("domain=gym", "task=chain_sum", "train_size=4", "test_size=1")
SCRIPTS: dict[str, tuple[Callable[[list[str]], object], tuple[str, ...]]] = {
    "rl_loop": (rl_loop.entrypoint, GYM),
    "ttt": (ttt.entrypoint, ("data_dir=bbh", 'tasks=["boolean_expressions"]', "k=1")),
    "eval": (
        lambda argv: config_entrypoint(eval_script.main, argv),
        ("eval_file=x.eval.yaml", "judge_kind=rule", 'properties=["signs-off"]'),
    ),
    "serve": (lambda argv: config_entrypoint(serve.main, argv), ("port=0",)),
    "chat": (lambda argv: config_entrypoint(chat.main, argv), ()),
    "self_edit": (lambda argv: config_entrypoint(self_edit.main, argv), ("task_id=007bbfb7",)),
}
WITH_VLLM = ("rl_loop", "ttt", "eval", "serve")


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, with a model as far as the first look goes, and data."""
    monkeypatch.chdir(tmp_path)
    Path("model").mkdir()
    Path("model/config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 64}))
    write_files(Path("bbh"), generated(["boolean_expressions"], 4))
    write_eval_file(Path("x.eval.yaml"), some_prompts(2))
    return tmp_path


@pytest.fixture
def made_with(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of local services, of which none is made."""
    seen: list[dict[str, Any]] = []

    def note(_self: Any, **options: Any) -> None:
        seen.append(options)
        raise ValueError("stop here")

    monkeypatch.setattr(LocalServiceClient, "__init__", note)
    return seen


def refusal(script: str, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    start, needed = SCRIPTS[script]
    with pytest.raises(SystemExit) as caught:
        start(["model_name=model", *needed, *arguments])
    assert caught.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("weights", ["int4", "bfloat16"])
@pytest.mark.parametrize("script", SCRIPTS)
def test_it_reaches_the_engine(
    script: str,
    weights: str,
    made_with: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if weights == "int4":
        # the folder stands for the embedded model's
        monkeypatch.setattr(embedded, "is_embedded_dir", lambda path: path == Path("model"))
    assert "stop here" in refusal(script, [f"sampling_weights={weights}"], capsys)
    assert [options["sampling_weights"] for options in made_with] == [weights]


def test_eval_answers_with_them_too(monkeypatch: pytest.MonkeyPatch) -> None:
    # its plan has looked at the settings with endpoints of its own
    seen: list[dict[str, Any]] = []

    def note(**options: Any) -> None:
        seen.append(options)
        raise RuntimeError("stop here")

    monkeypatch.setattr(eval_script, "Endpoints", note)
    start, needed = SCRIPTS["eval"]
    with pytest.raises(RuntimeError, match="stop here"):
        start(["model_name=model", *needed, "sampling_weights=bfloat16", "log_path=run"])
    assert [options["sampling_weights"] for options in seen] == ["bfloat16"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_other_models_have_none(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.backends.local.service.Engine", None)
    error = refusal(script, ["sampling_weights=int4"], capsys)
    assert error.count("sampling_weights='int4' needs model_name='embedded'") == 1
    assert "got 'model': leave it out" in error


@pytest.mark.parametrize("script", WITH_VLLM)
def test_vllm_has_weights_of_its_own(
    script: str,
    made_with: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(embedded, "is_embedded_dir", lambda path: path == Path("model"))
    error = refusal(script, ["sampling_weights=int4", "sampler=vllm"], capsys)
    assert "sampling_weights='int4' needs sampler='local'; got sampler='vllm'" in error
    assert not made_with


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_there_is_is_listed(script: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = refusal(script, ["sampling_weights=int8"], capsys)
    assert all(word in error for word in ("sampling_weights", "int8", "int4", "bfloat16"))


def test_a_server_of_models_has_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TINKER_API_KEY", "tml-none")
    error = refusal("rl_loop", ["backend=tinker", "sampling_weights=int4"], capsys)
    assert "sampling_weights='int4': only for backend='local'; got backend='tinker'" in error
