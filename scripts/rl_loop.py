"""Reinforce a model on a domain: ARC self-edits, GSM8K, or any reasoning-gym data set.

    uv run scripts/rl_loop.py domain=arc
    uv run scripts/rl_loop.py domain=gym task=chain_sum 'task_config={"max_terms": 2}' num_steps=30
    uv run scripts/rl_loop.py domain=gsm8k data_path=path/to/gsm8k log_path=runs/mine dry_run=true

Writes config.yaml, metrics.jsonl, samples.jsonl, checkpoints.jsonl and report.html under
runs/rl_loop/<run_id> (or log_path; the same command with the same log_path goes on where it was).
"""

import logging
import sys
import time
from pathlib import Path
from typing import Any, Literal

import chz
import numpy as np
from dotenv import load_dotenv

from training.adapt import mean_weighted
from training.api import AdamParams, Datum, ModelInput, SamplingClient, SamplingParams, connect
from training.chat import parse_response, render_prompt, stop_sequences
from training.domains.base import Domain, Problem, Reward, Split
from training.domains.registry import make_domain, with_domain_fields
from training.loop import Recorder, learning_rate_factor, uninterrupted
from training.rl import (
    Trajectory,
    answer_datum,
    centred_advantages,
    entropy,
    kl_penalised,
    mean_and_error,
    policy_datum,
    policy_diagnostics,
    seed_for,
    with_sequence_mask,
)
from training.rl_report import print_tables, write_report
from utils.config import config_entrypoint, exit_on_config_error, raise_problems
from utils.progress import Stopwatch
from utils.runs import RunDir

logger = logging.getLogger(__name__)

# What is used where neither the user nor the domain says otherwise.
DEFAULTS: dict[str, Any] = {
    "num_steps": 50,
    "groups_per_batch": 8,
    "group_size": 8,
    "temperature": 1.0,
    "learning_rate": 1e-4,
    "lora_rank": 32,
    "lora_alpha": 32.0,
    "rest_em_epochs": 2,
    "rest_em_batch_size": 8,
    "eval_size": 64,
    "eval_group_size": 1,
    "eval_temperature": 0.0,
}


@chz.chz(typecheck=True)
class Config:
    domain: str = chz.field(default="arc", doc="arc, gsm8k or gym; its settings follow below")
    model_name: str = chz.field(default="embedded", doc="embedded, a folder or a hub id")
    backend: Literal["local", "tinker"] = chz.field(default="local", doc="where the model runs")
    base_url: str | None = chz.field(default=None, doc="server of backend=tinker")
    device: str | None = chz.field(
        default=None, doc="cpu or cuda; default: cuda where there is one"
    )
    log_path: Path | None = chz.field(default=None, doc="run directory; an existing one resumes")
    seed: int = chz.field(default=0, doc="of adapters, sampling and the order of problems")

    algorithm: Literal["grpo", "rest_em"] | None = chz.field(
        default=None, doc="grpo, or rest_em (imitate the successes); default: the domain's"
    )
    num_steps: int | None = chz.field(default=None, doc="batches; 0: evaluate only")
    groups_per_batch: int | None = chz.field(default=None, doc="problems per batch")
    group_size: int | None = chz.field(default=None, doc="answers per problem")
    temperature: float | None = chz.field(default=None, doc="of the sampled answers")
    learning_rate: float | None = chz.field(default=None, doc="of Adam")
    lr_schedule: Literal["constant", "linear", "cosine"] = chz.field(
        default="constant", doc="over num_steps (grpo) or over one batch's updates (rest_em)"
    )
    lora_rank: int | None = chz.field(default=None, doc="of the policy's adapter")
    lora_alpha: float | None = chz.field(default=None, doc="of the policy's adapter (local only)")
    grad_clip_norm: float = chz.field(default=0.0, doc="global norm; 0: off")
    loss_fn: Literal["importance_sampling", "ppo", "cispo", "dro", "gspo"] = chz.field(
        default="importance_sampling", doc="of grpo"
    )
    loss_fn_config: dict[str, float] = chz.field(
        default_factory=dict, doc="such as loss_fn_config.clip_high_threshold=1.3"
    )
    updates_per_batch: int = chz.field(default=1, doc="more than 1 needs loss_fn=ppo or cispo")
    kl_coef: float = chz.field(default=0.0, doc="penalty on the KL to the base model (grpo)")
    rest_em_epochs: int | None = chz.field(default=None, doc="passes over a batch's successes")
    rest_em_batch_size: int | None = chz.field(default=None, doc="successes per update")

    enforce_schema: bool = chz.field(
        default=True, doc="sample only valid JSON where a domain wants JSON (local only)"
    )
    max_resamples: int = chz.field(default=3, doc="new tries for invalid answers without schema")
    eval_every: int = chz.field(default=10, doc="batches; also at the start and the end; 0: never")
    eval_size: int | None = chz.field(default=None, doc="held-out problems")
    eval_group_size: int | None = chz.field(default=None, doc="answers per held-out problem")
    eval_temperature: float | None = chz.field(default=None, doc="0: greedy")
    save_every: int = chz.field(default=10, doc="batches between checkpoints; 0: only the last")
    keep_checkpoints: int = chz.field(default=2, doc="older ones are deleted; 0: keep all")
    sinks: list[str] = chz.field(default_factory=list, doc="wandb, tensorboard")
    dry_run: bool = chz.field(default=False, doc="print the plan and an estimate of time, and stop")

    @chz.validate
    def _check(self) -> None:
        problems = []
        at_least_one = ("groups_per_batch", "group_size", "lora_rank", "rest_em_epochs")
        at_least_one += ("rest_em_batch_size", "updates_per_batch", "eval_size", "eval_group_size")
        for name in at_least_one:
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name}={value}: at least 1 is needed")
        for name in ("num_steps", "eval_every", "save_every", "keep_checkpoints", "max_resamples"):
            value = getattr(self, name)
            if value is not None and value < 0:
                problems.append(f"{name}={value}: 0 or more is needed")
        if self.updates_per_batch > 1 and self.loss_fn not in ("ppo", "cispo"):
            problems.append(
                f"updates_per_batch={self.updates_per_batch} needs loss_fn=ppo or cispo"
            )
        if self.backend == "tinker" and self.lora_alpha is not None:
            problems.append("lora_alpha: the tinker backend has a fixed alpha")
        if self.group_size == 1 and self.algorithm == "grpo":
            problems.append("group_size=1: grpo compares the answers of a group; use at least 2")
        raise_problems(problems)


class Loop:
    """One run: the policy, its domain, and what is known so far."""

    def __init__(self, config: Config, run: RunDir) -> None:
        self.config = config
        local = {"checkpoint_dir": run.path / "checkpoints", "device": config.device}
        self.service = connect(
            config.backend, base_url=config.base_url, **(local if config.backend == "local" else {})
        )
        self.domain: Domain = make_domain(config.domain, config, self.service)
        defaults = {**DEFAULTS, **self.domain.loop_defaults}
        given = {name: getattr(config, name) for name in DEFAULTS}
        self.settings = {k: defaults[k] if v is None else v for k, v in given.items()}
        self.algorithm = config.algorithm or self.domain.algorithm
        self.problems: dict[Split, list[Problem]] = {
            "train": self.domain.problems("train"),
            "test": self.domain.problems("test")[: self.settings["eval_size"]],
        }
        self.recorder = Recorder(run)
        self.state = self.recorder.load()
        self.domain.load_state(self.state.domain)
        self.trainer = self._trainer()
        self.tokenizer = self.trainer.get_tokenizer()
        self.stopwatch = Stopwatch()

    def _trainer(self) -> Any:
        if self.state.checkpoint is not None:
            return self.service.create_training_client_from_state_with_optimizer(
                self.state.checkpoint, self.config.model_name
            )
        alpha = (
            {"lora_alpha": self.settings["lora_alpha"]} if self.config.backend == "local" else {}
        )
        return self.service.create_lora_training_client(
            self.config.model_name, rank=self.settings["lora_rank"], seed=self.config.seed, **alpha
        )

    # -------------------------------------------------------------------------------- sampling

    def sample(
        self, problems_P: list[Problem], *, size: int, temperature: float, purpose: str
    ) -> list[list[Trajectory]]:
        """Groups of answers by the policy as it is now; invalid JSON is resampled at most
        max_resamples times where the schema is not enforced."""
        sampler = self.trainer.save_weights_and_get_sampling_client().result()
        prompts_P = [render_prompt(self.tokenizer, p.messages) for p in problems_P]
        seeds_P = [seed_for(self.config.seed, purpose, self.state.step, p.id) for p in problems_P]
        futures_P = [
            self._request(sampler, prompt, size, temperature, seed)
            for prompt, seed in zip(prompts_P, seeds_P, strict=True)
        ]
        groups_P_G = [
            [Trajectory.of(prompt, sequence) for sequence in future.result().sequences]
            for prompt, future in zip(prompts_P, futures_P, strict=True)
        ]
        if self._schema() is None and self.domain.json_schema is not None:
            self._resample(sampler, groups_P_G, seeds_P, temperature)
        return groups_P_G

    def _schema(self) -> dict[str, Any] | None:
        enforced = self.config.enforce_schema and self.config.backend == "local"
        return self.domain.json_schema if enforced else None

    def _request(
        self, sampler: SamplingClient, prompt: list[int], size: int, temperature: float, seed: int
    ) -> Any:
        params = SamplingParams(
            max_tokens=self.domain.max_tokens,
            temperature=temperature,
            seed=seed,
            stop=stop_sequences(self.tokenizer),
            json_schema=self._schema(),
        )
        return sampler.sample(ModelInput.from_ints(prompt), size, params)

    def _resample(
        self,
        sampler: SamplingClient,
        groups_P_G: list[list[Trajectory]],
        seeds_P: list[int],
        temperature: float,
    ) -> None:
        for attempt in range(1, self.config.max_resamples + 1):
            again = [
                (p, g)
                for p, group in enumerate(groups_P_G)
                for g, trajectory in enumerate(group)
                if self.domain.invalid(self.text(trajectory)) is not None
            ]
            futures = [
                self._request(
                    sampler,
                    groups_P_G[p][g].prompt,
                    1,
                    temperature,
                    seed_for(seeds_P[p], g, attempt),
                )
                for p, g in again
            ]
            for (p, g), future in zip(again, futures, strict=True):
                group = groups_P_G[p]
                group[g] = Trajectory.of(group[g].prompt, future.result().sequences[0])

    def text(self, trajectory: Trajectory) -> str:
        return parse_response(self.tokenizer, trajectory.tokens_T)

    def grade(
        self, problems_P: list[Problem], groups_P_G: list[list[Trajectory]]
    ) -> list[list[Reward]]:
        return self.domain.rewards(
            problems_P, [[self.text(trajectory) for trajectory in group] for group in groups_P_G]
        )

    # -------------------------------------------------------------------------------- learning

    def step(self) -> None:
        """One batch: sample, grade, update, record."""
        settings = self.settings
        problems_P = self._batch()
        with self.stopwatch("sampling"):
            groups_P_G = self.sample(
                problems_P,
                size=settings["group_size"],
                temperature=settings["temperature"],
                purpose="train",
            )
        with self.stopwatch("rewards"):
            rewards_P_G = self.grade(problems_P, groups_P_G)
        with uninterrupted():
            with self.stopwatch("update"):
                update = self._grpo if self.algorithm == "grpo" else self._rest_em
                metrics, num_trained = update(groups_P_G, rewards_P_G)
            self.state.step += 1
            self.state.evaluated = False
            metrics |= _reward_metrics("train", rewards_P_G)
            trajectories = [t for group in groups_P_G for t in group]
            num_sampled = sum(len(t.tokens_T) for t in trajectories)
            seconds = self.stopwatch.pop()
            metrics |= {
                "policy/entropy": entropy(trajectories),
                "tokens/sampled": num_sampled,
                "tokens/trained": num_trained,
                "speed/sampled_per_second": num_sampled / seconds["sampling"],
                "speed/trained_per_second": num_trained / seconds["update"],
            }
            metrics |= {f"time/{phase}": value for phase, value in seconds.items()}
            self._record("train", problems_P, groups_P_G, rewards_P_G, metrics)

    def _batch(self) -> list[Problem]:
        """The step's problems: passes over the train split, each in a new seeded order."""
        problems, size = self.problems["train"], self.settings["groups_per_batch"]
        chosen = []
        for at in range(self.state.step * size, (self.state.step + 1) * size):
            epoch, index = divmod(at, len(problems))
            order = np.random.default_rng([self.config.seed, epoch]).permutation(len(problems))
            chosen.append(problems[order[index]])
        return chosen

    def _grpo(
        self, groups_P_G: list[list[Trajectory]], rewards_P_G: list[list[Reward]]
    ) -> tuple[dict[str, float], int]:
        config = self.config
        advantages_P = centred_advantages([[r.value for r in group] for group in rewards_P_G])
        kept = [
            (trajectory, float(advantage))
            for group, advantages_G in zip(groups_P_G, advantages_P, strict=True)
            if advantages_G is not None
            for trajectory, advantage in zip(group, advantages_G, strict=True)
        ]
        metrics: dict[str, float] = {"skipped_groups": sum(a is None for a in advantages_P)}
        if not kept:
            logger.warning("All %d groups had one reward throughout: no update", len(groups_P_G))
            return metrics, 0
        trajectories_D = [trajectory for trajectory, _ in kept]
        advantages_D_T = [np.full(len(t.tokens_T), advantage) for t, advantage in kept]
        if config.kl_coef:
            advantages_D_T, metrics["policy/kl_base"] = kl_penalised(
                [a for _, a in kept],
                trajectories_D,
                self._base_logprobs(trajectories_D),
                config.kl_coef,
            )
        datums_D = [policy_datum(t, a) for t, a in zip(trajectories_D, advantages_D_T, strict=True)]
        if config.loss_fn == "gspo":
            datums_D = [
                with_sequence_mask(d, len(t.tokens_T))
                for d, t in zip(datums_D, trajectories_D, strict=True)
            ]
        rate = self.settings["learning_rate"] * learning_rate_factor(
            config.lr_schedule, self.state.step, self.settings["num_steps"]
        )
        for update in range(config.updates_per_batch):
            loss_config = config.loss_fn_config or None
            future = self.trainer.forward_backward(datums_D, config.loss_fn, loss_config)
            stepped = self.trainer.optim_step(self._adam(rate))
            output = future.result()
            if update == 0:
                logprobs_D = [o["logprobs"].to_numpy() for o in output.loss_fn_outputs]
                metrics |= policy_diagnostics(trajectories_D, logprobs_D)
            metrics["loss"] = output.metrics["loss:sum"]
            metrics |= {f"optim/{k}": v for k, v in (stepped.result().metrics or {}).items()}
        metrics["optim/learning_rate"] = rate
        num_tokens = sum(datum.model_input.length for datum in datums_D)
        return metrics, num_tokens * config.updates_per_batch

    def _base_logprobs(self, trajectories_D: list[Trajectory]) -> list[np.ndarray]:
        base = self.service.create_sampling_client(base_model=self.config.model_name)
        futures = [
            base.compute_logprobs(ModelInput.from_ints(t.all_tokens)) for t in trajectories_D
        ]
        return [
            np.array(future.result()[-len(t.tokens_T) :], dtype=np.float64)
            for t, future in zip(trajectories_D, futures, strict=True)
        ]

    def _rest_em(
        self, groups_P_G: list[list[Trajectory]], rewards_P_G: list[list[Reward]]
    ) -> tuple[dict[str, float], int]:
        """Imitates all successes, as SEAL's M-step does, with the mean loss per answer token."""
        datums_D = [
            answer_datum(trajectory)
            for group, rewards in zip(groups_P_G, rewards_P_G, strict=True)
            for trajectory, reward in zip(group, rewards, strict=True)
            if reward.solved
        ]
        metrics: dict[str, float] = {"successes": len(datums_D)}
        if not datums_D:
            logger.warning("No success in this batch: no update")
            return metrics, 0
        size, epochs = self.settings["rest_em_batch_size"], self.settings["rest_em_epochs"]
        batches = _epoch_batches(datums_D, size, epochs, [self.config.seed, self.state.step])
        for index, batch in enumerate(batches):
            factor = learning_rate_factor(self.config.lr_schedule, index, len(batches))
            rate = self.settings["learning_rate"] * factor
            future = self.trainer.forward_backward(mean_weighted(batch), "cross_entropy")
            stepped = self.trainer.optim_step(self._adam(rate))
            metrics["loss"] = future.result().metrics["loss:sum"]
            metrics |= {f"optim/{k}": v for k, v in (stepped.result().metrics or {}).items()}
            metrics.setdefault("loss/first", metrics["loss"])
        return metrics, sum(d.model_input.length for batch in batches for d in batch)

    def _adam(self, rate: float) -> AdamParams:
        clip = self.config.grad_clip_norm
        return AdamParams(rate, beta1=0.9, beta2=0.95, eps=1e-8, grad_clip_norm=clip)

    # ------------------------------------------------------------------------------ evaluation

    def evaluate(self) -> None:
        problems_P = self.problems["test"]
        with self.stopwatch("evaluation"):
            groups_P_G = self.sample(
                problems_P,
                size=self.settings["eval_group_size"],
                temperature=self.settings["eval_temperature"],
                purpose="eval",
            )
            rewards_P_G = self.grade(problems_P, groups_P_G)
        metrics = _reward_metrics("eval", rewards_P_G)
        metrics["time/evaluation"] = self.stopwatch.pop()["evaluation"]
        self.state.evaluated = True
        self._record("eval", problems_P, groups_P_G, rewards_P_G, metrics)

    def _record(
        self,
        kind: str,
        problems_P: list[Problem],
        groups_P_G: list[list[Trajectory]],
        rewards_P_G: list[list[Reward]],
        metrics: dict[str, float],
    ) -> None:
        step = self.state.step
        for problem, group, rewards in zip(problems_P, groups_P_G, rewards_P_G, strict=True):
            for trajectory, reward in zip(group, rewards, strict=True):
                self.recorder.run.log_sample(
                    {
                        "step": step,
                        "kind": kind,
                        "problem": problem.id,
                        "prompt": self.tokenizer.decode(trajectory.prompt),
                        "answer": self.text(trajectory),
                        "tokens": trajectory.tokens_T,
                        "reward": reward.value,
                        "solved": reward.solved,
                        "note": reward.note,
                    }
                )
        self.recorder.run.log_metrics(step, metrics)
        shown = ("eval/reward", "train/reward", "train/solved", "eval/solved", "loss")
        text = ", ".join(f"{k} {metrics[k]:.3f}" for k in shown if k in metrics)
        logger.info("step %d (%s): %s", step, kind, text)

    def save(self) -> None:
        self.state.domain = self.domain.state()
        self.recorder.save(self.trainer, self.state, keep=self.config.keep_checkpoints)


def _reward_metrics(kind: str, rewards_P_G: list[list[Reward]]) -> dict[str, float]:
    flat = [reward for group in rewards_P_G for reward in group]
    mean, error = mean_and_error([reward.value for reward in flat])
    spread = [np.ptp([reward.value for reward in group]) > 0 for group in rewards_P_G]
    return {
        f"{kind}/reward": mean,
        f"{kind}/reward_stderr": error,
        f"{kind}/solved": float(np.mean([reward.solved for reward in flat])),
        f"{kind}/groups_with_spread": float(np.mean(spread)),
    }


def _epoch_batches(
    datums_D: list[Datum], size: int, epochs: int, seed: list[int]
) -> list[list[Datum]]:
    rng = np.random.default_rng(seed)
    orders = [rng.permutation(len(datums_D)) for _ in range(epochs)]
    return [
        [datums_D[i] for i in order[start : start + size]]
        for order in orders
        for start in range(0, len(order), size)
    ]


def main(config: Config) -> None:
    load_dotenv()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    started = time.perf_counter()
    may_change = ("num_steps", "sinks", "dry_run", "save_every", "keep_checkpoints")
    run = RunDir.open(
        "rl_loop", config.log_path, config, resume_fields_ignored=may_change, sinks=config.sinks
    )
    loop = Loop(config, run)
    num_steps = loop.settings["num_steps"]
    try:
        while True:
            state = loop.state
            last = state.step >= num_steps
            due = config.eval_every and (last or state.step % config.eval_every == 0)
            if due and not state.evaluated:
                loop.evaluate()
            if last or (config.save_every and state.step % config.save_every == 0):
                loop.save()
            if last:
                break
            loop.step()
    except KeyboardInterrupt:
        loop.save()
        print(
            f"\nStopped after step {loop.state.step}; the same command with log_path={run.path} "
            "goes on from there."
        )
        sys.exit(130)
    print_tables(loop.domain, loop.problems, run.path)
    report = write_report(loop.domain, loop.problems, run.path, title=f"rl_loop {config.domain}")
    print(f"\n{time.perf_counter() - started:.0f} s in all. Report: {report}")


def entrypoint(argv: list[str]) -> None:
    """Joins the loop's settings with those of the domain that `argv` names, and runs main."""
    with exit_on_config_error():
        target = with_domain_fields(Config, argv, default="arc")

    def run(config: Any) -> None:
        main(config)

    run.__annotations__["config"] = target
    config_entrypoint(run, argv)


if __name__ == "__main__":
    entrypoint(sys.argv[1:])
