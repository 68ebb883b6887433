"""ARC grids as coloured blocks in a terminal, or as digits where there is no colour."""

from __future__ import annotations

import re
from collections.abc import Sequence

from rich.cells import cell_len

from utils.terminal import wants_colour

Grid = Sequence[Sequence[int]]

# the usual ARC colours, in the 256 that every terminal has
ANSI_COLOURS = (16, 26, 203, 41, 220, 248, 199, 208, 117, 88)
_ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


def terminal_grid(
    grid: Grid | None, *, expected: Grid | None = None, colour: bool | None = None
) -> str:
    """Lines of text, two columns per cell; cells that differ from `expected` are marked, with >< on
    colour and * after a digit. `colour=None` asks the terminal."""
    if grid is None:
        return "(no grid)"
    colour = wants_colour() if colour is None else colour
    lines = []
    for r, row in enumerate(grid):
        cells = [
            _cell(value, _differs(expected, r, c, value), colour) for c, value in enumerate(row)
        ]
        lines.append("".join(cells) if colour else "".join(cells).rstrip())
    return "\n".join(lines)


def side_by_side(blocks: Sequence[str], *, gap: str = "   ", labels: Sequence[str] = ()) -> str:
    """Blocks of text beside each other, tops aligned, each under its label if there are any."""
    columns = [block.split("\n") for block in blocks]
    if labels:
        columns = [[label, *lines] for label, lines in zip(labels, columns, strict=True)]
    height = max((len(lines) for lines in columns), default=0)
    widths = [max(_visible_width(line) for line in lines) for lines in columns]
    rows = []
    for i in range(height):
        cells = [lines[i] if i < len(lines) else "" for lines in columns]
        padded = [c + " " * (w - _visible_width(c)) for c, w in zip(cells, widths, strict=True)]
        rows.append(gap.join(padded).rstrip(" "))
    return "\n".join(rows)


def _cell(value: int, differs: bool, colour: bool) -> str:
    if not colour:
        return f"{value}{'*' if differs else ' '}"
    background = ANSI_COLOURS[value] if value in range(10) else 231
    foreground = 16 if value in (3, 4, 5, 7, 8) else 231
    return f"\x1b[48;5;{background};38;5;{foreground}m{'><' if differs else '  '}\x1b[0m"


def _differs(expected: Grid | None, r: int, c: int, value: int) -> bool:
    if expected is None:
        return False
    return r >= len(expected) or c >= len(expected[r]) or expected[r][c] != value


def _visible_width(line: str) -> int:
    return cell_len(_ESCAPE.sub("", line))
