"""Reinforcement learning on groups of answers: GRPO and ReST-EM updates, and what they are made of.

Axes: P problems of a batch, G answers of a group, T tokens of an answer, D training data.
"""

import logging
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import numpy as np

from training.adapt import mean_weighted
from training.api import (
    AdamParams,
    Datum,
    LossFnType,
    ModelInput,
    SampledSequence,
    SamplingClient,
    TrainingClient,
)
from training.domains.base import Problem, Reward
from training.loop import Schedule, epoch_batches, learning_rate_factor

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trajectory:
    """One sampled answer with the prompt it answers; `text` is what the domain grades."""

    prompt: list[int]
    tokens_T: list[int]
    logprobs_T: np.ndarray
    text: str = ""

    @classmethod
    def of(cls, prompt: list[int], sequence: SampledSequence, text: str = "") -> "Trajectory":
        logprobs = sequence.logprobs_np
        assert logprobs is not None
        return cls(prompt, sequence.tokens, logprobs.astype(np.float64), text)

    @property
    def all_tokens(self) -> list[int]:
        return self.prompt + self.tokens_T


def seed_for(*parts: object) -> int:
    """A seed that depends on the parts' text alone, the same in every process."""
    return zlib.crc32("/".join(map(str, parts)).encode())


def problem_batch(problems: Sequence[Problem], step: int, size: int, seed: int) -> list[Problem]:
    """The problems of batch `step`: passes over all of them, each pass in a new seeded order."""
    chosen = []
    for at in range(step * size, (step + 1) * size):
        epoch, index = divmod(at, len(problems))
        order = np.random.default_rng([seed, epoch]).permutation(len(problems))
        chosen.append(problems[order[index]])
    return chosen


# ------------------------------------------------------------------------------------------ updates


class Update(NamedTuple):
    """What an update measured, and how many tokens it trained on, each as often as it was seen."""

    metrics: dict[str, float]
    num_tokens: int


@dataclass(frozen=True)
class GrpoSettings:
    """`num_updates` above 1 reuses the batch; kl_coef > 0 needs the base model's sampler."""

    loss_fn: LossFnType = "importance_sampling"
    loss_fn_config: dict[str, float] = field(default_factory=dict)
    num_updates: int = 1
    kl_coef: float = 0.0


# which answers rest_em imitates: all that are solved; of each group the best of these (the first
# where several are equal, as SEAL does); or one of the group by chance wherever there is a best,
# the control that says what choosing was worth
Selection = Literal["solved", "best", "random"]


@dataclass(frozen=True)
class RestEmSettings:
    """The learning rate follows `lr_schedule` within each batch's updates."""

    num_epochs: int = 2
    batch_size: int = 8
    lr_schedule: Schedule = "constant"
    selection: Selection = "solved"


def check_loss(loss_fn: str, loss_fn_config: dict[str, float]) -> None:
    """Raises ValueError for settings that the loss does not know or lacks."""
    # loads torch
    from training.backends.local.losses import resolve_config

    resolve_config(loss_fn, loss_fn_config)


def grpo_update(
    trainer: TrainingClient,
    groups_P_G: Sequence[Sequence[Trajectory]],
    rewards_P_G: Sequence[Sequence[Reward]],
    settings: GrpoSettings,
    adam: AdamParams,
    *,
    base: SamplingClient | None = None,
) -> Update:
    """Raises the probability of answers that are better than their group's mean."""
    advantages_P = centred_advantages([[r.value for r in group] for group in rewards_P_G])
    kept = [
        (trajectory, float(advantage))
        for group, advantages_G in zip(groups_P_G, advantages_P, strict=True)
        if advantages_G is not None
        for trajectory, advantage in zip(group, advantages_G, strict=True)
    ]
    metrics: dict[str, float] = {
        "skipped_groups": sum(a is None for a in advantages_P),
        "updates": settings.num_updates if kept else 0,
    }
    if not kept:
        number = len(groups_P_G)
        which = "The only group" if number == 1 else f"All {number} groups"
        logger.warning("%s had one reward throughout: no update", which)
        return Update(metrics, 0)
    trajectories_D = [trajectory for trajectory, _ in kept]
    advantages_D_T = [np.full(len(t.tokens_T), advantage) for t, advantage in kept]
    if settings.kl_coef:
        assert base is not None
        advantages_D_T, metrics["policy/kl_base"] = kl_penalised(
            [advantage for _, advantage in kept],
            trajectories_D,
            answer_logprobs(base, trajectories_D),
            settings.kl_coef,
        )
    datums_D = [policy_datum(t, a) for t, a in zip(trajectories_D, advantages_D_T, strict=True)]
    if settings.loss_fn == "gspo":
        datums_D = [
            with_sequence_mask(datum, len(t.tokens_T))
            for datum, t in zip(datums_D, trajectories_D, strict=True)
        ]
    for update in range(settings.num_updates):
        future = trainer.forward_backward(
            datums_D, settings.loss_fn, dict(settings.loss_fn_config) or None
        )
        stepped = trainer.optim_step(adam)
        output = future.result()
        if update == 0:
            logprobs_D = [o["logprobs"].to_numpy() for o in output.loss_fn_outputs]
            metrics |= policy_diagnostics(trajectories_D, logprobs_D)
        metrics["loss"] = output.metrics["loss:sum"]
        metrics |= {f"optim/{k}": v for k, v in (stepped.result().metrics or {}).items()}
    metrics["optim/learning_rate"] = adam.learning_rate
    num_tokens = sum(datum.model_input.length for datum in datums_D)
    return Update(metrics, num_tokens * settings.num_updates)


def rest_em_update(
    trainer: TrainingClient,
    groups_P_G: Sequence[Sequence[Trajectory]],
    rewards_P_G: Sequence[Sequence[Reward]],
    settings: RestEmSettings,
    adam: AdamParams,
    *,
    seed: Sequence[int],
) -> Update:
    """Imitates the chosen successes, with the mean loss per answer token. How far the trainer is
    from the sampler is told of those of the first update, which have the sampler's weights."""
    rng = np.random.default_rng(seed)
    kept_P_G = selected(rewards_P_G, settings.selection, rng)
    imitated = [groups_P_G[p][g] for p, kept_G in enumerate(kept_P_G) for g in kept_G]
    metrics: dict[str, float] = {
        "successes": sum(r.is_success for rewards_G in rewards_P_G for r in rewards_G),
        "imitated": len(imitated),
        "updates": 0,
    }
    if not imitated:
        logger.warning("No success in this batch: no update")
        return Update(metrics, 0)
    batches = epoch_batches(imitated, settings.batch_size, settings.num_epochs, rng)
    metrics["updates"] = len(batches)
    num_tokens = 0
    for index, batch in enumerate(batches):
        factor = learning_rate_factor(settings.lr_schedule, index, len(batches))
        datums_D = mean_weighted([answer_datum(trajectory) for trajectory in batch])
        future = trainer.forward_backward(datums_D, "cross_entropy")
        stepped = trainer.optim_step(replace(adam, learning_rate=adam.learning_rate * factor))
        output = future.result()
        if index == 0:
            logprobs_D = [o["logprobs"].to_numpy() for o in output.loss_fn_outputs]
            metrics |= policy_diagnostics(batch, logprobs_D)
        metrics["loss"] = output.metrics["loss:sum"]
        metrics |= {f"optim/{k}": v for k, v in (stepped.result().metrics or {}).items()}
        metrics.setdefault("loss/first", metrics["loss"])
        num_tokens += sum(datum.model_input.length for datum in datums_D)
    return Update(metrics, num_tokens)


def answer_logprobs(
    sampler: SamplingClient, trajectories_D: Sequence[Trajectory]
) -> list[np.ndarray]:
    """The sampler's logprobs of the answers' tokens."""
    futures = [sampler.compute_logprobs(ModelInput.from_ints(t.all_tokens)) for t in trajectories_D]
    return [
        np.array(future.result()[-len(t.tokens_T) :], dtype=np.float64)
        for t, future in zip(trajectories_D, futures, strict=True)
    ]


# -------------------------------------------------------------------------------------------- parts


def centred_advantages(rewards_P_G: Sequence[Sequence[float]]) -> list[np.ndarray | None]:
    """Rewards minus their group's mean; None for a group without spread, which teaches nothing."""
    advantages_P: list[np.ndarray | None] = []
    for rewards_G in rewards_P_G:
        centred = np.asarray(rewards_G, dtype=np.float64) - np.mean(rewards_G)
        advantages_P.append(centred if np.any(np.abs(centred) > 1e-12) else None)
    return advantages_P


def selected(
    rewards_P_G: Sequence[Sequence[Reward]], selection: Selection, rng: np.random.Generator
) -> list[list[int]]:
    """The indices of the answers that are imitated, group by group."""
    kept_P_G = []
    for rewards_G in rewards_P_G:
        kept_G = [g for g, reward in enumerate(rewards_G) if reward.is_success]
        if kept_G and selection == "best":
            kept_G = [max(kept_G, key=lambda g: rewards_G[g].value)]
        elif kept_G and selection == "random":
            kept_G = [int(rng.integers(len(rewards_G)))]
        kept_P_G.append(kept_G)
    return kept_P_G


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


def reward_metrics(kind: str, rewards_P_G: Sequence[Sequence[Reward]]) -> dict[str, float]:
    """Mean, standard error, share solved, and the share of groups whose rewards differ."""
    flat = [reward for group in rewards_P_G for reward in group]
    mean, error = mean_and_error([reward.value for reward in flat])
    spread = [np.ptp([reward.value for reward in group]) > 0 for group in rewards_P_G]
    return {
        f"{kind}/reward": mean,
        f"{kind}/reward_stderr": error,
        f"{kind}/solved": float(np.mean([reward.solved for reward in flat])),
        f"{kind}/groups_with_spread": float(np.mean(spread)),
    }


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error (0 for fewer than two values)."""
    array = np.asarray(values, dtype=np.float64)
    error = array.std(ddof=1) / np.sqrt(len(array)) if len(array) > 1 else 0.0
    return float(array.mean()), float(error)
