"""The codec against the SDK's own: what it writes is read here, what is written here it reads.

uv run pytest tests/training/serving/test_wire_sdk.py
"""

from typing import Any

import numpy as np
import pytest

from training import api
from training.serving.wire import tinker_public_pb2 as pb
from training.serving.wire.codec import (
    PromptTargets,
    decode_forward_backward,
    decode_sample,
    encode_output,
    encode_sample,
)

tinker = pytest.importorskip("tinker")
request_conv = pytest.importorskip("tinker.proto.request_conv")
response_conv = pytest.importorskip("tinker.proto.response_conv")

# messages that the SDK declares and neither sends nor reads
UNUSED = {"SamplingParams", "StopStrings", "StopTokens"}
SHAPES = range(60)


def messages_of(module: Any) -> dict[str, Any]:
    """{message: its fields as declared}, without the name of the package."""

    def fields_of(message: Any) -> list[Any]:
        declared = []
        for field in message.fields:
            inner, enum, oneof = field.message_type, field.enum_type, field.containing_oneof
            declared.append(
                (
                    (field.name, field.number, field.type, field.is_repeated, field.has_presence),
                    fields_of(inner) if inner is not None else None,
                    {v.name: v.number for v in enum.values} if enum is not None else None,
                    oneof.name if oneof is not None else None,
                )
            )
        return sorted(declared, key=lambda field: field[0])

    named = module.DESCRIPTOR.message_types_by_name.items()
    return {name: fields_of(message) for name, message in named if name not in UNUSED}


def test_our_messages_are_those_of_the_sdk() -> None:
    sdk = messages_of(response_conv.public_pb)
    assert messages_of(pb) == sdk and len(sdk) == 20


# ----------------------------------------------------------------------------- what the SDK sends


def random_inputs(rng: np.random.Generator, length: int) -> dict[str, np.ndarray]:
    """target_tokens (N,) or (N, K) and weights of the same shape, many of them 0."""
    shape = (length,) if rng.random() < 0.4 else (length, int(rng.integers(1, 9)))
    kept = rng.random(shape) < rng.choice([0.1, 0.9])
    tokens = np.where(kept, rng.integers(1, 1000, shape), 0)
    return {
        "target_tokens": tokens.astype(np.int64),
        # negative ones too
        "weights": np.where(kept, rng.normal(size=shape), 0).astype(np.float32),
        "advantages": rng.normal(size=length).astype(np.float32),
    }


def sdk_request(
    rng: np.random.Generator, config: dict[str, float | str] | None = None
) -> tuple[Any, list[tuple[list[int], dict[str, np.ndarray]]]]:
    """The SDK's message, and tokens and inputs of its data."""
    import torch

    data, plain = [], []
    for _ in range(rng.integers(1, 5)):
        tokens = rng.integers(0, 49_000, rng.integers(1, 30)).tolist()
        inputs = random_inputs(rng, len(tokens))
        cut = int(rng.integers(0, len(tokens)))
        chunks = [tinker.EncodedTextChunk(tokens=part) for part in (tokens[:cut], tokens[cut:])]
        # a tensor of torch that is sparse enough becomes CSR
        as_torch = {key: torch.from_numpy(array) for key, array in inputs.items()}
        datum = tinker.Datum(tinker.ModelInput(chunks=chunks), as_torch)
        if rng.random() < 0.5:
            span = tinker.PromptProvenanceSpan(sequence_id="s", length=len(tokens))
            datum = datum.with_provenance([span], [span])
        data.append(datum)
        plain.append((tokens, inputs))
    forward_backward = tinker.types.ForwardBackwardInput(
        data=data, loss_fn="cross_entropy", loss_fn_config=config
    )
    request = tinker.types.ForwardBackwardRequest(forward_backward, "session:train:0", 7)
    return request_conv.forward_backward_request_to_proto(request), plain


@pytest.mark.parametrize("seed", SHAPES)
def test_a_request_of_the_sdk_is_read_as_it_was_made(seed: int) -> None:
    message, plain = sdk_request(np.random.default_rng(seed))
    request = decode_forward_backward(message.SerializeToString())
    assert (request.model_id, request.seq_id) == ("session:train:0", 7)
    assert request.loss_fn == "cross_entropy" and not request.forward_only
    assert len(request.data) == len(plain)
    for datum, (tokens, inputs) in zip(request.data, plain, strict=True):
        assert datum.model_input.to_ints() == tokens
        assert datum.loss_fn_inputs.keys() == inputs.keys()
        for key, array in inputs.items():
            read = datum.loss_fn_inputs[key]
            assert read.dtype == array.dtype.name
            np.testing.assert_array_equal(read.to_numpy(), array, strict=True)


def test_the_requests_above_have_sparse_tensors_and_spans() -> None:
    found = [sdk_request(np.random.default_rng(seed))[0] for seed in SHAPES]
    data = [datum for message in found for datum in message.data]
    assert sum(datum.loss_fn_inputs["weights"].HasField("sparse_csr") for datum in data) > 20
    assert sum(len(datum.model_input_spans) for datum in data) > 20


def test_numbers_and_texts_of_the_configuration_both_arrive() -> None:
    config = {"clip_low_threshold": 0.9, "loss_id": "abc"}
    message, _ = sdk_request(np.random.default_rng(0), config)
    message.forward_only = True
    request = decode_forward_backward(message.SerializeToString())
    assert request.loss_fn_config == config and request.forward_only


def sent_sample(**changes: Any) -> dict[str, Any]:
    """The JSON that SDK 0.38 posts to asample."""
    given = {
        "num_samples": 3,
        "prompt": tinker.ModelInput.from_ints([5, 6, 7]),
        "sampling_params": tinker.SamplingParams(max_tokens=4, stop=[2], seed=9, top_k=20),
        "sampling_session_id": "s1",
        "seq_id": 4_000_000_000,
        "prompt_logprobs": True,
        **changes,
    }
    return tinker.types.SampleRequest(**given).model_dump(exclude_none=True, mode="json")


def test_a_sample_request_of_the_sdk_is_read_as_it_was_made() -> None:
    body = sent_sample(topk_prompt_logprobs=2, topk_sample_logprobs=3, prompt_logprobs_last_n=2)
    request = decode_sample(body)
    assert (request.sampling_session_id, request.seq_id) == ("s1", 4_000_000_000)
    assert request.num_samples == 3 and request.prompt.to_ints() == [5, 6, 7]
    assert request.params == api.SamplingParams(max_tokens=4, stop=[2], seed=9, top_k=20)
    assert request.prompt_logprobs and request.prompt_logprobs_last_n == 2
    assert (request.topk_prompt_logprobs, request.topk_sample_logprobs) == (2, 3)
    assert request.target_prompt_logprobs is None and request.prompt_alt_tokens_k == 0


@pytest.mark.parametrize("stop", [None, [], "\n\nUser:", ["a", "b"], [0, 2]])
def test_every_kind_of_stop_arrives(stop: Any) -> None:
    params = tinker.SamplingParams(stop=stop)
    assert decode_sample(sent_sample(sampling_params=params)).params.stop == stop


# ----------------------------------------------------------------------------- what the SDK reads


def random_tensor(rng: np.random.Generator, kind: str, trailing: tuple[int, ...]) -> np.ndarray:
    shape = (int(rng.integers(0, 6)), *trailing)
    if kind == "int64":
        return rng.integers(-(2**40), 2**40, shape)
    return rng.normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("seed", SHAPES)
def test_the_sdk_reads_an_output_as_it_was_made(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kinds = {"logprobs": "float32", "tokens": "int64", "other": "float32"}
    # the trailing shape changes now and then, so that several records are needed
    arrays = []
    trailing: tuple[int, ...] = ()
    for _ in range(rng.integers(0, 8)):
        if rng.random() < 0.4:
            trailing = tuple(rng.integers(1, 4, rng.integers(0, 3)).tolist())
        arrays.append({name: random_tensor(rng, kind, trailing) for name, kind in kinds.items()})
    outputs = [{n: api.TensorData.from_numpy(a) for n, a in datum.items()} for datum in arrays]
    metrics = {"loss:sum": float(rng.normal()), "clip_fraction:mean": 0.25}
    body = encode_output(api.ForwardBackwardOutput("ArrayRecord", outputs, metrics))
    read = response_conv.deserialize_forward_backward_output(body)
    assert read.metrics == metrics and read.loss_fn_output_type == "ArrayRecord"
    assert len(read.loss_fn_outputs) == len(arrays)
    for datum, expected in zip(read.loss_fn_outputs, arrays, strict=True):
        assert datum.keys() == expected.keys()
        for name, array in expected.items():
            assert datum[name].dtype == kinds[name]
            np.testing.assert_array_equal(datum[name].to_numpy(), array, strict=True)


def random_topk(rng: np.random.Generator, length: int) -> api.TopkLogprobs:
    """Some positions have nothing, some less than k."""
    ids = rng.integers(1, 1000, (length, 3)).astype(np.int32)
    logprobs = -np.sort(rng.random((length, 3)).astype(np.float32), axis=1)
    empty = np.arange(3) >= rng.integers(0, 4, (length, 1))
    ids[empty], logprobs[empty] = 0, -99999.0
    return api.TopkLogprobs(ids, logprobs)


@pytest.mark.parametrize("seed", SHAPES)
def test_the_sdk_reads_a_sample_as_it_was_made(seed: int) -> None:
    rng = np.random.default_rng(seed)
    has_prompt, has_topk, has_logprobs = rng.random(3) < 0.5
    sequences = []
    for _ in range(rng.integers(1, 4)):
        length = int(rng.integers(1, 12))
        sequences.append(
            api.SampledSequence(
                "stop" if rng.random() < 0.5 else "length",
                rng.integers(0, 49_000, length).astype(np.int64),
                rng.normal(size=length).astype(np.float32) if has_logprobs else None,
                topk_logprobs_np=random_topk(rng, length) if has_topk else None,
            )
        )
    prompt_length = int(rng.integers(1, 9))
    logprobs = rng.normal(size=prompt_length).astype(np.float32)
    logprobs[0] = np.nan
    response = api.SampleResponse(
        sequences,
        prompt_logprobs_np=logprobs if has_prompt else None,
        topk_prompt_logprobs_np=random_topk(rng, prompt_length) if has_topk else None,
        prompt_cache_hit_tokens=int(rng.integers(0, 9)),
    )
    read = response_conv.deserialize_sample_response(encode_sample(response))
    assert read.prompt_logprobs == response.prompt_logprobs
    assert read.topk_prompt_logprobs == response.topk_prompt_logprobs
    assert read.prompt_cache_hit_tokens == response.prompt_cache_hit_tokens
    assert len(read.sequences) == len(sequences)
    for found, sequence in zip(read.sequences, sequences, strict=True):
        assert found.stop_reason == sequence.stop_reason
        assert found.tokens == sequence.tokens
        assert found.logprobs == sequence.logprobs
        assert found.topk_logprobs == sequence.topk_logprobs


def test_only_the_last_tokens_of_a_prompt_have_logprobs_where_no_more_were_asked_for() -> None:
    topk = api.TopkLogprobs(
        np.array([[0], [3], [4], [5]]), np.array([[-99999.0], [-1], [-2], [-3]])
    )
    response = api.SampleResponse([], np.array([np.nan, -1, -2, -3]), topk)
    body = encode_sample(response, prompt_logprobs_last_n=2)
    read = response_conv.deserialize_sample_response(body)
    assert read.prompt_logprobs == [None, None, -2, -3]
    assert read.topk_prompt_logprobs == [None, None, [(4, -2)], [(5, -3)]]


@pytest.mark.parametrize("sparse", [False, True])
def test_target_logprobs_come_back_in_the_layout_of_the_request(sparse: bool) -> None:
    import torch

    tokens = torch.full((20, 5), -1)
    tokens[3, 1], tokens[3, 4], tokens[19, 0] = 11, 0, 13
    make = tinker.TensorData.from_torch_sparse if sparse else tinker.TensorData.from_torch
    targets = make(tokens, pad_value=-1) if sparse else make(tokens)
    sent = {
        "data": targets.data,
        "dtype": "int64",
        "shape": targets.shape,
        "sparse_crow_indices": targets.sparse_crow_indices,
        "sparse_col_indices": targets.sparse_col_indices,
    }
    body = sent_sample(prompt=tinker.ModelInput.from_ints([1] * 21), target_prompt_logprobs=sent)
    asked = decode_sample(body).target_prompt_logprobs
    assert isinstance(asked, PromptTargets)
    np.testing.assert_array_equal(asked.tokens, tokens.numpy())
    logprobs = -np.arange(1, 101, dtype=np.float32).reshape(20, 5)
    encoded = encode_sample(api.SampleResponse([]), asked.answer(logprobs))
    read = response_conv.deserialize_sample_response(encoded).target_prompt_logprobs
    assert (read.sparse_crow_indices is not None) == sparse
    assert read.sparse_crow_indices == targets.sparse_crow_indices
    assert read.sparse_col_indices == targets.sparse_col_indices
    expected = np.where(tokens.numpy() >= 0, logprobs, 0)
    np.testing.assert_array_equal(read.to_numpy(), expected)


def test_drawn_alternatives_to_the_prompts_tokens_come_back() -> None:
    tokens, logprobs = np.array([[4, 5], [6, 7]]), np.array([[-1, -2], [-3, -4.5]])
    encoded = encode_sample(api.SampleResponse([]), prompt_alt_tokens=(tokens, logprobs))
    read = response_conv.deserialize_sample_response(encoded).prompt_alt_tokens
    assert read.tokens.dtype == "int64" and read.tokens.tolist() == tokens.tolist()
    assert read.logprobs.dtype == "float32" and read.logprobs.tolist() == logprobs.tolist()
    nothing = response_conv.deserialize_sample_response(encode_sample(api.SampleResponse([])))
    assert nothing.prompt_alt_tokens is None and nothing.target_prompt_logprobs is None
    assert nothing.prompt_logprobs is None and nothing.topk_prompt_logprobs is None
