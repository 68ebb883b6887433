"""Self-editing on ARC (SEAL, arXiv 2506.10943): a problem is a task, an answer a self-edit.

The reward of a self-edit is what an adapter reaches that was trained as the self-edit says on the
task's own demonstrations. Adapters are trained on the base model, not on the policy: a self-edit's
reward is then a fact about the task, and is looked up when the same self-edit comes again.
"""

import contextlib
import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.api import ServiceClient
from training.domains.arc.config import TASK_SETS, ArcConfig
from training.domains.arc.features import change_table
from training.domains.arc.inner import InnerLoop, Outcome
from training.domains.arc.report import add_tasks, edit_summary, write_published_files
from training.domains.arc.self_edit import (
    ORACLE,
    SelfEdit,
    SelfEditError,
    json_schema,
    parse_self_edit,
    self_edit_messages,
)
from training.domains.arc.tasks import Task, load_kaggle, load_tasks
from training.domains.base import Algorithm, Problem, Reward, Samples, Split, Table
from training.models import check_rank, context_length, load_tokenizer
from utils.runs.report import Report


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


def _result(outcome: dict[str, Any]) -> str:
    return f"{outcome['num_steps']}, {outcome['cell_accuracy']:.0%}"


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
        if config.inner_rank is not None:
            check_rank(config.model_name, "inner_rank", config.inner_rank)
        self.loop = InnerLoop(service, load_tokenizer(config.model_name), inner)
        self._known: dict[str, dict[str, Any]] = {}

    def check_with_model(self) -> None:
        if self.config.mode == "baseline":
            return
        try:
            self.loop.require_adapters()
        except ValueError as error:
            # rank and alpha were checked
            raise ValueError(f"inner_targets: {error}") from error

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
        """Trains one adapter per distinct valid self-edit, all together, and scores its answers.
        With reward=cell_accuracy a success is what gets more cells right than the base model."""
        if self.config.reward_kind == "cell_accuracy":
            self.look_up_base(problems_P)
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
                Reward(0.0, False, reasons[p, g])
                if key is None
                else self._reward(key, problems_P[p].id)
                for g, key in enumerate(keys_G)
            ]
            for p, keys_G in enumerate(keys_P_G)
        ]

    def look_up_base(self, problems: list[Problem]) -> None:
        """Has the base model answer the tasks without any training, for outcome(problem, None)."""
        by_key = {f"{p.id} {None}": p for p in problems}
        missing = [p for key, p in by_key.items() if key not in self._known]
        if not missing:
            return
        outcomes = self.loop.run([(p.data, None) for p in missing], desc="base model")
        for problem, outcome in zip(missing, outcomes, strict=True):
            self._known[f"{problem.id} {None}"] = _plain(outcome)

    def outcome(self, problem: Problem, answer: str | None) -> dict[str, Any] | None:
        """What a self-edit (None: no training) led to: solved, cell_accuracy, attempts, ...;
        None where it is invalid or was never carried out."""
        key = self._known_key(problem.id, answer)
        return None if key is None else self._known[key]

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

    def close(self) -> None:
        pass

    def load_state(self, state: dict[str, Any]) -> None:
        self._known = dict(state.get("known", {}))

    def _known_key(self, problem_id: str, answer: str | None) -> str | None:
        """Under which its outcome is known, or None."""
        try:
            edit = None if answer is None else self._edit(answer)
        except SelfEditError:
            return None
        key = f"{problem_id} {edit}"
        return key if key in self._known else None

    def _edit(self, answer: str) -> SelfEdit | None:
        if self.config.mode == "baseline":
            return None
        return ORACLE if self.config.mode == "oracle" else parse_self_edit(answer, self.bounds)

    def _reward(self, key: str, problem_id: str) -> Reward:
        known = self._known[key]
        success = None
        if self.config.reward_kind == "cell_accuracy":
            base = self._known[f"{problem_id} {None}"]
            success = known["cell_accuracy"] > base["cell_accuracy"]
        value = float(known[self.config.reward_kind])
        note = (
            f"{known['num_examples']} examples, {known['num_steps']} steps, "
            f"{known['cell_accuracy']:.0%} of cells right"
        )
        if known["num_unasked"]:
            note += f"; {known['num_unasked']} tests not asked, their prompts are over the context"
        return Reward(value, known["solved"], note, success)

    # ------------------------------------------------------------------------- what a run shows

    def answer_table(self, problems: Mapping[Split, Sequence[Problem]], samples: Samples) -> Table:
        """Self-edits that look the same and came together stand in one row; why one was refused is
        in its sample's note."""
        by_id = {p.id: p for split in problems for p in problems[split]}
        counts: Counter[tuple[str, ...]] = Counter()
        for sample in samples:
            if (problem := by_id.get(sample["problem"])) is None:
                continue
            base, outcome = (self.outcome(problem, answer) for answer in (None, sample["answer"]))
            solved = "-" if base is None else "solved" if base["solved"] else "no"
            when = sample["when"].removeprefix("held out, ").removeprefix("train, ")
            edit = edit_summary(sample["answer"], self.bounds)
            result = "refused" if outcome is None else _result(outcome)
            counts[problem.id, solved, when, edit, f"{sample['reward']:.2f}", result] += 1
        rows = [[*row[:3], count, *row[3:]] for row, count in counts.items()]
        return ["task", "base", "when", "times", "self-edit", "reward", "steps, cells"], rows

    def add_to_report(
        self, report: Report, problems: Mapping[Split, Sequence[Problem]], samples: Samples
    ) -> None:
        for split, heading in (("train", "Training tasks"), ("test", "Held-out tasks")):
            tried = {sample["problem"] for sample in samples}
            if chosen := [p for p in problems[split] if p.id in tried]:
                report.heading(heading)
                add_tasks(report, chosen, samples, self.outcome, self.bounds)

    def summary(self, problems: Mapping[Split, Sequence[Problem]], samples: Samples) -> list[str]:
        """How many self-edits were carried out."""
        ids = {p.id for split in problems for p in problems[split]}
        keys = [self._known_key(s["problem"], s["answer"]) for s in samples if s["problem"] in ids]
        carried_out = [key for key in keys if key is not None]
        return [
            f"{len(keys)} self-edits, {len(keys) - len(carried_out)} of them refused; "
            f"{len(set(carried_out))} carried out: equal ones of a task once."
        ]

    def change_table(self, samples: Samples) -> Table:
        return change_table(samples, self.bounds)

    def write_files(
        self, folder: Path, problems: Mapping[Split, Sequence[Problem]], samples: Samples
    ) -> None:
        trained = [sample for sample in samples if sample["kind"] == "train"]
        write_published_files(folder, trained, self.bounds)
