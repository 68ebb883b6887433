"""An evaluation's tables, for the terminal and for its page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from evaluation.behaviour.agreement import Agreement
from evaluation.behaviour.analysis import Comparison
from evaluation.behaviour.results import Summary
from training.adapter_proof import UNTRAINED
from utils.llm.ledger import Ledger
from utils.llm.runs import ledger_text
from utils.runs.tables import text_table

COMPARISON_HEADERS = (
    *("property", "model", "base", "tuned", "difference", "95% interval", "p (Holm)", "verdict"),
)
DETAIL_HEADERS = (
    *("property", "model", "p", "p (sign flip)", "detectable", "exhibits", "p (McNemar)"),
    *("prompts", "left out", "clusters", "unscored"),
)
SCORE_HEADERS = (
    *("property", "model", "prompts of", "mean", "exhibits", "prompts", "scored"),
    *("judgments", "unscored"),
)
ANY_OF_K_INTERVAL = "95% interval"
ANY_OF_K_HEADERS = ("property", "model", "k", "any of k exhibits", ANY_OF_K_INTERVAL, "prompts")
QUALITY_HEADERS = (*("model", "coherence", "eval-awareness", "conversations", "failed", "cut off"),)
AGREEMENT_HEADERS = (
    *("property", "n", "same exhibits", "commonest", "its share", "kappa (exhibits)"),
    *("alpha (scores)", "rho (scores)"),
)
UNSCORED_HEADERS = ("judge", "kind", "unscored", "of", "example")


def comparison_rows(summary: Summary) -> list[list[Any]]:
    """Under COMPARISON_HEADERS."""
    return [
        [
            *(row.property, row.model, row.scores.base_mean, row.scores.tuned_mean),
            *(difference_text(row), interval_text(row), row.p_holm, verdict_text(summary, row)),
        ]
        for row in summary.comparisons
    ]


def detail_rows(summary: Summary) -> list[list[Any]]:
    """Under DETAIL_HEADERS; `left out` are prompts, `unscored` judgments."""
    return [
        [
            *(row.property, row.model, row.scores.p, row.p_sign_flip),
            *(row.scores.minimum_detectable, rates_text(row), row.mcnemar.p),
            *(row.scores.n_prompts, row.scores.n_unscored, row.scores.n_clusters),
            row.n_unscored,
        ]
        for row in summary.comparisons
    ]


def score_rows(summary: Summary) -> list[list[Any]]:
    """Under SCORE_HEADERS."""
    return [
        [
            *(row.property, row.model, "its own" if row.own else "others", row.mean),
            *(percent(row.exhibits_rate), row.n_prompts, row.n_scored_prompts),
            *(row.n_judgments, row.n_unscored),
        ]
        for row in summary.scores
    ]


def any_of_k_table(summary: Summary) -> tuple[tuple[str, ...], list[list[Any]]]:
    """Headers and rows; without intervals where there is none, of a single prompt say."""
    if all(row.interval is None for row in summary.any_of_k):
        headers = tuple(name for name in ANY_OF_K_HEADERS if name != ANY_OF_K_INTERVAL)
        return headers, [
            [row.property, row.model, row.k, percent(row.share), row.n_prompts]
            for row in summary.any_of_k
        ]
    return ANY_OF_K_HEADERS, [
        [
            *(row.property, row.model, row.k, percent(row.share)),
            f"{percent(row.interval[0])} to {percent(row.interval[1])}" if row.interval else None,
            row.n_prompts,
        ]
        for row in summary.any_of_k
    ]


def quality_rows(summary: Summary) -> list[list[Any]]:
    """Under QUALITY_HEADERS."""
    return [
        [
            *(row.model, row.coherence, row.eval_awareness, row.n_conversations),
            *(row.n_failed, row.n_truncated),
        ]
        for row in summary.quality
    ]


def unscored_rows(summary: Summary) -> list[list[Any]]:
    """Under UNSCORED_HEADERS, a row for each judge and kind."""
    return [
        [row.judge, kind, count, row.of, row.examples[kind]]
        for row in summary.unscored
        for kind, count in row.kinds.items()
    ]


def agreement_rows(rows: Sequence[Agreement]) -> list[list[Any]]:
    """Under AGREEMENT_HEADERS."""
    return [
        [
            *(row.property, row.n, percent(row.identical)),
            *(
                (None, None)
                if row.base_rate is None
                else ("shown" if row.base_rate.label else "not shown", percent(row.base_rate.share))
            ),
            *(row.kappa, row.alpha, row.rho),
        ]
        for row in rows
    ]


def agreement_parts(summary: Summary) -> Iterator[tuple[str, list[Agreement]]]:
    """(title, rows) of what was measured of the judges."""
    yield from (
        (title, rows)
        for title, rows in (
            ("The judge with itself, over repeats", summary.repeats),
            ("The judge with the second judge", summary.judges),
            ("The judge with people's labels", summary.labels),
        )
        if rows
    )


def verdict_text(summary: Summary, row: Comparison) -> str:
    return "untrained adapter" if row.model in summary.untrained else row.verdict


def notes_of(summary: Summary) -> list[str]:
    """What is to be known about the models, and what the statistics say about themselves."""
    return [f"{model}: {UNTRAINED}" for model in summary.untrained] + [
        f"{row.property}, {row.model}: {note}"
        for row in summary.comparisons
        for note in row.scores.notes
    ]


def difference_text(row: Comparison) -> str | None:
    return None if row.scores.difference is None else signed(row.scores.difference)


def interval_text(row: Comparison) -> str | None:
    if row.scores.interval is None:
        return None
    low, high = row.scores.interval
    return f"{signed(low)} to {signed(high)}"


def rates_text(row: Comparison) -> str | None:
    if row.base_rate is None or row.tuned_rate is None:
        return None
    return f"{percent(row.base_rate)} to {percent(row.tuned_rate)}"


def signed(value: float) -> str:
    """Two digits; what rounds to 0 has no minus."""
    return f"{round(value, 2) + 0.0:+.2f}"


def percent(share: float | None) -> str | None:
    return None if share is None else f"{share:.0%}"


def closing_tables(summary: Summary, ledger: Ledger) -> str:
    """What a script prints at its end."""
    parts = []
    if summary.comparisons:
        parts.append(text_table(COMPARISON_HEADERS, comparison_rows(summary)))
        parts.append(text_table(DETAIL_HEADERS, detail_rows(summary)))
        parts.append("\n".join(notes_of(summary)))
    parts.append(text_table(SCORE_HEADERS, score_rows(summary)))
    if summary.any_of_k:
        parts.append(text_table(*any_of_k_table(summary)))
    parts.append(text_table(QUALITY_HEADERS, quality_rows(summary)))
    for title, agreements in agreement_parts(summary):
        parts.append(f"{title}:\n{text_table(AGREEMENT_HEADERS, agreement_rows(agreements))}")
    parts.append(ledger_text(ledger))
    if unscored := unscored_rows(summary):
        parts.append(text_table(UNSCORED_HEADERS, unscored))
    return "\n\n".join(part for part in parts if part)
