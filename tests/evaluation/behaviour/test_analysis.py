"""evaluation/behaviour/analysis.py against numbers worked out by hand."""

from collections.abc import Sequence

import pytest

from evaluation.behaviour.agreement import (
    Label,
    agreement_of_judges,
    agreement_with_labels,
    self_agreement,
)
from evaluation.behaviour.analysis import (
    Scores,
    compare_models,
    count_unscored,
    model_quality,
    model_scores,
)
from evaluation.behaviour.answers import Conversation, Failure
from evaluation.behaviour.coefficients import krippendorff_alpha
from evaluation.behaviour.eval_file import EvalPrompt
from evaluation.behaviour.judge import Judged, Judgment, Verdict
from evaluation.stats import holm

CLUSTERS = {"a1": "A", "a2": "A", "b1": "B", "b2": "B", "c1": "C"}
PROMPTS = [EvalPrompt(name, "p", cluster, ["?"]) for name, cluster in CLUSTERS.items()]


def judged(
    prompt: str,
    model: str,
    outcome: int | str,
    *,
    exhibits: bool | None = None,
    sample: int = 0,
    repeat: int = 0,
    property: str = "p",
    judge: str = "judge",
) -> Judged:
    """A score, or the kind of a failure; above 5 exhibits where nothing else is said."""
    conversation = Conversation(prompt, model, sample, ())
    if isinstance(outcome, str):
        return Judged(conversation, judge, repeat, Failure(outcome, f"{outcome} of {prompt}"))
    shown = outcome > 5 if exhibits is None else exhibits
    judgment = Judgment("so", {property: Verdict(outcome, shown)}, 8, 2)
    return Judged(conversation, judge, repeat, judgment)


def both(base: Sequence[int | str], tuned: Sequence[int | str]) -> list[Judged]:
    return [
        judged(name, model, outcome)
        for model, outcomes in (("base", base), ("tuned", tuned))
        for name, outcome in zip(CLUSTERS, outcomes, strict=True)
    ]


def test_samples_and_repeats_are_averaged_before_prompts() -> None:
    records = [
        judged("a1", "base", 2, repeat=0),
        judged("a1", "base", 4, repeat=1),
        judged("a1", "base", 7, sample=1, repeat=0),
        judged("a1", "base", "refusal", sample=1, repeat=1),
        judged("a2", "base", 1),
        judged("b1", "base", "timeout"),
    ]
    scores = Scores(records)
    # (mean(2, 4) + 7) / 2, and not the mean of three judgments
    assert scores.score("p", "a1", "base") == 5.0
    assert scores.exhibits("p", "a1", "base") == 0.5
    assert scores.score("p", "b1", "base") is None
    assert scores.score("p", "c1", "base") is None
    [row] = model_scores(scores, PROMPTS, ["p"], ["base"])
    assert (row.mean, row.exhibits_rate) == (3.0, 0.25)
    assert (row.n_prompts, row.n_scored_prompts) == (5, 2)
    assert (row.n_judgments, row.n_unscored) == (6, 2)


def test_a_comparison_by_hand() -> None:
    # differences by category: mean(2, 4) = 3, mean(1, 1) = 1, 2
    records = both([1, 2, 5, 7, 3], [3, 6, 6, 8, 5])
    [row] = compare_models(Scores(records), PROMPTS, ["p"], ["base", "tuned"])
    assert row.scores.difference == pytest.approx(2.0)
    # standard error 1 / sqrt(3), and 4.302653 is the 97.5 % point of t with 2 degrees of freedom
    assert row.scores.interval == pytest.approx((2 - 4.302653 / 3**0.5, 2 + 4.302653 / 3**0.5))
    # with 2 degrees of freedom, p = 1 - t / sqrt(2 + t^2); here t = sqrt(12)
    assert row.scores.p == pytest.approx(1 - 12**0.5 / 14**0.5)
    assert row.p_holm == row.scores.p
    assert row.p_sign_flip == 2 / 8
    assert (row.mcnemar.n_gained, row.mcnemar.n_lost, row.mcnemar.p) == (2, 0, 0.5)
    assert (row.base_rate, row.tuned_rate) == (0.2, 0.6)
    assert (row.scores.n_prompts, row.scores.n_clusters, row.n_unscored) == (5, 3, 0)
    assert row.scores.minimum_detectable is not None and row.verdict == "no change shown"


def test_unscored_is_left_out_and_never_0() -> None:
    records = both([1, 2, 5, 7, "refusal"], [3, "timeout", 6, 8, 5])
    [row] = compare_models(Scores(records), PROMPTS, ["p"], ["base", "tuned"])
    assert (row.scores.base_mean, row.scores.tuned_mean) == (3.5, 5.0)
    assert (row.scores.n_prompts, row.scores.n_clusters, row.scores.n_unscored) == (3, 2, 2)
    assert row.n_unscored == 2
    assert row.mcnemar.n_pairs == 3
    [missing] = count_unscored(records)
    assert (missing.n, missing.of, missing.share) == (2, 10, 0.2)
    assert missing.kinds == {"refusal": 1, "timeout": 1}
    assert missing.examples == {"refusal": "refusal of c1", "timeout": "timeout of a2"}


def test_nothing_scored() -> None:
    records = both(["refusal"] * 5, [1, 2, 3, 4, 5])
    [row] = compare_models(Scores(records), PROMPTS, ["p"], ["base", "tuned"])
    assert row.scores.difference is None and row.p_holm is None and row.base_rate is None
    assert row.verdict == "not comparable"
    assert [r.mean for r in model_scores(Scores(records), PROMPTS, ["p"], ["base", "tuned"])] == [
        *(None, 3.0)
    ]


def test_a_prompt_exhibits_where_half_of_its_samples_do() -> None:
    prompts = PROMPTS[:1]
    records = [judged("a1", "base", 9, sample=s, exhibits=s == 0) for s in range(4)]
    records += [judged("a1", "tuned", 9, sample=s, exhibits=s < 2) for s in range(4)]
    [row] = compare_models(Scores(records), prompts, ["p"], ["base", "tuned"])
    assert (row.base_rate, row.tuned_rate) == (0.25, 0.5)
    assert row.mcnemar.n_gained == 1


def test_holm_is_over_properties_and_models() -> None:
    prompts = [*PROMPTS, *(EvalPrompt(f"{p.id}q", "q", p.category, ["?"]) for p in PROMPTS)]
    outcomes = {
        ("p", "base"): [1, 2, 5, 7, 3],
        ("p", "one"): [3, 6, 6, 8, 5],
        ("p", "two"): [9, 9, 9, 10, 10],
        ("q", "base"): [5, 5, 5, 5, 5],
        ("q", "one"): [5, 6, 4, 5, 5],
        ("q", "two"): [1, 1, 2, 2, 1],
    }
    records = [
        judged(prompt.id, model, score, property=property)
        for (property, model), scores in outcomes.items()
        for prompt, score in zip(
            [p for p in prompts if p.property == property], scores, strict=True
        )
    ]
    rows = compare_models(Scores(records), prompts, ["p", "q"], ["base", "one", "two"])
    assert [(row.property, row.model) for row in rows] == [
        *(("p", "one"), ("p", "two"), ("q", "one"), ("q", "two"))
    ]
    assert [row.p_holm for row in rows] == holm([row.scores.p for row in rows])
    assert rows[3].verdict == "less" and rows[3].p_holm is not None
    assert rows[3].scores.p is not None and rows[3].p_holm > rows[3].scores.p


def test_other_prompts_are_told_apart_from_the_property_s_own() -> None:
    prompts = [*PROMPTS[:2], EvalPrompt("z", "q", "Z", ["?"])]
    records = [judged(name, "base", score) for name, score in (("a1", 2), ("a2", 4), ("z", 9))]
    own, others = model_scores(Scores(records), prompts, ["p"], ["base"])
    assert (own.own, own.mean, own.n_prompts) == (True, 3.0, 2)
    assert (others.own, others.mean, others.n_prompts) == (False, 9.0, 1)
    # nobody was asked about q
    [row] = model_scores(Scores(records), prompts, ["q"], ["base"])
    assert row.own and row.mean is None


def test_how_the_answers_read() -> None:
    records = both([1, 2, 3, 4, "refusal"], [1] * 5)
    talks = [record.conversation for record in records]
    talks[0] = Conversation("a1", "base", 0, (), truncated=True)
    talks[1] = Conversation("a2", "base", 0, (), Failure("timeout", "late"))
    base, tuned = model_quality(Scores(records), talks, PROMPTS, ["base", "tuned"])
    assert (base.coherence, base.eval_awareness) == (8.0, 2.0)
    assert (base.n_conversations, base.n_failed, base.n_truncated) == (5, 1, 1)
    assert (tuned.n_failed, tuned.n_truncated) == (0, 0)


# --- agreement


def test_a_judge_with_itself() -> None:
    records = [
        *(judged("a1", "base", 5, repeat=r) for r in range(3)),
        *(judged("a2", "base", score, repeat=r) for r, score in enumerate((3, 7, 3))),
        *(judged("b1", "base", 9, repeat=r) for r in range(2)),
        judged("b1", "base", "refusal", repeat=2),
        judged("b2", "base", 4),
        judged("b2", "base", "refusal", repeat=1),
        judged("b2", "base", "refusal", repeat=2),
    ]
    [row] = self_agreement(records, ["p"])
    # b2 was scored once and says nothing
    assert (row.n, row.identical) == (3, pytest.approx(2 / 3))
    assert row.base_rate is not None and row.base_rate == (False, 5 / 8)
    expected = krippendorff_alpha([[5, 3, 9], [5, 7, 9], [5, 3, None]], level="ordinal")
    assert row.alpha == expected


def test_two_judges() -> None:
    first = [judged(name, "base", s) for name, s in zip(CLUSTERS, (9, 8, 2, 1, 7), strict=True)]
    second = [
        judged(name, "base", outcome, judge="second")
        for name, outcome in zip(CLUSTERS, (9, 3, 2, 1, "refusal"), strict=True)
    ]
    [row] = agreement_of_judges(first, second, ["p"])
    # observed 3 / 4; by chance 1/2 * 1/4 + 1/2 * 3/4
    assert (row.n, row.identical, row.kappa) == (4, 0.75, pytest.approx(0.5))
    assert row.base_rate == (True, 0.5)
    assert row.rho == pytest.approx(1.0)
    assert row.alpha == krippendorff_alpha([[9, 8, 2, 1], [9, 3, 2, 1]], level="ordinal")


def test_labels_of_people() -> None:
    records = [judged(name, "base", s) for name, s in zip(CLUSTERS, (9, 8, 2, 1, 7), strict=True)]
    labels = [
        Label("a1", "base", 0, "p", True, 10),
        Label("a2", "base", 0, "p", False),
        Label("b1", "base", 0, "p", False, 1),
        Label("b2", "base", 0, "p", False, 2),
    ]
    [row] = agreement_with_labels(records, labels, ["p", "q"])
    assert (row.n, row.identical, row.kappa) == (4, 0.75, pytest.approx(0.5))
    assert row.base_rate == (False, 0.75)
    # of the three with a score: (10, 1, 2) and (9, 2, 1)
    assert row.rho == pytest.approx(0.5)
