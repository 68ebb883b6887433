"""What a reinforcement run writes down of its batches and evaluations."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from training.domains.base import Problem, Reward
from training.rl.updates import Trajectory, Update, entropy, reward_metrics
from utils.pass_at_k import pass_at_ks
from utils.runs.run_dir import RunDir


class Answers(NamedTuple):
    """Problems, a group of answers to each, and what these were worth."""

    problems_P: Sequence[Problem]
    groups_P_G: Sequence[Sequence[Trajectory]]
    rewards_P_G: Sequence[Sequence[Reward]]


def batch_metrics(
    answers: Answers, update: Update, seconds: Mapping[str, float]
) -> dict[str, float]:
    """One batch's line of metrics.jsonl; `seconds` of the phases sampling, rewards and update."""
    trajectories = [trajectory for group in answers.groups_P_G for trajectory in group]
    num_sampled = sum(len(t.tokens_T) for t in trajectories)
    return {
        **update.metrics,
        **reward_metrics("train", answers.rewards_P_G),
        "policy/entropy": entropy(trajectories),
        "tokens/sampled": num_sampled,
        "tokens/trained": update.num_tokens,
        "speed/sampled_per_second": num_sampled / seconds["sampling"],
        "speed/trained_per_second": update.num_tokens / seconds["update"],
        **{f"time/{phase}": value for phase, value in seconds.items()},
    }


def evaluation_metrics(answers: Answers, seconds: Mapping[str, float]) -> dict[str, float]:
    """One evaluation's line of metrics.jsonl; `seconds` by phase."""
    return {
        **reward_metrics("eval", answers.rewards_P_G),
        **_pass_metrics(answers.rewards_P_G),
        **{f"time/{phase}": value for phase, value in seconds.items()},
    }


def _pass_metrics(rewards_P_G: Sequence[Sequence[Reward]]) -> dict[str, float]:
    """eval/pass@k of the held-out answers for 1, 2, 4, ... up to a group's size, with the bounds of
    its 95 % interval over problems; nothing for one answer to a problem."""
    metrics = {}
    for row in pass_at_ks([[reward.solved for reward in group] for group in rewards_P_G]):
        metrics[f"eval/pass@{row.k}"] = row.mean
        if row.interval is not None:
            metrics[f"eval/pass@{row.k}_low"], metrics[f"eval/pass@{row.k}_high"] = row.interval
    return metrics if max(map(len, rewards_P_G)) > 1 else {}


def record(
    run: RunDir,
    kind: str,
    step: int,
    answers: Answers,
    metrics: Mapping[str, float],
    prompt_text: Callable[[list[int]], str],
) -> None:
    """A line of samples.jsonl for every answer, and one of metrics.jsonl."""
    for problem, group, rewards in zip(*answers, strict=True):
        prompt = prompt_text(group[0].prompt)
        for trajectory, reward in zip(group, rewards, strict=True):
            run.log_sample(
                {
                    "step": step,
                    "kind": kind,
                    "problem": problem.id,
                    "prompt": prompt,
                    "answer": trajectory.text,
                    "tokens": trajectory.tokens_T,
                    "reward": reward.value,
                    "solved": reward.solved,
                    "note": reward.note,
                }
            )
    run.log_metrics(step, metrics)


def shown(metrics: Mapping[str, float]) -> str:
    """The few metrics that belong on the screen."""
    names = ("eval/reward", "eval/solved", "train/reward", "train/solved", "loss")
    return ", ".join(f"{name} {metrics[name]:.3f}" for name in names if name in metrics)
