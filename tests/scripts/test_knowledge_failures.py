"""What fails in a part of a run on passages is counted, and the others go on: nothing that was done
is lost. What cannot do at all is refused before (test_every_script.py).

uv run pytest tests/scripts/test_knowledge_failures.py
"""

import csv
import json
from pathlib import Path
from typing import Any

import continual
import knowledge
import pytest
import rl_loop
from tiny_chat import save_chat_model

from utils.config.entrypoint import config_entrypoint
from utils.llm.roles import OPENROUTER_KEY
from utils.runs.files import read_jsonl

pytestmark = pytest.mark.usefixtures("one_torch_thread")

ASKED = [{"question": "Who is there?", "answer": "Ann"}]
SHORT = [
    {"title": f"Town {name}", "context": f"{name} has Ann.", "questions": ASKED}
    for name in ("Rehu", "Tolm")
]
# longer than the model's context of 4096 tokens, one a letter
LONG = {"title": "Town Gark", "context": "Gark has Ann. " * 400, "questions": ASKED}
SMALL = ("model_name=model", "source=own", "data_path=rows.json", "preset=small", "inner_rank=2")
SMALL += ("inner_epochs=1", "max_answer_tokens=3", "max_tokens=8", "log_path=r")


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPENROUTER_KEY, "")
    monkeypatch.chdir(tmp_path)
    save_chat_model(Path("model"), favourites="Ane ")


def write(name: str, rows: list[Any]) -> None:
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    Path(name).write_text(json.dumps(rows) if name.endswith(".json") else lines, encoding="utf-8")


def table_of(*arguments: str) -> dict[str, dict[str, str]]:
    """The rows of a finished knowledge.py."""
    config_entrypoint(knowledge.main, [*SMALL, "passage_epochs=1", 'forms=["none"]', *arguments])
    with open("r/table.csv", encoding="utf-8", newline="") as file:
        return {row["row"]: row for row in csv.DictReader(file)}


def learned(*arguments: str) -> dict[str, Any]:
    """What continual.py has of the method merge in one sequence of two passages."""
    given = (*SMALL, "n_passages=2", "n_sequences=1", "n_untouched=0", "method=merge")
    config_entrypoint(continual.main, [*given, "edits_file=edits.jsonl", "form=qa", *arguments])
    return json.loads(Path("r/results.json").read_text(encoding="utf-8"))["methods"]["merge"]


def reinforced(*arguments: str) -> list[dict[str, Any]]:
    """The samples of a finished rl_loop.py."""
    rl_loop.entrypoint(
        [
            *("domain=knowledge", *SMALL, "form=none", "num_train_passages=2", "repeats=2"),
            *("num_test_passages=1", "num_steps=1", "groups_per_batch=2", "group_size=1"),
            *("lora_rank=2", *arguments),
        ]
    )
    return read_jsonl("r/samples.jsonl")


def test_what_cannot_be_read_or_trained_on_is_missing_or_has_failed() -> None:
    write("rows.json", [*SHORT, LONG])
    edits = [{"title": r["title"], "edit": "Q: Who lives there? A: Ann"} for r in (*SHORT, LONG)]
    write("edits.jsonl", edits)
    rows = table_of(
        *('rows=["passage","model","generator","file","distillation"]', "edits_file=edits.jsonl"),
        *("generator.model=./model", "generator.max_tokens=8"),
    )
    counts = {
        name: tuple(int(row[f"num_{kind}"]) for kind in ("runs", "failed", "missing"))
        for name, row in rows.items()
    }
    assert counts == {
        "closed-book": (3, 0, 0),
        # as a text it is too long
        "passage": (2, 1, 0),
        # and so nobody writes about it: two edits of each are wanted
        "model-none": (4, 0, 2),
        "generator": (4, 0, 2),
        # there is an edit of each, to be trained with its passage, and a second one of none
        "file": (2, 1, 3),
        "distillation": (2, 0, 1),
    }


def test_one_adapter_for_all_needs_all_to_fit(capsys: pytest.CaptureFixture[str]) -> None:
    write("rows.json", [*SHORT, LONG])
    with pytest.raises(SystemExit) as ended:
        table_of('rows=["passage"]', "setting=cpt")
    assert ended.value.code == 2 and not Path("r").exists()
    told = capsys.readouterr().err
    assert "('Town Gark'): 5609 tokens to train on; the model's context is 4096" in told


def test_other_passages_that_cannot_be_read_teach_no_skill() -> None:
    """The row fails, the others do not."""
    write("rows.json", [{**LONG, "title": f"Town {i}"} for i in range(2)])
    rows = table_of('rows=["closed-book","skill"]', "skill_passages=1", "n_passages=1")
    assert rows["closed-book"]["num_questions"] == "1"
    assert (rows["skill"]["num_runs"], rows["skill"]["num_failed"]) == ("0", "1")


def test_rl_loop_leaves_a_passage_over_the_context_out() -> None:
    write("rows.json", [*SHORT, LONG])
    samples = reinforced()
    assert len(samples) == 4 and len({s["problem"] for s in samples}) == 2
    assert all("trained tokens" in s["note"] for s in samples)


@pytest.mark.parametrize("edit", ["", "no line of the form"])
def test_edits_that_are_none_are_counted(edit: str) -> None:
    write("rows.json", SHORT)
    write(
        "edits.jsonl",
        [{"title": "Town Rehu", "edit": edit}, {"title": "Town Tolm", "edit": "Q: Who? A: Ann"}],
    )
    found = learned()
    assert found["edits_failed"] == 1 and found["failed"] == []


def test_no_edit_at_all_is_counted_too() -> None:
    write("rows.json", SHORT)
    write("edits.jsonl", [{"title": r["title"], "edit": " "} for r in SHORT])
    rows = table_of('rows=["passage","file"]', "edits_file=edits.jsonl")
    assert (rows["file"]["num_missing"], rows["file"]["num_runs"]) == ("4", "0")
    assert rows["passage"]["num_questions"] == "2"


def test_a_wild_learning_rate_leaves_the_other_rows(caplog: pytest.LogCaptureFixture) -> None:
    """For real: weights that are no numbers after the first step."""
    write("rows.json", [*SHORT, {**SHORT[0], "title": "Town Vind", "context": "Vind is old."}])
    write("edits.jsonl", [{"title": r["title"], "edit": "Q: Who? A: Ann"} for r in SHORT])
    rows = table_of(
        *('rows=["passage","model","file","distillation","skill","equal-passage"]', "k=1"),
        *("edits_file=edits.jsonl", "inner_learning_rate=1e30", "passage_learning_rate=1e-3"),
        *("n_passages=2", "skill_passages=1"),
    )
    failed = {name for name, row in rows.items() if row["num_failed"] != "0"}
    # the skill is partly made of edits
    assert failed == {"model-none", "file", "distillation", "skill"}
    for name, row in rows.items():
        assert (row["accuracy"] == "") == (name in failed), name
    assert any("not numbers" in message for message in caplog.messages)


def test_a_wild_learning_rate_earns_nothing() -> None:
    write("rows.json", [*SHORT, {**SHORT[0], "title": "Town Vind"}])
    samples = reinforced("inner_learning_rate=1e30")
    assert len(samples) == 4
    for sample in samples:
        runs = 1 if sample["kind"] == "eval" else 2
        told = f"{runs} of {runs} inner runs failed: the model's logits are not numbers"
        assert told in sample["note"]
        assert (sample["reward"], sample["solved"]) == (0.0, False)
    assert "no self-edit was carried out" in Path("r/report.html").read_text(encoding="utf-8")
