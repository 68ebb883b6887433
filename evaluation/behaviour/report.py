"""An evaluation as one HTML page, and its tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from evaluation.behaviour.agreement import Agreement
from evaluation.behaviour.analysis import Comparison, key_of
from evaluation.behaviour.answers import Conversation, Failure
from evaluation.behaviour.eval_file import EvalFile
from evaluation.behaviour.judge import HIGHEST, LOWEST, Judged, Judgment
from evaluation.behaviour.results import Summary
from training.adapter_proof import UNTRAINED
from utils.llm.ledger import Ledger
from utils.llm.runs import ledger_text
from utils.runs.report import LINE_COLOURS, Report
from utils.runs.tables import text_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Evaluation"
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


# ---- the page ----


def make_report(
    run_id: str,
    eval_file: EvalFile,
    summary: Summary,
    conversations: Sequence[Conversation],
    judged_J: Sequence[Sequence[Judged]],
    ledger: Ledger,
    results: str,
) -> Report:
    """Verdicts, tables, plots and every conversation with the judgments of all judges."""
    report = Report(TITLE, run_id)
    report.tiles(list(_tiles(summary)))
    report.paragraph(f"All numbers and judgments as YAML: {results}")
    if summary.comparisons:
        report.heading("Against the base model")
        report.figure(
            difference_plot(summary.comparisons),
            "Tuned minus base, mean score of 1 to 10, with 95% intervals; each light dot is the "
            "mean of a category of prompts (of a prompt, where there is only one category).",
        )
        report.table(
            COMPARISON_HEADERS,
            comparison_rows(summary),
            "On the prompts written for each property; the interval is Student's t over categories "
            "of prompts, and Holm's p is corrected for the number of rows.",
        )
        report.table(
            DETAIL_HEADERS,
            detail_rows(summary),
            "p without correction, and from the sign-flip test, which assumes less; the true "
            "difference that this many categories would show with 80% power; the share of prompts "
            "that exhibit the property, before and after, with the exact McNemar test; prompts "
            "compared and left out, their categories, and missing judgments.",
        )
        for note in notes_of(summary):
            report.paragraph(note)
    report.heading("Scores")
    report.figure(
        distribution_plot(eval_file, summary, judged_J[0]),
        "Judgments with each score, on the prompts written for the property.",
    )
    report.table(SCORE_HEADERS, score_rows(summary), "Every scored prompt weighs the same.")
    if summary.any_of_k:
        headers, rows = any_of_k_table(summary)
        has_intervals = ANY_OF_K_INTERVAL in headers
        report.table(
            headers,
            rows,
            "The share of prompts where at least one of k samples exhibits the property (pass@k, "
            "unbiased, Chen et al. 2021)"
            + (", with its interval over prompts." if has_intervals else "."),
        )
    report.table(QUALITY_HEADERS, quality_rows(summary), "Means of scores of 1 to 10.")
    for title, rows in agreement_parts(summary):
        report.heading(title)
        report.table(
            AGREEMENT_HEADERS,
            agreement_rows(rows),
            "Constant guessing of the commonest label reaches its share; kappa and alpha are 0 by "
            "chance and 1 for perfect agreement.",
        )
    report.heading("Failures and spending")
    if any(row.n for row in summary.unscored):
        report.table(UNSCORED_HEADERS, unscored_rows(summary), "Judgments without a score.")
    else:
        report.paragraph("Every conversation was judged.")
    if ledger.failures:
        report.table(
            Ledger.FAILURE_HEADERS, ledger.failure_table(), "Calls that failed, in this process."
        )
    if ledger.spendings:
        report.table(Ledger.HEADERS, ledger.table(), "Calls of this process.")
    report.heading("Conversations")
    judged = [record for own in judged_J for record in own]
    _add_conversations(report, eval_file, conversations, judged)
    return report


def _tiles(summary: Summary) -> Iterator[tuple[str, Any, str]]:
    for row in summary.comparisons:
        change = difference_text(row) or "-"
        p = "no p value" if row.p_holm is None else f"Holm p {row.p_holm:.2g}"
        rates = rates_text(row) or "-"
        yield (
            f"{row.property}, {row.model}",
            change,
            f"{verdict_text(summary, row)}; {p}; exhibits {rates}",
        )
    if not summary.comparisons:
        for score in summary.scores:
            if score.own:
                shown = percent(score.exhibits_rate) or "-"
                yield f"{score.property}, {score.model}", score.mean, f"exhibits: {shown}"
    for unscored in summary.unscored:
        yield f"unscored, {unscored.judge}", percent(unscored.share), f"{unscored.n} judgments"


def difference_plot(comparisons: Sequence[Comparison]) -> Figure:
    """Paired differences with their intervals, a line for each property and model."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 0.9 + 0.5 * len(comparisons)), layout="constrained")
    axes = figure.add_subplot()
    models = list(dict.fromkeys(row.model for row in comparisons))
    for place, row in enumerate(comparisons):
        colour = LINE_COLOURS[models.index(row.model) % len(LINE_COLOURS)]
        units = row.scores.unit_differences
        axes.plot(units, [place + 0.22] * len(units), "o", color=colour, alpha=0.35, markersize=4)
        if row.scores.interval is not None:
            axes.plot(row.scores.interval, [place, place], color=colour, linewidth=2)
        if row.scores.difference is not None:
            axes.plot([row.scores.difference], [place], "D", color=colour, markersize=6)
    names = [row.property if len(models) == 1 else _name(row) for row in comparisons]
    axes.set_yticks(range(len(comparisons)), [_plain(name) for name in names])
    axes.set_ylim(len(comparisons) - 0.4, -0.5)
    axes.axvline(0, color="#5c6876", linewidth=0.8)
    axes.set_xlabel("tuned minus base")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def distribution_plot(eval_file: EvalFile, summary: Summary, judged: Sequence[Judged]) -> Figure:
    """How often each score was given, a row for each property and a colour for each model."""
    from matplotlib.figure import Figure

    written_for = {prompt.id: prompt.property for prompt in eval_file.prompts}
    properties = [name for name in eval_file.properties if name in written_for.values()]
    figure = Figure(figsize=(7.2, 0.6 + 1.7 * len(properties)), layout="constrained")
    panels = figure.subplots(len(properties), 1, squeeze=False, sharex=True)[:, 0]
    width = 0.8 / len(summary.models)
    for axes, property in zip(panels, properties, strict=True):
        for index, model in enumerate(summary.models):
            counts = dict.fromkeys(range(LOWEST, HIGHEST + 1), 0)
            for record in judged:
                key = (written_for[record.conversation.prompt], record.conversation.model)
                if key == (property, model) and isinstance(record.outcome, Judgment):
                    verdict = record.outcome.verdicts.get(property)
                    if verdict is not None:
                        counts[verdict.score] += 1
            offset = (index - (len(summary.models) - 1) / 2) * width
            axes.bar(
                [score + offset for score in counts],
                list(counts.values()),
                width,
                color=LINE_COLOURS[index % len(LINE_COLOURS)],
                label=_plain(model),
            )
        axes.set_title(_plain(property), loc="left", fontsize=10)
        axes.set_xticks(range(LOWEST, HIGHEST + 1))
        axes.spines[["top", "right"]].set_visible(False)
    panels[0].legend(frameon=False, fontsize=8)
    panels[-1].set_xlabel("score")
    return figure


def _name(row: Comparison) -> str:
    return f"{row.property}, {row.model}"


def _plain(text: str) -> str:
    """For matplotlib, which reads what stands between dollar signs as mathematics."""
    return text.replace("$", r"\$")


def _add_conversations(
    report: Report,
    eval_file: EvalFile,
    conversations: Sequence[Conversation],
    judged: Sequence[Judged],
) -> None:
    judgments: dict[Any, list[Judged]] = {}
    for record in judged:
        judgments.setdefault(key_of(record.conversation), []).append(record)
    for prompt in eval_file.prompts:
        own = [item for item in conversations if item.prompt == prompt.id]
        with report.details(f"{prompt.id} ({prompt.property}; {prompt.category})"):
            for conversation in own:
                report.heading(f"{conversation.model}, sample {conversation.sample}", 3)
                for message in conversation.messages:
                    report.pre(message["content"], message["role"])
                if conversation.truncated:
                    report.paragraph("Cut off at the token limit.")
                if conversation.failure is not None:
                    failure = conversation.failure
                    report.paragraph(f"No answer ({failure.kind}): {failure.reason}")
                for record in judgments.get(key_of(conversation), ()):
                    _add_judgment(report, record)


def _add_judgment(report: Report, record: Judged) -> None:
    repeat = f", repeat {record.repeat}" if record.repeat else ""
    outcome = record.outcome
    if isinstance(outcome, Failure):
        report.paragraph(f"{record.judge}{repeat}: unscored ({outcome.kind}): {outcome.reason}")
        return
    shown = [
        f"{name} {verdict.score}{' (exhibits)' if verdict.exhibits else ''}"
        for name, verdict in outcome.verdicts.items()
    ]
    if outcome.coherence is not None:
        shown.append(f"coherence {outcome.coherence}")
    if outcome.eval_awareness is not None:
        shown.append(f"eval-awareness {outcome.eval_awareness}")
    report.pre(outcome.rationale, f"{record.judge}{repeat}: {', '.join(shown)}")
