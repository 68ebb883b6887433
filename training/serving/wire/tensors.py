"""Tensors of the wire as numpy arrays, and back: dense, sparse CSR, and many in one."""

import math
from collections.abc import Sequence

import numpy as np

from training.api import TensorData, TopkLogprobs
from training.serving.errors import bad_request, too_large
from training.serving.wire import tinker_public_pb2 as pb

# Cells of all sparse tensors of one request, listed or not: a few bytes can ask for any number.
MAX_SPARSE_CELLS = 2**25
_MAX_DIMENSIONS = 8
# of an empty slot, beside token 0
NO_LOGPROB = -99999.0

_INT32, _INT64, _FLOAT32 = np.dtype("<i4"), np.dtype("<i8"), np.dtype("<f4")
# bfloat16 comes as its bits
_WIRE_DTYPES = {
    pb.DTYPE_FLOAT32: _FLOAT32,
    pb.DTYPE_INT64: _INT64,
    pb.DTYPE_INT32: _INT32,
    pb.DTYPE_BFLOAT16: np.dtype("<u2"),
}
_PROTO_DTYPES = {"int64": pb.DTYPE_INT64, "float32": pb.DTYPE_FLOAT32}


class TensorReader:
    """Reads the tensors of one request; the cells of its sparse ones are bounded together."""

    def __init__(self, max_sparse_cells: int = MAX_SPARSE_CELLS) -> None:
        self._max_sparse_cells = max_sparse_cells
        self._sparse_cells = 0

    def read(self, tensor: pb.Tensor, where: str) -> np.ndarray:
        """int64 or float32, of the tensor's shape; cells that a sparse one does not list are 0.

        Raises ServingError with `where`, the name of the field.
        """
        if tensor.dtype not in _WIRE_DTYPES:
            raise bad_request(
                f"{where} has dtype {tensor.dtype}: allowed are "
                f"{', '.join(pb.DType.Name(dtype) for dtype in _WIRE_DTYPES)}"
            )
        encoding = tensor.WhichOneof("encoding")
        if encoding is None:
            raise bad_request(f"{where} has no data: it needs `dense` or `sparse_csr`")
        if encoding == "dense":
            values = _numbers(tensor.dense, tensor.dtype, where)
            return _shaped(values, tensor.shape or [values.size], where)
        csr = tensor.sparse_csr
        return self.fill(
            _numbers(csr.values, tensor.dtype, where),
            unpacked(csr.crow_indices, _INT64, f"{where}.crow_indices"),
            unpacked(csr.col_indices, _INT64, f"{where}.col_indices"),
            tensor.shape,
            where,
        )

    def fill(
        self,
        values: np.ndarray,
        crow: np.ndarray,
        col: np.ndarray,
        shape: Sequence[int],
        where: str,
        absent: int = 0,
    ) -> np.ndarray:
        """The [rows, columns] matrix of `values` in CSR layout, `absent` elsewhere."""
        if len(shape) != 2 or min(shape) < 0:
            raise bad_request(
                f"{where} is sparse and has shape {shown_shape(shape)}; (rows, columns) is needed"
            )
        rows, columns = shape
        self._sparse_cells += max(rows, 1) * max(columns, 1)
        if self._sparse_cells > self._max_sparse_cells:
            raise too_large(
                f"{where}: with shape {shown_shape(shape)} the sparse tensors of this request have "
                f"{self._sparse_cells} cells; at most {self._max_sparse_cells} are taken at once. "
                "Send fewer data in one request"
            )
        flat = csr_cells(crow, col, len(values), rows, columns, where)
        matrix = np.full(rows * columns, absent, dtype=values.dtype)
        matrix[flat] = values
        return matrix.reshape(rows, columns)


def csr_cells(
    crow: np.ndarray, col: np.ndarray, listed: int, rows: int, columns: int, where: str
) -> np.ndarray:
    """Flat indices of the listed cells, ascending. Raises ServingError for an impossible layout."""
    if len(crow) != rows + 1 or crow[0] != 0 or crow[-1] != listed or (np.diff(crow) < 0).any():
        raise bad_request(
            f"{where}.crow_indices has {len(crow)} entries; {rows + 1} are needed for {rows} rows, "
            f"from 0 to {listed} (the number of values) and never falling"
        )
    if len(col) != listed or (listed and (col.min() < 0 or col.max() >= columns)):
        raise bad_request(
            f"{where}.col_indices has {len(col)} entries for {listed} values; one column in "
            f"0..{columns - 1} is needed for each"
        )
    flat = np.repeat(np.arange(rows), np.diff(crow)) * columns + col
    if (np.diff(flat) <= 0).any():
        raise bad_request(f"{where}.col_indices must rise within each row, no column twice")
    return flat


def unpacked(data: bytes, dtype: np.dtype, where: str) -> np.ndarray:
    if len(data) % dtype.itemsize:
        raise bad_request(
            f"{where} has {len(data)} bytes; {dtype.name} needs a multiple of {dtype.itemsize}"
        )
    return np.frombuffer(data, dtype=dtype)


def token_ids(data: bytes, where: str) -> list[int]:
    return unpacked(data, _INT32, where).tolist()


def shown_shape(shape: Sequence[int]) -> str:
    """At most five of its dimensions, since there may be any number."""
    listed = ", ".join(str(size) for size in shape[:5])
    return f"({listed}{', ...' if len(shape) > 5 else ''})"


def _numbers(data: bytes, dtype: pb.DType, where: str) -> np.ndarray:
    values = unpacked(data, _WIRE_DTYPES[dtype], where)
    if dtype == pb.DTYPE_BFLOAT16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32 if dtype == pb.DTYPE_FLOAT32 else np.int64)


def _shaped(values: np.ndarray, shape: Sequence[int], where: str) -> np.ndarray:
    try:
        if len(shape) > _MAX_DIMENSIONS or min(shape, default=0) < 0:
            raise ValueError(f"up to {_MAX_DIMENSIONS} dimensions, none of them negative")
        if math.prod(shape) != values.size:
            raise ValueError(f"it has {values.size} numbers")
        return values.reshape(tuple(shape))
    except ValueError as error:
        raise bad_request(f"{where} cannot have shape {shown_shape(shape)}: {error}") from error


# --------------------------------------------------------------------------------------- writing


def dense_tensor(array: np.ndarray) -> pb.Tensor:
    """Whole numbers as int64, others as float32."""
    dtype = "int64" if np.issubdtype(array.dtype, np.integer) else "float32"
    packed = array.astype(_WIRE_DTYPES[_PROTO_DTYPES[dtype]])
    return pb.Tensor(dense=packed.tobytes(), dtype=_PROTO_DTYPES[dtype], shape=array.shape)


def sparse_tensor(
    values: np.ndarray, crow: np.ndarray, col: np.ndarray, shape: Sequence[int]
) -> pb.Tensor:
    """float32 `values` of the listed cells of a matrix."""
    csr = pb.SparseCsr(
        values=values.astype(_FLOAT32).tobytes(),
        crow_indices=crow.astype(_INT64).tobytes(),
        col_indices=col.astype(_INT64).tobytes(),
    )
    return pb.Tensor(sparse_csr=csr, dtype=pb.DTYPE_FLOAT32, shape=shape)


def batched_tensor(tensors: Sequence[TensorData]) -> pb.BatchedTensor:
    """Tensors that share their dtype and their shape after the first dimension."""
    dtype = _PROTO_DTYPES[tensors[0].dtype]
    arrays = [tensor.to_numpy().astype(_WIRE_DTYPES[dtype]) for tensor in tensors]
    ends = np.cumsum([array.nbytes for array in arrays])
    return pb.BatchedTensor(
        data=b"".join(array.tobytes() for array in arrays),
        offsets=np.concatenate([[0], ends]).astype(_INT64).tobytes(),
        dtype=dtype,
        trailing_shape=arrays[0].shape[1:],
    )


def packed_tokens(tokens: np.ndarray) -> bytes:
    return tokens.astype(_INT32).tobytes()


def packed_logprobs(logprobs: np.ndarray) -> bytes:
    return logprobs.astype(_FLOAT32).tobytes()


def packed_topk(topk: TopkLogprobs, hidden: int = 0) -> pb.TopkLogprobs:
    """The first `hidden` positions get empty slots."""
    length, k = topk.token_ids.shape
    shown = (np.arange(length) >= hidden)[:, None]
    return pb.TopkLogprobs(
        token_ids=packed_tokens(np.where(shown, topk.token_ids, 0)),
        logprobs=packed_logprobs(np.where(shown, topk.logprobs, NO_LOGPROB)),
        k=k,
        length=length,
    )
