"""How training sequences are packed: shared prefixes once, no padding, bounded token counts."""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

# Below this many shared tokens the bookkeeping costs more than it saves.
MIN_SHARED = 16
_GROUP_LIMIT = 64


@dataclass
class Tree:
    """Sequences that share their first `len(prefix)` tokens; each branch is what follows it.

    `members[i]` is the caller's index of the sequence whose remainder is `branches[i]`. A tree of
    one sequence keeps it whole in `prefix`, with one empty branch.
    """

    owner: Hashable
    prefix: list[int]
    branches: list[list[int]]
    members: list[int]

    @property
    def num_tokens(self) -> int:
        return len(self.prefix) + sum(len(branch) for branch in self.branches)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    n = min(len(a), len(b))
    different = np.flatnonzero(np.asarray(a[:n]) != np.asarray(b[:n]))
    return int(different[0]) if len(different) else n


def build_trees(
    owners: Sequence[Hashable],
    sequences: Sequence[list[int]],
    *,
    share: bool = True,
    unshared: Collection[Hashable] = (),
    apart: Sequence[Hashable] | None = None,
) -> list[Tree]:
    """Groups sequences of one owner, unless it is in `unshared`, so that the fewest tokens are
    computed. Those that differ in `apart` share nothing; the trees of an owner stand together.

    Sequences are sorted, which puts common prefixes side by side; cutting the sorted list into runs
    that save the most tokens, (n - 1) * shared prefix each, is a small dynamic program.
    """
    by_owner: dict[Hashable, dict[Hashable, list[int]]] = {}
    for index, owner in enumerate(owners):
        kind = None if apart is None else apart[index]
        by_owner.setdefault(owner, {}).setdefault(kind, []).append(index)
    trees: list[Tree] = []
    for owner, kinds in by_owner.items():
        shares = share and owner not in unshared
        for members in kinds.values():
            order = sorted(members, key=lambda index: sequences[index]) if shares else members
            for start, stop, shared in _best_runs([sequences[index] for index in order], shares):
                group = order[start:stop]
                prefix = sequences[group[0]][:shared]
                branches = [sequences[index][shared:] for index in group]
                trees.append(Tree(owner, prefix, branches, group))
    return trees


def _best_runs(ordered: list[list[int]], share: bool) -> list[tuple[int, int, int]]:
    """(start, stop, shared tokens) of the runs with the largest saving."""
    n = len(ordered)
    if not share:
        return [(i, i + 1, len(ordered[i])) for i in range(n)]
    adjacent = [_common_prefix(ordered[i], ordered[i + 1]) for i in range(n - 1)]
    best = [0] * (n + 1)
    cut: list[tuple[int, int]] = [(0, 0)] * (n + 1)
    for stop in range(1, n + 1):
        best[stop], cut[stop] = best[stop - 1], (stop - 1, len(ordered[stop - 1]))
        shared = len(ordered[stop - 1])
        for start in range(stop - 2, max(-1, stop - 1 - _GROUP_LIMIT), -1):
            shared = min(shared, adjacent[start])
            if shared < MIN_SHARED:
                break
            saving = best[start] + (stop - start - 1) * shared
            if saving > best[stop]:
                best[stop], cut[stop] = saving, (start, shared)
    runs, stop = [], n
    while stop:
        start, shared = cut[stop]
        runs.append((start, stop, shared))
        stop = start
    return runs[::-1]


def micro_batches(trees: Sequence[Tree], max_tokens: int) -> list[list[Tree]]:
    """Trees in batches of at most `max_tokens` (one tree may exceed it alone), owners together.

    A tree over the limit is cut into smaller trees that repeat its prefix.
    """
    batches: list[list[Tree]] = []
    size = 0
    for tree in (part for whole in trees for part in _cut(whole, max_tokens)):
        if not batches or size + tree.num_tokens > max_tokens:
            batches.append([])
            size = 0
        batches[-1].append(tree)
        size += tree.num_tokens
    return batches


def _cut(tree: Tree, max_tokens: int) -> list[Tree]:
    if tree.num_tokens <= max_tokens or len(tree.branches) == 1:
        return [tree]
    parts: list[Tree] = []
    for branch, member in zip(tree.branches, tree.members, strict=True):
        if not parts or parts[-1].num_tokens + len(branch) > max_tokens:
            parts.append(Tree(tree.owner, tree.prefix, [], []))
        parts[-1].branches.append(branch)
        parts[-1].members.append(member)
    return parts


@dataclass
class Segment:
    """A run of packed tokens that attends causally to itself, and to all of its parent."""

    length: int
    parent: int | None


@dataclass
class Packing:
    """The flat form of a micro-batch.

    tokens, positions [T]; `segments` tile them in order; `owner_slices` (owner, start, stop) tile
    them too; `index[member]` [len(sequence)] maps a sequence's positions to packed ones.
    """

    tokens: np.ndarray
    positions: np.ndarray
    segments: list[Segment]
    owner_slices: list[tuple[Hashable, int, int]]
    index: dict[int, np.ndarray]


def pack(trees: Sequence[Tree]) -> Packing:
    tokens: list[int] = []
    positions: list[int] = []
    segments: list[Segment] = []
    owner_slices: list[tuple[Hashable, int, int]] = []
    index: dict[int, np.ndarray] = {}
    for tree in trees:
        start = len(tokens)
        parent: int | None = None
        if tree.prefix:
            tokens += tree.prefix
            positions += range(len(tree.prefix))
            parent = len(segments)
            segments.append(Segment(len(tree.prefix), None))
        prefix_index = np.arange(start, len(tokens))
        for branch, member in zip(tree.branches, tree.members, strict=True):
            branch_start = len(tokens)
            tokens += branch
            positions += range(len(tree.prefix), len(tree.prefix) + len(branch))
            if branch:
                segments.append(Segment(len(branch), parent))
            index[member] = np.concatenate([prefix_index, np.arange(branch_start, len(tokens))])
        if owner_slices and owner_slices[-1][0] == tree.owner:
            owner_slices[-1] = (tree.owner, owner_slices[-1][1], len(tokens))
        else:
            owner_slices.append((tree.owner, start, len(tokens)))
    return Packing(np.array(tokens), np.array(positions), segments, owner_slices, index)


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array).to(device)
