"""The inner loop of ARC self-editing: train an adapter per self-edit, let it answer, score it."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from training.adapt import AdaptJob, AdaptSettings, adapt
from training.api import (
    APIFuture,
    Datum,
    ModelInput,
    SampleResponse,
    SamplingClient,
    SamplingParams,
    ServiceClient,
)
from training.chat import datum_from_tokens, render_prompt, render_training
from training.domains.arc.examples import ExampleSet, build_examples, task_rng
from training.domains.arc.grids import Grid
from training.domains.arc.self_edit import Bounds, SelfEdit, check_steps
from training.domains.arc.tasks import Task
from training.domains.arc.text import (
    END_MARK,
    GridFormat,
    GridParseError,
    answer_text,
    parse_grid,
    task_messages,
)
from training.domains.arc.voting import (
    UNDECODABLE,
    Attempts,
    Prediction,
    Score,
    VotingPrompt,
    invert,
    score,
    vote,
    voting_prompts,
)
from training.domains.base import Message

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class InnerSettings:
    """How self-edits are carried out. `max_answer_tokens` None: all that the context leaves."""

    base_model: str
    grid_format: GridFormat
    evaluation: str
    bounds: Bounds
    adapt: AdaptSettings
    cap: int
    permute_n: int
    max_example_tokens: int
    max_answer_tokens: int | None
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What one self-edit led to; `attempts[t]` are the grids answered to test t."""

    score: Score
    attempts: list[list[Grid]]
    answers: list[str] = field(repr=False, default_factory=list)
    num_examples: int = 0
    num_steps: int = 0


class InnerLoop:
    """Expands self-edits into data, trains all adapters of a call together and scores them."""

    def __init__(self, service: ServiceClient, tokenizer: Any, settings: InnerSettings) -> None:
        self._service = service
        self._tokenizer = tokenizer
        self.settings = settings

    def examples(self, task: Task, edit: SelfEdit) -> ExampleSet:
        return build_examples(
            task,
            edit.families,
            permute_n=self.settings.permute_n,
            cap=self.settings.cap,
            seed=self.settings.seed,
            fits=lambda t: self._fits(t, self.settings.max_example_tokens),
        )

    def job(self, task: Task, edit: SelfEdit) -> AdaptJob:
        """Raises SelfEditError when the edit asks for more steps than the bounds allow."""
        examples = self.examples(task, edit).tasks
        check_steps(
            len(examples),
            edit.num_train_epochs,
            self.settings.bounds,
            self.settings.adapt.batch_size,
        )
        return AdaptJob(
            datums_D=[self._datum(example, edit) for example in examples],
            learning_rate=edit.learning_rate,
            num_epochs=edit.num_train_epochs,
            seed=int(task_rng(self.settings.seed, task.id).integers(2**31)),
        )

    def run(
        self, pairs: Sequence[tuple[Task, AdaptJob | None]], *, desc: str = "self-edits"
    ) -> list[Outcome]:
        """The outcome of each (task, job); None as job is the base model without training."""
        empty = AdaptJob(datums_D=[], learning_rate=0.0, num_epochs=0, seed=0)
        jobs = [job or empty for _, job in pairs]
        asked: dict[int, list[_Question]] = {}

        def ask(index: int, sampler: SamplingClient) -> None:
            asked[index] = self._ask(pairs[index][0], sampler)

        adapt(
            self._service,
            self.settings.base_model,
            jobs,
            self.settings.adapt,
            on_adapted=ask,
            desc=desc,
        )
        return [
            self._outcome(task, job, asked[index])
            for index, ((task, _), job) in enumerate(zip(pairs, jobs, strict=True))
        ]

    # ------------------------------------------------------------------------------------- private

    def _messages(self, task: Task) -> list[Message]:
        return task_messages(task, self.settings.grid_format)

    def _fits(self, task: Task, limit: int) -> bool:
        return len(render_prompt(self._tokenizer, self._messages(task))) < limit

    def _datum(self, example: Task, edit: SelfEdit) -> Datum:
        output = example.test[0].output
        assert output is not None
        answer: Message = {
            "role": "assistant",
            "content": answer_text(output, self.settings.grid_format),
        }
        train_on = "all_tokens" if edit.strategy == "train_using_all_tokens" else "last_assistant"
        rendered = render_training(
            self._tokenizer, [*self._messages(example), answer], train_on=train_on
        )
        return datum_from_tokens(*rendered)

    def _ask(self, task: Task, sampler: SamplingClient) -> list["_Question"]:
        """Requests the answers to all tests, without waiting for them."""
        return [
            _Question(test_index, prompt, self._sample(task, prompt, sampler))
            for test_index in range(len(task.test))
            for prompt in self._prompts(task, test_index)
        ]

    def _prompts(self, task: Task, test_index: int) -> list[VotingPrompt]:
        if self.settings.evaluation == "vote":
            limit = self.settings.max_example_tokens
            return voting_prompts(
                task,
                test_index=test_index,
                seed=self.settings.seed,
                fits=lambda t: self._fits(t, limit),
            )
        single = Task(task.id, task.train, (task.test[test_index],))
        return [VotingPrompt(single, "identity")]

    def _sample(
        self, task: Task, prompt: VotingPrompt, sampler: SamplingClient
    ) -> APIFuture[SampleResponse]:
        params = SamplingParams(
            max_tokens=self.settings.max_answer_tokens or None,
            temperature=0.0,
            seed=self.settings.seed,
            stop=[END_MARK],
        )
        tokens = render_prompt(self._tokenizer, self._messages(prompt.task))
        return sampler.sample(ModelInput.from_ints(tokens), 1, params)

    def _outcome(self, task: Task, job: AdaptJob, questions: list["_Question"]) -> Outcome:
        attempts: list[list[Grid]] = []
        answers: list[str] = []
        for test_index in range(len(task.test)):
            predictions: list[Prediction] = []
            for question in questions:
                if question.test_index != test_index:
                    continue
                sequence = question.future.result().sequences[0]
                text = self._tokenizer.decode(sequence.tokens, skip_special_tokens=True)
                answers.append(text)
                try:
                    grid = parse_grid(text, self.settings.grid_format)
                except GridParseError as error:
                    logger.debug("%s test %d: %s", task.id, test_index, error)
                else:
                    predictions.append(invert(grid, question.prompt.inverse))
            attempts.append(self._attempts(predictions))
        return Outcome(
            score(task, attempts),
            attempts,
            answers,
            len(job.datums_D),
            job.num_steps(self.settings.adapt.batch_size),
        )

    def _attempts(self, predictions: list[Prediction]) -> list[Grid]:
        if self.settings.evaluation == "vote":
            both: Attempts = vote(predictions)
            return list(both)
        return [predictions[0].grid if predictions else UNDECODABLE]


@dataclass(frozen=True)
class _Question:
    test_index: int
    prompt: VotingPrompt
    future: APIFuture[SampleResponse]
