"""What the embedded model knows of made worlds before it learns them: nothing.

uv run pytest -m slow tests/training/domains/knowledge/test_made_base.py
"""

import contextlib

import pytest

from training.connect import connect
from training.domains.knowledge.answers import Answerer, AnswerSettings, Item
from training.domains.knowledge.grading import RuleJudge
from training.domains.knowledge.sources import open_source
from training.models import load_tokenizer


@pytest.mark.slow
def test_the_embedded_model_knows_nothing_of_a_made_world() -> None:
    source = open_source("made", num_train=0, num_test=24)
    answerer = Answerer(load_tokenizer("embedded"), AnswerSettings(choices=True), source.shots)
    items_Q = [Item(p, question) for p in source.passages("test") for question in p.questions]
    with contextlib.closing(connect("local")) as service:
        trainer = service.create_lora_training_client("embedded", rank=1)
        sampler = service.create_sampling_client(base_model="embedded")
        asked_Q = answerer.ask(items_Q, sampler)
        answers_Q = answerer.read(items_Q, asked_Q, answerer.score(items_Q, trainer))
    verdicts_Q = RuleJudge()(
        [(i.passage, i.question, a.text) for i, a in zip(items_Q, answers_Q, strict=True)]
    )
    assert sum(v is True for v in verdicts_Q) <= 0.05 * len(items_Q)
    # chance is 0.25, of 384 questions in 24 clusters
    assert 0.2 <= sum(a.choice is True for a in answers_Q) / len(items_Q) <= 0.3
