"""The settings of scripts/ttt.py domain=arc."""

from collections import Counter
from pathlib import Path
from typing import Literal

import chz

from training.adapt import AdaptSettings
from training.domains.arc.config import (
    SEAL,
    SMALL,
    TASK_SETS,
    Preset,
    choose_preset,
    choose_set,
    given_or,
)
from training.domains.arc.tasks import Task, load_kaggle, load_tasks
from training.domains.arc.text import GridFormat
from training.domains.arc.ttt_data import METHODS, TRAINED, Method, TTTSettings
from training.domains.base import Split
from utils.config.help import EVALUATION, MODEL, WHAT
from utils.config.ranges import range_problems
from utils.runs.inputs import MUST_EXIST

# Learning rate and epochs, as in arXiv 2411.07279's code; with the small preset, as for the
# self-edit that solved most in benchmarks/arc_small_search.py.
PUBLISHED_TRAINING, SMALL_TRAINING = (5e-5, 2), (3e-3, 2)
# one adapter per task, where the loop over self-edits has dozens, may have more examples
SMALL_CAP = 24
WARMUP_SHARE = 0.1


@chz.chz(typecheck=True)
class ArcTTTConfig:
    method: Method = chz.field(
        default="ttt",
        doc=f"{', '.join(METHODS)}: shared is one adapter for all tasks, e2e trains and asks "
        "without demonstrations, baseline does not train",
        metadata=WHAT,
    )
    seed: int = chz.field(default=42, doc="of training sets, adapters and prompts")
    task_set: str = chz.field(
        default="auto",
        doc="small, seal, arc1, arc2 or ids; auto: small with the embedded model, else seal",
    )
    split: Literal["train", "test", "all"] | None = chz.field(
        default=None, doc="of the task set; default: all of small, else test"
    )
    task_ids: list[str] = chz.field(
        default_factory=list, doc="with task_set=ids; or the tasks of challenges_file to do"
    )
    challenges_file: Path | None = chz.field(
        default=None, doc="tasks as a Kaggle file", metadata=MUST_EXIST
    )
    solutions_file: Path | None = chz.field(
        default=None,
        doc="its solutions; without them nothing is scored",
        metadata=MUST_EXIST,
    )
    max_tasks: int | None = chz.field(default=None, doc="only the first ones; default: all")

    model_name: str = chz.field(
        default="embedded", doc="base model of the adapters", metadata=MODEL
    )
    max_parallel_adapters: int = chz.field(default=16, doc="adapters in memory at a time")
    transformations: bool = chz.field(
        default=True, doc="train on augmented examples too; false: on the task's own alone"
    )
    demonstration_loss: bool = chz.field(
        default=True,
        doc="train all outputs from the second demonstration on; false: the last output alone",
    )
    cap: int | None = chz.field(default=None, doc="training examples per task (published: 250)")
    permute_n: int = chz.field(default=1, doc="permuted copies of each example")
    max_example_tokens: int | None = chz.field(
        default=None, doc="longer examples and voting prompts are left out (published: 8192)"
    )
    lr: float | None = chz.field(default=None, doc="published: 5e-5; with the small preset 3e-3")
    epochs: int | None = chz.field(default=None, doc="passes over the examples (published: 2)")
    batch_size: int | None = chz.field(default=None, doc="examples per step (published: 2)")
    weight_decay: float = chz.field(default=0.01, doc="of AdamW")
    lora_rank: int | None = chz.field(default=None, doc="of each adapter (published: 128)")
    lora_alpha: float | None = chz.field(default=None, doc="of each adapter (published: 16)")
    lora_dropout: float = chz.field(default=0.0, doc="of each adapter")
    lora_targets: list[str] | None = chz.field(
        default=None, doc="adapted layers (published: q_proj, v_proj and the MLP's)"
    )

    evaluation: Literal["greedy", "vote"] | None = chz.field(
        default=None,
        doc="vote: augmented prompts, hierarchical voting, two attempts; greedy: one answer; "
        "default: vote, with the small preset greedy",
        metadata=EVALUATION,
    )
    grid_format: GridFormat | None = chz.field(default=None, doc="numpy, digits or words")
    max_answer_tokens: int | None = chz.field(
        default=None, doc="longest answer; 0: what the context leaves (published)"
    )

    def task_problems(self) -> list[str]:
        """What is wrong with the choice of tasks, a message each."""
        problems = []
        if self.task_set not in (*TASK_SETS, "auto", "ids"):
            allowed = ", ".join(("auto", "ids", *TASK_SETS))
            problems.append(f"task_set={self.task_set!r}: allowed are {allowed}")
        if self.challenges_file is None:
            if self.task_set == "ids" and not self.task_ids:
                problems.append("task_set=ids needs task_ids")
            if self.task_set != "ids" and self.task_ids:
                problems.append("task_ids need task_set=ids or a challenges_file")
            if self.solutions_file is not None:
                problems.append("solutions_file needs the challenges_file that it belongs to")
        elif self.task_set != "auto":
            problems.append("task_set and challenges_file: give one of them")
        if self.split is not None and (self.task_set == "ids" or self.challenges_file is not None):
            problems.append(f"split={self.split}: only the named task sets have one")
        twice = [task_id for task_id, n in Counter(self.task_ids).items() if n > 1]
        if twice:
            problems.append(f"task_ids names {', '.join(twice)} more than once")
        return problems

    def number_problems(self) -> list[str]:
        """Which numbers are out of range, a message each."""
        counts = ("max_tasks", "cap", "epochs", "batch_size", "lora_rank", "max_example_tokens")
        problems = range_problems(
            self,
            at_least_1=(*counts, "max_parallel_adapters"),
            at_least_0=("permute_n", "max_answer_tokens", "seed"),
            from_0=("lr", "weight_decay"),
            above_0=("lora_alpha",),
            below_1=("lora_dropout",),
        )
        if self.lora_targets == []:
            problems.append("lora_targets=[]: name at least one layer")
        return problems

    @property
    def chosen_set(self) -> str:
        return choose_set(self.task_set, self.model_name)

    @property
    def preset(self) -> Preset:
        return choose_preset(self.chosen_set, self.model_name)

    @property
    def rank(self) -> int:
        return given_or(self.lora_rank, self.preset.lora_rank)

    def load_tasks(self) -> list[Task]:
        """Raises ValueError or FileNotFoundError that names all that is unknown or malformed."""
        if self.challenges_file is not None:
            tasks = load_kaggle(self.challenges_file, self.solutions_file)
            if self.task_ids:
                tasks = _only(tasks, self.task_ids, self.challenges_file)
            if not tasks:
                raise ValueError(f"{self.challenges_file}: there are no tasks in it")
        elif self.chosen_set == "ids":
            tasks = load_tasks(self.task_ids)
        else:
            split = self.split or ("all" if self.chosen_set == "small" else "test")
            splits: list[Split] = ["train", "test"] if split == "all" else [split]
            names = [TASK_SETS[self.chosen_set][name] for name in splits]
            tasks = [task for name in names for task in load_tasks(name)]
        return tasks[: self.max_tasks]

    def settings(self, context: int | None) -> TTTSettings:
        """The preset's values, and the published ones, where nothing else was asked for."""
        preset = self.preset
        learning_rate, epochs = SMALL_TRAINING if preset is SMALL else PUBLISHED_TRAINING
        longest = given_or(self.max_example_tokens, preset.max_example_tokens)
        return TTTSettings(
            base_model=self.model_name,
            method=self.method,
            transformations=self.transformations,
            demonstration_loss=self.demonstration_loss,
            cap=given_or(self.cap, SMALL_CAP if preset is SMALL else preset.cap),
            permute_n=self.permute_n,
            learning_rate=given_or(self.lr, learning_rate),
            num_epochs=given_or(self.epochs, epochs),
            adapt=AdaptSettings(
                lora={
                    "rank": self.rank,
                    "lora_alpha": given_or(self.lora_alpha, preset.lora_alpha),
                    "lora_dropout": self.lora_dropout,
                    "target_modules": list(given_or(self.lora_targets, preset.lora_targets)),
                },
                batch_size=given_or(self.batch_size, SEAL.batch_size),
                warmup_share=WARMUP_SHARE,
                weight_decay=self.weight_decay,
                max_parallel=self.max_parallel_adapters,
            ),
            grid_format=given_or(self.grid_format, preset.grid_format),
            evaluation=given_or(self.evaluation, preset.evaluation),
            max_example_tokens=longest if context is None else min(longest, context),
            max_answer_tokens=given_or(self.max_answer_tokens, preset.max_answer_tokens),
            seed=self.seed,
            context=context,
        )

    @property
    def source(self) -> str:
        """Of the tasks: the set's name, or the file's."""
        return self.chosen_set if self.challenges_file is None else self.challenges_file.name

    @property
    def experiment_name(self) -> str:
        """The method and the ablations, in a few words."""
        where = self.source
        without = [
            words
            for is_on, words in (
                (self.transformations, "no transformations"),
                (self.demonstration_loss, "no demonstration loss"),
            )
            if not is_on and self.method in TRAINED
        ]
        return ", ".join([f"{self.method} on {where}", *without])


def _only(tasks: list[Task], ids: list[str], path: Path) -> list[Task]:
    known = {task.id: task for task in tasks}
    unknown = [task_id for task_id in ids if task_id not in known]
    if unknown:
        raise ValueError(
            f"{path} has no tasks {', '.join(unknown)}; it has {', '.join(list(known)[:5])}"
            f"{' ...' if len(known) > 5 else ''}"
        )
    return [known[task_id] for task_id in ids]
