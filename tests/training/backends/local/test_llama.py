"""The gradients that the engine's own forward pass writes out, against autograd's.

uv run pytest tests/training/backends/local/test_llama.py
"""

from typing import Any

import torch
import torch.nn.functional as F

from training.backends.local.llama import _GatedSilu, _RmsNorm


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def gradient(function: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What function(x) is, and the gradient of its product with fixed numbers."""
    x = x.clone().requires_grad_()
    out = function(x)
    out.backward(random(*out.shape).cos().to(out.dtype))
    assert x.grad is not None
    return out.detach(), x.grad


def test_the_norm() -> None:
    # rows of all sizes, one so small that eps counts
    x = random(7, 48) * torch.tensor([1e-4, 0.01, 0.1, 1, 10, 100, 1e4]).unsqueeze(1)
    weight = random(48)
    out, found = gradient(lambda x: _RmsNorm.apply(x, weight, 1e-5), x)
    wanted_out, wanted = gradient(lambda x: F.rms_norm(x, (48,), weight, 1e-5), x)
    assert torch.equal(out, wanted_out)
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=0)


def test_the_gate_has_the_bits_of_autograd() -> None:
    def plain(x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, dim=-1)
        return F.silu(gate) * up

    x = random(5, 64).float()
    for one, other in zip(gradient(_GatedSilu.apply, x), gradient(plain, x), strict=True):
        assert torch.equal(one, other)
