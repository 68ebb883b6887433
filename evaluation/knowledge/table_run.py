"""A table's run from its edits to its answers, which goes on where it was."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from evaluation.knowledge.derived_rows import (
    add_distillation,
    add_skill,
    delete_adapters,
    forget_lost,
    skill_jobs,
)
from evaluation.knowledge.knowledge_report import Results
from evaluation.knowledge.rows import (
    DISTILLATION,
    SKILL,
    Edits,
    Plan,
    Rules,
    make_plan,
)
from evaluation.knowledge.runs import Outcomes, ask_again, carry_out
from training.api import ServiceClient
from training.domains.knowledge.answers import Item
from training.domains.knowledge.distillation import distilled_datums, widened
from training.domains.knowledge.documents import document_texts, text_datum
from training.domains.knowledge.inner import InnerJob, InnerLoop, Job, SumJob
from training.domains.knowledge.passages import Passage, Question

OUTCOMES = "outcomes.jsonl"


@dataclass
class TableRun:
    """`edits` of the passages by their writer, `others` and their `other_edits` for the row skill
    (empty where there is none). `batch_size` runs are done together. `keep`: all adapters are
    kept."""

    service: ServiceClient
    tokenizer: Any
    loop: InnerLoop
    passages: Sequence[Passage]
    rows: Sequence[str]
    rules: Rules
    edits: Mapping[str, Edits]
    others: Sequence[Passage]
    other_edits: Edits
    folder: Path
    batch_size: int
    top_k: int = 20
    keep: bool = False
    plan: Plan = field(init=False)
    outcomes: Outcomes = field(init=False)

    def __post_init__(self) -> None:
        self.outcomes = Outcomes(self.folder / OUTCOMES)
        self.plan = make_plan(self.passages, self.rows, self.edits, self.rules)
        settings = self.loop.settings
        # of before the run was taken up again; a failure of this time is not tried again at once
        self._unscored = self.outcomes.unscored()
        self._of_skill: dict[str, Job] = {}
        self._datum = partial(text_datum, self.tokenizer, mask_until=settings.mask_until)
        if SKILL in self.rows:
            self._of_skill = skill_jobs(
                *(self.others, self.other_edits, self.rules, settings.documents, settings.cap),
                self._datum,
            )
            forget_lost(self.plan, self.passages, self._of_skill, self.outcomes)

    @property
    def num_done(self) -> int:
        return sum(key in self.outcomes for key in self.plan.jobs | self._of_skill)

    @property
    def num_runs(self) -> int:
        """That are known of."""
        return len(self.plan.jobs) + len(self._of_skill) + len(self.plan.kept)

    def carry_out(self, on_batch: Callable[[], None] = lambda: None) -> None:
        """Does all that is not done yet."""
        settings = self.loop.settings
        if DISTILLATION in self.rows:
            distil = partial(
                *(distilled_datums, self.service, settings.base_model, self.tokenizer),
                self.loop.answerer,
                top_k=self.top_k,
            )
            add_distillation(
                *(self.plan, self.passages, self.edits[self.rules.reference], self.rules),
                self.outcomes,
                distil=distil,
                texts=partial(document_texts, form=settings.documents, cap=settings.cap),
                text_datum=lambda text: widened(self._datum(text), self.top_k),
                can_read=self._can_read,
            )
        self._do(self.plan.jobs | self._of_skill, on_batch)
        if SKILL in self.rows:
            add_skill(self.plan, self.passages, self.outcomes)
            self._do(self.plan.jobs, on_batch)
            if not self.keep:
                delete_adapters([*self.plan.kept.values(), *self._of_skill], self.outcomes)
        # when all rows are known, those whose data models have made too
        ask_again(self.plan, self.passages, self.outcomes, self.loop.judge, self._unscored)

    def _can_read(self, passage: Passage, question: str) -> bool:
        """Both, and an answer, fit into the model's context."""
        item = Item(passage, Question(f"{passage.id}/read", question, ""), passage.context)
        try:
            self.loop.answerer.prompt(item)
        except ValueError:
            return False
        return True

    def results(self) -> Results:
        return Results.of(self.passages, self.plan, self.outcomes)

    def adapters(self) -> dict[str, dict[str, str]]:
        """Where kept adapters lie, by row and run."""
        found: dict[str, dict[str, str]] = {}
        for row in self.plan.parts if self.keep else ():
            for key in self.plan.runs_of(row):
                done = self.outcomes.get(key)
                if done is not None and done.outcome.saved:
                    found.setdefault(row, {})[key] = done.outcome.saved
        return found

    def _do(self, jobs: Mapping[str, Job], on_batch: Callable[[], None]) -> None:
        if self.keep:
            jobs = {key: _kept(key, job) for key, job in jobs.items()}
        carry_out(self.loop, jobs, self.outcomes, batch_size=self.batch_size, on_batch=on_batch)


def _kept(key: str, job: Job) -> Job:
    if isinstance(job, SumJob) or (isinstance(job, InnerJob) and job.edit is None):
        return job
    return replace(job, save_as=re.sub(r"[^\w.-]+", "-", key).strip("-."))
