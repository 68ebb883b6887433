"""Opening models from their files, against opening them through transformers."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_model

from training.backends.local import engine, loading, notes, service
from training.backends.local.attention import SegmentAttention
from training.backends.local.batching import Segment
from training.backends.local.decoder import Decoder
from training.backends.local.linear import LoraPass
from training.backends.local.notes import weights_digest

CPU = torch.device("cpu")
# of the worker for the tokenizer: at a first start, which loads none, and at a second one
WAIT_SECONDS = [0.1, 60.0]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model that is taken for the embedded one."""
    path = Path(save_tiny_model(tmp_path / "model", "llama_tied"))
    monkeypatch.setattr(loading, "is_embedded_dir", lambda other: other == path)
    return path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes which way models are opened."""
    ways: list[str] = []
    for name in ("_open_files", "_open_transformers"):
        function = getattr(loading, name)

        def spied(*arguments: Any, name: str = name, function: Any = function) -> Any:
            ways.append(name)
            return function(*arguments)

        monkeypatch.setattr(loading, name, spied)
    return ways


def logits(decoder: Decoder) -> torch.Tensor:
    tokens = torch.randint(decoder.vocab_size, (40,), generator=torch.Generator().manual_seed(0))
    plan = SegmentAttention([Segment(40, None)])
    return decoder.logits(decoder.hidden(tokens, torch.arange(40), plan, LoraPass()), LoraPass())


def assert_same(one: Decoder, other: Decoder) -> None:
    assert torch.equal(logits(one), logits(other))
    assert one.fingerprint == other.fingerprint
    assert one.weights_digest == other.weights_digest
    assert list(one.layers) == list(other.layers)
    for name in ("body_name", "head_name", "eos_token_ids", "context_length", "head_tied"):
        assert getattr(one, name) == getattr(other, name)


def test_files_give_what_transformers_gives(folder: Path, opened: list[str]) -> None:
    first, second = Decoder(folder, CPU), Decoder(folder, CPU)
    assert opened == ["_open_transformers", "_open_files"]
    assert_same(first, second)


def test_the_digest_of_weights_is_of_what_every_device_has() -> None:
    weights = [torch.randn(40, 30, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    digest = weights_digest(weights)
    assert digest == weights_digest([weight.bfloat16() for weight in reversed(weights)])
    weights[1] = weights[1] * 1.01
    assert digest != weights_digest(weights)


def test_other_versions_are_compared_again(folder: Path, opened: list[str]) -> None:
    Decoder(folder, CPU)
    note = folder / loading.COMPARED_FILE
    right = json.loads(note.read_text())
    other = {**right, "versions": {**right["versions"], "transformers": "0.0"}}
    for content in (other, right["versions"], [], {"versions": right["versions"]}):
        note.write_text(json.dumps(content))
        opened.clear()
        Decoder(folder, CPU)
        Decoder(folder, CPU)
        assert opened == ["_open_transformers", "_open_files"]
        assert json.loads(note.read_text()) == right


def change(file: Path, factor: float) -> None:
    """In place, with the size and the times that the file had."""
    before = file.stat()
    weights = load_file(file)
    weights["model.embed_tokens.weight"] *= factor
    save_file(weights, file, metadata={"format": "pt"})
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size


def test_the_tokenizer_is_loaded_while_the_weights_are(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the worker does not import transformers at the same time."""
    loaded: list[str] = []
    is_loaded = threading.Event()

    def load(name: str) -> str:
        loaded.append(name)
        is_loaded.set()
        raise ValueError("told to who asks")

    def opened(*given: Any, **options: Any) -> Decoder:
        seen.append(is_loaded.wait(WAIT_SECONDS[len(seen)]))
        return Decoder(*given, **options)

    seen: list[bool] = []
    monkeypatch.setattr(engine, "load_tokenizer", load)
    monkeypatch.setattr(service, "Decoder", opened)
    for _ in WAIT_SECONDS:
        with service.LocalServiceClient(checkpoint_dir=tmp_path, device="cpu") as client:
            opened_engine = client.engine(str(folder))
            assert loaded == [str(folder)] * (len(seen) - 1)
            if len(seen) == 2:
                with pytest.raises(ValueError, match="told to who asks"):
                    _ = opened_engine.tokenizer
    # the first start compares the model with transformers' own
    assert seen == [False, True]


def test_a_second_start_takes_no_digest_until_the_file_changes(
    folder: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_TIMES_NS", 0)
    digests: list[str] = []

    def spied(weights: Any) -> str:
        digests.append(weights_digest(weights))
        return digests[-1]

    monkeypatch.setattr(loading, "weights_digest", spied)
    first, second = Decoder(folder, CPU), Decoder(folder, CPU)
    assert opened == ["_open_transformers", "_open_files"] and len(digests) == 1
    assert second.weights_digest == first.weights_digest == digests[0]
    # written again, with the same weights: they are looked at once
    change(folder / "model.safetensors", 1.0)
    assert {Decoder(folder, CPU).weights_digest for _ in range(2)} == {digests[0]}
    assert opened[2:] == ["_open_files", "_open_files"] and len(digests) == 2
    # other weights are another model, which was not compared
    change(folder / "model.safetensors", 1.5)
    third = Decoder(folder, CPU)
    assert opened[4:] == ["_open_files", "_open_transformers"]
    assert third.weights_digest == digests[-1] != digests[0]
    assert Decoder(folder, CPU).weights_digest == digests[-1]
    assert opened[6:] == ["_open_files"] and len(digests) == 4


def test_a_file_that_is_still_being_written_is_always_looked_at(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_TIMES_NS", 10**18)
    Decoder(folder, CPU)
    assert json.loads((folder / loading.COMPARED_FILE).read_text())["file_state"] is None
    before = Decoder(folder, CPU).weights_digest
    change(folder / "model.safetensors", 1.5)
    assert Decoder(folder, CPU).weights_digest != before


def test_a_cache_that_cannot_be_written_costs_a_look(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(loading, "atomic_write_text", full)
    assert Decoder(folder, CPU).weights_digest
    assert "no space left; the model is looked at again next time" in caplog.text


def test_a_users_model_is_always_compared_and_never_written_to(
    tmp_path: Path, opened: list[str]
) -> None:
    path = save_tiny_model(tmp_path / "model", "llama")
    before = sorted(tmp_path.rglob("*"))
    Decoder(path, CPU)
    Decoder(path, CPU)
    assert opened == ["_open_transformers"] * 2
    assert sorted(tmp_path.rglob("*")) == before


def test_a_model_that_differs_is_not_noted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from training.backends.local import llama

    right = llama._Layer.__call__
    monkeypatch.setattr(llama._Layer, "__call__", lambda *inputs: 1.01 * right(*inputs))
    wanted = r"LlamaForCausalLM is not supported.*nats off when packed"
    with pytest.raises(ValueError, match=wanted):
        Decoder(folder, CPU)
    assert not (folder / loading.COMPARED_FILE).exists()


def test_the_embedded_model(monkeypatch: pytest.MonkeyPatch) -> None:
    from training.models import resolve_model

    path = resolve_model("embedded")
    first = Decoder(path, CPU)
    monkeypatch.setattr(loading, "_read_compared", lambda *_: None)
    assert_same(first, Decoder(path, CPU))


@pytest.mark.parametrize(
    "content",
    [
        b"\xff\xfe",
        b"[]",
        b"null",
        b'{"KEY": {}}',
        b'{"KEY": {"mode": "packed"}}',
        b'{"KEY": 5}',
        b'{"KEY": {"mode": "upside down", "left_out": []}}',
        None,
    ],
)
def test_a_damaged_note_is_as_good_as_none(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "compared.json"
    monkeypatch.setattr(notes, "notes_file", lambda: file)
    path = save_tiny_model(tmp_path / "model", "llama")
    Decoder(path, CPU)
    [key] = json.loads(file.read_text())
    right = file.read_bytes()
    file.unlink()
    if content is None:
        file.mkdir()
    else:
        file.write_bytes(content.replace(b"KEY", key.encode()))
    assert Decoder(path, CPU).shares_prefixes
    assert content is None or json.loads(file.read_bytes())[key] == json.loads(right)[key]


def test_what_is_no_causal_language_model_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(ValueError, match="model_type 'clip' is none of transformers' causal lang"):
        Decoder(tmp_path, CPU)
