"""evaluation/knowledge/derived_rows.py and runs.py: which data distillation is trained on, which
adapters a skill is the difference of, and what a row of runs comes to."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evaluation.knowledge.derived_rows import (
    add_distillation,
    add_skill,
    delete_adapters,
    forget_lost,
    skill_jobs,
)
from evaluation.knowledge.rows import DISTILLATION, SKILL, Edit, Edits, Plan, Rules, make_plan
from evaluation.knowledge.runs import QUESTION_TOKENS, Done, Outcomes, carry_out, row_answers
from training.api import Datum, ModelInput
from training.domains.knowledge.inner import DatumJob, InnerJob, InnerOutcome, SumJob
from training.domains.knowledge.passages import Passage, Question


def passage(name: str) -> Passage:
    questions = tuple(Question(f"{name}/{i}", "Who?", "Ann") for i in range(2))
    return Passage(name, f"Town {name}", f"{name} is old.", questions, name)


PASSAGES = [passage("a"), passage("b"), passage("c")]
OTHERS = [passage("x"), passage("y")]
RULES = Rules(
    setting="single",
    seeds=2,
    reference="file",
    pool="file",
    passage_rate=1e-3,
    passage_epochs=20,
    count=lambda job: 1,
)
# of the first two passages an edit with questions, the first one none at all; of the third a
# sentence
EDITS: Edits = [
    [[None, Edit("Q: One? A: 1\nQ: Two? A: 2")]] * 2,
    [[Edit("Q: Three? A: 3"), Edit("Q: Never? A: 0")]] * 2,
    [[Edit("It is old.\nQ: How? A: So")]] * 2,
]
UNREADABLE = {("c", "How?")}


def datum(text: str) -> Datum:
    """Told apart by its tokens."""
    return Datum(ModelInput.from_ints(list(text.encode())), {})


def read(one: Datum) -> str:
    return bytes(one.model_input.to_ints()).decode()


class Teacher:
    def __init__(self) -> None:
        self.asked: list[tuple[list[str], list[list[str]]]] = []

    def __call__(
        self, passages: Sequence[Passage], questions: Sequence[Sequence[str]]
    ) -> list[list[Datum]]:
        self.asked.append(([p.id for p in passages], [list(q) for q in questions]))
        return [
            [datum(f"{p.id}: {q}") for q in qs] for p, qs in zip(passages, questions, strict=True)
        ]


def distilled(outcomes: Outcomes, **changes: Any) -> tuple[Plan, Teacher]:
    rules = replace(RULES, **changes)
    plan, teacher = make_plan(PASSAGES, [DISTILLATION], {"file": EDITS}, rules), Teacher()
    add_distillation(
        *(plan, PASSAGES, EDITS, rules, outcomes),
        distil=teacher,
        texts=lambda passage, edit: [passage.context],
        text_datum=datum,
        can_read=lambda passage, question: (passage.id, question) not in UNREADABLE,
    )
    return plan, teacher


def outcome(*correct: bool | None, **more: Any) -> InnerOutcome:
    n = len(correct)
    return InnerOutcome(["?"] * n, list(correct), [-1.0] * n, [None] * n, **more)


def test_distillation_learns_the_answers_and_the_passage(tmp_path: Path) -> None:
    plan, teacher = distilled(Outcomes(tmp_path / "o.jsonl"))
    assert teacher.asked == [(["a", "b"], [["One?", "Two?"], ["Three?"]])] * 2
    told = {
        (part.passage, part.seed): [read(one) for one in plan.jobs[part.key].datums_D]  # pyrefly: ignore
        for part in plan.parts[DISTILLATION]
    }
    of_a, of_b = ["a: One?", "a: Two?", "a is old."], ["b: Three?", "b is old."]
    assert told == {(p, s): of for s in (0, 1) for p, of in ((0, of_a), (1, of_b))}
    assert [job.repeat for job in plan.jobs.values() if isinstance(job, DatumJob)] == [0, 0, 1, 1]
    # the third passage's edit asks nothing that can be read, with either seed
    assert plan.missing[DISTILLATION] == 2


def test_distillation_of_all_passages_in_one_adapter(tmp_path: Path) -> None:
    outcomes = Outcomes(tmp_path / "o.jsonl")
    plan, _ = distilled(outcomes, setting="cpt")
    [first, second] = plan.jobs.values()
    assert isinstance(first, DatumJob) and isinstance(second, DatumJob)
    answers = ["a: One?", "a: Two?", "b: Three?"]
    assert [read(one) for one in first.datums_D] == [*answers, "a is old.", "b is old."]
    assert first.asked == tuple(PASSAGES[:2])
    starts = [(p.passage, p.start, p.seed) for p in plan.parts[DISTILLATION]]
    assert starts == [(0, 0, 0), (1, 2, 0), (0, 0, 1), (1, 2, 1)]
    # each passage has its own part of the answers
    [key, _] = plan.jobs
    outcomes.add({key: Done(outcome(True, False, None, True), 1.0)})
    [row] = row_answers(plan, outcomes)
    assert [(a.passage, a.correct_Q) for a in row.answers] == [
        (0, (True, False)),
        (1, (None, True)),
    ]


def test_the_teacher_is_asked_only_for_what_is_not_done(tmp_path: Path) -> None:
    outcomes = Outcomes(tmp_path / "o.jsonl")
    keys = list(distilled(outcomes)[0].jobs)
    # of the first seed all, of the second the first passage
    outcomes.add({key: Done(outcome(True, True), 1.0) for key in keys[:3]})
    plan, teacher = distilled(outcomes)
    # a batch is always asked whole, so that what is left gets the same answers
    assert teacher.asked == [(["a", "b"], [["One?", "Two?"], ["Three?"]])]
    assert list(plan.jobs) == keys[3:]
    assert [part.key for part in plan.parts[DISTILLATION]] == keys


def test_a_skill_is_what_edits_of_other_passages_teach_beyond_them() -> None:
    edits: Edits = [
        [[Edit("Q: Who? A: Ann"), None]] * 2,
        [[Edit("Q: Why? A: So\nSo it is.")]] * 2,
    ]
    jobs = skill_jobs(OTHERS, edits, RULES, "lines", None, datum)
    assert len(jobs) == 4
    taught, alone, *_ = jobs.values()
    assert isinstance(taught, DatumJob) and isinstance(alone, DatumJob)
    passages = ["Town x\nx is old.", "Town y\ny is old."]
    lines = ["Q: Who? A: Ann", "Q: Why? A: So", "So it is."]
    assert [read(one) for one in taught.datums_D] == [*lines, *passages]
    assert [read(one) for one in alone.datums_D] == passages
    # as passages alone are trained everywhere
    assert (taught.learning_rate, taught.num_epochs) == (None, None)
    assert (alone.learning_rate, alone.num_epochs) == (1e-3, 20)
    assert [p.questions for p in (*taught.asked, *alone.asked)] == [()] * 2
    assert taught.save_as is not None and alone.save_as is not None
    assert len({job.save_as for job in jobs.values() if isinstance(job, DatumJob)}) == 4


def with_skill(tmp_path: Path) -> tuple[Plan, dict[str, Any], Outcomes]:
    """All adapters of the row are there: by key a folder that is called as it."""
    plan = make_plan(PASSAGES, [SKILL], {"file": EDITS}, RULES)
    jobs: dict[str, Any] = skill_jobs(OTHERS, [[[None]] * 2] * 2, RULES, "lines", None, datum)
    outcomes = Outcomes(tmp_path / "o.jsonl")
    for key in (*plan.kept.values(), *jobs):
        folder = tmp_path / key.replace("/", "-")
        folder.mkdir()
        outcomes.add({key: Done(outcome(trained_tokens=10, saved=str(folder)), 1.0)})
    return plan, jobs, outcomes


def test_the_skill_is_added_to_each_passage(tmp_path: Path) -> None:
    plan, jobs, outcomes = with_skill(tmp_path)
    kept = dict(plan.kept)
    for job in (plan.jobs[key] for key in kept.values()):
        assert isinstance(job, InnerJob)
        assert (job.edit, job.learning_rate, job.num_epochs) == ("", 1e-3, 20)
    add_skill(plan, PASSAGES, outcomes)
    taught, alone = ([key for key in jobs if f"/{name}/" in key] for name in ("taught", "alone"))
    for part in plan.parts[SKILL]:
        job = plan.jobs[part.key]
        assert isinstance(job, SumJob)
        s = part.seed
        saved = [outcomes.get(k) for k in (kept[part.passage, s], taught[s], alone[s])]
        folders = [done.outcome.saved for done in saved if done is not None]
        assert job.terms == tuple(zip(folders, (1.0, 1.0, -1.0), strict=True))
        assert job.asked == (PASSAGES[part.passage],)
    assert {(p.passage, p.seed) for p in plan.parts[SKILL]} == set(kept)
    # a sum costs what its terms cost, the skill once for all passages
    outcomes.add({p.key: Done(outcome(True, False), 0.5) for p in plan.parts[SKILL]})
    [row] = row_answers(plan, outcomes)
    assert (row.num_runs, row.trained_tokens) == (6, 10 * (6 + 4))
    assert row.seconds == pytest.approx(6 * 0.5 + 10)


def test_a_sum_of_failed_adapters_has_failed(tmp_path: Path) -> None:
    plan, jobs, outcomes = with_skill(tmp_path)
    failed = next(key for key in jobs if key.endswith("taught/1"))
    outcomes.add({failed: Done(InnerOutcome(failed="NaN"), 1.0)})
    add_skill(plan, PASSAGES, outcomes)
    sums = {part.key: part.seed for part in plan.parts[SKILL]}
    assert {key for key in plan.jobs if key in sums} == {k for k, s in sums.items() if s == 0}
    for key in (k for k, s in sums.items() if s == 1):
        done = outcomes.get(key)
        assert done is not None and done.outcome.failed is not None


def test_lost_adapters_are_trained_again_where_a_sum_needs_them(tmp_path: Path) -> None:
    plan, jobs, outcomes = with_skill(tmp_path)
    [first, *others] = plan.kept.values()
    done = outcomes.get(first)
    assert done is not None and done.outcome.saved is not None
    Path(done.outcome.saved).rmdir()
    forget_lost(plan, PASSAGES, jobs, outcomes)
    assert first not in outcomes and all(key in outcomes for key in (*others, *jobs))
    # once all sums are done nobody needs them
    outcomes.add({first: done})
    add_skill(plan, PASSAGES, outcomes)
    outcomes.add({p.key: Done(outcome(True, True), 0.0) for p in plan.parts[SKILL]})
    delete_adapters([*plan.kept.values(), *jobs], outcomes)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    forget_lost(plan, PASSAGES, jobs, outcomes)
    assert all(key in outcomes for key in (*plan.kept.values(), *jobs))


class Loop:
    """An inner loop whose runs are said beforehand; it keeps what it was asked for together."""

    def __init__(self, found: dict[str, InnerOutcome]) -> None:
        self.found, self.batches = found, []

    def run(self, jobs: Sequence[InnerJob], *, desc: str) -> list[InnerOutcome]:
        self.batches.append([job.passage.id for job in jobs])
        return [self.found[job.passage.id] for job in jobs]


def test_batches_and_their_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch's time is shared by what was trained and asked."""
    clock = iter([0.0, 8.0, 10.0, 13.0])
    monkeypatch.setattr("evaluation.knowledge.runs.time.perf_counter", lambda: next(clock))
    loop: Any = Loop(
        {
            "a": outcome(True, False, trained_tokens=2 * QUESTION_TOKENS),
            "b": outcome(False, None, trained_tokens=0),
            "c": InnerOutcome(failed="NaN"),
        }
    )
    jobs = {f"k{p.id}": InnerJob(p, "") for p in PASSAGES}
    outcomes, pages = Outcomes(tmp_path / "o.jsonl"), []
    carry_out(loop, jobs, outcomes, batch_size=2, on_batch=lambda: pages.append(1))
    assert loop.batches == [["a", "b"], ["c"]] and len(pages) == 2
    stored = Outcomes(tmp_path / "o.jsonl")
    seconds = {key: done.seconds for key in jobs if (done := stored.get(key)) is not None}
    # 320 and 160 of 480 tokens in 8 s
    assert seconds == pytest.approx({"ka": 8 * 320 / 480, "kb": 8 * 160 / 480, "kc": 0.0})
    assert stored.unscored() == {"kb"}
    # nothing is left to do
    carry_out(loop, jobs, stored, batch_size=2)
    assert len(loop.batches) == 2
