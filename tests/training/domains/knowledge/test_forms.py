"""Self-edits: their prompts, what is read in a model's text, and the grammars of the small ones."""

import json
from typing import Any

import pytest
from tiny_chat import chat_tokenizer

from training.api import SamplingParams
from training.backends.local.constraint import ConstraintFactory
from training.chat import parse_response
from training.domains.knowledge.edit_grammars import (
    FORMS_WITH_GRAMMAR,
    answer_spans,
    grammar_of,
    name_spans,
)
from training.domains.knowledge.edit_parsing import EditError, ParsedEdit, parse_edit
from training.domains.knowledge.forms import FORMS, Choices, EditPrompts
from training.domains.knowledge.passages import Passage
from training.domains.knowledge.sources import open_source
from training.rl.policy import Policy
from utils.config.errors import ConfigError

TEXT = "Vumor lies by St. Arne. The mill of Vumor grinds oats since 1432. It is old."
PASSAGE = Passage("p1", "Vumor", TEXT, (), "p1")
SHOWN = Passage("s1", "Other", "Other is far.", (), "s1")
SEAL = {"implications", "implications-long", "implications-very-long", "rewrite", "self-qa"}


def examples(form: str) -> tuple[tuple[Passage, str], ...]:
    second = Passage("s2", "Third", "Third is near.", (), "s2")
    return ((SHOWN, f"an edit in {form}"), (second, f"another in {form}"))


# ---------------------------------------------------------------------------------------- prompts


def test_all_forms_are_there() -> None:
    own = {"qa", "statements", "cloze", "reverse", "pairs"}
    assert set(FORMS) == SEAL | own | {"chain-of-thought", "none"}
    assert set(FORMS_WITH_GRAMMAR) == {"qa", "statements", "cloze", "reverse"}
    tasks = [form.task for name, form in FORMS.items() if name != "none"]
    assert len(set(tasks)) == len(tasks)


@pytest.mark.parametrize("form", [*FORMS, "model"])
def test_a_raw_prompt_ends_where_the_edit_begins_and_a_chat_with_the_passage(form: str) -> None:
    raw = EditPrompts(form, prompt_form="raw", example_edit=lambda _: ()).problem(PASSAGE)
    chat = EditPrompts(form, example_edit=lambda _: ()).problem(PASSAGE, grammar="g")
    assert raw.raw is not None and chat.raw is None
    assert (raw.id, raw.data, raw.grammar) == ("p1", PASSAGE, None)
    assert (chat.id, chat.data, chat.grammar) == ("p1", PASSAGE, "g")
    assert [message["role"] for message in chat.messages] == ["user"]
    assert chat.messages[0]["content"].endswith(TEXT)
    assert raw.raw.text.count(TEXT) == 1 and raw.raw.text.split(TEXT)[1].startswith("\n\n")
    header = {"model": "Notes:"}.get(form) or FORMS[form].header
    assert raw.raw.text.rstrip("\n").endswith(header or TEXT)
    # a blank at the end would be cut from the first word
    assert not raw.raw.text.endswith(" ")


def test_worked_examples_come_before_the_passage() -> None:
    raw = EditPrompts("qa", prompt_form="raw", example_edit=examples).raw(PASSAGE)
    order = ["Title: Other", "an edit in qa", "Title: Third", "another in qa", "Title: Vumor"]
    places = [raw.text.index(part) for part in order]
    assert places == sorted(places)
    assert raw.text.split("Title: Vumor")[1] == f"\nText: {TEXT}\n\n{FORMS['qa'].header}\n"
    # the next example that a model invents
    assert any(stop in "\n\nTitle: Fourth" for stop in raw.stop)
    chat = EditPrompts("qa", example_edit=examples).messages(PASSAGE)
    assert [m["role"] for m in chat] == ["user", "assistant"] * 2 + ["user"]
    assert [m["content"] for m in chat[1::2]] == ["an edit in qa", "another in qa"]
    # what to do is told once, it is longer than a passage
    asked = [message["content"] for message in chat[::2]]
    assert asked[0] == f"{FORMS['qa'].task}\n\nTitle: Other\nText: Other is far."
    assert asked[-1] == f"Title: Vumor\nText: {TEXT}"


def test_the_examples_of_form_model_differ_in_form_and_begin_with_their_head() -> None:
    choices = Choices(("qa", "rewrite", "cloze"), (0.1, 0.2))
    chat = EditPrompts("model", example_edit=examples, choices=choices).messages(PASSAGE)
    told = [message["content"] for message in chat[1::2]]
    assert [parse_edit(text, "model", choices=choices).form for text in told[1:]] == ["rewrite"]
    heads = [json.loads(text.split("\n")[0]) for text in told]
    assert [head["form"] for head in heads] == ["qa", "rewrite"]
    assert {head["learning_rate"] for head in heads} == {0.1, 0.2}
    for form in choices.forms:
        assert FORMS[form].task in chat[0]["content"]
    assert FORMS["statements"].task not in chat[0]["content"]


def test_the_examples_of_made_worlds_are_edits_of_their_forms() -> None:
    source = open_source("made", num_train=1, num_test=1)
    for form in FORMS_WITH_GRAMMAR:
        shown = source.example_edit(form)
        assert len(shown) == 2
        for _, edit in shown:
            parsed = parse_edit(edit, form)
            assert (parsed.text, parsed.num_dropped) == (edit, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EditPrompts("poem"), "form='poem': there is no such form; allowed are impl"),
        (lambda: parse_edit("x", "poem"), "form='poem'"),
        (lambda: grammar_of(PASSAGE, "poem"), "form='poem'"),
        (lambda: Choices(forms=("qa", "poem")), r"\['poem'\] cannot be"),
        (lambda: Choices(forms=("none",)), r"\['none'\] cannot be"),
        (lambda: Choices(forms=()), r"model_forms=\[\]: one or more .*each once"),
        (lambda: Choices(learning_rates=(0.1, 0.1)), "between 0 and 1, each once"),
        (lambda: Choices(learning_rates=(0.0,)), "between 0 and 1"),
    ],
)
def test_wrong_forms_and_choices_are_refused(make: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


# ---------------------------------------------------------------------------------------- parsing


@pytest.mark.parametrize(
    ("written", "form", "parsed"),
    [
        (" a\n\nb \n", "implications", ParsedEdit("implications", None, "a\n\nb")),
        (
            "Q: Who? A: Ada\nand so on\nQ: Why? A: so\nQ: Where? A:",
            "qa",
            ParsedEdit("qa", None, "Q: Who? A: Ada\nQ: Why? A: so", 2),
        ),
        ("A ____ b. Answer: c\nA b.", "cloze", ParsedEdit("cloze", None, "A ____ b. Answer: c", 1)),
        ("It is old.\nIt is", "statements", ParsedEdit("statements", None, "It is old.", 1)),
        (
            "Hm.\nConclusions:\na\nb",
            "chain-of-thought",
            ParsedEdit("chain-of-thought", None, "a\nb"),
        ),
        ("Hm.\nConclusions: a", "chain-of-thought", ParsedEdit("chain-of-thought", None, "a")),
        ("A; B\nRelations:\nA, B: near", "pairs", ParsedEdit("pairs", None, "A, B: near")),
        (
            '{"form": "reverse", "learning_rate": 0.001}\nQ: Who? A: Ada',
            "model",
            ParsedEdit("reverse", 0.001, "Q: Who? A: Ada"),
        ),
    ],
)
def test_what_counts_of_a_text(written: str, form: str, parsed: ParsedEdit) -> None:
    assert parse_edit(written, form) == parsed


@pytest.mark.parametrize(
    ("written", "form", "message"),
    [
        (" \n", "rewrite", "empty"),
        ("Q: Who?\nMe", "qa", "form qa: none of 2 lines is one, 'Q: Who"),
        ("A ____ b.", "cloze", "form cloze: none of 1 lines"),
        ("Just thoughts.", "chain-of-thought", "no line 'Conclusions:'"),
        ("Thoughts.\nConclusions:\n ", "chain-of-thought", "nothing was written"),
        ("A; B", "pairs", "no line 'Relations:'"),
        ("Q: Who? A: Ada", "model", "the first line is no JSON"),
        ('{"form": "qa"}\nQ: Who? A: Ada', "model", "form and learning_rate alone"),
        ('["form", "learning_rate"]\nx', "model", "form and learning_rate alone"),
        ('{"form": "qa", "form": "qa", "learning_rate": 0.001}\nx', "model", "no JSON"),
        ('{"form": "poem", "learning_rate": 0.001}\nx', "model", "form 'poem' is none of qa, "),
        ('{"form": ["qa"], "learning_rate": 0.001}\nx', "model", r"form \['qa'\] is none"),
        ('{"form": "qa", "learning_rate": 1.0}\nx', "model", "learning_rate 1.0 is none of 0.0003"),
        ("[" * 10_000 + "\nx", "model", "the first line is no JSON"),
        ('{"form": "qa", "learning_rate": true}\nx', "model", "learning_rate True is none"),
        ('{"form": "qa", "learning_rate": "0.001"}\nx', "model", "learning_rate '0.001'"),
        ('{"form": "qa", "learning_rate": 0.001}', "model", "form qa: nothing was written"),
    ],
)
def test_what_is_no_edit_says_why(written: str, form: str, message: str) -> None:
    with pytest.raises(EditError, match=message):
        parse_edit(written, form)


# --------------------------------------------------------------------------------------- grammars


def fits(passage: Passage, form: str, text: str, **settings: Any) -> bool:
    """Whether a tokenizer of bytes can write `text`, and end after it."""
    tokenizer = chat_tokenizer()
    grammar = grammar_of(passage, form, **settings)
    held = ConstraintFactory(tokenizer, len(tokenizer), tokenizer.eos_token_id)(
        SamplingParams(grammar=grammar)
    )
    for token in tokenizer.encode(text):
        if not held.allowed()[token]:
            return False
        held.accept(token)
    return held.finished or bool(held.allowed()[tokenizer.eos_token_id])


def test_the_spans_of_a_passage() -> None:
    answers = answer_spans(TEXT)
    assert {"Vumor", "Vumor lies by St. Arne", "mill of Vumor grinds oats", "1432"} <= set(answers)
    # none across sentences, none with words at an end that tell nothing, none of six words
    assert not {"of", "of Vumor", "Arne. The mill", "lies by", "It is"} & set(answers)
    assert all(answer in TEXT and len(answer.split()) <= 5 for answer in answers)
    # "The" and "It" have their capitals from their places
    assert name_spans(PASSAGE) == ["Vumor", "St. Arne", "1432"]
    assert answer_spans("he is so") == ["he", "he is", "he is so", "is", "is so", "so"]
    assert answer_spans("!!! -") == []


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("qa", "Q: What does the mill of Vumor grind? A: oats"),
        ("qa", "Q: Since when does a mill stand in Vumor? A: 1432\nQ: Where is Vumor? A: St. Arne"),
        ("statements", "The mill of Vumor is old.\nVumor has one since 1432."),
        ("cloze", "The mill of Vumor grinds ____ since 1432. Answer: oats"),
        ("cloze", "____ lies by St. Arne. Answer: Vumor"),
        ("reverse", "Q: Which place has a mill since 1432? A: Vumor"),
        ("reverse", "Q: Which place has a mill? A: St. Arne"),
        ("model", '{"form": "qa", "learning_rate": 0.001}\nQ: Where is Vumor? A: St. Arne'),
    ],
)
def test_edits_that_a_grammar_lets_through_are_parsed_whole(form: str, text: str) -> None:
    assert fits(PASSAGE, form, text)
    assert parse_edit(text, form).num_dropped == 0


@pytest.mark.parametrize(
    ("form", "text"),
    [
        ("qa", "Q: Where is Vumor? A: Bergen"),
        ("qa", "Q: Where is Bergen? A: St. Arne"),
        ("qa", "Q: Where is it? A: St. Arne"),
        ("qa", "Q: Where is Vumor? A: mill of Arne"),
        ("qa", "Q: Where is Vumor?"),
        ("statements", "The mill of Vumor is from 1433."),
        ("statements", "The mill of Bergen is old."),
        ("cloze", "The mill of Vumor grinds ____ since 1432. Answer: 1432"),
        ("cloze", "The mill of Vumor eats ____ since 1432. Answer: oats"),
        ("reverse", "Q: Which place has a mill since 1432? A: oats"),
        ("reverse", "Q: Which place has a mill since 1433? A: Vumor"),
        ("model", '{"form": "rewrite", "learning_rate": 0.001}\nVumor.'),
        ("model", '{"form": "qa", "learning_rate": 0.002}\nQ: Where is Vumor? A: St. Arne'),
        ("model", "Q: Where is Vumor? A: St. Arne"),
    ],
)
def test_what_is_not_in_the_passage_cannot_be_written(form: str, text: str) -> None:
    assert not fits(PASSAGE, form, text)


def test_free_forms_have_no_grammar_but_behind_a_head_of_the_model_s_choice() -> None:
    assert [form for form in FORMS if grammar_of(PASSAGE, form) is None] == [
        form for form in FORMS if form not in FORMS_WITH_GRAMMAR
    ]
    choices = Choices(("rewrite", "qa"), (0.5,))
    free = '{"form": "rewrite", "learning_rate": 0.5}\nAnything "at" all,\n\n99 words.'
    assert fits(PASSAGE, "model", free, choices=choices)
    assert not fits(PASSAGE, "model", free.replace("0.5", "0.6"), choices=choices)


def test_lines_are_limited_and_every_text_with_a_word_has_a_grammar() -> None:
    line = "Q: Where is Vumor? A: St. Arne"
    assert fits(PASSAGE, "qa", f"{line}\n{line}", max_lines=2)
    assert not fits(PASSAGE, "qa", f"{line}\n{line}\n{line}", max_lines=2)
    assert fits(PASSAGE, "qa", line, max_lines=1)
    with pytest.raises(ValueError, match="max_lines=0"):
        grammar_of(PASSAGE, "qa", max_lines=0)
    with pytest.raises(ValueError, match=r"p2: there is no word in '\?!'"):
        grammar_of(Passage("p2", "?", "?!", (), "p2"), "qa")
    for text in ("so it is", 'He said "no\\yes" to 5%.', "日本の首都は東京です", "a"):
        passage = Passage("p3", "T", text, (), "p3")
        for form in (*FORMS_WITH_GRAMMAR, "model"):
            assert not fits(passage, form, "~")


# ------------------------------------------------------------------------------ the embedded model


class Edits:
    name = "edits"
    max_tokens = 90
    json_schema = None

    def invalid(self, answer: str) -> str | None:
        return None


@pytest.mark.slow
def test_answers_of_a_qa_edit_of_the_embedded_model_stand_in_the_passage(service: Any) -> None:
    source = open_source("made", num_train=2, num_test=1)
    prompts = {
        kind: EditPrompts("qa", prompt_form=kind, example_edit=source.example_edit)
        for kind in ("raw", "chat")
    }
    problems = [
        prompts[kind].problem(passage, grammar=grammar_of(passage, "qa", max_lines=2))
        for passage, kind in zip(source.passages("train"), ("raw", "chat"), strict=True)
    ]
    trainer = service.create_lora_training_client("embedded", rank=2, seed=0)
    domain: Any = Edits()
    policy = Policy(trainer, domain, enforce_schema=True, max_resamples=0, seed=0)
    groups = policy.answers(problems, size=2, temperature=1.0, key=("train", 0))
    for problem, group in zip(problems, groups, strict=True):
        for trajectory in group:
            parsed = parse_edit(trajectory.text, "qa")
            for line in parsed.text.splitlines():
                question, _, answer = line.removeprefix("Q: ").partition("? A: ")
                assert answer in problem.data.context
                assert any(name in question for name in name_spans(problem.data))
    tokenizer = trainer.get_tokenizer()
    assert parse_response(tokenizer, groups[1][0].tokens_T) == groups[1][0].text
