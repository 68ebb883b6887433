"""What one model says as the target of another: its likeliest tokens with their probabilities."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from training.api import (
    APIFuture,
    Datum,
    ForwardBackwardOutput,
    ModelInput,
    SampleResponse,
    SamplingClient,
    SamplingParams,
    TopkLogprobs,
)
from training.chat import leading_bos, render_raw_prompt

# of a teacher, for each token
TEACHER_TOP_K = 20


def answer_datum(prompt: Sequence[int], response: SampleResponse) -> Datum:
    """Of one sampled answer with top-k logprobs: nothing is learned at the prompt, and at each
    token of the answer the likeliest ones, whose probabilities sum to 1; all (N, K)."""
    [sequence] = response.sequences
    top = sequence.topk_logprobs_np
    assert top is not None
    inputs = [*prompt, *sequence.tokens[:-1]]
    return _datum(inputs, len(prompt) - 1, top.token_ids, _shares(top.logprobs))


def distilled_datum(tokens: Sequence[int], weights: Sequence[float], top: TopkLogprobs) -> Datum:
    """`tokens` to be learned as another model sees them, one that has read more before: `top` are
    its likeliest tokens at each place of a prompt that ends with tokens[1:]. A token of weight w
    gets targets that sum to w; all (N, K)."""
    shares = _shares(top.logprobs[-(len(tokens) - 1) :])
    shares *= np.asarray(weights[1:], dtype=np.float64)[:, None]
    return _datum(tokens[:-1], 0, top.token_ids[-len(shares) :], shares)


def ask_teacher(
    tokenizer: Any, teacher: SamplingClient, shown: str, datums_D: Sequence[Datum]
) -> list[APIFuture[SampleResponse]]:
    """What a model that has read `shown` would say at each place of these texts: requests that
    taught() waits for. Raises ValueError where both together are longer than the context."""
    given, bos = render_raw_prompt(tokenizer, shown), leading_bos(tokenizer)
    futures = []
    for datum in datums_D:
        tokens = _tokens(datum)
        own = tokens[len(bos) :] if tokens[: len(bos)] == bos else tokens
        prompt = ModelInput.from_ints([*given, *own])
        futures.append(
            teacher.sample(
                prompt, 1, SamplingParams(max_tokens=1), topk_prompt_logprobs=TEACHER_TOP_K
            )
        )
    return futures


def taught(datums_D: Sequence[Datum], asked_D: Sequence[APIFuture[SampleResponse]]) -> list[Datum]:
    """The same texts with what the teacher said as their targets."""
    soft = []
    for datum, future in zip(datums_D, asked_D, strict=True):
        top = future.result().topk_prompt_logprobs_np
        assert top is not None
        weights = datum.loss_fn_inputs["weights"].to_numpy()
        soft.append(distilled_datum(_tokens(datum), [0.0, *weights], top))
    return soft


def divergences(datums_D: Sequence[Datum], output: ForwardBackwardOutput) -> list[float]:
    """For each soft datum the divergence KL(targets || model) in nats, mean over the places that
    count, where `output` is what forward() gave for the model."""
    found = []
    for datum, outputs in zip(datums_D, output.loss_fn_outputs, strict=True):
        shares = datum.loss_fn_inputs["weights"].to_numpy().astype(np.float64)
        counts = shares.sum(axis=1) > 0
        shares, said = shares[counts], outputs["logprobs"].to_numpy()[counts]
        logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
        found.append(float((shares * (logs - said)).sum(axis=1).mean()))
    return found


def _tokens(datum: Datum) -> list[int]:
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
    return [*datum.model_input.to_ints(), int(targets[-1])]


def _shares(logprobs: np.ndarray) -> np.ndarray:
    """[N, K] probabilities that sum to 1 over K."""
    likely = np.exp(logprobs.astype(np.float64))
    return likely / likely.sum(axis=1, keepdims=True)


def _datum(inputs: Sequence[int], start: int, ids: np.ndarray, shares: np.ndarray) -> Datum:
    targets = np.zeros((len(inputs), ids.shape[1]), dtype=np.int64)
    weights = np.zeros(targets.shape, dtype=np.float32)
    targets[start:], weights[start:] = ids, shares
    return Datum(ModelInput.from_ints(inputs), {"target_tokens": targets, "weights": weights})
