"""The frozen linear layers of the base model and the low-rank products added to them.

A pass works on packed tokens [T, in] sorted by adapter, so that every adapter owns one slice.
Layers that read the same input (q, k and v; gate and up) are one product, and so are the A matrices
of an adapter's parts in them. Products and gradients of all adapters are written out in one
autograd function: gradients go straight into each adapter's flat gradient buffer.
"""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from training.backends.local.dropout import Dropout
from training.backends.local.quantized import Int4Matrix
from utils.devices import has_native_bfloat16


class LowRank(NamedTuple):
    """Views into one adapter for one layer: A [r, in], B [out, r] and their gradients."""

    a: torch.Tensor
    b: torch.Tensor
    grad_a: torch.Tensor | None
    grad_b: torch.Tensor | None
    scale: float


class LowRankPart(NamedTuple):
    """B [out, r] of one layer: it reads `ranks` of A's outputs and adds to `columns`."""

    columns: slice
    ranks: slice
    b: torch.Tensor
    grad_b: torch.Tensor | None


class LowRankGroup(NamedTuple):
    """Views into one adapter for layers that read the same input: A [sum of r, in]."""

    a: torch.Tensor
    grad_a: torch.Tensor | None
    parts: tuple[LowRankPart, ...]
    scale: float


class LoraSlice(NamedTuple):
    start: int
    stop: int
    groups: dict[str, LowRankGroup]
    dropout: Dropout | None = None

    def part(self, start: int, stop: int, origin: int) -> "LoraSlice":
        """Its rows from start to stop, as a slice of what begins at row `origin`."""
        dropout = self.dropout
        if dropout is not None:
            dropout = dropout.rows(start - self.start, stop - self.start)
        return LoraSlice(start - origin, stop - origin, self.groups, dropout)

    def spread(self, n: int) -> "LoraSlice":
        """With each of its rows n times in a row."""
        dropout = self.dropout
        if dropout is not None:
            dropout = dropout.take(torch.arange((self.stop - self.start) * n) // n)
        return LoraSlice(self.start * n, self.stop * n, self.groups, dropout)


class Stacked(NamedTuple):
    """Adapters with one row each as batched products: A [n, in, r]; B [n, r, out], scaled."""

    a: torch.Tensor
    parts: tuple[tuple[slice, slice, torch.Tensor], ...]


@dataclass
class LoraPass:
    """Which adapter each packed token uses; layers read it while a pass runs.

    `tokens`: how many the pass has, where slices are of a pass through the body. `decoding`:
    whether they are the next ones of samples, a row each.
    """

    slices: list[LoraSlice] = field(default_factory=list)
    training: bool = False
    # A layer's output requires grad only through its input; the first layer's does not.
    anchor: torch.Tensor | None = None
    stacked: dict[str, Stacked] = field(default_factory=dict)
    tokens: int = 0
    decoding: bool = False

    def rows(self, start: int, stop: int) -> "LoraPass":
        """The part that covers these rows, which are then numbered from 0."""
        slices = [
            s.part(max(s.start, start), min(s.stop, stop), start)
            for s in self.slices
            if s.start < stop and s.stop > start
        ]
        stacked = {
            name: Stacked(a[start:stop], tuple((c, r, b[start:stop]) for c, r, b in parts))
            for name, (a, parts) in self.stacked.items()
        }
        tokens = stop - start
        return LoraPass(slices, self.training, self.anchor, stacked, tokens, self.decoding)

    def picked(self, index: torch.Tensor) -> "LoraPass":
        """For some of its rows, which are then numbered from 0; `index` ascends."""
        slices = []
        for s in self.slices:
            ends = torch.tensor((s.start, s.stop), device=index.device)
            start, stop = torch.searchsorted(index, ends).tolist()
            if start < stop:
                dropout = s.dropout
                if dropout is not None:
                    dropout = dropout.take(index[start:stop] - s.start)
                slices.append(LoraSlice(start, stop, s.groups, dropout))
        return LoraPass(slices, self.training, self.anchor, tokens=len(index))

    def spread(self, n: int) -> "LoraPass":
        """For a batch in which every row of this pass stands n times in a row."""
        slices = [s.spread(n) for s in self.slices]
        stacked = {
            name: Stacked(
                a.repeat_interleave(n, 0),
                tuple((c, r, b.repeat_interleave(n, 0)) for c, r, b in parts),
            )
            for name, (a, parts) in self.stacked.items()
        }
        return LoraPass(slices, self.training, self.anchor, stacked, self.tokens * n)

    def padded(self, index: torch.Tensor) -> "LoraPass":
        """For a batch [rows, L] whose tokens stand at `index` in this pass. A row belongs to one
        slice, and rows of a slice stand together."""
        length = index.shape[1]
        firsts = index[:, 0].tolist()
        slices = []
        for s in self.slices:
            members = [row for row, first in enumerate(firsts) if s.start <= first < s.stop]
            if members:
                start, stop = members[0], members[-1] + 1
                dropout = s.dropout
                if dropout is not None:
                    dropout = dropout.take(index[start:stop].flatten() - s.start)
                slices.append(LoraSlice(start * length, stop * length, s.groups, dropout))
        return LoraPass(slices, self.training, self.anchor, tokens=index.numel())


def _can_pack(weight: torch.Tensor) -> bool:
    return (
        weight.device.type == "cpu"
        and (
            weight.dtype == torch.float32
            or (weight.dtype == torch.bfloat16 and has_native_bfloat16())
        )
        and torch.backends.mkldnn.is_available()
        and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    )


# An adapter's product with so many rows takes longer as one than one by one, on CPU: twice as long
# between large products, where a small one of several rows waits for threads.
_FEW_ROWS = 2

# oneDNN lays the weight out for this many rows; layouts for 16 are fast from 1 to 1000 rows.
_PACK_ROWS = 16


class PackedMatrix:
    """x [n, in] -> x @ weight.T [n, out], by oneDNN with prepacked weights on CPU.

    `packed` says whether it is. A row then has the same bits however many rows there are, if it is
    not alone: the product of one row and a wide matrix may be summed in another order. Rows of
    another type than the weights' are rounded to it, and what comes out is of their own type.
    Packed weights run at the speed of large products from a few rows on; torch's own float32
    linear takes about twice as long at 16 rows.
    """

    def __init__(self, weight: torch.Tensor) -> None:
        self.packed = _can_pack(weight)
        self._dtype = weight.dtype
        self._weight = (
            torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _PACK_ROWS)
            if self.packed
            else weight
        )

    def like(self) -> torch.Tensor:
        """A tensor of the weight's shape, type and device, without its values or its memory."""
        weight = self._weight
        return torch.empty((), dtype=weight.dtype, device=weight.device).expand(weight.shape)

    def dense(self) -> torch.Tensor:
        """The weight [out, in], bit by bit."""
        return self._weight.to_dense() if self.packed else self._weight

    def __call__(self, x: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        rows = x if x.dtype == self._dtype else x.to(self._dtype)
        if self.packed and x.numel():
            # named whole: to find the overload takes as long as a small operation
            product = torch.ops.mkldnn._linear_pointwise.default
            out = product(rows, self._weight, bias, "none", [], "")
        else:
            out = F.linear(rows, self._weight, bias)
        return out if x.dtype == self._dtype else out.to(x.dtype)


class RowMatrix:
    """One row x [1, in] -> x @ weight.T [1, out], float32, with half the bytes to read.

    What a single row waits for is the memory. The weight is held in float16, and multiplied and
    added up in float32: `holds` says whether that is the same matrix, as it is for one that was
    stored in bfloat16 (numbers below 2^-15 excepted, which are off by 2^-25 at most).
    """

    @staticmethod
    def holds(weight: torch.Tensor) -> bool:
        return (
            weight.device.type == "cpu"
            and torch.backends.quantized.engine in ("x86", "fbgemm")
            and all(
                bool(((part.half().float() - part).abs() <= 2**-25).all())
                for part in weight.split(4096)
            )
        )

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight = torch.ops.quantized.linear_prepack_fp16(weight, bias)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.ops.quantized.linear_dynamic_fp16.default(x, self._weight)


class LoraLinear(nn.Module):
    """Frozen linear layers with one input (nn.Linear, or GPT-2's Conv1D), plus the pass's LoRA.

    `name` is that of the first layer; their outputs stand side by side in the result.
    """

    def __init__(self, name: str, layers: list[nn.Module], holder: "PassHolder") -> None:
        super().__init__()
        self.name = name
        self.holder = holder
        weights = [_weight(layer) for layer in layers]
        self.columns = _columns([len(weight) for weight in weights])
        # for the decoder's fingerprint: to take them from packed weights would unpack all of them
        self.samples = [sampled_rows(weight) for weight in weights]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        self.bias = _biases(layers, weights)
        self.out_features, self.in_features = weight.shape
        # the only copy of the weight that is kept
        self.forward_matrix = PackedMatrix(weight)
        self._backward_matrix: PackedMatrix | None = None
        # for decoded rows, where another one is asked for
        self.decode_matrix: Int4Matrix | PackedMatrix | None = None

    @property
    def weight(self) -> torch.Tensor:
        """Tells its shape, type and device; to compute with it would pass by the adapters."""
        known = self.forward_matrix.like()
        return _Unread.of(known, self.name)

    def backward_matrix(self) -> PackedMatrix:
        """dy [n, out] -> dy @ weight [n, in]; packed when training first needs it."""
        if self._backward_matrix is None:
            self._backward_matrix = PackedMatrix(self.forward_matrix.dense().T)
        return self._backward_matrix

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = x if x.ndim == 2 else x.reshape(-1, self.in_features)
        current = self.holder.current
        if len(flat) != current.tokens:
            current = self._spread(current, len(flat))
        if current.training:
            out = _LoraLinearFunction.apply(flat, current.anchor, self, current)
        else:
            if current.decoding and self.decode_matrix is not None:
                out = self.decode_matrix(flat)
                if self.bias is not None:
                    out += self.bias
            else:
                out = self.forward_matrix(flat, self.bias)
            add_low_rank_(out, flat, self.name, current)
        return out if x.ndim == 2 else out.view(*x.shape[:-1], self.out_features)

    def _spread(self, current: LoraPass, rows: int) -> LoraPass:
        """For a layer that sees several rows of each token, head by head say."""
        if not current.tokens or rows % current.tokens:
            raise NotAdaptableError(
                self.name, f"reads {rows} rows of {current.tokens} tokens, as layers of experts do"
            )
        return current.spread(rows // current.tokens)


class NotAdaptableError(Exception):
    """What a layer computes is not one product for every token: an adapter of it would be wrong."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(f"{name} {why}")
        self.name = name


class _Unread(torch.Tensor):
    """A weight that can be asked what it is, and nothing else."""

    layer: str
    _ASKED = frozenset(
        getattr(torch.Tensor, name).__get__
        for name in ("dtype", "device", "shape", "ndim", "is_cuda", "requires_grad", "layout")
    ) | {torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.is_floating_point}

    @classmethod
    def of(cls, tensor: torch.Tensor, layer: str) -> torch.Tensor:
        made = tensor.as_subclass(cls)
        made.layer = layer
        return made

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in cls._ASKED:
            return super().__torch_function__(func, types, args, kwargs or {})
        layer = next(a.layer for a in args if isinstance(a, cls))
        raise NotAdaptableError(layer, "is not called by the model, which reads its weight")


def sampled_rows(weight: torch.Tensor) -> torch.Tensor:
    """Some rows on the CPU, rounded to bfloat16, what a GPU computes with."""
    step = max(1, len(weight) // 16)
    return weight[::step].bfloat16().float().cpu()


def _weight(layer: Any) -> torch.Tensor:
    # Conv1D keeps its weight as [in, out]
    return (layer.weight.T if type(layer).__name__ == "Conv1D" else layer.weight).detach()


def _columns(sizes: list[int]) -> list[slice]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [slice(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def _biases(layers: list[Any], weights: list[torch.Tensor]) -> torch.Tensor | None:
    if all(layer.bias is None for layer in layers):
        return None
    return torch.cat(
        [
            weight.new_zeros(len(weight)) if layer.bias is None else layer.bias.detach()
            for layer, weight in zip(layers, weights, strict=True)
        ]
    )


class PassHolder:
    """The pass that runs now; one engine has one worker thread, so one is enough."""

    def __init__(self) -> None:
        self.current = LoraPass()


def add_low_rank_(
    out: torch.Tensor, x: torch.Tensor, name: str, current: LoraPass
) -> list[torch.Tensor]:
    """out [T, out] += scale * (x A^T) B^T, slice by slice, in place; the slices' x A^T.

    x is what dropout leaves of it, in slices that have one.
    """
    if current.stacked:
        if (stack := current.stacked.get(name)) is not None:
            hidden = torch.bmm(x.unsqueeze(1).float(), stack.a)
            for columns, ranks, b in stack.parts:
                out[:, columns] += torch.bmm(hidden[..., ranks], b).squeeze(1).to(out.dtype)
        return []
    hiddens = []
    for lora in current.slices:
        start, stop, groups, _ = lora
        if (group := groups.get(name)) is None:
            continue
        inputs = _low_rank_input(x, lora, name)
        row_by_row = stop - start <= _FEW_ROWS and x.device.type == "cpu"
        if row_by_row:
            hidden = torch.stack([torch.mv(group.a, row) for row in inputs])
        else:
            hidden = inputs @ group.a.T
        hiddens.append(hidden)
        for columns, ranks, b, _ in group.parts:
            part = out[start:stop, columns]
            if out.dtype != torch.float32:
                part += (hidden[:, ranks] @ b.T * group.scale).to(out.dtype)
            elif row_by_row:
                for row, low in zip(part, hidden[:, ranks], strict=True):
                    row.addmv_(b, low, alpha=group.scale)
            else:
                part.addmm_(hidden[:, ranks], b.T, alpha=group.scale)
    return hiddens


def _low_rank_input(x: torch.Tensor, lora: LoraSlice, name: str) -> torch.Tensor:
    inputs = x[lora.start : lora.stop].float()
    return inputs if lora.dropout is None else lora.dropout(inputs, name)


class _LoraLinearFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, _anchor: Any, layer: LoraLinear, current: LoraPass):
        out = layer.forward_matrix(x, layer.bias)
        ctx.layer, ctx.current = layer, current
        ctx.hiddens = add_low_rank_(out, x, layer.name, current)
        ctx.save_for_backward(*([x] if ctx.hiddens else []))
        return out

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor):
        layer: LoraLinear = ctx.layer
        dy = grads[0]
        dx = layer.backward_matrix()(dy) if ctx.needs_input_grad[0] else None
        if ctx.saved_tensors:
            (x,) = ctx.saved_tensors
            accumulate_low_rank(x, dy, dx, layer.name, ctx.current, ctx.hiddens)
        return dx, None, None, None


def accumulate_low_rank(
    x: torch.Tensor,
    dy: torch.Tensor,
    dx: torch.Tensor | None,
    name: str,
    current: LoraPass,
    hiddens: list[torch.Tensor],
) -> None:
    """Adds dA, dB of every adapter of the pass to its gradient, and the LoRA part of dx to dx.

    `hiddens` is what add_low_rank_ returned for the same x, name and pass.
    """
    slices = [lora for lora in current.slices if name in lora.groups]
    for lora, hidden in zip(slices, hiddens, strict=True):
        start, stop, groups, dropout = lora
        a, grad_a, parts, scale = groups[name]
        dy_slice = dy[start:stop].float()
        d_hiddens = [dy_slice[:, part.columns] @ part.b for part in parts]
        d_hidden = d_hiddens[0] if len(parts) == 1 else torch.cat(d_hiddens, dim=1)
        d_hidden *= scale
        if grad_a is not None:
            grad_a.addmm_(d_hidden.T, _low_rank_input(x, lora, name))
            for columns, ranks, _, grad_b in parts:
                assert grad_b is not None
                grad_b.addmm_(dy_slice[:, columns].T, hidden[:, ranks], alpha=scale)
        if dx is not None:
            if dropout is not None:
                dx[start:stop] += dropout(d_hidden @ a, name).to(dx.dtype)
            elif dx.dtype == torch.float32:
                dx[start:stop].addmm_(d_hidden, a)
            else:
                dx[start:stop] += (d_hidden @ a).to(dx.dtype)
