"""The three scripts of passages on SQuAD's own passages, on a tiny model.

uv run pytest tests/scripts/test_knowledge_squad.py
"""

import json
from pathlib import Path
from typing import Any

import continual
import knowledge
import pytest
import rl_loop
from places import SHARED_DATA
from tiny_chat import save_chat_model

from training.domains.knowledge.seal_files import seal_item, write_completions
from training.domains.knowledge.seal_runs import read_run
from training.domains.knowledge.sources import open_source
from utils.config.entrypoint import config_entrypoint
from utils.llm.roles import OPENROUTER_KEY

SQUAD = SHARED_DATA / "squad" / "squad_val.json"
# the first of SEAL's 200 evaluation passages
FIRST = SHARED_DATA / "squad" / "squad_val_seed42_first200.json"
GIVEN = ("model_name=model", "source=squad", f"data_path={SQUAD}", "preset=small", "inner_rank=2")
GIVEN += ("inner_epochs=1", "max_answer_tokens=3", "max_tokens=8")

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.skipif(not SQUAD.is_file(), reason="needs SQuAD's passages"),
]


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPENROUTER_KEY, "")
    monkeypatch.chdir(tmp_path)
    save_chat_model(Path("model"), favourites="Aent ")


def first(number: int) -> list[dict[str, Any]]:
    return json.loads(FIRST.read_text(encoding="utf-8"))[:number]


def test_knowledge_asks_about_seals_passages(capsys: pytest.CaptureFixture[str]) -> None:
    source = open_source("squad", data_path=str(SQUAD), num_train=0, num_test=3)
    items = [
        seal_item(passage, [f"Question 1: What is it?\nAnswer: {passage.title}"], "")
        for passage in source.passages("test")
    ]
    write_completions(Path("edits.json"), items)
    rows = ["in-context", "bm25", "passage", "file", "other", "distillation"]
    config_entrypoint(
        knowledge.main,
        [
            *(*GIVEN, "n_passages=3", "k=1", "documents=seal", "passage_epochs=1", "log_path=r"),
            *(f"rows={json.dumps(rows)}", "edits_file=edits.json", "choices=false"),
        ],
    )
    report = read_run(Path("r/seal/file.json"))
    known = first(3)
    assert [(a.title, a.context) for a in report.articles] == [
        (item["title"], item["context"]) for item in known
    ]
    for article, item in zip(report.articles, known, strict=True):
        [edit] = article.completions
        assert [q.question for q in edit.questions] == [q["question"] for q in item["questions"]]
        assert [q.answer for q in edit.questions] == [q["answer"] for q in item["questions"]]
    assert report.settings["lora_params"]["rank"] == 2
    results = json.loads(Path("r/results.json").read_text(encoding="utf-8"))["rows"]
    total = sum(len(item["questions"]) for item in known)
    assert {row["name"]: row["num_questions"] for row in results} == dict.fromkeys(
        ["closed-book", *rows], total
    )
    assert all(row["num_failed"] == row["num_missing"] == 0 for row in results)


def test_rl_loop_plans_on_seals_passages(capsys: pytest.CaptureFixture[str]) -> None:
    rl_loop.entrypoint(
        [
            *("domain=knowledge", *GIVEN, "form=implications", "edit_prompt=raw", "lora_rank=2"),
            *("num_train_passages=3", "num_test_passages=2", "groups_per_batch=2", "group_size=2"),
            *("num_steps=1", "repeats=2", "dry_run=true"),
        ]
    )
    assert "Nothing was written." in capsys.readouterr().out
    assert [path.name for path in Path().iterdir()] == ["model"]


def test_continual_plans_on_all_of_seals_passages(capsys: pytest.CaptureFixture[str]) -> None:
    given = ("n_passages=2", "n_sequences=2", "edits=model", "form=implications")
    config_entrypoint(
        continual.main, [*GIVEN, *given, "edit_prompt=raw", "method=merge", "dry_run=true"]
    )
    told = capsys.readouterr().out
    assert "merge" in told and "Nothing was written." in told
