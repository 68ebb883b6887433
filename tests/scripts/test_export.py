"""scripts/export.py: what it writes is the model that the engine serves.

uv run pytest tests/scripts/test_export.py
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import export
import pytest
import torch
from peft import PeftModel
from places import ROOT
from tiny_chat import chat_tokenizer, save_chat_model
from tiny_models import hf_logprobs, randomise
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from training.api import ModelInput, SamplingParams
from training.chat import render_prompt
from training.models import load_tokenizer
from utils.config.entrypoint import config_entrypoint

TEXT = "An adapter and its base, as one: ünïcode too."


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A chat model whose head is its embedding, with a generation config of its own."""
    folder = tmp_path_factory.mktemp("tied")
    model: Any = AutoModelForCausalLM.from_pretrained(save_chat_model(folder / "untied"))
    config = model.config
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=parameter.shape[-1] ** -0.5)
    model.generation_config = GenerationConfig(
        eos_token_id=chat_tokenizer().eos_token_id, temperature=0.3, do_sample=True
    )
    model.save_pretrained(folder / "model")
    chat_tokenizer().save_pretrained(folder / "model")
    return str(folder / "model")


def checkpoint(service: Any, base: str, size: float = 0.3) -> str:
    """A saved adapter that changes everything, the head too."""
    trainer = service.create_lora_training_client(base, rank=4, train_unembed=True)
    randomise(trainer, 1, size)
    return trainer.save_state("000001").result().path


def served(service: Any, tokens: list[int], **model: str) -> list[float]:
    sampler = service.create_sampling_client(**model)
    return sampler.compute_logprobs(ModelInput.from_ints(tokens)).result()[1:]


def wanted(model: Any, tokens: list[int]) -> list[float]:
    with torch.no_grad():
        return hf_logprobs(model.eval(), tokens[:-1], torch.tensor(tokens[1:])).tolist()


def with_peft(folder: Path | str) -> Any:
    """As PEFT's users open it: the base model that the folder names, and the adapter."""
    config = json.loads((Path(folder) / "adapter_config.json").read_text())
    base = AutoModelForCausalLM.from_pretrained(
        config["base_model_name_or_path"], dtype=torch.float32
    )
    return PeftModel.from_pretrained(base, str(folder))


def run(*arguments: str) -> None:
    config_entrypoint(export.main, list(arguments))


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        run(*arguments)
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_the_merged_folder_is_the_model_that_was_served(
    tied: str, service: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = checkpoint(service, tied)
    merged = str(tmp_path / "deep" / "merged")
    run(f"checkpoint_path={adapter}", f"output_dir={merged}")
    assert f"scripts/chat.py model_name={merged}" in capsys.readouterr().out

    before: Any = load_tokenizer(tied)
    after: Any = AutoTokenizer.from_pretrained(merged)
    tokens = before.encode(TEXT)
    assert after.encode(TEXT) == tokens
    messages = [{"role": "user", "content": TEXT}]
    assert render_prompt(after, messages) == render_prompt(before, messages)
    generation = GenerationConfig.from_pretrained(merged)
    assert (generation.eos_token_id, generation.temperature) == (before.eos_token_id, 0.3)

    engine = served(service, tokens, model_path=adapter)
    base = served(service, tokens, base_model=tied)
    assert max(abs(a - b) for a, b in zip(engine, base, strict=True)) > 0.1
    model: Any = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    assert wanted(model, tokens) == pytest.approx(engine, abs=1e-4)
    assert torch.equal(
        model.get_input_embeddings().weight,
        AutoModelForCausalLM.from_pretrained(tied).get_input_embeddings().weight,
    )
    # and it is a model_name right away
    assert served(service, tokens, base_model=merged) == pytest.approx(engine, abs=1e-4)
    params = SamplingParams(max_tokens=8, temperature=0.0)
    answers = [
        service.create_sampling_client(**names).sample(ModelInput.from_ints(tokens), 1, params)
        for names in ({"model_path": adapter}, {"base_model": merged})
    ]
    first, second = (answer.result().sequences[0].tokens for answer in answers)
    assert first == second


def test_a_base_without_a_tokenizer(
    tiny_model: Callable[..., str], service: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its merged model has none either, which is said; a broken one is an error before loading."""
    base = tiny_model("llama")
    adapter, merged = checkpoint(service, base), tmp_path / "merged"
    run(f"checkpoint_path={adapter}", f"output_dir={merged}")
    said = capsys.readouterr().out
    assert f"No tokenizer: {base} has none" in said and "chat.py" not in said
    tokens = list(range(5, 40))
    engine = served(service, tokens, model_path=adapter)
    model: Any = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    assert wanted(model, tokens) == pytest.approx(engine, abs=1e-4)
    assert served(service, tokens, base_model=str(merged)) == pytest.approx(engine, abs=1e-4)

    broken = tmp_path / "broken"
    shutil.copytree(base, broken)
    (broken / "tokenizer_config.json").write_text("{}")
    (broken / "model.safetensors").write_bytes(b"not read")
    arguments = (f"checkpoint_path={adapter}", f"output_dir={tmp_path / 'more'}")
    said = refusal(capsys, *arguments, f"model_name={broken}")
    assert f"model_name='{broken}': no tokenizer could be loaded" in said


def test_the_plain_folder_loads_with_peft_from_anywhere(
    tied: str, service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(tied).parent)
    adapter = checkpoint(service, Path(tied).name)
    run(f"checkpoint_path={adapter}", f"output_dir={tmp_path / 'plain'}", "merged=false")
    assert sorted(file.name for file in (tmp_path / "plain").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    monkeypatch.chdir(tmp_path)
    tokens = load_tokenizer(tied).encode(TEXT)
    engine = served(service, tokens, model_path=adapter, base_model=tied)
    assert wanted(with_peft("plain"), tokens) == pytest.approx(engine, abs=1e-4)
    # ours reads it too
    assert served(service, tokens, model_path="plain") == engine


def test_a_hub_id_stays_what_it_is(
    tied: str, service: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = checkpoint(service, tied)
    monkeypatch.setattr(export, "resolve_model", lambda name: name)
    arguments = (f"checkpoint_path={adapter}", f"output_dir={tmp_path / 'plain'}", "merged=false")
    run(*arguments, "model_name=someone/model")
    config = json.loads((tmp_path / "plain" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "someone/model"


@pytest.mark.parametrize("merged", ["true", "false"])
def test_nothing_existing_is_overwritten(
    tied: str, service: Any, tmp_path: Path, merged: str, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = checkpoint(service, tied)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine.txt").write_text("mine")
    there = f"output_dir={tmp_path / 'there'}"
    said = refusal(capsys, f"checkpoint_path={adapter}", there, f"merged={merged}")
    assert "there' exists; choose another name" in said
    assert [file.name for file in tmp_path.iterdir()] == ["there"]
    assert (tmp_path / "there" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("merged", ["true", "false"])
def test_what_is_no_adapter_of_ours_is_refused(
    tied: str, tmp_path: Path, merged: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = f"output_dir={tmp_path / 'out'}"
    for path, reason in {
        "tinker://run/weights/000001": "only adapter folders of the local backend can be exported",
        str(tmp_path / "nowhere"): "nowhere': no such file or folder",
        tied: "no adapter_config.json in it; not an adapter folder",
    }.items():
        assert reason in refusal(capsys, f"checkpoint_path={path}", out, f"merged={merged}")
    assert list(tmp_path.iterdir()) == []


def test_check_reports_all_problems(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "scripts" / "export.py"), "--check"),
            *("checkpoint_path=nowhere", f"output_dir={tmp_path}"),
        ],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTEST_VERSION"},
        cwd=tmp_path,
    )
    problems = "\n".join(json.loads(done.stdout)["problems"])
    assert "checkpoint_path='nowhere': no such file or folder" in problems
    assert "exists; choose another name" in problems


@pytest.mark.slow
def test_the_embedded_model(tmp_path: Path, connect_local: Callable[..., Any]) -> None:
    service = connect_local()
    # of the size that training gives; under a larger one logprobs of -30 are their own noise
    adapter = checkpoint(service, "embedded", size=0.03)
    merged = str(tmp_path / "merged")
    run(f"checkpoint_path={adapter}", f"output_dir={merged}")
    run(f"checkpoint_path={adapter}", f"output_dir={tmp_path / 'plain'}", "merged=false")
    before: Any = load_tokenizer("embedded")
    after: Any = load_tokenizer(merged)
    messages = [{"role": "user", "content": TEXT}]
    tokens = render_prompt(before, messages)
    assert render_prompt(after, messages) == tokens
    assert after.eos_token == before.eos_token == "<|im_end|>"
    assert GenerationConfig.from_pretrained(merged).eos_token_id == after.eos_token_id
    engine = served(service, tokens, model_path=adapter)
    model: Any = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    assert wanted(model, tokens) == pytest.approx(engine, abs=1e-4)
    assert served(service, tokens, base_model=merged) == pytest.approx(engine, abs=1e-4)
    assert wanted(with_peft(tmp_path / "plain"), tokens) == pytest.approx(engine, abs=1e-4)
