"""evaluation/knowledge/table.py on numbers worked out by hand."""

import math

import pytest

from evaluation.knowledge.table import (
    Answers,
    RowAnswers,
    clustered_mean,
    make_table,
    rewards_of,
    score,
)
from evaluation.stats import holm, paired_difference
from training.domains.knowledge.passages import Passage, Question, QuestionKind


def passage(name: str, cluster: str, *kinds: QuestionKind) -> Passage:
    questions = tuple(Question(f"{name}/{i}", "?", "x", kind) for i, kind in enumerate(kinds))
    return Passage(name, "Title", "Text.", questions, cluster)


PASSAGES = [
    passage("a", "A", "direct", "reverse"),
    passage("b", "B", "direct", "reverse"),
    passage("c", "B", "direct", "direct"),
]


def answers(
    p: int, *correct: bool | None, edit: int = 0, seed: int = 0, places: tuple[int, ...] = (0, 1)
) -> Answers:
    return Answers(
        p,
        edit,
        seed,
        places_Q=places,
        answers_Q=("?",) * len(correct),
        correct_Q=correct,
        logprobs_Q=(-1.0,) * len(correct),
        choices_Q=(None,) * len(correct),
    )


BASE = RowAnswers("closed-book", [answers(p, False, True) for p in range(3)])
PASSAGE = RowAnswers(
    "passage",
    [answers(0, True, True), answers(1, False, True), answers(2, False, False)],
    num_runs=3,
    trained_tokens=300,
    seconds=6.0,
)
# two seeds of the first passage, one of them without a verdict on its second question
EDITS = RowAnswers(
    "edits",
    [
        answers(0, True, None, seed=0),
        answers(0, False, True, seed=1),
        answers(1, True, True),
        Answers(2, failed="NaN"),
    ],
    num_runs=3,
    trained_tokens=900,
    num_missing=1,
)


def test_a_question_counts_the_share_of_its_runs() -> None:
    assert score(PASSAGES, EDITS.answers).correct_Q == [0.5, 1.0, 1.0, 1.0, None, None]


def test_places_of_a_passage_may_be_asked_apart() -> None:
    """As the passages that BM25 finds for each of its questions."""
    parts = [answers(1, True, places=(1,)), answers(1, False, places=(0,))]
    assert score(PASSAGES, parts).correct_Q == [None, None, 0.0, 1.0, None, None]


def test_a_mean_weighs_clusters_alike() -> None:
    scores = [1.0, 0.5, 0.0, 0.0, 0.5, None]
    clusters = ["A", "A", "B", "B", "B", "C"]
    mean, interval = clustered_mean(scores, clusters)
    # of 0.75 and 1/6; df 1, t = 12.706, standard error 7/24
    assert mean == pytest.approx(11 / 24)
    # cut to what a share can be
    assert interval == (0.0, 1.0)
    assert clustered_mean([1.0, 0.0], ["A", "A"]) == (0.5, None)
    assert clustered_mean([None], ["A"]) == (None, None)
    means = [0.4, 0.5, 0.6]
    mean, interval = clustered_mean(means, ["A", "B", "C"])
    margin = 4.302653 * 0.1 / math.sqrt(3)
    assert interval == pytest.approx((0.5 - margin, 0.5 + margin), abs=1e-5)


def test_rows_are_held_against_the_base_row() -> None:
    closed, alone, edits = make_table(PASSAGES, [BASE, PASSAGE, EDITS])
    assert [row.name for row in (closed, alone, edits)] == ["closed-book", "passage", "edits"]
    assert alone.difference is None and alone.p_holm is None
    # clusters: A 1, B (0 + 1 + 0 + 0) / 4
    assert alone.accuracy == pytest.approx(0.625)
    assert closed.accuracy == pytest.approx(0.5)
    found = edits.difference
    assert found is not None
    clusters = ["A", "A", "B", "B", "B", "B"]
    wanted = paired_difference([1, 1, 0, 1, 0, 0], [0.5, 1, 1, 1, None, None], clusters)
    assert found == wanted
    assert found.difference == pytest.approx((-0.25 + 0.5) / 2)
    assert (found.n_prompts, found.n_clusters, found.n_unscored) == (4, 2, 2)
    assert closed.difference is not None
    # two claims are made: closed book and edits
    assert [closed.p_holm, edits.p_holm] == holm([closed.difference.p, found.p])


def test_what_is_gained_kept_and_lost_is_counted_over_runs() -> None:
    _, alone, edits = make_table(PASSAGES, [BASE, PASSAGE, EDITS])
    moved = alone.changes
    assert (moved.gained, moved.kept, moved.lost, moved.missing) == (1, 2, 1, 2)
    moved = edits.changes
    # the failed run has no answers, the one without a verdict is left out
    assert (moved.gained, moved.kept, moved.lost, moved.missing) == (2, 2, 0, 1)
    assert moved.unscored == edits.num_unscored == 1


def test_kinds_costs_and_what_is_left_out() -> None:
    _, alone, edits = make_table(PASSAGES, [BASE, PASSAGE, EDITS])
    assert alone.by_kind == {"direct": pytest.approx(0.25), "reverse": 1.0}
    assert (edits.num_passages, edits.num_questions, edits.num_runs) == (2, 4, 3)
    assert (edits.trained_tokens, edits.num_failed, edits.num_missing) == (300.0, 1, 1)
    assert alone.trained_tokens == 100.0


def test_without_the_base_row_there_are_no_differences() -> None:
    table = make_table(PASSAGES, [BASE, EDITS])
    assert [row.difference for row in table] == [None, None]
    assert table[1].changes.gained == 2


def test_reliability_takes_edits_with_all_seeds() -> None:
    wrong, right = (False, False), (True, True)
    runs = []
    for p in range(2):
        for seed in range(2):
            runs.append(answers(p, *right, edit=0, seed=seed))
            runs.append(answers(p, *wrong, edit=1, seed=seed))
    found = rewards_of(RowAnswers("edits", runs), BASE.answers)
    assert found is not None and found.icc == 1.0
    assert (found.num_passages, found.num_edits, found.num_repeats) == (2, 4, 2)
    # one seed, one edit, or an edit without its second seed tell nothing
    assert rewards_of(RowAnswers("edits", runs[:2]), BASE.answers) is None
    assert rewards_of(RowAnswers("edits", [r for r in runs if r.edit == 0]), BASE.answers) is None
    assert rewards_of(RowAnswers("edits", runs[:3]), BASE.answers) is None
