"""A comparison as tables for the terminal, as CSV and as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.compare.comparison import Matched, Row
from evaluation.compare.items import Side
from utils.runs.files import atomic_write_text
from utils.runs.report import LINE_COLOURS, Report
from utils.runs.tables import csv_text, text_table
from utils.terminal import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADERS = ("metric", "a", "b", "b - a", "95% interval", "p (Holm)", "verdict")
DETAIL_HEADERS = (
    *("metric", "p", "p (sign flip)", "p (McNemar)", "b alone", "a alone", "detectable"),
    *("items", "unscored", "units"),
)
SHOWN_IDS = 5
SHOWN_CHANGES = 20


def rows_of(rows: Sequence[Row]) -> list[list[Any]]:
    """Under HEADERS."""
    return [
        [
            *(visible(row.metric), row.found.base_mean, row.found.tuned_mean),
            *(_signed(row.found.difference), _interval(row), row.p_holm, row.verdict),
        ]
        for row in rows
    ]


def detail_rows(rows: Sequence[Row], cluster: str | None) -> list[list[Any]]:
    """Under DETAIL_HEADERS."""
    return [
        [
            *(visible(row.metric), row.found.p, row.p_sign_flip),
            *(
                (row.mcnemar.p, row.mcnemar.n_gained, row.mcnemar.n_lost)
                if row.mcnemar
                else [None] * 3
            ),
            *(row.found.minimum_detectable, row.found.n_prompts, row.found.n_unscored),
            _units(row, cluster),
        ]
        for row in rows
    ]


def notes_of(a: Side, b: Side, matched: Matched, rows: Sequence[Row]) -> list[str]:
    """What a reader has to know of the items and numbers, a line each."""
    number = len(matched.ids)
    notes = [f"{number} items are on both sides." if number > 1 else "1 item is on both sides."]
    for which, ids in (
        ("on a's side only", matched.only_a),
        ("on b's side only", matched.only_b),
        ("another question on each side under one id", matched.other_question),
    ):
        if ids:
            more = ", ..." if len(ids) > SHOWN_IDS else ""
            shown = ", ".join(ids[:SHOWN_IDS])
            notes.append(f"Left out, {which}: {len(ids)} ({shown}{more}).")
    notes += [f"{label}: {note}" for label, s in (("a", a), ("b", b)) for note in s.notes]
    notes += matched.notes
    for label, side in (("a", a), ("b", b)):
        notes += [f"{label}: {name} is left out: {why}" for name, why in side.unusable.items()]
    # found by one statistic for prompts and items alike
    notes += [
        f"{row.metric}: {note.replace('prompt', 'item')}"
        for row in rows
        for note in row.found.notes
    ]
    return [visible(note) for note in notes]


def closing_text(
    a: Side, b: Side, matched: Matched, rows: Sequence[Row], cluster: str | None
) -> str:
    """What the script prints at its end."""
    parts = [
        "\n".join(visible(f"{label}: {s.model} ({s.path})") for label, s in (("a", a), ("b", b))),
        text_table(HEADERS, rows_of(rows)),
        text_table(DETAIL_HEADERS, detail_rows(rows, cluster)),
        "\n".join(notes_of(a, b, matched, rows)),
    ]
    return "\n\n".join(parts)


def write_csv(
    folder: Path, a: Side, b: Side, matched: Matched, rows: Sequence[Row], cluster: str | None
) -> None:
    """comparison.csv, a row per metric in full precision, and items.csv, a row per item."""
    atomic_write_text(folder / "comparison.csv", csv_text([_plain(row) for row in rows]))
    items = []
    for id in matched.ids:
        first, second = a.items[id], b.items[id]
        line: dict[str, Any] = {"item": visible(id)}
        if cluster is not None:
            line[visible(cluster)] = visible(str(first.fields[cluster]))
        for row in rows:
            line[visible(f"{row.metric} a")] = first.scores.get(row.metric)
            line[visible(f"{row.metric} b")] = second.scores.get(row.metric)
        items.append(line)
    atomic_write_text(folder / "items.csv", csv_text(items))


def _plain(row: Row) -> dict[str, Any]:
    found, mcnemar = row.found, row.mcnemar
    low, high = found.interval or (None, None)
    return {
        "metric": visible(row.metric),
        "a": found.base_mean,
        "b": found.tuned_mean,
        "difference": found.difference,
        "low": low,
        "high": high,
        "p": found.p,
        "p_holm": row.p_holm,
        "p_sign_flip": row.p_sign_flip,
        "p_mcnemar": mcnemar.p if mcnemar else None,
        "n_b_alone": mcnemar.n_gained if mcnemar else None,
        "n_a_alone": mcnemar.n_lost if mcnemar else None,
        "minimum_detectable": found.minimum_detectable,
        "n_items": found.n_prompts,
        "n_unscored": found.n_unscored,
        "n_units": len(found.unit_differences),
        "verdict": row.verdict,
    }


def write_report(
    folder: Path, a: Side, b: Side, matched: Matched, rows: Sequence[Row], cluster: str | None
) -> Path:
    report = Report("Comparison", visible(f"{a.model} (a) and {b.model} (b)"))
    report.tiles(list(_tiles(rows)))
    for note in notes_of(a, b, matched, rows):
        report.paragraph(note)
    report.figure(
        difference_plot(rows),
        "b minus a with 95% intervals, each metric in its own unit.",
    )
    units = "items" if cluster is None else f"clusters of items of one {cluster}, all alike"
    report.table(
        HEADERS,
        rows_of(rows),
        f"Means and differences weigh {units}; the interval is Student's t over them, and Holm's p "
        "is corrected for the number of metrics.",
    )
    report.table(
        DETAIL_HEADERS,
        detail_rows(rows, cluster),
        "p of the t test without correction, of the sign-flip test, which assumes less, and of "
        "McNemar's exact test where every score is 0 or 1 (over items, whatever the clusters); the "
        "items that b alone, or a alone, got right; the true difference that this many units would "
        "show with 80% power.",
    )
    for row in rows:
        _add_changes(report, a, b, matched, row)
    path = folder / "report.html"
    report.write(path)
    return path


def difference_plot(rows: Sequence[Row]) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 0.9 + 0.75 * len(rows)), layout="constrained")
    # metrics are in units of their own, so each has its own axis
    panels = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axes, row in zip(panels, rows, strict=True):
        if row.found.interval is not None:
            axes.plot(row.found.interval, [0, 0], color=LINE_COLOURS[0], linewidth=2)
        if row.found.difference is not None:
            axes.plot([row.found.difference], [0], "D", color=LINE_COLOURS[0], markersize=6)
        axes.axvline(0, color="#5c6876", linewidth=0.8)
        axes.set_yticks([0], [visible(row.metric).replace("$", r"\$")])
        axes.set_ylim(-1, 1)
        axes.spines[["top", "right", "left"]].set_visible(False)
    return figure


def _add_changes(report: Report, a: Side, b: Side, matched: Matched, row: Row) -> None:
    """The items whose score changed most, with the question and both answers."""
    metric, changed = row.metric, []
    for id in matched.ids:
        before, after = a.items[id].scores.get(metric), b.items[id].scores.get(metric)
        if before is not None and after is not None and before != after:
            changed.append((after - before, id))
    changed.sort(key=lambda change: -abs(change[0]))
    number = row.found.n_prompts
    report.heading(
        f"{visible(metric)}: {len(changed)} of {number} item{'' if number == 1 else 's'} changed"
    )
    if len(changed) > SHOWN_CHANGES:
        report.paragraph(f"The {SHOWN_CHANGES} that changed most; all scores are in items.csv.")
    for difference, id in changed[:SHOWN_CHANGES]:
        first, second = a.items[id], b.items[id]
        with report.details(f"{visible(id)}: {_signed(difference)}"):
            if first.question:
                report.pre(first.question, "question")
            report.pre(first.answer, f"a: {first.scores[metric]:g}")
            report.pre(second.answer, f"b: {second.scores[metric]:g}")


def _tiles(rows: Sequence[Row]) -> Iterator[tuple[str, Any, str]]:
    for row in rows:
        p = "no p value" if row.p_holm is None else f"Holm p {row.p_holm:.2g}"
        yield visible(row.metric), _signed(row.found.difference) or "-", f"{row.verdict}; {p}"


def _interval(row: Row) -> str | None:
    if row.found.interval is None:
        return None
    low, high = row.found.interval
    return f"{_signed(low)} to {_signed(high)}"


def _signed(value: float | None) -> str | None:
    """Three digits; what rounds to 0 has no minus."""
    return None if value is None else f"{float(f'{value:.3g}') + 0.0:+g}"


def _units(row: Row, cluster: str | None) -> str:
    number = len(row.found.unit_differences)
    unit = "item" if cluster is None or row.found.unit == "prompt" else "cluster"
    return f"{number} {unit}{'' if number == 1 else 's'}"
