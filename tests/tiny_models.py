"""Tiny random models of several families, and plain references to hold the engine against."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from training.api import Datum, ModelInput
from training.backends.local.decoder import HEAD

# more threads would wait for each other longer than these models compute
torch.set_num_threads(1)

VOCAB = 131
CONTEXT = 256
# longer than the window of every sliding-window family
WINDOW = 8
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_ALTERNATING = ["sliding_attention", "full_attention"]


def _config(family: str) -> PretrainedConfig:
    if family == "phi3":
        return Phi3Config(**_SIZES)
    if family == "llama":
        return LlamaConfig(**_SIZES, tie_word_embeddings=False)
    if family == "llama_tied":
        return LlamaConfig(**_SIZES, tie_word_embeddings=True)
    if family == "qwen2":
        return Qwen2Config(**_SIZES, tie_word_embeddings=False)
    if family == "qwen3":
        return Qwen3Config(**_SIZES, head_dim=16, tie_word_embeddings=True)
    if family == "mistral":
        return MistralConfig(**_SIZES, sliding_window=WINDOW)
    if family == "gemma2":
        return Gemma2Config(
            **_SIZES,
            head_dim=16,
            query_pre_attn_scalar=20,
            sliding_window=WINDOW,
            layer_types=_ALTERNATING,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=4.0,
        )
    if family == "gemma3":
        return Gemma3TextConfig(
            **_SIZES,
            head_dim=16,
            query_pre_attn_scalar=20,
            sliding_window=WINDOW,
            layer_types=_ALTERNATING,
        )
    if family == "gpt2":
        return GPT2Config(
            vocab_size=VOCAB,
            n_positions=CONTEXT,
            n_embd=48,
            n_layer=2,
            n_head=4,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    raise ValueError(family)


FAMILIES = ("llama", "llama_tied", "qwen2", "qwen3", "mistral", "gemma2", "gemma3", "gpt2")


@torch.no_grad()
def save_tiny_model(folder: Path, family: str, seed: int = 0, **changes: Any) -> str:
    """Random weights large enough that the next token's distribution is far from flat. `changes`
    are other values of the family's config."""
    generator = torch.Generator().manual_seed(seed)
    config = type(_config(family)).from_dict({**_config(family).to_dict(), **changes})
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    # Gemma multiplies embeddings by sqrt(hidden) = 7. A tied model whose embeddings are not small
    # beside its layers' outputs does little but repeat its input.
    tied = model.config.tie_word_embeddings
    embedding = 0.02 if family.startswith("gemma") else 0.1 if tied else 0.3
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.ndim == 1:
            is_rms_offset = family.startswith("gemma")
            centre = 0.0 if is_rms_offset or name.endswith("bias") else 1.0
            if name in ("model.norm.weight", "transformer.ln_f.weight"):
                # logits get a deviation of about 2.5
                centre += 0.36 / embedding - 1
            parameter.copy_(centre + 0.1 * noise)
        elif any(part in name for part in ("embed", "lm_head", ".wte", ".wpe")):
            parameter.copy_(embedding * noise)
        else:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
    # a wide sampling distribution has to come from the weights, not from generation settings
    model.generation_config.do_sample = False
    model.save_pretrained(folder)
    return str(folder)


def hf_model(folder: str) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32
    ).eval()


def hf_logits(model: Any, tokens: list[int]) -> torch.Tensor:
    """[T, vocab], alone in its batch, without a cache."""
    return model(torch.tensor([tokens]), use_cache=False).logits[0]


def hf_logprobs(model: Any, tokens: list[int], targets: torch.Tensor) -> torch.Tensor:
    """Logprobs of targets [T] or [T, K]."""
    logprobs = hf_logits(model, tokens).log_softmax(-1)
    return logprobs.gather(1, targets.view(len(tokens), -1)).view(targets.shape)


@torch.no_grad()
def hf_greedy(model: Any, prompt: list[int], num_tokens: int, eos: int | None = None) -> list[int]:
    """The plainest decoding there is: the whole sequence again for every token."""
    tokens = list(prompt)
    for _ in range(num_tokens):
        tokens.append(int(hf_logits(model, tokens)[-1].argmax()))
        if tokens[-1] == eos:
            break
    return tokens[len(prompt) :]


def random_tokens(rng: np.random.Generator, length: int) -> list[int]:
    """Leaves out 0, 1 and 2: padding, beginning and end."""
    return rng.integers(3, VOCAB, length).tolist()


def cross_entropy_datum(rng: np.random.Generator, tokens: list[int]) -> Datum:
    """Next-token targets with random weights, some zero, some negative."""
    weights = rng.normal(0.5, 1.0, len(tokens)).astype(np.float32)
    weights[rng.random(len(tokens)) < 0.3] = 0.0
    return Datum(
        ModelInput.from_ints(tokens),
        {"target_tokens": random_tokens(rng, len(tokens)), "weights": weights},
    )


def policy_datum(
    rng: np.random.Generator,
    prompt: list[int],
    answer: list[int],
    reference: Any,
    *,
    mask: bool = False,
    spread: float = 0.4,
) -> Datum:
    """What an RL loop sends: prompt positions carry zeros, answer logprobs lie near the model's."""
    tokens = prompt + answer
    inputs, targets = tokens[:-1], tokens[1:]
    start = len(prompt) - 1
    with torch.no_grad():
        known = hf_logprobs(reference, inputs, torch.tensor(targets)).numpy()
    sampler = (known + rng.normal(0, spread, len(inputs))).astype(np.float32)
    advantages = rng.normal(0, 1, len(inputs)).astype(np.float32)
    in_answer = np.arange(len(inputs)) >= start
    fields: dict[str, Any] = {
        "target_tokens": np.where(in_answer, targets, 0),
        "logprobs": np.where(in_answer, sampler, 0).astype(np.float32),
        "advantages": np.where(in_answer, advantages, 0).astype(np.float32),
    }
    if mask:
        fields["sequence_ratio_mask"] = in_answer.astype(np.float32)
    return Datum(ModelInput.from_ints(inputs), fields)


# ------------------------------------------------------------------------------- adapters and PEFT


@torch.no_grad()
def randomise(client: Any, seed: int, size: float = 0.3) -> None:
    """Fills A and B of a local training client: B A * scale is `size` times the base weight."""
    adapter, decoder = client._adapter, client._engine.decoder
    generator = torch.Generator().manual_seed(seed)
    for path, low_rank in adapter.layers.items():
        base = decoder.weight(path)
        delta = low_rank.scale * adapter.config.rank**0.5
        factor = (size * float(base.std()) / delta) ** 0.5
        for matrix in (low_rank.a, low_rank.b):
            matrix.copy_(torch.randn(matrix.shape, generator=generator) * factor)


def peft_twin(client: Any, folder: str, name: str = "twin") -> Any:
    """The client's adapter on a Hugging Face model, through PEFT's own loader."""
    from peft import PeftModel

    path = client.save_weights_for_sampler(name).result().path
    return PeftModel.from_pretrained(hf_model(folder), path, is_trainable=True).eval()


def peft_parts(model: Any) -> dict[str, torch.nn.Parameter]:
    """PEFT's LoRA parameters by the engine's layer path and "A" / "B"."""
    body = model.get_base_model().base_model_prefix
    parts = {}
    for name, parameter in model.named_parameters():
        prefix, found, rest = name.partition(".lora_")
        if not found:
            continue
        inner = prefix.removeprefix("base_model.model.")
        path = HEAD if inner == "lm_head" else inner.removeprefix(f"{body}.")
        parts[f"{path}.{rest[0]}"] = parameter
    return parts


def peft_gradients(model: Any) -> dict[str, torch.Tensor]:
    return {
        path: torch.zeros_like(p) if p.grad is None else p.grad
        for path, p in peft_parts(model).items()
    }


def engine_gradients(client: Any) -> dict[str, torch.Tensor]:
    gradients = {}
    for path, low_rank in client._adapter.layers.items():
        gradients[f"{path}.A"] = low_rank.grad_a.clone()
        gradients[f"{path}.B"] = low_rank.grad_b.clone()
    return gradients


def relative_error(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """The largest difference over the largest value."""
    return float((got - wanted).abs().max() / wanted.abs().max().clamp_min(1e-30))


def worst_gradient_error(client: Any, model: Any) -> float:
    """Over every A and B, relative to the largest gradient of the whole adapter."""
    got, wanted = engine_gradients(client), peft_gradients(model)
    assert got.keys() == wanted.keys()
    largest = max(float(g.abs().max()) for g in wanted.values())
    assert largest > 0
    return max(float((got[key] - wanted[key]).abs().max()) for key in wanted) / largest
