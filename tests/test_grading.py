"""Numbers out of free text, on hand-written answers.

uv run pytest tests/test_grading.py
"""

import time
from fractions import Fraction

import pytest

from training.grading import extract_boxed, extract_final_answer, parse_number, same_answer


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
        (r"\boxed \frac{1}{2}", None),
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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("18", 18),
        ("-18", -18),
        ("\N{MINUS SIGN}18", -18),
        ("+3", 3),
        ("18.", 18),
        ("18.00", 18),
        (".5", Fraction(1, 2)),
        ("1,234,567.5", Fraction(2469135, 2)),
        ("1{,}000", 1000),
        ("1 000", 1000),
        (r"12\,500", 12500),
        ("$12.50", Fraction(25, 2)),
        (r"\$12.50", Fraction(25, 2)),
        (r"$\$1{,}200$", 1200),
        ("$-5", -5),
        ("50%", 50),
        (r"50\%", 50),
        ("18 dollars per day", 18),
        (r"18 \text{ dollars}", 18),
        (r"5\text{ m}^2", 5),
        ("5 cm^{3}", 5),
        ("5 ft²", 5),
        ("5km", 5),
        ("x = 7 cm", 7),
        ("3 + 4 = 7", 7),
        ("3/4", Fraction(3, 4)),
        (r"\frac{3}{4}", Fraction(3, 4)),
        (r"-\dfrac{3}{4}", Fraction(-3, 4)),
        (r"\frac34", Fraction(3, 4)),
        ("1 1/2", Fraction(3, 2)),
        (r"1\frac{1}{2}", Fraction(3, 2)),
        ("-1 1/2", Fraction(-3, 2)),
        (r"\left(-3\right)", -3),
        ("**18**", 18),
        ("3/0", None),
        ("3 hours and 20 minutes", None),
        ("10-12", None),
        ("2^10", None),
        ("2^x", None),
        ("2²", None),
        ("3!", None),
        ("9**9**9", None),
        ("x2", None),
        ("1e9", 10**9),
        ("1e3.", 1000),
        ("1.5e3", 1500),
        ("-2.5E-1", Fraction(-1, 4)),
        (r"1.5 \times 10^3", 1500),
        (r"$3\cdot10^{-2}$", Fraction(3, 100)),
        ("2 \N{MULTIPLICATION SIGN} 10^4", 20000),
        (r"180^\circ", 180),
        (r"$90^{\circ}$", 90),
        ("45°", 45),
        ("1e9999", None),
        ("3 * 10", None),
        ("1e3x", None),
        ("1,5", None),
        ("eighteen", None),
        ("", None),
        ("9" * 5000, None),
    ],
)
def test_parse_number(text: str, expected: Fraction | int | None) -> None:
    assert parse_number(text) == expected


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
    assert same_answer(" Paris. ", "paris")
    assert not same_answer("Rome", "paris")


def test_hostile_answers_cost_nothing() -> None:
    started = time.perf_counter()
    for text in ("9**" * 60 + "9", "1," * 90, "9" * 10**6, "1 " * 99, r"\boxed{" * 10**5):
        assert not same_answer(text, "3")
        assert extract_boxed(text) is None
    assert time.perf_counter() - started < 5
