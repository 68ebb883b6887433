"""Text tables and grids in the terminal."""

import pytest

from utils.runs.tables import text_table, truncate
from utils.runs.terminal_grids import side_by_side, terminal_grid


def test_table():
    table = text_table(["task", "score", "n"], [["a", 0.123456, 3], ["long name", None, 1200]])
    assert table.split("\n") == [
        "task        score     n",
        "─────────  ──────  ────",
        "a          0.1235     3",
        "long name       -  1200",
    ]


def test_alignment_can_be_given():
    assert text_table(["a", "b"], [["x", "yy"]], "rl").split("\n")[2] == "x  yy"
    with pytest.raises(ValueError, match="one l or r for each of 2 columns"):
        text_table(["a", "b"], [], "l")
    with pytest.raises(ValueError, match="has 1 cells for 2 columns"):
        text_table(["a", "b"], [["x"]])
    assert text_table(["a"], []) == "a\n─"


def test_cells_stay_on_one_line_and_within_their_width():
    table = text_table(["text"], [["two\nlines " + "x" * 100]], max_width=12)
    assert table.split("\n")[2] == "two lines x…"


def test_wide_characters_count_twice():
    assert [truncate(text, 1) for text in ("漢字", "é", "e\u0301")] == ["…", "é", "e\u0301"]
    assert truncate("漢字漢字", 5) == "漢字…"
    assert truncate("abc", 3) == "abc"
    rows = text_table(["a", "b"], [["漢字", 1], ["abcd", 2]]).split("\n")[2:]
    assert rows == ["漢字  1", "abcd  2"]
    # one picture of three, joined by invisible characters, is as wide as one
    family = "\N{MAN}\u200d\N{WOMAN}\u200d\N{GIRL}"
    assert text_table(["a", "b"], [[family, 1]]).split("\n")[2] == f"{family}  1"


def test_grid_in_digits(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal_grid([[1, 2], [3, 4]]) == "1 2\n3 4"
    assert terminal_grid([[1, 2], [3, 4]], expected=[[1, 0]]) == "1 2*\n3*4*"
    assert terminal_grid(None) == "(no grid)"


def test_colour_only_on_a_terminal(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert "\x1b" not in terminal_grid([[1]])
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert "\x1b[48;5;26" in terminal_grid([[1]])
    assert "><" in terminal_grid([[1]], expected=[[2]])
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in terminal_grid([[1]])


def test_side_by_side_looks_at_visible_width():
    left, right = terminal_grid([[1, 2]], colour=True), "x\ny"
    assert side_by_side([left, right], gap=" | ", labels=["in", "out"]).split("\n") == [
        "in   | out",
        f"{left} | x",
        "     | y",
    ]
    assert side_by_side([]) == ""
