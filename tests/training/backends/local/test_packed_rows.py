"""What a pass may hold besides, so that nobody's bits change.

uv run pytest tests/training/backends/local/test_packed_rows.py
"""

import pytest
import torch

from training.backends.local.linear import PackedMatrix


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
