"""The page about the prompts of an eval."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evaluation.behaviour.eval_file import EvalPrompt
from evaluation.behaviour.prompts import Dropped
from generation.properties import Property
from utils.llm.ledger import Ledger
from utils.llm.runs import add_calls
from utils.runs.report import Report

COUNT_HEADERS = ("property", "category", "prompts", "realism", "eval-awareness")


def count_rows(prompts: Sequence[EvalPrompt]) -> list[tuple[Any, ...]]:
    """Per category: how many prompts, and their mean scores."""
    rows = []
    for property, category in dict.fromkeys((p.property, p.category) for p in prompts):
        own = [p for p in prompts if (p.property, p.category) == (property, category)]
        scores = ([p.realism for p in own], [p.eval_awareness for p in own])
        means = [
            sum(known) / len(known) if (known := [v for v in values if v is not None]) else None
            for values in scores
        ]
        rows.append((property, category, len(own), *means))
    return rows


def dropped_rows(dropped: Dropped) -> list[tuple[str, int]]:
    rows = [(f"written anew or dropped: {why}", n) for why, n in dropped.by_reason.items()]
    counts = ("calls failed", dropped.calls_failed), ("not scored", dropped.unscored)
    return [*rows, *counts, ("missing", dropped.missing)]


def report_title(properties: Sequence[Property]) -> str:
    return "Eval prompts: " + ", ".join(p.name for p in properties)


def make_report(
    run_id: str,
    properties: Sequence[Property],
    prompts: Sequence[EvalPrompt],
    dropped: Dropped,
    ledger: Ledger,
) -> Report:
    report = Report(report_title(properties), run_id)
    clusters = {(p.property, p.category) for p in prompts}
    report.tiles(
        [("prompts", len(prompts)), ("categories", len(clusters)), ("missing", dropped.missing)]
    )
    report.table(COUNT_HEADERS, count_rows(prompts))
    report.table(("", "prompts"), dropped_rows(dropped))
    for property in properties:
        report.heading(property.name)
        report.paragraph(f"An assistant that has it {property.description}.")
        for category in dict.fromkeys(p.category for p in prompts if p.property == property.name):
            with report.details(category):
                for prompt in prompts:
                    if (prompt.property, prompt.category) == (property.name, category):
                        report.pre("\n\n".join(prompt.messages), _caption(prompt))
    add_calls(report, ledger)
    return report


def _caption(prompt: EvalPrompt) -> str:
    if prompt.realism is None:
        return f"{prompt.id}: not scored"
    return f"{prompt.id}: realism {prompt.realism:g}, eval-awareness {prompt.eval_awareness:g}"
