"""Whether an answer conveys the gold answer, and what of it is known before and after.

A verdict is True, False, or None where there is none: the judge failed. None is never a wrong
answer; means leave it out, and whoever prints them prints how many there were.

The rule is the default judge. On the answers that SEAL released it agrees with GPT-4.1 in 88 % of
cases, and 95 % of its yes are GPT-4.1's (test_answer_grading.py). It reads no sentence: "it was not
Paris" and a list of all cities are right answers where Paris is.
"""

from __future__ import annotations

import math
import re
import string
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from training.domains.knowledge.passages import Passage, Question

Rule = Literal["tokens", "phrase"]

_ARTICLES = frozenset({"a", "an", "the"})
# what stands between two digits and makes another number of them
_POINT = re.compile(r"(?<=\d)\.(?=\d)")
# a private character, so that no text has it
_KEPT_POINT = "\ue000"


class Judge(Protocol):
    """Says of each answer whether it conveys the question's gold answer; None: no verdict."""

    def __call__(self, asked: Sequence[tuple[Passage, Question, str]]) -> list[bool | None]: ...


class RuleJudge:
    """Right where all tokens of the gold answer, or of an alias, occur in the answer; with
    rule="phrase" they have to stand together and in their order."""

    def __init__(self, rule: Rule = "tokens") -> None:
        self.rule: Rule = rule

    def __call__(self, asked: Sequence[tuple[Passage, Question, str]]) -> list[bool | None]:
        """Raises ValueError for a question without a gold answer."""
        return [conveys(answer, question, self.rule) for _, question, answer in asked]


def conveys(answer: str, question: Question, rule: Rule = "tokens") -> bool:
    """What RuleJudge says of one answer. Raises ValueError for an empty gold answer."""
    golds = (question.answer, *question.aliases)
    if not all(gold.strip() for gold in golds):
        raise ValueError(
            f"question {question.id}: its answer or an alias is empty; every question needs a text "
            "as its answer"
        )
    return any(_says(answer, gold, rule) for gold in golds)


def normalised(text: str) -> list[str]:
    """The tokens of `text` after SQuAD's normalisation: lower case, no punctuation, no articles.

    Beyond SQuAD's own, which knows ASCII alone, all punctuation of Unicode goes and compatible
    characters are one (NFKC), and a point between digits stays, so that 3.5 is not 35.
    """
    return [word for word in _words(text) if word not in _ARTICLES]


def _words(text: str) -> list[str]:
    text = unicodedata.normalize("NFKC", text).casefold().replace(_KEPT_POINT, " ")
    text = _POINT.sub(_KEPT_POINT, text)
    bare = "".join(character for character in text if not _is_punctuation(character))
    return bare.replace(_KEPT_POINT, ".").split()


def _is_punctuation(character: str) -> bool:
    return character in string.punctuation or unicodedata.category(character).startswith("P")


def _says(answer: str, gold: str, rule: Rule) -> bool:
    wanted, said = normalised(gold), normalised(answer)
    if not wanted:
        # "The" or "?" would be found in any answer, so it has to be all of this one
        articles = _words(gold)
        return _words(answer) == articles if articles else answer.strip() == gold.strip()
    if rule == "tokens":
        return set(wanted) <= set(said)
    width = len(wanted)
    return any(said[i : i + width] == wanted for i in range(len(said) - width + 1))


def right_choice(question: Question, logprobs_C: Sequence[float]) -> bool | None:
    """Whether the gold answer is the likeliest of `question.choices` by `logprobs_C`, alone.

    None where a logprob is NaN. Raises ValueError where the choices are not those that were scored,
    or the gold answer is not one of them.
    """
    choices = question.choices
    if len(choices) != len(logprobs_C) or choices.count(question.answer) != 1:
        raise ValueError(
            f"question {question.id}: {len(logprobs_C)} logprobs for its choices {choices}, of "
            f"which one must be {question.answer!r}"
        )
    if any(math.isnan(logprob) for logprob in logprobs_C):
        return None
    best = max(logprobs_C)
    likeliest = [choice for choice, lp in zip(choices, logprobs_C, strict=True) if lp == best]
    return likeliest == [question.answer]


def accuracy(correct_Q: Sequence[bool | None]) -> float | None:
    """The share of right answers among those with a verdict; None where there is none."""
    scored = [correct for correct in correct_Q if correct is not None]
    return sum(scored) / len(scored) if scored else None


@dataclass(frozen=True)
class Changes:
    """Questions by what was right before and after: `kept` and `lost` were right before, `gained`
    and `missing` wrong. `unscored` lack one of the two verdicts."""

    gained: int
    kept: int
    lost: int
    missing: int
    unscored: int

    @property
    def kept_share(self) -> float | None:
        """Of what was right before."""
        return _share(self.kept, self.lost)

    @property
    def gained_share(self) -> float | None:
        """Of what was wrong before."""
        return _share(self.gained, self.missing)


def changes(before_Q: Sequence[bool | None], after_Q: Sequence[bool | None]) -> Changes:
    """Counts over the same questions in the same order."""
    pairs = list(zip(before_Q, after_Q, strict=True))
    return Changes(
        gained=pairs.count((False, True)),
        kept=pairs.count((True, True)),
        lost=pairs.count((True, False)),
        missing=pairs.count((False, False)),
        unscored=sum(None in pair for pair in pairs),
    )


def _share(part: int, rest: int) -> float | None:
    return part / (part + rest) if part + rest else None
