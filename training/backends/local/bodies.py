"""How the layers of a base model run: on packed tokens, or as rows of whole sequences.

Packed is the fast way: the tokens of all sequences one after another, a shared prefix once, and
attention by attention.py. It needs a model whose tokens meet in attention alone, through
transformers' AttentionInterface. Layers that carry a state from token to token (convolutions,
linear attention), or that attend in a way of their own, run in rows: whole sequences, padded on the
right where that changes nothing, through the model's own attention and its own cache. What a model
needs is found out when it is loaded (comparison.py).
"""

import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import torch

from training.backends.local.attention import (
    AttentionPlan,
    DecodeAttention,
    PackedCache,
    SegmentAttention,
)
from training.backends.local.linear import LoraPass, PassHolder
from training.backends.local.rotary import Rotaries


class DecodeBlock(Protocol):
    """Rows that decode together, with what they have seen."""

    @property
    def rows(self) -> int: ...

    def begin_step(self) -> None: ...

    def end_step(self) -> None: ...

    def keep(self, rows: list[int]) -> None:
        """Drops all rows but these, given in ascending order."""
        ...


class RowStarts(Protocol):
    """What a prefill leaves behind, to start rows from. `index` is where a prompt's tokens stand in
    the prefill."""

    def group_block(self, rows: int, index: torch.Tensor) -> DecodeBlock:
        """For rows that go on from one prompt."""
        ...

    def single_blocks(
        self, prefix: torch.Tensor | None, indices: Sequence[torch.Tensor]
    ) -> Sequence[tuple[list[int], DecodeBlock]]:
        """For one row from each prompt: blocks, and which of the prompts each of them holds."""
        ...


class Body(Protocol):
    """Embedding, layers and last norm: packed tokens [T] to hidden states [T, hidden].

    `plan` is a SegmentAttention, with what new_cache() gave where rows go on from it, or a
    DecodeAttention. Where shares_prefixes is False, segments must be whole sequences.
    """

    shares_prefixes: bool

    def __call__(
        self, tokens_T: torch.Tensor, positions_T: torch.Tensor, plan: AttentionPlan
    ) -> torch.Tensor: ...

    def new_cache(self) -> Any: ...


class PackedBody:
    """The model's own code on packed tokens, with attention.py for its attention."""

    shares_prefixes = True

    def __init__(self, body: Any, rotaries: Rotaries) -> None:
        self._body = body
        self._rotaries = rotaries

    def __call__(
        self, tokens_T: torch.Tensor, positions_T: torch.Tensor, plan: AttentionPlan
    ) -> torch.Tensor:
        with self._rotaries.choosing(positions_T, plan):
            out = self._body(
                input_ids=tokens_T.unsqueeze(0),
                position_ids=positions_T.unsqueeze(0),
                use_cache=False,
                plan=plan,
            )
        return out.last_hidden_state[0]

    def new_cache(self) -> PackedCache:
        return PackedCache()


def limits_time_steps(body: Any) -> bool:
    """Whether layers of Mamba 2 bound their time steps (Nemotron-H). transformers does that for
    whole sequences and not for single tokens: too little a difference to be seen in a few."""
    limits = [getattr(module, "time_step_limit", None) for module in body.modules()]
    return any(limit and tuple(limit) != (0.0, math.inf) for limit in limits)


class RowsBody:
    """The model's own code, attention and cache on rows of whole sequences.

    `padding`: a batch of rows computes at most this many times its tokens; 1 puts only sequences of
    one length together, for models whose values depend on the length of the batch.
    `cached`: decode with the model's cache; without it every step computes its rows anew.
    `length_kind`: sequences of different kinds have other rotary frequencies and are kept apart.
    """

    shares_prefixes = False

    def __init__(
        self,
        body: Any,
        holder: PassHolder,
        *,
        padding: float,
        cached: bool,
        length_kind: Callable[[int], int],
    ) -> None:
        self._body = body
        self._holder = holder
        self._padding = padding
        self._cached = cached
        self._length_kind = length_kind
        parameters = inspect.signature(body.forward).parameters
        names = ("past_key_values", "cache_params")
        # with neither, the comparison at load finds that it cannot be cached
        self._cache_name = next((name for name in names if name in parameters), "")

    def new_cache(self) -> "RowsCache":
        return RowsCache()

    def __call__(
        self, tokens_T: torch.Tensor, positions_T: torch.Tensor, plan: AttentionPlan
    ) -> torch.Tensor:
        whole = self._holder.current
        try:
            if isinstance(plan, DecodeAttention):
                return self._decode(tokens_T, plan.blocks, whole)
            assert isinstance(plan, SegmentAttention)
            assert all(segment.parent is None for segment in plan.segments)
            lengths = [segment.length for segment in plan.segments]
            if plan.cache is None:
                return self._pass(tokens_T, lengths, whole)
            return self._prefill(tokens_T, lengths, whole, plan.cache)
        finally:
            self._holder.current = whole

    def _run(self, tokens: torch.Tensor, lora: LoraPass, **settings: Any) -> Any:
        self._holder.current = lora
        return self._body(input_ids=tokens, **settings)

    def _pass(self, tokens_T: torch.Tensor, lengths: list[int], whole: LoraPass) -> torch.Tensor:
        parts, places = [], []
        for index, counts in self._batches(lengths, whole):
            index = index.to(tokens_T.device)
            out = self._run(tokens_T[index], whole.padded(index), use_cache=False)
            real = torch.arange(index.shape[1]) < torch.tensor(counts).unsqueeze(1)
            real = real.to(tokens_T.device)
            parts.append(out.last_hidden_state[real])
            places.append(index[real])
        back = torch.empty_like(places[0].new_empty(len(tokens_T)))
        back[torch.cat(places)] = torch.arange(len(tokens_T), device=tokens_T.device)
        return torch.cat(parts)[back]

    def _batches(
        self, lengths: list[int], whole: LoraPass
    ) -> Iterator[tuple[torch.Tensor, list[int]]]:
        """Rows that are computed together: where their tokens [rows, L] stand, padded with each
        row's last, and their lengths. Rows of one adapter stand together."""
        starts = [sum(lengths[:i]) for i in range(len(lengths))]
        slice_of = [
            next((n for n, s in enumerate(whole.slices) if s.start <= start < s.stop), -1)
            for start in starts
        ]
        kinds = [self._length_kind(length) for length in lengths]
        order = sorted(range(len(lengths)), key=lambda i: (kinds[i], slice_of[i], lengths[i]))
        batch: list[int] = []
        for i in order:
            together = [lengths[j] for j in (*batch, i)]
            padded = max(together) * len(together)
            if batch and (padded > self._padding * sum(together) or kinds[i] != kinds[batch[0]]):
                yield _padded_index(batch, starts, lengths)
                batch = []
            batch.append(i)
        yield _padded_index(batch, starts, lengths)

    def _prefill(
        self, tokens_T: torch.Tensor, lengths: list[int], whole: LoraPass, cache: "RowsCache"
    ) -> torch.Tensor:
        """Prompt by prompt: what a layer remembers would otherwise be that of the padding."""
        if not self._cached:
            for start, tokens in _parts(tokens_T, lengths):
                cache.by_start[start] = _Seen(tokens.unsqueeze(0))
            return self._pass(tokens_T, lengths, whole)
        parts = []
        for start, tokens in _parts(tokens_T, lengths):
            lora = whole.rows(start, start + len(tokens))
            out = self._run(tokens.unsqueeze(0), lora, use_cache=True)
            parts.append(out.last_hidden_state[0])
            cache.by_start[start] = getattr(out, self._cache_name)
        return torch.cat(parts)

    def _decode(
        self, tokens_T: torch.Tensor, blocks: Sequence["RowsBlock"], whole: LoraPass
    ) -> torch.Tensor:
        parts = []
        for block, (start, tokens) in zip(
            blocks, _parts(tokens_T, [block.rows for block in blocks]), strict=True
        ):
            lora = whole.rows(start, start + len(tokens))
            if isinstance(block.cache, _Seen):
                seen = block.cache.append(tokens)
                out = self._run(seen, lora.spread(seen.shape[1]), use_cache=False)
            else:
                settings = {self._cache_name: block.cache, "use_cache": True}
                out = self._run(tokens.unsqueeze(1), lora, **settings)
            parts.append(out.last_hidden_state[:, -1])
        return torch.cat(parts)


def _parts(tokens_T: torch.Tensor, lengths: list[int]) -> Iterator[tuple[int, torch.Tensor]]:
    """Consecutive parts of `tokens_T`, each with its start."""
    start = 0
    for length in lengths:
        yield start, tokens_T[start : start + length]
        start += length


def _padded_index(
    rows: list[int], starts: list[int], lengths: list[int]
) -> tuple[torch.Tensor, list[int]]:
    counts = [lengths[row] for row in rows]
    first = torch.tensor([starts[row] for row in rows]).unsqueeze(1)
    last = first + torch.tensor(counts).unsqueeze(1) - 1
    return torch.minimum(first + torch.arange(max(counts)), last), counts


class _Seen:
    """In place of a cache: the tokens [rows, n] of rows of one length."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self._tokens = tokens

    def append(self, tokens: torch.Tensor) -> torch.Tensor:
        self._tokens = torch.cat([self._tokens, tokens.unsqueeze(1)], dim=1)
        return self._tokens

    def reorder_cache(self, rows: torch.Tensor) -> None:
        self._tokens = self._tokens[rows]

    def joined(self, others: "list[_Seen]") -> "_Seen":
        return _Seen(torch.cat([self._tokens, *(other._tokens for other in others)]))


class RowsBlock:
    """Rows of one length with one cache: transformers', or _Seen."""

    def __init__(self, cache: Any, rows: int) -> None:
        self.cache = cache
        self.rows = rows

    def begin_step(self) -> None:
        pass

    def end_step(self) -> None:
        pass

    def keep(self, rows: list[int]) -> None:
        self.cache.reorder_cache(torch.tensor(rows))
        self.rows = len(rows)


class RowsCache:
    """The caches of prompts that were prefilled one by one, each to be used once."""

    def __init__(self) -> None:
        self.by_start: dict[int, Any] = {}

    def group_block(self, rows: int, index: torch.Tensor) -> RowsBlock:
        cache = self.by_start.pop(int(index[0]))
        cache.reorder_cache(torch.zeros(rows, dtype=torch.long))
        return RowsBlock(cache, rows)

    def single_blocks(
        self, prefix: torch.Tensor | None, indices: Sequence[torch.Tensor]
    ) -> list[tuple[list[int], RowsBlock]]:
        """A block for all prompts of one length."""
        assert prefix is None
        members_of: dict[int, list[int]] = {}
        for member, index in enumerate(indices):
            members_of.setdefault(len(index), []).append(member)
        return [
            (members, RowsBlock(self._join([indices[m] for m in members]), len(members)))
            for members in members_of.values()
        ]

    def _join(self, indices: list[torch.Tensor]) -> Any:
        first, *others = (self.by_start.pop(int(index[0])) for index in indices)
        if not others:
            return first
        if isinstance(first, _Seen):
            return first.joined(others)
        for layer, *same in zip(first.layers, *(other.layers for other in others), strict=True):
            vars(layer).update(_joined([vars(layer), *(vars(part) for part in same)]))
        return first


def _joined(values: list[Any]) -> Any:
    """Tensors along their first axis, inside of dicts too; anything else has to be equal."""
    first = values[0]
    if isinstance(first, torch.Tensor) and first.ndim:
        return torch.cat(values)
    if isinstance(first, dict):
        return {key: _joined([value[key] for value in values]) for key in first}
    assert all(value == first for value in values), "caches of one length differ"
    return first
