"""Knowledge incorporation (SEAL, arXiv 2506.10943): a problem is a passage, an answer a self-edit.

The reward of a self-edit is what a model knows that was trained on it: an adapter on the base
model, asked without the passage. Adapters are trained on the base model, not on the policy, so a
self-edit's reward is a fact about the passage, and is looked up when the same one comes again.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training.api import ServiceClient
from training.domains.base import Algorithm, Problem, Reward, Samples, Split, Table
from training.domains.knowledge.config import chosen_preset, inner_settings, source_of
from training.domains.knowledge.domain_config import LOOP, KnowledgeDomainConfig
from training.domains.knowledge.edit_grammars import grammar_of
from training.domains.knowledge.edit_parsing import EditError, ParsedEdit, parse_edit
from training.domains.knowledge.edit_rewards import EditRewards
from training.domains.knowledge.forms import MODEL, EditPrompts
from training.domains.knowledge.grading import Judge
from training.domains.knowledge.inner import InnerJob, InnerLoop, items_of
from training.domains.knowledge.llm_judge import open_judge, rule_judge
from training.domains.knowledge.passages import Passage, Question
from training.domains.knowledge.seal_settings import seal_settings
from training.domains.knowledge.shown import (
    Trial,
    add_passages,
    summary_lines,
    told,
    write_seal_files,
)
from training.endpoints import Endpoints
from training.models import check_rank, context_length, load_tokenizer
from utils.config.entrypoint import ConfigError
from utils.runs.report import Report
from utils.runs.run_dir import RunDir

_SPLITS: tuple[Split, ...] = ("train", "test")


class KnowledgeDomain:
    name = "knowledge"
    algorithm: Algorithm = "rest_em"
    json_schema: dict[str, Any] | None = None

    def __init__(self, config: KnowledgeDomainConfig, service: ServiceClient) -> None:
        """Raises ConfigError for passages without questions, ValueError for a question that does
        not fit into the model's context, and what open_source raises."""
        self.config = config
        self.max_tokens = config.max_tokens
        self.loop_defaults = LOOP[chosen_preset(config)]
        is_small = chosen_preset(config) == "small"
        self.form = config.form or (MODEL if is_small else "implications")
        self._source = source_of(
            config,
            num_train=config.num_train_passages or (8 if is_small else 100),
            num_test=config.num_test_passages or self.loop_defaults["eval_size"],
        )
        if not self._source.has_questions:
            raise ConfigError(
                f"data_path={config.data_path!r}: some of its passages have no questions, so no "
                "self-edit can be rewarded; scripts/knowledge.py trains on such passages"
            )
        self._prompts = EditPrompts(
            self.form,
            prompt_form=config.edit_prompt or ("chat" if is_small else "raw"),
            example_edit=self._source.example_edit,
            choices=config.choices,
        )
        if config.inner_rank is not None:
            check_rank(config.model_name, "inner_rank", config.inner_rank)
        self._closed = contextlib.ExitStack()
        settings = inner_settings(config, self._source, context_length(config.model_name))
        self._tokenizer = load_tokenizer(config.model_name)
        # that of judge_kind=llm comes with the run
        self._judge: Judge | None = None
        if config.judge_kind != "llm":
            self._judge = rule_judge(config.judge_kind)
        self.inner = InnerLoop(
            service, self._tokenizer, settings, self._graded_by_judge, self._source.shots
        )
        passages = [p for split in _SPLITS for p in self._source.passages(split)]
        self.inner.answerer.check_all([i for p in passages for i in items_of(InnerJob(p, None))])
        self._rewards = EditRewards(
            self.inner,
            config.reward,
            repeats=config.repeats,
            eval_repeats=config.eval_repeats,
            held_out={passage.id for passage in self._source.passages("test")},
            min_gain=config.min_gain,
        )
        self._lines: dict[object, str] = {}

    def close(self) -> None:
        self._closed.close()

    def open_calls(self, run: RunDir) -> None:
        """The judge of judge_kind=llm, whose verdicts are kept in the run's folder."""
        config = self.config
        if config.judge_kind != "llm":
            return
        endpoints = self._closed.enter_context(Endpoints(device=config.device))
        self._judge = self._closed.enter_context(
            open_judge(config.judge_kind, config.judge, endpoints, seed=config.seed, run=run)
        )

    def check_with_model(self) -> None:
        try:
            self.inner.require_adapters()
        except ValueError as error:
            # rank and alpha were checked
            raise ValueError(f"inner_targets: {error}") from error

    def problems(self, split: Split) -> list[Problem]:
        return [self.problem(passage) for passage in self._source.passages(split)]

    def problem(self, passage: Passage) -> Problem:
        grammar = grammar_of(passage, self.form, choices=self.config.choices)
        return self._prompts.problem(passage, grammar=grammar)

    def solution(self, problem: Problem) -> Any:
        return dataclasses.asdict(problem.data)

    def invalid(self, answer: str) -> str | None:
        edit = self._edit(answer)
        return edit if isinstance(edit, str) else None

    def reward_tokens(self, problem: Problem) -> int:
        """Of an edit as long as the passage, in all repeats."""
        passage: Passage = problem.data
        texts = self.inner.texts(InnerJob(passage, passage.context))
        length = sum(len(self._tokenizer.encode(text)) for text in texts)
        return length * self.inner.settings.num_epochs * self._rewards.repeats(passage)

    def rewards(
        self, problems_P: list[Problem], answers_P_G: list[list[str]]
    ) -> list[list[Reward]]:
        """Trains an adapter for every repeat of every new self-edit, all together, and asks all."""
        edits_P_G = [[self._edit(answer) for answer in answers_G] for answers_G in answers_P_G]
        return self._rewards.rewards([problem.data for problem in problems_P], edits_P_G)

    def state(self) -> dict[str, Any]:
        return {"known": self._rewards.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Asks the judge again about the answers that it failed to grade."""
        self._rewards.load_state(state.get("known", {}))
        passages = {p.id: p for split in _SPLITS for p in self._source.passages(split)}
        self._rewards.ask_again(passages, self._graded_by_judge)

    # ------------------------------------------------------------------------- what a run shows

    def look_up_base(self, problems: list[Problem]) -> None:
        self._rewards.look_up_base([problem.data for problem in problems])

    def answer_table(self, problems: Mapping[Split, Sequence[Problem]], samples: Samples) -> Table:
        headers = ["passage", "when", "self-edit", "reward", "training and result"]
        return headers, [
            [
                s["problem"],
                s["when"],
                told(self._edit(s["answer"])),
                f"{s['reward']:.2f}",
                s["note"],
            ]
            for s in samples
        ]

    def add_to_report(
        self, report: Report, problems: Mapping[Split, Sequence[Problem]], samples: Samples
    ) -> None:
        add_passages(report, self._trials(problems, samples))

    def summary(self, problems: Mapping[Split, Sequence[Problem]], samples: Samples) -> list[str]:
        trials = self._trials(problems, samples)
        trained = [trial for trial in trials if trial.sample["kind"] == "train"]
        lines = [*summary_lines(trials, self._lines), self._rewards.reliability_line(trained)]
        if self.config.judge_kind == "llm":
            lines.append(self._rewards.verdicts_line())
        return lines

    def write_files(
        self, folder: Path, problems: Mapping[Split, Sequence[Problem]], samples: Samples
    ) -> None:
        """SEAL's report of the training edits, and the rows that its ReST-EM imitates."""
        trials = [t for t in self._trials(problems, samples) if t.sample["kind"] == "train"]
        if trials:
            about = seal_settings(
                folder, self.inner.settings, dataset=self._source.name, split_newlines=True
            )
            about |= {"exp_name": folder.resolve().name}
            write_seal_files(folder, trials, about)

    # --------------------------------------------------------------------------------- private

    def _graded_by_judge(self, asked: Sequence[tuple[Passage, Question, str]]) -> list[bool | None]:
        assert self._judge is not None, "open_calls() comes before any grading"
        return self._judge(asked)

    def _edit(self, answer: str) -> ParsedEdit | str:
        """The self-edit, or why there is none."""
        try:
            return parse_edit(answer, self.form, choices=self.config.choices)
        except EditError as error:
            return str(error)

    def _trials(self, problems: Mapping[Split, Sequence[Problem]], samples: Samples) -> list[Trial]:
        """The answers whose passages are known, with what came of them."""
        passages: dict[str, Passage] = {p.id: p.data for split in problems for p in problems[split]}
        trials = []
        for sample in samples:
            passage = passages.get(sample["problem"])
            if passage is None or (before := self._rewards.base(passage)) is None:
                continue
            edit = self._edit(sample["answer"])
            outcomes = [] if isinstance(edit, str) else self._rewards.outcomes(passage, edit)
            trials.append(Trial(sample, passage, edit, outcomes, before))
        return trials
