"""The table, the page and the files of scripts/knowledge.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.knowledge.rows import CLOSED_BOOK, IN_CONTEXT, OTHER, PASSAGE, UNTRAINED, Plan
from evaluation.knowledge.runs import Outcomes, row_answers
from evaluation.knowledge.table import (
    KINDS,
    Answers,
    RowAnswers,
    TableRow,
    make_table,
    rewards_of,
)
from training.domains.knowledge.passages import Passage
from training.domains.knowledge.reliability import Reliability, RewardKind
from training.domains.knowledge.seal_files import write_json
from utils.runs.files import atomic_write_text
from utils.runs.report import LINE_COLOURS, Report
from utils.runs.tables import csv_text, text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TABLE_FILE, RESULTS_FILE = "table.csv", "results.json"
_HEADERS = ("row", "right %", "95 %", "to passage", "95 %", "p (Holm)", "detectable")
_MORE_HEADERS = (
    *("row", "passages", "questions", "runs", "gained %", "kept %", "lost", "tokens", "seconds"),
    *("unscored", "failed", "missing"),
)
_LEGEND = (
    "Share of right answers with its 95 % interval over clusters of passages, each with the same "
    "weight; the difference to the row passage is paired by question. p is that of the difference, "
    "corrected for the number of rows (Holm); detectable is the true difference that so many "
    "passages would show with 80 % power. 4-way: the right answer is the likeliest of the choices "
    "(25 % by chance)."
)
_MORE_LEGEND = (
    "Gained: of what the model did not know before, in percent; kept: of what it knew; lost: how "
    "many answers, over all runs. Tokens: trained on in one run; seconds: of all runs together, "
    "each with its share of its batch. Unscored answers have no verdict; failed runs broke off; "
    "missing edits could not be had or were none."
)
_SHOWN_PASSAGES = 3
_LONGEST_EDIT = 2000


@dataclass(frozen=True)
class Results:
    """A run so far."""

    passages_P: Sequence[Passage]
    plan: Plan
    rows: Sequence[RowAnswers]
    table: Sequence[TableRow]

    @classmethod
    def of(cls, passages_P: Sequence[Passage], plan: Plan, outcomes: Outcomes) -> Results:
        rows = row_answers(plan, outcomes)
        table = make_table(passages_P, rows, closed_book=CLOSED_BOOK, base=PASSAGE)
        return cls(passages_P, plan, rows, table)

    def answers(self, row: str) -> Sequence[Answers]:
        return next((r.answers for r in self.rows if r.name == row), ())


def table_texts(results: Results) -> str:
    """The tables on screen."""
    parts = [text_table(*main_table(results.table)), text_table(*more_table(results.table))]
    return "\n\n".join([*parts, *reliability_lines(results)])


def main_table(table: Sequence[TableRow]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """What is known: headers and rows, in percent and points."""
    kinds = [kind for kind in KINDS if any(kind in row.by_kind for row in table)]
    shown = kinds if len(kinds) > 1 else []
    has_choices = any(row.choices is not None for row in table)
    rows = []
    for row in table:
        found = row.difference
        cells = [
            row.name,
            _percent(row.accuracy),
            _range(row.interval),
            None if found is None else _signed(found.difference),
            None if found is None else _range(found.interval, signed=True),
            row.p_holm,
            None if found is None else _percent(found.minimum_detectable),
            *(_percent(row.by_kind.get(kind)) for kind in shown),
            *([_percent(row.choices)] if has_choices else []),
        ]
        rows.append(tuple(cells))
    return (*_HEADERS, *shown, *(["4-way %"] if has_choices else [])), rows


def more_table(table: Sequence[TableRow]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """What it took, what was kept, and what is left out."""
    rows = []
    for row in table:
        moved = row.changes
        is_trained = row.name not in UNTRAINED
        rows.append(
            (
                *(row.name, row.num_passages, row.num_questions, row.num_runs),
                _percent(moved.gained_share) if row.name != CLOSED_BOOK else None,
                _percent(moved.kept_share) if row.name != CLOSED_BOOK else None,
                moved.lost if row.name != CLOSED_BOOK else None,
                round(row.trained_tokens) if is_trained and row.trained_tokens else None,
                round(row.seconds, 1),
                *(row.num_unscored, row.num_failed, row.num_missing),
            )
        )
    return _MORE_HEADERS, rows


def reliabilities(results: Results) -> list[tuple[str, RewardKind, Reliability]]:
    """Of the rewards between the edits of a passage, for rows with several of them and seeds."""
    found: list[tuple[str, RewardKind, Reliability]] = []
    known = results.answers(CLOSED_BOOK)
    kinds: tuple[RewardKind, ...] = ("accuracy", "logprob")
    # another passage's edits are no edits of this one
    for row in [row for row in results.rows if row.name != OTHER]:
        for kind in kinds:
            of_row = rewards_of(row, known, kind)
            if of_row is not None:
                found.append((row.name, kind, of_row))
    return found


def reliability_lines(results: Results) -> list[str]:
    return [
        f"{row}, reward {kind}: {found.told(kind)}" for row, kind, found in reliabilities(results)
    ]


def make_report(title: str, subtitle: str, results: Results, notes: Sequence[str] = ()) -> Report:
    report = Report(title, subtitle)
    for note in notes:
        report.paragraph(note)
    if not results.table:
        report.paragraph("No run is done yet.")
        return report
    report.tiles(list(_tiles(results.table)))
    report.figure(
        rows_plot(results.table),
        "Share of right answers with its 95 % interval over passages; the line is passage.",
    )
    report.table(*main_table(results.table), _LEGEND)
    report.table(*more_table(results.table), _MORE_LEGEND)
    if lines := reliability_lines(results):
        report.heading("Reliability of rewards")
        for line in lines:
            report.paragraph(line)
    _add_samples(report, results)
    return report


def rows_plot(table: Sequence[TableRow]) -> Figure:
    """A point and an interval for each row, from the top."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 0.9 + 0.32 * len(table)), layout="constrained")
    axes = figure.add_subplot()
    for y, row in enumerate(table):
        if row.accuracy is None:
            continue
        colour = LINE_COLOURS[5] if row.name in UNTRAINED else LINE_COLOURS[0]
        if row.interval is not None:
            axes.plot([100 * end for end in row.interval], [y, y], color=colour, linewidth=2)
        axes.plot([100 * row.accuracy], [y], "o", color=colour, markersize=5)
        if row.name == PASSAGE:
            axes.axvline(100 * row.accuracy, color="#b6bdc7", linewidth=0.9, zorder=0)
    axes.set_yticks(range(len(table)), [row.name for row in table], fontsize=9)
    axes.set_ylim(len(table) - 0.5, -0.5)
    axes.set_xlim(0, 100)
    axes.set_xlabel("right answers, %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#d8dce2", linewidth=0.7)
    axes.set_axisbelow(True)
    return figure


def write_files(
    folder: Path,
    results: Results,
    settings: Mapping[str, Any],
    adapters: Mapping[str, Mapping[str, str]],
) -> None:
    """table.csv and results.json, in full precision; `settings` stand in the second. `adapters`:
    where those that were kept lie."""
    plain = [_plain(row) for row in results.table]
    atomic_write_text(folder / TABLE_FILE, csv_text([_flat(row) for row in plain]))
    write_json(folder / RESULTS_FILE, {**settings, "rows": plain, "adapters": adapters})


def _add_samples(report: Report, results: Results) -> None:
    """The first passages: what each row was trained on there, and its answers."""
    report.heading("Edits and answers")
    for p, passage in enumerate(results.passages_P[:_SHOWN_PASSAGES]):
        with report.details(f"{passage.title} ({passage.id})"):
            report.pre(passage.context, "passage")
            firsts = {}
            for row in results.rows:
                mine = [a for a in row.answers if a.passage == p and a.failed is None]
                if not mine:
                    continue
                first = [a for a in mine if (a.edit, a.seed) == (mine[0].edit, mine[0].seed)]
                firsts[row.name] = {
                    place: f"{_mark(verdict)} {text}"
                    for a in first
                    for place, text, verdict in zip(
                        a.places_Q, a.answers_Q, a.correct_Q, strict=True
                    )
                }
                text = results.plan.texts_of(row.name).get((p, mine[0].edit, mine[0].seed))
                if text:
                    report.pre(_cut(text), row.name)
            report.table(
                ("question", "right", *firsts),
                [
                    (question.text, question.answer, *(f.get(q, "") for f in firsts.values()))
                    for q, question in enumerate(passage.questions)
                ],
                "The answers of each row's first run.",
            )


def _tiles(table: Sequence[TableRow]) -> list[tuple[str, Any, str]]:
    trained = [r for r in table if r.accuracy is not None and r.name not in UNTRAINED]
    named = {row.name: row for row in table if row.accuracy is not None}
    tiles: list[tuple[str, Any, str]] = []
    for name in (CLOSED_BOOK, IN_CONTEXT, PASSAGE):
        if name in named:
            tiles.append(
                (name, f"{_percent(named[name].accuracy)} %", _range(named[name].interval))
            )
    if trained:
        best = max(trained, key=lambda row: row.accuracy or 0.0)
        tiles.append(("most right", f"{_percent(best.accuracy)} %", best.name))
    return tiles


def _plain(row: TableRow) -> dict[str, Any]:
    return asdict(row)


def _flat(record: Mapping[str, Any]) -> dict[str, Any]:
    difference = record["difference"] or {}
    low, high = record["interval"] or (None, None)
    dlow, dhigh = difference.get("interval") or (None, None)
    kept = ("num_passages", "num_questions", "num_runs", "choices", "trained_tokens", "seconds")
    return {
        "row": record["name"],
        **{"accuracy": record["accuracy"], "low": low, "high": high},
        "difference": difference.get("difference"),
        **{"difference_low": dlow, "difference_high": dhigh, "p": difference.get("p")},
        "p_holm": record["p_holm"],
        "minimum_detectable": difference.get("minimum_detectable"),
        **{kind: record["by_kind"].get(kind) for kind in KINDS},
        **{name: record["changes"][name] for name in ("gained", "kept", "lost", "missing")},
        **{name: record[name] for name in kept},
        **{name: record[name] for name in ("num_unscored", "num_failed", "num_missing")},
    }


def _percent(value: float | None) -> float | None:
    return None if value is None else round(100 * value, 1)


def _signed(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:+.1f}"


def _range(interval: tuple[float, float] | None, *, signed: bool = False) -> str:
    if interval is None:
        return ""
    low, high = (f"{100 * end:+.1f}" if signed else f"{100 * end:.1f}" for end in interval)
    return f"{low} to {high}"


def _mark(correct: bool | None) -> str:
    return {True: "✓", False: "✗", None: "?"}[correct]


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_EDIT else f"{text[:_LONGEST_EDIT]}…"
