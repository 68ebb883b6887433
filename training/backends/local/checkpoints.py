"""Adapter folders on disk, written whole or not at all.

save_state: a plain PEFT folder plus optimizer.safetensors and state.json; save_weights_for_sampler:
the PEFT folder and state.json. Any PEFT LoRA folder can be loaded, also without state.json.
"""

import json
import os
import secrets
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from training.adapter_proof import first_sizeable
from training.backends.local.adapters import (
    Adapter,
    AdapterConfig,
    fill_layers,
)
from training.backends.local.decoder import HEAD, Decoder
from training.backends.local.linear import LowRank
from training.backends.local.peft_folders import load_tensors, peft_files, read_peft_folder
from training.backends.local.peft_names import PEFT_CONFIG, PEFT_WEIGHTS
from utils.json_files import read_json_object
from utils.runs.files import expanded

STATE_FILE = "state.json"
OPTIMIZER_FILE = "optimizer.safetensors"


@dataclass(frozen=True)
class State:
    """What a folder says about itself; `fingerprint` is None for foreign ones, `base_model` for
    those that name none, and `revision` is what foreign ones say of their base model's. `dtype` is
    what the base model was computed in, where the folder says so.

    `seed` is 0 where the folder has none: dropout after loading must not be left to chance.
    `frozen_rank`: how many ranks are those of the adapter below, see AdapterConfig.
    """

    folder: Path
    base_model: str | None
    fingerprint: str | None
    revision: str | None = None
    seed: int = 0
    frozen_rank: int = 0
    dtype: str | None = None


def read_state(path: str | Path) -> State:
    """Raises FileNotFoundError when `path` is no adapter folder."""
    folder = expanded(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{path}: no such checkpoint folder")
    if not (folder / PEFT_CONFIG).is_file():
        raise FileNotFoundError(f"{path}: no {PEFT_CONFIG} in it; not an adapter folder")
    state_file = folder / STATE_FILE
    if not state_file.is_file():
        peft = read_json_object(folder / PEFT_CONFIG)
        return State(folder, peft.get("base_model_name_or_path"), None, peft.get("revision"))
    state = read_json_object(state_file)
    return State(
        folder,
        state["base_model"],
        state["fingerprint"],
        seed=state.get("seed") or 0,
        frozen_rank=state.get("frozen_rank", 0),
        dtype=state.get("dtype"),
    )


def base_model_of(state: State, base_model: str | None) -> str:
    """The name that is given, else the folder's own; ValueError where that does not say which."""
    name = base_model or state.base_model
    if name is None:
        raise ValueError(f"{state.folder} does not name its base model; pass base_model")
    if base_model is None and state.revision not in (None, "main"):
        raise ValueError(
            f"{state.folder}: its base model is {name!r} at revision={state.revision!r}; download "
            "that revision and pass its folder as base_model"
        )
    return name


def size_of_b(state: State) -> float:
    """Of the adapter in the folder (first_sizeable())."""
    with safe_open(state.folder / PEFT_WEIGHTS, framework="pt") as file:
        names = (name for name in file.keys() if ".lora_B" in name)  # noqa: SIM118
        return first_sizeable(float(file.get_tensor(name).abs().max()) for name in names)


def save_adapter(
    folder: Path,
    config: AdapterConfig,
    layers: dict[str, LowRank],
    decoder: Decoder,
    base_model: str,
    *,
    optimizer: dict[str, torch.Tensor] | None,
    overwrite: bool,
) -> None:
    """Raises FileExistsError, touching nothing, when the folder exists and may not be replaced."""
    tensors, adapter_config = peft_files(config, layers, decoder, base_model)
    state = {
        "base_model": base_model,
        "fingerprint": decoder.fingerprint,
        "dtype": decoder.dtype_name,
        "seed": config.seed,
        "has_optimizer": optimizer is not None,
    }
    if config.frozen_rank:
        state["frozen_rank"] = config.frozen_rank

    def write(temporary: Path) -> None:
        _save_tensors(tensors, temporary / PEFT_WEIGHTS, metadata={"format": "pt"})
        if optimizer is not None:
            moments = {k: v.detach().cpu().contiguous() for k, v in optimizer.items()}
            _save_tensors(moments, temporary / OPTIMIZER_FILE)
        for name, value in ((PEFT_CONFIG, adapter_config), (STATE_FILE, state)):
            (temporary / name).write_text(json.dumps(value, indent=2), encoding="utf-8")

    write_folder(folder, write, overwrite=overwrite)


def _save_tensors(
    tensors: dict[str, torch.Tensor], file: Path, metadata: dict[str, str] | None = None
) -> None:
    """Raises OSError that names the file, which safetensors does not."""
    try:
        save_file(tensors, file, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"{file}: {error}") from error


def write_folder(folder: Path, write: Any, *, overwrite: bool) -> None:
    """Calls write(temporary folder), flushes its files to disk and renames it to `folder`."""
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} exists; choose another name or pass overwrite=True")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # not mkdtemp, whose folders others may not read
    temporary = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}")
    temporary.mkdir()
    try:
        write(temporary)
        for file in temporary.iterdir():
            _fsync(file)
        _fsync(temporary)
        if folder.exists():
            old = temporary.with_name(f"{temporary.name}.old")
            folder.rename(old)
            try:
                temporary.rename(folder)
            except BaseException:
                old.rename(folder)
                raise
            shutil.rmtree(old)
        else:
            temporary.rename(folder)
        _fsync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def check_base(state: State, decoder: Decoder) -> None:
    if state.fingerprint is not None and state.fingerprint != decoder.fingerprint:
        raise ValueError(
            f"{state.folder}: saved from base model {state.base_model!r}, whose weights differ "
            f"from those of {decoder.model_path}; load it with its own base_model"
        )


def load_adapter(state: State, decoder: Decoder, *, with_optimizer: bool) -> Adapter:
    """A training adapter from a folder. Raises ValueError / FileNotFoundError naming the folder."""
    check_base(state, decoder)
    config, tensors = read_peft_folder(state.folder, decoder)
    config = replace(config, seed=state.seed, frozen_rank=state.frozen_rank)
    adapter = Adapter(config, decoder)
    fill_layers(adapter.layers, tensors)
    if with_optimizer:
        if state.dtype not in (None, decoder.dtype_name):
            raise ValueError(
                f"dtype={decoder.dtype_name}: {state.folder} was trained in {state.dtype}, and "
                f"goes on in that alone; pass dtype={state.dtype}, or begin anew from its "
                "weights (create_training_client_from_state, checkpoint_path=)"
            )
        file = state.folder / OPTIMIZER_FILE
        if not file.is_file():
            raise FileNotFoundError(
                f"{file}: no optimizer state here; load with create_training_client_from_state"
            )
        adapter.load_optimizer_tensors(load_tensors(file))
    return adapter


@torch.no_grad()
def export_merged(
    folder: Path, layers: dict[str, LowRank], decoder: Decoder, tokenizer: Any
) -> None:
    """The base model with the adapter added into its weights, as a Hugging Face folder.

    A delta on a tied head belongs to the output alone, so the exported head is untied then.
    """
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(decoder.model_path, dtype=decoder.dtype)
    modules = dict(model.named_modules())
    head = modules[decoder.head_name]
    if HEAD in layers and decoder.head_tied:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())
        model.config.get_text_config().tie_word_embeddings = False
    for path, low_rank in layers.items():
        module: Any = head if path == HEAD else modules[f"{decoder.body_name}.{path}"]
        delta = (low_rank.b.cpu() @ low_rank.a.cpu()) * low_rank.scale
        if type(module).__name__ == "Conv1D":
            delta = delta.T
        # rounded once, not the delta and then the sum
        module.weight.copy_(module.weight.float() + delta)

    def write(temporary: Path) -> None:
        model.save_pretrained(temporary)
        if tokenizer is not None:
            tokenizer.save_pretrained(temporary)

    write_folder(folder, write, overwrite=False)


def copy_peft_folder(state: State, folder: Path, base_model: str) -> None:
    """PEFT's two files, with `base_model` as the name that PEFT opens. Raises FileExistsError where
    there is such a folder, FileNotFoundError for missing weights, ValueError for torn ones."""
    weights = state.folder / PEFT_WEIGHTS
    if not weights.is_file():
        raise FileNotFoundError(f"{weights}: no such file; an adapter folder has {PEFT_WEIGHTS}")
    load_tensors(weights)
    config = read_json_object(state.folder / PEFT_CONFIG)
    config["base_model_name_or_path"] = base_model

    def write(temporary: Path) -> None:
        shutil.copyfile(weights, temporary / PEFT_WEIGHTS)
        (temporary / PEFT_CONFIG).write_text(json.dumps(config, indent=2), encoding="utf-8")

    write_folder(folder, write, overwrite=False)
