"""What each row of a table knows of the same questions, and how much that is beyond a base row.

A row asks each question of a passage once for every run (adapter) of that passage: edits times
seeds. A question's score is its share of right answers over them. Passages that share a cluster (a
title) depend on each other, so intervals are Student's t over the means of clusters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

from evaluation.stats import PairedDifference, holm, paired_difference
from training.domains.knowledge.grading import Changes, changes
from training.domains.knowledge.passages import Passage, QuestionKind
from training.domains.knowledge.reliability import Reliability, RewardKind, reliability
from utils.student_t import student_t

KINDS: tuple[QuestionKind, ...] = ("plain", "direct", "reverse", "derived")


@dataclass(frozen=True)
class Answers:
    """One run's answers to the questions of passage `passage` that stand in `places_Q` of it.

    `edit` and `seed` say which edit of the passage was trained on, with which adapter. `failed`
    says why there are no answers; `correct_Q` and `choices_Q` are None where nothing can be said.
    """

    passage: int
    edit: int = 0
    seed: int = 0
    places_Q: tuple[int, ...] = ()
    answers_Q: tuple[str, ...] = ()
    correct_Q: tuple[bool | None, ...] = ()
    logprobs_Q: tuple[float | None, ...] = ()
    choices_Q: tuple[bool | None, ...] = ()
    failed: str | None = None


@dataclass(frozen=True)
class RowAnswers:
    """A row's answers. `num_runs` adapters were trained on `trained_tokens` in all, `seconds` is
    their share of the time; `num_missing` edits were asked for and are not there."""

    name: str
    answers: Sequence[Answers]
    num_runs: int = 0
    trained_tokens: int = 0
    seconds: float = 0.0
    num_missing: int = 0
    # of a run whose time is not known any more, or that was never timed
    notes: Sequence[str] = field(default_factory=tuple)


@dataclass(frozen=True)
class TableRow:
    """`accuracy` and `interval` (95 %) weigh all clusters alike; `difference` is paired, this row
    minus the base row, None for the base row itself. `p_holm` is corrected for all rows of the
    table. `changes` are against the model as it came, over all runs. `by_kind`: accuracy."""

    name: str
    num_passages: int
    num_questions: int
    num_runs: int
    accuracy: float | None
    interval: tuple[float, float] | None
    difference: PairedDifference | None
    p_holm: float | None
    changes: Changes
    choices: float | None
    by_kind: Mapping[QuestionKind, float]
    trained_tokens: float | None
    seconds: float
    num_unscored: int
    num_failed: int
    num_missing: int


class Scored(NamedTuple):
    """Of each question the mean over runs, None where no run has a verdict."""

    correct_Q: list[float | None]
    choices_Q: list[float | None]


def make_table(
    passages_P: Sequence[Passage],
    rows: Sequence[RowAnswers],
    *,
    closed_book: str = "closed-book",
    base: str = "passage",
) -> list[TableRow]:
    """A line for each of `rows`. What was known before is told by the row `closed_book`; the others
    are held against the row `base`, where there is one."""
    clusters_Q = [p.cluster for p in passages_P for _ in p.questions]
    kinds_Q = [question.kind for p in passages_P for question in p.questions]
    scored = {row.name: score(passages_P, row.answers) for row in rows}
    known = [row.answers for row in rows if row.name == closed_book]
    differences: list[PairedDifference | None] = []
    for row in rows:
        if base not in scored or row.name == base:
            differences.append(None)
            continue
        differences.append(
            paired_difference(scored[base].correct_Q, scored[row.name].correct_Q, clusters_Q)
        )
    adjusted = holm([None if found is None else found.p for found in differences])
    table = []
    for row, difference, p_holm in zip(rows, differences, adjusted, strict=True):
        correct_Q, choices_Q = scored[row.name]
        mean, interval = clustered_mean(correct_Q, clusters_Q)
        verdicts = [verdict for a in row.answers for verdict in a.correct_Q]
        told_choices = [choice for choice in choices_Q if choice is not None]
        table.append(
            TableRow(
                name=row.name,
                num_passages=len({a.passage for a in row.answers if a.failed is None}),
                num_questions=sum(score is not None for score in correct_Q),
                num_runs=row.num_runs,
                accuracy=mean,
                interval=interval,
                difference=difference,
                p_holm=p_holm,
                changes=_changes(known[0] if known else (), row.answers),
                choices=fmean(told_choices) if told_choices else None,
                by_kind=_by_kind(correct_Q, kinds_Q),
                trained_tokens=row.trained_tokens / row.num_runs if row.num_runs else None,
                seconds=row.seconds,
                num_unscored=verdicts.count(None),
                num_failed=sum(a.failed is not None for a in row.answers),
                num_missing=row.num_missing,
            )
        )
    return table


def score(passages_P: Sequence[Passage], answers: Sequence[Answers]) -> Scored:
    """Over all questions of all passages in their order."""
    starts_P = _starts(passages_P)
    total = sum(len(passage.questions) for passage in passages_P)
    correct: list[list[bool]] = [[] for _ in range(total)]
    choices: list[list[bool]] = [[] for _ in range(total)]
    for one in answers:
        for place, verdict in zip(one.places_Q, one.correct_Q, strict=False):
            if verdict is not None:
                correct[starts_P[one.passage] + place].append(verdict)
        for place, chosen in zip(one.places_Q, one.choices_Q, strict=False):
            if chosen is not None:
                choices[starts_P[one.passage] + place].append(chosen)
    return Scored(*([fmean(v) if v else None for v in values] for values in (correct, choices)))


def clustered_mean(
    scores_Q: Sequence[float | None], clusters_Q: Sequence[str]
) -> tuple[float | None, tuple[float, float] | None]:
    """The mean over clusters of the means of their scores, and its 95 % interval; None where there
    is no score, or less than two clusters (or no difference) to tell an interval from."""
    by_cluster: dict[str, list[float]] = {}
    for value, cluster in zip(scores_Q, clusters_Q, strict=True):
        if value is not None:
            by_cluster.setdefault(cluster, []).append(value)
    means_U = [fmean(values) for values in by_cluster.values()]
    if not means_U:
        return None, None
    found = student_t(means_U) if len(means_U) > 1 else None
    if found is None or found.error == 0:
        return fmean(means_U), None
    low, high = found.interval
    # an interval of t does not know that shares lie within 0 and 1
    return found.mean, (max(0.0, low), min(1.0, high))


def rewards_of(
    row: RowAnswers, known: Sequence[Answers], kind: RewardKind = "accuracy"
) -> Reliability | None:
    """The reliability of the reward between the edits of a passage, where the row has several of
    them with two or more seeds each, none of which failed; else None."""
    if kind not in ("accuracy", "logprob"):
        raise ValueError(f"kind={kind!r}: accuracy or logprob")
    seeds = {a.seed for a in row.answers}
    if len(seeds) < 2 or len({a.edit for a in row.answers}) < 2:
        return None
    before = {a.passage: a for a in known}
    by_passage: dict[int, dict[int, dict[int, float]]] = {}
    for one in row.answers:
        value = _reward(one, before.get(one.passage), kind)
        if value is not None:
            by_passage.setdefault(one.passage, {}).setdefault(one.edit, {})[one.seed] = value
    rewards_P_K_R = []
    for edits in by_passage.values():
        whole = [list(runs.values()) for runs in edits.values() if len(runs) == len(seeds)]
        if len(whole) > 1:
            rewards_P_K_R.append(whole)
    return reliability(rewards_P_K_R) if rewards_P_K_R else None


def _reward(one: Answers, before: Answers | None, kind: RewardKind) -> float | None:
    if one.failed is not None:
        return None
    if kind == "accuracy":
        told = [float(verdict) for verdict in one.correct_Q if verdict is not None]
    else:
        if before is None:
            return None
        pairs = zip(before.logprobs_Q, one.logprobs_Q, strict=True)
        told = [new - old for old, new in pairs if old is not None and new is not None]
    return fmean(told) if told else None


def _starts(passages_P: Sequence[Passage]) -> list[int]:
    starts, start = [], 0
    for passage in passages_P:
        starts.append(start)
        start += len(passage.questions)
    return starts


def _changes(known: Sequence[Answers], answers: Sequence[Answers]) -> Changes:
    before = {
        (one.passage, place): verdict
        for one in known
        for place, verdict in zip(one.places_Q, one.correct_Q, strict=True)
    }
    pairs = [
        (before.get((one.passage, place)), verdict)
        for one in answers
        for place, verdict in zip(one.places_Q, one.correct_Q, strict=True)
    ]
    return changes([first for first, _ in pairs], [second for _, second in pairs])


def _by_kind(
    correct_Q: Sequence[float | None], kinds_Q: Sequence[QuestionKind]
) -> dict[QuestionKind, float]:
    found: dict[QuestionKind, float] = {}
    for kind in KINDS:
        told = [
            score
            for score, its_kind in zip(correct_Q, kinds_Q, strict=True)
            if its_kind == kind and score is not None
        ]
        if told:
            found[kind] = fmean(told)
    return found
