"""The settings of scripts/ttt.py domain=bbh."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import chz

from training.adapt import AdaptSettings
from training.domains.bbh.methods import (
    DIRECT,
    METHODS,
    SHARED,
    SHOWING,
    TRAINED,
    BBHSettings,
    Method,
)
from training.domains.bbh.tasks import BBHTask, choose_tasks
from training.domains.bbh.text import LossMask
from utils.config.entrypoint import problems_of
from utils.config.help import EVALUATION, MODEL, OUTPUT, WHAT
from utils.config.ranges import range_problems
from utils.runs.inputs import INPUT

TARGETS = ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class _Published:
    """What the paper's runs used."""

    learning_rate: float
    batch_size: int
    num_epochs: int


PUBLISHED: dict[Method, _Published] = {
    "ttt": _Published(1e-4, 5, 1),
    "shared_ttt": _Published(5e-5, 5, 1),
    "e2e": _Published(1e-4, 5, 4),
    "shared_e2e": _Published(5e-5, 5, 6),
}


@chz.chz(typecheck=True)
class BBHConfig:
    method: Method = chz.field(default="ttt", doc=", ".join(METHODS), metadata=WHAT)
    tasks: list[str] = chz.field(default_factory=list, doc="names; default: all there is data for")
    task_start: int = chz.field(default=0, doc="first task of the table of 27")
    task_end: int | None = chz.field(default=None, doc="the task after the last one")
    data_dir: Path | None = chz.field(
        default=None, doc="a folder with BBH's <task>.json files", metadata=INPUT
    )
    source: Literal["auto", "hub", "generated"] = chz.field(
        default="auto", doc="without data_dir; auto: the hub, else what can be generated"
    )
    generated_size: int = chz.field(default=250, doc="items per generated task")
    k: int = chz.field(default=10, doc="demonstrations; 0: none (baseline only)")
    shuffle: bool = chz.field(default=True, doc="permute the demonstrations")

    loss_mask: LossMask = chz.field(
        default="all_outputs",
        doc="trained tokens (ttt)",
        metadata=MODEL,
    )
    num_training_steps: int = chz.field(
        default=40, doc="training sequences per task, each a permutation; 0: no training (ttt)"
    )
    batch_size: int | None = chz.field(default=None, doc="sequences per step; default: 5")
    epochs: int | None = chz.field(default=None, doc="default: ttt 1, e2e 4, shared_e2e 6")
    lr: float | None = chz.field(default=None, doc="default: 1e-4 per task, 5e-5 shared")
    lora_rank: int = chz.field(default=64, doc="of each adapter")
    lora_alpha: float = chz.field(default=64.0, doc="of each adapter")
    lora_dropout: float = chz.field(default=0.05, doc="of each adapter")
    lora_targets: list[str] = chz.field(
        default_factory=lambda: list(TARGETS), doc="adapted layers, by the end of their names"
    )
    weight_decay: float = chz.field(default=0.01, doc="of AdamW")

    max_items: int | None = chz.field(
        default=None, doc="evaluated items per task; default: all", metadata=EVALUATION
    )
    leave_one_out: bool = chz.field(
        default=False, doc="leave the last demonstration out of the prompts that are answered"
    )
    majority_vote: bool = chz.field(
        default=False, doc="answer under several permutations, and vote"
    )
    vote_permutations: int = chz.field(default=5, doc="with majority_vote")
    generation_length: Literal["fit", "published"] = chz.field(
        default="fit",
        doc="tokens of an answer: the published number (counted with Llama 3's tokenizer), or at "
        "least what the task's longest target takes",
    )

    output_file: Path | None = chz.field(
        default=None, doc="a copy of log.json goes there; must not exist", metadata=OUTPUT
    )

    def problems(self) -> list[str]:
        """What is wrong with these settings, a message each."""
        problems = problems_of(self.chosen_tasks)
        problems += range_problems(
            self,
            at_least_1=("generated_size", "max_items", "batch_size", "epochs", "lora_rank"),
            at_least_0=("k", "num_training_steps"),
            from_0=("lr", "weight_decay"),
            above_0=("lora_alpha",),
            below_1=("lora_dropout",),
        )
        if not self.lora_targets:
            problems.append("lora_targets=[]: name at least one layer")
        if self.k == 0 and self.method in TRAINED:
            problems.append(f"k=0: method={self.method} trains on demonstrations; k=10 is usual")
        if self.leave_one_out and (self.k < 2 or self.method not in SHOWING):
            problems.append(
                "leave_one_out needs demonstrations in the prompt: k from 2 and "
                f"{' or '.join(SHOWING)}"
            )
        if self.majority_vote and self.vote_permutations < 2:
            problems.append(f"vote_permutations={self.vote_permutations}: a vote needs at least 2")
        if self.majority_vote and not (self.shuffle and self.k and self.method in SHOWING):
            problems.append(
                "majority_vote needs permutations to vote over: shuffle=true, k from 1 and "
                f"{' or '.join(SHOWING)}"
            )
        if self.tasks and (self.task_start or self.task_end is not None):
            problems.append("tasks and task_start/task_end: give one of them")
        return problems

    def chosen_tasks(self) -> list[BBHTask]:
        return choose_tasks(self.tasks, self.task_start, self.task_end)

    def settings(
        self, *, model_name: str, seed: int, max_parallel: int, context: float, num_tasks: int
    ) -> BBHSettings:
        """The published values where nothing else was asked for."""
        published = PUBLISHED.get(self.method, _Published(0.0, 5, 1))
        batch_size = self.batch_size or published.batch_size
        num_epochs = self.epochs or published.num_epochs
        num_samples = self.k if self.method in DIRECT else self.num_training_steps
        if self.method in SHARED:
            num_samples *= num_tasks
        steps = math.ceil(num_samples / batch_size) * num_epochs
        return BBHSettings(
            method=self.method,
            base_model=model_name,
            k=self.k,
            seed=seed,
            shuffle=self.shuffle,
            leave_one_out=self.leave_one_out,
            vote_permutations=self.vote_permutations if self.majority_vote else 1,
            loss_mask=self.loss_mask,
            num_samples=self.num_training_steps,
            learning_rate=published.learning_rate if self.lr is None else self.lr,
            num_epochs=num_epochs,
            adapt=AdaptSettings(
                lora={
                    "rank": self.lora_rank,
                    "lora_alpha": self.lora_alpha,
                    "lora_dropout": self.lora_dropout,
                    "target_modules": list(self.lora_targets),
                },
                batch_size=batch_size,
                warmup_steps=int(0.1 * steps),
                weight_decay=self.weight_decay,
                max_parallel=max_parallel,
            ),
            max_items=self.max_items,
            fit_answers=self.generation_length == "fit",
            context=context,
        )

    def experiment_name(self, seed: int) -> str:
        """As the published code names its logs."""
        if self.method not in TRAINED:
            votes = f"_vote{self.vote_permutations}" if self.majority_vote else ""
            return f"{self.method}_k{self.k}{votes}_{seed}"
        settings = self.settings(model_name="", seed=seed, max_parallel=1, context=0, num_tasks=1)
        parts = [
            self.method.upper(),
            *(self.k, self.loss_mask, self.num_training_steps, self.shuffle, self.majority_vote),
            *(self.vote_permutations, self.leave_one_out, settings.adapt.batch_size),
            *(settings.num_epochs, settings.learning_rate, self.lora_rank, self.lora_alpha),
            *(self.lora_dropout, seed),
        ]
        return "_".join(map(str, parts))
