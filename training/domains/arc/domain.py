"""Self-editing on ARC (SEAL, arXiv 2506.10943): a problem is a task, an answer a self-edit.

The reward of a self-edit is what an adapter reaches that was trained as the self-edit says on the
task's own demonstrations. Adapters are trained on the base model, not on the policy: a self-edit's
reward is then a fact about the task, and is looked up when the same self-edit comes again.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import chz

from training.adapt import AdaptSettings
from training.api import ServiceClient
from training.domains.arc.inner import InnerLoop, InnerSettings, Outcome
from training.domains.arc.report import add_tasks, edit_summary, write_published_files
from training.domains.arc.self_edit import (
    ORACLE,
    Bounds,
    SelfEdit,
    SelfEditError,
    json_schema,
    parse_self_edit,
    self_edit_messages,
)
from training.domains.arc.tasks import Task, load_kaggle, load_tasks
from training.domains.arc.text import GridFormat
from training.domains.base import Algorithm, Problem, Reward, Samples, Split, Table
from training.models import context_length, load_tokenizer
from utils.config.entrypoint import raise_problems
from utils.config.help import EVALUATION, MODEL, SAMPLING, WHAT, group
from utils.runs.inputs import MUST_EXIST
from utils.runs.report import Report

logger = logging.getLogger(__name__)

TASK_SETS: dict[str, dict[Split, str]] = {
    "small": {"train": "small_train", "test": "small_test"},
    "seal": {"train": "seal_train", "test": "seal_eval"},
    "arc1": {"train": "arc1_train", "test": "arc1_eval"},
    "arc2": {"train": "arc2_train", "test": "arc2_eval"},
}
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
    batch_size=2,
    warmup_steps=2,
    cap=24,
    max_example_tokens=384,
    max_answer_tokens=96,
    bounds=Bounds(
        min_learning_rate=1e-5, max_learning_rate=5e-3, min_epochs=2, max_epochs=4, max_steps=36
    ),
    loop={
        "num_steps": 1,
        "groups_per_batch": 2,
        "group_size": 5,
        "temperature": 1.0,
        "learning_rate": 2e-4,
        "lora_rank": 16,
        "lora_alpha": 32.0,
        "rest_em_epochs": 8,
        "rest_em_batch_size": 5,
        "eval_size": 1,
        "eval_group_size": 4,
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

    reward: Literal["solved", "cell_accuracy"] = chz.field(
        default="solved",
        doc="cell_accuracy: the share of right cells, averaged over tests",
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
        at_least_one = ("inner_rank", "inner_batch_size", "cap", "max_parallel_adapters")
        for name in (*at_least_one, "max_tokens"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name}={value}: at least 1 is needed")
        raise_problems(problems)

    @property
    def chosen_set(self) -> str:
        return choose_set(self.task_set, self.model_name)

    @property
    def preset(self) -> Preset:
        return choose_preset(self.chosen_set, self.model_name)

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


def _plain(outcome: Outcome) -> dict[str, Any]:
    return {
        "solved": outcome.score.solved,
        "cell_accuracy": outcome.score.cell_accuracy,
        "num_examples": outcome.num_examples,
        "num_steps": outcome.num_steps,
        "num_unasked": outcome.num_unasked,
        "attempts": [[grid.tolist() for grid in attempts] for attempts in outcome.attempts],
        "answers": outcome.answers,
    }


class ArcDomain:
    name = "arc"
    algorithm: Algorithm = "rest_em"

    def __init__(self, config: ArcConfig, service: ServiceClient) -> None:
        self.config = config
        self.bounds = config.bounds
        self.max_tokens = config.max_tokens
        self.json_schema: dict[str, Any] | None = json_schema(self.bounds)
        self.loop_defaults = config.preset.loop
        inner = config.inner(context_length(config.model_name))
        self.loop = InnerLoop(service, load_tokenizer(config.model_name), inner)
        self._known: dict[str, dict[str, Any]] = {}

    def problems(self, split: Split) -> list[Problem]:
        return [self.problem(task) for task in self.tasks(split)]

    def problem(self, task: Task) -> Problem:
        messages = self_edit_messages(task, self.loop.settings.grid_format, self.bounds)
        return Problem(task.id, messages, task)

    def solution(self, problem: Problem) -> str:
        return problem.data.digest.hex()

    def tasks(self, split: Split) -> list[Task]:
        config = self.config
        challenges, solutions = (
            (config.challenges_file, config.solutions_file)
            if split == "train"
            else (config.test_challenges_file, config.test_solutions_file)
        )
        if challenges is not None:
            return load_kaggle(challenges, solutions)
        if config.chosen_set == "ids":
            return load_tasks(config.train_ids if split == "train" else config.test_ids)
        return load_tasks(TASK_SETS[config.chosen_set][split])

    def rewards(
        self, problems_P: list[Problem], answers_P_G: list[list[str]]
    ) -> list[list[Reward]]:
        """Trains one adapter per distinct valid self-edit, all together, and scores its answers."""
        keys_P_G: list[list[str | None]] = []
        reasons: dict[tuple[int, int], str] = {}
        todo: dict[str, tuple[Task, Any]] = {}
        for p, (problem, answers_G) in enumerate(zip(problems_P, answers_P_G, strict=True)):
            keys_G: list[str | None] = []
            for g, answer in enumerate(answers_G):
                try:
                    edit = self._edit(answer)
                    key = f"{problem.id} {edit}"
                    if key not in self._known and key not in todo:
                        job = None if edit is None else self.loop.job(problem.data, edit)
                        todo[key] = (problem.data, job)
                    keys_G.append(key)
                except SelfEditError as error:
                    reasons[p, g] = str(error)
                    keys_G.append(None)
            keys_P_G.append(keys_G)
        if todo:
            for key, outcome in zip(todo, self.loop.run(list(todo.values())), strict=True):
                self._known[key] = _plain(outcome)
        return [
            [
                Reward(0.0, False, reasons[p, g]) if key is None else self._reward(key)
                for g, key in enumerate(keys_G)
            ]
            for p, keys_G in enumerate(keys_P_G)
        ]

    def look_up_base(self, problems: list[Problem]) -> None:
        """Has the base model answer the tasks without any training, for outcome(problem, None)."""
        missing = [p for p in problems if f"{p.id} {None}" not in self._known]
        outcomes = self.loop.run([(p.data, None) for p in missing], desc="base model")
        for problem, outcome in zip(missing, outcomes, strict=True):
            self._known[f"{problem.id} {None}"] = _plain(outcome)

    def outcome(self, problem: Problem, answer: str | None) -> dict[str, Any] | None:
        """What a self-edit (None: no training) led to: solved, cell_accuracy, attempts, ...;
        None where it is invalid or was never carried out."""
        try:
            edit = None if answer is None else self._edit(answer)
        except SelfEditError:
            return None
        return self._known.get(f"{problem.id} {edit}")

    def invalid(self, answer: str) -> str | None:
        try:
            self._edit(answer)
        except SelfEditError as error:
            return str(error)
        return None

    def reward_tokens(self, problem: Problem) -> int:
        """A self-edit with all augmentations and the middle number of epochs, or fewer where the
        step limit asks for it."""
        for epochs in range((self.bounds.min_epochs + self.bounds.max_epochs) // 2, 0, -1):
            edit = dataclasses.replace(ORACLE, num_train_epochs=epochs)
            with contextlib.suppress(SelfEditError):
                return self.loop.job(problem.data, edit).num_tokens
        return 0

    def state(self) -> dict[str, Any]:
        return {"known": self._known}

    def load_state(self, state: dict[str, Any]) -> None:
        self._known = dict(state.get("known", {}))

    def _edit(self, answer: str) -> SelfEdit | None:
        if self.config.mode == "baseline":
            return None
        return ORACLE if self.config.mode == "oracle" else parse_self_edit(answer, self.bounds)

    def _reward(self, key: str) -> Reward:
        known = self._known[key]
        value = float(known[self.config.reward])
        note = (
            f"{known['num_examples']} examples, {known['num_steps']} steps, "
            f"{known['cell_accuracy']:.0%} of cells right"
        )
        if known["num_unasked"]:
            note += f"; {known['num_unasked']} tests not asked, their prompts are over the context"
        return Reward(value, known["solved"], note)

    # ------------------------------------------------------------------------- what a run shows

    def answer_table(self, problems: Mapping[Split, Sequence[Problem]], samples: Samples) -> Table:
        by_id = {p.id: p for split in problems for p in problems[split]}
        rows = []
        for sample in samples:
            if (problem := by_id.get(sample["problem"])) is None:
                continue
            base = self.outcome(problem, None)
            solved = "-" if base is None else "yes" if base["solved"] else "no"
            edit = edit_summary(sample["answer"], self.bounds)
            reward = f"{sample['reward']:.2f}"
            rows.append([sample["problem"], solved, sample["when"], edit, reward, sample["note"]])
        headers = ["task", "base solved?", "when", "self-edit", "reward", "training and result"]
        return headers, rows

    def add_to_report(
        self, report: Report, problems: Mapping[Split, Sequence[Problem]], samples: Samples
    ) -> None:
        for split, heading in (("train", "Training tasks"), ("test", "Held-out tasks")):
            tried = {sample["problem"] for sample in samples}
            if chosen := [p for p in problems[split] if p.id in tried]:
                report.heading(heading)
                add_tasks(report, chosen, samples, self.outcome, self.bounds)

    def write_files(self, folder: Path, samples: Samples) -> None:
        trained = [sample for sample in samples if sample["kind"] == "train"]
        write_published_files(folder, trained, self.bounds)
