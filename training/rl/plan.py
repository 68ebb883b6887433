"""What a reinforcement run would do: counts, tokens, and the time they take at measured speeds."""

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from training.domains.base import Domain, Problem, Split
from training.rl.policy import Policy
from training.rl.problems import Chosen
from training.rl.settings import Settings
from training.rl.updates import Trajectory, answer_datum, problem_batch
from utils.config.errors import ConfigError
from utils.runs.tables import text_table

_MAX_PROBE_ROWS = 32
_MAX_PROBE_TOKENS = 32
_PROMPTS_COUNTED = 64
_REWARDS_COUNTED = 8


class Speeds(NamedTuple):
    """What the probe measured; answer_tokens is None where its answers did not come to an end."""

    seconds_per_prompt_token: float
    seconds_per_sampled_token: float
    seconds_per_trained_token: float
    answer_tokens: float | None


def probe(policy: Policy, problem: Problem, settings: Settings) -> Speeds:
    """Samples a few tokens of as many answers as a batch has, and runs one forward_backward.

    No optimizer step is taken, so the trainer's weights stay as they are.
    """
    sampler = policy.trainer.save_weights_and_get_sampling_client().result()
    prompt = policy.prompt(problem)
    num_rows = min(settings.groups_per_batch * settings.group_size, _MAX_PROBE_ROWS)

    def sample(size: int, max_tokens: int) -> tuple[float, list[Trajectory], list[bool]]:
        started = time.perf_counter()
        request = policy.request(
            sampler, problem, prompt, size=size, temperature=1.0, seed=0, max_tokens=max_tokens
        )
        sequences = request.result().sequences
        seconds = time.perf_counter() - started
        stopped = [sequence.stop_reason == "stop" for sequence in sequences]
        return seconds, [Trajectory.of(prompt, sequence) for sequence in sequences], stopped

    # the first pass of all also loads and compiles
    sample(1, 1)
    prefill, _, _ = sample(1, 1)
    both, trajectories, stopped = sample(num_rows, _MAX_PROBE_TOKENS)
    lengths = [len(t.tokens_T) for t in trajectories]
    datums = [answer_datum(t) for t in trajectories[:2]]
    started = time.perf_counter()
    policy.trainer.forward_backward(datums, "cross_entropy").result()
    training = time.perf_counter() - started
    return Speeds(
        prefill / len(prompt),
        max(both - prefill, 1e-6) / sum(lengths),
        training / sum(datum.model_input.length for datum in datums),
        float(np.mean(lengths)) if all(stopped) else None,
    )


def num_evaluations(num_steps: int, eval_every: int) -> int:
    """At the start, every `eval_every` batches and at the end."""
    return len({*range(0, num_steps, eval_every), num_steps}) if eval_every else 0


def plan_table(
    settings: Settings,
    domain: Domain,
    chosen: Mapping[Split, Chosen],
    policy: Policy,
    speeds: Speeds,
) -> str:
    """Token counts are upper bounds where only the run can tell: answers may be shorter, fewer of
    them may be trained on, and self-edits that come twice are carried out once."""
    problems = {split: found.problems for split, found in chosen.items()}
    num_too_long = sum(len(found.too_long) for found in chosen.values())
    num_steps, groups, size = settings.num_steps, settings.groups_per_batch, settings.group_size
    counted = problem_batch(problems["train"], 0, groups, settings.seed)[:_PROMPTS_COUNTED]
    prompt_lengths = [len(policy.prompt(problem)) for problem in counted]
    mean_prompt = float(np.mean(prompt_lengths))
    answer = speeds.answer_tokens or domain.max_tokens
    num_answers = num_steps * groups * size
    evaluations = num_evaluations(num_steps, settings.eval_every)
    num_eval = evaluations * len(problems["test"])
    num_eval_answers = num_eval * settings.eval_group_size
    if settings.algorithm == "grpo":
        up_to, num_passes = "", settings.grpo.num_updates
        num_updates = num_steps * num_passes
    else:
        up_to, num_passes = "up to ", settings.rest_em_epochs
        num_updates = num_steps * math.ceil(groups * size / settings.rest_em_batch_size)
        num_updates *= num_passes

    prompt_tokens = mean_prompt * (num_steps * groups + num_eval)
    sampled_tokens = answer * (num_answers + num_eval_answers)
    trained_tokens = (mean_prompt + answer) * num_answers * num_passes
    counts = [_reward_tokens(domain, problem) for problem in counted[:_REWARDS_COUNTED]]
    per_reward = float(np.mean(counts))
    reward_tokens = per_reward * (num_answers + num_eval_answers)
    seconds = (
        prompt_tokens * speeds.seconds_per_prompt_token
        + sampled_tokens * speeds.seconds_per_sampled_token
        + (trained_tokens + reward_tokens) * speeds.seconds_per_trained_token
    )
    rows = [
        ("problems", f"{len(problems['train']):,} train, {len(problems['test']):,} held out"),
        ("left out", f"{num_too_long:,} whose prompts are over the context"),
        ("batches", f"{num_steps:,} of {groups} x {size} answers"),
        ("evaluations", f"{evaluations:,} of {len(problems['test'])} problems"),
        ("answers", f"{num_answers:,} to train on, {num_eval_answers:,} held out"),
        ("updates", f"{up_to}{num_updates:,} ({settings.algorithm})"),
        ("tokens per prompt", f"{mean_prompt:,.0f} on average, {max(prompt_lengths):,} at most"),
        ("tokens per answer", f"{answer:,.0f} ({'measured' if speeds.answer_tokens else 'limit'})"),
        ("prompt tokens", f"{prompt_tokens:,.0f}"),
        ("sampled tokens", f"{sampled_tokens:,.0f}"),
        ("trained tokens", f"up to {trained_tokens:,.0f}"),
        ("tokens trained for rewards", f"up to {reward_tokens:,.0f}, {per_reward:,.0f} each"),
        (
            "measured, tokens/s",
            f"{1 / speeds.seconds_per_prompt_token:,.0f} prompt, "
            f"{1 / speeds.seconds_per_sampled_token:,.0f} sampled, "
            f"{1 / speeds.seconds_per_trained_token:,.0f} trained",
        ),
        ("estimated time", f"up to about {_duration(seconds)}"),
    ]
    empty = {"tokens trained for rewards": not reward_tokens, "left out": not num_too_long}
    rows = [row for row in rows if not empty.get(row[0])]
    return text_table(("plan", ""), rows, align="ll")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:,.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def _reward_tokens(domain: Domain, problem: Problem) -> float:
    tokens: Any = domain.reward_tokens(problem)
    if not isinstance(tokens, (int, float, np.number)) or not math.isfinite(tokens):
        raise ConfigError(
            f"reward_tokens() of {type(domain).__name__} gave {tokens!r} for {problem.id}; a "
            "number of tokens is needed"
        )
    return float(tokens)
