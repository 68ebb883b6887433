"""Bodies that nobody meant: each is read, or refused as the user's error, and soon.

uv run pytest tests/training/serving/test_wire_fuzz.py
"""

import copy
import json
import random
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from fuzzing import mutated

from training.serving.errors import ServingError
from training.serving.wire import bodies
from training.serving.wire import tinker_public_pb2 as pb
from training.serving.wire.codec import decode_forward_backward, decode_sample, decompress

BODIES = 4000
# of CPU for the longest one; a thousand times what most take
SECONDS_FOR_ONE = 1.0
# a body has about a kilobyte
MEMORY_GROWTH_KB = 200_000


def valid_request() -> bytes:
    rng = np.random.default_rng(0)
    message = pb.ForwardBackwardRequest(model_id="s:train:0", seq_id=3, loss_fn="cross_entropy")
    message.loss_fn_config["beta"] = 0.5
    message.loss_fn_config_v2["beta"].number = 0.5
    message.loss_fn_config_v2["name"].text = "text"
    for sparse in (False, True, False):
        datum = message.data.add()
        tokens = rng.integers(0, 1000, 8).astype("<i4").tobytes()
        datum.model_input.add().encoded_text.tokens = tokens
        span = datum.model_input_spans.add().sampled_tokens
        span.sequence_id, span.length = "abc", 8
        weights = datum.loss_fn_inputs["weights"]
        weights.dtype = pb.DTYPE_FLOAT32
        weights.shape.extend([8, 4])
        if sparse:
            weights.sparse_csr.values = rng.random(8).astype("<f4").tobytes()
            weights.sparse_csr.crow_indices = np.arange(9).astype("<i8").tobytes()
            weights.sparse_csr.col_indices = np.zeros(8).astype("<i8").tobytes()
        else:
            weights.dense = rng.random(32).astype("<f4").tobytes()
    return message.SerializeToString()


def bodies_of(rng: random.Random, valid: bytes) -> list[bytes]:
    """Half of them nearly valid."""
    found = [mutated(rng, valid) for _ in range(BODIES // 2)]
    found += [rng.randbytes(rng.choice([0, 1, 7, 100, 3000])) for _ in range(BODIES // 4)]
    # the first bytes are right
    found += [valid[: rng.randrange(len(valid))] + rng.randbytes(20) for _ in range(BODIES // 4)]
    return found


def outcomes(read: Callable[[Any], object], given: list[Any]) -> dict[str, int]:
    """How many were read and how many refused. Anything else that is raised comes out."""
    counted = {"read": 0, "refused": 0}
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for body in given:
        started = time.process_time()
        try:
            read(body)
            counted["read"] += 1
        except ServingError as error:
            assert error.status in (400, 413, 415), body
            assert 10 < len(error.message) < 1500
            counted["refused"] += 1
        assert time.process_time() - started < SECONDS_FOR_ONE, body
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown < MEMORY_GROWTH_KB
    return counted


@pytest.mark.parametrize("seed", range(3))
def test_training_bodies(seed: int) -> None:
    valid = valid_request()
    assert len(decode_forward_backward(valid).data) == 3
    found = outcomes(decode_forward_backward, bodies_of(random.Random(seed), valid))
    # mutations that reach the readers of tensors, not only protobuf's own
    assert found["read"] > 100 and found["refused"] > 1000


def test_training_messages_of_random_fields() -> None:
    """Well-formed protobuf, any numbers in it."""
    rng = random.Random(0)
    numbers = [0, 1, 2, 3, 8, -1, 2**31, 2**62, -(2**63)]

    def some_bytes() -> bytes:
        packed = np.array([rng.choice(numbers) for _ in range(rng.randrange(5))], dtype="<i8")
        return rng.choice([packed.tobytes(), rng.randbytes(rng.randrange(20))])

    def tensor() -> pb.Tensor:
        made = pb.Tensor(shape=rng.choices(numbers, k=rng.randrange(4)))
        # 5 is none that is defined
        made.dtype = rng.choice([*pb.DType.values(), 5])  # pyrefly: ignore
        if rng.random() < 0.5:
            made.dense = some_bytes()
        else:
            csr = pb.SparseCsr(
                values=some_bytes(), crow_indices=some_bytes(), col_indices=some_bytes()
            )
            made.sparse_csr.CopyFrom(csr)
        return made

    found = []
    for _ in range(BODIES):
        chunk = pb.Chunk(encoded_text=pb.EncodedTextChunk(tokens=rng.randbytes(8)))
        inputs = {"weights": tensor(), "x": tensor()}
        datum = pb.Datum(model_input=[chunk], loss_fn_inputs=inputs)
        request = pb.ForwardBackwardRequest(
            model_id="m", seq_id=rng.choice([0, 1, -5]), loss_fn="ppo", data=[datum]
        )
        found.append(request.SerializeToString())
    assert outcomes(decode_forward_backward, found)["refused"] > 1000


SAMPLE: dict[str, Any] = {
    "num_samples": 2,
    "sampling_session_id": "s",
    "seq_id": 0,
    "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
    "sampling_params": {"max_tokens": 5, "stop": ["a"], "temperature": 1.0, "seed": 3},
    "prompt_logprobs": True,
    "prompt_logprobs_last_n": 1,
    "topk_prompt_logprobs": 1,
    "target_prompt_logprobs": {
        "data": [1, 2],
        "dtype": "int64",
        "shape": [2, 3],
        "sparse_crow_indices": [0, 1, 2],
        "sparse_col_indices": [0, 2],
    },
}
VALUES: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 10**400, -(10**40), 0.5, 1e308, float("nan")),
    *(float("inf"), "", "text", "\ud800", "x" * 10_000, [], [0], [1, "a"], [[]], [None]),
    *([1.5], [10**30], {}, {"a": 1}, {"chunks": [[]]}, [{"type": []}], ["\ud800"], ["a"] * 1000),
]


def holders(value: Any) -> list[Any]:
    """Every object and array in it."""
    found = []
    if isinstance(value, dict | list):
        found.append(value)
        for inner in value.values() if isinstance(value, dict) else value:
            found += holders(inner)
    return found


def changed_json(rng: random.Random) -> Any:
    body = copy.deepcopy(SAMPLE)
    for _ in range(rng.randint(1, 3)):
        holder = rng.choice(holders(body))
        value = copy.deepcopy(rng.choice(VALUES))
        if isinstance(holder, list):
            if holder and rng.random() < 0.5:
                holder[rng.randrange(len(holder))] = value
            else:
                holder.insert(rng.randrange(len(holder) + 1), value)
        elif holder and rng.random() < 0.9:
            key = rng.choice(list(holder))
            if rng.random() < 0.2:
                del holder[key]
            else:
                holder[key] = value
        else:
            holder[rng.choice(["base_model", "x" * 300, "\ud800", ""])] = value
    return body


def test_sample_bodies() -> None:
    assert decode_sample(SAMPLE).num_samples == 2
    rng = random.Random(0)
    found = outcomes(decode_sample, [changed_json(rng) for _ in range(BODIES)] + VALUES)
    assert found["read"] > 100 and found["refused"] > 2000


def test_packed_bodies() -> None:
    rng = random.Random(0)
    zstd = bodies.zstd.compress(valid_request())
    given = bodies_of(rng, zstd)
    for encoding in ("zstd", "gzip", rng.randbytes(300).decode("latin-1")):
        found = outcomes(lambda body, e=encoding: decompress(body, e, 10_000), given)
        assert found["refused"] > 1000


def test_errors_can_be_sent_as_json() -> None:
    rng = random.Random(1)
    for _ in range(500):
        try:
            decode_sample(changed_json(rng))
        except ServingError as error:
            told = {"message": error.message, "param": error.param}
            json.dumps(told, ensure_ascii=False).encode()
