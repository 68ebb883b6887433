"""The methods that are compared on BBH, after Akyürek et al., arXiv 2411.07279.

In-context learning, test-time training of an adapter per task or for all tasks, training without
demonstrations, and guessing.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from training.adapt import AdaptJob, AdaptSettings, adapt
from training.adapter_proof import AdapterProof
from training.api import APIFuture, ModelInput, SampleResponse, SamplingClient, SamplingParams
from training.domains.bbh.data import TaskData, split
from training.domains.bbh.items import Item
from training.domains.bbh.scoring import guess, is_right, is_scorable, majority, read_answer
from training.domains.bbh.text import STOP, LossMask, PromptTokens
from utils.runs.progress import progress

if TYPE_CHECKING:
    from pathlib import Path

    from training.api import Datum, ServiceClient

logger = logging.getLogger(__name__)

Method = Literal["baseline", "ttt", "shared_ttt", "e2e", "shared_e2e", "random_guessing"]
METHODS: tuple[Method, ...] = (
    *("baseline", "ttt", "shared_ttt", "e2e", "shared_e2e", "random_guessing"),
)
SHARED = ("shared_ttt", "shared_e2e")
# test-time training that shows no demonstrations, neither in training nor in answering
DIRECT = ("e2e", "shared_e2e")
TRAINED = ("ttt", *SHARED, "e2e")
# those that answer after demonstrations
SHOWING = ("baseline", "ttt", "shared_ttt")
TOO_LONG = "prompt over the context"


@dataclass(frozen=True)
class BBHSettings:
    """`vote_permutations` is 1 without a vote. `max_items` bounds the evaluated items per task;
    None: all. `context` is the model's, in tokens; inf where it names no limit."""

    method: Method
    base_model: str
    k: int
    seed: int
    shuffle: bool
    leave_one_out: bool
    vote_permutations: int
    loss_mask: LossMask
    num_samples: int
    learning_rate: float
    num_epochs: int
    adapt: AdaptSettings
    max_items: int | None
    fit_answers: bool
    context: float


@dataclass
class Prediction:
    """`index` is the item's place in its file; `votes` are the answers of all permutations.
    `answer` is None where there was no room to ask, which `event` says, and for guesses."""

    index: int
    question: str
    target: str
    answer: str | None
    right: bool
    scorable: bool
    votes: list[str] = field(default_factory=list)
    event: str | None = None


@dataclass
class TaskResult:
    """Accuracy in percent over all evaluated items. Times are this task's share, in seconds, of
    those of the tasks that were trained and asked together."""

    task: str
    accuracy: float
    num_items: int
    num_unscorable: int
    events: dict[str, int]
    train_seconds: float
    eval_seconds: float
    num_train_tokens: int
    predictions: list[Prediction]


@dataclass(frozen=True)
class _Plan:
    """One task's split, training data and demonstrations for each vote."""

    data: TaskData
    evaluated: list[Item]
    indices: list[int]
    datums_D: list[Datum]
    demonstrations_V: list[list[Item]]
    num_dropped: int


class BBHRun:
    """Trains and asks the tasks of a run; `max_parallel` adapters at a time."""

    def __init__(
        self,
        service: ServiceClient,
        tokenizer: Any,
        settings: BBHSettings,
        run_path: Path | None = None,
    ) -> None:
        self._service = service
        self._proof = AdapterProof(service, settings.base_model, run_path, with_answers=True)
        self._tokens = PromptTokens(tokenizer)
        self.settings = settings

    def results(self, data: Sequence[TaskData], done: Sequence[str]) -> Iterator[TaskResult]:
        """One result per task that is not in `done`, as they come. Methods with one adapter for
        all tasks train it on all of them, also on those that are done."""
        shared = self.settings.method in SHARED
        plans = [self._plan(d) for d in data if shared or d.task.name not in done]
        left = [plan for plan in plans if plan.data.task.name not in done]
        if self.settings.method == "random_guessing":
            yield from (self._guessed(plan) for plan in left)
        elif self.settings.method == "baseline":
            base = self._service.create_sampling_client(base_model=self.settings.base_model)
            for chunk in _chunks(left, self.settings.adapt.max_parallel):
                yield from self._answers(chunk, [base] * len(chunk), 0.0)
        elif shared:
            yield from self._shared(plans, left)
        else:
            for chunk in _chunks(left, self.settings.adapt.max_parallel):
                yield from self._one_each(chunk)

    def _one_each(self, plans: list[_Plan]) -> Iterator[TaskResult]:
        """In a frame of its own, so that its adapters are gone before the next ones are made."""
        started = time.perf_counter()
        samplers = self._train([self._job(plan.datums_D) for plan in plans])
        yield from self._answers(plans, samplers, time.perf_counter() - started)

    def _shared(self, plans: list[_Plan], left: list[_Plan]) -> Iterator[TaskResult]:
        if not left:
            return
        started = time.perf_counter()
        [sampler] = self._train([self._job([d for plan in plans for d in plan.datums_D])])
        seconds = (time.perf_counter() - started) * len(left) / len(plans)
        for chunk in _chunks(left, self.settings.adapt.max_parallel):
            share = seconds * len(chunk) / len(left)
            yield from self._answers(chunk, [sampler] * len(chunk), share)

    # ------------------------------------------------------------------------------------ training

    def _plan(self, data: TaskData) -> _Plan:
        settings = self.settings
        # one stream, as published: the split, the permutations to train on, those to answer with
        rng = random.Random(settings.seed)
        parts = split(data.items, settings.k, rng)
        datums, num_dropped = self._datums(data, parts.demonstrations, rng)
        shown: list[list[Item]] = [[]]
        if settings.method in SHOWING and settings.k:
            votes = range(settings.vote_permutations)
            shown = [self._permuted(parts.demonstrations, rng) for _ in votes]
            if settings.leave_one_out:
                shown = [demonstrations[:-1] for demonstrations in shown]
        stop = settings.max_items
        return _Plan(data, parts.evaluated[:stop], parts.indices[:stop], datums, shown, num_dropped)

    def _permuted(self, items: Sequence[Item], rng: random.Random) -> list[Item]:
        return rng.sample(items, len(items)) if self.settings.shuffle else list(items)

    def _datums(
        self, data: TaskData, demonstrations: list[Item], rng: random.Random
    ) -> tuple[list[Datum], int]:
        """A task's training sequences, and how many were too long for the context."""
        settings = self.settings
        if settings.method not in TRAINED:
            return [], 0
        if settings.method in DIRECT:
            shown = [[item] for item in demonstrations]
            mask: LossMask = "last_output"
        else:
            shown = [self._permuted(demonstrations, rng) for _ in range(settings.num_samples)]
            mask = settings.loss_mask
        datums = [self._tokens.datum(data.task, items, mask) for items in shown]
        kept = [datum for datum in datums if datum.model_input.length <= settings.context]
        if len(kept) < len(datums):
            logger.warning(
                "%s: %d of %d training sequences are over the context of %d tokens",
                *(data.task.name, len(datums) - len(kept), len(datums), settings.context),
            )
        return kept, len(datums) - len(kept)

    def _job(self, datums: list[Datum]) -> AdaptJob:
        return AdaptJob(
            datums_D=datums,
            learning_rate=self.settings.learning_rate,
            num_epochs=self.settings.num_epochs,
            seed=self.settings.seed,
        )

    def _train(self, jobs: list[AdaptJob]) -> list[SamplingClient]:
        samplers: dict[int, SamplingClient] = {}
        adapt(
            self._service,
            self.settings.base_model,
            jobs,
            self.settings.adapt,
            on_adapted=samplers.__setitem__,
            desc=self.settings.method,
            proof=self._proof,
        )
        return [samplers[index] for index in range(len(jobs))]

    # ----------------------------------------------------------------------------------- answering

    def _answers(
        self, plans: list[_Plan], samplers: list[SamplingClient], train_seconds: float
    ) -> Iterator[TaskResult]:
        """All questions of these tasks are asked before the first answer is waited for."""
        started = time.perf_counter()
        asked = [self._ask(plan, sampler) for plan, sampler in zip(plans, samplers, strict=True)]
        with progress(len(plans), "answering", "task") as bar:
            for plan, futures in zip(plans, asked, strict=True):
                predictions = [
                    self._prediction(plan, at, futures[at]) for at in range(len(plan.evaluated))
                ]
                bar.update()
                seconds = time.perf_counter() - started
                started = time.perf_counter()
                yield self._result(plan, predictions, train_seconds / len(plans), seconds)

    def _ask(
        self, plan: _Plan, sampler: SamplingClient
    ) -> list[list[APIFuture[SampleResponse] | None]]:
        """For each item and each vote the answer to come, None where the prompt is too long."""
        task, length = plan.data.task, plan.data.task.generation_length
        if self.settings.fit_answers:
            targets = [item.target for item in plan.data.items]
            length = max(length, self._tokens.answer_length(targets))
        params = SamplingParams(max_tokens=length, temperature=0.0, stop=[STOP])

        def ask(item: Item, shown: list[Item]) -> APIFuture[SampleResponse] | None:
            prompt = self._tokens.prompt(task, shown, item.input)
            if len(prompt) + length > self.settings.context:
                return None
            return sampler.sample(ModelInput.from_ints(prompt), 1, params)

        return [[ask(item, shown) for shown in plan.demonstrations_V] for item in plan.evaluated]

    def _prediction(
        self, plan: _Plan, at: int, futures: list[APIFuture[SampleResponse] | None]
    ) -> Prediction:
        item, task = plan.evaluated[at], plan.data.task
        # what stopped the model is no part of its answer: "Q:" alone would be read as option (Q)
        votes = [
            read_answer(
                self._tokens.decode(future.result().sequences[0].tokens).partition(STOP)[0], task
            )
            for future in futures
            if future is not None
        ]
        answer = majority(votes) if votes else None
        return Prediction(
            index=plan.indices[at],
            question=item.input,
            target=item.target.strip().lower(),
            answer=answer,
            right=answer is not None and is_right(answer, item.target),
            scorable=is_scorable(item.target, task),
            votes=votes if len(futures) > 1 else [],
            event=TOO_LONG if len(votes) < len(futures) else None,
        )

    def _guessed(self, plan: _Plan) -> TaskResult:
        task = plan.data.task
        rng = random.Random(f"{self.settings.seed} {task.name} guess")
        predictions = [
            Prediction(
                index=index,
                question=item.input,
                target=item.target.strip().lower(),
                answer=None,
                right=guess(task, rng),
                scorable=is_scorable(item.target, task),
            )
            for index, item in zip(plan.indices, plan.evaluated, strict=True)
        ]
        return self._result(plan, predictions, 0.0, 0.0)

    def _result(
        self,
        plan: _Plan,
        predictions: list[Prediction],
        train_seconds: float,
        eval_seconds: float,
    ) -> TaskResult:
        events = {TOO_LONG: sum(p.event == TOO_LONG for p in predictions)}
        events["training sequence over the context"] = plan.num_dropped
        return TaskResult(
            task=plan.data.task.name,
            accuracy=100.0 * sum(p.right for p in predictions) / len(predictions),
            num_items=len(predictions),
            num_unscorable=sum(not p.scorable for p in predictions),
            events={event: count for event, count in events.items() if count},
            train_seconds=train_seconds,
            eval_seconds=eval_seconds,
            num_train_tokens=self._job(plan.datums_D).num_tokens,
            predictions=predictions,
        )


def _chunks(plans: list[_Plan], size: int) -> Iterator[list[_Plan]]:
    for start in range(0, len(plans), size):
        yield plans[start : start + size]
