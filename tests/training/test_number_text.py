"""The one number that a text states, on hand-written texts.

uv run pytest tests/training/test_number_text.py
"""

import json
from fractions import Fraction

import pytest
from places import SHARED_DATA

from training.number_text import parse_number

GSM8K = SHARED_DATA / "gsm8k"


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


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (r"\frac{1}{-2}", Fraction(-1, 2)),
        (r"\frac{-1}{-2}", Fraction(1, 2)),
        ("1/ -2", Fraction(-1, 2)),
        ("180^o", 180),
        ("180^{o}", 180),
        ("20 °C", 20),
        ("1.5x10^3", 1500),
        ("1.5 x 10^{-3}", Fraction(3, 2000)),
        ("2 \N{MULTIPLICATION SIGN} 10⁴ m", 20000),
        ("3*10**2", 300),
        ("½", Fraction(1, 2)),
        ("5½", Fraction(11, 2)),
        ("5 ½ cups", Fraction(11, 2)),
        ("3\N{FRACTION SLASH}4", Fraction(3, 4)),
        ("1\u202f234", 1234),
        (r"\textbf{18}", 18),
        (r"\(18\)", 18),
        (r"5~\text{cm}", 5),
        ("-$5", -5),
        ("€5.50", Fraction(11, 2)),
        ("US$5", 5),
        ("Rs. 500", 500),
        ("5 USD", 5),
        ("50¢", 50),
        ("(5 cm)", 5),
        ("The answer is 5.", 5),
        ("the answer is: -5", -5),
        ("Answer: $1,234.00", 1234),
        ("The total is equal to 18 eggs!", 18),
        ("They have a total of 18 eggs left over", 18),
        ("Janet makes $18 every day at the farmers' market.", 18),
        ("$5 a day", 5),
        ("5 more apples than pears", 5),
        ("5 dogs and cats", 5),
        ("6'", 6),
        ("\N{LEFT DOUBLE QUOTATION MARK}18\N{RIGHT DOUBLE QUOTATION MARK}", 18),
        ("6-inch", 6),
        ("60 km/h", 60),
        ("$20/hour", 20),
        ("9.8 m/s^2", Fraction(98, 10)),
        ("5元", 5),
        ("5 kilomètres", 5),
        ("11 pm", 11),
        ("x_1 = 5", 5),
        ("f(2) = 5", 5),
        ("y-intercept = 5", 5),
        (r"\angle ABC = 30^\circ", 30),
        ("Total cost = 5 * $3 = $15", 15),
        ("5 apples * $3 = $15", 15),
        ("5,000 + 1 = 5,001", 5001),
    ],
)
def test_what_cannot_change_a_number_may_stand_beside_it(
    text: str, expected: Fraction | int
) -> None:
    assert parse_number(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("5 tens", "5 twos", "5 thsd", "5 quarter", "5 degrees below", "101 in binary"),
        # unknowns, constants and functions
        *("5x", "5 x", "x5", "5xy", "5abc", "3i", "5e", "5π", r"5\pi", "5 pi", r"5\sqrt", "√5"),
        *("C(5)", "f(5)", "sqrt(5)", "log 5", r"\frac{1}{2}x", r"x\frac{1}{2}", "5(x)", "5/x"),
        *(
            "5a + b",
            "5 + C",
            "2x = 5",
            "-x = 5",
            "x - y = 5",
            "x/2 = 5",
            "x^2 = 25",
            "x² = 25",
            "|x| = 5",
        ),
        # signs and brackets
        *("|-5|", "|5|", "-(5)", "-(-5)", "- (5)", "--5", "+-5", "±5", r"\pm 5", "⌊5⌋", "(5", "5)"),
        *(
            "5!",
            "5²",
            "5^2",
            "2^-1",
            "5_2",
            "5_{10}",
            "0.3...",
            "0.3…",
            r"0.\overline{3}",
            r"3\ldots",
        ),
        *(
            "1.5e3e3",
            r"1.5\times10^{3}5",
            r"\frac{1}{2}5",
            "1 000/3",
            "1 3/2",
            "1/2/3",
            "5€50",
            "5$500",
        ),
        # words that count
        *(
            "5 thousand",
            "1.5 million",
            "5 dozen",
            "5k",
            "5K",
            "5M",
            "$5m",
            "$5 mm",
            "5bn",
            "5 grand",
        ),
        *(
            "5 hundred dollars",
            "5-thousand",
            "5 and a half",
            "5 point five",
            "3 tenths",
            "5万",
            "5만",
        ),
        # words and signs that compare, deny or go on
        *(
            "x>5",
            "x > 5",
            "5 < x",
            "x >= 5",
            "x != 5",
            "x ≠ 5",
            r"x \neq 5",
            r"x \le 5",
            "≥5",
            "<5",
        ),
        *(
            "~5",
            "≈5",
            r"\approx 5",
            "about 5",
            "at least 5",
            "less than 5",
            "less than or equal to 5",
        ),
        *(
            "not 5",
            "The answer is not 5",
            "It isn't exactly 5",
            "minus 5",
            "negative 5",
            "half of 5",
        ),
        *(
            "twice 5",
            "the opposite of 5",
            "5 or 6",
            "5 or so",
            "5 or more",
            "5 at most",
            "5+",
            "5-",
        ),
        *("5 squared", "5 plus", "5 mod x", "5 and up", "5 times x", "5:6", "5, 6", "(5, 6)", "5‰"),
        *(
            "x = 5 or x = 6",
            "x = 5, y = 6",
            "x = 5 and y = 6",
            "5 = x",
            "x += 5",
            "\N{ROMAN NUMERAL FIVE}",
        ),
    ],
)
def test_what_could_change_a_number_makes_it_none(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.skipif(not GSM8K.is_dir(), reason=f"{GSM8K} is absent")
def test_the_answers_of_gsm8k_in_every_usual_spelling() -> None:
    lines = [line for name in ("train", "test") for line in (GSM8K / f"{name}.jsonl").open()]
    golds = {json.loads(line)["answer"].rpartition("####")[2].strip() for line in lines}
    assert len(golds) > 900
    for gold in golds:
        value = Fraction(gold.replace(",", ""))
        for spelling in (
            *(
                "{}",
                "${}",
                "$ {}",
                r"\${}",
                "{} dollars",
                "{} eggs",
                "{}%",
                "x = {}",
                "**{}**",
                "{}.",
            ),
            *("The answer is {}.", "Answer: {}", "$x = {}$", r"{}\text{{ cm}}", "{}.00", "({})"),
        ):
            if ".00" in spelling and "." in gold:
                continue
            assert parse_number(spelling.format(gold)) == value, spelling.format(gold)
