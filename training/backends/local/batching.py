"""How training sequences are packed: shared prefixes once, no padding, bounded token counts."""

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

# Below this many shared tokens the bookkeeping costs more than it saves.
MIN_SHARED = 16
_GROUP_LIMIT = 64


@dataclass
class Tree:
    """Sequences that share their first `len(prefix)` tokens; each branch is what follows it.

    `members[i]` is the caller's index of the sequence whose remainder is `branches[i]`. A tree of
    one sequence keeps it whole in `prefix`, with one empty branch. Where it `forks`, branches that
    stand together share further tokens: one question's answers, say, of many that all have the same
    worked examples before them.
    """

    owner: Hashable
    prefix: list[int]
    branches: list[list[int]]
    members: list[int]
    forks: bool = False

    @cached_property
    def limbs(self) -> list[tuple[int, int, int]]:
        """(start, stop, shared tokens) of branches that share more than the prefix, or are alone
        and share nothing."""
        if not self.forks:
            return [(i, i + 1, 0) for i in range(len(self.branches))]
        runs = _best_runs(self.branches, share=True)
        return [(start, stop, shared if stop > start + 1 else 0) for start, stop, shared in runs]

    @property
    def num_tokens(self) -> int:
        branches = sum(len(branch) for branch in self.branches)
        again = sum((stop - start - 1) * shared for start, stop, shared in self.limbs)
        return len(self.prefix) + branches - again


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
    forks: bool = False,
) -> list[Tree]:
    """Groups sequences of one owner, unless it is in `unshared`, so that the fewest tokens are
    computed. Those that differ in `apart` share nothing; the trees of an owner stand together.
    `forks`: branches may share further tokens.

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
            ordered = [sequences[index] for index in order]
            plans = [_best_runs(ordered, shares)]
            if forks and shares:
                # what saves less at once may save more with the forks
                plans.append(_longest_runs(ordered))
            trees += min(
                ([_tree(owner, order, ordered, run, forks and shares) for run in p] for p in plans),
                key=lambda planned: sum(tree.num_tokens for tree in planned),
            )
    return trees


def _tree(
    owner: Hashable,
    order: list[int],
    ordered: list[list[int]],
    run: tuple[int, int, int],
    forks: bool,
) -> Tree:
    start, stop, shared = run
    branches = [sequence[shared:] for sequence in ordered[start:stop]]
    return Tree(owner, ordered[start][:shared], branches, order[start:stop], forks)


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


def _longest_runs(ordered: list[list[int]]) -> list[tuple[int, int, int]]:
    """(start, stop, shared tokens) of the runs with as many sequences as share enough."""
    runs = []
    start, shared = 0, len(ordered[0])
    for stop in range(1, len(ordered) + 1):
        common = _common_prefix(ordered[stop - 1], ordered[stop]) if stop < len(ordered) else 0
        if common < MIN_SHARED:
            runs.append((start, stop, shared))
            start, shared = stop, len(ordered[stop]) if stop < len(ordered) else 0
        else:
            shared = min(shared, common)
    return runs


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
    # as if the parts did not fork
    cuts, size = [0], len(tree.prefix)
    for i, branch in enumerate(tree.branches):
        if i > cuts[-1] and size + len(branch) > max_tokens:
            cuts.append(i)
            size = len(tree.prefix)
        size += len(branch)
    spans = zip(cuts, [*cuts[1:], len(tree.branches)], strict=True)
    return [
        Tree(tree.owner, tree.prefix, tree.branches[i:j], tree.members[i:j], tree.forks)
        for i, j in spans
    ]


@dataclass
class Segment:
    """A run of packed tokens that attends causally to itself, and to all of its parent, that one's
    parent and so on."""

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
        for first, stop, shared in tree.limbs:
            above, above_index = parent, prefix_index
            if shared:
                limb_start = len(tokens)
                tokens += tree.branches[first][:shared]
                positions += range(len(tree.prefix), len(tree.prefix) + shared)
                above = len(segments)
                segments.append(Segment(shared, parent))
                above_index = np.concatenate([prefix_index, np.arange(limb_start, len(tokens))])
            for branch, member in zip(
                tree.branches[first:stop], tree.members[first:stop], strict=True
            ):
                branch_start = len(tokens)
                tokens += branch[shared:]
                positions += range(len(above_index), len(tree.prefix) + len(branch))
                if len(branch) > shared:
                    segments.append(Segment(len(branch) - shared, above))
                own_index = np.arange(branch_start, len(tokens))
                index[member] = np.concatenate([above_index, own_index])
        if owner_slices and owner_slices[-1][0] == tree.owner:
            owner_slices[-1] = (tree.owner, owner_slices[-1][1], len(tokens))
        else:
            owner_slices.append((tree.owner, start, len(tokens)))
    return Packing(np.array(tokens), np.array(positions), segments, owner_slices, index)


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array).to(device)
