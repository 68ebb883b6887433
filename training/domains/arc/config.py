"""The settings of scripts/rl_loop.py domain=arc, and what each task set is run with."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import chz

from training.adapt import AdaptSettings
from training.domains.arc.inner import InnerSettings
from training.domains.arc.self_edit import Bounds
from training.domains.arc.text import GridFormat
from training.domains.base import Split
from utils.config.entrypoint import raise_problems
from utils.config.help import EVALUATION, MODEL, SAMPLING, WHAT, group
from utils.config.ranges import range_problems
from utils.runs.inputs import MUST_EXIST

TASK_SETS: dict[str, dict[Split, str]] = {
    "small": {"train": "small_train", "test": "small_test"},
    "seal": {"train": "seal_train", "test": "seal_eval"},
    "arc1": {"train": "arc1_train", "test": "arc1_eval"},
    "arc2": {"train": "arc2_train", "test": "arc2_eval"},
}
RewardKind = Literal["solved", "cell_accuracy"]
SEAL_TARGETS = ("q_proj", "v_proj", "gate_proj", "down_proj", "up_proj")


@dataclass(frozen=True)
class Preset:
    """What a task set is run with where the user says nothing. `small` fits two CPU cores."""

    grid_format: GridFormat
    evaluation: Literal["greedy", "vote"]
    lora_rank: int
    lora_alpha: float
    lora_targets: tuple[str, ...]
    batch_size: int
    warmup_steps: int
    cap: int
    max_example_tokens: int
    max_answer_tokens: int | None
    reward: RewardKind
    bounds: Bounds
    loop: dict[str, Any]


# arXiv 2506.10943, appendix, and its published code: see the fields' docs in ArcConfig.
SEAL = Preset(
    grid_format="numpy",
    evaluation="vote",
    lora_rank=128,
    lora_alpha=16.0,
    lora_targets=SEAL_TARGETS,
    batch_size=2,
    warmup_steps=11,
    cap=250,
    max_example_tokens=8192,
    max_answer_tokens=None,
    reward="solved",
    bounds=Bounds(),
    loop={
        "num_steps": 1,
        "groups_per_batch": 11,
        "group_size": 15,
        "temperature": 0.8,
        "learning_rate": 5e-5,
        "lora_rank": 16,
        "lora_alpha": 16.0,
        "rest_em_epochs": 8,
        "rest_em_batch_size": 5,
        "eval_size": 8,
        "eval_group_size": 5,
        "eval_temperature": 0.8,
    },
)
SMALL = Preset(
    grid_format="digits",
    evaluation="greedy",
    lora_rank=16,
    lora_alpha=32.0,
    lora_targets=SEAL_TARGETS,
    # examples are few, so steps are more
    batch_size=1,
    warmup_steps=2,
    cap=8,
    max_example_tokens=384,
    max_answer_tokens=96,
    # a model this small solves few tasks, and its near misses tell self-edits apart
    reward="cell_accuracy",
    bounds=Bounds(
        min_learning_rate=1e-5, max_learning_rate=3e-3, min_epochs=2, max_epochs=3, max_steps=36
    ),
    loop={
        "num_steps": 1,
        # all tasks of the set: of few self-edits the best of each task says most
        "groups_per_batch": 7,
        "group_size": 3,
        "selection": "best",
        "temperature": 1.0,
        "learning_rate": 1e-3,
        "lora_rank": 16,
        "lora_alpha": 32.0,
        "rest_em_epochs": 4,
        "rest_em_batch_size": 5,
        "eval_size": 2,
        "eval_group_size": 8,
        "eval_temperature": 1.0,
    },
)


def choose_set(task_set: str, model_name: str) -> str:
    """What task_set=auto means for the model."""
    if task_set != "auto":
        return task_set
    return "small" if model_name == "embedded" else "seal"


def choose_preset(chosen_set: str, model_name: str) -> Preset:
    """The embedded model gets the small settings with any task set."""
    return SMALL if model_name == "embedded" or chosen_set == "small" else SEAL


def given_or(given: Any, default: Any) -> Any:
    return default if given is None else given


@chz.chz(typecheck=True)
class ArcConfig:
    seed: int = chz.field(default=0, doc="of training sets, adapters and sampling", metadata=WHAT)
    task_set: str = chz.field(
        default="auto",
        doc="small, seal, arc1, arc2 or ids; auto: small with the embedded model, else seal",
    )
    train_ids: list[str] = chz.field(default_factory=list, doc="with task_set=ids")
    test_ids: list[str] = chz.field(default_factory=list, doc="with task_set=ids")
    challenges_file: Path | None = chz.field(
        default=None, doc="train tasks as a Kaggle file", metadata=MUST_EXIST
    )
    solutions_file: Path | None = chz.field(default=None, doc="its solutions", metadata=MUST_EXIST)
    test_challenges_file: Path | None = chz.field(
        default=None, doc="test tasks as a Kaggle file", metadata=MUST_EXIST
    )
    test_solutions_file: Path | None = chz.field(
        default=None, doc="its solutions", metadata=MUST_EXIST
    )
    mode: Literal["self_edit", "oracle", "baseline"] = chz.field(
        default="self_edit",
        doc="oracle: every answer is the paper's hand-tuned self-edit; baseline: no training",
    )

    model_name: str = chz.field(
        default="embedded", doc="base model of policy and adapters", metadata=MODEL
    )
    max_parallel_adapters: int = chz.field(default=16, doc="adapters in memory at a time")

    inner_rank: int | None = chz.field(
        default=None,
        doc="rank of the task adapters (SEAL: 128)",
        metadata=group("Self-edits and their training"),
    )
    inner_alpha: float | None = chz.field(default=None, doc="their alpha (SEAL: 16)")
    inner_targets: list[str] | None = chz.field(
        default=None,
        doc=f"layers of the task adapters (SEAL: {', '.join(SEAL_TARGETS)})",
    )
    inner_batch_size: int | None = chz.field(default=None, doc="examples per step (SEAL: 2)")
    inner_warmup_steps: int | None = chz.field(default=None, doc="of the cosine (SEAL: 11)")
    cap: int | None = chz.field(default=None, doc="training examples per self-edit (SEAL: 250)")
    permute_n: int = chz.field(default=1, doc="permuted copies of each example")
    max_example_tokens: int | None = chz.field(
        default=None, doc="longer examples and prompts are left out (SEAL: 8192)"
    )
    min_learning_rate: float | None = chz.field(default=None, doc="a self-edit below is refused")
    max_learning_rate: float | None = chz.field(default=None, doc="a self-edit above is refused")
    min_epochs: int | None = chz.field(default=None, doc="a self-edit below is refused")
    max_epochs: int | None = chz.field(default=None, doc="a self-edit above is refused")
    max_inner_steps: int | None = chz.field(
        default=None, doc="a self-edit that needs more is refused (SEAL: 375)"
    )

    max_tokens: int = chz.field(
        default=128, doc="longest self-edit that is sampled", metadata=SAMPLING
    )

    reward: RewardKind | None = chz.field(
        default=None,
        doc="solved, or cell_accuracy: the share of right cells, averaged over tests; default: "
        "solved, with the small preset cell_accuracy",
        metadata=EVALUATION,
    )
    evaluation: Literal["greedy", "vote"] | None = chz.field(
        default=None, doc="vote: augmented prompts, hierarchical voting, two attempts"
    )
    grid_format: GridFormat | None = chz.field(default=None, doc="numpy, digits or words")
    max_answer_tokens: int | None = chz.field(
        default=None, doc="longest answer; 0: what the context leaves (SEAL)"
    )

    @chz.validate
    def _check(self) -> None:
        problems = []
        if self.task_set not in (*TASK_SETS, "auto", "ids"):
            allowed = ", ".join(("auto", "ids", *TASK_SETS))
            problems.append(f"task_set={self.task_set!r}: allowed are {allowed}")
        if self.task_set == "ids" and not (self.train_ids and self.test_ids):
            problems.append("task_set=ids needs train_ids and test_ids")
        if self.task_set != "ids" and (self.train_ids or self.test_ids):
            problems.append("train_ids and test_ids need task_set=ids")
        if (self.challenges_file is None) != (self.solutions_file is None):
            problems.append("challenges_file and solutions_file belong together: give both")
        if (self.test_challenges_file is None) != (self.test_solutions_file is None):
            problems.append("test_challenges_file and test_solutions_file belong together")
        counts = ("inner_rank", "inner_batch_size", "cap", "max_parallel_adapters", "max_tokens")
        problems += range_problems(
            self,
            at_least_1=counts,
            at_least_0=("seed", "permute_n", "inner_warmup_steps", "max_answer_tokens"),
            above_0=("inner_alpha",),
        )
        if self.inner_targets == []:
            problems.append("inner_targets=[]: name at least one layer")
        raise_problems(problems)

    @property
    def chosen_set(self) -> str:
        return choose_set(self.task_set, self.model_name)

    @property
    def preset(self) -> Preset:
        return choose_preset(self.chosen_set, self.model_name)

    @property
    def reward_kind(self) -> RewardKind:
        return given_or(self.reward, self.preset.reward)

    @property
    def bounds(self) -> Bounds:
        preset = self.preset.bounds
        return Bounds(
            min_learning_rate=given_or(self.min_learning_rate, preset.min_learning_rate),
            max_learning_rate=given_or(self.max_learning_rate, preset.max_learning_rate),
            min_epochs=given_or(self.min_epochs, preset.min_epochs),
            max_epochs=given_or(self.max_epochs, preset.max_epochs),
            max_steps=given_or(self.max_inner_steps, preset.max_steps),
        )

    def inner(self, context: int | None = None) -> InnerSettings:
        """For a model that takes `context` tokens."""
        preset = self.preset
        longest = given_or(self.max_example_tokens, preset.max_example_tokens)
        return InnerSettings(
            base_model=self.model_name,
            grid_format=given_or(self.grid_format, preset.grid_format),
            evaluation=given_or(self.evaluation, preset.evaluation),
            bounds=self.bounds,
            adapt=AdaptSettings(
                lora={
                    "rank": given_or(self.inner_rank, preset.lora_rank),
                    "lora_alpha": given_or(self.inner_alpha, preset.lora_alpha),
                    "target_modules": list(given_or(self.inner_targets, preset.lora_targets)),
                },
                batch_size=given_or(self.inner_batch_size, preset.batch_size),
                warmup_steps=given_or(self.inner_warmup_steps, preset.warmup_steps),
                max_parallel=self.max_parallel_adapters,
            ),
            cap=given_or(self.cap, preset.cap),
            permute_n=self.permute_n,
            max_example_tokens=longest if context is None else min(longest, context),
            max_answer_tokens=given_or(self.max_answer_tokens, preset.max_answer_tokens),
            seed=self.seed,
            context=context,
        )
