"""What a reinforcement run on passages shows of its self-edits, and writes in SEAL's layouts."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from training.domains.best_and_worst import best_and_worst
from training.domains.knowledge.edit_parsing import ParsedEdit
from training.domains.knowledge.grading import accuracy, changes, conveys
from training.domains.knowledge.inner import InnerOutcome
from training.domains.knowledge.passages import Passage
from training.domains.knowledge.seal_files import write_rows
from training.domains.knowledge.seal_runs import (
    SealAnswer,
    article,
    best_rows,
    scored_edit,
    seal_run,
    write_run,
)
from utils.runs.report import Report

SEAL_RUN, SEAL_ROWS = "seal_run.json", "sft_best.jsonl"
_SHOWN_QUESTIONS = 16
_LONGEST = 60


@dataclass(frozen=True)
class Trial:
    """A line of samples.jsonl with what came of it: `edit` is a text that says why where it was
    none, and `outcomes_R` are its inner runs, `before` the base model's answers."""

    sample: Mapping[str, Any]
    passage: Passage
    edit: ParsedEdit | str
    outcomes_R: Sequence[InnerOutcome]
    before: InnerOutcome


def told(edit: ParsedEdit | str) -> str:
    """An edit in a line."""
    if isinstance(edit, str):
        return "none"
    lines = edit.text.splitlines()
    rate = "" if edit.learning_rate is None else f", lr {edit.learning_rate:g}"
    first = lines[0] if len(lines[0]) <= _LONGEST else f"{lines[0][: _LONGEST - 1]}…"
    return f"{edit.form}{rate}, {len(lines)} lines: {first}"


def note_of(outcomes_R: Sequence[InnerOutcome], before: InnerOutcome) -> str:
    """How the inner runs of an edit went."""
    done = [outcome for outcome in outcomes_R if outcome.failed is None]
    failed = [outcome.failed for outcome in outcomes_R if outcome.failed is not None]
    parts = []
    if done:
        accuracies = [accuracy(outcome.correct_Q) for outcome in (before, *done)]
        base, *after_R = ["?" if value is None else f"{value:.0%}" for value in accuracies]
        tokens = done[0].trained_tokens
        parts.append(f"{base} of questions right before, {' and '.join(after_R)} after")
        parts.append(f"{done[0].num_documents} documents, {tokens:,} trained tokens")
        if unscored := sum(o.correct_Q.count(None) for o in done):
            parts.append(f"{unscored} answers have no verdict")
    if failed:
        parts.append(f"{len(failed)} of {len(outcomes_R)} inner runs failed: {failed[0]}")
    return "; ".join(parts)


def covered(passage: Passage, text: str) -> list[bool]:
    """For each question whether its answer stands in the edit."""
    return [conveys(text, question, "phrase") for question in passage.questions]


def summary_lines(trials: Sequence[Trial], known: MutableMapping[object, str]) -> list[str]:
    """A line for each time in the run: right answers, gained, kept and lost against the base model,
    how many answers stand in the edits, and the forms and rates that were chosen. A page that is
    made again and again as the run goes on finds those of finished times in `known`."""
    lines = []
    for (when, step), group in itertools.groupby(trials, key=_time_of):
        chosen = list(group)
        # a batch in the middle has fewer trials than at its end
        key = (when, step, len(chosen))
        if key not in known:
            known[key] = f"{when}: {_summary(chosen)}"
        lines.append(known[key])
    return lines


def _time_of(trial: Trial) -> tuple[str, int]:
    return trial.sample["when"], trial.sample["step"]


def _summary(chosen: Sequence[Trial]) -> str:
    runs = [(t, o) for t in chosen for o in t.outcomes_R if o.failed is None]
    if not runs:
        return "no self-edit was carried out"
    before_Q = [c for t, _ in runs for c in t.before.correct_Q]
    after_Q = [c for _, o in runs for c in o.correct_Q]
    found = changes(before_Q, after_Q)
    share = accuracy(after_Q)
    edits = [(t.passage, t.edit) for t in chosen if not isinstance(t.edit, str)]
    coverage = fmean(c for passage, edit in edits for c in covered(passage, edit.text))
    line = f"{_percent(accuracy(before_Q))} right before, {_percent(share)} after"
    if found.kept + found.lost:
        # without this a gain hides what training destroyed
        line += (
            f" (of what was wrong {_percent(found.gained_share)} gained, of what was right "
            f"{_percent(found.kept_share)} kept)"
        )
    line += f"; {coverage:.0%} of the answers stand in the edits"
    failed = sum(o.failed is not None for t in chosen for o in t.outcomes_R)
    if failed or found.unscored:
        line += f"; {failed} inner runs failed, {found.unscored} answers have no verdict"
    rates = [edit.learning_rate for _, edit in edits if edit.learning_rate is not None]
    if rates:
        forms = _counted(edit.form for _, edit in edits)
        line += f"; {forms}; lr {_counted(f'{rate:g}' for rate in rates)}"
    return line


def add_passages(report: Report, trials: Sequence[Trial]) -> None:
    """Every passage with its best and worst edit, and what was answered before and after."""
    by_passage: dict[str, list[Trial]] = {}
    for trial in trials:
        by_passage.setdefault(trial.passage.id, []).append(trial)
    for passage_id, mine in by_passage.items():
        passage = mine[0].passage
        with report.details(f"{passage_id}: {len(mine)} self-edits"):
            report.pre(f"{passage.title}\n{passage.context}", "passage")
            for name, trial in best_and_worst(mine, lambda trial: trial.sample["reward"]):
                report.pre(trial.sample["answer"], f"{name}: reward {trial.sample['reward']:.2f}")
                if trial.outcomes_R:
                    report.table(["question", "right", "before", "after"], _answer_rows(trial))


def _answer_rows(trial: Trial) -> list[list[Any]]:
    after = trial.outcomes_R[0]
    if after.failed is not None:
        return []
    rows = []
    for q, question in enumerate(trial.passage.questions[:_SHOWN_QUESTIONS]):
        pair = ((trial.before, "before"), (after, "after"))
        texts = [f"{_mark(o.correct_Q[q])} {o.answers_Q[q]}" for o, _ in pair]
        rows.append([question.text, question.answer, *texts])
    return rows


def write_seal_files(folder: Path, trials: Sequence[Trial], settings: Mapping[str, Any]) -> None:
    """The report of the edits that could be carried out, with `settings` in it, and the best one of
    each passage."""
    by_passage: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.outcomes_R and all(o.failed is None for o in trial.outcomes_R):
            by_passage.setdefault(trial.passage.id, []).append(trial)
    articles = [
        article(
            mine[0].passage.title,
            mine[0].passage.context,
            mine[0].sample["prompt"],
            [scored_edit(trial.sample["answer"], _seal_answers(trial)) for trial in mine],
        )
        for mine in by_passage.values()
    ]
    run = seal_run(articles, settings)
    write_run(folder / SEAL_RUN, run)
    write_rows(folder / SEAL_ROWS, best_rows(run))


def _seal_answers(trial: Trial) -> list[SealAnswer]:
    return [
        SealAnswer(
            rep,
            question.text,
            question.answer,
            trial.before.answers_Q[q],
            outcome.answers_Q[q],
            trial.before.correct_Q[q],
            outcome.correct_Q[q],
        )
        for rep, outcome in enumerate(trial.outcomes_R)
        for q, question in enumerate(trial.passage.questions)
    ]


def _mark(correct: bool | None) -> str:
    return {True: "✓", False: "✗", None: "?"}[correct]


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _counted(names: Iterable[str]) -> str:
    """How often each occurs, the most frequent first."""
    return ", ".join(f"{number} {name}" for name, number in Counter(names).most_common())
