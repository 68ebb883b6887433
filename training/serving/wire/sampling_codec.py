"""Bodies and results of asample: JSON in, protobuf out, types of training.api here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from training import checks
from training.api import (
    EncodedTextChunk,
    ModelInput,
    SampledSequence,
    SampleResponse,
    SamplingParams,
)
from training.serving.errors import ServingError, bad_request
from training.serving.wire import tensors
from training.serving.wire import tinker_public_pb2 as pb

MAX_NUM_SAMPLES = 16_384
MAX_TOPK = 1024
MAX_STOPS = 256
# numbers that travel as int32 in the binary messages
_INT32_MAX = 2**31 - 1

_STOP_REASONS = {"stop": pb.STOP_REASON_STOP, "length": pb.STOP_REASON_LENGTH}
_PARAMS = ("max_tokens", "seed", "stop", "temperature", "top_k", "top_p")
# what an option that a newer client knows is when it is off
_OFF = (None, False, 0, "", [], {})


@dataclass(frozen=True, eq=False)
class PromptTargets:
    """Tokens whose logprobs at the prompt's positions are asked for.

    `tokens` is int64 [prompt length - 1, K]: row i is about prompt token i + 1, and -1 asks for
    nothing. `crow` and `col` are there if they came sparse.
    """

    tokens: np.ndarray
    crow: np.ndarray | None = None
    col: np.ndarray | None = None

    def answer(self, logprobs: np.ndarray) -> pb.Tensor:
        """`logprobs` of the shape of `tokens` in the layout of the request, 0 where it has -1."""
        asked = np.where(self.tokens >= 0, logprobs, 0.0)
        if self.crow is None or self.col is None:
            return tensors.dense_tensor(asked)
        rows = np.repeat(np.arange(len(self.tokens)), np.diff(self.crow))
        return tensors.sparse_tensor(asked[rows, self.col], self.crow, self.col, self.tokens.shape)


@dataclass(frozen=True)
class SampleRequest:
    """`prompt_logprobs_last_n`: of the prompt only the last n tokens need logprobs."""

    sampling_session_id: str
    seq_id: int
    num_samples: int
    prompt: ModelInput
    params: SamplingParams
    prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    prompt_alt_tokens_k: int = 0
    target_prompt_logprobs: PromptTargets | None = None
    prompt_logprobs_last_n: int | None = None


def decode_sample(body: Any) -> SampleRequest:
    """From parsed JSON. Raises ServingError 400 that names the field, what it got, what is allowed.

    Ranges of params are those of training.api.SamplingParams. A field that is not known here is
    refused unless it is off: to leave it out in silence would change what was asked for.
    """
    given = _object(body, "the body")
    for name in ("base_model", "model_path"):
        if given.get(name) is not None:
            raise _refused(name, "create a sampling session for it, and send sampling_session_id")
    if given.get("record_stability_info"):
        raise _refused(
            "record_stability_info",
            "it records what loss_fn=stable_reinforce needs, which is not served; pass "
            "loss_fn=importance_sampling",
        )
    params = _object(given.get("sampling_params"), "sampling_params")
    _refuse_unknown(given, "", {*_REQUEST_FIELDS, "type", "record_stability_info"})
    _refuse_unknown(params, "sampling_params.", set(_PARAMS))
    up_to = _whole_up_to
    values = _checked(
        given,
        sampling_session_id=_text,
        # a pickled client counts on in a block of 10^9 numbers of its own
        seq_id=up_to(0, 2**63 - 1),
        num_samples=up_to(1, MAX_NUM_SAMPLES, default=1),
        prompt_logprobs=_flag,
        topk_prompt_logprobs=up_to(0, MAX_TOPK, default=0),
        topk_sample_logprobs=up_to(0, MAX_TOPK, default=0),
        prompt_alt_tokens_k=up_to(0, MAX_TOPK, default=0),
    )
    prompt = _prompt(given.get("prompt"))
    return SampleRequest(
        **values,
        prompt=prompt,
        params=_params(params),
        target_prompt_logprobs=_targets(given.get("target_prompt_logprobs"), prompt.length),
        prompt_logprobs_last_n=_last_n(given, prompt.length),
    )


_REQUEST_FIELDS = {field.name for field in fields(SampleRequest)} - {"params"} | {
    "base_model",
    "model_path",
    "sampling_params",
}


def _refused(name: str, why: str) -> ServingError:
    return bad_request(f"{name}: not taken here; {why}", param=name)


def _object(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise bad_request(f"{where}: got {_shown(value)}, a JSON object is needed")
    return value


def _shown(value: Any) -> str:
    """What was sent, so short that an error can hold it."""
    if isinstance(value, dict | list):
        return f"a JSON {'object' if isinstance(value, dict) else 'array'}"
    if isinstance(value, int) and value.bit_length() > 64:
        return "a number of more than 64 bits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _refuse_unknown(given: Mapping[str, Any], prefix: str, known: set[str]) -> None:
    # a list, since values need not be hashable
    unknown = [name for name in given if name not in known and given[name] not in _OFF]
    if unknown:
        # without halves of surrogate pairs, which no reply can hold
        name = f"{prefix}{unknown[0]!r}".replace("'", "")[:100]
        raise bad_request(
            f"{name}: this server does not know it; known are {', '.join(sorted(known))}",
            param=name,
        )


def _checked(given: Mapping[str, Any], **settle: Callable[[Any], Any]) -> dict[str, Any]:
    settled = {}
    for name, check in settle.items():
        try:
            settled[name] = check(given.get(name))
        except ValueError as error:
            raise bad_request(
                f"{name}: got {_shown(given.get(name))}, {error}", param=name
            ) from error
    return settled


def _whole_up_to(least: int, most: int, default: int | None = None) -> Callable[[Any], int]:
    def check(value: Any) -> int:
        if value is None and default is not None:
            return default
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"allowed are whole numbers from {least} to {most}")
        return value

    return check


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("a text is needed")
    return value


def _flag(value: Any) -> bool:
    return False if value is None else checks.flag(value)


def _prompt(value: Any) -> ModelInput:
    chunks = _object(value, "prompt").get("chunks")
    if not isinstance(chunks, list):
        raise bad_request(
            f"prompt.chunks: got {_shown(chunks)}, a JSON array is needed", param="prompt"
        )
    decoded = []
    for at, chunk in enumerate(chunks):
        where = f"prompt.chunks[{at}]"
        kind = _object(chunk, where).get("type", "encoded_text")
        if kind != "encoded_text":
            raise bad_request(
                f"{where} is {_shown(kind)}: models served here read text only (encoded_text)",
                param="prompt",
            )
        decoded.append(EncodedTextChunk(_tokens(chunk.get("tokens"), f"{where}.tokens")))
    return ModelInput(decoded)


def _tokens(value: Any, where: str, least: int = 0) -> list[int]:
    """A flat array of numbers that int32 holds."""
    if not isinstance(value, list) or not set(map(type, value)) <= {int}:
        raise bad_request(f"{where}: an array of whole numbers is needed", param=where)
    if value and not least <= min(value) <= max(value) <= _INT32_MAX:
        raise bad_request(
            f"{where}: got numbers from {_shown(min(value))} to {_shown(max(value))}, allowed from "
            f"{least} to {_INT32_MAX}",
            param=where,
        )
    return value


def _params(given: Mapping[str, Any]) -> SamplingParams:
    stop = given.get("stop")
    if isinstance(stop, list) and len(stop) > MAX_STOPS:
        raise bad_request(f"stop: got {len(stop)}, allowed are up to {MAX_STOPS}", param="stop")
    for name in ("max_tokens", "top_k", "seed"):
        value = given.get(name)
        if isinstance(value, int) and not -(2**63) <= value < 2**64:
            raise bad_request(f"{name}: got {_shown(value)}", param=name)
    values = {name: given[name] for name in _PARAMS if given.get(name) is not None}
    try:
        return SamplingParams(**values)
    except ValueError as error:
        raise bad_request(str(error)[:1000], param="sampling_params") from error


def _targets(value: Any, prompt_length: int) -> PromptTargets | None:
    if value is None:
        return None
    name = "target_prompt_logprobs"
    given = _object(value, name)
    if given.get("dtype") != "int64":
        raise bad_request(
            f"{name}.dtype: got {_shown(given.get('dtype'))}, 'int64' is needed", param=name
        )
    shape = _tokens(given.get("shape"), f"{name}.shape")
    if len(shape) != 2 or shape[0] != prompt_length - 1:
        raise bad_request(
            f"{name}.shape: got {tensors.shown_shape(shape)}, ({prompt_length - 1}, K) is needed "
            f"for a prompt of {prompt_length} tokens",
            param=name,
        )
    values = np.array(_tokens(given.get("data"), f"{name}.data", -1), dtype=np.int64)
    if given.get("sparse_crow_indices") is None:
        if values.size != shape[0] * shape[1]:
            raise bad_request(
                f"{name}.data: got {values.size} numbers, {shape[0] * shape[1]} are needed for "
                f"shape {tensors.shown_shape(shape)}",
                param=name,
            )
        return PromptTargets(values.reshape(shape))
    crow, col = (
        np.array(_tokens(given.get(key), f"{name}.{key}"), dtype=np.int64)
        for key in ("sparse_crow_indices", "sparse_col_indices")
    )
    tokens = tensors.TensorReader().fill(values, crow, col, shape, name, absent=-1)
    return PromptTargets(tokens, crow, col)


def _last_n(given: Mapping[str, Any], prompt_length: int) -> int | None:
    last_n = given.get("prompt_logprobs_last_n")
    if last_n is None:
        return None
    name = "prompt_logprobs_last_n"
    if type(last_n) is not int or not 1 <= last_n < prompt_length:
        raise bad_request(
            f"{name}: got {_shown(last_n)}, allowed from 1 to {prompt_length - 1} for a prompt of "
            f"{prompt_length} tokens",
            param=name,
        )
    if not given.get("prompt_logprobs"):
        raise bad_request(f"{name} is given without prompt_logprobs=true", param=name)
    return last_n


def encode_sample(
    response: SampleResponse,
    target_prompt_logprobs: pb.Tensor | None = None,
    prompt_alt_tokens: tuple[np.ndarray, np.ndarray] | None = None,
    prompt_logprobs_last_n: int | None = None,
) -> bytes:
    """`target_prompt_logprobs` as PromptTargets.answer gives them; `prompt_alt_tokens`: tokens and
    their logprobs, both [prompt length - 1, k].

    With `prompt_logprobs_last_n` the prompt's earlier logprobs are left out.
    """
    message = pb.SampleResponse(
        sequences=[_sequence(sequence) for sequence in response.sequences],
        prompt_cache_hit_tokens=response.prompt_cache_hit_tokens,
        target_prompt_logprobs=target_prompt_logprobs,
    )
    if (logprobs := response.prompt_logprobs_np) is not None:
        hidden = _hidden(len(logprobs), prompt_logprobs_last_n)
        logprobs = np.where(np.arange(len(logprobs)) < hidden, np.nan, logprobs)
        message.prompt_logprobs = tensors.packed_logprobs(logprobs)
    if (topk := response.topk_prompt_logprobs_np) is not None:
        hidden = _hidden(len(topk.token_ids), prompt_logprobs_last_n)
        message.topk_prompt_logprobs.CopyFrom(tensors.packed_topk(topk, hidden))
    if prompt_alt_tokens is not None:
        tokens, token_logprobs = prompt_alt_tokens
        message.prompt_alt_tokens.tokens.CopyFrom(tensors.dense_tensor(tokens))
        message.prompt_alt_tokens.logprobs.CopyFrom(tensors.dense_tensor(token_logprobs))
    return message.SerializeToString()


def _hidden(length: int, last_n: int | None) -> int:
    """How many of the prompt's first tokens have no logprobs to show."""
    return 0 if last_n is None else max(0, length - last_n)


def _sequence(sequence: SampledSequence) -> pb.SampledSequence:
    message = pb.SampledSequence(
        stop_reason=_STOP_REASONS[sequence.stop_reason],
        tokens=tensors.packed_tokens(sequence.tokens_np),
    )
    if sequence.logprobs_np is not None:
        message.logprobs = tensors.packed_logprobs(sequence.logprobs_np)
    if sequence.topk_logprobs_np is not None:
        message.topk_sampled_logprobs.CopyFrom(tensors.packed_topk(sequence.topk_logprobs_np))
    return message
