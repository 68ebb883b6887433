"""Text tables and grids in the terminal."""

import pytest
from rich.cells import cell_len

from utils.runs.tables import csv_of_table, csv_text, numeric_columns, text_table, truncate
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


def test_columns_of_numbers_are_told():
    headers = ["a", "b", "c", "d", "e"]
    rows = [[0, 2.5, None, True, ""], [None, float("nan"), None, 1, 2]]
    assert numeric_columns(headers, rows) == [True, True, False, False, False]
    assert numeric_columns(headers, []) == [False] * 5
    with pytest.raises(ValueError, match="has 4 cells for 5 columns"):
        numeric_columns(headers, [rows[0], rows[1][:4]])


def test_csv_has_every_column_and_what_it_needs_in_quotes():
    rows = [{"a": 1, "b": 0.1}, {"c": 'say "hi",\nx', "a": None}, {"b": True, "c": ""}]
    expected = 'a,b,c\n1,0.1,\n,,"say ""hi"",\nx"\n,True,\n'
    assert csv_text(rows) == expected and csv_text([]) == "\n"
    assert csv_text([{"a": None}]) == 'a\n""\n'
    assert csv_of_table("aba", [(1, None, 3), (4, "x,y", 6)]) == 'a,b,a\n1,,3\n4,"x,y",6\n'
    assert csv_of_table(["a"], []) == "a\n"


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


def columns(table: str) -> list[str]:
    return [line.rstrip() for line in table.split("\n")]


def test_a_table_fits_the_terminal_and_loses_nothing(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    headers = ["property", "model", *(f"p (the {i}th test)" for i in range(9))]
    row = ["signs-off", "proof/000030", *(round(0.111 * i, 3) for i in range(9))]
    table = text_table(headers, [row, row])
    assert max(map(len, columns(table))) <= 100
    # long headers first: they take more lines, above the rule
    assert "\n\n" not in table
    *above, header, rule, first, second = columns(table)
    assert above and header.split() == ["property", "model", *["test)"] * 9]
    assert set(rule) == {"─", " "}
    assert (
        first.split() == second.split() == [f"{c:.4g}" if isinstance(c, float) else c for c in row]
    )
    # a wider terminal is used
    monkeypatch.setenv("COLUMNS", "240")
    assert len(text_table(headers, [row]).split("\n")) == 3


def test_columns_that_do_not_fit_follow_below(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    headers = ["task", "model", *(f"a_number_of_{i}" for i in range(12))]
    blocks = text_table(headers, [["t", "m", *range(12)]]).split("\n\n")
    shown = [[line.split() for line in block.split("\n")] for block in blocks]
    assert len(shown) == 3
    assert all((header[:2], row[:2]) == (headers[:2], ["t", "m"]) for header, _, row in shown)
    assert [name for header, _, _ in shown for name in header[2:]] == headers[2:]
    assert [number for _, _, row in shown for number in row[2:]] == [str(i) for i in range(12)]
    assert max(len(line) for block in blocks for line in columns(block)) <= 100


def test_long_texts_are_wrapped_and_words_stay_whole(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    words = " ".join(f"word{i}" for i in range(9))
    table = text_table(["a", "b", "n"], [[words, "漢字 " * 11, 1], [words, "y", 2]])
    lines = columns(table)
    assert max(map(cell_len, lines)) <= 100
    assert lines[2].endswith("  1") and lines[3].startswith("word")
    assert [table.count(word) for word in words.split()] == [2] * 9
    assert table.count("漢字") == 11


def test_grid_in_digits(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert terminal_grid([[1, 2], [3, 4]]) == "1 2\n3 4"
    assert terminal_grid([[1, 2], [3, 4]], expected=[[1, 0]]) == "1 2*\n3*4*"
    assert terminal_grid(None) == "(no grid)"


def test_grid_in_colour():
    assert "\x1b[48;5;26" in terminal_grid([[1]], colour=True)
    assert "><" in terminal_grid([[1]], expected=[[2]], colour=True)


def test_side_by_side_looks_at_visible_width():
    left, right = terminal_grid([[1, 2]], colour=True), "x\ny"
    assert side_by_side([left, right], gap=" | ", labels=["in", "out"]).split("\n") == [
        "in   | out",
        f"{left} | x",
        "     | y",
    ]
    assert side_by_side([]) == ""
