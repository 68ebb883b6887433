"""About how much memory requests and results take."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from training.api import Datum, ForwardBackwardOutput, SampleResponse, TopkLogprobs
from training.serving.sampled import Sampled

# what an object costs beside its arrays
OVERHEAD = 2_000


def data_bytes(data: Sequence[Datum]) -> int:
    """About what training data take in memory."""
    tensors = [tensor for datum in data for tensor in datum.loss_fn_inputs.values()]
    tokens = sum(datum.model_input.length for datum in data)
    return OVERHEAD * len(data) + 8 * tokens + sum(_array_bytes(t.data) for t in tensors)


def result_bytes(value: Any) -> int:
    """Bytes of a result's arrays."""
    if isinstance(value, Sampled):
        value = value.response
    if isinstance(value, ForwardBackwardOutput):
        tensors = [t for output in value.loss_fn_outputs for t in output.values()]
        return sum(_array_bytes(tensor.data) + 200 for tensor in tensors)
    if isinstance(value, SampleResponse):
        arrays = [value.prompt_logprobs_np, *_topk_arrays(value.topk_prompt_logprobs_np)]
        for sequence in value.sequences:
            arrays += [sequence.tokens_np, sequence.logprobs_np]
            arrays += _topk_arrays(sequence.topk_logprobs_np)
        return sum(_array_bytes(array) for array in arrays if array is not None)
    return 0


def _topk_arrays(topk: TopkLogprobs | None) -> list[np.ndarray]:
    return [] if topk is None else [topk.token_ids, topk.logprobs]


def _array_bytes(data: Any) -> int:
    return data.nbytes if isinstance(data, np.ndarray) else 8 * len(data)
