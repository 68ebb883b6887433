"""training/domains/knowledge/seal_files.py and seal_runs.py: SEAL's files, read, written and
computed again from the answers in them."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from places import SHARED_DATA

from training.domains.knowledge.inner import preset
from training.domains.knowledge.passages import Passage, Question
from training.domains.knowledge.seal_cpt import CptArticle, write_cpt_run
from training.domains.knowledge.seal_files import (
    SealItem,
    SealQuestion,
    SftRow,
    best_of,
    edits_for,
    read_completions,
    read_rows,
    seal_item,
    write_completions,
    write_rows,
)
from training.domains.knowledge.seal_runs import (
    SealAnswer,
    article,
    best_rows,
    read_run,
    scored_edit,
    seal_answers,
    seal_run,
    write_run,
)
from training.domains.knowledge.seal_settings import seal_settings
from utils.config.entrypoint import dump_yaml
from utils.config.errors import ConfigError

RESULTS = SHARED_DATA / "seal_results" / "query_server"
RANKED = RESULTS / "train" / "rank_iter0.json"
ROWS = SHARED_DATA / "squad" / "EM_SFT" / "sft_best1of5_iter0.jsonl"

QUESTION = Question("q1", "Where?", "Oslo", aliases=("Kristiania",))
PASSAGE = Passage("p1", "The lab", "It is in Osló.", (QUESTION,), "p1")
ITEM = SealItem(
    "The lab", "It is in Osló.", (SealQuestion("Where?", "Oslo"),), ("One.", ""), "Read:"
)


def record(**values: Any) -> dict[str, Any]:
    """ITEM as in a file, with other values; None for a key that is not there."""
    plain = {**json.loads(json.dumps(asdict(ITEM))), **values}
    return {key: value for key, value in plain.items() if value is not None}


# ----------------------------------------------------------------------------------- completions


def test_completions_there_and_back(tmp_path: Path) -> None:
    path = tmp_path / "edits.json"
    assert seal_item(PASSAGE, ["One.", ""], "Read:") == ITEM
    write_completions(path, [ITEM], {"model": "some-model", "k": 2})
    assert "Osló" in path.read_text(encoding="utf-8")
    assert read_completions(path) == [ITEM]
    assert json.loads((tmp_path / "edits.json.meta").read_text()) == {"model": "some-model", "k": 2}
    path.write_text(json.dumps([record(entities=["x"])]))
    assert read_completions(path) == [ITEM]


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"articles": []}, "edits.json: Input should be a valid array"),
        ([], "edits.json: no passages in it"),
        ([record(prompt=None)], "edits.json, [0].prompt: Field required"),
        ([record(), record(completions="x")], "edits.json, [1].completions: Input should be a"),
        (
            [record(questions=[{"question": "Q", "answer": 3}])],
            "edits.json, [0].questions[0].answer: Input should be a valid string",
        ),
        ([record(context=" \n")], "edits.json, [0].context: empty; every passage"),
        ([record(), record(prompt="2")], "edits.json, [1]: the same passage as [0]"),
    ],
)
def test_what_is_no_file_of_completions(tmp_path: Path, value: Any, problem: str) -> None:
    path = tmp_path / "edits.json"
    path.write_text(json.dumps(value))
    with pytest.raises(ConfigError) as caught:
        read_completions(path)
    [told] = caught.value.problems
    assert told.removeprefix(f"{tmp_path}/").startswith(problem)


def test_edits_are_found_by_title_and_text() -> None:
    other = Passage("p2", "The lab", "Another text.", (QUESTION,), "p2")
    items = [
        replace(ITEM, context="Another text.", completions=("Two.",)),
        replace(ITEM, context="Of no passage here.", completions=("Three.",)),
        replace(ITEM, context="It is in Osló.\n"),
    ]
    assert edits_for([PASSAGE, other], items, "edits.json") == [["One.", ""], ["Two."]]
    message = r"edits.json: no self-edit of 1 of 2 passages \('The lab'\); give the file"
    with pytest.raises(ConfigError, match=message):
        edits_for([PASSAGE, other], items[1:], "edits.json")
    with pytest.raises(ConfigError, match="no self-edit of 1 of 1"):
        edits_for([PASSAGE], [replace(ITEM, completions=())], "edits.json")


# ------------------------------------------------------------------------------------------- rows


@pytest.mark.parametrize(
    ("rewards", "count", "best"),
    [
        ([0.2, 0.5, 0.5, 0.1], 1, [1]),
        ([0.2, 0.5, 0.5, 0.5], 3, [1, 2, 3]),
        ([0.2, None, 0.1], 5, [0, 2]),
        ([None, None], 1, []),
        ([0.0], 1, [0]),
    ],
)
def test_of_equal_rewards_the_first_is_best(
    rewards: list[float | None], count: int, best: list[int]
) -> None:
    assert best_of(rewards, count) == best


def test_rows_that_are_none(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_rows(path, [SftRow("é\u2028", "b\n")])
    assert read_rows(path) == [SftRow("é\u2028", "b\n")]
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n')
    with pytest.raises(ConfigError, match=r"rows.jsonl, line 2, completion: Field required"):
        read_rows(path)


# ------------------------------------------------------------------------------------------- runs


def answered(rep: int, before: bool | None, after: bool | None) -> SealAnswer:
    return SealAnswer(rep, "Where?", "Oslo", "x", "y", before, after)


def test_the_answers_of_an_inner_run() -> None:
    passage = replace(PASSAGE, questions=(QUESTION, Question("q2", "Who?", "Ann")))
    answers = seal_answers(passage, 1, (["a", "b"], [False, None]), (["c", "d"], [True, False]))
    assert answers == [
        SealAnswer(1, "Where?", "Oslo", "a", "c", False, True),
        SealAnswer(1, "Who?", "Ann", "b", "d", None, False),
    ]
    with pytest.raises(ValueError, match="zip"):
        seal_answers(passage, 1, (["a"], [False]), (["c"], [True]))


def test_an_answer_without_a_verdict_is_in_no_mean(tmp_path: Path) -> None:
    answers = [
        *(answered(0, False, True), answered(0, True, None)),
        *(answered(1, None, False), answered(1, True, False)),
        answered(2, None, None),
    ]
    first = scored_edit("One.", answers)
    assert asdict(first.stats) == {
        "baseline_mean": 0.75,
        "baseline_std": pytest.approx(0.125**0.5),
        "adapter_mean": 0.5,
        "adapter_std": pytest.approx(0.5**0.5),
        "gain_mean": (0.5 - 1) / 2,
    }
    failed = scored_edit("Two.", [answered(0, None, None)])
    assert set(asdict(failed.stats).values()) == {None}
    run = seal_run([article("The lab", "Text.", "Read:", [failed, first])], {"exp_name": "mine"})
    counts = {"n_articles": 1, "k_completions": 2, "eval_times": 3}
    assert run.settings == {"exp_name": "mine", **counts}
    assert (run.overall.adapter_mean_accuracy, run.overall.mean_gain) == (0.5, -0.25)
    assert best_rows(run, 2) == [SftRow("Read:", "One.")]
    write_run(tmp_path / "run.json", run)
    assert read_run(tmp_path / "run.json") == run


def test_a_run_of_another_layout(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    edit = scored_edit("E", [answered(0, True, True)])
    write_run(path, seal_run([article("T", "C", "P", [edit])], {}))
    text = path.read_text()
    assert read_run(path).articles[0].title == "T"
    path.write_text(text.replace('"adapter_correct": true', '"adapter_correct": "yes"'))
    with pytest.raises(ConfigError) as caught:
        read_run(path)
    [problem] = caught.value.problems
    place = "articles[0].completions[0].questions[0].adapter_correct"
    assert problem == f"{path}, {place}: Input should be a valid boolean"


# ---------------------------------------------------------------------------- against SEAL's files


@pytest.mark.skipif(not RANKED.is_file(), reason="needs SEAL's released results")
def test_best_of_five_gives_seals_own_rows(tmp_path: Path) -> None:
    rows = best_rows(read_run(RANKED))
    assert len(rows) == 50
    write_rows(tmp_path / "rows.jsonl", rows)
    assert (tmp_path / "rows.jsonl").read_bytes() == ROWS.read_bytes()
    assert read_rows(ROWS) == rows


@pytest.mark.skipif(not RESULTS.is_dir(), reason="needs SEAL's released results")
def test_seals_statistics_out_of_its_answers() -> None:
    paths = sorted(RESULTS.glob("*/*.json"))
    assert len(paths) == 6
    for path in paths:
        released = read_run(path)
        again = seal_run(
            [
                article(
                    *(item.title, item.context, item.prompt),
                    [scored_edit(edit.text, edit.questions) for edit in item.completions],
                )
                for item in released.articles
            ],
            released.settings,
        )
        assert again.overall == released.overall
        assert again.settings == released.settings
        for mine, theirs in zip(again.articles, released.articles, strict=True):
            assert mine.stats == theirs.stats
            for edit, edit_there in zip(mine.completions, theirs.completions, strict=True):
                assert asdict(edit.stats) == pytest.approx(asdict(edit_there.stats), abs=1e-12)


# ------------------------------------------------------------------------- continued pretraining


def test_the_report_of_many_passages_in_one_adapter(tmp_path: Path) -> None:
    """By hand: of three questions one is gained, one lost, and one has no verdict afterwards. Two
    passages share a title."""
    path = tmp_path / "file.cpt-0.json"
    articles = [
        CptArticle("The lab", ["no", "Oslo"], [False, True], ["Oslo", "no"], [True, False]),
        CptArticle("The lab", ["no"], [False], ["?"], [None]),
    ]
    about = {"timestamp": "0102_030405", "dataset": "own", "n_articles": 2, "k_completions": 5}
    write_cpt_run(path, articles, about, train_sequences=12)
    means = {"baseline_accuracy": 0.3333, "adapter_accuracy": 0.5}
    # 1/2 - 1/3, of what is not rounded yet
    assert json.loads(path.read_text(encoding="utf-8")) == {
        "overall": {**means, "gain": 0.1667},
        **about,
        "per_article": {
            "The lab": {
                "baseline_correct": [False, True, False],
                "adapter_correct": [True, False, None],
            }
        },
        "train_sequences": 12,
        "eval_questions": 3,
        "server_reply": {
            **{**means, "adapter_gain": 0.1667},
            "baseline_texts": ["no", "Oslo", "no"],
            "adapter_texts": ["Oslo", "no", "?"],
            "baseline_correct": [False, True, False],
            "adapter_correct": [True, False, None],
            "gains": [1, -1, None],
        },
    }


def test_what_a_report_says_of_its_run(tmp_path: Path) -> None:
    started = "2026-03-04T05:06:07+00:00"
    dump_yaml(tmp_path / "config.yaml", {"meta": {"started": started}})
    settings = preset("seal", base_model="m")
    about = seal_settings(tmp_path, settings, dataset="own", split_newlines=False, num_epochs=3)
    assert about == {
        **{"timestamp": "0304_050607", "dataset": "own", "split_newlines": False},
        "lora_params": {
            **{"rank": 32, "alpha": 64.0, "dropout": 0.0, "epochs": 3, "lr": 1e-3},
            **{"batch_size": 1, "grad_accum_steps": 1},
        },
    }
