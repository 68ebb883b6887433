"""SQuAD per paragraph, and SEAL's subsets of it."""

import json

import pytest

from tests.places import SHARED_DATA
from training.domains.knowledge.sources import open_source

SQUAD = SHARED_DATA / "squad"


@pytest.mark.skipif(not SQUAD.is_dir(), reason="needs SEAL's files of SQuAD")
def test_the_test_passages_are_those_of_seal():
    source = open_source(
        "squad", data_path=str(SQUAD / "squad_val.json"), num_train=50, num_test=200
    )
    published = json.loads((SQUAD / "squad_val_seed42_first200.json").read_text("utf-8"))
    passages = source.passages("test")
    assert [
        {
            "title": passage.title,
            "context": passage.context,
            "questions": [{"question": q.text, "answer": q.answer} for q in passage.questions],
        }
        for passage in passages
    ] == published
    assert (len(passages), sum(len(p.questions) for p in passages)) == (200, 974)
    train = source.passages("train")
    assert len(train) == 50
    assert not {p.id for p in train} & {p.id for p in passages}
