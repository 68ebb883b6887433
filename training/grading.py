"""Final answers out of free text, and whether two of them are the same number.

Nothing is evaluated: a model's answer is data, and expressions such as 9**9**9 must cost nothing.
"""

import re
from fractions import Fraction

# longer than any number that a person would write; int() of millions of digits takes minutes
MAX_NUMBER_CHARS = 200

_BOX = r"\\(?:f?boxed|fbox)"
_BOXED = re.compile(rf"{_BOX}\s*\{{")
# TeX takes the next token where there are no braces; people mean the next number. A word is prose
# about \boxed, and must not hide an answer that stands elsewhere.
_BOXED_WORD = re.compile(rf"{_BOX}(?![A-Za-z])\s*([-+]?\.?\d[^\s{{}}$]*)")
_BRACE = re.compile(r"[{}]")
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")
_SPACING = re.compile(r"\\(?:[,;:!> ]|quad|qquad|left|right|displaystyle)")
_DEGREES = re.compile(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ(?![A-Za-z]))|°")
_POWER_OF_TEN = re.compile(
    r"(?<=\d)\s*(?:\\times|\\cdot|[\N{MULTIPLICATION SIGN}\N{MIDDLE DOT}*])\s*10"
    r"\s*\^\s*(?:\{\s*([-+]?\d{1,3})\s*\}|([-+]?\d{1,3}))"
)
# digits with or without thousands separators, then decimals; or decimals alone
_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"(?P<sign>[-+]?)\s*(?:(?P<whole>\d+)\s+(?=\d+\s*/))?"
    rf"(?P<numerator>{_DECIMAL})(?:[eE](?P<exponent>[-+]?\d{{1,3}})(?!\w|\.\d))?"
    rf"(?:\s*/\s*(?P<denominator>{_DECIMAL}))?"
)
# a unit's exponent is no second number: m^2, cm^{3}, ft²
_UNIT_EXPONENT = re.compile(r"(?<=[A-Za-z])\s*(?:\^\s*\{?\d\}?|[²³])")


def extract_boxed(text: str) -> str | None:
    r"""What stands in the last complete \boxed{...} (or \fbox), nested braces included, or is the
    number behind one without braces; None without one."""
    starts = {match.end() - 1 for match in _BOXED.finditer(text)}
    opened: list[int] = []
    best: tuple[int, int] | None = None
    for brace in _BRACE.finditer(text):
        if brace[0] == "{":
            opened.append(brace.start())
        elif opened:
            start = opened.pop()
            if start in starts and (best is None or start > best[0]):
                best = (start, brace.start())
    for word in _BOXED_WORD.finditer(text):
        if best is None or word.start() > best[0]:
            bare = word[1].rstrip(".,;:!?")
            best = (word.start(1) - 1, word.start(1) + len(bare))
    return None if best is None else text[best[0] + 1 : best[1]].strip()


def extract_final_answer(text: str) -> str | None:
    r"""The last \boxed{...}, else what follows the last "####" on its line, else None."""
    boxed = extract_boxed(text)
    if boxed is not None:
        return boxed
    found = re.findall(r"####[ \t]*(\S[^\n]*)", text)
    return found[-1].strip() if found else None


def parse_number(text: str) -> Fraction | None:
    r"""The one number that `text` states: 1,234.50 · $12 · 50\% · \frac{3}{4} · 1 1/2 · x = 7 cm ·
    1.5e3 · 1.5 \times 10^3 · 180^\circ.

    None where it states no number, or several without an equals sign before the last one.
    """
    if len(text) > MAX_NUMBER_CHARS:
        return None
    text = (
        text.strip("*_` \n")
        .replace("\N{MINUS SIGN}", "-")
        .replace("\N{EN DASH}", "-")
        .replace("{,}", ",")
    )
    text = _SPACING.sub(" ", _TEXT.sub(r" \1 ", text))
    text = _POWER_OF_TEN.sub(r"e\1\2", _DEGREES.sub(" ", text))
    text = _FRACTION.sub(r" \1\2/\3\4", text)
    text = text.replace("\\", " ").replace("$", " ").replace("{", " ").replace("}", " ")
    text = _UNIT_EXPONENT.sub("", text.rpartition("=")[2])
    found = list(_NUMBER.finditer(text))
    if len(found) != 1:
        return None
    number = found[0]
    # 2^x, 3!, 4*y and x2 are expressions, not numbers
    before, after = text[: number.start()].rstrip(), text[number.end() :].lstrip()
    if after[:1] in set("^!*/²³") or before[-1:] in set("^*/+-_"):
        return None
    if text[: number.start()][-1:].isalpha():
        return None
    value = _fraction(number["numerator"])
    if number["denominator"]:
        denominator = _fraction(number["denominator"])
        if denominator == 0:
            return None
        value /= denominator
    value = value * Fraction(10) ** int(number["exponent"] or 0) + int(number["whole"] or 0)
    return -value if number["sign"] == "-" else value


def same_answer(answer: str, gold: str) -> bool:
    """Exactly equal as numbers; as text, but for case and spaces, where `gold` is no number."""
    expected = parse_number(gold)
    if expected is not None:
        return parse_number(answer) == expected
    return _plain(answer) == _plain(gold)


def _fraction(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").replace(" ", ""))


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()
