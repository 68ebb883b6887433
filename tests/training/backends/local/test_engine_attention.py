"""The decode cache against attention written out for one row at a time."""

import math

import pytest
import torch

from training.backends.local.attention import CacheBlock, DecodeAttention, Kind

KV_HEADS, GROUPS, HEAD_DIM = 2, 3, 8


class Row:
    """The keys and values one row has seen, [tokens, kv_heads, d]."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self.keys, self.values = keys, values

    def attend(
        self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, kind: Kind
    ) -> torch.Tensor:
        self.keys = torch.cat([self.keys, key.unsqueeze(0)])
        self.values = torch.cat([self.values, value.unsqueeze(0)])
        out = torch.empty_like(query)
        first = 0 if kind.window is None else max(0, len(self.keys) - kind.window)
        for head in range(len(query)):
            keys, values = self.keys[first:, head // GROUPS], self.values[first:, head // GROUPS]
            scores = keys @ query[head] * kind.scale
            if kind.softcap is not None:
                scores = kind.softcap * torch.tanh(scores / kind.softcap)
            out[head] = scores.softmax(0) @ values
        return out


Block = tuple[CacheBlock, list[Row]]


def random(generator: torch.Generator, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=generator)


def shared_block(
    generator: torch.Generator, rows: int, prefix: int
) -> tuple[CacheBlock, list[Row]]:
    keys, values = (random(generator, KV_HEADS, prefix, HEAD_DIM) for _ in range(2))
    own = torch.zeros(KV_HEADS, rows, 4, HEAD_DIM)
    block = CacheBlock([(keys, values)], [(own.clone(), own.clone())], [0] * rows)
    return block, [Row(keys.transpose(0, 1), values.transpose(0, 1)) for _ in range(rows)]


def ragged_block(generator: torch.Generator, lengths: list[int]) -> Block:
    own = [torch.zeros(KV_HEADS, len(lengths), max(lengths), HEAD_DIM) for _ in range(2)]
    rows = []
    for slot, length in enumerate(lengths):
        filled = [random(generator, length, KV_HEADS, HEAD_DIM) for _ in range(2)]
        for cache, tensor in zip(own, filled, strict=True):
            cache[:, slot, :length] = tensor.transpose(0, 1)
        rows.append(Row(*filled))
    return CacheBlock(None, [(own[0], own[1])], lengths), rows


KINDS = [
    Kind(0.3, None, None),
    Kind(0.3, 5, None),
    Kind(0.3, 9, 2.0),
]


@pytest.mark.parametrize("kind", KINDS, ids=["full", "window", "window and softcap"])
@pytest.mark.parametrize("seed", range(3))
def test_rows_that_leave_do_not_change_the_others(kind: Kind, seed: int):
    """Rows leave one at a time and several at once, so that free slots stay for a while."""
    generator = torch.Generator().manual_seed(seed)
    blocks = [shared_block(generator, 9, 6), ragged_block(generator, [3, 1, 7, 4, 4])]
    slots_seen = set()
    while any(rows for _, rows in blocks):
        blocks = [(block, rows) for block, rows in blocks if rows]
        caches = [block for block, _ in blocks]
        for cache in caches:
            cache.begin_step()
        total = sum(len(rows) for _, rows in blocks)
        query = random(generator, total, KV_HEADS * GROUPS, HEAD_DIM)
        key, value = (random(generator, total, KV_HEADS, HEAD_DIM) for _ in range(2))
        got = DecodeAttention(caches).attend(
            0, query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1), kind
        )
        everyone = [row for _, rows in blocks for row in rows]
        for i, row in enumerate(everyone):
            wanted = row.attend(query[i], key[i], value[i], kind)
            torch.testing.assert_close(got[i], wanted, rtol=1e-5, atol=1e-5)
        for number, (cache, rows) in enumerate(blocks):
            cache.end_step()
            leaving = int(torch.randint(0, 3, (), generator=generator))
            gone = torch.randperm(len(rows), generator=generator)[:leaving].tolist()
            kept = [i for i in range(len(rows)) if i not in gone]
            if kept and gone:
                cache.keep(kept)
                assert cache.rows == len(kept)
                slots_seen.add(cache.keys[0].shape[1] - len(kept))
            blocks[number] = (cache, [rows[i] for i in kept])
    # gaps were left open at times and closed at others
    assert 0 in slots_seen
    assert len(slots_seen) > 1


def test_a_window_as_long_as_all_there_is_needs_no_mask():
    generator = torch.Generator().manual_seed(0)
    block, _ = shared_block(generator, 2, 6)
    block.begin_step()
    assert block._bias(None) is None and block._bias(7) is None
    bias = block._bias(6)
    assert bias is not None
    assert bias[:, 0].tolist() == [[-math.inf, *[0.0] * 6]] * 2
