"""The inner loop of ARC self-editing: train an adapter per self-edit, let it answer, score it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from training.adapt import AdaptJob, AdaptSettings, adapt, require_adapters
from training.adapter_proof import AdapterProof
from training.api import Datum, SamplingClient, ServiceClient
from training.chat import datum_from_tokens, render_training
from training.domains.arc.answers import Answerer, AnswerSettings, Question
from training.domains.arc.examples import ExampleSet, adapter_seed, build_examples
from training.domains.arc.grids import Grid
from training.domains.arc.self_edit import Bounds, SelfEdit, check_steps
from training.domains.arc.tasks import Task
from training.domains.arc.voting import Score, score

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InnerSettings(AnswerSettings):
    """How self-edits are carried out."""

    base_model: str
    bounds: Bounds
    adapt: AdaptSettings
    cap: int
    permute_n: int


@dataclass(frozen=True)
class Outcome:
    """What one self-edit led to; `attempts[t]` are the grids answered to test t, and
    `num_unasked` the tests whose prompts are all over the model's context."""

    score: Score
    attempts: list[list[Grid]]
    answers: list[str] = field(repr=False, default_factory=list)
    num_examples: int = 0
    num_steps: int = 0
    num_unasked: int = 0


class InnerLoop:
    """Expands self-edits into data, trains all adapters of a call together and scores them."""

    def __init__(self, service: ServiceClient, tokenizer: Any, settings: InnerSettings) -> None:
        self._service = service
        self._tokenizer = tokenizer
        self._answerer = Answerer(tokenizer, settings)
        self._proof = AdapterProof(service, settings.base_model, with_answers=True)
        self.settings = settings

    def require_adapters(self) -> None:
        """Raises ValueError where the model's layers cannot have the adapters of the settings."""
        require_adapters(self._service, self.settings.base_model, self.settings.adapt)

    def examples(self, task: Task, edit: SelfEdit) -> ExampleSet:
        return build_examples(
            task,
            edit.families,
            permute_n=self.settings.permute_n,
            cap=self.settings.cap,
            seed=self.settings.seed,
            fits=lambda t: self._answerer.fits(t, self.settings.max_example_tokens),
        )

    def job(self, task: Task, edit: SelfEdit) -> AdaptJob:
        """Raises SelfEditError when the edit asks for more steps than the bounds allow."""
        datums = self._datums(task, edit)
        check_steps(
            len(datums),
            edit.num_train_epochs,
            self.settings.bounds,
            self.settings.adapt.batch_size,
        )
        return AdaptJob(
            datums_D=datums,
            learning_rate=edit.learning_rate,
            num_epochs=edit.num_train_epochs,
            seed=adapter_seed(self.settings.seed, task.id),
        )

    def run(
        self, pairs: Sequence[tuple[Task, AdaptJob | None]], *, desc: str = "self-edits"
    ) -> list[Outcome]:
        """The outcome of each (task, job); None as job is the base model without training."""
        empty = AdaptJob(datums_D=[], learning_rate=0.0, num_epochs=0, seed=0)
        jobs = [job or empty for _, job in pairs]
        asked: dict[int, list[Question]] = {}

        def ask(index: int, sampler: SamplingClient) -> None:
            asked[index] = self._answerer.ask(pairs[index][0], sampler)

        adapt(
            self._service,
            self.settings.base_model,
            jobs,
            self.settings.adapt,
            on_adapted=ask,
            desc=desc,
            proof=self._proof,
        )
        return [
            self._outcome(task, job, asked[index])
            for index, ((task, _), job) in enumerate(zip(pairs, jobs, strict=True))
        ]

    # ------------------------------------------------------------------------------------- private

    def _datums(self, task: Task, edit: SelfEdit) -> list[Datum]:
        """Of the examples that fit with their answers: `max_example_tokens` is about prompts."""
        train_on = "all_tokens" if edit.strategy == "train_using_all_tokens" else "last_assistant"
        conversations = map(self._answerer.conversation, self.examples(task, edit).tasks)
        datums = [
            datum_from_tokens(*render_training(self._tokenizer, c, train_on=train_on))
            for c in conversations
        ]
        context = self.settings.context
        kept = [d for d in datums if context is None or d.model_input.length <= context]
        if len(kept) < len(datums):
            logger.warning(
                "%s: %d of %d training examples are over the context of %d tokens: left out",
                *(task.id, len(datums) - len(kept), len(datums), context),
            )
        return kept

    def _outcome(self, task: Task, job: AdaptJob, questions: list[Question]) -> Outcome:
        answers = self._answerer.read(task, questions)
        return Outcome(
            score(task, answers.attempts),
            answers.attempts,
            answers.texts,
            len(job.datums_D),
            job.num_steps(self.settings.adapt.batch_size),
            answers.num_unasked,
        )
