"""From a model's text to an answer, and from answers to accuracy."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence

from training.domains.bbh.tasks import BBHTask

_LETTER = re.compile(r"\([a-z]\)")


def read_answer(text: str, task: BBHTask) -> str:
    """What a completion answers, in lower case.

    Sequences of words or brackets are the first line up to "-"; other answers the first word. Both
    end at a full stop. Option letters get the brackets they may lack.
    """
    text = text.strip().lower()
    if not text:
        return ""
    if task.answer_format in ("words", "parentheses"):
        text = text.split("\n")[0].split("-")[0]
    else:
        text = text.split()[0]
    text = text.split(".")[0].strip()
    if task.answer_format == "letter" and text and not text.startswith("("):
        text = f"({text[0]})"
    return text


def is_right(answer: str, target: str) -> bool:
    return answer == target.strip().lower()


def is_scorable(target: str, task: BBHTask) -> bool:
    """Whether `read_answer` can give this target for any text; a few items of BBH name an option's
    text where its letter is wanted."""
    if task.answer_format == "letter":
        return _LETTER.fullmatch(target.strip().lower()) is not None
    return read_answer(target, task) == target.strip().lower()


def majority(answers: Sequence[str]) -> str:
    """The most frequent answer; of several, the first in the alphabet."""
    counts = Counter(answers)
    return min(counts, key=lambda answer: (-counts[answer], answer))


def guess(task: BBHTask, rng: random.Random) -> bool:
    """Whether a guess among the task's choices is right."""
    return task.num_choices is not None and rng.randrange(task.num_choices) == 0
