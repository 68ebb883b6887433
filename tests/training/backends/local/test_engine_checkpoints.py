"""Adapter folders: continuing is exact, writing is all or nothing, wrong folders are refused."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import cross_entropy_datum, random_tokens, randomise, save_tiny_model

from training.api import AdamParams, Datum, ModelInput
from training.backends.local.checkpoints import write_folder
from training.backends.local.linear import PackedMatrix

ADAM = AdamParams(learning_rate=1e-2, weight_decay=0.01, grad_clip_norm=5.0)


def data_of(seed: int) -> list[Datum]:
    rng = np.random.default_rng(seed)
    return [cross_entropy_datum(rng, random_tokens(rng, n)) for n in (9, 30)]


def train(client: Any, steps: range) -> list[float]:
    losses = []
    for step in steps:
        future = client.forward_backward(data_of(step), "cross_entropy")
        client.optim_step(ADAM).result()
        losses.append(future.result().metrics["loss:sum"])
    return losses


def trained_client(service: Any, folder: str, **options: Any) -> Any:
    client = service.create_lora_training_client(folder, rank=3, seed=0, **options)
    randomise(client, 0)
    train(client, range(3))
    return client


# ---------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("family", ["llama_tied", "gpt2"])
def test_continuing_is_bitwise_equal_to_not_stopping(
    family: str, tiny_model, connect_local, tmp_path: Path
):
    """In another service, from a folder that was moved, with a gradient not yet used."""
    folder = tiny_model(family)
    client = trained_client(connect_local(), folder, lora_alpha=5.0)
    client.forward_backward(data_of(50), "cross_entropy").result()
    path = client.save_state("step").result().path
    shutil.move(path, tmp_path / "moved")
    service = connect_local()
    resumed = service.create_training_client_from_state_with_optimizer(str(tmp_path / "moved"))
    assert resumed.get_info().lora_rank == 3 and resumed._adapter.config.alpha == 5.0
    assert torch.equal(resumed._adapter.grad, client._adapter.grad)
    assert train(resumed, range(3, 6)) == train(client, range(3, 6))
    assert torch.equal(resumed._adapter.flat, client._adapter.flat)
    ours, theirs = resumed._adapter.optimizer_tensors(), client._adapter.optimizer_tensors()
    assert ours.keys() == theirs.keys() >= {"optimizer.exp_avg", "optimizer.step"}
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_saving_changes_nothing(tiny_model, service):
    folder = tiny_model("llama")
    saving, plain = (trained_client(service, folder) for _ in range(2))
    saving.save_state("a").result()
    saving.save_weights_for_sampler("a").result()
    saving.save_weights_and_get_sampling_client().result()
    assert train(saving, range(3, 5)) == train(plain, range(3, 5))
    assert torch.equal(saving._adapter.flat, plain._adapter.flat)


def test_a_fresh_optimizer_has_the_weights_alone(tiny_model, service):
    folder = tiny_model("llama")
    client = trained_client(service, folder)
    client.forward_backward(data_of(50), "cross_entropy").result()
    path = client.save_state("fresh").result().path
    fresh = service.create_training_client_from_state(path)
    assert torch.equal(fresh._adapter.flat, client._adapter.flat)
    assert fresh._adapter.optimizer_tensors() == {} and (fresh._adapter.grad == 0).all()
    # the first Adam step of a fresh optimizer is one by the gradient's sign
    before = fresh._adapter.flat.clone()
    fresh.forward_backward(data_of(3), "cross_entropy").result()
    moving = fresh._adapter.grad.abs() > 1e-3
    fresh.optim_step(AdamParams(learning_rate=1e-3)).result()
    change = (fresh._adapter.flat - before)[moving].abs()
    torch.testing.assert_close(change, torch.full_like(change, 1e-3), rtol=1e-2, atol=0)


def test_a_state_saved_before_any_step(tiny_model, service):
    folder = tiny_model("llama")
    client = service.create_lora_training_client(folder, rank=3, seed=0)
    path = client.save_state("new").result().path
    resumed = service.create_training_client_from_state_with_optimizer(path)
    assert train(resumed, range(2)) == train(client, range(2))


def test_sampler_folders_have_no_optimizer(tiny_model, service):
    folder = tiny_model("llama")
    client = trained_client(service, folder)
    path = client.save_weights_for_sampler("weights").result().path
    prompt = ModelInput.from_ints(random_tokens(np.random.default_rng(0), 30))
    expected = client.save_weights_and_get_sampling_client().result().compute_logprobs(prompt)
    for sampler in (
        service.create_sampling_client(model_path=path),
        client.create_sampling_client(path),
    ):
        assert sampler.compute_logprobs(prompt).result() == expected.result()
    restored = service.create_training_client_from_state(path)
    assert torch.equal(restored._adapter.flat, client._adapter.flat)
    with pytest.raises(FileNotFoundError, match=r"optimizer.*create_training_client_from_state"):
        service.create_training_client_from_state_with_optimizer(path)


# ----------------------------------------------------------------------------------------- writing


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_existing_names_are_refused_unless_overwritten(tiny_model, service):
    client = trained_client(service, tiny_model("llama"))
    path = Path(client.save_state("name").result().path)
    before = contents(path)
    train(client, range(3, 4))
    future = client.save_state("name")
    with pytest.raises(FileExistsError, match=r"name exists.*overwrite=True"):
        future.result()
    assert contents(path) == before
    assert client.save_state("name", overwrite=True).result().path == str(path)
    assert contents(path).keys() == before.keys() and contents(path) != before
    assert os.listdir(path.parent) == ["name"]
    restored = service.create_training_client_from_state(str(path))
    assert torch.equal(restored._adapter.flat, client._adapter.flat)
    # the two kinds have names of their own
    client.save_weights_for_sampler("name").result()
    with pytest.raises(FileExistsError):
        client.save_weights_for_sampler("name").result()


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".hidden", ".."])
def test_bad_names(name: str, tiny_model, service):
    client = service.create_lora_training_client(tiny_model("llama"), rank=2)
    with pytest.raises(ValueError, match="plain name"):
        client.save_state(name).result()


def test_a_crash_while_writing_leaves_the_old_folder(tmp_path: Path):
    folder = tmp_path / "checkpoint"
    write_folder(folder, lambda new: (new / "a").write_text("old"), overwrite=False)
    assert contents(folder) == {"a": b"old"}

    def crash(new: Path) -> None:
        (new / "a").write_text("half")
        raise OSError("disk full")

    for overwrite, existing in ((True, folder), (False, tmp_path / "other")):
        with pytest.raises(OSError, match="disk full"):
            write_folder(existing, crash, overwrite=overwrite)
        assert os.listdir(tmp_path) == ["checkpoint"]
        assert contents(folder) == {"a": b"old"}


def test_a_failed_rename_leaves_the_old_folder(tmp_path: Path, monkeypatch):
    folder = tmp_path / "checkpoint"
    write_folder(folder, lambda new: (new / "a").write_text("old"), overwrite=False)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if target == folder and (self / "a").read_text() == "new":
            raise OSError("no rename")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no rename"):
        write_folder(folder, lambda new: (new / "a").write_text("new"), overwrite=True)
    assert os.listdir(tmp_path) == ["checkpoint"]
    assert contents(folder) == {"a": b"old"}


def test_files_are_on_disk_before_the_rename(tmp_path: Path, monkeypatch):
    synced: list[str] = []
    fsync, rename = os.fsync, Path.rename
    monkeypatch.setattr(
        os, "fsync", lambda fd: (synced.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd))
    )
    monkeypatch.setattr(
        Path, "rename", lambda self, to: (synced.append(f"rename {to}"), rename(self, to))[1]
    )
    folder = tmp_path / "checkpoint"
    write_folder(folder, lambda new: (new / "a").write_text("x"), overwrite=False)
    names = [Path(s).name for s in synced]
    (new,) = [i for i, name in enumerate(names) if name.startswith(".checkpoint.")]
    assert max(names.index("a"), new) < names.index("checkpoint") < names.index(tmp_path.name)


def test_a_checkpoint_can_be_read_by_whom_the_umask_allows(tmp_path: Path):
    (tmp_path / "plain").mkdir()
    write_folder(tmp_path / "checkpoint", lambda new: None, overwrite=False)
    modes = [(tmp_path / name).stat().st_mode for name in ("plain", "checkpoint")]
    assert modes[0] == modes[1]


# -------------------------------------------------------------------------- folders that are wrong


def load(service: Any, path: Any, folder: str | None = None) -> Any:
    return service.create_training_client_from_state(str(path), folder)


@pytest.fixture
def saved(tiny_model, connect_local) -> tuple[Any, Path, str]:
    """A service, a saved state and the base model's folder."""
    folder, service = tiny_model("llama"), connect_local()
    client = trained_client(service, folder, train_unembed=False)
    return service, Path(client.save_state("good").result().path), folder


def edit_config(path: Path, **changes: Any) -> None:
    file = path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def edit_weights(path: Path, edit: Any) -> None:
    tensors = load_file(path / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, path / "adapter_model.safetensors")


def test_another_base_model_is_refused(saved, tiny_model, tmp_path: Path):
    """Of the same shape; also one that differs in a single inner layer."""
    service, path, folder = saved
    with pytest.raises(ValueError, match=r"good: saved from base model .*llama.*weights differ"):
        load(service, path, tiny_model("llama", 1))
    shutil.copytree(folder, tmp_path / "tuned")
    weights = load_file(tmp_path / "tuned" / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"] *= 1.1
    save_file(weights, tmp_path / "tuned" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="weights differ"):
        load(service, path, str(tmp_path / "tuned"))
    # the same weights elsewhere are the same model
    shutil.copytree(folder, tmp_path / "copy")
    assert load(service, path, str(tmp_path / "copy")).get_info().lora_rank == 3


def test_the_base_model_is_the_same_in_bfloat16(saved, tmp_path: Path):
    """A folder moves between CPU and GPU, where the base is bfloat16."""
    service, path, folder = saved
    shutil.copytree(folder, tmp_path / "rounded")
    file = tmp_path / "rounded" / "model.safetensors"
    rounded = {name: weight.bfloat16().float() for name, weight in load_file(file).items()}
    save_file(rounded, file, metadata={"format": "pt"})
    assert load(service, path, str(tmp_path / "rounded")).get_info().lora_rank == 3


@pytest.mark.parametrize("family", ["llama_tied", "qwen3", "gemma2", "gpt2"])
def test_the_fingerprint_is_of_the_weights_as_they_are_computed_with(
    family: str, tiny_model, service
):
    """By the rule that older checkpoints were saved with, spelled out again."""
    decoder = service.engine(tiny_model(family)).decoder
    digest = hashlib.sha256()
    for path in decoder.layers:
        weight = decoder.weight(path)
        rows = weight[:: max(1, len(weight) // 16)].bfloat16().float()
        digest.update(rows.contiguous().numpy().tobytes())
    assert decoder.fingerprint == digest.hexdigest()[:16]


def test_loading_unpacks_no_weights(saved, connect_local, monkeypatch):
    """It happens on the caller's thread, where computing would disturb the worker."""
    _, path, folder = saved
    service = connect_local()
    service.engine(folder)

    def unpack(matrix: PackedMatrix) -> torch.Tensor:
        raise AssertionError("unpacked")

    monkeypatch.setattr(PackedMatrix, "dense", unpack)
    assert load(service, path, folder).get_info().lora_rank == 3


def test_another_architecture_is_refused(saved, tiny_model):
    service, path, _ = saved
    (path / "state.json").unlink()
    with pytest.raises(
        ValueError, match=r"adapter_model.*belongs to no linear layer.*another base"
    ):
        load(service, path, tiny_model("gpt2"))


def test_another_size_is_refused(saved, tmp_path: Path, monkeypatch):
    service, path, _ = saved
    (path / "state.json").unlink()
    monkeypatch.setitem(__import__("tiny_models")._SIZES, "intermediate_size", 64)
    smaller = save_tiny_model(tmp_path / "smaller", "llama")
    with pytest.raises(ValueError, match=r"gate_proj.*shape \(3, 48\)|proj.*shape.*needs"):
        load(service, path, smaller)


def test_another_rank_is_refused(saved):
    service, path, _ = saved
    edit_config(path, r=4)
    with pytest.raises(ValueError, match=r"shape \(3, \d+\); rank 4 .* needs \(4, \d+\)"):
        load(service, path)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bad: float, saved):
    service, path, _ = saved

    def spoil(tensors: dict[str, torch.Tensor]) -> None:
        sorted(tensors.items())[5][1][0, 0] = bad

    edit_weights(path, spoil)
    with pytest.raises(ValueError, match=r"adapter_model.safetensors: .*lora_.*NaN or infinite"):
        load(service, path)


def test_half_a_layer_is_refused(saved):
    service, path, _ = saved
    edit_weights(path, lambda tensors: tensors.pop(sorted(tensors)[0]))
    with pytest.raises(ValueError, match="needs both lora_A and lora_B"):
        load(service, path)


@pytest.mark.parametrize(
    "change",
    [
        {"peft_type": "IA3"},
        {"use_dora": True},
        {"rank_pattern": {"q_proj": 8}},
        {"lora_bias": True},
    ],
)
def test_other_kinds_of_adapter_are_refused(change: dict[str, Any], saved):
    service, path, _ = saved
    edit_config(path, **change)
    with pytest.raises(ValueError, match=f"{next(iter(change))}="):
        load(service, path)


def test_another_head_is_refused(saved, tiny_model):
    """PEFT stores the head's own weights beside an adapter of the head."""
    service, path, folder = saved
    name = "base_model.model.lm_head.base_layer.weight"
    head = service.engine(folder).decoder.head_weight
    edit_weights(path, lambda tensors: tensors.update({name: head.bfloat16().contiguous()}))
    assert load(service, path).get_info().lora_rank == 3
    edit_weights(path, lambda tensors: tensors.update({name: tensors[name] + 0.1}))
    with pytest.raises(ValueError, match="output head differs"):
        load(service, path)


def test_what_is_no_adapter_folder(saved, tmp_path: Path):
    service, path, _ = saved
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for bad, message in (("absent", "no such"), ("file", "no such"), ("empty", "adapter_config")):
        for make in (load, lambda s, p: s.create_sampling_client(model_path=str(p))):
            with pytest.raises(FileNotFoundError, match=f"{bad}.*{message}"):
                make(service, tmp_path / bad)
    (path / "adapter_model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="adapter_model"):
        load(service, path)


def test_a_folder_that_names_no_base_model(saved):
    service, path, folder = saved
    (path / "state.json").unlink()
    edit_config(path, base_model_name_or_path=None)
    with pytest.raises(ValueError, match="does not name its base model; pass base_model"):
        load(service, path)
    assert load(service, path, folder).get_info().lora_rank == 3


def test_its_seed_alone_decides_how_an_adapter_starts(tiny_model: Any, service: Any) -> None:
    folder = tiny_model("llama")

    def started(name: str, seed: int) -> dict[str, torch.Tensor]:
        # what else draws numbers in this process changes nothing
        torch.manual_seed(len(name))
        client = service.create_lora_training_client(folder, rank=3, seed=seed)
        return load_file(Path(client.save_state(name).result().path) / "adapter_model.safetensors")

    first, again, other = started("a", 5), started("again", 5), started("other", 6)
    assert first.keys() == again.keys() == other.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, again[name])
        if ".lora_B." in name:
            assert not tensor.any()
        else:
            assert not torch.equal(tensor, other[name])
