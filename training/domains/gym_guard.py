"""What reasoning-gym's scorers can be given, and which of their full scores are earned.

Written by its authors to be lenient: some run what a model writes, some hang on it, and some give a
full score to what is no right answer (any text at all, the first digit, a number one off, the right
words followed by others). Partial scores are theirs; a full one has to hold against these rules.
"""

import ast
import itertools
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from training.domains.gym_algebra import FUNCTIONS, is_antiderivative, is_small

# Some scorers evaluate the answer as Python or through sympy, which is the same. What a model
# writes must never be run, so such answers are scored only if nothing is left of them when these
# tokens are taken out.
_ARITHMETIC = re.compile(r"[-+()\s]|\*(?!\*)|/(?!/)|(?<!\d)\d{1,15}(?:\.\d{0,15})?(?!\d)")
_ALGEBRA = re.compile(
    r"(?<![A-Za-z0-9_.])E\s*\*\*(?=\s*[(A-Za-z])|"
    + _ARITHMETIC.pattern
    + rf"|(?<![A-Za-z0-9_.])(?:{'|'.join(sorted(FUNCTIONS))}|pi|[a-zA-MPRT-Z])(?![A-Za-z0-9_.])"
    r"|\*\*\s*(?:\d{1,2}|\(\s*-?\d{1,2}\s*(?:/\s*\d{1,2}\s*)?\))(?![\d.]|\s*\*\*)"
)
_LIST = re.compile(r"(?!for\b)(?<!\w)\w+|[-\s\[\],.'\"#]")
_MOVES = re.compile(r"[^\d]|(?<!\d)\d{1,2}(?!\d)")
_SAFE_TOKENS = {
    "countdown": _ARITHMETIC,
    "puzzle24": _ARITHMETIC,
    "simple_integration": _ALGEBRA,
    "intermediate_integration": _ALGEBRA,
    "polynomial_multiplication": _ALGEBRA,
    "binary_matrix": _LIST,
    "n_queens": _LIST,
    "spiral_matrix": _LIST,
    "string_insertion": _LIST,
    "rubiks_cube": _MOVES,
    "rush_hour": _MOVES,
}
_INTEGRATIONS = {"simple_integration", "intermediate_integration"}
# these do a move as often as the number behind it says; so many take a tenth of a second
MAX_MOVES = 2000
# sympy's time to read a sum grows with the square of its length
TIMES_THE_ANSWER = 2
SPARE_CHARS = 200
# the parser's time grows with the square of the length: a third of a second here
MAX_LENGTH = {"propositional_logic": 400}
# Fraction("1e99999999") is written out, after the commas are taken out of it
_HUGE_EXPONENT = re.compile(r"(?<![\w.,])[\d_,]*+(?:\.[\d_,]*+)?+[eE][-+]?[_,]*\d(?:[_,]*\d){3}")

_TAG = re.compile(r"</?answer>")


def extract_answer(reply: str, prefix: str | None = None) -> str | None:
    """The last <answer>...</answer>, else what follows the last `prefix`, stripped.

    Without a prefix the whole reply; None where the prefix is asked for and missing.
    """
    # by tag and not by <answer>.*?</answer>, which reads to the end from every tag without a close
    start: int | None = None
    tagged: str | None = None
    for tag in _TAG.finditer(reply):
        if tag[0] == "</answer>":
            if start is not None:
                tagged = reply[start : tag.start()]
            start = None
        elif start is None:
            start = tag.end()
    if tagged is not None:
        return tagged.strip()
    if prefix is None:
        return reply.strip()
    _, found, answer = reply.rpartition(prefix)
    return answer.strip() if found else None


def is_safe(answer: str, task: str) -> bool:
    """Whether the task's scorer can be given the answer: it neither runs code nor explodes."""
    if len(answer) > MAX_LENGTH.get(task, len(answer)) or _HUGE_EXPONENT.search(answer):
        return False
    tokens = _SAFE_TOKENS.get(task)
    if tokens is None:
        return True
    if tokens.sub("", answer) != "":
        return False
    if tokens is _MOVES:
        return len(answer.split()) + sum(map(int, re.findall(r"\d+", answer))) <= MAX_MOVES
    return tokens is not _ALGEBRA or is_small(answer)


def own_score(answer: str, entry: dict[str, Any], task: str) -> float | None:
    """The score of a safe answer, where the task's own scorer is not asked since it might never
    end; None where it is to be asked."""
    metadata = entry["metadata"]
    if task in _INTEGRATIONS:
        return float(is_antiderivative(answer, metadata["integrand"], metadata["variable"]))
    # it has to be multiplied out, and is then as long as the stored one
    if task == "polynomial_multiplication" and (
        len(answer) > TIMES_THE_ANSWER * len(entry["answer"]) + SPARE_CHARS
    ):
        return 0.0
    return None


# --------------------------------------------------------------------------------- full scores

# scorers that compare with a copy of the answer that the entry's metadata holds
_COPIES = {"fraction_simplification", "number_format", "palindrome_partitioning", "survo"}
_COPIES |= {"group_anagrams", "word_sorting"}
_ARITHMETIC_PUZZLES = {"countdown", "puzzle24"}
PUZZLE24_TARGET = 24

# int("1_000") is Python's 1000 and nobody else's
_UNDERSCORE = re.compile(r"[\dA-Fa-f]_[\dA-Fa-f]")
_EXPRESSION = re.compile(r"[*^=]")
_ROUNDING = re.compile(r"\bround(?:ed|ing)?\b|decimal places|significant (?:figures|digits)")
# fewer digits than that state a number only roughly
MIN_DIGITS = 3
# numbers as long as that were cut off when they were written
CUT_OFF_DIGITS = 10

_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}", re.IGNORECASE)
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_NUMBER = re.compile(
    # a sign stands before the number and behind nothing that it could be subtracted from
    r"(?P<sign>(?<![\w)\]])-)?"
    r"(?:(?P<top>\d+)\s*/\s*(?P<bottom>\d+)"
    r"|(?=\.?\d)(?P<whole>\d*)(?:\.(?P<decimals>\d+))?(?:[eE](?P<exponent>[-+]?\d{1,3})(?!\w))?)"
)
_DIGIT = re.compile(r"\d")
_WORD = re.compile(r"[^\W\d_]+")


class Consulted(dict[str, Any]):
    """An entry that remembers what a scorer looked at: one that never read the answer has checked
    the solution itself, and one that read nothing else has compared."""

    def __init__(self, entry: dict[str, Any]) -> None:
        super().__init__(entry)
        self.keys_read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.keys_read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.keys_read.add(key)
        return super().get(key, default)


def doubt(answer: str, entry: dict[str, Any], keys_read: set[str], task: str) -> str | None:
    """Why an answer that `task`'s scorer gives a full score does not deserve it, or None.

    Where the scorer compares with the stored answer, every number has to be one of the stored ones,
    no more often than there, and right in every digit that is written: at least three where some
    are left out, and all of those of a number that the question gives and does not ask to round.
    Where it looked at nothing else, no number is missing and every word is a stored one too.
    Raises ValueError for what cannot be read: an expression that is none, thousands of digits.
    """
    gold = entry["answer"]
    if answer == gold:
        return None
    if _UNDERSCORE.search(answer) and not (isinstance(gold, str) and _UNDERSCORE.search(gold)):
        return "a number is written with an underscore"
    if task in _ARITHMETIC_PUZZLES:
        numbers = entry["metadata"]["numbers"]
        return _arithmetic_doubt(answer, numbers, entry["metadata"].get("target", PUZZLE24_TARGET))
    if not isinstance(gold, str):
        return None
    if _DIGIT.search(gold) and not _DIGIT.search(answer):
        return "it states no number"
    copied = task in _COPIES
    if not (copied or "answer" in keys_read) or _EXPRESSION.search(gold):
        return None
    wanted = list(_numbers(gold))
    # in a list the comma stands between two numbers
    plain = _THOUSANDS.sub("", answer) if len(wanted) == 1 else answer
    given = list(itertools.islice(_numbers(plain), len(wanted) + 1))
    why = _numbers_doubt(given, wanted, entry["question"])
    if why is not None or ("metadata" in keys_read and not (copied and not wanted)):
        return why
    if len(given) < len(wanted):
        return f"it states {len(given)} numbers, not {len(wanted)}"
    return _words_doubt(answer, gold)


@dataclass(frozen=True)
class _Number:
    """`unit` is the value of the last digit, 0 for fractions; `digits` the significant ones."""

    value: Fraction
    unit: Fraction
    digits: int
    decimals: int

    def states(self, wanted: "_Number", *, rounded: bool) -> bool:
        """Whether every digit is right, of this one or, if `rounded`, of the one that is wanted."""
        difference = abs(self.value - wanted.value)
        if self.unit > wanted.unit:
            return self.digits >= MIN_DIGITS and difference <= self.unit / 2
        # a gold 3.0 has lost zeros rather than digits
        cut = wanted.digits >= CUT_OFF_DIGITS or (rounded and wanted.decimals >= 2)
        return cut and self.unit < wanted.unit and difference <= wanted.unit / 2


def _numbers(text: str) -> Iterator[_Number]:
    text = _LATEX_FRACTION.sub(r"\1/\2", text.replace("\N{MINUS SIGN}", "-"))
    for match in _NUMBER.finditer(text):
        sign = -1 if match["sign"] else 1
        if match["top"] is not None:
            # of a zero below the line both are numbers of their own
            if int(match["bottom"]):
                yield _Number(
                    Fraction(sign * int(match["top"]), int(match["bottom"])), Fraction(0), 0, 0
                )
            continue
        decimals = match["decimals"] or ""
        digits = match["whole"] + decimals
        unit = Fraction(10) ** (int(match["exponent"] or 0) - len(decimals))
        yield _Number(sign * int(digits) * unit, unit, len(digits.lstrip("0")), len(decimals))


def _numbers_doubt(given: list[_Number], wanted: list[_Number], question: str) -> str | None:
    if len(given) > len(wanted):
        return f"it states more numbers than {len(wanted)}"
    unused = Counter(number.value for number in wanted)
    inexact = []
    for number in given:
        if unused[number.value]:
            unused[number.value] -= 1
        else:
            inexact.append(number)
    rounded = bool(_ROUNDING.search(question))
    # what stands in the question is to be copied, not computed
    exact = set() if rounded else {n.value for n in _numbers(_THOUSANDS.sub("", question))}
    for number in inexact:
        for candidate in wanted:
            value = candidate.value
            if unused[value] and value not in exact and number.states(candidate, rounded=rounded):
                unused[value] -= 1
                break
        else:
            return f"{float(number.value):g} is none of its numbers"
    return None


def _words_doubt(answer: str, gold: str) -> str | None:
    given, wanted = (_WORD.findall(text.casefold()) for text in (answer, gold))
    if _DIGIT.search(gold) and not wanted:
        # numbers alone may stand in a sentence, or with their unit
        return None
    extra = Counter(given) - Counter(wanted)
    if extra and "".join(given) != "".join(wanted):
        return f"{next(iter(extra))!r} is none of its words"
    return "it has no words" if wanted and not given and not _DIGIT.search(gold) else None


def _arithmetic_doubt(answer: str, numbers: list[int], target: int) -> str | None:
    """Scorers evaluate in floating point, to a tolerance, or cut decimals off."""
    tree = ast.parse(answer.strip(), mode="eval").body
    used = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    if sorted(map(str, used)) != sorted(map(str, numbers)):
        return f"it uses other numbers than {list(numbers)}"
    value = _exact(tree)
    return None if value == target else f"its value is {value}, not {target}"


def _exact(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int() as value):
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub()):
            return -_exact(node.operand)
        case ast.UnaryOp(op=ast.UAdd()):
            return _exact(node.operand)
        case ast.BinOp(op=ast.Add()):
            return _exact(node.left) + _exact(node.right)
        case ast.BinOp(op=ast.Sub()):
            return _exact(node.left) - _exact(node.right)
        case ast.BinOp(op=ast.Mult()):
            return _exact(node.left) * _exact(node.right)
        case ast.BinOp(op=ast.Div()):
            return _exact(node.left) / _exact(node.right)
    raise ValueError(f"{ast.unparse(node)!r} is no sum, difference, product or quotient")
