"""Knowledge incorporation (SEAL, arXiv 2506.10943): a problem is a passage, an answer a self-edit.

The reward of a self-edit is what a model knows that was trained on it: an adapter on the base
model, asked without the passage. Adapters are trained on the base model, not on the policy, so a
self-edit's reward is a fact about the passage, and is looked up when the same one comes again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, variance
from typing import Any

import chz

from training.api import ServiceClient
from training.domains.base import Algorithm, Problem, Reward, Samples, Split, Table
from training.domains.knowledge.config import (
    KnowledgeConfig,
    chosen_preset,
    inner_settings,
    source_of,
)
from training.domains.knowledge.edit_grammars import grammar_of
from training.domains.knowledge.edit_parsing import EditError, ParsedEdit, parse_edit
from training.domains.knowledge.forms import (
    MODEL,
    Choices,
    EditPrompts,
    PromptForm,
    check_form,
)
from training.domains.knowledge.grading import Judge
from training.domains.knowledge.inner import InnerJob, InnerLoop, InnerOutcome, Preset, items_of
from training.domains.knowledge.llm_judge import log_asked_again, open_judge, rule_judge
from training.domains.knowledge.passages import Passage, Question
from training.domains.knowledge.reliability import (
    RewardKind,
    reliability,
    reward,
    warn_unreliable,
)
from training.domains.knowledge.seal_settings import seal_settings
from training.domains.knowledge.shown import (
    Trial,
    add_passages,
    note_of,
    summary_lines,
    told,
    write_seal_files,
)
from training.endpoints import Endpoints
from training.models import check_rank, context_length, load_tokenizer
from utils.config.entrypoint import ConfigError, problems_of, raise_problems
from utils.config.help import EVALUATION, SAMPLING, WHAT
from utils.runs.report import Report
from utils.runs.run_dir import RunDir

logger = logging.getLogger(__name__)

_SPLITS: tuple[Split, ...] = ("train", "test")

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
        default=None, doc="held out; default: 5 of a made world, else 200"
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
        problems = []
        at_least_one = ("num_train_passages", "num_test_passages", "max_tokens")
        for name in (*at_least_one, "repeats", "eval_repeats"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name}={value}: at least 1 is needed")
        if self.min_gain is not None and math.isnan(self.min_gain):
            problems.append(f"min_gain={self.min_gain}: a number is needed; no gain is above it")
        problems += problems_of(lambda: check_form(self.form or "qa"), lambda: self.choices)
        raise_problems(problems)

    @property
    def choices(self) -> Choices:
        return Choices(tuple(self.model_forms), tuple(self.model_rates))


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
            num_test=config.num_test_passages or (5 if is_small else 200),
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
        for passage in (p for split in _SPLITS for p in self._source.passages(split)):
            for item in items_of(InnerJob(passage, None)):
                self.inner.answerer.check(item)
        # the repeats of every self-edit that was carried out; of the base model there is one
        self._known: dict[str, list[InnerOutcome]] = {}
        self._held_out = {passage.id for passage in self._source.passages("test")}
        self._lines: dict[object, str] = {}
        self._warned = False

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
        return length * self.inner.settings.num_epochs * self._repeats(passage)

    def rewards(
        self, problems_P: list[Problem], answers_P_G: list[list[str]]
    ) -> list[list[Reward]]:
        """Trains an adapter for every repeat of every new self-edit, all together, and asks all."""
        edits_P_G = [[self._edit(answer) for answer in answers_G] for answers_G in answers_P_G]
        jobs: dict[str, list[InnerJob]] = {}
        for problem, edits_G in zip(problems_P, edits_P_G, strict=True):
            for edit in (None, *edits_G):
                if (
                    not isinstance(edit, str)
                    and (key := _key(problem.data, edit)) not in self._known
                ):
                    jobs[key] = self._jobs(problem.data, edit)
        self._carry_out([job for jobs_R in jobs.values() for job in jobs_R], desc="self-edits")
        threshold = self.config.min_gain
        if threshold is None:
            threshold = self._noise(problems_P, edits_P_G)
        return [
            self._graded(problem.data, edits_G, threshold)
            for problem, edits_G in zip(problems_P, edits_P_G, strict=True)
        ]

    def state(self) -> dict[str, Any]:
        known = {
            key: [dataclasses.asdict(outcome) for outcome in outcomes_R]
            for key, outcomes_R in self._known.items()
        }
        return {"known": known}

    def load_state(self, state: dict[str, Any]) -> None:
        self._known = {
            key: [InnerOutcome(**outcome) for outcome in outcomes_R]
            for key, outcomes_R in state.get("known", {}).items()
        }
        self._ask_again()

    # ------------------------------------------------------------------------- what a run shows

    def look_up_base(self, problems: list[Problem]) -> None:
        missing = [p.data for p in problems if _key(p.data, None) not in self._known]
        self._carry_out([InnerJob(passage, None) for passage in missing], desc="base model")

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
        lines = [*summary_lines(trials, self._lines), self._reliability(trained)]
        if self.config.judge_kind == "llm":
            lines.append(self._verdicts_line())
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

    def _ask_again(self) -> None:
        """The judge about answers that it failed to grade before the run was taken up again."""
        passages = {p.id: p for split in _SPLITS for p in self._source.passages(split)}
        lacking = [
            (key, r, q)
            for key, outcomes_R in self._known.items()
            for r, outcome in enumerate(outcomes_R)
            for q, verdict in enumerate(outcome.correct_Q)
            if verdict is None
        ]
        if not lacking:
            return
        asked = []
        for key, r, q in lacking:
            passage = passages[json.loads(key)[0]]
            asked.append((passage, passage.questions[q], self._known[key][r].answers_Q[q]))
        verdicts = self._graded_by_judge(asked)
        for (key, r, q), verdict in zip(lacking, verdicts, strict=True):
            self._known[key][r].correct_Q[q] = verdict
        log_asked_again(verdicts)

    def _verdicts_line(self) -> str:
        verdicts = [
            v for outcomes_R in self._known.values() for o in outcomes_R for v in o.correct_Q
        ]
        line = f"Judge: {len(verdicts)} answers, {verdicts.count(None)} without a verdict"
        again = ", which are asked about again when the run is taken up again"
        return line + again * (None in verdicts)

    def _edit(self, answer: str) -> ParsedEdit | str:
        """The self-edit, or why there is none."""
        try:
            return parse_edit(answer, self.form, choices=self.config.choices)
        except EditError as error:
            return str(error)

    def _jobs(self, passage: Passage, edit: ParsedEdit | None) -> list[InnerJob]:
        if edit is None:
            return [InnerJob(passage, None)]
        return [
            InnerJob(passage, edit.text, learning_rate=edit.learning_rate, repeat=r)
            for r in range(self._repeats(passage))
        ]

    def _repeats(self, passage: Passage) -> int:
        held_out = passage.id in self._held_out
        return self.config.eval_repeats if held_out else self.config.repeats

    def _carry_out(self, jobs: list[InnerJob], *, desc: str) -> None:
        found: dict[str, list[InnerOutcome]] = {}
        for job, outcome in zip(jobs, self.inner.run(jobs, desc=desc), strict=True):
            key = _key_of(job.passage, job.edit, job.learning_rate)
            found.setdefault(key, []).append(outcome)
        self._known |= found

    def _values(self, passage: Passage, edit: ParsedEdit, kind: RewardKind) -> list[float]:
        """Of the repeats that came to an end and could be graded."""
        [before] = self._known[_key(passage, None)]
        values_R = [reward(kind, after, before) for after in self._known[_key(passage, edit)]]
        return [value for value in values_R if value is not None]

    def _gains(self, passage: Passage, edit: ParsedEdit) -> list[float]:
        kind = "gain" if self.config.reward == "accuracy" else self.config.reward
        return self._values(passage, edit, kind)

    def _noise(self, problems_P: list[Problem], edits_P_G: list[list[ParsedEdit | str]]) -> float:
        """The standard deviation of an edit's mean gain over its repeats, pooled over edits; 0
        where nothing was repeated."""
        variances = []
        for problem, edits_G in zip(problems_P, edits_P_G, strict=True):
            for edit in edits_G:
                if (
                    not isinstance(edit, str)
                    and len(gains_R := self._gains(problem.data, edit)) > 1
                ):
                    variances.append(variance(gains_R) / len(gains_R))
        return math.sqrt(fmean(variances)) if variances else 0.0

    def _graded(
        self, passage: Passage, edits_G: list[ParsedEdit | str], threshold: float
    ) -> list[Reward]:
        values_G = [
            [] if isinstance(edit, str) else self._values(passage, edit, self.config.reward)
            for edit in edits_G
        ]
        graded = [fmean(values_R) for values_R in values_G if values_R]
        rewards_G = []
        for edit, values_R in zip(edits_G, values_G, strict=True):
            if isinstance(edit, str):
                rewards_G.append(Reward(0.0, False, edit))
                continue
            outcomes_R = self._known[_key(passage, edit)]
            note = note_of(outcomes_R, self._known[_key(passage, None)][0])
            if values_R:
                solved = fmean(self._gains(passage, edit)) > threshold
                rewards_G.append(Reward(fmean(values_R), solved, note))
            elif all(outcome.failed for outcome in outcomes_R):
                rewards_G.append(Reward(0.0, False, note))
            else:
                # no verdict is no wrong answer: it must not count against the edit
                rewards_G.append(Reward(fmean(graded) if graded else 0.0, False, note))
        return rewards_G

    def _reliability(self, trials: Sequence[Trial]) -> str:
        if self.config.repeats < 2:
            return "Reliability of the reward: unknown with repeats=1"
        by_passage: dict[str, dict[str, list[float]]] = {}
        for trial in trials:
            if not isinstance(trial.edit, str):
                values_R = self._values(trial.passage, trial.edit, self.config.reward)
                if len(values_R) == self.config.repeats:
                    edits = by_passage.setdefault(trial.passage.id, {})
                    edits[_key(trial.passage, trial.edit)] = values_R
        rewards_P_K_R = [list(edits.values()) for edits in by_passage.values() if len(edits) > 1]
        if not rewards_P_K_R:
            return "Reliability of the reward: unknown, no passage has two graded self-edits"
        found = reliability(rewards_P_K_R)
        if not self._warned:
            # a run shows this again and again
            warn_unreliable(found, self.config.reward)
            self._warned = True
        return f"Reward ({self.config.reward}): {found.told(self.config.reward)}"

    def _trials(self, problems: Mapping[Split, Sequence[Problem]], samples: Samples) -> list[Trial]:
        """The answers whose passages are known, with what came of them."""
        passages: dict[str, Passage] = {p.id: p.data for split in problems for p in problems[split]}
        trials = []
        for sample in samples:
            passage = passages.get(sample["problem"])
            if passage is None or (before := self._known.get(_key(passage, None))) is None:
                continue
            edit = self._edit(sample["answer"])
            outcomes = [] if isinstance(edit, str) else self._known[_key(passage, edit)]
            trials.append(Trial(sample, passage, edit, outcomes, before[0]))
        return trials


def _key(passage: Passage, edit: ParsedEdit | None) -> str:
    if edit is None:
        return _key_of(passage, None, None)
    return _key_of(passage, edit.text, edit.learning_rate)


def _key_of(passage: Passage, text: str | None, learning_rate: float | None) -> str:
    return json.dumps([passage.id, text, learning_rate])
