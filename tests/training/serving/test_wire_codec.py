"""Bodies that no SDK writes, or not this one: refused in a sentence, or read as they are meant.

uv run pytest tests/training/serving/test_wire_codec.py
"""

import gzip
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from training import api
from training.serving.errors import ServingError
from training.serving.wire import bodies, tensors, training_codec
from training.serving.wire import tinker_public_pb2 as pb
from training.serving.wire.codec import (
    decode_forward_backward,
    decode_sample,
    decompress,
    encode_output,
    encode_sample,
    require_protobuf,
)

Change = Callable[[pb.ForwardBackwardRequest], object]


def packed(values: list[Any], dtype: str) -> bytes:
    return np.array(values, dtype=dtype).tobytes()


def a_request() -> pb.ForwardBackwardRequest:
    """Two data of three tokens."""
    message = pb.ForwardBackwardRequest(model_id="m", seq_id=1, loss_fn="cross_entropy")
    for _ in range(2):
        datum = message.data.add()
        datum.model_input.add().encoded_text.tokens = packed([1, 2, 3], "<i4")
        datum.loss_fn_inputs["target_tokens"].CopyFrom(
            pb.Tensor(dense=packed([2, 3, 4], "<i8"), dtype=pb.DTYPE_INT64, shape=[3])
        )
    return message


def refusal(call: Callable[[], object], status: int = 400) -> str:
    with pytest.raises(ServingError) as caught:
        call()
    assert caught.value.status == status
    return caught.value.message


def refused(change: Change, status: int = 400) -> str:
    message = a_request()
    change(message)
    return refusal(lambda: decode_forward_backward(message.SerializeToString()), status)


def targets(message: pb.ForwardBackwardRequest) -> pb.Tensor:
    return message.data[1].loss_fn_inputs["target_tokens"]


# ------------------------------------------------------------------------------- forward_backward


def read_tensor(tensor: pb.Tensor) -> np.ndarray:
    message = a_request()
    message.data[0].loss_fn_inputs["weights"].CopyFrom(tensor)
    request = decode_forward_backward(message.SerializeToString())
    return request.data[0].loss_fn_inputs["weights"].to_numpy()


def test_bfloat16_int32_and_sparse_are_the_numbers_of_dense_float32_and_int64() -> None:
    numbers = np.array([[0, 1.5], [0, 0], [-2, 0]], dtype=np.float32)
    bits = (numbers.view(np.uint32) >> 16).astype("<u2").tobytes()
    dense = pb.Tensor(dense=numbers.tobytes(), dtype=pb.DTYPE_FLOAT32, shape=[3, 2])
    half = pb.Tensor(dense=bits, dtype=pb.DTYPE_BFLOAT16, shape=[3, 2])
    csr = pb.SparseCsr(
        values=packed([1.5, -2], "<f4"),
        crow_indices=packed([0, 1, 1, 2], "<i8"),
        col_indices=packed([1, 0], "<i8"),
    )
    sparse = pb.Tensor(sparse_csr=csr, dtype=pb.DTYPE_FLOAT32, shape=[3, 2])
    for tensor in (dense, half, sparse):
        np.testing.assert_array_equal(read_tensor(tensor), numbers, strict=True)
    whole = np.array([7, -(2**31), 2**31 - 1])
    wide = pb.Tensor(dense=packed(whole.tolist(), "<i8"), dtype=pb.DTYPE_INT64, shape=[3])
    # without a shape it is flat
    narrow = pb.Tensor(dense=packed(whole.tolist(), "<i4"), dtype=pb.DTYPE_INT32)
    for tensor in (wide, narrow):
        np.testing.assert_array_equal(read_tensor(tensor), whole, strict=True)


def test_a_request_without_a_number_has_none() -> None:
    message = a_request()
    message.seq_id = 0
    assert decode_forward_backward(message.SerializeToString()).seq_id is None
    assert "seq_id: got -1" in refused(lambda m: setattr(m, "seq_id", -1))


def test_the_first_form_of_the_configuration_is_read_where_the_second_is_missing() -> None:
    message = a_request()
    message.loss_fn_config.update({"low": 0.5, "high": 2})
    message.loss_fn_config_v2["high"].number = 3
    request = decode_forward_backward(message.SerializeToString())
    assert request.loss_fn_config == {"low": 0.5, "high": 3}


def test_losses_that_are_not_served_name_those_that_are() -> None:
    for name in ("stable_reinforce", "custom"):
        told = refused(lambda m, name=name: setattr(m, "loss_fn", name))
        assert name in told and "cross_entropy" in told
        assert "loss_fn=importance_sampling" in told
    assert "loss_fn='mse': served here are cross_entropy" in refused(
        lambda m: setattr(m, "loss_fn", "mse")
    )


def image(message: pb.ForwardBackwardRequest) -> None:
    message.data[1].model_input.add().image.data = b"png"


def no_data(message: pb.ForwardBackwardRequest) -> None:
    del message.data[:]


WRONG: list[tuple[Change, str]] = [
    (lambda m: setattr(m, "model_id", ""), "model_id is missing"),
    (no_data, "data is empty"),
    (image, "data[1].model_input.chunks[1] is image: models served here read text only"),
    (lambda m: m.data[1].model_input.add(), "data[1].model_input.chunks[1] is empty"),
    (
        lambda m: setattr(m.data[1].model_input[0].encoded_text, "tokens", b"12345"),
        "data[1].model_input.chunks[0].tokens has 5 bytes; int32 needs a multiple of 4",
    ),
    (lambda m: m.loss_fn_config_v2["k"].ClearField("value"), "loss_fn_config['k'] has no value"),
    (
        lambda m: setattr(targets(m), "dtype", 9),
        "data[1].loss_fn_inputs['target_tokens'] has dtype 9: allowed are DTYPE_FLOAT32, DTYPE_INT",
    ),
    (lambda m: setattr(targets(m), "dtype", 0), "has dtype 0"),
    (lambda m: targets(m).ClearField("encoding"), "has no data: it needs `dense` or `sparse_csr`"),
    (lambda m: setattr(targets(m), "dense", b"123"), "has 3 bytes; int64 needs a multiple of 8"),
    (lambda m: targets(m).shape.append(2), "cannot have shape (3, 2): it has 3 numbers"),
    (lambda m: targets(m).shape.extend([-1, -1]), "cannot have shape (3, -1, -1): up to 8 dim"),
    (lambda m: targets(m).shape.extend([1] * 10**5), "cannot have shape (3, 1, 1, 1, 1, ...)"),
    (lambda m: targets(m).shape.extend([0, 2**62]), "cannot have shape (3, 0, 46116860184273879"),
]


@pytest.mark.parametrize(("change", "told"), WRONG, ids=[told[:40] for _, told in WRONG])
def test_what_is_wrong_is_named_by_datum_and_field(change: Change, told: str) -> None:
    assert told in refused(change)


@pytest.mark.parametrize(
    ("rows", "columns", "shape", "told"),
    [
        ([0, 1, 1], [1, 0], (3, 2), "crow_indices has 3 entries; 4 are needed for 3 rows"),
        ([0, 2, 1, 2], [1, 0], (3, 2), "from 0 to 2 (the number of values) and never falling"),
        ([0, 1, 1, 9], [1, 0], (3, 2), "crow_indices has 4 entries"),
        ([1, 1, 1, 2], [1, 0], (3, 2), "crow_indices has 4 entries"),
        ([0, 1, 1, 2], [1, 2], (3, 2), "one column in 0..1 is needed for each"),
        ([0, 1, 1, 2], [-1, 0], (3, 2), "one column in 0..1 is needed for each"),
        ([0, 1, 1, 2], [1], (3, 2), "col_indices has 1 entries for 2 values"),
        ([0, 2, 2, 2], [1, 0], (3, 2), "must rise within each row"),
        ([0, 2, 2, 2], [1, 1], (3, 2), "must rise within each row"),
        ([0, 1, 1, 2], [1, 0], (3,), "is sparse and has shape (3); (rows, columns) is needed"),
        ([0, 1, 1, 2], [1, 0], (3, -2), "is sparse and has shape (3, -2)"),
    ],
)
def test_impossible_sparse_layouts_are_refused(
    rows: list[int], columns: list[int], shape: tuple[int, ...], told: str
) -> None:
    def change(message: pb.ForwardBackwardRequest) -> None:
        csr = pb.SparseCsr(
            values=packed([5, 6], "<i8"),
            crow_indices=packed(rows, "<i8"),
            col_indices=packed(columns, "<i8"),
        )
        tensor = pb.Tensor(sparse_csr=csr, dtype=pb.DTYPE_INT64, shape=shape)
        targets(message).CopyFrom(tensor)

    told_here = refused(change)
    assert told in told_here and "data[1].loss_fn_inputs['target_tokens']" in told_here


@pytest.mark.parametrize("shape", [(1, 2**40), (2**62, 2**62), (0, 2**62)])
def test_a_few_bytes_cannot_ask_for_a_large_matrix(shape: tuple[int, int]) -> None:
    def change(message: pb.ForwardBackwardRequest) -> None:
        csr = pb.SparseCsr(crow_indices=packed([0, 0], "<i8"))
        targets(message).CopyFrom(pb.Tensor(sparse_csr=csr, dtype=pb.DTYPE_INT64, shape=shape))

    assert "cells; at most 33554432 are taken" in refused(change, 413)


def test_the_sparse_tensors_of_a_request_are_bounded_together() -> None:
    reader = tensors.TensorReader(max_sparse_cells=10)
    csr = pb.SparseCsr(crow_indices=packed([0, 0, 0], "<i8"))
    tensor = pb.Tensor(sparse_csr=csr, dtype=pb.DTYPE_INT64, shape=[2, 3])
    assert reader.read(tensor, "first").shape == (2, 3)
    assert "second: with shape (2, 3)" in refusal(lambda: reader.read(tensor, "second"), 413)


def test_too_many_data_and_a_bloated_head_are_refused() -> None:
    body = a_request().SerializeToString()
    many = pb.ForwardBackwardRequest(data=[pb.Datum()] * (training_codec.MAX_DATA + 1))
    told = refusal(lambda: decode_forward_backward(body + many.SerializeToString()), 413)
    assert f"data: got {training_codec.MAX_DATA + 3}" in told
    refused(lambda m: setattr(m, "loss_fn", "x" * 2**20), 413)


@pytest.mark.parametrize("body", [b"", b"{}", b'{"model_id": "m"}', b"\xff" * 100, bytes(100)])
def test_garbage_is_refused_at_once(body: bytes) -> None:
    started = time.process_time()
    refusal(lambda: decode_forward_backward(body * 10_000))
    # generous: it takes some milliseconds
    assert time.process_time() - started < 1


def test_empty_data_by_the_million_end_at_the_first_one() -> None:
    body = a_request().SerializeToString() + b"\x1a\x00" * 10_000
    told = refusal(lambda: decode_forward_backward(body))
    assert told == "data[2].model_input is empty; it needs at least one token"


def test_a_cut_body_is_refused() -> None:
    body = a_request().SerializeToString()
    assert "is no protobuf" in refusal(lambda: decode_forward_backward(body[:-1]))
    # what is left of the last datum would be one
    message = a_request()
    del message.data[1].loss_fn_inputs["target_tokens"]
    cut = body[: len(message.SerializeToString())]
    assert "ends within" in refusal(lambda: decode_forward_backward(cut))


def output(**metrics: float) -> api.ForwardBackwardOutput:
    datum = {"logprobs": api.TensorData([0.0], "float32")}
    named = {key.replace("__", ":"): value for key, value in metrics.items()}
    return api.ForwardBackwardOutput("ArrayRecord", [datum], named)


def test_an_output_that_clients_would_misread_is_not_sent() -> None:
    encode_output(output(loss__sum=1))
    assert "no loss:sum" in refusal(lambda: encode_output(output()), 500)
    for key in ("loss", "a__b__c"):
        metrics = {"loss__sum": 1.0, key: 1.0}
        assert "with one colon" in refusal(lambda m=metrics: encode_output(output(**m)), 500)
    ragged = output(loss__sum=1)
    ragged.loss_fn_outputs.append({})
    told = refusal(lambda: encode_output(ragged), 500)
    assert told == "loss_fn_outputs[1] has the fields [], the first ['logprobs']"


# ----------------------------------------------------------------------------------------- sample

SAMPLE = {
    "sampling_session_id": "s",
    "seq_id": 0,
    "prompt": {"chunks": [{"type": "encoded_text", "tokens": [1, 2, 3]}]},
    "sampling_params": {"temperature": 1.0, "top_k": -1, "top_p": 1.0},
}
PARAMS = SAMPLE["sampling_params"]


def test_a_sample_request_may_leave_out_what_has_a_default() -> None:
    request = decode_sample({**SAMPLE, "type": "sample", "some_new_option": False, "stop_at": None})
    assert request.num_samples == 1 and request.params == api.SamplingParams()
    assert not request.prompt_logprobs and request.prompt_logprobs_last_n is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sampling_session_id": None}, "sampling_session_id: got None, a text is needed"),
        ({"seq_id": None}, "seq_id: got None, allowed are whole numbers from 0"),
        ({"seq_id": 10**30}, "seq_id: got a number of more than 64 bits"),
        ({"seq_id": True}, "seq_id: got True"),
        ({"num_samples": 0}, "num_samples: got 0, allowed are whole numbers from 1 to 16384"),
        ({"num_samples": 1.5}, "num_samples: got 1.5"),
        ({"prompt_logprobs": "yes"}, "prompt_logprobs: got 'yes', True or False is needed"),
        ({"topk_prompt_logprobs": -1}, "topk_prompt_logprobs: got -1, allowed are whole numbers"),
        ({"topk_sample_logprobs": 5000}, "topk_sample_logprobs: got 5000"),
        ({"prompt": None}, "prompt: got None, a JSON object is needed"),
        ({"prompt": {"chunks": {}}}, "prompt.chunks: got a JSON object, a JSON array is needed"),
        ({"prompt": {"chunks": [7]}}, "prompt.chunks[0]: got 7, a JSON object is needed"),
        ({"prompt": {"chunks": [{"type": "image"}]}}, "prompt.chunks[0] is 'image': models"),
        ({"prompt": {"chunks": [{"tokens": [1.5]}]}}, "prompt.chunks[0].tokens: an array of whole"),
        ({"prompt": {"chunks": [{"tokens": [True]}]}}, "prompt.chunks[0].tokens: an array of"),
        ({"prompt": {"chunks": [{"tokens": [-1, 2**31]}]}}, "got numbers from -1 to 2147483648"),
        ({"prompt": {"chunks": [{}]}}, "prompt.chunks[0].tokens: an array of whole numbers"),
        ({"sampling_params": []}, "sampling_params: got a JSON array, a JSON object is needed"),
        ({"sampling_params": {**PARAMS, "temperature": -1}}, "temperature=-1: a finite number"),
        ({"sampling_params": {**PARAMS, "temperature": float("nan")}}, "temperature=nan"),
        ({"sampling_params": {**PARAMS, "top_p": 0}}, "top_p=0: a number above 0"),
        ({"sampling_params": {**PARAMS, "top_k": 0}}, "top_k=0: -1 (off) or a whole number"),
        ({"sampling_params": {**PARAMS, "top_k": 10**30}}, "top_k: got a number of more than 64"),
        ({"sampling_params": {**PARAMS, "max_tokens": 0}}, "max_tokens=0"),
        ({"sampling_params": {**PARAMS, "stop": {"a": 1}}}, "stop={'a': 1}: a text or a list"),
        ({"sampling_params": {**PARAMS, "stop": ["a"] * 300}}, "stop: got 300, allowed are up to"),
        ({"sampling_params": {**PARAMS, "mirostat": 2}}, "sampling_params.mirostat: this server"),
        ({"speculate": {"k": 2}}, "speculate: this server does not know it; known are base_model"),
        ({"base_model": "m"}, "base_model: not taken here; create a sampling session"),
        ({"record_stability_info": True}, "pass loss_fn=importance_sampling"),
        ({"prompt_logprobs_last_n": 1}, "is given without prompt_logprobs=true"),
        ({"prompt_logprobs_last_n": 3, "prompt_logprobs": True}, "got 3, allowed from 1 to 2"),
        ({"target_prompt_logprobs": [1]}, "target_prompt_logprobs: got a JSON array"),
    ],
)
def test_a_sample_request_is_refused_by_field(changes: dict[str, Any], told: str) -> None:
    assert told in refusal(lambda: decode_sample({**SAMPLE, **changes}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"dtype": "float32"}, "dtype: got 'float32', 'int64' is needed"),
        ({"shape": [3, 2]}, "shape: got (3, 2), (2, K) is needed for a prompt of 3 tokens"),
        ({"shape": [2, 3]}, "data: got 4 numbers, 6 are needed for shape (2, 3)"),
        ({"data": [1, -2, 3, 4]}, "data: got numbers from -2 to 4, allowed from -1"),
        ({"sparse_crow_indices": [0, 2, 4]}, "sparse_col_indices: an array of whole numbers"),
    ],
)
def test_targets_of_the_prompt_are_refused_by_field(changes: dict[str, Any], told: str) -> None:
    tensor = {"data": [1, -1, 3, 4], "dtype": "int64", "shape": [2, 2]}
    assert decode_sample({**SAMPLE, "target_prompt_logprobs": tensor}).target_prompt_logprobs
    body = {**SAMPLE, "target_prompt_logprobs": {**tensor, **changes}}
    assert told in refusal(lambda: decode_sample(body))


def test_a_sample_is_little_endian_int32_and_float32() -> None:
    sequence = api.SampledSequence("length", np.array([258]), np.array([-0.5]))
    body = encode_sample(api.SampleResponse([sequence], np.array([np.nan, -2.0])))
    assert pb.SampleResponse.FromString(body) == pb.SampleResponse(
        sequences=[
            pb.SampledSequence(
                stop_reason=pb.STOP_REASON_LENGTH, tokens=b"\2\1\0\0", logprobs=b"\0\0\0\xbf"
            )
        ],
        prompt_logprobs=b"\0\0\xc0\x7f\0\0\0\xc0",
    )


# ----------------------------------------------------------------------------------------- bodies


def test_other_media_types_are_refused() -> None:
    require_protobuf("application/x-protobuf")
    require_protobuf("Application/X-Protobuf; charset=utf-8")
    for given in ("application/json", None, ""):
        assert "update it" in refusal(lambda g=given: require_protobuf(g), 415)


@pytest.mark.parametrize("encoding", ["gzip", "zstd", "ZSTD "])
def test_packed_bodies_are_read_up_to_the_cap(encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else bodies.zstd.compress
    body = np.random.default_rng(0).bytes(5000)
    assert decompress(pack(body), encoding, 5000) == body
    # several streams in one body are one after the other
    assert decompress(pack(body[:70]) + pack(body[70:]), encoding, 5000) == body
    assert "at most 4999 are taken" in refusal(lambda: decompress(pack(body), encoding, 4999), 413)
    for broken in (pack(body)[:-1], pack(body)[:100], body):
        told = refusal(lambda b=broken: decompress(b, encoding, 5000))
        assert "is no whole" in told


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_a_bomb_is_not_unpacked(encoding: str) -> None:
    pack = gzip.compress if encoding == "gzip" else bodies.zstd.compress
    # 4 GB in less than 20 MB
    bomb = pack(bytes(2**22)) * 2**10
    tracemalloc.start()
    refusal(lambda: decompress(bomb, encoding, 2**20), 413)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**23


def test_plain_bodies_have_the_same_cap_and_other_encodings_are_refused() -> None:
    assert decompress(b"abc", None, 3) == decompress(b"abc", "identity", 3) == b"abc"
    assert "more than 2 bytes; at most 2" in refusal(lambda: decompress(b"abc", None, 2), 413)
    for encoding in ("br", "gzip, zstd"):
        assert encoding in refusal(lambda e=encoding: decompress(b"abc", e, 3), 415)


def test_neither_torch_nor_the_sdk_is_imported() -> None:
    code = (
        "import sys, training.serving.wire.codec\n"
        "assert not {'torch', 'tinker', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
