"""How far judges agree: with themselves, with each other, with people."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluation.behaviour.analysis import Key, key_of, mean
from evaluation.behaviour.coefficients import (
    BaseRate,
    base_rate,
    cohen_kappa,
    krippendorff_alpha,
    spearman,
)
from evaluation.behaviour.judge import Judged, Judgment, Verdict
from evaluation.stats import scored_pairs

Reading = tuple[bool, float | None]


@dataclass(frozen=True)
class Agreement:
    """How far two raters, or the repeats of one, agree on a property; `base_rate` is the share of
    the commonest label, which constant guessing reaches too.

    identical: share of conversations with the same exhibits from all. kappa: Cohen's, on exhibits.
    alpha: Krippendorff's, ordinal, on scores. rho: Spearman's, on scores.
    """

    property: str
    n: int
    identical: float | None
    base_rate: BaseRate | None
    alpha: float | None
    kappa: float | None = None
    rho: float | None = None


@dataclass(frozen=True)
class Label:
    """A person's verdict on a conversation; `score` is optional."""

    prompt: str
    model: str
    sample: int
    property: str
    exhibits: bool
    score: int | None = None


def self_agreement(judged: Sequence[Judged], properties: Sequence[str]) -> list[Agreement]:
    """Of the repeats of one judge, over conversations that were scored twice or more."""
    by_conversation: dict[Key, dict[int, Judgment]] = defaultdict(dict)
    for record in judged:
        if isinstance(record.outcome, Judgment):
            by_conversation[key_of(record.conversation)][record.repeat] = record.outcome
    repeats = sorted({record.repeat for record in judged})
    rows = []
    for property in properties:
        verdicts_C_R = [
            [
                by_repeat[repeat].verdicts.get(property) if repeat in by_repeat else None
                for repeat in repeats
            ]
            for by_repeat in by_conversation.values()
        ]
        verdicts_C_R = [row for row in verdicts_C_R if sum(v is not None for v in row) > 1]
        labels_C = [{v.exhibits for v in row if v is not None} for row in verdicts_C_R]
        given = [v.exhibits for row in verdicts_C_R for v in row if v is not None]
        rows.append(
            Agreement(
                property,
                n=len(verdicts_C_R),
                identical=mean([float(len(labels) == 1) for labels in labels_C]),
                base_rate=base_rate(given),
                alpha=krippendorff_alpha(
                    [
                        [None if row[r] is None else _score_of(row[r]) for row in verdicts_C_R]
                        for r in range(len(repeats))
                    ],
                    level="ordinal",
                ),
            )
        )
    return rows


def agreement_of_judges(
    first: Sequence[Judged], second: Sequence[Judged], properties: Sequence[str]
) -> list[Agreement]:
    """Of two judges, each with the mean of its repeats. The base rate is the first judge's."""
    return [
        _agreement(property, _by_conversation(first, property), _by_conversation(second, property))
        for property in properties
    ]


def agreement_with_labels(
    judged: Sequence[Judged], labels: Sequence[Label], properties: Sequence[str]
) -> list[Agreement]:
    """Of a judge with people. The base rate is that of the people's labels."""
    rows = []
    for property in properties:
        human = {
            (label.prompt, label.model, label.sample): (label.exhibits, label.score)
            for label in labels
            if label.property == property
        }
        if human:
            rows.append(_agreement(property, human, _by_conversation(judged, property)))
    return rows


def _by_conversation(judged: Sequence[Judged], property: str) -> dict[Key, Reading]:
    verdicts: dict[Key, list[Verdict]] = defaultdict(list)
    for record in judged:
        if isinstance(record.outcome, Judgment) and property in record.outcome.verdicts:
            verdicts[key_of(record.conversation)].append(record.outcome.verdicts[property])
    return {
        key: (
            sum(verdict.exhibits for verdict in own) >= len(own) / 2,
            math.fsum(verdict.score for verdict in own) / len(own),
        )
        for key, own in verdicts.items()
    }


def _agreement(
    property: str, first: Mapping[Key, Reading], second: Mapping[Key, Reading]
) -> Agreement:
    keys = [key for key in first if key in second]
    exhibits = [[side[key][0] for key in keys] for side in (first, second)]
    scores = scored_pairs(*([side[key][1] for key in keys] for side in (first, second)))
    return Agreement(
        property,
        n=len(keys),
        identical=mean([float(a == b) for a, b in zip(*exhibits, strict=True)]),
        base_rate=base_rate(exhibits[0]),
        alpha=krippendorff_alpha([scores.first_P, scores.second_P], level="ordinal"),
        kappa=cohen_kappa(*exhibits),
        rho=spearman(scores.first_P, scores.second_P),
    )


def _score_of(verdict: Verdict | None) -> int | None:
    return None if verdict is None else verdict.score
