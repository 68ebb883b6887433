"""Rewards of self-edits on passages: what counts as one, as a success, as a failure, as nothing.

uv run pytest tests/training/domains/knowledge/test_domain.py
"""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rl_loop import entrypoint

from training.domains.base import Problem, ShowsAnswers, Split
from training.domains.knowledge.domain import KnowledgeDomain
from training.domains.knowledge.domain_config import KnowledgeDomainConfig
from training.domains.knowledge.inner import InnerJob, InnerOutcome
from training.domains.knowledge.seal_files import read_rows
from training.domains.knowledge.seal_runs import read_run
from training.endpoints import Endpoints
from utils.config.entrypoint import ConfigError
from utils.llm.roles import RoleConfig
from utils.runs.files import read_jsonl
from utils.runs.run_dir import RunDir

pytestmark = pytest.mark.usefixtures("one_torch_thread")

ROWS = [
    {
        "title": name,
        "context": f"{name} lies on the river {river}. Its mayor is {mayor}.",
        "questions": [
            {"question": f"On which river does {name} lie?", "answer": river},
            {"question": f"Who is the mayor of {name}?", "answer": mayor},
        ],
    }
    for name, river, mayor in (
        ("Ostrel", "Nive", "Ada Brun"),
        ("Kalmen", "Torre", "Iwo Salk"),
        ("Vendar", "Ulm", "Mia Rosk"),
    )
]
EDITS = {name: f"Q: Where does {name} lie? A: Nive" for name in ("Ostrel", "Kalmen", "Vendar")}
BASE = InnerOutcome(
    answers_Q=["no", "Ada Brun"],
    correct_Q=[False, True],
    logprobs_Q=[-4.0, -2.0],
    choices_Q=[None, None],
)


def after(first: bool | None, second: bool | None, *logprobs: float) -> InnerOutcome:
    return InnerOutcome(
        answers_Q=["Nive", "nobody"],
        correct_Q=[first, second],
        logprobs_Q=list(logprobs or (-1.0, -1.0)),
        choices_Q=[None, None],
        trained_tokens=40,
        num_documents=2,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tiny_chat import save_chat_model

    return save_chat_model(tmp_path_factory.mktemp("chat"), favourites="ae ")


@pytest.fixture
def make(model: str, tmp_path: Path) -> Callable[..., tuple[KnowledgeDomain, list[InnerJob]]]:
    """make(outcome_of, **settings) -> the domain with inner runs that outcome_of(job) stands for,
    and the jobs that were run."""

    def build(
        outcome_of: Callable[[InnerJob], InnerOutcome], form: str = "qa", **settings: Any
    ) -> tuple[KnowledgeDomain, list[InnerJob]]:
        file = tmp_path / "rows.json"
        file.write_text(json.dumps(ROWS), encoding="utf-8")
        config = KnowledgeDomainConfig(
            model_name=model,
            source="own",
            data_path=str(file),
            num_train_passages=2,
            num_test_passages=1,
            form=form,
            **settings,
        )
        service: Any = None
        domain = KnowledgeDomain(config, service)
        done: list[InnerJob] = []

        def run(jobs: Sequence[InnerJob], *, desc: str) -> list[InnerOutcome]:
            done.extend(jobs)
            return [BASE if job.edit is None else outcome_of(job) for job in jobs]

        domain.inner.run = run  # pyrefly: ignore
        return domain, done

    return build


def first_train(domain: KnowledgeDomain) -> Problem:
    return domain.problems("train")[0]


@pytest.mark.parametrize(
    ("kind", "wanted"), [("accuracy", 0.75), ("gain", 0.25), ("logprob", 2.25)]
)
def test_the_reward_is_the_mean_over_repeats(kind: str, wanted: float, make) -> None:
    repeats = [after(True, True, -1.0, -1.0), after(True, False, -1.0, -0.0)]
    domain, done = make(lambda job: repeats[job.repeat], reward=kind, repeats=2)
    problem = first_train(domain)
    [[found]] = domain.rewards([problem], [[EDITS[problem.data.title]]])
    assert found.value == pytest.approx(wanted)
    assert "50% of questions right before, 100% and 50% after" in found.note
    assert [(job.edit, job.repeat) for job in done] == [
        (None, 0),
        (EDITS[problem.data.title], 0),
        (EDITS[problem.data.title], 1),
    ]


def test_small_models_choose_form_and_rate_by_default(model: str) -> None:
    service: Any = None
    made: dict[str, Any] = {"source": "made", "num_train_passages": 1, "num_test_passages": 1}
    forms = {
        name: KnowledgeDomain(
            KnowledgeDomainConfig(model_name=model, preset=name, **made), service
        ).form
        for name in ("small", "seal")
    }
    assert forms == {"small": "model", "seal": "implications"}


def test_held_out_edits_have_repeats_of_their_own(make) -> None:
    domain, done = make(lambda job: after(True, True), repeats=3, eval_repeats=2)
    for split, wanted in (("train", 3), ("test", 2)):
        problem = domain.problems(split)[0]
        domain.rewards([problem], [[EDITS[problem.data.title]]])
        mine = [job for job in done if job.passage == problem.data and job.edit is not None]
        assert [job.repeat for job in mine] == list(range(wanted))


def test_the_same_edit_is_carried_out_once_and_is_known_after_resuming(make) -> None:
    domain, done = make(lambda job: after(True, True), repeats=1)
    problem = first_train(domain)
    edit = EDITS[problem.data.title]
    # with another ending it is the same text to train on
    [rewards_G] = domain.rewards([problem], [[edit, f"  {edit}\n", edit]])
    assert len({reward.value for reward in rewards_G}) == 1
    assert len(done) == 2
    domain.rewards([problem], [[edit]])
    assert len(done) == 2
    again, done_again = make(lambda job: after(True, True), repeats=1)
    again.load_state(json.loads(json.dumps(domain.state())))
    assert again.rewards([problem], [[edit]]) == [[rewards_G[0]]]
    assert done_again == []


def test_the_same_text_at_another_rate_is_another_edit(make) -> None:
    def outcome(job: InnerJob) -> InnerOutcome:
        return after(True, True, -4.0 + 1e3 * (job.learning_rate or 0.0), -2.0)

    domain, done = make(outcome, repeats=1, form="model")
    problem = first_train(domain)
    text = EDITS[problem.data.title]
    edits = [f'{{"form": "qa", "learning_rate": {rate}}}\n{text}' for rate in (0.001, 0.003)]
    [[slow, fast]] = domain.rewards([problem], [edits])
    assert (slow.value, fast.value) == (pytest.approx(0.5), pytest.approx(1.5))
    assert [(job.edit, job.learning_rate) for job in done[1:]] == [(text, 1e-3), (text, 3e-3)]


def test_what_is_no_edit_trains_nothing(make) -> None:
    domain, done = make(lambda job: after(True, True), repeats=1, reward="accuracy")
    problem = first_train(domain)
    [rewards_G] = domain.rewards([problem], [["", "no line of the form"]])
    assert [(r.value, r.solved) for r in rewards_G] == [(0.0, False)] * 2
    assert "empty" in rewards_G[0].note
    assert [job.edit for job in done] == [None]
    assert domain.invalid("") is not None
    assert domain.invalid(EDITS[problem.data.title]) is None


def test_a_failed_inner_run_is_told_and_the_others_count(make) -> None:
    def outcome(job: InnerJob) -> InnerOutcome:
        if job.edit is not None and ("Bad" in job.edit or job.repeat == 1):
            return InnerOutcome(failed="the gradient is NaN")
        return after(True, True)

    domain, _ = make(outcome, repeats=2, reward="accuracy")
    problem = first_train(domain)
    good, bad = EDITS[problem.data.title], "Q: Bad? A: Nive"
    [[one, none]] = domain.rewards([problem], [[good, bad]])
    assert (one.value, one.solved) == (1.0, True)
    assert "1 of 2 inner runs failed: the gradient is NaN" in one.note
    assert (none.value, none.solved) == (0.0, False)
    assert "2 of 2 inner runs failed" in none.note


def test_an_answer_without_a_verdict_does_not_count_against_the_edit(make) -> None:
    def outcome(job: InnerJob) -> InnerOutcome:
        assert job.edit is not None
        return after(None, None) if "Dumb" in job.edit else after(True, None)

    domain, _ = make(outcome, repeats=1, reward="accuracy")
    problem = first_train(domain)
    [[some, none]] = domain.rewards([problem], [[EDITS[problem.data.title], "Q: Dumb? A: Nive"]])
    assert some.value == 1.0
    # what the others of the group have, so that it is neither praised nor blamed
    assert (none.value, none.solved) == (1.0, False)
    assert "2 answers have no verdict" in none.note


def test_a_success_gains_more_than_the_noise(make) -> None:
    """Gains of 1 and 1.4 in two repeats: the mean's standard deviation is sqrt(0.08 / 2)."""

    def outcome(job: InnerJob) -> InnerOutcome:
        assert job.edit is not None
        mean = 1.2 if "Big" in job.edit else 0.25 if "Fair" in job.edit else 0.1
        gain = mean + (-0.2, 0.2)[job.repeat]
        return after(True, True, -4.0 + gain, -2.0 + gain)

    domain, _ = make(outcome, repeats=2, reward="logprob")
    problem = first_train(domain)
    edits = ["Q: Big? A: Nive", "Q: Small? A: Nive", "Q: Fair? A: Nive"]
    [[big, small, fair]] = domain.rewards([problem], [edits])
    assert big.value == pytest.approx(1.2)
    assert small.value == pytest.approx(0.1)
    assert math.sqrt(0.08 / 2) > small.value > 0
    # of the mean: what one repeat may be off is more than this gain
    assert math.sqrt(0.08) > fair.value > math.sqrt(0.08 / 2)
    assert (big.solved, small.solved, fair.solved) == (True, False, True)
    lenient, _ = make(outcome, repeats=2, reward="logprob", min_gain=0.05)
    assert [r.solved for r in lenient.rewards([problem], [edits])[0]] == [True, True, True]


@pytest.mark.parametrize(("kind", "value"), [("accuracy", 0.5), ("gain", 0.0), ("logprob", 0.0)])
@pytest.mark.parametrize("bound", [{}, {"min_gain": 0.0}])
def test_as_good_as_the_base_model_is_no_success(
    kind: str, value: float, bound: dict[str, float], make
) -> None:
    """Whatever the reward is: half of the answers are right without any training."""
    domain, _ = make(lambda job: after(False, True, -4.0, -2.0), reward=kind, repeats=2, **bound)
    problem = first_train(domain)
    [[found]] = domain.rewards([problem], [[EDITS[problem.data.title]]])
    assert (found.value, found.solved) == (value, False)


def test_what_is_shown_says_how_reliable_the_reward_is(make) -> None:
    rewards = {"a": (1.0, 1.0), "b": (0.0, 0.2)}

    def outcome(job: InnerJob) -> InnerOutcome:
        assert job.edit is not None
        gain = rewards[job.edit[3]][job.repeat]
        return after(True, False, -4.0 + gain, -2.0 + gain)

    domain, _ = make(outcome, repeats=2)
    shows: Any = domain
    assert isinstance(shows, ShowsAnswers)
    problems: dict[Split, list[Problem]] = {s: domain.problems(s) for s in ("train", "test")}
    problem = problems["train"][0]
    answers = ["Q: a? A: Nive", "Q: b? A: Nive", "nothing"]
    [rewards_G] = domain.rewards([problem], [answers])
    samples = [
        {
            **{"problem": problem.id, "kind": "train", "when": "train, batch 1", "step": 1},
            **{"answer": answer, "reward": r.value, "note": r.note, "prompt": "p"},
        }
        for answer, r in zip(answers, rewards_G, strict=True)
    ]
    changed, reliable = domain.summary(problems, samples)
    assert "50% right before, 50% after" in changed
    assert "of what was wrong 100% gained, of what was right 0% kept" in changed
    # 2 edits, 2 repeats: mean squares 0.81 between and 0.01 within
    assert f"reliability {(0.81 - 0.01) / 0.81:.2f} of the mean of 2" in reliable


def test_passages_without_questions_are_refused(make, model: str, tmp_path: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("Ostrel lies on the Nive.", encoding="utf-8")
    config = KnowledgeDomainConfig(
        model_name=model,
        source="own",
        data_path=str(tmp_path),
        num_train_passages=1,
        num_test_passages=1,
    )
    service: Any = None
    with pytest.raises(ConfigError, match="have no questions"):
        KnowledgeDomain(config, service)


def test_a_judge_of_this_process_is_closed_with_the_domain(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Endpoints] = []
    close = Endpoints.close
    monkeypatch.setattr(Endpoints, "close", lambda self: (closed.append(self), close(self)))
    config = KnowledgeDomainConfig(
        model_name=model,
        source="made",
        num_train_passages=1,
        num_test_passages=1,
        judge_kind="llm",
        judge=RoleConfig(model=model, base_url="local"),
    )
    service: Any = None
    domain = KnowledgeDomain(config, service)
    with RunDir.open("rl_loop", tmp_path / "r", config) as run:
        domain.open_calls(run)
    assert not closed
    domain.close()
    assert len(closed) == 1


@pytest.mark.parametrize("long", ["question", "answer"])
def test_a_question_over_the_context_is_refused(model: str, tmp_path: Path, long: str) -> None:
    """Before anything is trained."""
    path = tmp_path / "own.json"
    rows = [
        {
            "title": f"Ostrel {i}",
            "context": "Ostrel lies on the Nive.",
            "questions": [{"question": "Where?", "answer": "Nive", long: "word " * 2000}],
        }
        for i in range(2)
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    config = KnowledgeDomainConfig(
        model_name=model,
        source="own",
        data_path=str(path),
        num_train_passages=1,
        num_test_passages=1,
    )
    service: Any = None
    with pytest.raises(ValueError, match=r"question own/\d/0 of 'Ostrel \d': .* context is 4096"):
        KnowledgeDomain(config, service)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "poem"}, "form='poem'"),
        ({"repeats": 0}, "repeats=0: at least 1"),
        ({"eval_repeats": 0}, "eval_repeats=0: at least 1"),
        ({"min_gain": float("nan")}, "min_gain=nan: a number"),
        ({"first_passage": -5}, "first_passage=-5: 0 or more"),
        ({"num_train_passages": 0}, "num_train_passages=0: at least 1"),
        ({"kl_weight": -1.0}, "kl_weight=-1.0: a number from 0"),
        ({"inner_learning_rate": 0.0}, "inner_learning_rate=0.0: a number above 0"),
        ({"model_rates": [2.0]}, "model_rates=.*learning rates to choose from"),
        ({"model_forms": []}, "model_forms=.*one or more to choose from"),
    ],
)
def test_wrong_settings_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        KnowledgeDomainConfig(**settings)


def test_a_run_from_end_to_end(model: str, tmp_path: Path) -> None:
    """A random model, held to the grammar, on made passages; SEAL's files come out."""
    run = tmp_path / "run"
    entrypoint(
        [
            *("domain=knowledge", f"model_name={model}", f"log_path={run}", "source=made"),
            *("preset=small", "form=qa", "num_train_passages=2", "num_test_passages=1"),
            *("num_steps=1", "groups_per_batch=2", "group_size=2", "eval_size=1"),
            *("eval_group_size=1", "max_tokens=120", "repeats=2", "inner_epochs=1"),
            *("inner_rank=2", "lora_rank=2", "min_gain=-1e9", "max_answer_tokens=4"),
        ]
    )
    samples = read_jsonl(run / "samples.jsonl")
    assert [s["kind"] for s in samples].count("train") == 4
    assert all(s["note"] for s in samples)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "Reward (logprob)" in page or "Reliability of the reward" in page
    carried_out = [s for s in samples if s["kind"] == "train" and "trained tokens" in s["note"]]
    if carried_out:
        found = read_run(run / "seal_run.json")
        assert sum(len(item.completions) for item in found.articles) == len(carried_out)
        assert len(read_rows(run / "sft_best.jsonl")) == len(found.articles)
