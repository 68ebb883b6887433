"""ARC grids as pictures of a page: inline SVG, and what an answer has wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from utils.runs.page import escape
from utils.runs.terminal_grids import Grid

# the usual ARC colours of 0..9
ARC_COLOURS = (
    "#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00",
    "#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25",
)  # fmt: skip


class ArcPair(NamedTuple):
    """An input grid with an output; `expected` turns the output into an answer to be marked. A grid
    that could not be read is None."""

    input: Grid
    output: Grid | None
    expected: Grid | None = None
    label: str = ""


def pairs_html(pairs: Sequence[ArcPair]) -> str:
    """A card for each, with its grids and whether the answer is right."""
    cards = []
    for pair in pairs:
        grids = [_grid_figure("input", pair.input)]
        grids.append('<span class="arrow" aria-label="becomes">→</span>')
        mark = ""
        if pair.expected is None:
            grids.append(_grid_figure("output", pair.output))
        else:
            verdict = _verdict(pair.output, pair.expected)
            kind = "right" if verdict == "correct" else "wrong"
            mark = f'<span class="mark {kind}">{verdict}</span>'
            grids.append(_grid_figure("answer", pair.output, pair.expected))
            grids.append(_grid_figure("expected", pair.expected))
        label = f"<span>{escape(pair.label)}</span>" if pair.label else ""
        head = f'<div class="arc-head">{label}{mark}</div>' if label or mark else ""
        cards.append(f'<div class="arc">{head}<div class="grids">{"".join(grids)}</div></div>')
    return "".join(cards)


def grid_svg(grid: Grid, expected: Grid | None = None) -> str:
    """An ARC grid as inline SVG; cells that differ from `expected`, or that only one of the two
    has, are outlined. Colours outside 0..9 are drawn as crossed cells."""
    n_rows, n_columns = len(grid), max((len(row) for row in grid), default=0)
    if expected is not None:
        n_rows = max(n_rows, len(expected))
        n_columns = max(n_columns, max((len(row) for row in expected), default=0))
    cells: dict[int, list[str]] = {}
    lines = []
    for r, row in enumerate(grid):
        for c, value in enumerate(row):
            cells.setdefault(value if value in range(10) else -1, []).append(f"M{c} {r}h1v1h-1z")
            lines.append(f"M{c} {r}h1v1h-1z")
    paths = []
    for value, squares in sorted(cells.items()):
        colour = ARC_COLOURS[value] if value >= 0 else "#ffffff"
        paths.append(f'<path fill="{colour}" d="{"".join(squares)}"/>')
        if value < 0:
            crosses = "".join(square.replace("h1v1h-1z", "l1 1m-1 0l1 -1") for square in squares)
            paths.append(f'<path class="cross" d="{crosses}"/>')
    paths.append(f'<path class="lines" d="{"".join(lines)}"/>')
    wrong = "".join(
        f"M{c + 0.09:g} {r + 0.09:g}h.82v.82h-.82z"
        for r in range(n_rows)
        for c in range(n_columns)
        if expected is not None and _at(grid, r, c) != _at(expected, r, c)
    )
    if wrong:
        # two strokes: one of them shows on any colour
        paths.append(f'<path class="wrong-under" d="{wrong}"/><path class="wrong" d="{wrong}"/>')
    # small grids in large cells, large ones in small cells
    side = max(7, min(22, 190 // max(n_rows, n_columns, 1)))
    return (
        f'<svg class="grid" role="img" aria-label="grid of {len(grid)} rows" '
        f'width="{n_columns * side + 2}" height="{n_rows * side + 2}" '
        f'viewBox="-.04 -.04 {n_columns + 0.08:g} {n_rows + 0.08:g}">{"".join(paths)}</svg>'
    )


def n_differing(grid: Grid | None, expected: Grid) -> int:
    """Cells that differ or that only one of the grids has; all of them where there is no grid."""
    grid = grid or []
    n_rows = max(len(grid), len(expected))
    n_columns = max((len(row) for row in [*grid, *expected]), default=0)
    return sum(
        _at(grid, r, c) != _at(expected, r, c) for r in range(n_rows) for c in range(n_columns)
    )


def _at(grid: Grid, r: int, c: int) -> int | None:
    return grid[r][c] if r < len(grid) and c < len(grid[r]) else None


def _verdict(grid: Grid | None, expected: Grid) -> str:
    if grid is None:
        return "no grid"
    if [len(row) for row in grid] != [len(row) for row in expected]:
        return "wrong shape"
    n_wrong = n_differing(grid, expected)
    return {0: "correct", 1: "1 cell differs"}.get(n_wrong, f"{n_wrong} cells differ")


def _grid_figure(name: str, grid: Grid | None, expected: Grid | None = None) -> str:
    if grid is None:
        return f'<div class="gridbox"><div class="none">-</div><div>{name}</div></div>'
    n_columns = max((len(row) for row in grid), default=0)
    shape = f"{len(grid)}x{n_columns}"
    return f'<div class="gridbox">{grid_svg(grid, expected)}<div>{name} {shape}</div></div>'
