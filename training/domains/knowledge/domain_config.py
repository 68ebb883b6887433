"""Settings of scripts/rl_loop.py domain=knowledge, and those of its loop with each preset."""

import math
from typing import Any

import chz

from training.domains.knowledge.config import KnowledgeConfig
from training.domains.knowledge.forms import Choices, PromptForm, check_form
from training.domains.knowledge.inner import Preset
from training.domains.knowledge.reliability import RewardKind
from utils.config.entrypoint import problems_of, raise_problems
from utils.config.help import EVALUATION, SAMPLING, WHAT
from utils.config.ranges import range_problems

# of rl_loop.py where neither the user says otherwise; seal: arXiv 2506.10943 and its code
LOOP: dict[Preset, dict[str, Any]] = {
    "small": {
        "num_steps": 2,
        "groups_per_batch": 4,
        "group_size": 3,
        "temperature": 1.0,
        "learning_rate": 1e-3,
        "lora_rank": 16,
        "rest_em_epochs": 2,
        "rest_em_batch_size": 2,
        "selection": "best",
        "eval_size": 12,
        "eval_group_size": 1,
        "eval_temperature": 1.0,
    },
    "seal": {
        "num_steps": 2,
        "groups_per_batch": 50,
        "group_size": 5,
        "temperature": 1.0,
        "learning_rate": 3e-4,
        "lora_rank": 64,
        "lora_alpha": 128.0,
        "rest_em_epochs": 2,
        "rest_em_batch_size": 10,
        "selection": "best",
        "eval_size": 200,
        "eval_group_size": 1,
        "eval_temperature": 1.0,
    },
}


@chz.chz(typecheck=True)
class KnowledgeDomainConfig(KnowledgeConfig):
    num_train_passages: int | None = chz.field(
        default=None,
        doc="that self-edits are learned on; default: 8 of a made world, else 100 (two of SEAL's "
        "rounds)",
        metadata=WHAT,
    )
    num_test_passages: int | None = chz.field(
        default=None, doc="held out; default: 12 of a made world, else 200"
    )

    form: str | None = chz.field(
        default=None,
        doc="of self-edits (docs/knowledge.md lists them); model: the model chooses it, and the "
        "learning rate; default: model with preset=small, else implications",
        metadata=SAMPLING,
    )
    edit_prompt: PromptForm | None = chz.field(
        default=None, doc="raw (for base models) or chat; default: raw with preset=seal, else chat"
    )
    model_forms: list[str] = chz.field(
        default_factory=lambda: list(Choices().forms), doc="what form=model chooses from"
    )
    model_rates: list[float] = chz.field(
        default_factory=lambda: list(Choices().learning_rates), doc="and its learning rates"
    )
    max_tokens: int = chz.field(default=384, doc="longest self-edit that is sampled (SEAL: 8192)")

    reward: RewardKind = chz.field(
        default="logprob",
        doc="accuracy; gain of it over the base model; logprob: mean gain of the right answers' "
        "log-probability, in nats, which is less noisy",
        metadata=EVALUATION,
    )
    repeats: int = chz.field(default=2, doc="inner runs of each self-edit (SEAL: 3)")
    eval_repeats: int = chz.field(
        default=1, doc="of each held-out self-edit; more passages tell more than more repeats"
    )
    min_gain: float | None = chz.field(
        default=None,
        doc="a success gains more than this over the base model; default: than the noise between "
        "repeats; SEAL keeps every best one: -1e9",
    )

    @chz.validate
    def _check(self) -> None:
        counts = ("num_train_passages", "num_test_passages", "max_tokens")
        problems = range_problems(self, at_least_1=(*counts, "repeats", "eval_repeats"))
        if self.min_gain is not None and math.isnan(self.min_gain):
            problems.append(f"min_gain={self.min_gain}: a number is needed; no gain is above it")
        problems += problems_of(lambda: check_form(self.form or "qa"), lambda: self.choices)
        raise_problems(problems)

    @property
    def choices(self) -> Choices:
        return Choices(tuple(self.model_forms), tuple(self.model_rates))
