"""Adapters as plain PEFT folders: adapter_config.json and adapter_model.safetensors, out and in."""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from training.backends.local.adapters import AdapterConfig
from training.backends.local.decoder import HEAD, Decoder, LayerInfo
from training.backends.local.linear import LowRank
from training.backends.local.llama import LLAMA_SHAPED
from training.backends.local.peft_config import read_peft_config
from training.backends.local.peft_names import (
    PEFT_CONFIG,
    PEFT_PREFIX,
    PEFT_WEIGHTS,
    PeftTargets,
    check_layer_fields,
    linear_layers,
    old_names,
    peft_config,
    peft_targets,
)

logger = logging.getLogger(__name__)


def _name_in_model(path: str, decoder: Decoder) -> str:
    """A layer's name in the whole causal LM, which PEFT wraps as base_model.model."""
    return decoder.head_name if path == HEAD else f"{decoder.body_name}.{path}"


def targets_for_peft(config: AdapterConfig, decoder: Decoder) -> PeftTargets:
    """Raises ValueError where PEFT would read the adapter as one of other layers."""
    shapes = {}
    for path in config.targets:
        layer = decoder.layers[path]
        shapes[_name_in_model(path, decoder)] = (layer.out_features, layer.in_features)
    if decoder.config.model_type in LLAMA_SHAPED:
        # PEFT renames nothing of them, and asking it would import all of transformers
        return PeftTargets(list(shapes), [], {})
    return peft_targets(decoder.model_path, shapes, config.dropout)


def peft_files(
    config: AdapterConfig, layers: dict[str, LowRank], decoder: Decoder, base_model: str
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors and adapter_config of a folder that peft.PeftModel.from_pretrained loads."""
    tensors: dict[str, torch.Tensor] = {}
    targets = targets_for_peft(config, decoder)
    for path, low_rank in layers.items():
        name = _name_in_model(path, decoder)
        prefix = f"{PEFT_PREFIX}{targets.stored.get(name, name)}"
        tensors[f"{prefix}.lora_A.weight"] = low_rank.a.detach().cpu().contiguous()
        tensors[f"{prefix}.lora_B.weight"] = low_rank.b.detach().cpu().contiguous()
    adapter_config = peft_config(
        targets,
        rank=config.rank,
        alpha=config.alpha,
        dropout=config.dropout,
        base_model=base_model,
        fan_in_fan_out=decoder.config.model_type == "gpt2",
    )
    return tensors, adapter_config


def load_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Of a safetensors file. Raises ValueError naming one that is torn, or none."""
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file}: it cannot be read ({error}); is it whole?") from error


def read_peft_folder(
    folder: Path, decoder: Decoder
) -> tuple[AdapterConfig, dict[str, torch.Tensor]]:
    """A PEFT LoRA folder's configuration and tensors, by layer path and "A" / "B".

    Raises ValueError naming the folder and what does not fit this engine or base model.
    """
    config_file, weights_file = folder / PEFT_CONFIG, folder / PEFT_WEIGHTS
    for file in (config_file, weights_file):
        if not file.is_file():
            raise FileNotFoundError(f"{file}: no such file; an adapter folder has {file.name}")
    settings = read_peft_config(config_file)
    tensors = load_tensors(weights_file)
    # PEFT adds a copy of the base head to the folder when an adapter targets the head
    head_copy = tensors.pop(f"{PEFT_PREFIX}{decoder.head_name}.base_layer.weight", None)
    if head_copy is not None and not _equals_head(head_copy, decoder):
        raise ValueError(
            f"{weights_file}: its output head differs from that of {decoder.model_path}; "
            "was the adapter trained on another base model?"
        )
    parts = _parts_by_layer(weights_file, tensors)
    path_of = _paths_by_name(list(parts), decoder)
    idle = []
    for name, (a, b) in parts.items():
        if name in path_of:
            layer = decoder.layers[path_of[name]]
            _check_shapes(weights_file, name, (a, b), settings.rank, layer, decoder)
        elif not b.any() and name in linear_layers(decoder.model_path):
            idle.append(name)
        else:
            raise ValueError(
                f"{weights_file}: {name!r} belongs to no linear layer of {decoder.model_path} that "
                "text runs through and that can have an adapter here; was the adapter trained on "
                "another base model?"
            )
    _check_layer_fields(config_file, settings.layer_fields, parts, path_of, decoder)
    found = {path: parts[name] for name, path in path_of.items()}
    targets = tuple(path for path in decoder.layers if path in found)
    if not targets:
        raise ValueError(f"{weights_file}: it has no adapter of a layer of {decoder.model_path}")
    if idle:
        logger.info(
            "%s: left out %d layers (%s, ...), whose lora_B is zero and which text does not train",
            *(weights_file, len(idle), idle[0]),
        )
    config = AdapterConfig(settings.rank, settings.alpha, targets, dropout=settings.dropout)
    return config, {
        f"{path}.{part}": tensor.float()
        for path, pair in found.items()
        for part, tensor in zip("AB", pair, strict=True)
    }


def _parts_by_layer(
    weights_file: Path, tensors: dict[str, torch.Tensor]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A and B of every layer, by its name in the folder."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        name, _, part = key.removesuffix(".weight").rpartition(".lora_")
        if part not in ("A", "B"):
            raise ValueError(
                f"{weights_file}: {key!r} belongs to no linear layer; lora_A and lora_B are needed"
            )
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{weights_file}: {key!r} has NaN or infinite values")
        parts.setdefault(name.removeprefix(PEFT_PREFIX), {})[part] = tensor
    if not parts or any(len(pair) < 2 for pair in parts.values()):
        raise ValueError(f"{weights_file}: every layer needs both lora_A and lora_B")
    return {name: (pair["A"], pair["B"]) for name, pair in parts.items()}


def _paths_by_name(names: list[str], decoder: Decoder) -> dict[str, str]:
    """The layers' paths by their names in an adapter folder, where there are such layers."""
    known = {_name_in_model(path, decoder): path for path in decoder.layers}
    if decoder.config.model_type not in LLAMA_SHAPED and not known.keys() >= {*names}:
        old = old_names(decoder.model_path, list(known))
        known |= {name: known[now] for name, now in old.items()}
    return {name: known[name] for name in names if name in known}


def _check_shapes(
    weights_file: Path,
    name: str,
    pair: tuple[torch.Tensor, torch.Tensor],
    rank: int,
    layer: LayerInfo,
    decoder: Decoder,
) -> None:
    for part, tensor, shape in zip(
        "AB", pair, ((rank, layer.in_features), (layer.out_features, rank)), strict=True
    ):
        if tuple(tensor.shape) != shape:
            raise ValueError(
                f"{weights_file}: {name}.lora_{part} has shape {tuple(tensor.shape)}; rank {rank} "
                f"on {decoder.model_path} needs {shape}: another base model or rank"
            )


def _check_layer_fields(
    config_file: Path,
    fields: dict[str, Any],
    parts: dict[str, tuple[torch.Tensor, torch.Tensor]],
    path_of: dict[str, str],
    decoder: Decoder,
) -> None:
    whole_names = fields["target_modules"]
    plain = isinstance(whole_names, list) and all(
        value in (None, []) for name, value in fields.items() if name != "target_modules"
    )
    if plain and decoder.config.model_type in LLAMA_SHAPED and {*whole_names} == parts.keys():
        # as we write it; PEFT renames nothing then, and asking it would import all of transformers
        return
    layers = {}
    for name, (a, b) in parts.items():
        path = path_of.get(name)
        now = name if path is None else _name_in_model(path, decoder)
        layers[name] = (now, (len(b), a.shape[1]))
    check_layer_fields(config_file, fields, decoder.model_path, layers)


def _equals_head(weight: torch.Tensor, decoder: Decoder) -> bool:
    head = decoder.head_weight.cpu()
    # the copy may have been rounded to another dtype
    return weight.shape == head.shape and torch.allclose(weight.float(), head, rtol=1e-2, atol=1e-3)
