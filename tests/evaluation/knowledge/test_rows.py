"""What each row of scripts/knowledge.py trains and asks."""

from dataclasses import replace
from typing import Any

import pytest

from evaluation.knowledge.choice import Means, default_rows, expanded_rows, row_problems
from evaluation.knowledge.rows import (
    Edit,
    Edits,
    Plan,
    Rules,
    make_plan,
    others_of,
    picked,
    writers_needed,
)
from training.domains.knowledge.inner import InnerJob, Job, PooledJob
from training.domains.knowledge.passages import Passage, Question
from training.domains.knowledge.sources import open_source

SOURCE = open_source("made", num_train=0, num_test=8)
PASSAGES = SOURCE.passages("test")[:3]
QUESTIONS = tuple(range(16))


def tokens(job: Job) -> int:
    """Ten for each word of an edit, 100 for a passage; once, or as often as the job says."""
    if isinstance(job, InnerJob):
        epochs = 5 if job.num_epochs is None else job.num_epochs
        return (100 + 10 * len((job.edit or "").split())) * epochs
    assert isinstance(job, PooledJob)
    epochs = 5 if job.num_epochs is None else job.num_epochs
    words = sum(len(text.split()) for edits_K in job.edits_P_K for text in edits_K)
    return (100 * len(job.passages_P) + 10 * words) * epochs


def rules(**changes: Any) -> Rules:
    made = Rules(
        setting="single",
        seeds=2,
        reference="template-qa",
        pool="model-qa",
        passage_rate=1e-3,
        passage_epochs=20,
        count=tokens,
    )
    return replace(made, **changes)


def edits_of(*texts: str | None) -> Edits:
    edits_K = [None if text is None else Edit(text) for text in texts]
    return [[edits_K] * 2 for _ in PASSAGES]


EDITS = {
    "template-qa": edits_of("a b c d e f g h i j"),
    "model-qa": edits_of("one two", None, "one two three"),
}


def plan(*rows: str, **changes: Any) -> Plan:
    return make_plan(PASSAGES, rows, EDITS, rules(**changes))


def jobs(found: Plan, row: str) -> list[Any]:
    return [found.jobs[part.key] for part in found.parts[row]]


def test_what_is_not_trained_is_asked_once() -> None:
    found = plan("closed-book", "in-context")
    for row, shown in (("closed-book", lambda p: ""), ("in-context", lambda p: p.context)):
        for passage, job in zip(PASSAGES, jobs(found, row), strict=True):
            assert job == InnerJob(passage, None, asked=(passage,), shown=shown(passage))
    assert [part.places for part in found.parts["closed-book"]] == [QUESTIONS] * 3


def test_bm25_reads_what_it_finds_for_each_question() -> None:
    found = plan("bm25")
    told = {p: [] for p in range(3)}
    for part in found.parts["bm25"]:
        job = found.jobs[part.key]
        assert isinstance(job, InnerJob) and job.edit is None
        [asked] = job.asked
        passage = PASSAGES[part.passage]
        assert asked.questions == tuple(passage.questions[i] for i in part.places)
        assert job.shown in {p.context for p in PASSAGES} | {""}
        told[part.passage] += part.places
        for place in part.places:
            # a name says which passage is meant
            name = passage.context.split()[0]
            if name in passage.questions[place].text:
                assert job.shown == passage.context
    assert all(sorted(places) == list(QUESTIONS) for places in told.values())


def about(name: str, text: str, cluster: str, *questions: str) -> Passage:
    asked = tuple(Question(f"{name}/{i}", q, "x") for i, q in enumerate(questions))
    return Passage(name, name, text, asked, cluster)


def test_bm25_may_find_another_passage() -> None:
    """What is read is what was found, right or wrong."""
    sea = about("sea", "Fish swim in salty water.", "sea", "Which fish swim?", "Which sheep graze?")
    hill = about("hill", "Sheep graze on green grass.", "hill", "Where do sheep graze?")
    found = make_plan([sea, hill], ["bm25"], {}, rules())
    shown = {}
    for part in found.parts["bm25"]:
        job = found.jobs[part.key]
        assert isinstance(job, InnerJob)
        shown |= {(part.passage, place): job.shown for place in part.places}
    assert shown == {(0, 0): sea.context, (0, 1): hill.context, (1, 0): hill.context}


def test_passage_alone_has_settings_of_its_own() -> None:
    found = plan("passage")
    assert [(j.edit, j.learning_rate, j.num_epochs, j.repeat) for j in jobs(found, "passage")] == [
        ("", 1e-3, 20, s) for s in (0, 1) for _ in PASSAGES
    ]
    assert found.runs_of("passage") == list(found.jobs)


def test_edits_are_trained_once_for_all_rows_that_take_them() -> None:
    found = plan("model-qa", "longest", "covering", "random")
    # of three edits one is none
    assert len(found.jobs) == 2 * 3 * 2
    assert found.missing["model-qa"] == 2 * 3
    assert {job.edit for job in jobs(found, "longest")} == {"one two three"}
    assert {part.edit for part in found.parts["longest"]} == {2}
    assert {key for row in found.parts for key in found.runs_of(row)} == set(found.jobs)
    again = plan("model-qa", "longest", "covering", "random")
    assert again == found


def test_picks() -> None:
    passage = PASSAGES[0]
    answers = [q.answer for q in passage.questions]
    few, most = f"It is {answers[0]}.", f"{answers[0]} and {answers[1]}, {answers[2]}."
    edits = [None, Edit(few), Edit(most), Edit("a long one of many words and none of them right")]
    assert picked("covering", passage, edits, 0) == (2, edits[2])
    assert picked("longest", passage, edits, 0) == (3, edits[3])
    # of equal ones the first
    assert picked("longest", passage, [Edit("a b"), Edit("c d")], 0) == (0, Edit("a b"))
    drawn = {found[0] for s in range(30) if (found := picked("random", passage, edits, s))}
    assert drawn == {1, 2, 3}
    assert picked("random", passage, [None, None], 0) is None


def test_equal_rows_are_trained_on_as_many_tokens_as_the_reference() -> None:
    found = plan("equal-passage", "equal-model-qa")
    budget = (100 + 10 * 10) * 5
    for job in jobs(found, "equal-passage"):
        assert job.num_epochs == 10
        assert job.learning_rate == 1e-3
        assert tokens(job) == budget
    for job in jobs(found, "equal-model-qa"):
        assert job.edit in ("one two", "one two three")
        assert abs(tokens(job) - budget) <= (100 + 30) / 2
    assert writers_needed(["equal-passage"], rules()) == ["template-qa"]


def test_another_passages_adapter_is_the_reference_edits() -> None:
    found = plan("template-qa", "other")
    others = others_of(PASSAGES)
    assert found.runs_of("other") == [
        key for key in found.jobs if key in set(found.runs_of("other"))
    ]
    assert set(found.runs_of("other")) <= set(found.runs_of("template-qa"))
    seen = []
    for part in found.parts["other"]:
        job = found.jobs[part.key]
        assert isinstance(job, InnerJob)
        assert job.passage == PASSAGES[others[part.passage]] != PASSAGES[part.passage]
        # its own questions come first
        asked = [q for passage in job.asked for q in passage.questions]
        of_part = asked[part.start : part.start + len(part.places)]
        assert tuple(of_part) == PASSAGES[part.passage].questions
        seen.append((part.passage, part.seed))
    assert sorted(seen) == [(p, s) for p in range(3) for s in range(2)]
    for part in found.parts["template-qa"]:
        assert part.start == 0
        assert found.jobs[part.key].asked[0] == PASSAGES[part.passage]


def test_the_other_passage_is_of_another_cluster_and_like_it() -> None:
    passages = SOURCE.passages("test")
    # villages are the first and the seventh
    assert others_of(passages)[0] == 6 and others_of(passages)[6] == 0
    # those of one title are most alike, and would tell what is asked about
    alike = "Fish swim in salty water"
    passages = [about("a", alike, "T"), about("b", alike, "T"), about("c", "Sheep graze", "U")]
    assert others_of(passages)[:2] == [2, 2]
    one = Passage("x", "T", "a text", (Question("q", "?", "a"),), "T")
    with pytest.raises(ValueError, match=r"row other: 2 passages of one cluster .* n_passages"):
        others_of([one, replace(one, id="y")])


def test_continued_pretraining_has_one_adapter_for_all_passages() -> None:
    found = plan("passage", "model-qa", "equal-passage", setting="cpt")
    assert [len(found.runs_of(row)) for row in found.parts] == [2, 2, 2]
    [first, second] = [found.jobs[key] for key in found.runs_of("model-qa")]
    assert isinstance(first, PooledJob) and isinstance(second, PooledJob)
    assert first.edits_P_K == (("one two", "one two three"),) * 3
    assert (first.repeat, second.repeat) == (0, 1)
    assert first.asked == tuple(PASSAGES)
    assert found.missing["model-qa"] == 2 * 3
    [alone, _] = [found.jobs[key] for key in found.runs_of("passage")]
    assert isinstance(alone, PooledJob)
    assert (alone.edits_P_K, alone.num_epochs) == (((), (), ()), 20)
    starts = [(p.passage, p.start, p.seed) for p in found.parts["model-qa"]]
    assert starts == [(p, 16 * p, s) for s in (0, 1) for p in range(3)]
    [equal, _] = [found.jobs[key] for key in found.runs_of("equal-passage")]
    assert isinstance(equal, PooledJob)
    # 3 * 200 tokens in 5 epochs, of 300 in one
    assert equal.num_epochs == 10


def means(**changes: Any) -> Means:
    made: dict[str, Any] = {"setting": "single", "forms": ["qa", "cloze"], "has_templates": True}
    made |= {"has_generator": False, "has_file": False}
    return Means(**{**made, **changes})


def test_rows_by_name() -> None:
    rows = expanded_rows(["model", "equal-model", "passage", "passage"], means())
    assert rows == [
        *("closed-book", "model-qa", "model-cloze", "equal-model-qa", "equal-model-cloze"),
        "passage",
    ]
    for changes in ({}, {"has_templates": False}, {"setting": "cpt"}, {"sums": False}):
        assert row_problems(default_rows(means(**changes)), means(**changes)) == []
    assert "skill" not in default_rows(means(sums=False))
    assert means().reference == "template-qa" and means().pool == "model-qa"
    assert means(has_templates=False, has_file=True, has_generator=True).reference == "file"


@pytest.mark.parametrize(
    ("row", "changes", "problem"),
    [
        ("passages", {}, "there is no row 'passages'; known are closed-book"),
        ("model-rewrite", {}, "there is no row 'model-rewrite'"),
        ("equal-bm25", {}, "there is no row 'equal-bm25'"),
        ("template-qa", {"has_templates": False}, "needs source=made"),
        ("file", {}, "needs edits_file="),
        ("equal-generator", {}, "needs the role"),
        ("other", {"setting": "cpt"}, "needs setting=single"),
        ("skill", {"sums": False}, "which backend=tinker cannot"),
    ],
)
def test_rows_that_cannot_be(row: str, changes: dict[str, Any], problem: str) -> None:
    [found] = row_problems([row], means(**changes))
    assert problem in found
