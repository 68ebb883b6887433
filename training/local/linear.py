"""The frozen linear layers of the base model and the low-rank products added to them.

A pass works on packed tokens [T, in] sorted by adapter, so that every adapter owns one slice. The
products of all adapters and their gradients are written out in one autograd function: gradients go
straight into each adapter's flat gradient buffer, and only the layer's input is kept.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class LowRank(NamedTuple):
    """Views into one adapter for one layer: A [r, in], B [out, r] and their gradients."""

    a: torch.Tensor
    b: torch.Tensor
    grad_a: torch.Tensor | None
    grad_b: torch.Tensor | None
    scale: float


class LoraSlice(NamedTuple):
    start: int
    stop: int
    layers: dict[str, LowRank]


@dataclass
class LoraPass:
    """Which adapter each packed token uses; layers read it while a pass runs."""

    slices: list[LoraSlice] = field(default_factory=list)
    training: bool = False
    # A layer's output requires grad only through its input; the first layer's does not.
    anchor: torch.Tensor | None = None
    stacked: dict[str, "Stacked"] = field(default_factory=dict)


class Stacked(NamedTuple):
    """Adapters with one row each as one batched product: A [n, in, r], B [n, r, out] scaled."""

    a: torch.Tensor
    b: torch.Tensor


def _can_pack(weight: torch.Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


# oneDNN lays the weight out for this many rows; layouts for 16 are fast from 1 to 1000 rows.
_PACK_ROWS = 16


class PackedMatrix:
    """x [n, in] -> x @ weight.T [n, out], by oneDNN with prepacked float32 weights on CPU.

    Packed weights run at the speed of large products from a few rows on; torch's own float32
    linear takes about twice as long at 16 rows.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self._packed = _can_pack(weight)
        self._weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACK_ROWS)
            if self._packed
            else weight
        )

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if self._packed and x.numel():
            return torch.ops.mkldnn._linear_pointwise(x, self._weight, bias, "none", [], "")
        return F.linear(x, self._weight, bias)


class LoraLinear(nn.Module):
    """A frozen linear layer (nn.Linear, or GPT-2's Conv1D) that adds the current pass's LoRA."""

    def __init__(self, name: str, base: nn.Module, holder: "PassHolder") -> None:
        super().__init__()
        self.name = name
        self.holder = holder
        weight: Any = base.weight
        # Conv1D keeps its weight as [in, out]
        self.weight = (weight.T if type(base).__name__ == "Conv1D" else weight).detach()
        bias: Any = base.bias
        self.bias: torch.Tensor | None = None if bias is None else bias.detach()
        self.out_features, self.in_features = self.weight.shape
        self.forward_matrix = PackedMatrix(self.weight)
        self._backward_matrix: PackedMatrix | None = None

    def backward_matrix(self) -> PackedMatrix:
        """dy [n, out] -> dy @ weight [n, in]; packed when training first needs it."""
        if self._backward_matrix is None:
            self._backward_matrix = PackedMatrix(self.weight.T)
        return self._backward_matrix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, self.in_features)
        current = self.holder.current
        if current.training:
            out = _LoraLinearFunction.apply(flat, current.anchor, self, current)
        else:
            out = self.forward_matrix(flat, self.bias)
            add_low_rank_(out, flat, self.name, current)
        return out.view(*x.shape[:-1], self.out_features)


class PassHolder:
    """The pass that runs now; one engine has one worker thread, so one is enough."""

    def __init__(self) -> None:
        self.current = LoraPass()


def add_low_rank_(out: torch.Tensor, x: torch.Tensor, name: str, current: LoraPass) -> None:
    """out [T, out] += scale * (x A^T) B^T, slice by slice, in place."""
    if current.stacked:
        if (stack := current.stacked.get(name)) is not None:
            hidden = torch.bmm(x.unsqueeze(1).float(), stack.a)
            if out.dtype == torch.float32:
                out.unsqueeze(1).baddbmm_(hidden, stack.b)
            else:
                out += torch.bmm(hidden, stack.b).squeeze(1).to(out.dtype)
        return
    for start, stop, layers in current.slices:
        if (low_rank := layers.get(name)) is None:
            continue
        a, b, _, _, scale = low_rank
        hidden = x[start:stop].float() @ a.T
        if out.dtype == torch.float32:
            out[start:stop].addmm_(hidden, b.T, alpha=scale)
        else:
            out[start:stop] += (hidden @ b.T * scale).to(out.dtype)


class _LoraLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, _anchor: Any, layer: LoraLinear, current: LoraPass):
        out = layer.forward_matrix(x, layer.bias)
        add_low_rank_(out, x, layer.name, current)
        ctx.layer, ctx.current = layer, current
        used = any(layer.name in lora.layers for lora in current.slices)
        ctx.save_for_backward(*([x] if used else []))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor):
        layer: LoraLinear = ctx.layer
        dy = grads[0]
        dx = layer.backward_matrix()(dy) if ctx.needs_input_grad[0] else None
        if ctx.saved_tensors:
            (x,) = ctx.saved_tensors
            accumulate_low_rank(x, dy, dx, layer.name, ctx.current)
        return dx, None, None, None


def accumulate_low_rank(
    x: torch.Tensor,
    dy: torch.Tensor,
    dx: torch.Tensor | None,
    name: str,
    current: LoraPass,
) -> None:
    """Adds dA, dB of every adapter of the pass to its gradient, and the LoRA part of dx to dx."""
    for start, stop, layers in current.slices:
        if (low_rank := layers.get(name)) is None:
            continue
        a, b, grad_a, grad_b, scale = low_rank
        x_slice, dy_slice = x[start:stop].float(), dy[start:stop].float()
        d_hidden = (dy_slice @ b).mul_(scale)
        if grad_a is not None and grad_b is not None:
            grad_a.addmm_(d_hidden.T, x_slice)
            grad_b.addmm_(dy_slice.T, x_slice @ a.T, alpha=scale)
        if dx is not None:
            if dx.dtype == torch.float32:
                dx[start:stop].addmm_(d_hidden, a)
            else:
                dx[start:stop] += (d_hidden @ a).to(dx.dtype)
