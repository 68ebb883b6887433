"""The names under which PEFT finds an adapter's layers, seen through PEFT itself.

PEFT renames targets of architectures whose layers transformers rebuilt: of Qwen3-MoE, DeepSeek,
GLM-4-MoE and others it takes gate_proj, up_proj and down_proj for experts, wherever they stand, so
that adapters of dense and shared MLPs are lost without an error. Their weights can be named as
parameters, which it leaves alone.
"""

import json
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

PEFT_WEIGHTS = "adapter_model.safetensors"
PEFT_CONFIG = "adapter_config.json"
PEFT_PREFIX = "base_model.model."
# Model types with Mamba layers in which PEFT refuses adapters on modules of this name.
_MAMBA = frozenset({"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"})
_NOT_IN_MAMBA = "out_proj"


class PeftTargets(NamedTuple):
    """target_modules and target_parameters of a PEFT config; together they are all layers."""

    modules: list[str]
    parameters: list[str]


def takes_adapters(model_type: str, leaf: str) -> bool:
    """Whether PEFT takes adapters on layers with this last name; then they can be saved."""
    return model_type not in _MAMBA or leaf != _NOT_IN_MAMBA


def peft_targets(
    model_path: str, shapes: dict[str, tuple[int, int]], dropout: float
) -> PeftTargets:
    """How to name the layers of `shapes` (name in the causal LM: outputs, inputs) to PEFT.

    Raises ValueError where PEFT would not put an adapter on these layers and no others.
    """
    return _targets(model_path, tuple(shapes.items()), dropout)


@lru_cache(maxsize=64)
def _targets(
    model_path: str, shapes: tuple[tuple[str, tuple[int, int]], ...], dropout: float
) -> PeftTargets:
    model = _weightless_model(model_path)
    names = [name for name, _ in shapes]
    renamed = {leaf for leaf in map(_leaf, names) if _is_renamed(model, leaf)}
    targets = PeftTargets(
        [name for name in names if _leaf(name) not in renamed],
        [f"{name}.weight" for name in names if _leaf(name) in renamed],
    )
    if targets.parameters and dropout:
        raise ValueError(
            f"lora_dropout={dropout}: PEFT has no dropout on {sorted(renamed)} of "
            f"{type(model).__name__}, so the adapter could not be written for it; use "
            "lora_dropout=0 or leave these layers out"
        )
    try:
        wrong = _misread(model, dict(shapes), targets)
    except ValueError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"PEFT refuses an adapter on these layers of {type(model).__name__} ({reason}), so it "
            "could not be saved; leave such layers out (train_attn, train_mlp, target_modules)"
        ) from error
    if wrong:
        raise ValueError(
            f"PEFT would put the adapters of {len(wrong)} layers of {type(model).__name__} "
            f"elsewhere ({', '.join(wrong[:3])}{', ...' if wrong[3:] else ''}), so they could not "
            "be saved for it; leave these layers out (train_attn, train_mlp, target_modules)"
        )
    return targets


def _leaf(name: str) -> str:
    return name.rsplit(".", 1)[-1]


def _weightless_model(model_path: str) -> Any:
    """The model as PEFT's users open it, with weights of zero that take no memory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(model_path))
    zero = torch.zeros(())
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(zero.expand(parameter.shape), False))
    model.tie_weights()
    return model


def _is_renamed(model: Any, leaf: str) -> bool:
    from peft import LoraConfig
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers

    config = LoraConfig(target_modules=[leaf])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:
        # it takes gate and up projections together or not at all
        return True
    return config.target_modules != {leaf}


def _misread(model: Any, shapes: dict[str, tuple[int, int]], targets: PeftTargets) -> list[str]:
    """Layers that an adapter of rank 1 does not reach, and others that it does. PEFT's own loader
    is what says so; it changes the model."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    wanted = {}
    for number, (name, (outputs, inputs)) in enumerate(shapes.items(), start=1):
        wanted[f"{PEFT_PREFIX}{name}.lora_A"] = torch.full((1, inputs), float(number))
        wanted[f"{PEFT_PREFIX}{name}.lora_B"] = torch.full((outputs, 1), float(number))
    with tempfile.TemporaryDirectory() as folder, _without_warnings():
        tensors = {f"{name}.weight": tensor for name, tensor in wanted.items()}
        save_file(tensors, Path(folder) / PEFT_WEIGHTS)
        config = peft_config(targets, rank=1, alpha=1.0)
        (Path(folder) / PEFT_CONFIG).write_text(json.dumps(config), encoding="utf-8")
        loaded = PeftModel.from_pretrained(model, folder, torch_device="cpu")
    found = {
        name.removesuffix(".default.weight"): tensor.float()
        for name, tensor in loaded.named_parameters()
        if ".lora_" in name
    }
    wrong = [
        name
        for name in wanted.keys() | found.keys()
        if name not in wanted or name not in found or not torch.equal(wanted[name], found[name])
    ]
    for name, module in loaded.named_modules():
        if isinstance(module, LoraLayer) and module.scaling["default"] != 1.0:
            wrong.append(f"{name}.lora_A")
    return sorted({name.removeprefix(PEFT_PREFIX).rpartition(".lora_")[0] for name in wrong})


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Of tied heads and of what was not found, which is what is looked for."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def peft_config(
    targets: PeftTargets,
    *,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    base_model: str | None = None,
    fan_in_fan_out: bool = False,
) -> dict[str, Any]:
    """adapter_config.json of a folder that peft.PeftModel.from_pretrained loads."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_model,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "bias": "none",
        "fan_in_fan_out": fan_in_fan_out,
        "init_lora_weights": True,
        "inference_mode": True,
        # full names, because a short one such as c_proj is in both attention and MLP
        "target_modules": targets.modules,
        **({"target_parameters": targets.parameters} if targets.parameters else {}),
    }
