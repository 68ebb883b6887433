"""LoRA adapters: one flat float32 buffer each, seen layer by layer as A [r, in] and B [out, r].

The flat buffer makes an optimizer step, a snapshot and a saved state one operation each. On disk an
adapter is a plain PEFT folder (peft_folders.py).
"""

import math
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import torch

from training.adapter_proof import first_sizeable
from training.backends.local.decoder import Decoder
from training.backends.local.dropout import Dropout
from training.backends.local.linear import LoraSlice, LowRank, LowRankGroup, LowRankPart

DEFAULT_ALPHA = 32.0


@dataclass(frozen=True)
class AdapterConfig:
    """`targets` are the layers' paths inside the model; the head's is "unembed".

    The first `frozen_rank` ranks are not trained: they are what an adapter was put on top of.
    """

    rank: int
    alpha: float
    targets: tuple[str, ...]
    seed: int = 0
    dropout: float = 0.0
    frozen_rank: int = 0

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def choose_targets(
    decoder: Decoder,
    *,
    train_attn: bool,
    train_mlp: bool,
    train_unembed: bool,
    target_modules: list[str] | None,
) -> tuple[str, ...]:
    """The layers to adapt. Raises ValueError when nothing is chosen or a name matches nothing."""
    if target_modules is not None:
        names = {path.rsplit(".", 1)[-1] for path in decoder.layers}
        if unknown := sorted(set(target_modules) - names):
            raise ValueError(f"target_modules has {unknown}; this model has {sorted(names)}")
        if not target_modules:
            raise ValueError(f"target_modules is empty; this model has {sorted(names)}")
        return tuple(p for p in decoder.layers if p.rsplit(".", 1)[-1] in target_modules)
    groups = {"attn": train_attn, "mlp": train_mlp, "unembed": train_unembed}
    if not any(groups.values()):
        raise ValueError("at least one of train_attn, train_mlp and train_unembed must be true")
    targets = tuple(path for path, layer in decoder.layers.items() if groups[layer.group])
    if not targets:
        asked = " and ".join(f"train_{name}" for name, wanted in groups.items() if wanted)
        has = sorted({f"train_{layer.group}" for layer in decoder.layers.values()})
        raise ValueError(
            f"{asked}: this model has no such linear layers{_left_out(decoder)}; "
            f"{' and '.join(has)} have some"
        )
    return targets


def describe(config: AdapterConfig, decoder: Decoder) -> str:
    """What an adapter is on: the layers' short names, how many of each, and its size."""
    counts = Counter(path.rsplit(".", 1)[-1] for path in config.targets)
    layers = ", ".join(f"{name} ({count})" for name, count in counts.items())
    size = number_of_parameters(config, decoder)
    frozen = f", {config.frozen_rank} of it frozen," if config.frozen_rank else ""
    told = f"LoRA of rank {config.rank}{frozen} on {layers}: {size:,} parameters"
    return f"{told}{_left_out(decoder)}"


def number_of_parameters(config: AdapterConfig, decoder: Decoder) -> int:
    layers = (decoder.layers[path] for path in config.targets)
    return sum(config.rank * (layer.in_features + layer.out_features) for layer in layers)


def training_bytes(config: AdapterConfig, decoder: Decoder) -> int:
    """Of the weights, the gradient, AdamW's two moments and the copy of the gradient that a pass
    keeps, all in float32."""
    return 5 * 4 * number_of_parameters(config, decoder)


def _left_out(decoder: Decoder) -> str:
    names = ", ".join(decoder.without_adapters)
    return f"; no adapter can be on {names}" if names else ""


def on_top(new: AdapterConfig, below: AdapterConfig) -> AdapterConfig:
    """An adapter of `below`'s ranks, frozen, and `new`'s, which has the scale it would have alone.

    Raises ValueError where the two cannot be one adapter of this engine.
    """
    if {*new.targets} != {*below.targets}:
        differ = sorted({*new.targets} ^ {*below.targets})
        raise ValueError(
            f"on_top_of: that adapter and the new one are on other layers ({', '.join(differ[:4])}"
            f"{', ...' if len(differ) > 4 else ''}); choose the same with train_* or target_modules"
        )
    if new.dropout:
        raise ValueError(
            f"lora_dropout={new.dropout} with on_top_of: the frozen adapter below would be dropped "
            "too; use lora_dropout=0"
        )
    rank = below.rank + new.rank
    return replace(new, rank=rank, alpha=new.scale * rank, frozen_rank=below.rank)


class AdapterWeights:
    """The values of an adapter at one moment; samplers hold these."""

    def __init__(self, config: AdapterConfig, decoder: Decoder, flat: torch.Tensor) -> None:
        self.config = config
        self.flat = flat
        self.layers, self._groups = _views(config, decoder, flat, None)

    def slice(self, start: int, stop: int) -> LoraSlice:
        return LoraSlice(start, stop, self._groups)


class Adapter:
    """An adapter in training: weights, accumulated gradient and AdamW state."""

    def __init__(self, config: AdapterConfig, decoder: Decoder) -> None:
        self.config = config
        self._decoder = decoder
        size = number_of_parameters(config, decoder)
        self.flat = _zeros(size, decoder.device)
        self.grad = _zeros(size, decoder.device)
        self.has_grad = False
        # those that succeeded: each has dropout masks of its own
        self.training_passes = 0
        self.layers, self._groups = _views(config, decoder, self.flat, self.grad)
        self._initialise()
        self.optimizer = torch.optim.AdamW([self.flat], fused=True)

    def _initialise(self) -> None:
        """A uniform in +-1/sqrt(in) (PEFT's kaiming_uniform with a = sqrt(5)), B zero."""
        generator = torch.Generator().manual_seed(self.config.seed)
        for low_rank in self.layers.values():
            trained = low_rank.a[self.config.frozen_rank :]
            bound = 1 / math.sqrt(trained.shape[1])
            values = torch.empty(trained.shape).uniform_(-bound, bound, generator=generator)
            trained.copy_(values)

    @torch.no_grad()
    def put_on(self, below: "Adapter") -> None:
        """Takes another adapter's values as its frozen ranks."""
        ratio = below.config.scale / self.config.scale
        for path, low_rank in self.layers.items():
            rank = self.config.frozen_rank
            low_rank.a[:rank].copy_(below.layers[path].a)
            low_rank.b[:, :rank].copy_(below.layers[path].b * ratio)

    def slice(self, start: int, stop: int, dropout: Dropout | None = None) -> LoraSlice:
        return LoraSlice(start, stop, self._groups, dropout)

    def input_sizes(self) -> dict[str, int]:
        """The number of inputs of each product that the adapter has a part in."""
        return {name: group.a.shape[1] for name, group in self._groups.items()}

    def snapshot(self) -> AdapterWeights:
        return AdapterWeights(self.config, self._decoder, self.flat.clone())

    def equals(self, weights: AdapterWeights) -> bool:
        """Whether the weights in training are these, bit for bit, and are used alike."""
        own, other = self.config, weights.config
        alike = (own.targets, own.rank, own.alpha) == (other.targets, other.rank, other.alpha)
        return alike and torch.equal(self.flat, weights.flat)

    def size_of_b(self) -> float:
        """Of the weights in training (first_sizeable())."""
        return first_sizeable(float(low_rank.b.abs().max()) for low_rank in self.layers.values())

    @torch.no_grad()
    def step(
        self,
        *,
        learning_rate: float,
        beta1: float,
        beta2: float,
        eps: float,
        weight_decay: float,
        grad_clip_norm: float,
    ) -> dict[str, float]:
        """One AdamW step with the accumulated gradient, which is then cleared.

        Without a gradient nothing changes (as torch's AdamW with grad None). Raises
        FloatingPointError, changing nothing, when the gradient is not finite.
        """
        if not self.has_grad:
            return {"grad_norm": 0.0}
        frozen = self._frozen()
        for _, grad in frozen:
            grad.zero_()
        norm = self.grad.norm().item()
        if not math.isfinite(norm):
            self.clear_grad()
            raise FloatingPointError(
                f"the gradient's norm is {norm}; the step was refused and the gradient cleared"
            )
        if grad_clip_norm > 0:
            # torch.nn.utils.clip_grad_norm_'s formula
            self.grad.mul_(min(1.0, grad_clip_norm / (norm + 1e-6)))
        group = self.optimizer.param_groups[0]
        group.update(lr=learning_rate, betas=(beta1, beta2), eps=eps, weight_decay=weight_decay)
        # without a gradient only weight decay would change them
        kept = [value.clone() for value, _ in frozen] if weight_decay else []
        self.flat.grad = self.grad
        self.optimizer.step()
        self.flat.grad = None
        for (value, _), before in zip(frozen, kept, strict=bool(kept)):
            value.copy_(before)
        self.clear_grad()
        return {"grad_norm": norm}

    def _frozen(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Values and gradients of the ranks that are not trained."""
        if not (rank := self.config.frozen_rank):
            return []
        views = []
        for low_rank in self.layers.values():
            assert low_rank.grad_a is not None and low_rank.grad_b is not None
            views.append((low_rank.a[:rank], low_rank.grad_a[:rank]))
            views.append((low_rank.b[:, :rank], low_rank.grad_b[:, :rank]))
        return views

    @property
    def num_steps(self) -> int:
        """Of AdamW, loaded ones too."""
        return int(self.optimizer.state.get(self.flat, {}).get("step", 0))

    def clear_grad(self) -> None:
        self.grad.zero_()
        self.has_grad = False

    def optimizer_tensors(self) -> dict[str, torch.Tensor]:
        """AdamW's moments and step count, the gradient not yet used, and where dropout is.

        Without dropout empty before a step.
        """
        state = self.optimizer.state.get(self.flat, {})
        tensors = {f"optimizer.{key}": value for key, value in state.items()}
        if self.has_grad:
            tensors["gradient"] = self.grad
        if self.config.dropout:
            tensors["training_passes"] = torch.tensor(self.training_passes)
        return tensors

    def load_optimizer_tensors(self, tensors: dict[str, torch.Tensor]) -> None:
        state = {
            key.removeprefix("optimizer."): value.to(self.flat.device).clone()
            for key, value in tensors.items()
            if key.startswith("optimizer.")
        }
        if state:
            self.optimizer.state[self.flat] = state
        if "gradient" in tensors:
            self.grad.copy_(tensors["gradient"])
            self.has_grad = True
        if "training_passes" in tensors:
            self.training_passes = int(tensors["training_passes"])


def _zeros(size: int, device: torch.device) -> torch.Tensor:
    # numpy's, because clients are made on the caller's thread (see engine.py, "One thread")
    return torch.from_numpy(np.zeros(size, dtype=np.float32)).to(device)


def _views(
    config: AdapterConfig, decoder: Decoder, flat: torch.Tensor, grad: torch.Tensor | None
) -> tuple[dict[str, LowRank], dict[str, LowRankGroup]]:
    """A flat buffer layer by layer and product by product.

    The A matrices of one product's layers follow one another, so that together they are one matrix.
    """
    rank = config.rank
    of_product: dict[str, list[str]] = {}
    for path in config.targets:
        of_product.setdefault(decoder.layers[path].product, []).append(path)
    layers, groups, offset = {}, {}, 0

    def take(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        nonlocal offset
        span = slice(offset, offset + rows * columns)
        offset = span.stop
        return flat[span].view(rows, columns), None if grad is None else grad[span].view(
            rows, columns
        )

    for product, paths in of_product.items():
        a, grad_a = take(rank * len(paths), decoder.layers[paths[0]].in_features)
        parts = []
        for i, path in enumerate(paths):
            ranks = slice(i * rank, (i + 1) * rank)
            b, grad_b = take(decoder.layers[path].out_features, rank)
            parts.append(LowRankPart(decoder.layers[path].columns, ranks, b, grad_b))
            layers[path] = LowRank(
                a[ranks], b, None if grad_a is None else grad_a[ranks], grad_b, config.scale
            )
        groups[product] = LowRankGroup(a, grad_a, tuple(parts), config.scale)
    return {path: layers[path] for path in config.targets}, groups


@torch.no_grad()
def fill_layers(layers: dict[str, LowRank], tensors: dict[str, torch.Tensor]) -> None:
    for path, low_rank in layers.items():
        low_rank.a.copy_(tensors[f"{path}.A"])
        low_rank.b.copy_(tensors[f"{path}.B"])
