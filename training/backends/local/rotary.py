"""Rotary frequencies that depend on a sequence's length, chosen sequence by sequence.

With LongRoPE (Phi-3, Phi-4; any family whose config asks for it) a sequence longer than
original_max_position_embeddings has other frequencies than a shorter one, at all of its positions.
transformers chooses by the largest position of a pass, which here holds many sequences. Dynamic NTK
scaling begins beyond max_position_embeddings, where the engine's context ends.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from training.backends.local.attention import AttentionPlan, SegmentAttention


def frequency_switches(config: Any) -> list[int]:
    """The lengths beyond which a sequence's frequencies are others, ascending."""
    parameters = getattr(config, "rope_parameters", None) or {}
    kinds = [parameters, *(value for value in parameters.values() if isinstance(value, dict))]
    return sorted({switch for kind in kinds if (switch := _switch(kind)) is not None})


def _switch(parameters: dict[str, Any]) -> int | None:
    if parameters.get("rope_type") != "longrope":
        return None
    return int(parameters["original_max_position_embeddings"])


class Rotaries:
    """The rotary modules of a packed body, which it replaces where the length matters."""

    def __init__(self, body: Any) -> None:
        self._found: list[_BySequence] = []
        # the parts of a model that was read from plain files are no modules, and LongRoPE is none
        # of what they can do
        for parent in list(body.modules()) if isinstance(body, nn.Module) else []:
            for name, child in list(parent.named_children()):
                config = getattr(child, "config", None)
                if hasattr(child, "rope_type") and frequency_switches(config):
                    self._found.append(_BySequence(child))
                    setattr(parent, name, self._found[-1])

    @contextmanager
    def choosing(self, positions_T: torch.Tensor, plan: AttentionPlan) -> Iterator[None]:
        """Inside, positions [1, T] are those of this pass."""
        if not self._found:
            yield
            return
        lengths_T = sequence_lengths(positions_T, plan)
        for rotary in self._found:
            rotary.lengths_T = lengths_T
        try:
            yield
        finally:
            for rotary in self._found:
                rotary.lengths_T = None


def sequence_lengths(positions_T: torch.Tensor, plan: AttentionPlan) -> torch.Tensor:
    """[T] How long the sequence is that a token belongs to: so far while decoding; of a tree, its
    longest one."""
    if not isinstance(plan, SegmentAttention):
        return positions_T + 1
    # of trees, by their first segment
    longest: dict[int, int] = {}
    roots = [above[0] if above else at for at, above in enumerate(plan.above)]
    for at, root in enumerate(roots):
        length = sum(plan.segments[i].length for i in (*plan.above[at], at))
        longest[root] = max(longest.get(root, 0), length)
    of_segment = [longest[root] for root in roots]
    counts = torch.tensor([segment.length for segment in plan.segments])
    return torch.tensor(of_segment).repeat_interleave(counts).to(positions_T.device)


class _BySequence(nn.Module):
    """Calls the model's own module for short and long sequences, and takes of each its own."""

    def __init__(self, own: Any) -> None:
        super().__init__()
        self.own = own
        self.lengths_T: torch.Tensor | None = None

    def forward(self, x: torch.Tensor, position_ids: torch.Tensor, **kind: Any) -> Any:
        parameters = self.own.config.rope_parameters
        layer_type = kind.get("layer_type")
        switch = _switch(parameters if layer_type is None else parameters[layer_type])
        if self.lengths_T is None or switch is None:
            return self.own(x, position_ids, **kind)
        is_long_T = self.lengths_T > switch
        if is_long_T.all() or not is_long_T.any():
            return self.own(x, position_ids, **kind)
        # the module looks at the largest position alone
        last = torch.full_like(position_ids[..., :1], switch)
        long = self.own(x, torch.cat([position_ids, last], dim=-1), **kind)
        short = self.own(x, position_ids.clamp(max=switch - 1), **kind)
        chosen = is_long_T.unsqueeze(-1)
        return tuple(
            torch.where(chosen, a[..., :-1, :], b) for a, b in zip(long, short, strict=True)
        )
