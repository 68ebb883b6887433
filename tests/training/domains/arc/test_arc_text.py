from typing import Any

import numpy as np
import pytest

from training.domains.arc.grids import to_grid
from training.domains.arc.tasks import Pair, Task
from training.domains.arc.text import (
    COLOR_NAMES,
    GridParseError,
    answer_text,
    demonstration_pieces,
    format_grid,
    parse_grid,
    task_messages,
)

FORMATS = ["numpy", "digits", "words"]
GRID = to_grid([[0, 1], [2, 3]])
TASK = Task(
    "t",
    (
        Pair(to_grid([[1]]), to_grid([[2]])),
        Pair(to_grid([[3, 4]]), to_grid([[5], [6]])),
    ),
    (Pair(to_grid([[7, 8]])), Pair(to_grid([[9]]))),
)


@pytest.mark.parametrize(
    ("grid_format", "text"),
    [
        ("numpy", "[[0 1]\n [2 3]]"),
        ("digits", "01\n23"),
        ("words", "Black Blue\nRed Green"),
    ],
)
def test_formats_by_hand(grid_format, text):
    assert format_grid(GRID, grid_format) == text
    assert answer_text(GRID, grid_format) == text + "#"
    assert parse_grid(text, grid_format).tolist() == [[0, 1], [2, 3]]


def test_numpy_format_is_what_numpy_prints():
    for shape in [(1, 1), (1, 30), (30, 1), (30, 30)]:
        grid = to_grid(np.arange(shape[0] * shape[1]).reshape(shape) % 10)
        assert format_grid(grid, "numpy") == str(np.array(grid))


@pytest.mark.parametrize("grid_format", FORMATS)
def test_round_trip(grid_format):
    rng = np.random.default_rng(0)
    for _ in range(30):
        grid = to_grid(rng.integers(0, 10, size=rng.integers(1, 31, size=2)))
        assert np.array_equal(parse_grid(answer_text(grid, grid_format), grid_format), grid)


@pytest.mark.parametrize("grid_format", FORMATS)
@pytest.mark.parametrize(
    "wrap",
    [
        "{}#",
        "  {}\n#\n",
        "{}#\n[[9 9]] -> [[1]]#",
        "```\n{}\n```",
        "```text\n{}#\n```",
        "```\n{}",
        "Here it is:\n```\n{}\n``` I hope.",
    ],
)
def test_parse_ignores_what_surrounds_a_grid(grid_format, wrap):
    text = wrap.format(format_grid(GRID, grid_format))
    assert parse_grid(text, grid_format).tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("text", "grid_format"),
    [
        ("[[0  1]\n  [2   3]]", "numpy"),
        ("[[0, 1], [2, 3]]", "numpy"),
        ("[ [0 1] [2 3] ]", "numpy"),
        ("0 1\n2  3", "digits"),
        ("01\n\n23\r\n", "digits"),
        ("black  BLUE\n red green ", "words"),
    ],
)
def test_parse_ignores_spacing(text, grid_format):
    assert parse_grid(text, grid_format).tolist() == [[0, 1], [2, 3]]


@pytest.mark.parametrize(
    ("text", "grid_format", "reason"),
    [
        ("", "numpy", "empty"),
        ("#[[1]]", "numpy", "empty"),
        ("```\n```", "digits", "empty"),
        ("[[0 1]\n [2 3]", "numpy", "not of the form"),
        ("the answer is [[1]]", "numpy", "not of the form"),
        ("[[0 1] [2]]", "numpy", "different lengths"),
        ("[[]]", "numpy", "at least 1"),
        ("[[12]]", "numpy", "0..9"),
        ("[[123456789]]", "numpy", "other than 0..9"),
        ("[[٣]]", "numpy", "other than 0..9"),
        ("12\n3", "digits", "different lengths"),
        ("1a", "digits", "'1a' has cells"),
        ("1²", "digits", "other than 0..9"),
        ("Black Teal", "words", r"\['teal'\], expected Black, Blue"),
        ("1" * 31, "digits", "1x31 is above 30x30"),
        ("1\n" * 31, "digits", "31x1 is above 30x30"),
    ],
)
def test_parse_says_why_not(text, grid_format, reason):
    with pytest.raises(GridParseError, match=reason):
        parse_grid(text, grid_format)


def test_unknown_format():
    unknown: Any = "json"
    with pytest.raises(ValueError, match="'json': allowed are numpy, digits, words"):
        format_grid(GRID, unknown)
    with pytest.raises(ValueError, match="'json'"):
        parse_grid("1", unknown)


def test_ten_color_names():
    assert len({name.lower() for name in COLOR_NAMES}) == 10


def test_messages_by_hand():
    system, user = task_messages(TASK, "numpy")
    assert system["role"] == "system"
    assert system["content"].splitlines()[1:] == ["[[1]] -> [[2]]#", "[[3 4]] -> [[5]", " [6]]#"]
    assert user == {"role": "user", "content": "[[7 8]] ->"}
    assert task_messages(TASK, "numpy", test_index=1)[1]["content"] == "[[9]] ->"
    system, user = task_messages(TASK, "digits")
    assert system["content"].splitlines()[1:] == ["1", "->", "2#", "34", "->", "5", "6#"]
    assert user["content"] == "78\n->"


def test_one_user_message_for_templates_without_system_role():
    system, user = task_messages(TASK, "words")
    (only,) = task_messages(TASK, "words", use_system=False)
    assert only == {"role": "user", "content": system["content"] + user["content"]}


@pytest.mark.parametrize("grid_format", FORMATS)
def test_pieces_join_to_the_prompt_and_mark_the_outputs(grid_format):
    pieces = demonstration_pieces(TASK, grid_format)
    content = task_messages(TASK, grid_format)[0]["content"]
    assert "".join(piece.text for piece in pieces) == content
    assert [piece.text for piece in pieces if piece.is_output] == [
        answer_text(pair.output, grid_format) for pair in TASK.train if pair.output is not None
    ]


def test_a_task_without_demonstrations_has_a_prompt():
    assert [piece.is_output for piece in demonstration_pieces(Task("t", ()), "numpy")] == [False]


def test_a_demonstration_needs_an_output():
    with pytest.raises(ValueError, match="t: a demonstration has no output"):
        demonstration_pieces(Task("t", TASK.test), "numpy")
