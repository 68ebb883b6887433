"""Attention over packed tokens: trees of segments for training, cached blocks for sampling.

The base model's own attention layers compute queries, keys and values [1, heads, T, head_dim] for
the packed tokens of a pass and hand them to `attend`; the plan of the pass knows which tokens may
see which. This replaces masks of size T x T and lets the sampler keep its caches outside the model.
Models whose layers do something else run in rows instead (bodies.py); loading finds out which do.
"""

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
import torch.nn.functional as F

from training.backends.local.batching import Segment

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


# What layers pass on besides: positions are in the queries and keys already, and nothing is cached.
_WITHOUT_EFFECT = frozenset({"is_causal", "position_ids", "cache_position", "cu_seq_lens_q"})


def _asks(value: Any) -> bool:
    return (
        value is not None and value is not False and not (isinstance(value, float) and value == 0)
    )


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
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The function registered with transformers' AttentionInterface under ATTENTION_NAME.

    Raises ValueError for anything a layer asks for that is not computed here.
    """
    if attention_mask is not None:
        raise ValueError("a mask of the model's own")
    if not (getattr(module, "is_causal", True) and others.get("is_causal") in (None, True)):
        raise ValueError("attention that is not causal")
    asked = sorted(k for k, v in others.items() if k not in _WITHOUT_EFFECT and _asks(v))
    if asked:
        raise ValueError(f"attention with {', '.join(asked)}")
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
    """Causal attention within segments, plus all of those above: training and prefill.

    `cache` receives what the prompts leave behind for decoding.
    """

    def __init__(self, segments: list[Segment], cache: Any = None) -> None:
        self.segments = segments
        self.cache = cache
        self._lengths = [segment.length for segment in segments]
        # of each segment those above it, from the first
        self.above: list[list[int]] = []
        for segment in segments:
            parent = segment.parent
            self.above.append([] if parent is None else [*self.above[parent], parent])
        self._masks: dict[tuple[int, int, int | None], torch.Tensor] = {}

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: Kind
    ) -> torch.Tensor:
        queries = query.split(self._lengths, dim=1)
        keys = key.split(self._lengths, dim=1)
        values = value.split(self._lengths, dim=1)
        if self.cache is not None:
            self.cache.keep(layer, key, value)
        outputs = []
        for above, q, k, v in zip(self.above, queries, keys, values, strict=True):
            if above:
                k = torch.cat([*(keys[at] for at in above), k], dim=1)
                v = torch.cat([*(values[at] for at in above), v], dim=1)
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

    `prefix` [layer] = (keys, values) [kv_heads, P, d] is shared by all rows. A row's own tokens are
    in its slot of keys/values [layer] [kv_heads, slots, capacity, d]; slots of rows that have left
    compute along until a quarter of them is free, because closing the gap copies the whole cache.
    """

    def __init__(
        self,
        prefix: list[tuple[torch.Tensor, torch.Tensor]] | None,
        own: list[tuple[torch.Tensor, torch.Tensor]],
        lengths: list[int],
    ) -> None:
        # keys turned, as the products read them
        self.prefix = prefix and [(key.transpose(1, 2), value) for key, value in prefix]
        self.prefix_length = prefix[0][0].shape[1] if prefix else 0
        self.keys = [key for key, _ in own]
        self.values = [value for _, value in own]
        self._lengths = list(lengths)
        self._slots = list(range(len(lengths)))
        self._gather: tuple[torch.Tensor, torch.Tensor] | None = None
        self._biases: dict[int | None, torch.Tensor | None] = {}

    @property
    def rows(self) -> int:
        return len(self._slots)

    def begin_step(self) -> None:
        """Makes room for one more token per row and forgets the last step's masks."""
        device = self.keys[0].device
        self._filled = max(self._lengths) + 1
        # rows of one group are equally long: no index and no mask then
        self._ragged = min(self._lengths) + 1 < self._filled
        if self._ragged:
            self._every_slot = torch.arange(len(self._lengths), device=device)
            self._at = torch.tensor(self._lengths, device=device)
        if self._filled > self.keys[0].shape[2]:
            room = max(64, self.keys[0].shape[2])
            self.keys = [F.pad(key, (0, 0, 0, room)) for key in self.keys]
            self.values = [F.pad(value, (0, 0, 0, room)) for value in self.values]
        self._biases.clear()

    def end_step(self) -> None:
        self._lengths = [length + 1 for length in self._lengths]

    def keep(self, rows: list[int]) -> None:
        """Drops all rows but these, given in ascending order."""
        self._slots = [self._slots[row] for row in rows]
        device = self.keys[0].device
        if 4 * len(self._slots) <= 3 * len(self._lengths):
            index = torch.tensor(self._slots, device=device)
            self.keys = [key[:, index] for key in self.keys]
            self.values = [value[:, index] for value in self.values]
            self._lengths = [self._lengths[slot] for slot in self._slots]
            self._slots = list(range(len(self._slots)))
            self._gather = None
        elif len(self._slots) < len(self._lengths):
            # a free slot computes what row 0 does
            row_of_slot = {slot: row for row, slot in enumerate(self._slots)}
            rows_of_slots = [row_of_slot.get(slot, 0) for slot in range(len(self._lengths))]
            self._gather = (
                torch.tensor(rows_of_slots, device=device),
                torch.tensor(self._slots, device=device),
            )

    def _bias(self, window: int | None) -> torch.Tensor | None:
        """[slots, 1, P + filled]: 0 where the slot's new token may look, else -inf.

        None when every slot may look everywhere.
        """
        if window not in self._biases:
            self._biases[window] = self._make_bias(window)
        return self._biases[window]

    def _make_bias(self, window: int | None) -> torch.Tensor | None:
        if not self._ragged and (window is None or window >= self.prefix_length + self._filled):
            return None
        device = self.keys[0].device
        lengths = torch.tensor(self._lengths, device=device).unsqueeze(1)
        own = torch.arange(self._filled, device=device)
        allowed = own <= lengths
        if window is not None:
            allowed &= own > lengths - window
        if self.prefix_length:
            at = torch.arange(self.prefix_length, device=device)
            seen = torch.ones(len(lengths), self.prefix_length, dtype=torch.bool, device=device)
            if window is not None:
                seen = at > self.prefix_length + lengths - window
            allowed = torch.cat([seen, allowed], dim=1)
        bias = torch.zeros(allowed.shape, device=device).masked_fill_(~allowed, -math.inf)
        return bias.unsqueeze(1)

    def _store(self, cache: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
        """Appends [kv_heads, slots, d]; what is filled now, [kv_heads * slots, filled, d]."""
        if self._ragged:
            cache[:, self._every_slot, self._at] = new
        else:
            cache.select(2, self._filled - 1).copy_(new)
        return cache.view(-1, cache.shape[2], cache.shape[3]).narrow(1, 0, self._filled)

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: Kind
    ) -> torch.Tensor:
        """One new token per row: query [heads, rows, d], key, value [kv_heads, rows, d] -> [rows,
        heads, d].

        The fewer operations the better: each takes some microseconds, however small it is.
        """
        if self._gather is not None:
            rows_of_slots = self._gather[0]
            query, key, value = (t.index_select(1, rows_of_slots) for t in (query, key, value))
        keys = self._store(self.keys[layer], key)
        values = self._store(self.values[layer], value)
        alone = query.shape[1] == 1 and self.prefix is None and kind.softcap is None
        out = (self._alone if alone else self._together)(layer, query, keys, values, kind)
        return out if self._gather is None else out.index_select(0, self._gather[1])

    def _alone(
        self,
        _layer: int,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        kind: Kind,
    ) -> torch.Tensor:
        """A single row: its heads are as queries of one length."""
        heads, _, d = query.shape
        bias = self._bias(kind.window)
        out = F.scaled_dot_product_attention(
            query.reshape(len(keys), 1, -1, d),
            keys.unsqueeze(1),
            values.unsqueeze(1),
            attn_mask=None if bias is None else bias.unsqueeze(0).to(query.dtype),
            scale=kind.scale,
        )
        return out.reshape(1, heads, -1)

    def _together(
        self,
        layer: int,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        kind: Kind,
    ) -> torch.Tensor:
        """In the order [kv_heads, slots, ...] the products with the prefix and those with each
        slot's own tokens are views of one another."""
        heads, slots, d = query.shape
        kv_heads, prefix = len(keys) // slots, self.prefix_length
        groups = heads // kv_heads
        scaled = query.new_empty(kv_heads, slots, groups, d)
        torch.mul(query.view(kv_heads, groups, slots, d).transpose(1, 2), kind.scale, out=scaled)
        by_slot = (kv_heads * slots, groups, -1)
        by_head = (kv_heads, slots * groups, -1)
        scores = torch.bmm(scaled.view(by_slot), keys.transpose(1, 2))
        scores = scores.view(kv_heads, slots, groups, -1)
        if self.prefix is None:
            out = torch.bmm(self._softmax(scores, kind).view(by_slot), values)
        else:
            prefix_keys, prefix_values = self.prefix[layer]
            shared = torch.bmm(scaled.view(by_head), prefix_keys)
            scores = torch.cat([shared.view(kv_heads, slots, groups, -1), scores], dim=-1)
            of_prefix, of_own = self._softmax(scores, kind).split([prefix, keys.shape[1]], dim=-1)
            out = torch.bmm(of_own.view(by_slot), values)
            out.view(by_head).baddbmm_(of_prefix.view(by_head), prefix_values)
        # values may be narrower than keys
        return out.view(kv_heads, slots, groups, -1).transpose(0, 1).reshape(slots, heads, -1)

    def _softmax(self, scores: torch.Tensor, kind: Kind) -> torch.Tensor:
        dtype = scores.dtype
        if kind.softcap is not None:
            scores = torch.tanh(scores.float() / kind.softcap) * kind.softcap
        if (bias := self._bias(kind.window)) is not None:
            scores = scores + bias
        return scores.softmax(-1, dtype=torch.float32).to(dtype)


class PackedCache:
    """The keys and values [kv_heads, T, d] of a packed prefill, layer by layer, to start rows from.

    `index` is always where a prompt's tokens, or some of them, stand in that prefill.
    """

    def __init__(self) -> None:
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    def keep(self, layer: int, key: torch.Tensor, value: torch.Tensor) -> None:
        if layer != len(self._layers):
            raise ValueError("layers that attend several times or not in their order")
        self._layers.append((key, value))

    def group_block(self, rows: int, index: torch.Tensor) -> CacheBlock:
        """For rows that go on from one prompt, which they share."""
        own = [
            (
                k.new_zeros(k.shape[0], rows, 64, k.shape[2]),
                v.new_zeros(v.shape[0], rows, 64, v.shape[2]),
            )
            for k, v in self._layers
        ]
        return CacheBlock(self._entries(index), own, [0] * rows)

    def single_blocks(
        self, prefix: torch.Tensor | None, indices: Sequence[torch.Tensor]
    ) -> list[tuple[list[int], CacheBlock]]:
        """For rows with a prompt each: which of them a block holds, and it. One block is enough:
        each keeps what follows the prefix in its own slot, ragged."""
        lengths = [len(i) for i in indices]
        capacity = max(lengths) + 64
        own = []
        for layer in self._layers:
            padded = []
            for t in layer:
                rows = t.new_zeros(t.shape[0], len(indices), capacity, t.shape[2])
                for row, index in enumerate(indices):
                    rows[:, row, : len(index)] = t[:, index]
                padded.append(rows)
            own.append((padded[0], padded[1]))
        shared = None if prefix is None else self._entries(prefix)
        return [(list(range(len(indices))), CacheBlock(shared, own, lengths))]

    def _entries(self, index: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        return [(k[:, index].contiguous(), v[:, index].contiguous()) for k, v in self._layers]


class DecodeAttention:
    """One new token for every row of several blocks, packed block after block."""

    def __init__(self, blocks: list[Any]) -> None:
        self.blocks = blocks

    def attend(
        self, layer: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: Kind
    ) -> torch.Tensor:
        if len(self.blocks) == 1:
            return self.blocks[0].attend(layer, query, key, value, kind)
        sizes = [block.rows for block in self.blocks]
        parts = (t.split(sizes, dim=1) for t in (query, key, value))
        return torch.cat(
            [
                block.attend(layer, q, k, v, kind)
                for block, q, k, v in zip(self.blocks, *parts, strict=True)
            ]
        )
