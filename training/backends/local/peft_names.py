"""The names under which PEFT finds an adapter's layers, seen through PEFT itself.

PEFT renames targets of architectures whose layers transformers rebuilt: of Qwen3-MoE, DeepSeek,
GLM-4-MoE and others it takes gate_proj, up_proj and down_proj for experts, wherever they stand, so
that adapters of dense and shared MLPs are lost without an error. Their weights can be named as
parameters, which it leaves alone. It also renames tensors as transformers does those of published
models, once too often where a layer's name begins with its old one (Laguna's shared_experts, once
shared_expert): they are stored under the old name.
"""

import json
import re
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


# What chooses an adapter's layers in adapter_config.json.
LAYER_FIELDS = (
    "target_modules",
    "target_parameters",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
)


class PeftTargets(NamedTuple):
    """target_modules and target_parameters of a PEFT config; together they are all layers.

    `modules` is a pattern where a layer's name ends others' names too. `stored`: the layers whose
    tensors are stored under another name, and that name.
    """

    modules: list[str] | str
    parameters: list[str]
    stored: dict[str, str]


class _Reading(NamedTuple):
    """What PEFT makes of an adapter folder: where it put the tensors of each layer (name in the
    folder: name in the model), and the layers without tensors to which it gives an adapter."""

    placed: dict[str, str]
    others: tuple[str, ...]


def takes_adapters(model_type: str, leaf: str) -> bool:
    """Whether PEFT takes adapters on layers with this last name; then they can be saved."""
    return model_type not in _MAMBA or leaf != _NOT_IN_MAMBA


Shapes = dict[str, tuple[int, int]]


def peft_targets(model_path: str, shapes: Shapes, dropout: float) -> PeftTargets:
    """How to name the layers of `shapes` (name in the causal LM: outputs, inputs) to PEFT.

    Raises ValueError where PEFT would not put an adapter on these layers and no others.
    """
    return _targets(model_path, tuple(shapes.items()), dropout)


@lru_cache(maxsize=64)
def _targets(
    model_path: str, shapes: tuple[tuple[str, tuple[int, int]], ...], dropout: float
) -> PeftTargets:
    model = _weightless_model(model_path)
    architecture = type(model).__name__
    names = [name for name, _ in shapes]
    renamed = {leaf for leaf in map(_leaf, names) if _is_renamed(model, leaf)}
    targets = PeftTargets(
        _named_alone(model, [name for name in names if _leaf(name) not in renamed]),
        [f"{name}.weight" for name in names if _leaf(name) in renamed],
        {},
    )
    if targets.parameters and dropout:
        raise ValueError(
            f"lora_dropout={dropout}: PEFT has no dropout on {sorted(renamed)} of "
            f"{architecture}, so the adapter could not be written for it; use "
            "lora_dropout=0 or leave these layers out"
        )
    try:
        wrong = _misread(model_path, dict(shapes), targets)
        if wrong:
            old = {name: old for old, name in old_names(model_path, wrong).items()}
            targets = targets._replace(stored=old)
            wrong = _misread(model_path, dict(shapes), targets) if old else wrong
    except ValueError as error:
        raise ValueError(
            f"PEFT refuses an adapter on these layers of {architecture} ({_reason(error)}), so it "
            "could not be saved; leave such layers out (train_attn, train_mlp, target_modules)"
        ) from error
    if wrong:
        raise ValueError(
            f"PEFT would put the adapters of {_counted(wrong)} of {architecture} "
            "elsewhere, so they could not be saved for it; leave these layers out (train_attn, "
            "train_mlp, target_modules)"
        )
    return targets


def _named_alone(model: Any, names: list[str]) -> list[str] | str:
    """target_modules that match these modules alone: PEFT compares the ends of names, and a pattern
    with whole ones."""
    ends = tuple(f".{name}" for name in names)
    chosen = set(names)
    if any(key.endswith(ends) for key, _ in model.named_modules() if key not in chosen):
        return "|".join(map(re.escape, names))
    return names


def _misread(model_path: str, shapes: Shapes, targets: PeftTargets) -> list[str]:
    """Layers that an adapter does not reach, and others that it does."""
    stored = {name: targets.stored.get(name, name) for name in shapes}
    config = peft_config(targets, rank=1, alpha=1.0)
    reading = _read(model_path, {stored[name]: shapes[name] for name in shapes}, config)
    missed = [name for name in shapes if reading.placed.get(stored[name]) != name]
    return sorted({*missed, *reading.others})


def old_names(model_path: str, names: list[str]) -> dict[str, str]:
    """The names that layers had when their models were published, with the layers' names now."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming

    conversions = get_model_conversion_mapping(_weightless_model(model_path))
    reverses = [c.reverse_transform() for c in conversions if isinstance(c, WeightRenaming)]
    found = {}
    for name in names:
        old = f"{name}.weight"
        for reverse in reversed(reverses):
            old, _ = reverse.rename_source_key(old)
        found[old.removesuffix(".weight")] = name
    return {old: name for old, name in found.items() if old != name}


@lru_cache(maxsize=8)
def linear_layers(model_path: str) -> frozenset[str]:
    """Names of all that the causal LM has, text or not."""
    return frozenset(
        name
        for name, module in _weightless_model(model_path).named_modules()
        if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D"
    )


def check_layer_fields(
    config_file: Path, fields: dict[str, Any], model_path: str, layers: dict[str, tuple[str, Any]]
) -> None:
    """Raises ValueError where PEFT, given these LAYER_FIELDS of `config_file`, puts adapters
    elsewhere than on the layers that have tensors in its folder.

    `layers`: by their names in the folder, names in the model, and (outputs, inputs).
    """
    shapes = {name: shape for name, (_, shape) in layers.items()}

    def missed(chosen: dict[str, Any]) -> list[str]:
        placed = _read(model_path, shapes, chosen).placed
        return [name for name in layers if placed.get(name) != layers[name][0]]

    try:
        others = _read(model_path, shapes, fields).others
        without = missed(fields)
    except (ValueError, TypeError, re.error) as error:
        raise ValueError(
            f"{config_file}: {_shown(fields, *LAYER_FIELDS)}: PEFT refuses that "
            f"({_reason(error)}); name the {len(layers)} layers that have tensors in {PEFT_WEIGHTS}"
        ) from error
    if without:
        # what lets PEFT find more of them when it is left out
        for names in (("exclude_modules",), ("layers_pattern",), LAYER_FIELDS[3:]):
            fewer = {name: value for name, value in fields.items() if name not in names}
            if len(fewer) < len(fields) and len(missed(fewer)) < len(without):
                break
        else:
            names = LAYER_FIELDS[:2]
        raise ValueError(
            f"{config_file}: {_shown(fields, *names)}: PEFT would not apply the tensors that "
            f"{PEFT_WEIGHTS} has for {_counted(without)}; write what the adapter was trained "
            "with, or take these tensors out"
        )
    if others:
        raise ValueError(
            f"{config_file}: {_shown(fields, *LAYER_FIELDS)}: PEFT would put an adapter on "
            f"{_counted(list(others))} without tensors in {PEFT_WEIGHTS}; name only the layers "
            "that have some, or restore the missing tensors"
        )


def _shown(fields: dict[str, Any], *names: str) -> str:
    """Those that are set, as settings."""
    texts = [f"{name}={fields[name]!r}" for name in names if fields.get(name) not in (None, [])]
    texts = texts or [f"{name} is not set" for name in names[:1]]
    return ", ".join(text if len(text) <= 200 else f"{text[:200]}..." for text in texts)


def _counted(names: list[str]) -> str:
    """How many layers, and the first of them."""
    number = "1 layer" if len(names) == 1 else f"{len(names)} layers"
    return f"{number} ({', '.join(names[:3])}{', ...' if names[3:] else ''})"


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


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


def _read(model_path: str, shapes: Shapes, fields: dict[str, Any]) -> _Reading:
    chosen = {name: fields.get(name) for name in LAYER_FIELDS}
    return _read_once(model_path, tuple(shapes.items()), json.dumps(chosen, sort_keys=True))


@lru_cache(maxsize=64)
def _read_once(
    model_path: str, shapes: tuple[tuple[str, tuple[int, int]], ...], fields: str
) -> _Reading:
    """Of an adapter of rank 1, whose numbers tell its layers apart. PEFT's own loader is what says
    where they go. Raises what PEFT raises."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    wanted = {}
    for number, (name, (outputs, inputs)) in enumerate(shapes, start=1):
        wanted[f"{PEFT_PREFIX}{name}.lora_A.weight"] = torch.full((1, inputs), float(number))
        wanted[f"{PEFT_PREFIX}{name}.lora_B.weight"] = torch.full((outputs, 1), float(number))
    config = {**peft_config(PeftTargets([], [], {}), rank=1, alpha=1.0), **json.loads(fields)}
    with tempfile.TemporaryDirectory() as folder, _without_warnings():
        save_file(wanted, Path(folder) / PEFT_WEIGHTS)
        (Path(folder) / PEFT_CONFIG).write_text(json.dumps(config), encoding="utf-8")
        # it changes the model
        loaded: Any = PeftModel.from_pretrained(
            _weightless_model(model_path), folder, torch_device="cpu"
        )
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in loaded.named_parameters():
        layer, _, part = name.removesuffix(".default.weight").rpartition(".lora_")
        if layer:
            found.setdefault(layer.removeprefix(PEFT_PREFIX), {})[part] = tensor.detach().float()
    scaled = {
        name.removeprefix(PEFT_PREFIX)
        for name, module in loaded.named_modules()
        if isinstance(module, LoraLayer) and module.scaling["default"] != 1.0
    }
    placed, others = {}, []
    names = [name for name, _ in shapes]
    for layer, parts in found.items():
        numbers = {value for part in parts.values() for value in part.unique().tolist()}
        number = int(min(numbers))
        whole = parts.keys() == {"A", "B"} and numbers == {number} and layer not in scaled
        if whole and 0 < number <= len(names):
            placed[names[number - 1]] = layer
        else:
            others.append(layer)
    return _Reading(placed, tuple(others))


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
