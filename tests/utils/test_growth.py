"""What reads a model's output takes time in proportion to its length, whatever the output is.

Compared are the processor times of a text and of one eight times as long: 8 where time grows in
proportion, 64 where it grows with the square; 24 is three times from either. What takes less than
TOO_SHORT seconds is too short to tell, and too short to matter.

uv run pytest tests/utils/test_growth.py
"""

import time
from collections.abc import Callable
from functools import partial

import pytest
from pydantic import BaseModel

from generation.properties import PROPERTIES
from training.domains.arc.self_edit import Bounds, SelfEditError, parse_self_edit
from training.domains.arc.text import GridParseError, parse_grid
from training.domains.bbh.scoring import read_answer
from training.domains.bbh.tasks import TASKS
from training.domains.gym_algebra import is_antiderivative
from training.domains.gym_guard import doubt, extract_answer, is_safe
from training.grading import extract_boxed, extract_final_answer, same_answer
from utils.duplicates import remove_duplicates
from utils.llm.answers import require_model
from utils.llm.api import LLMError, Reply
from utils.shingles import normalise, words

LENGTH = 10_000
TIMES = 8
LIMIT = 24
TOO_SHORT = 0.02
PIECES = [
    *("<answer>", "</answer>", "<answer></answer>", "Answer:", "####", "#### ", "####\n"),
    *("\\boxed{", "\\boxed ", "\\boxed", "\\fbox{}", "{", "}", "{}", "\\frac{", "\\text{", "\\"),
    *(
        "1",
        "1 ",
        "1,",
        "1/",
        "1.",
        "1e",
        "1_",
        "-",
        " ",
        "\n",
        "\t",
        ".",
        "=",
        "(",
        "[",
        "[1 ",
        "[1]",
    ),
    *("[[1]", "] ", "```", "```a", "a", "a ", "a-", "a'", "?", "? ", "! ", "Hope that helps!", "'"),
    *('"', '{"a":', '{"a":1,', "\\u", "Black ", "\N{COMBINING ACUTE ACCENT}", "a\u0301", "\u0e01"),
    *("**", ")**", "x**2", "<", "<a", "<think>", "</think>", "null,", "e-", "日"),
    *('{"', '{"a', '{"\\"', '\\"', '{"a":{', '{"a":1}', '{"a":[', "~~~", "[THINK]"),
]


def unless(error: type[Exception], read: Callable[[str], object]) -> Callable[[str], object]:
    def run(text: str) -> object:
        try:
            return read(text)
        except error:
            return None

    return run


def in_doubt(text: str) -> str | None:
    gold = "1 2 3 a b c"
    entry = {"answer": gold, "question": "Round 1 to 2 decimal places.", "metadata": {}}
    return doubt(text, entry, {"answer"}, "chain_sum")


class Answer(BaseModel):
    a: int


def structured(start: str, end: str, text: str) -> Answer:
    return require_model(Reply(start + text + end, "stop", None), "judge", Answer)


READERS: dict[str, Callable[[str], object]] = {
    "extract_answer": extract_answer,
    "extract_answer, prefix": partial(extract_answer, prefix="Answer:"),
    "extract_boxed": extract_boxed,
    "extract_final_answer": extract_final_answer,
    "same_answer": partial(same_answer, gold="3"),
    "same_answer, text": partial(same_answer, gold="yes"),
    # int() refuses thousands of digits
    "gym doubt": unless(ValueError, in_doubt),
    **{f"is_safe {task}": partial(is_safe, task=task) for task in ("countdown", "n_queens")},
    **{f"is_safe {task}": partial(is_safe, task=task) for task in ("rubiks_cube", "coin_flip")},
    "is_safe polynomial": partial(is_safe, task="polynomial_multiplication"),
    "is_antiderivative": partial(is_antiderivative, integrand="2*x", variable="x"),
    "is_safe integration": partial(is_safe, task="simple_integration"),
    **{
        f"structured answer {start!r}": unless(LLMError, partial(structured, start, end))
        for start, end in (
            ("Well ", ""),
            ("<think>", '</think>{"a":1}'),
            ("```json\n", "\n```"),
            ("[", "]"),
        )
    },
    "self-edit": unless(SelfEditError, partial(parse_self_edit, bounds=Bounds())),
    **{
        f"grid {name}": unless(GridParseError, partial(parse_grid, grid_format=name))
        for name in ("numpy", "digits", "words")
    },
    **{f"bbh {task.name}": partial(read_answer, task=task) for task in TASKS[::9]},
    **{name: p.shown_in for name, p in PROPERTIES.items() if p.rule is not None},
    "normalise": normalise,
    "words": words,
    "duplicates": lambda text: remove_duplicates([text, text[1:]]),
}


def seconds(read: Callable[[str], object], text: str) -> float:
    start = time.process_time()
    read(text)
    return time.process_time() - start


def in_proportion(read: Callable[[str], object], short: str, long: str) -> bool:
    """Of three times each the least, since other processes only ever add; one is mostly enough."""
    shorts, longs = [], []
    for _ in range(3):
        longs.append(seconds(read, long))
        if longs[-1] < TOO_SHORT:
            return True
        shorts.append(seconds(read, short))
        if min(longs) < LIMIT * min(shorts):
            return True
    return False


@pytest.mark.parametrize("name", READERS)
def test_reading_takes_time_in_proportion(name: str) -> None:
    read = READERS[name]
    # takes ten times as long as the others
    short = LENGTH // 4 if name == "duplicates" else LENGTH
    for piece in PIECES:
        for end in ("", "x", "\n"):
            texts = [piece * (length // len(piece)) + end for length in (short, TIMES * short)]
            assert in_proportion(read, *texts), (name, piece, end)
