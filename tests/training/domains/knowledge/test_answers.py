"""training/domains/knowledge/answers.py: prompts, first lines, and log-probabilities held against
transformers."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_chat import chat_tokenizer, save_chat_model, sentencepiece_tokenizer
from tiny_models import hf_logprobs, hf_model

from training.api import SampledSequence, SampleResponse
from training.domains.knowledge.answers import Answerer, AnswerSettings, Item
from training.domains.knowledge.passages import Passage, Question, Shot

SHOTS = (Shot("A hill", "How high is Bolm?", "40"), Shot("A hill", "Who owns Bolm?", "Ida Rau"))
WHO = Question("q1", "Who built Rehu?", "Ann", choices=("Bo", "Ann", "Cleo"))
WHEN = Question("q2", "When?", "in 1801")
PASSAGE = Passage("p1", "A village", "Rehu was built by Ann in 1801.", (WHO, WHEN), "p1")
RAW = AnswerSettings(max_answer_tokens=6, choices=True, context=4096)
CHAT = replace(RAW, prompt_form="chat")
ITEMS = [Item(PASSAGE, WHO), Item(PASSAGE, WHEN)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_chat_model(tmp_path_factory.mktemp("chat"), favourites="An\n")


def test_a_raw_prompt() -> None:
    tokenizer = chat_tokenizer()
    tokens = Answerer(tokenizer, RAW, SHOTS).prompt(Item(PASSAGE, WHO, shown=PASSAGE.context))
    assert tokenizer.decode(tokens) == (
        "Each question is answered in a few words.\n"
        "Topic: A hill\nQuestion: How high is Bolm?\nAnswer: 40\n"
        "Topic: A hill\nQuestion: Who owns Bolm?\nAnswer: Ida Rau\n"
        "Text: Rehu was built by Ann in 1801.\n"
        "Topic: A village\nQuestion: Who built Rehu?\nAnswer:"
    )


def test_a_chat_prompt() -> None:
    tokenizer = chat_tokenizer()
    tokens = Answerer(tokenizer, CHAT, SHOTS[:1]).prompt(Item(PASSAGE, WHO, shown="Rehu is old."))
    asked = "Each question is answered in a few words.\nTopic: "
    assert tokenizer.decode(tokens) == (
        f"<|im_start|>user\n{asked}A hill\nHow high is Bolm?<|im_end|>\n"
        "<|im_start|>assistant\n40<|im_end|>\n"
        f"<|im_start|>user\nRehu is old.\n\n{asked}A village\nWho built Rehu?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


def test_a_prompt_over_the_context_is_an_error() -> None:
    answerer = Answerer(chat_tokenizer(), replace(RAW, context=100), SHOTS)
    with pytest.raises(ValueError, match=r"question q1 of 'A village': its prompt has \d+ tokens"):
        answerer.prompt(ITEMS[0])


def test_answers_that_are_cut_off_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    # a token for each character, the blank before the answer too
    answers = {"short": Question("q1", "C?", "abc"), "long": Question("q2", "C?", "abcd")}
    items = {
        name: Item(Passage("p", "A", "B", (question,), "p"), question)
        for name, question in answers.items()
    }
    answerer = Answerer(chat_tokenizer(), replace(RAW, max_answer_tokens=4), ())
    answerer.check_all([items["short"]])
    assert caplog.text == ""
    answerer.check_all([items["short"], items["long"]])
    assert "1 of 2 questions have right answers of more than max_answer_tokens=4" in caplog.text
    assert "question q2 of 'A'" in caplog.text
    caplog.clear()
    other = replace(answers["long"], aliases=("ab",))
    answerer.check_all([replace(items["long"], question=other)])
    assert caplog.text == ""


@pytest.mark.parametrize("form", ["raw", "chat"])
def test_logprobs_are_those_of_transformers(form: Any, folder: str, service: Any) -> None:
    tokenizer = chat_tokenizer()
    answerer = Answerer(tokenizer, replace(RAW, prompt_form=form), SHOTS)
    # untrained, an adapter is the base model
    trainer = service.create_lora_training_client(folder, rank=4)
    sampler = service.create_sampling_client(base_model=folder)
    scored = answerer.score(ITEMS, trainer)
    answers = answerer.read(ITEMS, answerer.ask(ITEMS, sampler), scored)

    model = hf_model(folder)

    def reference(item: Item, text: str) -> float:
        prompt = answerer.prompt(item)
        written = tokenizer.encode(text if form == "chat" else f" {text}")
        tokens = [*prompt, *written]
        logprobs = hf_logprobs(model, tokens[:-1], torch.tensor(tokens[1:]))
        return logprobs[len(prompt) - 1 :].sum().item()

    who = {text: reference(ITEMS[0], text) for text in WHO.choices}
    assert answers[0].logprob == pytest.approx(who["Ann"], abs=1e-3)
    assert answers[0].choice == (max(who, key=lambda text: who[text]) == "Ann")
    assert answers[1].logprob == pytest.approx(reference(ITEMS[1], "in 1801"), abs=1e-3)
    assert answers[1].choice is None


def test_greedy_answers_are_one_line_without_the_end_token(folder: str, service: Any) -> None:
    answerer = Answerer(chat_tokenizer(), RAW, SHOTS)
    sampler = service.create_sampling_client(base_model=folder)
    first, again = (answerer.read(ITEMS, answerer.ask(ITEMS, sampler), None) for _ in range(2))
    assert first == again
    assert all(set(answer.text) <= set("An") and answer.logprob is None for answer in first)


class Written:
    """A future of an answer."""

    def __init__(self, text: str) -> None:
        self._tokens = chat_tokenizer().encode(text)

    def result(self) -> SampleResponse:
        return SampleResponse([SampledSequence("stop", np.array(self._tokens))])


@pytest.mark.parametrize(
    ("written", "answer"),
    [
        (" Ann\n", "Ann"),
        (" Ann<|im_end|>", "Ann"),
        (" Ann of Rehu\nTopic:", "Ann of Rehu"),
        ("\n", ""),
        ("<|im_end|>", ""),
    ],
)
def test_reading(written: str, answer: str) -> None:
    answerer = Answerer(chat_tokenizer(), RAW, SHOTS)
    futures: Any = [Written(written)]
    [read] = answerer.read(ITEMS[:1], futures, None)
    assert read.text == answer


def test_an_answers_tokens_are_those_after_the_prompt_whatever_the_tokenizer() -> None:
    """Sentencepiece writes a word with the blank before it."""
    tokenizer = sentencepiece_tokenizer()
    yes = Passage("p", "A", "B", (Question("q", "C?", "yes"),), "p")
    trainer = Remembering()
    Answerer(tokenizer, RAW, ()).score([Item(yes, yes.questions[0])], trainer)  # type: ignore[arg-type]
    [datum] = trainer.data
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
    weights = datum.loss_fn_inputs["weights"].to_numpy()
    assert targets[weights == 1].tolist() == [tokenizer.get_vocab()["\u2581yes"]]
    assert weights[-1] == 1


class Remembering:
    def forward(self, data: Any, loss_fn: str) -> None:
        self.data = data


def test_nothing_is_scored_that_nobody_asked_for() -> None:
    off = replace(RAW, logprobs=False, choices=False)
    assert Answerer(chat_tokenizer(), off, ()).score(ITEMS, Remembering()) is None  # type: ignore[arg-type]
    trainer = Remembering()
    Answerer(chat_tokenizer(), replace(RAW, choices=False), ()).score(ITEMS, trainer)  # type: ignore[arg-type]
    assert len(trainer.data) == 2
