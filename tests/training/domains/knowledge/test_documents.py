"""training/domains/knowledge/documents.py: SEAL's rules by hand, masks, continued pretraining."""

import numpy as np
import pytest
from tiny_chat import chat_tokenizer

from training.domains.knowledge.documents import (
    document_texts,
    pooled_texts,
    split_edit,
    text_datum,
)
from training.domains.knowledge.passages import Passage

OAK = Passage("p1", "Oak Hill", "Oak Hill is old.\nIt has a mill.", (), "p1")
ELM = Passage("p2", "Elm Side", "Elm Side is new.", (), "p2")


@pytest.mark.parametrize(
    ("edit", "documents"),
    [
        ("One.\n\n  Two. \nThree.\n", ["One.", "Two.", "Three."]),
        ("Here is a list:\n1. One.\n2. Two.", ["1. One.", "2. Two."]),
        ("1. One.\n2. Two.", ["1. One.", "2. Two."]),
        ("One.\nTwo.\n1. Three.", ["One.", "Two.", "1. Three."]),
        ("Only one", ["Only one"]),
        ("One.\n---\nHere:\n1. Two.\n---\n", ["One.", "1. Two."]),
        (
            "Question 1: Who?\nAnswer: Ann.\n\nQuestion 2: When?\nAnswer: Now.",
            ["Question 1: Who?\nAnswer: Ann.", "Question 2: When?\nAnswer: Now."],
        ),
        # the prompt ends with the first number
        (
            "Who?\nAnswer: Ann.\nQuestion 12: When?\nAnswer : Now.",
            ["Question 1: Who?\nAnswer: Ann.", "Question 12: When?\nAnswer : Now."],
        ),
        # without answers they are lines
        ("Question 1: Who?\nQuestion 2: When?", ["Question 1: Who?", "Question 2: When?"]),
        ("Q: Who? A: Ann.\nQ: When? A: Now.", ["Q: Who? A: Ann.", "Q: When? A: Now."]),
        ("", []),
        (" \n--- \n", []),
    ],
)
def test_an_edit_is_split(edit: str, documents: list[str]) -> None:
    assert split_edit(edit) == documents


def test_parts_stay_whole_without_splitting_at_newlines() -> None:
    edit = "One.\nTwo.\n---\nQuestion 1: Who?\nAnswer: Ann.\n---\n"
    assert split_edit(edit, split_newlines=False) == [
        "One.\nTwo.",
        "Question 1: Who?\nAnswer: Ann.",
    ]


def test_seal_puts_the_title_over_everything_and_the_passage_last() -> None:
    assert document_texts(OAK, "One.\nTwo.", "seal") == [
        "Oak Hill\nOne.",
        "Oak Hill\nTwo.",
        "Oak Hill\nOak Hill is old.\nIt has a mill.",
    ]


def test_lines_stand_as_they_are_apart_from_the_passage() -> None:
    passage = "Oak Hill\nOak Hill is old.\nIt has a mill."
    assert document_texts(OAK, "One.\nTwo.", "lines") == ["One.", "Two.", passage]
    assert document_texts(OAK, "", "lines") == [passage]
    assert document_texts(OAK, "One.", "lines", add_context=False) == ["One."]


def test_the_cap_counts_an_edits_documents_and_not_the_passage() -> None:
    edit = "\n".join(f"Line {i}." for i in range(40))
    assert len(document_texts(OAK, edit, "seal")) == 31
    assert len(document_texts(OAK, edit, "lines", cap=None)) == 41
    assert document_texts(OAK, edit, "lines", cap=2)[:2] == ["Line 0.", "Line 1."]


def test_pooled_texts_have_each_passage_once() -> None:
    edits = [["One.\nTwo.", "Three."], ["Four."]]
    assert pooled_texts([OAK, ELM], edits, "seal") == [
        "Oak Hill\nOne.\nTwo.",
        "Oak Hill\nThree.",
        "Oak Hill\nOak Hill is old.\nIt has a mill.",
        "Elm Side\nFour.",
        "Elm Side\nElm Side is new.",
    ]
    assert pooled_texts([OAK, ELM], edits, "lines", add_context=False) == [
        "One.\nTwo.",
        "Three.",
        "Four.",
    ]


def test_all_of_a_text_is_learned_with_the_end_token_and_nothing_is_padded() -> None:
    tokenizer = chat_tokenizer()
    datum = text_datum(tokenizer, "Q: Who? A: Ann.")
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
    weights = datum.loss_fn_inputs["weights"].to_numpy()
    # one token a byte, and the first has nothing before it
    assert datum.model_input.length == len("Q: Who? A: Ann.")
    assert tokenizer.decode(targets) == ": Who? A: Ann.<|im_end|>"
    np.testing.assert_array_equal(weights, 1.0)


@pytest.mark.parametrize(
    ("text", "learned"),
    [
        ("Q: Who? A: Ann. A: Bo.", " Ann. A: Bo.<|im_end|>"),
        ("Ann lives here.", "nn lives here.<|im_end|>"),
        # nothing would be left to learn
        ("Q: Who? A: ", ": Who? A: <|im_end|>"),
    ],
)
def test_nothing_up_to_the_mask_is_learned(text: str, learned: str) -> None:
    tokenizer = chat_tokenizer()
    datum = text_datum(tokenizer, text, mask_until="A:")
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy()
    weights = datum.loss_fn_inputs["weights"].to_numpy()
    assert tokenizer.decode(targets[weights == 1]) == learned
    assert set(weights) <= {0.0, 1.0}
    assert tokenizer.decode(datum.model_input.to_ints()) == text
