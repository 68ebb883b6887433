"""Numbers out of free text, on hand-written answers.

uv run pytest tests/training/test_grading.py
"""

import time

import pytest

from training.grading import extract_boxed, extract_final_answer, same_answer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"so \boxed{18}.", "18"),
        (r"\boxed{1} and then \boxed{ 2 }", "2"),
        (r"\boxed{\frac{3}{4}}", r"\frac{3}{4}"),
        (r"\boxed{\text{a {b} c}} end", r"\text{a {b} c}"),
        (r"\fbox{1} \boxed {7}", "7"),
        (r"so \fbox{3}", "3"),
        (r"\boxed 5", "5"),
        (r"\boxed{4}, no: $\boxed -5$.", "-5"),
        (r"it is \boxed 1,200.", "1,200"),
        (r"\boxed 1 \boxed{2}", "2"),
        (r"\boxed", None),
        (r"\boxed{7}. I used \boxed to mark it.", "7"),
        (r"\boxed .5", ".5"),
        (r"\boxed \frac{1}{2}", r"\frac{1}{2}"),
        (r"so $\boxed -\dfrac 12$.", r"-\dfrac 12"),
        (r"\boxed 1\frac{1}{2}.", r"1\frac{1}{2}"),
        (r"\boxed 50\%.", r"50\%"),
        (r"\boxed \frac", None),
        (r"\boxed{7} and \boxed \frac{1", "7"),
        (r"\boxed{5} \boxed{unfinished", "5"),
        (r"} \boxed{5} {", "5"),
        (r"\boxed{unfinished", None),
        ("boxed 18", None),
        ("", None),
    ],
)
def test_extract_boxed(text: str, expected: str | None) -> None:
    assert extract_boxed(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\n#### 1,234\nb", "1,234"),
        ("#### 1\n#### 2", "2"),
        (r"#### 1 \boxed{3}", "3"),
        (r"we write \boxed when done. #### 7", "7"),
        (r"put it in \boxed, #### 7", "7"),
        ("####\n5", None),
        ("the answer is 5", None),
    ],
)
def test_extract_final_answer(text: str, expected: str | None) -> None:
    assert extract_final_answer(text) == expected


def test_same_answer() -> None:
    assert same_answer(r"\$1,000.00", "1000")
    assert same_answer(r"180^\circ", "180")
    assert same_answer("1e3", "1000")
    assert same_answer("1.5e3", "1500")
    assert not same_answer("1e3", "1003")
    assert same_answer("0.75", r"\frac{3}{4}")
    assert not same_answer("0.7", r"\frac{3}{4}")
    assert not same_answer("no idea", "3")
    assert not same_answer("", "3")
    assert not same_answer("5 thousand", "5")
    assert same_answer("5\\pi", "5\\pi") and not same_answer("5", "5\\pi")
    assert same_answer(" Paris. ", "paris")
    assert not same_answer("Rome", "paris")


def test_hostile_answers_cost_nothing() -> None:
    started = time.perf_counter()
    for text in ("9**" * 60 + "9", "1," * 90, "9" * 10**6, "1 " * 99, r"\boxed{" * 10**5):
        assert not same_answer(text, "3")
        assert extract_boxed(text) is None
    assert time.perf_counter() - started < 5
