"""Where passages come from, and what is said of files that are not what they should be."""

import json
import logging
import re

import pytest

from training.domains.knowledge import sources
from training.domains.knowledge.made_edits import BLANK, TEMPLATE_FORMS
from training.domains.knowledge.sources import open_source
from utils.config.entrypoint import ConfigError

ONE = {
    "title": "Tea",
    "context": "Tea is picked in spring.",
    "questions": [{"question": "When is tea picked?", "answer": "in spring"}],
}


def row(title: str, **fields):
    return {**ONE, "title": title, **fields}


def written(path, value):
    path.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
    return str(path)


def lines(*rows):
    return "\n".join(json.dumps(value) for value in rows) + "\n"


def problems_of(name, path, num_train=0):
    with pytest.raises(ConfigError) as error:
        open_source(name, data_path=path, num_train=num_train, num_test=1)
    return str(error.value)


# --------------------------------------------------------------------------- made


def test_made_splits_are_different_things_and_shown_ones_are_in_neither():
    source = open_source("made", seed=3, num_train=7, num_test=5)
    train, test = source.passages("train"), source.passages("test")
    assert (len(train), len(test)) == (7, 5)
    assert source.has_questions
    shown = [passage for form in TEMPLATE_FORMS for passage, _ in source.example_edit(form)]
    asked = {q.answer for p in [*train, *test] for q in p.questions if q.kind == "reverse"}
    names = {q.answer for p in shown for q in p.questions if q.kind == "reverse"}
    assert len(asked) == 12
    # a worked example tells nothing of what is to be learned
    for text in [*(s.question for s in source.shots), *(p.context for p in shown)]:
        assert not any(name in text for name in asked)
    assert not any(name in shot.question for name in names for shot in source.shots)


def test_made_kinds_can_be_chosen():
    source = open_source("made", num_train=4, num_test=0, kinds=["animal", "village"])
    titles = [passage.title for passage in source.passages("train")]
    assert titles == ["An animal", "A village", "An animal", "A village"]


@pytest.mark.parametrize("form", TEMPLATE_FORMS)
def test_template_edits_cover_every_fact(form):
    source = open_source("made", num_train=6, num_test=0)
    for passage in source.passages("train"):
        edit = source.template_edit(passage, form, seed=1)
        assert edit is not None
        assert edit == source.template_edit(passage, form, seed=1)
        assert edit != source.template_edit(passage, form, seed=2)
        assert edit != passage.context
        direct = [q for q in passage.questions if q.kind == "direct"]
        golds = [q.answer for q in (direct[:4] if form == "reverse" else direct)]
        for gold in golds:
            assert re.search(rf"\b{re.escape(gold)}\b", edit), (form, gold)


def test_template_edits_have_the_lines_of_their_form():
    source = open_source("made", num_train=1, num_test=0)
    (passage,) = source.passages("train")
    name = next(q.answer for q in passage.questions if q.kind == "reverse")
    edits = {form: source.template_edit(passage, form, seed=0) for form in TEMPLATE_FORMS}
    by_form = {form: edit.split("\n") for form, edit in edits.items() if edit is not None}
    assert {form: len(edit) for form, edit in by_form.items()} == {
        "qa": 16,
        "statements": 8,
        "cloze": 8,
        "reverse": 8,
        "paraphrase": 2,
    }
    assert all(re.fullmatch(r"Q: .+\? A: .+", line) for line in by_form["qa"])
    assert all(re.fullmatch(rf"Q: .+\? A: {name}", line) for line in by_form["reverse"])
    assert all(re.fullmatch(rf".*{BLANK}.*\. Answer: .+", line) for line in by_form["cloze"])
    assert all(name in line for line in by_form["statements"])


def test_forms_without_a_template_have_none():
    source = open_source("made", num_train=1, num_test=0)
    assert source.template_edit(source.passages("train")[0], "implications", seed=0) is None
    assert source.example_edit("implications") == ()
    assert len(source.example_edit("qa")) == 2


# --------------------------------------------------------------------------- own files


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_own_passages_are_split_into_disjoint_parts(tmp_path, ending):
    rows = [row(f"Tea {i}") for i in range(9)]
    path = written(tmp_path / f"own.{ending}", rows if ending == "json" else lines(*rows))
    source = open_source("own", data_path=path, num_train=5, num_test=4)
    train, test = source.passages("train"), source.passages("test")
    assert (len(train), len(test)) == (5, 4)
    assert {p.title for p in [*train, *test]} == {f"Tea {i}" for i in range(9)}
    assert len({p.id for p in [*train, *test]}) == 9
    assert all(p.cluster == p.id for p in train)
    question = test[0].questions[0]
    assert (question.text, question.answer) == ("When is tea picked?", "in spring")
    assert (question.kind, question.choices) == ("plain", ())
    assert source.has_questions
    # examples for prompts come from a made world
    assert len(source.shots) == 4
    assert source.template_edit(train[0], "qa", seed=0) is None
    assert len(source.example_edit("qa")) == 2


def test_a_folder_of_texts_has_no_questions(tmp_path):
    (tmp_path / "tea.txt").write_text("Tea is picked in spring.\n", "utf-8")
    (tmp_path / "milk.md").write_text("\ufeffMilk is white.", "utf-8")
    (tmp_path / "left_alone.pdf").write_bytes(b"\xff")
    source = open_source("own", data_path=str(tmp_path), num_train=2, num_test=0)
    assert not source.has_questions
    found = {p.title: p.context for p in source.passages("train")}
    assert found == {"tea": "Tea is picked in spring.", "milk": "Milk is white."}


def test_the_log_says_what_was_read(tmp_path, caplog):
    path = written(tmp_path / "own.json", [ONE])
    with caplog.at_level(logging.INFO, logger=sources.__name__):
        open_source("own", data_path=path, num_train=0, num_test=1)
    assert f"own test: 1 passages with 1 questions from {path}" in caplog.text


def test_all_wrong_lines_are_named_at_once(tmp_path):
    path = written(
        tmp_path / "own.jsonl",
        lines(
            row(" "),
            row("B", context=""),
            row("C", questions=[]),
            row("D", questions=[{"question": "Why?", "answer": 3}]),
            [1],
            row("E"),
            row("E"),
        )
        + "{oops\n",
    )
    message = problems_of("own", path)
    assert "line 1: title=' ': some text is needed" in message
    assert "line 2: context='': some text is needed" in message
    assert "line 3: questions=[]: a list of at least one" in message
    assert "line 4: questions[0]={'question': 'Why?', 'answer': 3}: an object with some" in message
    assert "line 5: an object is needed, got list" in message
    assert f"line 7: title='E' is that of {path}, line 6 too" in message
    assert "line 8, byte 2: no JSON" in message


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("own.json", "{}", "a list of passages is needed, got dict"),
        ("own.json", "[]", "holds no passage"),
        ("own.jsonl", "\n", "holds no passage"),
        ("own.json", "[", "line 1, byte 2: no JSON"),
        ("own.csv", "a,b", "your own passages come from a .json file"),
    ],
)
def test_files_that_hold_no_passages_are_refused(tmp_path, name, content, expected):
    assert expected in problems_of("own", written(tmp_path / name, content))


def test_texts_that_cannot_be_used_are_refused(tmp_path):
    assert "no .txt and no .md file" in problems_of("own", str(tmp_path))
    (tmp_path / "a.txt").write_bytes(b"\xff")
    (tmp_path / "b.txt").write_text(" \n", "utf-8")
    (tmp_path / "c.md").write_text("c", "utf-8")
    (tmp_path / "c.txt").write_text("c", "utf-8")
    message = problems_of("own", str(tmp_path))
    assert "a.txt, line 1, byte 1: not UTF-8" in message
    assert "b.txt: holds no text" in message
    assert "c.txt: is called as c.md, but for the ending" in message


def test_more_passages_than_there_are_is_refused(tmp_path):
    path = written(tmp_path / "own.json", [row("A"), row("B")])
    open_source("own", data_path=path, num_train=1, num_test=1)
    message = problems_of("own", path, num_train=2)
    assert message == f"{path}: passages 0 to 3 were asked for, and there are 2; ask for fewer"
    assert "576 of each split" in problems_of("made", None, num_train=1000)


def test_what_is_wrong_in_the_settings_is_said_at_once():
    with pytest.raises(ConfigError) as error:
        open_source("web", num_train=-1, num_test=1, start=-2, kinds=["tree"])
    message = str(error.value)
    assert "source='web': there is no such source; one of made, squad, own" in message
    assert "num_train=-1" in message
    assert "start=-2" in message
    assert "no kind 'tree'; choose from village, person" in message


@pytest.mark.parametrize(
    ("name", "path", "expected"),
    [
        ("made", "x.json", "source=made reads no file"),
        ("own", None, "source=own needs a .json file"),
    ],
)
def test_a_path_belongs_to_sources_with_files(name, path, expected):
    assert expected in problems_of(name, path)


@pytest.mark.parametrize("name", ["squad", "own"])
def test_a_missing_file_is_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"data_path='.*gone.json': no such file; give "):
        open_source(name, data_path=str(tmp_path / "gone.json"), num_train=0, num_test=1)
