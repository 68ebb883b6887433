"""The inner runs of a table, done in batches and stored as they are done, and what each row has of
them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from evaluation.knowledge.rows import Part, Plan
from evaluation.knowledge.table import Answers, RowAnswers
from training.domains.knowledge.grading import Judge
from training.domains.knowledge.inner import InnerLoop, InnerOutcome, Job
from training.domains.knowledge.llm_judge import log_asked_again
from training.domains.knowledge.passages import Passage, Question
from utils.runs.files import append_jsonl, read_jsonl

logger = logging.getLogger(__name__)

# on how many tokens one trains in the time of a question, with its choices
QUESTION_TOKENS = 80


class Done(NamedTuple):
    """`seconds` is the run's share of its batch's time, by tokens trained and questions asked."""

    outcome: InnerOutcome
    seconds: float


class Outcomes:
    """Runs that are done, by key, in a file with a line for each batch: a batch that a crash tore
    is done again as a whole, so that what a run goes on with is what it would have been."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Done] = {}
        for line in read_jsonl(path, missing_ok=True):
            for record in line["runs"]:
                key, seconds = record.pop("key"), record.pop("seconds")
                self._known[key] = Done(InnerOutcome(**record), seconds)

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def get(self, key: str) -> Done | None:
        return self._known.get(key)

    def unscored(self) -> set[str]:
        """The runs with answers that have no verdict."""
        return {key for key, done in self._known.items() if None in done.outcome.correct_Q}

    def forget(self, key: str) -> None:
        """Until it is done again; of several outcomes in the file the last counts."""
        self._known.pop(key, None)

    def add(self, batch: Mapping[str, Done]) -> None:
        runs = [
            {"key": key, "seconds": done.seconds, **asdict(done.outcome)}
            for key, done in batch.items()
        ]
        append_jsonl(self._path, {"runs": runs})
        self._known |= batch


def carry_out(
    loop: InnerLoop,
    jobs: Mapping[str, Job],
    outcomes: Outcomes,
    *,
    batch_size: int,
    on_batch: Callable[[], None] = lambda: None,
) -> None:
    """Does the jobs that are not done yet, `batch_size` of them together."""
    todo = [key for key in jobs if key not in outcomes]
    num_done = len(jobs) - len(todo)
    for start in range(0, len(todo), batch_size):
        keys = todo[start : start + batch_size]
        num_done += len(keys)
        started = time.perf_counter()
        found = loop.run([jobs[key] for key in keys], desc=f"inner runs to {num_done}/{len(jobs)}")
        seconds = time.perf_counter() - started
        costs = [o.trained_tokens + QUESTION_TOKENS * len(o.answers_Q) for o in found]
        total = sum(costs) or 1
        for key, outcome in zip(keys, found, strict=True):
            if outcome.failed is not None:
                logger.warning("%s failed: %s", key, outcome.failed)
        shares = [Done(o, seconds * c / total) for o, c in zip(found, costs, strict=True)]
        outcomes.add(dict(zip(keys, shares, strict=True)))
        on_batch()


def ask_again(
    plan: Plan, passages_P: Sequence[Passage], outcomes: Outcomes, judge: Judge, keys: Set[str]
) -> None:
    """The judge about the answers of these runs that it failed to grade; what it says now is stored
    as theirs."""
    lacking: dict[tuple[str, int], tuple[Passage, Question, str]] = {}
    for part in [part for parts in plan.parts.values() for part in parts if part.key in keys]:
        done = outcomes.get(part.key)
        if done is None or done.outcome.failed is not None:
            continue
        passage = passages_P[part.passage]
        for at, place in enumerate(part.places, part.start):
            if done.outcome.correct_Q[at] is None:
                answer = done.outcome.answers_Q[at]
                lacking[part.key, at] = (passage, passage.questions[place], answer)
    if not lacking:
        return
    verdicts = judge(list(lacking.values()))
    graded: dict[str, Done] = {}
    for (key, at), verdict in zip(lacking, verdicts, strict=True):
        done = graded.get(key) or outcomes.get(key)
        assert done is not None
        correct_Q = list(done.outcome.correct_Q)
        correct_Q[at] = verdict
        graded[key] = done._replace(outcome=replace(done.outcome, correct_Q=correct_Q))
    outcomes.add(graded)
    log_asked_again(verdicts)


def row_answers(plan: Plan, outcomes: Outcomes) -> list[RowAnswers]:
    """Of the rows that have any run done, in their order."""
    found = []
    for row, parts in plan.parts.items():
        answers = [
            _answers(part, done.outcome)
            for part in parts
            if (done := outcomes.get(part.key)) is not None
        ]
        if not answers and not plan.missing[row]:
            continue
        runs = _done(plan.runs_of(row), outcomes)
        paid = [*runs, *_done(plan.paid.get(row, ()), outcomes)]
        found.append(
            RowAnswers(
                name=row,
                answers=answers,
                num_runs=sum(done.outcome.failed is None for done in runs),
                trained_tokens=sum(
                    done.outcome.trained_tokens for done in paid if done.outcome.failed is None
                ),
                seconds=sum(done.seconds for done in paid),
                num_missing=plan.missing[row],
            )
        )
    return found


def _done(keys: Iterable[str], outcomes: Outcomes) -> list[Done]:
    return [done for key in keys if (done := outcomes.get(key)) is not None]


def _answers(part: Part, outcome: InnerOutcome) -> Answers:
    if outcome.failed is not None:
        return Answers(part.passage, part.edit, part.seed, failed=outcome.failed)
    asked = slice(part.start, part.start + len(part.places))

    def of(values_Q: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(values_Q[asked])

    return Answers(
        part.passage,
        part.edit,
        part.seed,
        places_Q=part.places,
        answers_Q=of(outcome.answers_Q),
        correct_Q=of(outcome.correct_Q),
        logprobs_Q=of(outcome.logprobs_Q),
        choices_Q=of(outcome.choices_Q),
    )
