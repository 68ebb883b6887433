"""The page about a generation run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from generation.kinds import Kind
from generation.quality import Example, QualityReport
from utils.llm.ledger import Ledger
from utils.llm.runs import add_calls, ledger_text
from utils.runs.report import Report
from utils.runs.tables import text_table

SHOWN_PER_SUBTYPE = 4
DIVERSITY_HEADERS = (
    *("texts", "number", "distinct-1", "distinct-2", "distinct-3", "mean Jaccard", "mean words"),
)


def report_title(kind: Kind, property: str) -> str:
    return f"Generated {kind.name}: {property}"


def quality_rows(report: QualityReport) -> list[tuple[str, Any]]:
    """What the screen and the page say about quality, in words."""
    rows: list[tuple[str, Any]] = [
        ("not written: call failed", report.calls_failed),
        ("of the right shape", report.shape_valid),
    ]
    rows += [(f"dropped: {why}", count) for why, count in report.content_invalid.items()]
    rows.append(("dropped: repeat another", report.duplicates_removed))
    if report.leakage is not None:
        rows.append(("dropped: near an eval prompt", report.leakage["removed"]))
    if report.verification is not None:
        rate = report.verification["agreement"]
        share = "none could be verified" if rate is None else f"{rate:.0%}"
        rows.append((f"labels that a {report.verification['by']} confirms", share))
        rows.append(("labels not verified: call failed", report.verification["not_verified"]))
        rows.append(("dropped: label not confirmed", report.verification["removed"]))
    rows += [(f"kept, {label}", count) for label, count in report.kept_by_label.items()]
    rows.append(("of them held out", report.held_out))
    return rows


def diversity_rows(report: QualityReport) -> list[list[Any]]:
    keys = ("n_texts", "distinct_1", "distinct_2", "distinct_3", "mean_jaccard", "mean_words")
    return [[name, *(found[key] for key in keys)] for name, found in report.diversity.items()]


def closing_tables(report: QualityReport, ledger: Ledger) -> str:
    """What a script prints at its end."""
    parts = [text_table(("", "examples"), quality_rows(report))]
    if report.diversity:
        parts.append(text_table(DIVERSITY_HEADERS, diversity_rows(report)))
    return "\n\n".join([*parts, ledger_text(ledger)])


def make_report(
    run_id: str,
    *,
    kind: Kind,
    examples: Sequence[Example],
    subtypes: Sequence[str],
    quality: QualityReport,
    ledger: Ledger,
    settings: Mapping[str, Any],
) -> Report:
    report = Report(report_title(kind, settings["property"]), run_id)
    rate = None if quality.verification is None else quality.verification["agreement"]
    report.tiles(
        [
            ("examples kept", quality.kept, f"{quality.held_out} of them held out"),
            ("subtypes", len(subtypes)),
            ("labels confirmed", "-" if rate is None else f"{rate:.0%}"),
            ("calls failed", ledger.given_up),
            ("cost", f"${ledger.cost_usd:.4g}"),
        ]
    )
    report.heading("Quality")
    report.table(("", "examples"), quality_rows(quality))
    report.table(DIVERSITY_HEADERS, diversity_rows(quality), "Low Jaccard: texts are unlike.")
    if quality.leakage is not None:
        rows = [
            [leak["id"], leak["jaccard"], leak["eval_prompt"]]
            for leak in quality.leakage["highest"]
        ]
        report.table(("example", "Jaccard", "nearest eval prompt"), rows, "Nearest eval prompts.")
    report.heading("Examples")
    for subtype in subtypes:
        own = [e for e in examples if e.subtype == subtype]
        with report.details(f"{subtype} ({len(own)})"):
            for example in own[:SHOWN_PER_SUBTYPE]:
                report.paragraph(f"{example.id}: {example.prompt}")
                if example.given:
                    report.pre(example.given, "user")
                verified = f", verified as {example.verified}" if example.verified else ""
                report.pre(example.output, f"{example.label}{verified}")
    add_calls(report, ledger)
    return report
