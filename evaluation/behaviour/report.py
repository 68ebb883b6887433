"""An evaluation as one HTML page."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from evaluation.behaviour.analysis import Comparison, key_of
from evaluation.behaviour.answers import Conversation, Failure
from evaluation.behaviour.eval_file import EvalFile
from evaluation.behaviour.judge import HIGHEST, LOWEST, Judged, Judgment
from evaluation.behaviour.results import Summary
from evaluation.behaviour.tables import (
    AGREEMENT_HEADERS,
    ANY_OF_K_INTERVAL,
    COMPARISON_HEADERS,
    DETAIL_HEADERS,
    QUALITY_HEADERS,
    SCORE_HEADERS,
    UNSCORED_HEADERS,
    agreement_parts,
    agreement_rows,
    any_of_k_table,
    comparison_rows,
    detail_rows,
    difference_text,
    notes_of,
    percent,
    quality_rows,
    rates_text,
    score_rows,
    unscored_rows,
    verdict_text,
)
from utils.llm.ledger import Ledger
from utils.runs.report import LINE_COLOURS, Report

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLE = "Evaluation"


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
