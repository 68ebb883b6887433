"""PEFT's adapter_config.json: what the engine reads of it, and what it refuses by name.

Every field of PEFT's LoraConfig is in one of the three tables below; a test holds them against the
installed PEFT, so that a new field cannot be passed over.
"""

import dataclasses
import logging
import math
from pathlib import Path
from typing import Any, NamedTuple

from training.backends.local.peft_names import LAYER_FIELDS
from utils.json_files import read_json_object

logger = logging.getLogger(__name__)

# What decides, and is read here or (the base model's name and revision) in checkpoints.py.
READ = frozenset(
    {
        "peft_type",
        "task_type",
        "base_model_name_or_path",
        "revision",
        "r",
        "lora_alpha",
        "lora_dropout",
        "use_rslora",
        "init_lora_weights",
        # target_parameters is below
        *(name for name in LAYER_FIELDS if name != "target_parameters"),
    }
)

# How values were first drawn, how others store or load them: what the saved tensors compute does
# not depend on it.
WITHOUT_EFFECT = frozenset(
    {
        "auto_mapping",
        "peft_version",
        "inference_mode",
        "fan_in_fan_out",
        # settings of an initialisation: init_lora_weights says whether it was used
        "loftq_config",
        "eva_config",
        "corda_config",
        "lora_ga_config",
        # settings of megatron_config and use_qalora
        "megatron_core",
        "qalora_group_size",
        # never saved
        "runtime_config",
    }
)

_MERGE = (
    "PEFT's merge_and_unload() puts the adapter into the base model: save that and load it as "
    "base_model"
)
# The field, what PEFT computes with it, and what its user can do.
REFUSED = {
    "bias": ("the base model's biases were trained too", _MERGE),
    "lora_bias": ("lora_B has a bias", _MERGE),
    "rank_pattern": ("ranks differ from layer to layer", _MERGE),
    "alpha_pattern": ("scales differ from layer to layer", _MERGE),
    "modules_to_save": ("whole layers were trained too", _MERGE),
    "trainable_token_indices": ("embeddings were trained too", _MERGE),
    "use_dora": ("weights are normalised and rescaled (DoRA)", _MERGE),
    "kasa_config": ("the base model's weights were truncated (KaSA)", _MERGE),
    "use_bdlora": ("A or B is block-diagonal (BD-LoRA)", _MERGE),
    "velora_config": ("gradients are those of compressed inputs (VeLoRA)", _MERGE),
    "monteclora_config": ("weights are sampled in training (MonteCLoRA)", _MERGE),
    "target_parameters": ("parameters outside linear layers (experts) have adapters", _MERGE),
    "layer_replication": ("the base model's layers are repeated", _MERGE),
    "ensure_weight_tying": (
        "embedding and head share one adapter",
        f"{_MERGE}, or write false where neither of them has one",
    ),
    "alora_invocation_tokens": (
        "the adapter acts after an invocation (aLoRA)",
        "PEFT offers no conversion; train a plain LoRA adapter",
    ),
    "arrow_config": (
        "several adapters are mixed by a router (Arrow)",
        "PEFT offers no conversion; load the adapters one by one",
    ),
    "use_qalora": (
        "inputs are pooled before lora_A, for a quantised base model (QALoRA)",
        "PEFT offers no conversion; train a plain LoRA adapter",
    ),
    "megatron_config": (
        "the layers are Megatron's, split over devices",
        "save the adapter from a model of transformers' layers",
    ),
}

# They draw A and B and leave the base model as it is.
_PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
# They take what A and B hold out of the base model's weights, before training starts.
_BASE_CHANGING_INITS = ("pissa", "olora", "corda", "lora_ga")


class PeftSettings(NamedTuple):
    """`alpha / rank` is the adapter's scale, rsLoRA's too; `layer_fields` are those that choose its
    layers."""

    rank: int
    alpha: float
    dropout: float
    layer_fields: dict[str, Any]


def read_peft_config(file: Path) -> PeftSettings:
    """Raises ValueError that names the file and every field the engine does not compute."""
    config = read_json_object(file)
    problems = [*_value_problems(config), *_init_problems(config)]
    for name, (meaning, remedy) in REFUSED.items():
        if config.get(name) and not _is_harmless(name, config[name]):
            problems.append(f"{name}={config[name]!r}: {meaning}, which is not supported; {remedy}")
    for name in sorted(config.keys() - READ - WITHOUT_EFFECT - REFUSED.keys()):
        if not _is_default(name, config[name]):
            problems.append(
                f"{name}={config[name]!r}: a field of PEFT that is not known here; {_MERGE}"
            )
    if problems:
        raise ValueError("\n".join(f"{file}: {problem}" for problem in problems))
    rank, alpha = config["r"], float(config["lora_alpha"])
    if config.get("use_rslora"):
        alpha *= math.sqrt(rank)
    layer_fields = {name: config.get(name) for name in LAYER_FIELDS}
    return PeftSettings(rank, alpha, float(config.get("lora_dropout") or 0.0), layer_fields)


def _is_harmless(name: str, value: Any) -> bool:
    if name == "target_parameters":
        # a layer's weight as a parameter is the layer, where its tensors fit one of the model's
        return all(str(parameter).endswith(".weight") for parameter in value)
    return name == "bias" and value == "none"


def _value_problems(config: dict[str, Any]) -> list[str]:
    kind, task = config.get("peft_type"), config.get("task_type")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    dropout = config.get("lora_dropout") or 0.0
    problems = []
    if kind != "LORA":
        problems.append(f"peft_type={kind!r}: LORA is needed")
    if task not in (None, "CAUSAL_LM"):
        problems.append(
            f"task_type={task!r}: CAUSAL_LM is needed; write it where the adapter was trained to "
            "predict the next token"
        )
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        problems.append(f"r={rank!r}: a whole number from 1 is needed")
    if not _is_number(alpha):
        problems.append(f"lora_alpha={alpha!r}: a finite number is needed")
    if not _is_number(dropout) or not 0 <= dropout < 1:
        problems.append(f"lora_dropout={dropout!r}: 0 <= lora_dropout < 1 is needed")
    return problems


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _init_problems(config: dict[str, Any]) -> list[str]:
    init = config.get("init_lora_weights", True)
    name = init.lower() if isinstance(init, str) else init
    if name in _PLAIN_INITS:
        if name == "mica":
            logger.warning("PEFT trains lora_A alone under init_lora_weights='mica'; here both are")
        return []
    told = f"init_lora_weights={init!r}"
    changed = f"{told}: the adapter belongs to a base model whose weights this changed"
    by_hand = (
        "save the changed base model (PEFT's unload() gives it), load it as base_model and write "
        'init_lora_weights=true into "adapter_config.json"'
    )
    if isinstance(name, str) and name.startswith(_BASE_CHANGING_INITS):
        return [
            f"{changed}; let PEFT convert it, model.save_pretrained(folder, "
            "path_initial_model_for_weight_conversion=the adapter as saved before training), or "
            f"{by_hand}"
        ]
    if name == "loftq":
        return [f"{changed}; {by_hand}"]
    return [f"{told}: not known here; {[i for i in _PLAIN_INITS if i is not None]} are"]


def _is_default(name: str, value: Any) -> bool:
    """Of a field in none of the tables."""
    if not value:
        return True
    # slow to import, and needed only where a newer PEFT wrote the folder
    from peft import LoraConfig

    known = {field.name: field for field in dataclasses.fields(LoraConfig)}
    return name in known and value == known[name].default
