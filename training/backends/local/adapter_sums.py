"""Adapters made of others without training: weighted sums, exact because ranks are concatenated."""

import math
from collections.abc import Sequence

import torch

from training.backends.local.adapters import Adapter, AdapterConfig
from training.backends.local.checkpoints import load_adapter, read_state
from training.backends.local.decoder import Decoder


@torch.no_grad()
def summed(terms: Sequence[tuple[str, float]], decoder: Decoder) -> Adapter:
    """The adapter whose delta is the sum of weight * delta over adapter folders and weights.

    Its rank is the sum of theirs; layers that a folder lacks get nothing from it. Raises ValueError
    for no terms, a weight that is not finite, and folders of another base model.
    """
    if not terms:
        raise ValueError("the sum of adapters has no terms: at least one folder is needed")
    for path, weight in terms:
        if not math.isfinite(weight):
            raise ValueError(f"{path}: its weight in the sum is {weight}; a finite one is needed")
    parts = [
        (load_adapter(read_state(path), decoder, with_optimizer=False), weight)
        for path, weight in terms
    ]
    rank = sum(part.config.rank for part, _ in parts)
    covered = {path for part, _ in parts for path in part.config.targets}
    targets = tuple(path for path in decoder.layers if path in covered)
    out = Adapter(AdapterConfig(rank, alpha=float(rank), targets=targets), decoder)
    out.flat.zero_()
    start = 0
    for part, weight in parts:
        ranks = slice(start, start + part.config.rank)
        start = ranks.stop
        for path, low_rank in part.layers.items():
            out.layers[path].a[ranks].copy_(low_rank.a)
            out.layers[path].b[:, ranks].copy_(low_rank.b * (weight * part.config.scale))
    return out


@torch.no_grad()
def with_trained_ranks_scaled(path: str, weight: float, decoder: Decoder) -> Adapter:
    """An adapter's folder with what was trained on top of its frozen ranks times `weight`."""
    if not math.isfinite(weight):
        raise ValueError(f"{path}: its weight is {weight}; a finite one is needed")
    adapter = load_adapter(read_state(path), decoder, with_optimizer=False)
    for low_rank in adapter.layers.values():
        low_rank.b[:, adapter.config.frozen_rank :].mul_(weight)
    return adapter
