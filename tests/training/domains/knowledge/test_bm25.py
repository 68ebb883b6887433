"""training/domains/knowledge/bm25.py: the formula, and how often it finds SQuAD's passages."""

import math

import pytest
from places import SHARED_DATA

from training.domains.knowledge.bm25 import Bm25
from utils.json_files import read_json

SQUAD = SHARED_DATA / "squad" / "squad_val_seed42_first200.json"


def test_the_formula() -> None:
    # 3, 2 and 1 words after normalisation
    texts = ["The red, RED lion", "a lion sleeps", "horse"]
    k1, b, mean = 1.2, 0.6, 2.0
    once = math.log((3 - 1 + 0.5) / (1 + 0.5) + 1)
    twice = math.log((3 - 2 + 0.5) / (2 + 0.5) + 1)
    red = once * 2 * (k1 + 1) / (2 + k1 * (1 - b + b * 3 / mean))
    lion_0 = twice * (k1 + 1) / (1 + k1 * (1 - b + b * 3 / mean))
    lion_1 = twice * (k1 + 1) / (1 + k1 * (1 - b + b * 2 / mean))
    router = Bm25(texts, k1=k1, b=b)
    assert router.scores("Is the lion red?") == pytest.approx([red + lion_0, lion_1, 0.0])
    # a word of the query counts as often as it is there
    assert router.scores("lion, lion") == pytest.approx([2 * lion_0, 2 * lion_1, 0.0])


def test_the_best() -> None:
    router = Bm25(["one two", "one two", "three three", ""])
    assert router.best("three one") == 2
    assert router.best("two?") == 0
    assert router.best("four") is None
    assert router.best("the") is None
    assert Bm25(["", "?"]).best("one") is None
    with pytest.raises(ValueError, match="texts_P is empty"):
        Bm25([])


@pytest.mark.skipif(not SQUAD.is_file(), reason="needs SQuAD's passages")
def test_questions_find_their_passages() -> None:
    passages = read_json(SQUAD)
    router = Bm25([f"{passage['title']}\n{passage['context']}" for passage in passages])
    found = [
        router.best(question["question"]) == i
        for i, passage in enumerate(passages)
        for question in passage["questions"]
    ]
    assert len(found) == 974
    assert sum(found) / len(found) > 0.9
