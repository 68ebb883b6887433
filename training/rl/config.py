"""The settings of scripts/rl_loop.py, beside which those of a domain stand."""

from pathlib import Path
from typing import Literal

import chz

from training.connect import (
    BACKEND_DOC,
    NUM_ENGINES_DOC,
    SAMPLER_DOC,
    SAMPLER_OPTIONS_DOC,
    SAMPLING_WEIGHTS_DOC,
    Backend,
    Sampler,
    SamplerOptions,
    SamplingWeights,
    temperature_problems,
)
from training.domains.registry import RL_INPUT
from utils.config.entrypoint import raise_problems
from utils.config.help import EVALUATION, MODEL, OUTPUT, SAMPLING, WHAT
from utils.config.ranges import range_problems
from utils.devices import DTYPE_DOC, Dtype


@chz.chz(typecheck=True)
class Config:
    domain: str = chz.field(
        default="arc",
        doc="arc, knowledge, gsm8k, gym, or your own, path/to/file.py:Class (docs/own_domain.md): "
        "has settings of its own, and defaults for those that show none",
        metadata=WHAT | RL_INPUT,
    )
    num_steps: int | None = chz.field(
        default=None, doc="batches; 0: evaluate only; default: the domain's"
    )
    seed: int = chz.field(default=0, doc="of adapters, sampling and the order of problems")
    dry_run: bool = chz.field(default=False, doc="print the plan and an estimate of time, and stop")

    model_name: str = chz.field(
        default="embedded", doc="embedded, a folder or a hub id", metadata=MODEL
    )
    backend: Backend = chz.field(default="local", doc=BACKEND_DOC)
    num_engines: int | None = chz.field(default=None, doc=NUM_ENGINES_DOC)
    base_url: str | None = chz.field(default=None, doc="server of backend=tinker")
    device: str | None = chz.field(
        default=None, doc="cpu or cuda; default: cuda where there is one"
    )
    dtype: Dtype | None = chz.field(default=None, doc=DTYPE_DOC)
    sampler: Sampler = chz.field(default="local", doc=SAMPLER_DOC)
    sampler_options: SamplerOptions = chz.field(default_factory=dict, doc=SAMPLER_OPTIONS_DOC)
    sampling_weights: SamplingWeights | None = chz.field(default=None, doc=SAMPLING_WEIGHTS_DOC)
    algorithm: Literal["grpo", "rest_em"] | None = chz.field(
        default=None, doc="grpo, or rest_em (imitate the successes); default: the domain's"
    )
    groups_per_batch: int | None = chz.field(
        default=None, doc="problems per batch; default: the domain's"
    )
    learning_rate: float | None = chz.field(default=None, doc="of Adam; default: the domain's")
    lr_schedule: Literal["constant", "linear", "cosine"] = chz.field(
        default="constant", doc="over num_steps (grpo) or over one batch's updates (rest_em)"
    )
    lora_rank: int | None = chz.field(
        default=None, doc="of the policy's adapter; default: the domain's"
    )
    lora_alpha: float | None = chz.field(
        default=None, doc="of the policy's adapter (local only); default: the domain's"
    )
    train_unembed: bool = chz.field(default=True, doc="adapt the output head too")
    grad_clip_norm: float = chz.field(default=0.0, doc="global norm; 0: off")
    loss_fn: Literal["importance_sampling", "ppo", "cispo", "dro", "gspo"] = chz.field(
        default="importance_sampling", doc="of grpo"
    )
    loss_fn_config: dict[str, float] = chz.field(
        default_factory=dict, doc="such as loss_fn_config.clip_high_threshold=1.3"
    )
    updates_per_batch: int = chz.field(default=1, doc="more than 1 needs loss_fn=ppo or cispo")
    kl_coef: float = chz.field(default=0.0, doc="penalty on the KL to the base model (grpo)")
    rest_em_epochs: int | None = chz.field(
        default=None, doc="passes over a batch's successes; default: the domain's"
    )
    rest_em_batch_size: int | None = chz.field(
        default=None, doc="successes per update; default: the domain's"
    )
    selection: Literal["solved", "best", "random"] | None = chz.field(
        default=None,
        doc="what rest_em imitates: all successes, each group's best, or by chance (a control)",
    )

    group_size: int | None = chz.field(
        default=None, doc="answers per problem; default: the domain's", metadata=SAMPLING
    )
    temperature: float | None = chz.field(
        default=None, doc="of the sampled answers; default: the domain's"
    )
    enforce_schema: bool = chz.field(
        default=True, doc="sample only valid JSON where a domain wants JSON (local only)"
    )
    max_resamples: int = chz.field(default=3, doc="new tries for invalid answers without schema")

    eval_every: int = chz.field(
        default=10, doc="batches; also at the start and the end; 0: never", metadata=EVALUATION
    )
    eval_size: int | None = chz.field(default=None, doc="held-out problems; default: the domain's")
    eval_group_size: int | None = chz.field(
        default=None, doc="answers per held-out problem; default: the domain's"
    )
    eval_temperature: float | None = chz.field(default=None, doc="0: greedy; default: the domain's")

    log_path: Path | None = chz.field(
        default=None, doc="run directory; an existing one resumes", metadata=OUTPUT
    )
    save_every: int = chz.field(default=10, doc="batches between checkpoints; 0: only the last")
    keep_checkpoints: int = chz.field(default=2, doc="older ones are deleted; 0: keep all")
    sinks: list[str] = chz.field(default_factory=list, doc="wandb, tensorboard, trackio")

    @chz.validate
    def _check(self) -> None:
        counts = ("groups_per_batch", "group_size", "lora_rank", "rest_em_epochs")
        counts += ("rest_em_batch_size", "updates_per_batch", "eval_size", "eval_group_size")
        numbers = ("temperature", "eval_temperature", "learning_rate", "grad_clip_norm", "kl_coef")
        every = ("num_steps", "eval_every", "save_every", "keep_checkpoints")
        problems = range_problems(
            self,
            at_least_1=counts,
            at_least_0=(*every, "seed", "max_resamples"),
            from_0=numbers,
            above_0=("lora_alpha",),
        )
        problems += temperature_problems(
            self.sampler, temperature=self.temperature, eval_temperature=self.eval_temperature
        )
        if self.updates_per_batch > 1 and self.loss_fn not in ("ppo", "cispo"):
            problems.append(
                f"updates_per_batch={self.updates_per_batch} needs loss_fn=ppo or cispo"
            )
        if self.backend == "tinker" and self.lora_alpha is not None:
            problems.append("lora_alpha: the tinker backend has a fixed alpha")
        raise_problems(problems)
