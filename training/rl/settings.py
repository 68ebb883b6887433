"""The settings of scripts/rl_loop.py with what the user left open filled in by the domain."""

from dataclasses import MISSING, dataclass, fields
from typing import Any

from chz.tiepin import is_subtype_instance, type_repr

from training.adapter_proof import AdapterProof
from training.api import AdamParams, ServiceClient, TrainingClient
from training.connect import has_own_engines
from training.domains.base import Algorithm, Domain
from training.loop import Schedule, learning_rate_factor
from training.rl.policy import Policy
from training.rl.updates import GrpoSettings, RestEmSettings, Selection
from utils.config.entrypoint import raise_problems


@dataclass(frozen=True)
class Settings:
    """Defaults here are for what neither the user nor the domain says; what has none is the user's
    alone, or has a default in the script for all domains."""

    algorithm: Algorithm
    lr_schedule: Schedule
    grad_clip_norm: float
    grpo: GrpoSettings
    seed: int
    eval_every: int
    num_steps: int = 50
    groups_per_batch: int = 8
    group_size: int = 8
    temperature: float = 1.0
    learning_rate: float = 1e-4
    lora_rank: int = 32
    lora_alpha: float = 32.0
    rest_em_epochs: int = 2
    rest_em_batch_size: int = 8
    selection: Selection = "solved"
    eval_size: int = 64
    eval_group_size: int = 1
    eval_temperature: float = 0.0

    @classmethod
    def of(cls, config: Any, domain: Domain) -> "Settings":
        """Raises ConfigError for settings that do not go together."""
        given = {f.name: getattr(config, f.name) for f in fields(cls) if f.name != "grpo"}
        chosen = {name: value for name, value in given.items() if value is not None}
        grpo = GrpoSettings(
            config.loss_fn, config.loss_fn_config, config.updates_per_batch, config.kl_coef
        )
        _check_loop_defaults(config.domain, domain)
        values: dict[str, Any] = {"algorithm": domain.algorithm, "grpo": grpo}
        values |= domain.loop_defaults | chosen
        settings = cls(**values)
        problems = []
        if settings.algorithm == "grpo" and settings.group_size == 1:
            problems.append("group_size=1: grpo compares the answers of a group; use at least 2")
        if settings.algorithm == "grpo" and config.selection is not None:
            problems.append(
                f"selection={config.selection}: grpo learns from all answers; selection belongs "
                "to algorithm=rest_em"
            )
        if settings.algorithm == "rest_em" and grpo != GrpoSettings():
            problems.append(
                "algorithm=rest_em imitates answers; loss_fn, loss_fn_config, updates_per_batch "
                "and kl_coef belong to algorithm=grpo"
            )
        raise_problems(problems)
        return settings

    @property
    def rest_em(self) -> RestEmSettings:
        return RestEmSettings(
            self.rest_em_epochs, self.rest_em_batch_size, self.lr_schedule, self.selection
        )

    def adam(self, step: int) -> AdamParams:
        """The optimizer's settings at batch `step`; rest_em has its schedule within a batch."""
        factor = 1.0
        if self.algorithm == "grpo":
            factor = learning_rate_factor(self.lr_schedule, step, self.num_steps)
        return AdamParams(
            self.learning_rate * factor,
            beta1=0.9,
            beta2=0.95,
            eps=1e-8,
            grad_clip_norm=self.grad_clip_norm,
        )


def _check_loop_defaults(name: str, domain: Domain) -> None:
    types: dict[str, Any] = {f.name: f.type for f in fields(Settings) if f.default is not MISSING}
    wrong = [
        f"{key}={value!r}"
        for key, value in domain.loop_defaults.items()
        if key not in types or not is_subtype_instance(value, types[key])
    ]
    if wrong:
        allowed = ", ".join(f"{key}: {type_repr(kind)}" for key, kind in types.items())
        raise_problems(
            [f"domain={name!r}: its loop_defaults have {', '.join(wrong)}; allowed are {allowed}"]
        )


def make_trainer(
    config: Any, settings: Settings, service: ServiceClient, checkpoint: str | None = None
) -> TrainingClient:
    """A new adapter, or the one of a checkpoint with its optimizer."""
    if checkpoint is not None:
        return service.create_training_client_from_state_with_optimizer(
            checkpoint, config.model_name
        )
    options: dict[str, Any] = {
        "rank": settings.lora_rank,
        "seed": config.seed,
        "train_unembed": config.train_unembed,
    }
    if has_own_engines(config.backend):
        options["lora_alpha"] = settings.lora_alpha
    return service.create_lora_training_client(config.model_name, **options)


def make_policy(
    config: Any, trainer: TrainingClient, domain: Domain, proof: AdapterProof | None = None
) -> Policy:
    return Policy(
        trainer,
        domain,
        enforce_schema=config.enforce_schema and has_own_engines(config.backend),
        max_resamples=config.max_resamples,
        seed=config.seed,
        proof=proof,
    )
