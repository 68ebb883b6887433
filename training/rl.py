"""Reinforcement learning on groups of answers: advantages, training data, diagnostics.

Axes: P problems of a batch, G answers of a group, T tokens of an answer, D training data.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.api import Datum, ModelInput, SampledSequence


@dataclass(frozen=True)
class Trajectory:
    """One sampled answer with the prompt it answers."""

    prompt: list[int]
    tokens_T: list[int]
    logprobs_T: np.ndarray

    @classmethod
    def of(cls, prompt: list[int], sequence: SampledSequence) -> "Trajectory":
        logprobs = sequence.logprobs_np
        assert logprobs is not None
        return cls(prompt, sequence.tokens, logprobs.astype(np.float64))

    @property
    def all_tokens(self) -> list[int]:
        return self.prompt + self.tokens_T


def seed_for(*parts: object) -> int:
    """A seed that depends on the parts' text alone, the same in every process."""
    return zlib.crc32("/".join(map(str, parts)).encode())


def centred_advantages(rewards_P_G: Sequence[Sequence[float]]) -> list[np.ndarray | None]:
    """Rewards minus their group's mean; None for a group without spread, which teaches nothing."""
    advantages_P: list[np.ndarray | None] = []
    for rewards_G in rewards_P_G:
        centred = np.asarray(rewards_G, dtype=np.float64) - np.mean(rewards_G)
        advantages_P.append(centred if np.any(np.abs(centred) > 1e-12) else None)
    return advantages_P


def policy_datum(trajectory: Trajectory, advantages_T: np.ndarray) -> Datum:
    """A datum for the policy losses; the prompt's positions carry zeros."""
    before = len(trajectory.prompt) - 1
    tokens = trajectory.all_tokens
    zeros = np.zeros(before, dtype=np.float32)
    return Datum(
        ModelInput.from_ints(tokens[:-1]),
        {
            "target_tokens": np.array([0] * before + trajectory.tokens_T, dtype=np.int64),
            "logprobs": np.concatenate([zeros, trajectory.logprobs_T]).astype(np.float32),
            "advantages": np.concatenate([zeros, advantages_T]).astype(np.float32),
        },
    )


def with_sequence_mask(datum: Datum, num_answer_tokens: int) -> Datum:
    """gspo's extra input: which positions count in the sequence's ratio."""
    mask = np.zeros(datum.model_input.length, dtype=np.float32)
    mask[-num_answer_tokens:] = 1.0
    return Datum(datum.model_input, {**datum.loss_fn_inputs, "sequence_ratio_mask": mask})


def answer_datum(trajectory: Trajectory) -> Datum:
    """A datum that imitates the answer: cross entropy, weight 1 on each of its tokens."""
    before = len(trajectory.prompt) - 1
    tokens = trajectory.all_tokens
    weights = np.array([0.0] * before + [1.0] * len(trajectory.tokens_T), dtype=np.float32)
    return Datum(
        ModelInput.from_ints(tokens[:-1]),
        {"target_tokens": np.array(tokens[1:], dtype=np.int64), "weights": weights},
    )


def kl_penalised(
    advantages: Sequence[float],
    trajectories: Sequence[Trajectory],
    base_logprobs_D_T: Sequence[np.ndarray],
    kl_coef: float,
) -> tuple[list[np.ndarray], float]:
    """Token advantages with kl_coef * (mean KL - token's KL) added, and the mean KL to the base.

    The token's estimate is log policy - log base at the sampled token; subtracting the mean keeps
    the batch's advantages centred.
    """
    estimates_D_T = [
        trajectory.logprobs_T - base
        for trajectory, base in zip(trajectories, base_logprobs_D_T, strict=True)
    ]
    mean = float(np.concatenate(estimates_D_T).mean())
    penalised = [
        advantage + kl_coef * (mean - estimates_T)
        for advantage, estimates_T in zip(advantages, estimates_D_T, strict=True)
    ]
    return penalised, mean


def policy_diagnostics(
    trajectories: Sequence[Trajectory], trainer_logprobs_D: Sequence[np.ndarray]
) -> dict[str, float]:
    """How far the trainer's logprobs of the sampled tokens are from the sampler's.

    kl_k1 is mean(q - p), kl_k3 mean(exp(p - q) - 1 - (p - q)) (Schulman), rms in nats; entropy is
    estimated by the sampled tokens' mean -logprob.
    """
    q = np.concatenate([t.logprobs_T for t in trajectories])
    p = np.concatenate(
        [lp[-len(t.tokens_T) :] for t, lp in zip(trajectories, trainer_logprobs_D, strict=True)]
    ).astype(np.float64)
    difference = p - q
    return {
        "policy/kl_sampler_trainer_k1": float(-difference.mean()),
        "policy/kl_sampler_trainer_k3": float((np.exp(difference) - 1 - difference).mean()),
        "policy/rms_sampler_trainer": float(np.sqrt((difference**2).mean())),
    }


def entropy(trajectories: Sequence[Trajectory]) -> float:
    """Nats per token, estimated by the sampled tokens' mean -logprob."""
    return float(-np.concatenate([t.logprobs_T for t in trajectories]).mean())


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (0 for fewer than two values)."""
    array = np.asarray(values, dtype=np.float64)
    error = array.std(ddof=1) / np.sqrt(len(array)) if len(array) > 1 else 0.0
    return float(array.mean()), float(error)
