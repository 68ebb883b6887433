"""Which tokens follow from logits: draws from seeded numbers, and the most likely ones."""

import math

import numpy as np
import torch

from training.api import TopkLogprobs

_EMPTY_LOGPROB = -99999.0


def sample_tokens(
    logits: torch.Tensor,
    *,
    temperatures: list[float],
    top_ks: list[int],
    top_ps: list[float],
    min_ps: list[float],
    uniforms: list[float],
    masks: list[torch.Tensor | None],
) -> torch.Tensor:
    """Token ids [rows] by inverting each row's distribution function at its uniform number.

    Temperature first, then the mask of allowed tokens, then min-p (tokens with at least that share
    of the likeliest one's probability), then top-k, then top-p (the smallest set of most likely
    tokens with at least that mass). Temperature 0 takes the most likely allowed token, and so does
    one below the smallest normal float32, 1.2e-38.
    """
    limits = torch.finfo(torch.float32)
    greedy_rows = [t < limits.tiny for t in temperatures]
    if any(mask is not None for mask in masks):
        logits = logits.clone()
        for row, mask in enumerate(masks):
            if mask is not None:
                logits[row].masked_fill_(~mask.to(logits.device), -math.inf)
    if all(greedy_rows):
        return logits.argmax(-1)
    if any(t != 1 for t in temperatures):
        # beyond float32 a temperature is infinite, which would make NaN of a masked token's -inf
        scales = [
            1.0 if greedy else min(t, limits.max)
            for t, greedy in zip(temperatures, greedy_rows, strict=True)
        ]
        scale = torch.tensor(scales, device=logits.device).unsqueeze(1)
        # 0 at the largest: a tiny scale makes -inf of the others, not inf of several
        weights = torch.softmax((logits - logits.amax(-1, keepdim=True)) / scale, dim=-1)
    else:
        weights = torch.softmax(logits, dim=-1)
    vocab = weights.shape[1]
    for row, p in enumerate(min_ps):
        if p > 0:
            weights[row] *= weights[row] >= p * weights[row].max()
    for row, (k, p) in enumerate(zip(top_ks, top_ps, strict=True)):
        if 0 < k < vocab or p < 1:
            weights[row] = _truncate(weights[row], k if k > 0 else vocab, p)
    chosen = _invert(weights, torch.tensor(uniforms, dtype=torch.float64, device=logits.device))
    if any(greedy_rows):
        greedy = torch.tensor(greedy_rows, device=logits.device)
        chosen = torch.where(greedy, logits.argmax(-1), chosen)
    return chosen


def _truncate(weights: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    ordered, order = weights.sort(descending=True, stable=True)
    ordered = ordered[:top_k]
    if top_p < 1:
        before = ordered.double().cumsum(0) - ordered
        kept = before < top_p * ordered.double().sum()
        # however small the product is, the most likely token stays
        kept[0] = True
        ordered = ordered * kept
    return torch.zeros_like(weights).index_copy_(0, order[: len(ordered)], ordered)


def _invert(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """Index of the first cumulative weight above u * total, exact in float64 by two levels."""
    rows, vocab = weights.shape
    width = 256
    if vocab % width:
        weights = torch.nn.functional.pad(weights, (0, -vocab % width))
    padded = weights.view(rows, -1, width)
    sums = padded.sum(-1, dtype=torch.float64).cumsum(1)
    target = (uniforms * sums[:, -1]).unsqueeze(1)
    block = torch.searchsorted(sums, target, right=True).clamp_(max=sums.shape[1] - 1)
    before = torch.where(block > 0, sums.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = padded[torch.arange(rows, device=weights.device), block.squeeze(1)]
    cumulative = inside.double().cumsum(1) + before
    # rounding may put the target past the last token with weight
    last = (inside > 0).double().mul(torch.arange(1, width + 1, device=weights.device)).argmax(1)
    at = torch.searchsorted(cumulative, target, right=True).squeeze(1)
    return block.squeeze(1) * width + torch.minimum(at, last)


def top_k(logprobs: torch.Tensor, k: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and logprobs of the k most likely tokens, for each row of logprobs [rows, vocabulary]."""
    values, ids = logprobs.topk(min(k, logprobs.shape[-1]), dim=-1)
    return [
        (i.astype(np.int32), v.astype(np.float32))
        for i, v in zip(ids.cpu().numpy(), values.cpu().numpy(), strict=True)
    ]


def no_topk(k: int) -> tuple[np.ndarray, np.ndarray]:
    """For a first token, which nothing predicts."""
    return np.zeros(k, dtype=np.int32), np.full(k, _EMPTY_LOGPROB, dtype=np.float32)


def stack_topk(parts: list[tuple[np.ndarray, np.ndarray]]) -> TopkLogprobs:
    return TopkLogprobs(np.stack([i for i, _ in parts]), np.stack([v for _, v in parts]))
