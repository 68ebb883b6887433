"""How a model is asked for ARC's test outputs: prompts, futures, and the grids it answers."""

import logging
from dataclasses import dataclass
from typing import Any

from training.api import APIFuture, ModelInput, SampleResponse, SamplingClient, SamplingParams
from training.chat import render_prompt
from training.domains.arc.grids import Grid
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
    Prediction,
    VotingPrompt,
    invert,
    vote,
    voting_prompts,
)
from training.domains.base import Message

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AnswerSettings:
    """How tasks are written and asked. `max_answer_tokens` None or 0: all that the context leaves.

    `evaluation` "vote" leaves prompts of `max_example_tokens` and more out; "greedy" those that
    fill the `context`, where that is given.
    """

    grid_format: GridFormat
    evaluation: str
    max_example_tokens: int
    max_answer_tokens: int | None
    seed: int
    context: int | None = None


@dataclass(frozen=True)
class Question:
    """A prompt about one test, and the answer to come."""

    test_index: int
    prompt: VotingPrompt
    future: APIFuture[SampleResponse]


@dataclass(frozen=True)
class Answers:
    """`attempts[t]` are the grids answered to test t, [[0]] where there is none; `texts` all that
    the model wrote, `num_unreadable` of it no grid; `num_unasked` tests had no prompt that fits."""

    attempts: list[list[Grid]]
    texts: list[str]
    num_unreadable: int
    num_unasked: int


class Answerer:
    """Writes tasks for one model, asks it, and reads what it answers."""

    def __init__(self, tokenizer: Any, settings: AnswerSettings) -> None:
        self._tokenizer = tokenizer
        self.settings = settings
        self._use_system = _takes_system(tokenizer)

    def messages(self, task: Task, test_index: int = 0) -> list[Message]:
        return task_messages(
            task,
            self.settings.grid_format,
            test_index=test_index,
            use_system=self._use_system,
        )

    def conversation(self, example: Task) -> list[Message]:
        """The prompt of the example's one test, and its answer."""
        output = example.test[0].output
        assert output is not None
        text = answer_text(output, self.settings.grid_format)
        return [*self.messages(example), {"role": "assistant", "content": text}]

    def fits(self, task: Task, limit: int) -> bool:
        return len(render_prompt(self._tokenizer, self.messages(task))) < limit

    def ask(self, task: Task, sampler: SamplingClient) -> list[Question]:
        """Requests the answers to all tests, without waiting for them."""
        return [
            Question(test_index, prompt, self._sample(prompt, sampler))
            for test_index in range(len(task.test))
            for prompt in self.prompts(task, test_index)
        ]

    def prompts(self, task: Task, test_index: int) -> list[VotingPrompt]:
        settings = self.settings
        if settings.evaluation == "vote":
            return voting_prompts(
                task,
                test_index=test_index,
                # a task without demonstrations has none to leave out
                include_n=(1,) if task.train else (0,),
                seed=settings.seed,
                fits=lambda t: self.fits(t, settings.max_example_tokens),
            )
        single = Task(task.id, task.train, (task.test[test_index],))
        if settings.context is not None and not self.fits(single, settings.context):
            return []
        return [VotingPrompt(single, "identity")]

    def read(self, task: Task, questions: list[Question]) -> Answers:
        """Waits for the answers, turns them back and votes."""
        predictions_T: list[list[Prediction]] = [[] for _ in task.test]
        texts: list[str] = []
        num_unreadable = 0
        for question in questions:
            sequence = question.future.result().sequences[0]
            text = self._tokenizer.decode(sequence.tokens, skip_special_tokens=True)
            texts.append(text)
            try:
                grid = parse_grid(text, self.settings.grid_format)
            except GridParseError as error:
                num_unreadable += 1
                logger.debug("%s test %d: %s", task.id, question.test_index, error)
            else:
                prediction = invert(grid, question.prompt.inverse)
                predictions_T[question.test_index].append(prediction)
        num_asked = len({question.test_index for question in questions})
        return Answers(
            attempts=[self._attempts(predictions) for predictions in predictions_T],
            texts=texts,
            num_unreadable=num_unreadable,
            num_unasked=len(task.test) - num_asked,
        )

    def _sample(self, prompt: VotingPrompt, sampler: SamplingClient) -> APIFuture[SampleResponse]:
        params = SamplingParams(
            max_tokens=self.settings.max_answer_tokens or None,
            temperature=0.0,
            seed=self.settings.seed,
            stop=[END_MARK],
        )
        tokens = render_prompt(self._tokenizer, self.messages(prompt.task))
        return sampler.sample(ModelInput.from_ints(tokens), 1, params)

    def _attempts(self, predictions: list[Prediction]) -> list[Grid]:
        if self.settings.evaluation == "vote":
            return list(vote(predictions))
        return [predictions[0].grid if predictions else UNDECODABLE]


def _takes_system(tokenizer: Any) -> bool:
    """Some chat templates know no system role; the user's message then holds it all."""
    try:
        render_prompt(
            tokenizer, [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
        )
    except ValueError:
        return False
    return True
