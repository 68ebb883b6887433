"""Which questions hold adapters to the base model.

uv run pytest tests/training/domains/knowledge/test_anchors.py
"""

from pathlib import Path
from typing import Any

import pytest
from tiny_chat import chat_tokenizer, save_chat_model

from training.api import Datum
from training.domains.knowledge.anchors import anchor_datums
from training.domains.knowledge.answers import Answerer, AnswerSettings
from training.domains.knowledge.config import KnowledgeConfig, inner_settings, source_of
from training.domains.knowledge.general_questions import GENERAL
from training.domains.knowledge.inner import InnerSettings
from training.domains.knowledge.passages import Passage, Question, Shot
from utils.config.errors import ConfigError

SHOTS = (Shot("A hill", "How high is Bolm?", "40"),)


def settings_of(**given: Any) -> InnerSettings:
    config = KnowledgeConfig(source="made", **given)
    source = source_of(config, num_train=6, num_test=6)
    found = inner_settings(config, source, 8192)
    assert found.adapt.anchor_weight == config.kl_weight
    return found


def test_everyday_questions_as_lines_by_default_and_only_with_a_weight() -> None:
    assert settings_of().anchors == ()
    held = settings_of(kl_weight=0.3)
    assert held.anchors == GENERAL and held.anchors_as_lines
    prompts = settings_of(kl_weight=0.3, kl_anchors="prompts")
    assert prompts.anchors == GENERAL and not prompts.anchors_as_lines
    chat = settings_of(kl_weight=0.3, prompt_form="chat")
    assert chat.anchors == GENERAL and not chat.anchors_as_lines


def test_things_of_a_made_world_are_those_of_no_split() -> None:
    config = KnowledgeConfig(source="made")
    source = source_of(config, num_train=6, num_test=6)
    found = settings_of(kl_weight=0.3, kl_anchors="things")
    things = found.anchors
    assert not found.anchors_as_lines
    learned = {passage.id for split in ("train", "test") for passage in source.passages(split)}
    assert len(things) == 2 and not {passage.id for passage in things} & learned
    assert {question.kind for thing in things for question in thing.questions} == {
        *("direct", "reverse", "derived")
    }


def test_no_question_comes_twice() -> None:
    texts = [question.text for passage in GENERAL for question in passage.questions]
    assert len(texts) == len(set(texts)) > 40
    ids = [question.id for passage in GENERAL for question in passage.questions]
    assert len(set(ids)) == len(ids)
    assert all(text.endswith("?") for text in texts)


def test_lines_have_the_answers_of_the_prompt_as_their_targets(
    tmp_path: Path, service: Any
) -> None:
    folder = save_chat_model(tmp_path / "chat", favourites="ab ")
    tokenizer = chat_tokenizer()
    answerer = Answerer(tokenizer, AnswerSettings(max_answer_tokens=4), SHOTS)
    base = service.create_sampling_client(base_model=folder)
    asked = Passage("p", "A hill", "", (Question("q", "How old is Tarn?", ""),), "p")
    [prompt], [line] = (
        anchor_datums(base, answerer, [asked], tokenizer=tokenizer, as_lines=as_lines)
        for as_lines in (False, True)
    )

    def targets(datum: Datum) -> list[list[int]]:
        ids, weights = (datum.loss_fn_inputs[k].to_numpy() for k in ("target_tokens", "weights"))
        counts = weights.sum(axis=1) > 0
        assert weights[counts].sum(axis=1) == pytest.approx(1.0)
        return ids[counts].tolist()

    assert targets(prompt) == targets(line) and len(targets(line)) > 1
    texts = [str(tokenizer.decode(d.model_input.to_ints())) for d in (prompt, line)]
    assert "Topic: A hill\nQuestion: How old is Tarn?\nAnswer:" in texts[0]
    assert texts[1].startswith("Q: How old is Tarn? A:") and "Topic" not in texts[1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kl_anchors": "poems"}, "kl_anchors"),
        ({"kl_anchors": "lines"}, "with kl_weight=0 nothing is held"),
        ({"kl_anchors": "lines", "kl_weight": 1.0, "prompt_form": "chat"}, "prompt_form=raw or"),
    ],
)
def test_anchors_that_cannot_be_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ConfigError), match=message):
        settings_of(**given)
