"""The networks that are trained on sequences of tasks; all read (B, L) tokens or (B, L, F) vectors
and give (B, L, output_size), each position from itself and what stands before it."""

import math
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPTNeoXConfig
from transformers.models.gpt_neox.modeling_gpt_neox import (
    GPTNeoXAttention,
    GPTNeoXLayer,
    GPTNeoXRotaryEmbedding,
)

from training.icl.base import Family
from training.icl.config import MLP, Trained, Transformer
from training.icl.mup import Scaling, scaling
from training.icl.tasks import make_generator

TOKEN_INIT_STD = 0.02


def build_model(config: Trained, family: Family, seed: int) -> "CausalTransformer | CausalMLP":
    """A new network on the CPU; the weights depend on `seed` (or config.init_seed) alone, not on
    torch's global generator. ValueError where the family's sequences are too long for it."""
    generator = make_generator("weights", seed if config.init_seed is None else config.init_seed)
    # the layers' own initialisation, which is replaced, must not move anybody's random numbers
    with torch.random.fork_rng(devices=[]):
        if isinstance(config, Transformer):
            return CausalTransformer(config, family, generator)
        assert isinstance(config, MLP), config
        return CausalMLP(config, family, generator)


def require_positions(config: Trained, input_length: int) -> None:
    """ValueError where a sequence has more inputs than the model has positions."""
    limit = config.max_positions if isinstance(config, Transformer) else None
    if limit is not None and input_length > limit:
        raise ValueError(
            f"model.max_positions={limit}: a sequence of this setting has {input_length} inputs; "
            "raise it, leave it out, or lower setting.context_length"
        )


class CausalTransformer(nn.Module):
    """Layers of GPT-NeoX (pre-norm, attention and MLP one after the other, no attention bias, no
    dropout) under names that transformers' GPTNeoXForCausalLM knows.

    They are called without its cache, mask and output machinery, which costs as much as a small
    model's arithmetic; causality is left to scaled_dot_product_attention. With learned positions
    nothing is rotated. Vectors are read in by a linear layer instead of an embedding.
    """

    def __init__(self, config: Transformer, family: Family, generator: torch.Generator) -> None:
        super().__init__()
        require_positions(config, family.input_length)
        self.max_positions = config.max_positions or family.input_length
        width = config.hidden_size
        shape = gpt_neox_config(config, family)
        self.embed_in: nn.Embedding | nn.Linear
        if family.input_kind == "tokens":
            self.embed_in = nn.Embedding(family.input_size, width)
        else:
            self.embed_in = nn.Linear(family.input_size, width)
        self.embed_positions: nn.Embedding | None = None
        self._rotation: GPTNeoXRotaryEmbedding | None = None
        if config.positions == "learned":
            self.embed_positions = nn.Embedding(self.max_positions, width)
        else:
            self._rotation = GPTNeoXRotaryEmbedding(shape)
        self.layers = nn.ModuleList(GPTNeoXLayer(shape, i) for i in range(config.num_layers))
        if config.positions == "learned":
            for i, layer in enumerate(self.layers):
                cast(Any, layer).attention = _UnrotatedAttention(shape, i)
        self.final_layer_norm = nn.LayerNorm(width, eps=shape.layer_norm_eps)
        self.lm_head = nn.Linear(width, family.output_size, bias=False)
        self._initialise(config, family, generator)

    @torch.no_grad()
    def _initialise(self, config: Transformer, family: Family, generator: torch.Generator) -> None:
        tokens = family.input_kind == "tokens"
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                # a one-hot input has a fan in of 1; the width it is added to is what matters
                default = TOKEN_INIT_STD if tokens else 1 / math.sqrt(module.embedding_dim)
                module.weight.normal_(0.0, config.init_std or default, generator=generator)
            elif isinstance(module, nn.Linear):
                default = TOKEN_INIT_STD if tokens else 1 / math.sqrt(module.in_features)
                module.weight.normal_(0.0, config.init_std or default, generator=generator)
                if module.bias is not None:
                    module.bias.zero_()

    def forward(self, inputs: Tensor, *, output_hidden_states: bool = False) -> Any:
        """(B, L, output_size); with output_hidden_states a pair with num_layers + 1 states
        (B, L, H), as transformers gives them: the embedding, then each layer's output, the last one
        after the final norm."""
        length = inputs.shape[1]
        if length > self.max_positions:
            raise ValueError(f"{length} inputs for model.max_positions={self.max_positions}")
        hidden = self.embed_in(inputs)
        if self.embed_positions is not None:
            hidden = hidden + self.embed_positions.weight[:length]
        rotation = None
        if self._rotation is not None:
            rotation = self._rotation(hidden, torch.arange(length, device=inputs.device)[None])
        states = [hidden]
        for layer in self.layers:
            hidden = layer(hidden, position_embeddings=rotation)
            states.append(hidden)
        hidden = self.final_layer_norm(hidden)
        output = self.lm_head(hidden)
        return (output, (*states[:-1], hidden)) if output_hidden_states else output


class _UnrotatedAttention(GPTNeoXAttention):
    """The same attention where positions are part of the input."""

    def forward(self, hidden_states: Tensor, **_unused: Any) -> tuple[Tensor, None]:  # type: ignore[override]
        batch, length, width = hidden_states.shape
        joint = self.query_key_value(hidden_states).view(batch, length, -1, 3 * self.head_size)
        query, key, value = joint.transpose(1, 2).chunk(3, dim=-1)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.dense(mixed.transpose(1, 2).reshape(batch, length, width)), None


def gpt_neox_config(config: Transformer, family: Family) -> GPTNeoXConfig:
    """The same shape in transformers' terms; its vocabulary is the number of outputs."""
    rotated = 0.25 if config.positions == "rotary" else 0.0
    return GPTNeoXConfig(
        vocab_size=family.output_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_size or 4 * config.hidden_size,
        max_position_embeddings=config.max_positions or family.input_length,
        bos_token_id=None,
        eos_token_id=None,
        attention_bias=False,
        use_parallel_residual=False,
        tie_word_embeddings=False,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": rotated,
        },
        attn_implementation="sdpa",  # pyrefly: ignore[unexpected-keyword]
    )


class CausalMLP(nn.Module):
    """A perceptron on the context up to each position, flattened, with zeros for what comes later.

    Its first layer's product with [x_1 .. x_p, 0 .. 0] is the sum over j <= p of that with x_j
    alone, so one cumulative sum gives those of all positions: exact, and L times cheaper than L
    separate products. Tokens are one-hot. num_layers counts the hidden layers, the first included.
    """

    def __init__(self, config: MLP, family: Family, generator: torch.Generator) -> None:
        super().__init__()
        width = config.hidden_size
        self._tokens = family.input_kind == "tokens"
        self.read_in = nn.Parameter(torch.empty(family.input_length, family.input_size, width))
        self.read_in_bias = nn.Parameter(torch.empty(width))
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(config.num_layers - 1))
        self.read_out = nn.Linear(width, family.output_size)
        base = config.base_hidden_size if config.mup else None
        # of a one-hot vector only one input is not zero
        active = family.input_length * (1 if self._tokens else family.input_size)
        rules: dict[str, Scaling] = {}
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                rules[name] = scaling("bias", 1, width=width, base_width=base)
            elif name == "read_in":
                rules[name] = scaling("input", active, width=width, base_width=base)
            else:
                kind = "readout" if name.startswith("read_out") else "hidden"
                rules[name] = scaling(kind, width, width=width, base_width=base)
            with torch.no_grad():
                parameter.normal_(0.0, 1.0, generator=generator).mul_(rules[name].init_std)
        self.output_multiplier = rules["read_out.weight"].multiplier
        self.rate_factors = {name: rule.rate_factor for name, rule in rules.items()}

    def forward(self, inputs: Tensor, *, output_hidden_states: bool = False) -> Any:
        """(B, L, output_size); with output_hidden_states a pair with num_layers + 1 states
        (B, L, H): what the first layer is fed before its non-linearity, then each layer's output.
        """
        length = inputs.shape[1]
        most, size, width = self.read_in.shape
        if length > most:
            raise ValueError(f"{length} inputs for a model of {most}")
        if self._tokens:
            rows = inputs + size * torch.arange(length, device=inputs.device)
            contributions = F.embedding(rows, self.read_in.view(most * size, width))
        else:
            contributions = torch.einsum("blf,lfh->blh", inputs, self.read_in[:length])
        states = [contributions.cumsum(1) + self.read_in_bias]
        states.append(F.relu(states[0]))
        for layer in self.hidden:
            states.append(F.relu(layer(states[-1])))
        product = F.linear(states[-1], self.read_out.weight)
        output = product * self.output_multiplier + self.read_out.bias
        return (output, tuple(states)) if output_hidden_states else output
