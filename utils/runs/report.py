"""One self-contained HTML file about a run: figures, tables, samples and ARC grids, no network.

report = Report("Fine-tuning on honest examples", "sft · 20260102-030405-ab12")
report.tiles([("accuracy", 0.71, "base 0.52"), ("tokens", 120_000)])
report.figure(line_plot({"train": (steps, losses)}, xlabel="step", ylabel="nats per token"))
with report.details("samples"):
    report.pre(sample)
report.write(run.path / "report.html")
"""

from __future__ import annotations

import base64
import contextlib
import html
import io
import re
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from utils.runs.files import atomic_write_text
from utils.runs.tables import cell_text, is_number
from utils.runs.terminal_grids import Grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# the usual ARC colours of 0..9
ARC_COLOURS = (
    "#000000", "#0074d9", "#ff4136", "#2ecc40", "#ffdc00",
    "#aaaaaa", "#f012be", "#ff851b", "#7fdbff", "#870c25",
)  # fmt: skip
LINE_COLOURS = ("#2b6cb0", "#c2572b", "#3b8a5f", "#8253a5", "#a17a16", "#5f6b7a")


class ArcPair(NamedTuple):
    """An input grid with an output; `expected` turns the output into an answer to be marked. A grid
    that could not be read is None."""

    input: Grid
    output: Grid | None
    expected: Grid | None = None
    label: str = ""


class Report:
    """Collects parts in order; `write` makes the file. All text is escaped."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title = title
        self.subtitle = subtitle
        # of a run that goes on: how far it is, and how often a browser shall look again
        self.status = ""
        self.reload_seconds: int | None = None
        self._parts: list[str] = []
        self._n_figures = 0

    def heading(self, text: str, level: Literal[2, 3] = 2) -> None:
        self._parts.append(f"<h{level}>{escape(text)}</h{level}>")

    def paragraph(self, text: str) -> None:
        """A paragraph for each part between blank lines."""
        for part in re.split(r"\n\s*\n", text.strip()):
            self._parts.append(f"<p>{escape(part)}</p>")

    def tiles(self, tiles: Sequence[tuple[str, Any] | tuple[str, Any, str]]) -> None:
        """Key figures: (label, value) or (label, value, note)."""
        items = []
        for label, value, *notes in tiles:
            note = f'<div class="note">{escape(notes[0])}</div>' if notes else ""
            items.append(
                f'<div class="tile"><div class="label">{escape(label)}</div>'
                f'<div class="value">{escape(_figure_text(value))}</div>{note}</div>'
            )
        self._parts.append(f'<div class="tiles">{"".join(items)}</div>')

    def table(
        self, headers: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = ""
    ) -> None:
        """Numbers to the right, floats with four digits, None as a dash; wide ones scroll."""
        for row in rows:
            if len(row) != len(headers):
                raise ValueError(
                    f"row {list(row)!r} has {len(row)} cells for {len(headers)} columns"
                )
        numeric = [
            any(is_number(row[i]) for row in rows)
            and all(row[i] is None or is_number(row[i]) for row in rows)
            for i in range(len(headers))
        ]
        number = [' class="number"' if is_numeric else "" for is_numeric in numeric]
        head = "".join(f"<th{n}>{escape(h)}</th>" for h, n in zip(headers, number, strict=True))
        body = "".join(
            "<tr>"
            + "".join(
                f"<td{n}>{escape(_table_text(cell))}</td>"
                for cell, n in zip(row, number, strict=True)
            )
            + "</tr>"
            for row in rows
        )
        self._parts.append(
            f'<figure class="table"><div class="scroll"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>{_caption(caption)}</figure>"
        )

    def figure(
        self, figure: Figure, caption: str = "", *, form: Literal["svg", "png"] = "svg"
    ) -> None:
        """A matplotlib figure; png is smaller where there are thousands of points."""
        self._n_figures += 1
        image = _svg(figure, f"figure{self._n_figures}") if form == "svg" else _png(figure, caption)
        self._parts.append(f'<figure class="plot">{image}{_caption(caption)}</figure>')

    def pre(self, text: str, label: str = "") -> None:
        """Text as it stands: a prompt, a completion, a log."""
        head = f'<div class="prelabel">{escape(label)}</div>' if label else ""
        # a browser drops the newline right after <pre>, so one is given to it
        self._parts.append(f"{head}<pre>\n{escape(text)}</pre>")

    @contextlib.contextmanager
    def details(self, summary: str, *, is_open: bool = False) -> Generator[None, None, None]:
        """What is added inside folds away under `summary`."""
        state = " open" if is_open else ""
        self._parts.append(
            f'<details{state}><summary>{escape(summary)}</summary><div class="inside">'
        )
        try:
            yield
        finally:
            self._parts.append("</div></details>")

    def arc_pairs(self, pairs: Sequence[ArcPair], caption: str = "") -> None:
        """Input → output of each pair, side by side; with an expected grid, cells that differ are
        outlined and the expected grid stands beside."""
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
        self._parts.append(
            f'<figure class="arcs"><div class="cards">{"".join(cards)}</div>'
            f"{_caption(caption)}</figure>"
        )

    def html(self) -> str:
        """The page."""
        subtitle = f'<p class="subtitle">{escape(self.subtitle)}</p>' if self.subtitle else ""
        status = f'<p class="status">{escape(self.status)}</p>' if self.status else ""
        every = self.reload_seconds
        reload = "" if every is None else f'<meta http-equiv="refresh" content="{every}">\n'
        return _PAGE.format(
            title=escape(self.title),
            style=_STYLE,
            reload=reload,
            subtitle=subtitle + status,
            body="\n".join(self._parts),
        )

    def write(self, path: Path | str) -> None:
        """Write the page, whole or not at all; an older report there is replaced."""
        atomic_write_text(path, self.html())


def line_plot(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    *,
    xlabel: str,
    ylabel: str,
    title: str = "",
    size: tuple[float, float] = (7.2, 3.4),
) -> Figure:
    """Lines (xs, ys) by name, in the report's manner; short ones show their points."""
    from matplotlib.figure import Figure

    # Figure draws with Agg; pyplot would look for a display and keep every figure alive
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.add_subplot()
    for i, (name, (xs, ys)) in enumerate(series.items()):
        marker = "o" if len(xs) <= 20 else None
        colour = LINE_COLOURS[i % len(LINE_COLOURS)]
        axes.plot(xs, ys, label=name, color=colour, marker=marker, markersize=3.5, linewidth=1.6)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if title:
        axes.set_title(title, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#d8dce2", linewidth=0.7)
    axes.set_axisbelow(True)
    if len(series) > 1:
        axes.legend(frameon=False, fontsize=9)
    return figure


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


def escape(text: object) -> str:
    """`text` for HTML; control characters and lone surrogates, which no page may hold, become �."""
    clean = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]", "\ufffd", str(text))
    return html.escape(clean)


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


def _figure_text(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return cell_text(value)


def _table_text(value: Any) -> str:
    return value if isinstance(value, str) else cell_text(value)


def _caption(text: str) -> str:
    return f"<figcaption>{escape(text)}</figcaption>" if text else ""


def _svg(figure: Figure, salt: str) -> str:
    import matplotlib

    buffer = io.StringIO()
    # without a salt of its own, the same figure would have other ids each time
    with matplotlib.rc_context({"svg.hashsalt": salt, "svg.fonttype": "path"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    # matplotlib names groups figure_1, axes_1, ... in each figure anew; nothing refers to them
    text = re.sub(r'<g id="[^"]*_\d+">|<!--.*?-->', _without_id, text, flags=re.DOTALL)
    # ids are of the page, not of the figure: a figure must not draw with another's clips and glyphs
    return re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{salt}-", text)


def _without_id(match: re.Match[str]) -> str:
    return "<g>" if match[0].startswith("<g") else ""


def _png(figure: Figure, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img alt="{escape(caption)}" src="data:image/png;base64,{data}">'


# the policy forbids the page to load anything, whatever a sample may smuggle in
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
{reload}<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<header><h1>{title}</h1>{subtitle}</header>
{body}
</main>
</body>
</html>
"""  # noqa: E501

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2530; --soft: #5c6876; --page: #fbfbfa; --card: #fff;
  --line: #dfe3e8; --code: #f3f4f5; --good: #1f7a4d; --bad: #b3402a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7eb; --soft: #9aa5b1; --page: #14181d;
  --card: #1b2027; --line: #323a44; --code: #1f252d; --good: #5cc48d; --bad: #ef8a72; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1040px; margin: 0 auto; padding: 32px 20px 72px; }
header { border-bottom: 1px solid var(--line); margin-bottom: 24px; padding-bottom: 14px; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0; letter-spacing: -.01em; }
h2 { font-size: 1.25rem; margin: 2.2em 0 .6em; }
h3 { font-size: 1.05rem; margin: 1.6em 0 .5em; }
h1, h2, h3, p, figcaption, summary { overflow-wrap: anywhere; }
td { overflow-wrap: break-word; }
p { max-width: 72ch; margin: .6em 0; white-space: pre-line; }
.subtitle { color: var(--soft); margin: .35em 0 0; }
.status { display: inline-block; margin: .7em 0 0; padding: 2px 12px; border-radius: 999px;
  border: 1px solid var(--line); background: var(--card); font-size: .9rem; }
.tiles { display: grid; gap: 12px; margin: 18px 0;
  grid-template-columns: repeat(auto-fill, minmax(158px, 1fr)); }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 14px; }
.tile .label, .tile .note { color: var(--soft); font-size: .82rem; }
.tile .value { font-size: 1.4rem; line-height: 1.4; font-weight: 600; overflow-wrap: anywhere;
  font-variant-numeric: tabular-nums; }
figure { margin: 18px 0; }
figcaption { color: var(--soft); font-size: .86rem; margin-top: 6px; max-width: 80ch; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; }
th, td { text-align: left; vertical-align: top; padding: 6px 20px 6px 0; max-width: 60ch; }
td { border-top: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.plot svg, .plot img { display: block; width: 720px; max-width: 100%; height: auto;
  background: #fff; border: 1px solid var(--line); border-radius: 8px; padding: 8px; }
pre { background: var(--code); border: 1px solid var(--line); border-radius: 8px;
  margin: 8px 0 16px; padding: 12px 14px;
  font: .85rem/1.5 ui-monospace, "SF Mono", Menlo, Consolas, monospace;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.prelabel { color: var(--soft); font-size: .82rem; margin-top: 12px; }
.prelabel + pre { margin-top: 3px; }
details { border: 1px solid var(--line); border-radius: 8px; background: var(--card);
  margin: 12px 0; }
summary { cursor: pointer; padding: 9px 14px; font-weight: 600; }
.inside { padding: 0 14px 6px; }
.inside > :first-child { margin-top: 4px; }
.cards { display: flex; flex-wrap: wrap; gap: 14px; align-items: flex-start; }
.arc { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 12px 14px; max-width: 100%; }
.arc-head { display: flex; gap: 12px; justify-content: space-between; font-size: .88rem;
  margin-bottom: 8px; }
.mark { font-weight: 600; }
.right { color: var(--good); }
.wrong { color: var(--bad); }
.grids { display: flex; flex-wrap: wrap; gap: 10px; align-items: center; }
.gridbox { text-align: center; color: var(--soft); font-size: .76rem; }
.gridbox .none { width: 66px; line-height: 64px; border: 1px dashed var(--soft); }
.grid { display: block; max-width: 100%; height: auto; margin: 0 auto 3px; }
.arrow { color: var(--soft); font-size: 1.2rem; }
.grid .lines { fill: none; stroke: #6b7280; stroke-width: .05; }
.grid .cross { fill: none; stroke: #d00; stroke-width: .08; }
.grid .wrong-under { fill: none; stroke: #000; stroke-width: .22; }
.grid .wrong { fill: none; stroke: #fff; stroke-width: .11; }
@media print { details { border: 0; } .arc, .tile, .plot { break-inside: avoid; } }
"""
