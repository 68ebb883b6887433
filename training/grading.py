"""Final answers out of free text, and whether two of them are the same number.

Nothing is evaluated: a model's answer is data, and expressions such as 9**9**9 must cost nothing.
"""

import re

from training.number_text import FRACTION, parse_number

_BOX = r"\\(?:f?boxed|fbox)"
_BOXED = re.compile(rf"{_BOX}\s*\{{")
# TeX takes the next token where there are no braces; people mean the next number, which may be a
# fraction. A word is prose about \boxed, and must not hide an answer that stands elsewhere.
_NUMBER = r"\.?\d[^\s{}$\\]*"
_BOXED_WORD = re.compile(
    rf"{_BOX}(?![A-Za-z])\s*"
    rf"([-+]?(?:(?:{_NUMBER})?{FRACTION.pattern}|{_NUMBER}(?:\\[^\s{{}}$]*)?))"
)
_BRACE = re.compile(r"[{}]")


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


def same_answer(answer: str, gold: str) -> bool:
    """Exactly equal as numbers; as text, but for case and spaces, where `gold` is no number."""
    expected = parse_number(gold)
    if expected is not None:
        return parse_number(answer) == expected
    return _plain(answer) == _plain(gold)


def _plain(text: str) -> str:
    return " ".join(text.split()).rstrip(".").casefold()
