"""LoRA dropout: in training passes a low-rank product reads x * mask / (1 - p) instead of x.

PEFT's semantics, but for two things. Masks are drawn per product: layers that are one product here
(q, k and v; gate and up) share their input's, where PEFT draws one per layer. And they belong to
the data: how a pass is cut, packed or shared with other adapters changes no mask.
"""

import hashlib
from typing import NamedTuple

import torch


def draw_kept(
    p: float,
    key: tuple[int, int, int, str],
    shape: tuple[int, int],
    device: torch.device | str = "cpu",
) -> torch.Tensor:
    """Booleans [length, in], each True with probability 1 - p: what one product keeps of a datum.

    `key`: the adapter's seed, how many training passes it has had, the datum's index in its
    request, the product's name. The same key gives the same values on one kind of device.
    """
    digest = hashlib.sha256(repr(key).encode()).digest()
    generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:8]))
    return torch.rand(shape, generator=generator, device=device) >= p


class Dropout(NamedTuple):
    """What the rows of one slice keep, by product [rows, in]."""

    p: float
    kept: dict[str, torch.Tensor]

    def __call__(self, x: torch.Tensor, name: str) -> torch.Tensor:
        """The inputs a product reads, or the gradient of x from theirs."""
        return torch.where(self.kept[name], x / (1 - self.p), 0.0)

    def rows(self, start: int, stop: int) -> "Dropout":
        return Dropout(self.p, {name: kept[start:stop] for name, kept in self.kept.items()})

    def take(self, rows: torch.Tensor) -> "Dropout":
        """Its rows [n] in another order, some of them several times."""
        return Dropout(self.p, {name: kept[rows] for name, kept in self.kept.items()})
