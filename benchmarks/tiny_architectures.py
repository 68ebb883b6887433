"""Tiny random models of the causal-LM architectures that transformers has.

Sizes come from a table of field names; lists with an entry per layer keep one layer of every kind
that the family's default has. OVERRIDES says what else a family needs. Windows and chunks are
shorter than the sequences they are tried on, and scales and soft caps are not 1, so that leaving
one out would show.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

VOCAB = 131
CONTEXT = 256
WINDOW = 8
MAX_LAYERS = 4
# of the logits, so that the next token's distribution is far from flat
LOGIT_DEVIATION = 2.5

_HIDDEN, _HEADS, _KV_HEADS, _HEAD_DIM, _INNER = 64, 4, 2, 16, 96
_SIZES: dict[str, Any] = {
    **dict.fromkeys(["vocab_size", "vocab_size_per_layer_input"], VOCAB),
    **dict.fromkeys(
        [
            "max_position_embeddings",
            "n_positions",
            "n_ctx",
            "max_seq_len",
            "context_length",
            "model_max_length",
            "max_target_positions",
            "max_source_positions",
        ],
        CONTEXT,
    ),
    **dict.fromkeys(["hidden_size", "n_embd", "d_model", "emb_dim", "embedding_dim"], _HIDDEN),
    **dict.fromkeys(["embedding_size", "input_embedding_size", "output_embedding_size"], _HIDDEN),
    **dict.fromkeys(["word_embed_proj_dim", "lru_width", "backbone_hidden_size"], _HIDDEN),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "attention_heads"], _HEADS),
    **dict.fromkeys(["decoder_attention_heads", "encoder_attention_heads"], _HEADS),
    **dict.fromkeys(["num_decoder_attention_heads", "num_encoder_attention_heads"], _HEADS),
    **dict.fromkeys(["num_key_value_heads", "num_kv_heads", "num_query_groups"], _KV_HEADS),
    **dict.fromkeys(["head_dim", "d_head", "dim_head", "kv_channels", "v_head_dim"], _HEAD_DIM),
    **dict.fromkeys(["attention_head_size", "global_head_dim", "swa_head_dim"], _HEAD_DIM),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"], _INNER),
    **dict.fromkeys(["decoder_ffn_dim", "encoder_ffn_dim", "dff", "dim_ff", "d_inner"], _INNER),
    **dict.fromkeys(["intermediate_size_mlp", "dense_intermediate_size"], _INNER),
    **dict.fromkeys(["feed_forward_size"], _INNER),
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 32),
    **dict.fromkeys(["shared_intermediate_size", "moe_shared_expert_intermediate_size"], 32),
    **dict.fromkeys(["expert_ffn_hidden_size", "prefix_dense_intermediate_size"], 32),
    **dict.fromkeys(["num_experts", "n_routed_experts", "num_local_experts"], 4),
    **dict.fromkeys(["moe_num_experts"], 4),
    **dict.fromkeys(["num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k"], 2),
    **dict.fromkeys(["top_k_experts"], 2),
    **dict.fromkeys(["n_group", "topk_group", "num_expert_group"], 1),
    **dict.fromkeys(["n_shared_experts", "num_shared_experts", "moe_num_shared_experts"], 1),
    **dict.fromkeys(["first_k_dense_replace", "num_dense_layers"], 1),
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    # enough that no score is exactly 0, where the choice of the highest would be arbitrary
    "index_n_heads": 16,
    **dict.fromkeys(["index_head_dim", "indexer_head_dim"], 16),
    "index_topk": 8,
    **dict.fromkeys(["sliding_window", "attention_window_size", "window_size"], WINDOW),
    **dict.fromkeys(["attention_chunk_size", "local_attention", "sliding_window_size"], WINDOW),
    **dict.fromkeys(["mamba_chunk_size", "chunk_size", "block_size"], WINDOW),
    **dict.fromkeys(["original_max_position_embeddings"], CONTEXT),
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_heads": 4,
    "linear_head_dim": 16,
    **dict.fromkeys(["mamba_n_heads", "mamba_num_heads"], 8),
    **dict.fromkeys(["mamba_d_head", "mamba_head_dim", "mamba_headdim"], 16),
    **dict.fromkeys(["mamba_d_state", "ssm_state_size", "state_size"], 16),
    **dict.fromkeys(["mamba_n_groups", "n_groups", "mamba_ngroups"], 2),
    "mamba_d_ssm": 2 * _HIDDEN,
    **dict.fromkeys(["time_step_rank", "mamba_dt_rank"], 4),
    "n_mamba_heads": 8,
    "dim_model_base": _HIDDEN // 2,
    "rotary_dim": 8,
    "hidden_size_per_layer_input": 8,
    "laurel_rank": 4,
    "logits_scaling": 3.0,
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.7,
    "attention_multiplier": 0.2,
    "lm_head_multiplier": 0.5,
    "final_logit_softcapping": 8.0,
    "attn_logit_softcapping": 3.0,
    "query_pre_attn_scalar": 20,
    "is_decoder": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_LAYER_COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "encoder_layers",
    "num_decoder_layers",
    "num_encoder_layers",
    "num_blocks",
)
_SLIDING_AND_FULL = ["sliding_attention", "full_attention"]
_LINEAR_AND_FULL = ["linear_attention", "full_attention"]
_MLA = {"num_key_value_heads": _HEADS}
_QWEN4 = {
    "layer_types": ["linear_attention", "indexed_attention"],
    "ngram_vocab_size_base": 64,
    "hc_lowrank": 8,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
    "output_gate_type": "silu",
}
# three layers, the last of which takes its keys and values from an earlier one
_GEMMA_3N = {
    "num_hidden_layers": 4,
    "layer_types": [*_SLIDING_AND_FULL, *_SLIDING_AND_FULL],
    "num_kv_shared_layers": 2,
    "activation_sparsity_pattern": [0.5, 0.0, 0.0, 0.0],
}
OVERRIDES: dict[str, dict[str, Any]] = {
    "axk1": _MLA,
    "axk2": _MLA,
    "bamba": {"attn_layer_indices": [1]},
    "cohere_compass_text": {
        "rope_parameters": {
            "full_attention": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [3, 3, 2],
            }
        }
    },
    "deepseek_v2": {**_MLA, "num_experts_per_tok": 2},
    "deepseek_v3": _MLA,
    "deepseek_v32": _MLA,
    "dots1": {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "layer_types": _SLIDING_AND_FULL,
    },
    "falcon_h1": {
        "key_multiplier": 0.7,
        "attention_out_multiplier": 0.8,
        "attention_in_multiplier": 1.2,
        "ssm_in_multiplier": 0.9,
        "ssm_out_multiplier": 1.1,
        "ssm_multipliers": [0.9, 1.1, 0.8, 1.2, 0.7],
        "mlp_multipliers": [0.9, 1.1],
    },
    "gemma3n": {"text_config": _GEMMA_3N},
    "gemma3n_text": _GEMMA_3N,
    "glm4_moe_lite": _MLA,
    "glm_moe_dsa": _MLA,
    "granitemoehybrid": {"layer_types": _LINEAR_AND_FULL},
    "hunyuan_v1_dense": {"head_dim": _HEAD_DIM},
    "hunyuan_v1_moe": {"head_dim": _HEAD_DIM},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": _MLA,
    "laguna": {
        "layer_types": _SLIDING_AND_FULL,
        "num_attention_heads_per_layer": [_HEADS, 2 * _HEADS],
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": {**_MLA, "zero_expert_num": 2},
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "mellum": {"layer_types": _SLIDING_AND_FULL},
    "minicpm3": _MLA,
    "ministral": {"head_dim": _HEAD_DIM, "layer_types": _SLIDING_AND_FULL},
    "nemotron": {"num_key_value_heads": _KV_HEADS, "head_dim": _HEAD_DIM},
    "qwen4_exp": {"text_config": _QWEN4},
    "qwen4_exp_text": _QWEN4,
    "recurrent_gemma": {"num_hidden_layers": 3},
    "reformer": {
        "attn_layers": ["local", "lsh"],
        "axial_pos_shape": [16, 16],
        "axial_pos_embds_dim": [32, 32],
        "hash_seed": 0,
    },
    "xlstm": {"num_heads": _HEADS, "qk_dim_factor": 1.0, "chunk_size": 16},
    "xmod": {"default_language": "en_XX"},
    "youtu": _MLA,
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
        "n_mamba_heads": 2,
        "head_dim": 32,
        "attention_head_dim": 32,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "num_hidden_layers": 4,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 32},
}


# What published models of a family have and its default has not, as "model type/what it is".
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [1.0, 2.0, 4.0, 8.0, 12.0, 16.0, 20.0, 24.0],
    "original_max_position_embeddings": 36,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "cohere/query and key norms": {"use_qk_norm": True},
    "doge/experts": {"is_moe": True},
    "falcon/alibi": {"alibi": True},
    "falcon/new decoder": {"new_decoder_architecture": True},
    "gemma3_text/bidirectional": {"use_bidirectional_attention": True},
    "gemma4_text/experts": {
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 32,
    },
    "gpt2/scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "granitemoehybrid/rotary": {"layer_types": _LINEAR_AND_FULL, "position_embedding_type": "rope"},
    "llama/biases": {"attention_bias": True, "mlp_bias": True},
    "llama/longrope": {"rope_parameters": _LONGROPE},
    "olmo/clipped": {"clip_qkv": 1.0},
    "opt/350m": {"do_layer_norm_before": False, "word_embed_proj_dim": 32},
    "phi3/longrope": {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 36},
    "qwen2/sliding": {
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": _SLIDING_AND_FULL,
    },
    "smollm3/without positions": {"no_rope_layers": [1, 0]},
    "stablelm/parallel": {"use_parallel_residual": True, "qk_layernorm": True},
    "zamba2/rotary": {**OVERRIDES["zamba2"], "use_mem_rope": True},
}


def architectures() -> list[str]:
    """The model types that AutoModelForCausalLM opens, and the variants."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return sorted([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS])


def tiny_config(architecture: str) -> Any:
    from transformers import CONFIG_MAPPING

    model_type = architecture.partition("/")[0]
    changes = {**OVERRIDES, **VARIANTS}.get(architecture, {})
    return _shrunk(CONFIG_MAPPING[model_type], changes)


def _shrunk(kind: Any, overrides: dict[str, Any]) -> Any:
    default = kind(**{k: v for k, v in overrides.items() if k in _NEEDED_FIRST})
    fields = default.to_dict()
    values = {k: v for k, v in _SIZES.items() if fields.get(k) is not None}
    if "qk_rope_head_dim" in values and "head_dim" in values:
        # the part that turns; the whole is the sum of the two
        values["head_dim"] = values["qk_rope_head_dim"]
    for name in kind.sub_configs:
        inner = getattr(default, name, None)
        if inner is not None:
            values[name] = _shrunk(type(inner), overrides.get(name, {}))
    values |= _layers(fields)
    values |= {k: v for k, v in overrides.items() if k not in kind.sub_configs}
    return kind(**{k: v for k, v in values.items() if v is not ...})


# fields without which the default of the class is an error
_NEEDED_FIRST = ("text_encoder", "audio_encoder", "decoder")


def _layers(fields: dict[str, Any]) -> dict[str, Any]:
    """One layer of every kind of the default's, at least 2, at most MAX_LAYERS."""
    counts = [name for name in _LAYER_COUNTS if isinstance(fields.get(name), int)]
    number = next((fields[name] for name in counts), 0)
    lists = {
        name: value
        for name, value in fields.items()
        if isinstance(value, list)
        and len(value) == number
        and all(isinstance(v, str) for v in value)
    }
    rows = list(zip(*lists.values(), strict=True))
    chosen = [at for at, row in enumerate(rows) if row not in rows[:at]][:MAX_LAYERS]
    chosen += [at for at in range(2) if at not in chosen][: max(0, 2 - len(chosen))]
    values: dict[str, Any] = dict.fromkeys(counts, max(2, len(chosen)))
    return values | {name: [value[at] for at in sorted(chosen)] for name, value in lists.items()}


@torch.no_grad()
def save_tiny_architecture(folder: Path, architecture: str, seed: int = 0) -> str:
    """Writes a model with random weights; `folder` as text."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model: Any = AutoModelForCausalLM.from_config(
        tiny_config(architecture), dtype=torch.float32, attn_implementation="eager"
    )
    model.eval()
    generator = torch.Generator().manual_seed(seed)
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            noise = torch.randn(parameter.shape, generator=generator)
            if id(parameter) in embeddings:
                parameter.copy_(0.3 * noise)
            elif parameter.ndim < 2 or not _is_matrix(module, name):
                # decays, steps and norms stay near what their own initialisation gave them
                parameter += 0.1 * noise
            else:
                parameter.copy_(noise / _fan_in(module, parameter) ** 0.5)
    _spread_logits(model, generator)
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    return str(folder)


def _is_matrix(module: nn.Module, name: str) -> bool:
    products = (nn.Linear, nn.Conv1d, nn.Conv2d)
    if isinstance(module, products) or type(module).__name__ == "Conv1D":
        return True
    return any(part in name for part in ("proj", "weight", "w1", "w2", "w3"))


def _fan_in(module: nn.Module, parameter: torch.Tensor) -> int:
    if type(module).__name__ == "Conv1D":
        return parameter.shape[0]
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return parameter[0].numel()
    return parameter.shape[-1]


def _spread_logits(model: Any, generator: torch.Generator) -> None:
    """Scales the head; with tied embeddings a few times, since they change what comes before."""
    head = model.get_output_embeddings()
    tokens = torch.randint(3, VOCAB, (1, 40), generator=generator)
    for _ in range(3):
        deviation = float(model(tokens).logits.std(-1).mean())
        if head is None or not 0 < deviation < float("inf"):
            return
        head.weight *= min(max(LOGIT_DEVIATION / deviation, 0.02), 50.0)
