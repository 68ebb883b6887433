"""training/domains/knowledge/distillation.py: what is asked, read and learned."""

from typing import Any

import numpy as np
import pytest
from tiny_chat import chat_tokenizer, save_chat_model

from training.adapt import AdaptSettings
from training.api import ModelInput, SamplingParams
from training.domains.knowledge.answers import Answerer, AnswerSettings, Item
from training.domains.knowledge.distillation import distilled_datums, questions_in, widened
from training.domains.knowledge.documents import text_datum
from training.domains.knowledge.grading import RuleJudge
from training.domains.knowledge.inner import (
    DatumJob,
    InnerJob,
    InnerLoop,
    InnerOutcome,
    InnerSettings,
    SumJob,
)
from training.domains.knowledge.passages import Passage, Question, Shot

SHOTS = (Shot("A hill", "How high is Bolm?", "40"),)
REHU = Passage("Rehu", "A village", "Rehu is old.", (Question("q", "Who?", "Ann"),), "Rehu")
TOLM = Passage("Tolm", "A village", "Tolm is new.", (Question("q", "Where?", "Bo"),), "Tolm")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_chat_model(tmp_path_factory.mktemp("chat"), favourites="AnBo\n")


def test_questions_of_an_edit() -> None:
    lines = (
        "Q: Who built Rehu? A: Ann\nRehu is old.\nQ: How old? is it A: 5\nQ: Who built Rehu? A: x"
    )
    assert questions_in(lines) == ["Who built Rehu?", "How old? is it"]
    numbered = "Question 1: Who\nbuilt it?\nAnswer: Ann.\n\nQuestion 2: When? Answer : In 1790."
    assert questions_in(numbered) == ["Who\nbuilt it?", "When?"]
    assert questions_in("Rehu is old.") == []


@pytest.mark.parametrize("form", ["raw", "chat"])
def test_the_teacher_reads_the_passage_and_the_learner_does_not(
    form: Any, folder: str, service: Any
) -> None:
    tokenizer = chat_tokenizer()
    settings = AnswerSettings(prompt_form=form, max_answer_tokens=3, context=4096)
    answerer = Answerer(tokenizer, settings, SHOTS)
    asked = (["Who built it?"], [], ["Where is it?", "When?"])
    passages = (REHU, TOLM, TOLM)
    found = distilled_datums(service, folder, tokenizer, answerer, passages, asked, top_k=4)
    assert [len(datums) for datums in found] == [1, 0, 2]
    # by hand: greedy tokens after the whole prompt, and their probabilities
    question = Question("x", "Who built it?", "")
    prompt = ModelInput.from_ints(answerer.prompt(Item(REHU, question, REHU.context)))
    sampler = service.create_sampling_client(base_model=folder)
    params = SamplingParams(max_tokens=3, temperature=0.0, stop=answerer.params.stop)
    [said] = sampler.sample(prompt, 1, params, topk_sample_logprobs=4).result().sequences
    [datum] = found[0]
    tokens = datum.model_input.to_ints()
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
    weights = datum.loss_fn_inputs["weights"].to_numpy()
    n = len(said.tokens)
    assert targets[-n:, 0].tolist() == said.tokens
    np.testing.assert_allclose(weights[-n:].sum(axis=1), 1, atol=1e-6)
    assert not weights[:-n].any()
    learned = tokenizer.decode(tokens[: len(tokens) - n + 1])
    assert "Who built it?" in learned
    assert REHU.context not in learned and SHOTS[0].question not in learned
    if form == "raw":
        assert learned == "Q: Who built it? A:"


def test_a_text_among_soft_targets_teaches_the_same(folder: str, service: Any) -> None:
    datum = text_datum(chat_tokenizer(), "Rehu is old.")
    client = service.create_lora_training_client(folder, rank=2, seed=1, train_unembed=False)
    plain, wide = (
        client.forward([one], "cross_entropy").result().metrics["loss:sum"]
        for one in (datum, widened(datum, 5))
    )
    assert wide == pytest.approx(plain, rel=1e-6)


def loop_of(folder: str, service: Any) -> InnerLoop:
    settings = InnerSettings(
        base_model=folder,
        adapt=AdaptSettings(lora={"rank": 2, "train_unembed": False}, batch_size=2, eps=1e-4),
        learning_rate=1e-2,
        num_epochs=4,
        seed=3,
        max_answer_tokens=3,
        context=4096,
    )
    return InnerLoop(service, chat_tokenizer(), settings, RuleJudge(), SHOTS)


def told(outcome: InnerOutcome) -> list[float]:
    return [value for value in outcome.logprobs_Q if value is not None]


def test_data_of_ones_own_and_epochs(folder: str, service: Any) -> None:
    """Data that are a job's texts lead to what the texts lead to."""
    loop = loop_of(folder, service)
    edit = InnerJob(REHU, "Ann built Rehu.", num_epochs=2)
    datums = tuple(text_datum(chat_tokenizer(), text) for text in loop.texts(edit))
    same = DatumJob((REHU,), datums, num_epochs=2)
    first, second, longer = loop.run([edit, same, InnerJob(REHU, "Ann built Rehu.")])
    assert first.trained_tokens == second.trained_tokens == loop.trained_tokens(same)
    assert longer.trained_tokens == 2 * first.trained_tokens
    assert loop.trained_tokens(edit) == first.trained_tokens
    np.testing.assert_allclose(told(first), told(second), atol=1e-5)


def test_sums_of_saved_adapters(folder: str, service: Any) -> None:
    loop = loop_of(folder, service)
    taught, alone, base = loop.run(
        [
            InnerJob(REHU, "Ann built Rehu.", save_as="taught"),
            InnerJob(REHU, "", save_as="alone"),
            InnerJob(REHU, None),
        ]
    )
    assert taught.saved is not None and alone.saved is not None and base.saved is None
    both, nothing = loop.run(
        [
            SumJob(((alone.saved, 1.0), (taught.saved, 1.0), (alone.saved, -1.0)), (REHU,)),
            SumJob(((alone.saved, 1.0), (alone.saved, -1.0)), (REHU, TOLM)),
        ]
    )
    np.testing.assert_allclose(told(both), told(taught), atol=1e-4)
    np.testing.assert_allclose(told(nothing)[:1], told(base), atol=1e-4)
    assert both.answers_Q == taught.answers_Q
    assert (both.trained_tokens, both.num_documents, len(nothing.answers_Q)) == (0, 0, 2)
