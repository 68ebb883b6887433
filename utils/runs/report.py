"""One self-contained HTML file about a run: figures, tables, samples and ARC grids, no network.

report = Report("Fine-tuning on honest examples", "sft · 20260102-030405-ab12")
report.tiles([("accuracy", 0.71, "base 0.52"), ("tokens", 120_000)])
report.figure(line_plot({"train": (steps, losses)}, xlabel="step", ylabel="nats per token"))
with report.details("samples"):
    report.pre(sample)
report.write(run.path / "report.html")
"""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from utils.runs.files import atomic_write_bytes, atomic_write_text
from utils.runs.grid_pictures import ArcPair, pairs_html
from utils.runs.page import escape, page_html
from utils.runs.tables import cell_text, numeric_columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LINE_COLOURS = ("#2b6cb0", "#c2572b", "#3b8a5f", "#8253a5", "#a17a16", "#5f6b7a")


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
        numeric = numeric_columns(headers, rows)
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

    def figure(self, figure: Figure, caption: str = "") -> None:
        """A matplotlib figure."""
        self._n_figures += 1
        image = _svg(figure, f"figure{self._n_figures}")
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
        self._parts.append(
            f'<figure class="arcs"><div class="cards">{pairs_html(pairs)}</div>'
            f"{_caption(caption)}</figure>"
        )

    def html(self) -> str:
        """The page."""
        return page_html(
            self.title,
            self._parts,
            subtitle=self.subtitle,
            status=self.status,
            reload_seconds=self.reload_seconds,
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


def _figure_text(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return cell_text(value)


def _table_text(value: Any) -> str:
    return value if isinstance(value, str) else cell_text(value)


def _caption(text: str) -> str:
    return f"<figcaption>{escape(text)}</figcaption>" if text else ""


def save_png(figure: Figure, path: Path, *, dpi: int = 160) -> None:
    """Whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    atomic_write_bytes(path, buffer.getvalue())


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
