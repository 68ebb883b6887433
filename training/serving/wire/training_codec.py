"""Bodies and results of forward_backward: protobuf on the wire, types of training.api here.

Bytes that are wrong are found here; whether the loss can use the data is the engine's to say.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar, get_args

from google.protobuf.message import DecodeError, Message

from training.api import (
    Datum,
    EncodedTextChunk,
    ForwardBackwardOutput,
    LossFnType,
    ModelInput,
    TensorData,
)
from training.serving.errors import bad_request, server_fault, too_large
from training.serving.wire import tensors
from training.serving.wire import tinker_public_pb2 as pb
from training.serving.wire.split import split_off

# Far more than clients send at once: the SDK cuts batches at 1024 data and 5 MB.
MAX_DATA = 16_384
MAX_DATUM_BYTES = 64 * 2**20
# the model's id, the loss and its settings
_MAX_HEAD_BYTES = 2**20

M = TypeVar("M", bound=Message)


@dataclass(frozen=True)
class ForwardBackwardRequest:
    """`seq_id` is None where the client gave none. `data` are as sent, not yet checked against the
    loss and the model's vocabulary."""

    model_id: str
    seq_id: int | None
    data: list[Datum]
    loss_fn: LossFnType
    loss_fn_config: dict[str, float | str]
    forward_only: bool


def decode_forward_backward(body: bytes) -> ForwardBackwardRequest:
    """Raises ServingError 400 or 413 that names the datum, the field, what it got, what is allowed.

    Sparse and two-dimensional tensors become dense ones, int32 becomes int64, bfloat16 float32;
    spans of provenance are ignored.
    """
    try:
        rest, places = split_off(body, pb.ForwardBackwardRequest.DATA_FIELD_NUMBER)
    except ValueError as error:
        raise bad_request(f"the body is no protobuf ForwardBackwardRequest: {error}") from error
    if len(rest) > _MAX_HEAD_BYTES:
        raise too_large(
            f"the body has {len(rest)} bytes besides its data; {_MAX_HEAD_BYTES} are taken"
        )
    head = _parsed(pb.ForwardBackwardRequest.FromString, rest, "the body")
    if not head.model_id:
        raise bad_request("model_id is missing", param="model_id")
    if head.seq_id < 0:
        raise bad_request(f"seq_id: got {head.seq_id}, allowed from 1", param="seq_id")
    loss_fn = _loss_fn(head.loss_fn)
    config = _loss_fn_config(head)
    if not places:
        raise bad_request("data is empty: pass at least one Datum", param="data")
    if len(places) > MAX_DATA:
        raise too_large(f"data: got {len(places)}, allowed up to {MAX_DATA} in one request")
    reader = tensors.TensorReader()
    data = [
        _datum(body[begin:end], f"data[{at}]", reader) for at, (begin, end) in enumerate(places)
    ]
    return ForwardBackwardRequest(
        head.model_id, head.seq_id or None, data, loss_fn, config, head.forward_only
    )


def _parsed(parse: Callable[[bytes], M], data: bytes, where: str) -> M:
    try:
        return parse(data)
    except DecodeError as error:
        raise bad_request(f"{where} is no protobuf message of its kind: {error}") from error


def _loss_fn(name: str) -> LossFnType:
    for known in get_args(LossFnType):
        if name == known:
            return known
    served = f"served here are {', '.join(get_args(LossFnType))}"
    if name == "stable_reinforce":
        why = f"its formula is not published; {served}. Pass loss_fn=importance_sampling"
    elif name == "custom":
        why = (
            f"losses are not run on the server; {served}. forward_backward_custom runs any loss in "
            "the client, and loss_fn=importance_sampling is the plain policy gradient"
        )
    else:
        why = served
    raise bad_request(f"loss_fn={name[:80]!r}: {why}", param="loss_fn")


def _loss_fn_config(head: pb.ForwardBackwardRequest) -> dict[str, float | str]:
    config: dict[str, float | str] = dict(head.loss_fn_config)
    for key, value in head.loss_fn_config_v2.items():
        kind = value.WhichOneof("value")
        if kind is None:
            raise bad_request(f"loss_fn_config[{key[:80]!r}] has no value", param="loss_fn_config")
        config[key] = value.number if kind == "number" else value.text
    return config


def _datum(data: bytes, where: str, reader: tensors.TensorReader) -> Datum:
    if len(data) > MAX_DATUM_BYTES:
        raise too_large(f"{where} has {len(data)} bytes; at most {MAX_DATUM_BYTES} are taken")
    message = _parsed(pb.Datum.FromString, data, where)
    model_input = ModelInput(list(_chunks(message, where)))
    if model_input.length == 0:
        raise bad_request(f"{where}.model_input is empty; it needs at least one token")
    inputs = {}
    for key, tensor in message.loss_fn_inputs.items():
        array = reader.read(tensor, f"{where}.loss_fn_inputs[{key[:80]!r}]")
        inputs[key] = TensorData.from_numpy(array)
    return Datum(model_input, inputs)


def _chunks(message: pb.Datum, where: str) -> Iterator[EncodedTextChunk]:
    for at, chunk in enumerate(message.model_input):
        kind = chunk.WhichOneof("chunk")
        place = f"{where}.model_input.chunks[{at}]"
        if kind != "encoded_text":
            raise bad_request(
                f"{place} is {kind or 'empty'}: models served here read text only (encoded_text)"
            )
        yield EncodedTextChunk(tensors.token_ids(chunk.encoded_text.tokens, f"{place}.tokens"))


def encode_output(output: ForwardBackwardOutput) -> bytes:
    """One ArrayRecord for each run of data whose fields agree in dtype and trailing shape.

    Raises ServingError 500 for an output that clients would misread: a field that some data lack
    would shift those of the data after it, and clients combine metrics by the part of their keys
    after one colon.
    """
    fields = set(output.loss_fn_outputs[0]) if output.loss_fn_outputs else set()
    for at, arrays in enumerate(output.loss_fn_outputs):
        if set(arrays) != fields:
            raise server_fault(
                f"loss_fn_outputs[{at}] has the fields {sorted(arrays)}, the first {sorted(fields)}"
            )
    if wrong := [key for key in output.metrics if key.count(":") != 1]:
        raise server_fault(f"metrics {wrong}: a key is name:reduction, with one colon")
    if "loss:sum" not in output.metrics:
        raise server_fault(f"metrics has {sorted(output.metrics)} and no loss:sum")
    message = pb.ForwardBackwardOutput(
        loss_fn_output_type=output.loss_fn_output_type, metrics=output.metrics
    )
    for _, group in groupby(output.loss_fn_outputs, _layout):
        data = list(group)
        record = message.loss_fn_outputs.add(
            type_tag=output.loss_fn_output_type, num_datums=len(data)
        )
        for name in sorted(fields):
            batched = tensors.batched_tensor([arrays[name] for arrays in data])
            record.fields[name].CopyFrom(batched)
    return message.SerializeToString()


def _layout(arrays: dict[str, TensorData]) -> list[tuple[str, str, list[int]]]:
    """What the data of one ArrayRecord have in common."""
    return sorted((name, data.dtype, (data.shape or [])[1:]) for name, data in arrays.items())
