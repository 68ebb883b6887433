"""training/domains/knowledge/inner.py, on a tiny model: what is common to the edits of a passage,
what fails alone, and what is learned."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from tiny_chat import chat_tokenizer, save_chat_model

from training.adapt import AdaptSettings
from training.domains.knowledge.grading import RuleJudge
from training.domains.knowledge.inner import (
    InnerJob,
    InnerLoop,
    InnerOutcome,
    InnerSettings,
    PooledJob,
    preset,
)
from training.domains.knowledge.passages import Passage, Question, Shot

SHOTS = (Shot("A hill", "How high is Bolm?", "40"),)
LORA: dict[str, Any] = {"rank": 4, "train_unembed": False}


def village(name: str, builder: str, *others: str) -> Passage:
    question = Question(name, f"Who built {name}?", builder, choices=(builder, *others))
    return Passage(name, "A village", f"{name} was built by {builder}.", (question,), name)


REHU = village("Rehu", "Ann", "Bob", "Cyd")
TOLM = village("Tolm", "Bob", "Ann", "Cyd")
EDIT = "Q: Who has built Rehu? A: Ann\nQ: By whom was Rehu built? A: Ann\nRehu is the work of Ann."


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_chat_model(tmp_path_factory.mktemp("chat"), favourites="AnBobCyd\n")


def settings(folder: str, **changes: Any) -> InnerSettings:
    made = InnerSettings(
        base_model=folder,
        adapt=AdaptSettings(lora=LORA, batch_size=2, eps=1e-4),
        learning_rate=1e-2,
        num_epochs=4,
        seed=3,
        max_answer_tokens=4,
        context=4096,
    )
    return replace(made, **changes)


class CountingJudge(RuleJudge):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[Any]] = []

    def __call__(self, asked: Sequence[tuple[Passage, Question, str]]) -> list[bool | None]:
        self.calls.append(list(asked))
        return super().__call__(asked)


def run(service: Any, folder: str, jobs: Any, **changes: Any) -> list[InnerOutcome]:
    loop = InnerLoop(service, chat_tokenizer(), settings(folder, **changes), RuleJudge(), SHOTS)
    return loop.run(jobs)


def logprob(outcome: InnerOutcome) -> float:
    [value] = outcome.logprobs_Q
    assert value is not None
    return value


def test_training_makes_the_answer_likelier(folder: str, service: Any) -> None:
    judge = CountingJudge()
    loop = InnerLoop(service, chat_tokenizer(), settings(folder), judge, SHOTS)
    base, alone, edited, other = loop.run(
        [
            InnerJob(REHU, None),
            InnerJob(REHU, ""),
            InnerJob(REHU, EDIT),
            InnerJob(REHU, EDIT, asked=(TOLM, REHU)),
        ]
    )
    assert (base.trained_tokens, base.num_documents) == (0, 0)
    assert (alone.num_documents, edited.num_documents) == (1, 4)
    # bytes: every document is read up to its end token, four times
    lengths = [len(line) for line in EDIT.splitlines()] + [len(f"A village\n{REHU.context}")]
    assert edited.trained_tokens == 4 * sum(lengths)
    assert logprob(edited) > logprob(base) + 0.5
    # the same adapter, asked about another passage too
    assert other.answers_Q[1:] == edited.answers_Q
    assert other.logprobs_Q[1] == pytest.approx(logprob(edited), abs=1e-4)
    assert len(other.correct_Q) == len(other.choices_Q) == 2
    # all answers are judged at once
    [asked] = judge.calls
    assert [question.id for _, question, _ in asked] == ["Rehu", "Rehu", "Rehu", "Tolm", "Rehu"]


def test_the_base_model_is_asked_as_it_is(folder: str, service: Any) -> None:
    first, second = (run(service, folder, [InnerJob(REHU, None, repeat=r)])[0] for r in (0, 1))
    assert first == second


def test_a_repeat_has_random_numbers_of_its_own(folder: str, service: Any) -> None:
    jobs = [InnerJob(REHU, EDIT, repeat=repeat) for repeat in (0, 0, 1)]
    first, again, second = map(logprob, run(service, folder, jobs))
    assert first == pytest.approx(again, abs=1e-5)
    assert abs(first - second) > 1e-3
    [otherwise] = run(service, folder, jobs[:1], seed=4)
    assert abs(first - logprob(otherwise)) > 1e-3


def test_edits_of_a_passage_share_adapter_and_order(
    folder: str, service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[Any]] = []

    def remember(service: Any, base: str, jobs: Any, *args: Any, **kwargs: Any) -> list[int]:
        seen.append(list(jobs))
        return [0] * len(jobs)

    monkeypatch.setattr("training.domains.knowledge.inner.adapt", remember)
    jobs = [InnerJob(REHU, text, repeat=r) for r in (0, 1) for text in (EDIT, "x\ny\nz")]
    run(service, folder, [*jobs, InnerJob(TOLM, EDIT)])
    first, other, later, later_other, tolm = (job.seed for job in seen[0])
    assert first == other
    assert later == later_other
    assert len({first, later, tolm}) == 3


def test_together_is_one_by_one(folder: str, service: Any) -> None:
    jobs = [InnerJob(REHU, EDIT), InnerJob(TOLM, "Tolm is by Bob."), InnerJob(TOLM, None)]
    together = run(service, folder, jobs)
    for job, outcome in zip(jobs, together, strict=True):
        [alone] = run(service, folder, [job])
        assert alone.answers_Q == outcome.answers_Q
        assert logprob(alone) == pytest.approx(logprob(outcome), abs=1e-4)


@pytest.mark.parametrize("rate", [1e30, 1e18, 30.0])
def test_a_wild_learning_rate_fails_alone(rate: float, folder: str, service: Any) -> None:
    calm = InnerJob(TOLM, "Tolm is by Bob.\nBob built Tolm.")
    wild = InnerJob(REHU, EDIT, learning_rate=rate)
    first, failed, second = run(service, folder, [calm, wild, calm])
    [alone] = run(service, folder, [calm])
    for outcome in (first, second):
        assert outcome.failed is None
        assert logprob(outcome) == pytest.approx(logprob(alone), abs=1e-4)
    if rate > 1e10:
        assert failed.failed is not None and "a smaller learning rate is needed" in failed.failed
        assert failed.answers_Q == failed.correct_Q == failed.logprobs_Q == []


def test_a_wild_learning_rate_comes_first(folder: str, service: Any) -> None:
    """The proof of the first adapter that is finished must not end the others."""
    wild = InnerJob(TOLM, "", learning_rate=1e4)
    _, calm = run(service, folder, [wild, InnerJob(REHU, EDIT)])
    assert calm.failed is None and len(calm.answers_Q) == 1


def test_a_text_over_the_context_fails_alone(folder: str, service: Any) -> None:
    long = replace(TOLM, context="Tolm is old. " * 40)
    outcomes = run(service, folder, [InnerJob(long, ""), InnerJob(REHU, "")], context=300)
    assert outcomes[0].failed is not None and "300" in outcomes[0].failed
    assert outcomes[0].answers_Q == []
    assert outcomes[1].failed is None


def test_early_stop_holds_a_line_out_and_ends_sooner(folder: str, service: Any) -> None:
    lines = "Rehu is the work of Ann.\nAnn has built Rehu.\nzzqq 0 ##"
    whole, stopped = (
        run(service, folder, [InnerJob(REHU, lines)], num_epochs=20, early_stop=early)[0]
        for early in (False, True)
    )
    assert whole.num_documents == stopped.num_documents == 4
    assert 0 < stopped.trained_tokens < whole.trained_tokens / 2


def test_anchors_hold_the_adapter_to_the_base_model(folder: str, service: Any) -> None:
    """Questions about other villages are answered as before, and the edit is learned."""
    anchors = tuple(village(name, "Bob", "Ann") for name in ("Ulmo", "Kesk", "Pirn"))
    asked = village("Zwod", "Cyd", "Ann")
    moved = {}
    for weight in (0.0, 3.0):
        adapt = replace(settings(folder).adapt, anchor_weight=weight)
        base, edited = run(
            service,
            folder,
            [InnerJob(asked, None), InnerJob(REHU, EDIT, asked=(asked, REHU))],
            adapt=adapt,
            anchors=anchors,
            num_epochs=12,
        )
        assert edited.logprobs_Q[0] is not None
        moved[weight] = abs(edited.logprobs_Q[0] - logprob(base))
    assert moved[3.0] < 0.5 * moved[0.0]


def test_continued_pretraining_puts_many_passages_into_one_adapter(
    folder: str, service: Any
) -> None:
    edits = (("Rehu is by Ann.\nAnn!", "So says Ann."), ("Tolm is by Bob.",))
    job = PooledJob((REHU, TOLM), edits)
    loop = InnerLoop(service, chat_tokenizer(), settings(folder), RuleJudge(), SHOTS)
    assert loop.texts(job)[0] == "Rehu is by Ann.\nAnn!"
    with_passages, without = loop.run([job, replace(job, add_context=False)])
    assert (with_passages.num_documents, without.num_documents) == (5, 3)
    assert len(with_passages.answers_Q) == 2
    assert with_passages.trained_tokens > without.trained_tokens


def test_presets() -> None:
    seal = preset("seal", base_model="some model", seed=5, max_answer_tokens=64)
    assert seal.adapt.lora == {
        **{"rank": 32, "lora_alpha": 64.0, "lora_dropout": 0.0},
        "target_modules": ["q_proj", "v_proj"],
    }
    assert (seal.adapt.batch_size, seal.num_epochs, seal.learning_rate) == (1, 10, 1e-3)
    assert (seal.adapt.schedule, seal.documents, seal.cap) == ("linear", "seal", 30)
    assert (seal.seed, seal.max_answer_tokens) == (5, 64)
    assert preset("small", base_model="m", kl_weight=0.3).adapt.anchor_weight == 0.3
    with pytest.raises(ValueError, match="preset='tiny': allowed are small, seal"):
        preset("tiny", base_model="m")  # type: ignore[arg-type]
