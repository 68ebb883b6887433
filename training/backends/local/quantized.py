"""Weights of four bits for decoding: the embedded model's own, as its GGUF file has them.

A decoded row waits until all weights are read. The file's blocks of 32 weights (Q4_1: q * d + m,
with q of 0 to 15) are a sixth of what float32 takes, and torch's product of int4 weights computes
with them as they are, except that d and m, the inputs and the outputs are rounded to bfloat16.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from training.backends.local.embedded import gguf_file

_BLOCK = 32


class Blocks(NamedTuple):
    """q [out, in] of 0 to 15; d and m [out, in / 32]; the weight is q * d + m, block by block."""

    q: np.ndarray
    d: np.ndarray
    m: np.ndarray

    def dense(self) -> torch.Tensor:
        """float32 [out, in]."""
        d, m = (np.repeat(part, _BLOCK, axis=1) for part in (self.d, self.m))
        return torch.from_numpy(self.q * d + m)


class Int4Matrix:
    """x [n, in] -> x @ weight.T [n, out]; a row has the same bits however many there are."""

    def __init__(self, parts: list[Blocks]) -> None:
        """`parts` stand side by side in the result."""
        q, d, m = (torch.from_numpy(np.concatenate(p)) for p in zip(*parts, strict=True))
        self._weight = torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.int(), 1)
        # [in / 32, out, 2]; torch's q is 8 less
        self._scales = torch.stack([d.T, (m + 8 * d).T], dim=-1).bfloat16().contiguous()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        product = torch.ops.aten._weight_int4pack_mm_for_cpu.default
        return product(x.bfloat16(), self._weight, _BLOCK, self._scales).to(x.dtype)


# the engine's names of layers, in the file's
_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def embedded_blocks(config: Any) -> dict[str, Blocks]:
    """Of every layer of the embedded model's body, by its path; `config` is the model's."""
    import gguf

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(gguf_file()).tensors}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    return {
        f"layers.{number}.{path}": _read(tensors[f"blk.{number}.{name}.weight"], heads.get(name))
        for number in range(config.num_hidden_layers)
        for path, name in _NAMES.items()
    }


def _read(tensor: Any, heads: int | None) -> Blocks:
    assert tensor.tensor_type.name == "Q4_1"
    width, rows = (int(size) for size in tensor.shape)
    # d and m of two bytes, then two of q in each byte: its first 16, its last 16
    raw = np.asarray(tensor.data).reshape(rows, width // _BLOCK, 4 + _BLOCK // 2)
    scales = raw[:, :, :4].copy().view(np.float16).astype(np.float32)
    pairs = raw[:, :, 4:]
    q = np.concatenate([pairs & 15, pairs >> 4], axis=-1).reshape(rows, width)
    blocks = Blocks(q, scales[..., 0], scales[..., 1])
    if heads is None:
        return blocks
    # llama.cpp turns neighbours, transformers halves of a head
    order = np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
    return Blocks(*(part[order] for part in blocks))
