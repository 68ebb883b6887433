r"""The one number that a text states, exactly.

A number counts as stated where nothing stands beside it but what cannot change its value. What that
may be is listed here, and anything else makes the text no number: 5\pi, |-5|, -(5), 5k, 5 thousand,
~5, x > 5 and 0.3... are neither 5 nor 0.3.

Before it: an equation's left side, or words that end in a colon or in one of `_STATING`, and a
currency. Behind it: %, degrees, a currency and units, which are words; words that count, deny,
compare or operate (`_CHANGING`) and lone letters that are no symbol of a unit are none.
"""

import re
import unicodedata
from fractions import Fraction

# longer than any number that a person would write; int() of millions of digits takes minutes
MAX_NUMBER_CHARS = 200

# ------------------------------------------------------------------------------- ways of writing

_PLAIN = str.maketrans(
    "\N{MINUS SIGN}\N{EN DASH}\N{FRACTION SLASH}\N{LEFT SINGLE QUOTATION MARK}"
    "\N{RIGHT SINGLE QUOTATION MARK}\N{LEFT DOUBLE QUOTATION MARK}\N{RIGHT DOUBLE QUOTATION MARK}",
    "--/''\"\"",
)
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
_RAISED_RUN = re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+")
_TEXT = re.compile(
    r"\\(?:text(?:bf|it|rm|sf|tt)?|math(?:bf|it|rm|sf)|mbox|operatorname|underline|emph)"
    r"\s*\{([^{}]*)\}"
)
_SPACING = re.compile(
    r"\\(?:[,;:!> ()\[\]]|(?:quad|qquad|left|right|displaystyle)(?![A-Za-z]))"
    # the blank that keeps a line together: 5~\text{cm}; a tilde before a number is "about"
    r"|(?<=\d)~(?=\s*\\?[A-Za-z])"
)
FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
_RING = r"(?:\\circ(?![A-Za-z])|[o\N{RING OPERATOR}\N{WHITE BULLET}](?!\w))"
_DEGREES = re.compile(
    rf"(?:\^\s*(?:\{{\s*{_RING}\s*\}}|{_RING})|[°º]|\\degree(?![A-Za-z]))(?:\s*[CF](?![A-Za-z]))?"
    r"|[℃℉]"
)
_POWER_OF_TEN = re.compile(
    r"(?<=\d)\s*(?:\\times|\\cdot|[xX*\N{MULTIPLICATION SIGN}\N{MIDDLE DOT}\N{DOT OPERATOR}])\s*10"
    r"\s*(?:\^|\*\*)\s*(?:\{\s*([-+]?\d{1,3})\s*\}|([-+]?\d{1,3}))"
)
_CURRENCY = re.compile(r"\\(?:pounds|euro|textdollar)(?![A-Za-z])|\\\$|[£€¥₹₩₽₺₫₦₱₪₴¢]")
# any currency, and TeX's $: one sign for all, which is no blank between two groups of digits
_MONEY = "\N{CURRENCY SIGN}"

# digits with or without thousands separators, then decimals; or decimals alone
_DECIMAL = r"(?:(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)(?!\d)(?:\.\d+)?|\.\d+)"
_NUMBER = re.compile(
    rf"(?:(?P<sign>[-+])[\s{_MONEY}]*)?(?:(?P<whole>\d+)\s+(?=\d+\s*/))?"
    rf"(?P<numerator>{_DECIMAL})(?:[eE](?P<exponent>[-+]?\d{{1,3}})(?!\w|\.\d))?"
    rf"(?:\s*/\s*(?P<below>[-+]?)\s*(?P<denominator>{_DECIMAL}))?"
)

# ---------------------------------------------------------------------------- what may stand beside


def _listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


_LETTER = r"[^\W\d_]"
_WORD = re.compile(rf"{_LETTER}+(?:['-]{_LETTER}+)*")
_CODES = frozenset({"USD", "US", "EUR", "GBP", "CAD", "AUD", "CNY", "JPY", "INR", "Rs"})
# words before a number that say no more than that it is the one
_STATING = _listed(
    """is are was were be been equals equal equalled answer total result sum exactly only just
    has have had makes make made earns earn earned costs cost needs need needed gets get got
    pays pay paid spends spend spent saves save saved sells sell sold remains remain"""
)
_STATING_PAIRS = frozenset({("equal", "to"), ("total", "of"), ("sum", "of")})
_DENYING = _listed("not no never nor neither or wrong incorrect false")
# a number with these is another one, or none
_CHANGING = _DENYING | _listed(
    """zeros ones twos threes fours fives tens twenties zero one two three four five six seven
    eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen
    twenty thirty forty fifty sixty seventy eighty ninety hundred hundreds thousand thousands
    million millions billion billions trillion trillions quadrillion thsd thsnd dozen dozens
    score gross grand lakh lakhs crore crores mil mill mn mln mio bn bln tn trn thou half halves
    third thirds fourth fourths fifth fifths sixth sixths seventh sevenths eighth eighths
    quarter ninth ninths tenth tenths hundredth hundredths thousandth thousandths point below
    above under beneath short less binary octal hex hexadecimal plus minus negative least
    most minimum maximum max about approx approximately roughly nearly almost ish pi tau phi
    theta alpha beta gamma delta lambda omega sigma infinity inf nan sqrt root log ln lg exp sin
    cos tan cot sec csc abs mod modulo factorial"""
)
# right behind a number these go on with it: 5 squared, 5 and up
_CONTINUING = _listed("squared cubed and over choose")
_UNIT_LETTERS = frozenset("mgshlLJNWV")
# other words as short as these may be products of variables: 5xy
_SHORT_WORDS = _listed(
    """mm cm dm km mg kg ml cl dl oz lb lbs ft yd mi mph kmh kph hr hrs min mins sec secs ms kw kwh
    hz khz mhz mb gb kb cal am pm st nd rd th in of an at by on to as if is he we it so all per for
    are was usd us eur gbp cad aud cny jpy inr rs"""
)
_MILLIONS = frozenset({"m", "mm"})
_KOREAN_POWERS = frozenset("십백천만억조")

_AFTER = re.compile(
    rf"(?P<word>{_WORD.pattern})|/\s*(?={_LETTER})|[\s%,.;:!?\"'()\[\]{_MONEY}]|^-(?={_LETTER}{{3}})"
)
_UNIT_EXPONENT = re.compile(r"(?<=[A-Za-z])\s*\^\s*-?\d(?!\d)")
_BEFORE = re.compile(rf"(?:{_WORD.pattern}|[\s,.;:\"'()\[\]{_MONEY}])*+")
# x, x_1, f(2), P(A), y-intercept, \angle ABC, Total cost
_NAME = re.compile(
    r"(?:\\(?:angle|triangle|therefore|theta|alpha|beta|gamma|phi|mu|sigma|lambda)(?![A-Za-z])"
    rf"|{_LETTER}(?:-(?={_LETTER}{{2}}))?|[\s'.:{_MONEY}]|_\s*\w++|\([\w\s,.-]*\))*+"
)
_OPERATORS = r"-+*/^\N{MULTIPLICATION SIGN}\N{MIDDLE DOT}\N{DIVISION SIGN}"
_ENDS_IN_OPERATOR = re.compile(rf"[{_OPERATORS}]\s*$")
# 5 * 3, 5 apples * $3; a lone letter is an unknown: 2x = 5 is no 5
_SUM = re.compile(
    rf"(?:\d++(?:[,.]\d++)*+|[{_OPERATORS}()%]|\\(?:times|cdot|div|sqrt)(?![A-Za-z])"
    rf"|{_LETTER}{{2,}}+|[\s{_MONEY}])*+"
)


def parse_number(text: str) -> Fraction | None:
    r"""The one number that `text` states: 1,234.50 · $12 · 50\% · \frac{3}{4} · 1 1/2 · ½ · 1.5e3 ·
    1.5 \times 10^3 · 180^\circ · x = 7 cm · The answer is 18 eggs.

    None where it states none, or several without an equals sign before the last one, or where
    something beside the number could change its value (see the module's text).
    """
    if len(text) > MAX_NUMBER_CHARS:
        return None
    text, money = _in_one_form(text)
    # ①, 万: numbers in ways that are not read here
    if any(unicodedata.numeric(c, None) is not None and not c.isdecimal() for c in text):
        return None
    *lefts, right = text.split("=")
    found = _NUMBER.search(right)
    if found is None:
        return None
    before, after = right[: found.start()], right[found.end() :]
    if (
        all(_is_left_side(left, is_first=i == 0) for i, left in enumerate(lefts))
        and _is_statement(before)
        and _is_unit(after, money=money)
        and (before + after).count("(") == (before + after).count(")")
    ):
        return _value(found)
    return None


def _in_one_form(text: str) -> tuple[str, bool]:
    """`text` with one way of writing for each thing, and whether it has a currency."""
    text = re.sub(r"\s", " ", text).strip("*_` ").translate(_PLAIN).replace("{,}", ",")
    text = "".join(map(_vulgar_fraction, text))
    text = _RAISED_RUN.sub(lambda run: f"^{{{run[0].translate(_RAISED)}}}", text)
    text = _SPACING.sub(" ", _TEXT.sub(r" \1 ", text))
    text = FRACTION.sub(_slashed, _DEGREES.sub(" ", text))
    text = _POWER_OF_TEN.sub(r"e\1\2 ", text)
    text, num_currencies = _CURRENCY.subn(_MONEY, text)
    # in pairs they are TeX's
    money = num_currencies > 0 or text.count("$") % 2 == 1
    text = text.replace("$", _MONEY).replace("{", " ").replace("}", " ").replace("\\%", "%")
    return text, money


def _vulgar_fraction(character: str) -> str:
    if not unicodedata.decomposition(character).startswith("<fraction>"):
        return character
    digits = unicodedata.normalize("NFKC", character).replace("\N{FRACTION SLASH}", "/")
    return f" {digits} "


def _slashed(fraction: re.Match[str]) -> str:
    top, bottom = (re.sub(r"\s", "", part) for part in fraction.groups() if part is not None)
    return f" {top}/{bottom} "


def _is_left_side(text: str, *, is_first: bool) -> bool:
    words = set(text.casefold().split())
    # x = 5 or y = 6, x = 5 and y = 6
    if words & _DENYING or ("and" in words and not is_first):
        return False
    if _NAME.fullmatch(text):
        return True
    return _SUM.fullmatch(text) is not None and not _ENDS_IN_OPERATOR.search(text)


def _is_statement(before: str) -> bool:
    if before[-1:].isalpha() and _WORD.findall(before)[-1] not in _CODES:
        return False
    if not _BEFORE.fullmatch(before):
        return False
    words = _WORD.findall(before)
    if words and words[-1] in _CODES:
        before = before[: before.rindex(words.pop())]
    words = [word.casefold() for word in words]
    if any(word in _DENYING or word.endswith("n't") for word in words):
        return False
    if not words:
        return True
    if before.rstrip(f" \"'([{_MONEY}").endswith(":"):
        return words[-1] not in _CHANGING
    return words[-1] in _STATING or tuple(words[-2:]) in _STATING_PAIRS


def _is_unit(after: str, *, money: bool) -> bool:
    after = _UNIT_EXPONENT.sub(" ", after)
    # 0.3..., 3!
    if ".." in after or after.lstrip(" )]").startswith("!"):
        return False
    position, num_words = 0, 0
    while position < len(after):
        token = _AFTER.match(after, position)
        if token is None:
            return False
        position = token.end()
        for part in (token["word"] or "").split("-"):
            if part and not _is_unit_word(
                part,
                is_first=num_words == 0,
                is_attached=token.start() == 0,
                is_last=not _WORD.search(after, position),
                money=money,
            ):
                return False
            num_words += bool(part)
    return True


def _is_unit_word(
    word: str, *, is_first: bool, is_attached: bool, is_last: bool, money: bool
) -> bool:
    folded = word.casefold()
    if folded in _CHANGING or folded.endswith("n't") or word[0] in _KOREAN_POWERS:
        return False
    if is_first and (folded in _CONTINUING or (money and folded in _MILLIONS)):
        return False
    # of scripts without capitals one letter can be a word
    if word.lower() == word.upper():
        return True
    if len(word) == 1:
        # $5 a day
        return word in _UNIT_LETTERS or (folded == "a" and not is_attached and not is_last)
    return folded in _SHORT_WORDS or len(word) > (3 if is_attached else 2)


def _value(found: re.Match[str]) -> Fraction | None:
    value = _fraction(found["numerator"])
    if found["denominator"]:
        denominator = _fraction(found["denominator"])
        if denominator == 0:
            return None
        value /= -denominator if found["below"] == "-" else denominator
    if found["whole"]:
        # 12 500/3 may be 12,500/3
        if found["numerator"].startswith("0") or not 0 < value < 1:
            return None
        value += int(found["whole"])
    value *= Fraction(10) ** int(found["exponent"] or 0)
    return -value if found["sign"] == "-" else value


def _fraction(digits: str) -> Fraction:
    return Fraction(digits.replace(",", "").replace(" ", ""))
