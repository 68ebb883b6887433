"""Work on many sequences in bounded memory."""

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK_BYTES = 64 * 2**20


def in_chunks(compute: Callable[..., Tensor], row_bytes: int, *tensors_B: Tensor) -> Tensor:
    """`compute(*tensors_B)`, a function of each row by itself that needs `row_bytes` for one, done
    on as many rows at a time as fit into CHUNK_BYTES."""
    size = max(1, CHUNK_BYTES // row_bytes)
    parts = zip(*(tensor.split(size) for tensor in tensors_B), strict=True)
    return torch.cat([compute(*part) for part in parts])
