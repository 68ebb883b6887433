"""What a pass may hold besides, so that nobody's bits change.

uv run pytest tests/training/backends/local/test_packed_rows.py
"""

from typing import Any

import pytest
import torch

from training.backends.local.decoder import Decoder
from training.backends.local.linear import LoraPass, PackedMatrix, RowMatrix


@pytest.mark.parametrize("size", [(96, 64), (960, 576), (576, 1536), (4096, 576)])
def test_packed_products_give_a_row_the_same_bits_however_many_there_are(
    size: tuple[int, int],
) -> None:
    """The probe's rows go along with a pass because of that (Decoder.keeps_rows_apart)."""
    generator = torch.Generator().manual_seed(0)
    matrix = PackedMatrix(torch.randn(size, generator=generator))
    if not matrix.packed:
        pytest.skip("weights are not packed on this machine, and probes have passes of their own")
    x = torch.randn(330, size[1], generator=generator)
    for rows in (2, 5, 8, 15, 16, 17, 31, 33, 63, 64, 65, 100, 127, 128, 200, 300):
        alone = matrix(x[:rows])
        for more in (1, 6, 9, 18):
            assert torch.equal(matrix(x[: rows + more])[:rows], alone)


def test_a_single_row_is_multiplied_in_float32_by_what_was_stored_in_bfloat16() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(700, 96, generator=generator) * 0.02
    bias = torch.randn(700, generator=generator)
    x = torch.randn(1, 96, generator=generator)
    # more digits than float16 has
    assert not RowMatrix.holds(weight)
    weight = weight.bfloat16().float()
    if not RowMatrix.holds(weight):
        pytest.skip("torch has no such product on this machine")
    assert not RowMatrix.holds(torch.cat([weight, torch.full((5000, 96), 1e6)]))
    exact = x.double() @ weight.double().T + bias.double()
    torch.testing.assert_close(RowMatrix(weight, bias)(x).double(), exact, rtol=1e-5, atol=2e-6)
    torch.testing.assert_close(
        RowMatrix(weight, None)(x).double(), exact - bias.double(), rtol=1e-5, atol=2e-6
    )


def test_the_head_of_a_bfloat16_model_reads_half_as_much_for_a_single_row(
    tiny_model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, rounded = (
        Decoder(tiny_model("llama"), torch.device("cpu"), dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    if not RowMatrix.holds(rounded.head_weight):
        pytest.skip("torch has no such product on this machine")
    hidden = torch.randn(2, rounded.head_weight.shape[1])
    several = rounded.logits(hidden, LoraPass())
    seen: list[int] = []
    product = RowMatrix.__call__
    monkeypatch.setattr(RowMatrix, "__call__", lambda m, x: seen.append(len(x)) or product(m, x))
    torch.testing.assert_close(rounded.logits(hidden[:1], LoraPass()), several[:1])
    rounded.logits(hidden, LoraPass())
    assert seen == [1]
    # a head with more digits stays as it is
    exact.logits(hidden[:1], LoraPass())
    assert seen == [1]
