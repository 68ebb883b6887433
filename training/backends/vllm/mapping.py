"""From our requests to vLLM's, and from its samples to ours."""

import hashlib
import math
from typing import Any

import numpy as np

from training.api import RequestFailedError, SampledSequence, StopReason
from training.backends.local.constraint import Constraint
from training.backends.local.sampler import SampleJob, not_a_number
from training.backends.local.tokens import stack_topk

# vLLM computes what lies between 0 and this as if it were this
LOWEST_TEMPERATURE = 0.01
# a smaller one is 0 for the local sampler
_TINY = float(np.finfo(np.float32).tiny)


def sample_seed(seed: int, sample: int) -> int:
    """Of one sample of a request, 63 bits. vLLM's own way, seed + sample, would give requests with
    neighbouring seeds the same samples; and a processor's generator reads 32 bits alone."""
    digest = hashlib.blake2b(f"{seed} {sample}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def check_temperature(temperature: float, name: str = "temperature") -> None:
    """Raises ValueError for one that vLLM would change."""
    if _TINY <= temperature < LOWEST_TEMPERATURE:
        raise ValueError(
            f"{name}={temperature}: vLLM samples at 0 or from {LOWEST_TEMPERATURE}; use one "
            "of these, or sampler='local'"
        )


def vllm_params(job: SampleJob, end_tokens: frozenset[int]) -> dict[str, Any]:
    """The keywords of vLLM's SamplingParams but n, seed and output_kind; structured_outputs are
    those of StructuredOutputsParams.

    vLLM's own idea of an end token is never used. A constrained text stops at one of `end_tokens`
    in any case: vLLM would go on.
    """
    params = job.params
    strings = _stop_strings(params.stop)
    structured = None
    if params.json_schema is not None:
        structured = {"json": dict(params.json_schema)}
    elif params.grammar is not None:
        structured = {"grammar": params.grammar}
    stop_tokens = job.stop_tokens if structured is None else job.stop_tokens | end_tokens
    return {
        "max_tokens": job.max_tokens,
        "temperature": 0.0 if params.temperature < _TINY else float(params.temperature),
        "top_k": params.top_k,
        "top_p": float(params.top_p),
        "min_p": float(params.min_p),
        "stop": strings,
        "stop_token_ids": sorted(stop_tokens),
        "ignore_eos": True,
        # or the text of a special token would never be seen as a stop string
        "skip_special_tokens": False,
        "detokenize": bool(strings),
        "logprobs": job.topk_sample_logprobs,
        "structured_outputs": structured,
    }


def _stop_strings(stop: Any) -> list[str]:
    if isinstance(stop, str):
        return [stop]
    return [item for item in stop or () if isinstance(item, str)]


def stop_reason(finish_reason: str | None) -> StopReason:
    """Raises RequestFailedError for a sample that was not finished."""
    if finish_reason == "stop":
        return "stop"
    if finish_reason == "length":
        return "length"
    raise RequestFailedError(f"vLLM ended a sample before its end ({finish_reason})", "server")


def sequence(
    sample: int,
    reason: StopReason,
    tokens: list[int],
    logprobs: list[float],
    topk: list[tuple[np.ndarray, np.ndarray]],
) -> SampledSequence:
    """Raises RequestFailedError where logprobs are not numbers."""
    if any(math.isnan(logprob) for logprob in logprobs):
        raise not_a_number(f"{len(tokens)} sampled tokens")
    return SampledSequence(
        stop_reason=reason,
        tokens_np=np.array(tokens, dtype=np.int64),
        logprobs_np=np.array(logprobs, dtype=np.float32),
        sequence_id=str(sample),
        topk_logprobs_np=stack_topk(topk) if topk else None,
    )


def topk_arrays(
    likeliest: list[tuple[list[int], list[float]]],
) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (np.array(ids, dtype=np.int32), np.array(logprobs, dtype=np.float32))
        for ids, logprobs in likeliest
    ]


def cut_where_finished(
    tokens: list[int], reason: StopReason, constraint: Constraint
) -> tuple[list[int], StopReason]:
    """A constrained sample as the local sampler ends it: with the token that finishes the text.
    vLLM needs an end token after it."""
    for length, token in enumerate(tokens, 1):
        constraint.accept(token)
        if constraint.error is not None:
            raise constraint.error
        if constraint.finished:
            return tokens[:length], "stop"
    return tokens, reason
