"""Attention over packed tokens: trees of segments for training, cached blocks for sampling.

The base model's own attention layers compute queries, keys and values [1, heads, T, head_dim] for
the packed tokens of a pass and hand them to `attend`; the plan of the pass knows which tokens may
see which. This replaces masks of size T x T and lets the sampler keep its caches outside the model.
"""

import math
from collections.abc import Callable
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from training.local.batching import Segment

ATTENTION_NAME = "autodidact_packed"


class AttentionPlan(Protocol):
    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: "Kind"
    ) -> torch.Tensor:
        """query [heads, T, d], key and value [kv_heads, T, d] -> [T, heads, d]."""
        ...


class Kind:
    """What a layer's attention does besides softmax(q k * scale) v."""

    __slots__ = ("scale", "softcap", "window")

    def __init__(self, scale: float, window: int | None, softcap: float | None) -> None:
        self.scale = scale
        self.window = window
        self.softcap = softcap


def attention_forward(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    *,
    plan: AttentionPlan,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """The function registered with transformers' AttentionInterface under ATTENTION_NAME."""
    if unused.get("s_aux") is not None:
        raise ValueError("attention sinks (s_aux) are not supported by the local engine")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    kind = Kind(scale, sliding_window, softcap)
    out = plan.attend(module.layer_idx, query[0], key[0], value[0], kind)
    return out.unsqueeze(0), None


def _mask(
    num_queries: int, num_keys: int, window: int | None, device: torch.device
) -> torch.Tensor:
    """[queries, keys], True where a query may look; the last query is at the last key."""
    query_at = torch.arange(num_keys - num_queries, num_keys, device=device).unsqueeze(1)
    key_at = torch.arange(num_keys, device=device).unsqueeze(0)
    mask = key_at <= query_at
    if window is not None:
        mask &= key_at > query_at - window
    return mask


def _dense(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    kind: Kind,
) -> torch.Tensor:
    """Attention with soft-capped scores, which scaled_dot_product_attention cannot do."""
    repeats = query.shape[0] // key.shape[0]
    key, value = (t.repeat_interleave(repeats, dim=0).float() for t in (key, value))
    scores = query.float() @ key.transpose(1, 2) * kind.scale
    if kind.softcap is not None:
        scores = torch.tanh(scores / kind.softcap) * kind.softcap
    scores = scores.masked_fill(~mask, -math.inf)
    return (scores.softmax(-1) @ value).to(query.dtype)


class SegmentAttention:
    """Causal attention within segments, plus all of the parent segment: training and prefill.

    `on_keys(layer, key, value)` receives each layer's packed keys and values, for caching.
    """

    def __init__(
        self,
        segments: list[Segment],
        on_keys: Callable[[int, torch.Tensor, torch.Tensor], None] | None = None,
    ) -> None:
        self._segments = segments
        self._lengths = [segment.length for segment in segments]
        self._on_keys = on_keys
        self._masks: dict[tuple[int, int, int | None], torch.Tensor] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: Kind
    ) -> torch.Tensor:
        queries = query.split(self._lengths, dim=1)
        keys = key.split(self._lengths, dim=1)
        values = value.split(self._lengths, dim=1)
        if self._on_keys is not None:
            self._on_keys(layer, key, value)
        outputs = []
        for segment, q, k, v in zip(self._segments, queries, keys, values, strict=True):
            if segment.parent is not None:
                k = torch.cat([keys[segment.parent], k], dim=1)
                v = torch.cat([values[segment.parent], v], dim=1)
            outputs.append(self._one(q, k, v, kind))
        return torch.cat(outputs, dim=1).transpose(0, 1)

    def _one(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kind: Kind) -> torch.Tensor:
        num_queries, num_keys = q.shape[1], k.shape[1]
        window = kind.window if kind.window is not None and kind.window < num_keys else None
        if kind.softcap is not None:
            return _dense(q, k, v, self._cached_mask(num_queries, num_keys, window, q.device), kind)
        causal = num_queries == num_keys and window is None
        mask = None if causal else self._cached_mask(num_queries, num_keys, window, q.device)
        return F.scaled_dot_product_attention(
            q.unsqueeze(0),
            k.unsqueeze(0),
            v.unsqueeze(0),
            attn_mask=mask,
            is_causal=causal,
            scale=kind.scale,
            enable_gqa=q.shape[0] != k.shape[0],
        ).squeeze(0)

    def _cached_mask(
        self, num_queries: int, num_keys: int, window: int | None, device: torch.device
    ) -> torch.Tensor:
        shape = (num_queries, num_keys, window)
        if shape not in self._masks:
            self._masks[shape] = _mask(*shape, device)
        return self._masks[shape]


class CacheBlock:
    """The static key/value cache of rows that decode together.

    `prefix` [layer] = (keys, values) [kv_heads, P, d] is shared by all rows; each row's own tokens
    are in keys/values [layer] [rows, kv_heads, capacity, d], `lengths` [rows] of them filled.
    """

    def __init__(
        self,
        prefix: list[tuple[torch.Tensor, torch.Tensor]] | None,
        own: list[tuple[torch.Tensor, torch.Tensor]],
        lengths: torch.Tensor,
    ) -> None:
        self.prefix = prefix
        self.prefix_length = prefix[0][0].shape[1] if prefix else 0
        self.keys = [key for key, _ in own]
        self.values = [value for _, value in own]
        self.lengths = lengths
        self.rows = len(lengths)
        self._biases: dict[int | None, torch.Tensor] = {}
        self.begin_step()

    def begin_step(self) -> None:
        """Makes room for one more token per row and forgets the last step's masks."""
        self._rows_index = torch.arange(self.rows, device=self.lengths.device)
        self._filled = int(self.lengths[: self.rows].max()) + 1 if self.rows else 0
        if self._filled > self.keys[0].shape[2]:
            room = max(64, self.keys[0].shape[2])
            self.keys = [F.pad(key, (0, 0, 0, room)) for key in self.keys]
            self.values = [F.pad(value, (0, 0, 0, room)) for value in self.values]
        self._biases.clear()

    def end_step(self) -> None:
        self.lengths[: self.rows] += 1

    def remove(self, row: int) -> None:
        """Drops a row by moving the last one into its place."""
        last = self.rows - 1
        if row != last:
            for cache in (*self.keys, *self.values):
                cache[row] = cache[last]
            self.lengths[row] = self.lengths[last]
        self.rows = last

    def _bias(self, window: int | None) -> torch.Tensor:
        """[rows, 1, 1, P + filled]: 0 where the row's new token may look, else -inf."""
        if window not in self._biases:
            device = self.lengths.device
            lengths = self.lengths[: self.rows].unsqueeze(1)
            own = torch.arange(self._filled, device=device)
            allowed = own <= lengths
            if window is not None:
                allowed &= own > lengths - window
            if self.prefix_length:
                at = torch.arange(self.prefix_length, device=device)
                seen = torch.ones(self.rows, self.prefix_length, dtype=torch.bool, device=device)
                if window is not None:
                    seen = at > self.prefix_length + lengths - window
                allowed = torch.cat([seen, allowed], dim=1)
            bias = torch.zeros(allowed.shape, device=device).masked_fill_(~allowed, -math.inf)
            self._biases[window] = bias[:, None, None, :]
        return self._biases[window]

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: Kind
    ) -> torch.Tensor:
        """One new token per row: query [rows, heads, d], key, value [rows, kv_heads, d]."""
        rows, heads, d = query.shape
        kv_heads = key.shape[1]
        at = self.lengths[:rows]
        self.keys[layer][self._rows_index, :, at] = key
        self.values[layer][self._rows_index, :, at] = value
        keys = self.keys[layer][:rows, :, : self._filled]
        values = self.values[layer][:rows, :, : self._filled]
        grouped = (query * kind.scale).view(rows, kv_heads, heads // kv_heads, d)
        scores = grouped @ keys.transpose(2, 3)
        if self.prefix is not None:
            prefix_key = self.prefix[layer][0]
            flat = grouped.transpose(0, 1).reshape(kv_heads, -1, d)
            shared = (flat @ prefix_key.transpose(1, 2)).view(
                kv_heads, rows, -1, self.prefix_length
            )
            scores = torch.cat([shared.transpose(0, 1), scores], dim=-1)
        scores = scores.float()
        if kind.softcap is not None:
            scores = torch.tanh(scores / kind.softcap) * kind.softcap
        weights = (scores + self._bias(kind.window)).softmax(-1).to(query.dtype)
        if self.prefix is None:
            out = weights @ values
        else:
            shared_weights = weights[..., : self.prefix_length].transpose(0, 1)
            out = weights[..., self.prefix_length :] @ values
            flat = shared_weights.reshape(kv_heads, -1, self.prefix_length) @ self.prefix[layer][1]
            out = out + flat.view(kv_heads, rows, -1, d).transpose(0, 1)
        return out.reshape(rows, heads, d)


class DecodeAttention:
    """One new token for every row of several blocks, packed block after block."""

    def __init__(self, blocks: list[CacheBlock]) -> None:
        self._blocks = blocks

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: Kind
    ) -> torch.Tensor:
        sizes = [block.rows for block in self._blocks]
        parts = (t.transpose(0, 1).split(sizes) for t in (query, key, value))
        outputs = [
            block.attend(layer, q, k, v, kind)
            for block, q, k, v in zip(self._blocks, *parts, strict=True)
        ]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)
