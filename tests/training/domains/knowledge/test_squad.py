"""SQuAD per paragraph, and SEAL's subsets of it."""

import json
import random
from pathlib import Path
from typing import Any

import datasets
import pytest

from tests.places import SHARED_DATA
from training.domains.knowledge.sources import open_source
from training.domains.knowledge.squad import read_squad, regrouped, subset
from utils.config.entrypoint import ConfigError

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


def passage(title, context, *questions):
    return {
        "title": title,
        "context": context,
        "questions": [{"question": q, "answer": a} for q, a in questions],
    }


def written(path, value):
    path.write_text(json.dumps(value), "utf-8")
    return str(path)


ORIGINAL: dict[str, Any] = {
    "version": "1.1",
    "data": [
        {
            "title": "Green_tea",
            "paragraphs": [
                {
                    "context": "It is green.",
                    "qas": [
                        {
                            "id": "1",
                            "question": "Which colour? ",
                            "answers": [
                                {"text": "green", "answer_start": 6},
                                {"text": "is green", "answer_start": 3},
                            ],
                        }
                    ],
                },
                {
                    "context": "It is hot.",
                    "qas": [
                        {"id": "2", "question": "How?", "answers": [{"text": "hot"}]},
                        {"id": "3", "question": "Is it?", "answers": [{"text": "It is"}]},
                    ],
                },
            ],
        }
    ],
}


def test_all_forms_of_squad_give_the_same_passages(tmp_path):
    regrouped_by_seal = [
        passage("Green tea", "It is green.", ("Which colour?", "green")),
        passage("Green tea", "It is hot.", ("How?", "hot"), ("Is it?", "It is")),
    ]
    of_the_hub = [
        {
            "title": article["title"],
            "context": paragraph["context"],
            "question": asked["question"],
            "answers": {"text": [answer["text"] for answer in asked["answers"]]},
        }
        for article in ORIGINAL["data"]
        for paragraph in article["paragraphs"]
        for asked in paragraph["qas"]
    ]
    problems = []
    seal = read_squad(Path(written(tmp_path / "seal.json", regrouped_by_seal)), problems)
    original = read_squad(Path(written(tmp_path / "v1.1.json", ORIGINAL)), problems)
    assert not problems
    assert seal == original == regrouped(of_the_hub)
    assert original[1].questions == [("How?", "hot"), ("Is it?", "It is")]


def test_the_subset_rule_is_that_of_seal():
    expected = list(range(30))
    random.seed(42)
    random.shuffle(expected)
    assert subset(list(range(30)), 0, 30) == expected
    assert subset(list(range(30)), 5, 7) == expected[5:12]
    with pytest.raises(ValueError, match="passages 25 to 31 were asked for, and there are 30"):
        subset(list(range(30)), 25, 6)


def test_passages_of_one_title_are_one_cluster_and_keep_ids_of_their_own(tmp_path):
    path = written(tmp_path / "squad.json", ORIGINAL)
    source = open_source("squad", data_path=path, num_train=1, num_test=1)
    both = [*source.passages("train"), *source.passages("test")]
    assert {p.cluster for p in both} == {"Green tea"}
    assert {p.id for p in both} == {"squad/0", "squad/1"}
    assert len({q.id for p in both for q in p.questions}) == 3


@pytest.mark.parametrize("train", ["train.json", "squad_train.json", "train-v1.1.json"])
def test_a_folder_has_a_file_for_each_split(tmp_path, train):
    test = {"train.json": "test.json", "squad_train.json": "squad_val.json"}.get(
        train, "dev-v1.1.json"
    )
    written(tmp_path / train, [passage(f"T{i}", "c", ("q", "a")) for i in range(6)])
    written(tmp_path / test, [passage(f"V{i}", "c", ("q", "a")) for i in range(4)])
    source = open_source("squad", data_path=str(tmp_path), num_train=3, num_test=2, start=1)
    order = subset(range(6), 1, 3)
    assert [p.title for p in source.passages("train")] == [f"T{i}" for i in order]
    assert [p.title for p in source.passages("test")] == [f"V{i}" for i in subset(range(4), 1, 2)]
    ids = [p.id for split in ("train", "test") for p in source.passages(split)]
    assert len(set(ids)) == 5


def test_a_folder_without_both_files_is_refused(tmp_path):
    written(tmp_path / "train.json", [])
    with pytest.raises(FileNotFoundError, match=r"train-v1\.1\.json and dev-v1\.1\.json"):
        open_source("squad", data_path=str(tmp_path), num_train=1, num_test=1)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({}, "this is neither"),
        ([], "this is neither"),
        ([3], "[0]: an object is needed, got int"),
        ({"data": [3]}, 'data[0]: an object with a list "paragraphs" is needed'),
        ({"data": [{"title": "t", "paragraphs": [3]}]}, "data[0].paragraphs[0]: an object"),
        (
            {"data": [{"title": "t", "paragraphs": [{"context": "c", "qas": []}]}]},
            "data[0].paragraphs[0]: questions=[]",
        ),
        (
            {
                "data": [
                    {
                        "title": "t",
                        "paragraphs": [{"context": "c", "qas": [{"question": "q", "answers": []}]}],
                    }
                ]
            },
            "questions[0]={'question': 'q', 'answer': None}",
        ),
        (
            {"data": [{"title": "t", "paragraphs": [{"context": "c", "qas": {"a": 1}}]}]},
            "data[0].paragraphs[0]: questions={'a': 1}",
        ),
    ],
)
def test_malformed_files_are_refused_by_place(tmp_path, value, expected):
    path = written(tmp_path / "squad.json", value)
    with pytest.raises(ConfigError) as error:
        open_source("squad", data_path=path, num_train=0, num_test=1)
    assert expected in str(error.value)


def test_the_hub_is_asked_for_the_splits_that_are_needed(monkeypatch):
    asked = []
    rows = [
        {"title": "T_1", "context": f"c{i}", "question": "q", "answers": {"text": ["a", "b"]}}
        for i in range(5)
    ]

    def load_dataset(name, split):
        asked.append((name, split))
        return rows

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    source = open_source("squad", num_train=0, num_test=3)
    assert asked == [("rajpurkar/squad", "validation")]
    assert source.passages("train") == []
    assert {p.title for p in source.passages("test")} == {"T 1"}


def test_a_hub_that_cannot_be_reached_is_one_error(monkeypatch):
    def load_dataset(name, split):
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(ConfigError, match=r"could not be fetched .*\(offline\).* data_path="):
        open_source("squad", num_train=0, num_test=1)
