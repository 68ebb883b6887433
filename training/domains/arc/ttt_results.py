"""What test-time training on ARC leaves behind: records per task, table, submission, report."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.domains.arc.answers import Answers
from training.domains.arc.files import write_submission
from training.domains.arc.grids import to_grid
from training.domains.arc.report import add_task
from training.domains.arc.tasks import Task
from training.domains.arc.voting import score
from utils.runs.files import append_jsonl, read_jsonl
from utils.runs.report import Report

TASKS = "tasks.jsonl"
SUBMISSION = "submission.json"
SHOWN_TASKS = 60


@dataclass(frozen=True)
class Answered:
    """`attempts[t]` are the grids answered to test t, `answers` all that was written; `events` what
    went wrong, with counts. Where the solutions are not known, nothing is scored."""

    attempts: list[list[list[list[int]]]]
    answers: list[str]
    events: dict[str, int]
    solved: bool | None = None
    num_correct: int | None = None
    cell_accuracy: float | None = None


@dataclass(frozen=True)
class TaskRecord:
    """One task before and after training (None: not trained). `examples` says by family what was
    trained on, `num_steps` the steps of the `adapter`, which other tasks may share. Times are this
    task's share, in seconds, of those of the tasks that were trained and asked together."""

    task: str
    num_tests: int
    before: Answered
    after: Answered | None
    examples: dict[str, int]
    num_generated: int
    num_too_long: int
    adapter: str | None
    num_steps: int
    num_train_tokens: int
    train_seconds: float
    eval_seconds: float

    @property
    def last(self) -> Answered:
        return self.after or self.before

    @property
    def num_examples(self) -> int:
        return sum(self.examples.values())


def answered(task: Task, answers: Answers) -> Answered:
    """Scored where the solutions are known."""
    events = {"unreadable": answers.num_unreadable, "prompt too long": answers.num_unasked}
    made: dict[str, Any] = {
        "attempts": [[grid.tolist() for grid in grids] for grids in answers.attempts],
        "answers": answers.texts,
        "events": {event: count for event, count in events.items() if count},
    }
    if all(pair.output is not None for pair in task.test):
        result = score(task, answers.attempts)
        made |= {
            "solved": result.solved,
            "num_correct": result.num_correct,
            "cell_accuracy": result.cell_accuracy,
        }
    return Answered(**made)


def append_record(run: Path, record: TaskRecord) -> None:
    """One task is done: its line is what a resumed run goes by."""
    append_jsonl(run / TASKS, asdict(record), fsync=True)


def read_records(run: Path) -> list[TaskRecord]:
    """What append_record wrote so far."""
    path = run / TASKS
    if not path.exists():
        return []
    records = []
    for line in read_jsonl(path):
        before, after = Answered(**line.pop("before")), line.pop("after")
        records.append(
            TaskRecord(before=before, after=None if after is None else Answered(**after), **line)
        )
    return records


def metrics(records: Sequence[TaskRecord]) -> dict[str, Any]:
    """The last task's line of metrics.jsonl, with the means over the tasks so far whose solutions
    are known."""
    last = records[-1]
    values: dict[str, Any] = {"examples": last.num_examples, "steps": last.num_steps}
    for name in ("before", "after"):
        answered = [getattr(record, name) for record in records]
        scored = [answers for answers in answered if answers and answers.solved is not None]
        if not scored or answered[-1] is not scored[-1]:
            continue
        for key in ("solved", "cell_accuracy"):
            values[f"{name}/{key}/{last.task}"] = getattr(scored[-1], key)
            values[f"{name}/{key}/mean"] = sum(getattr(a, key) for a in scored) / len(scored)
    return values


# ----------------------------------------------------------------------------------------- shown

HEADERS = (
    *("task", "tests", "before", "after", "cells before", "cells after"),
    *("examples", "too long", "steps", "train s", "s", "events"),
)


def record_rows(records: Sequence[TaskRecord]) -> list[tuple[Any, ...]]:
    """A row per task, and one with the tasks solved, the mean of the cells, and sums."""
    rows: list[tuple[Any, ...]] = [
        (
            *(r.task, r.num_tests, _verdict(r.before, r.num_tests)),
            None if r.after is None else _verdict(r.after, r.num_tests),
            *(_cells([r.before]), _cells([r.after]), r.num_examples, r.num_too_long, r.num_steps),
            *(r.train_seconds, r.eval_seconds, _events([r])),
        )
        for r in records
    ]
    before, after = [r.before for r in records], [r.after for r in records]
    rows.append(
        (
            *("all", sum(r.num_tests for r in records), solved(before), solved(after)),
            *(_cells(before), _cells(after), sum(r.num_examples for r in records)),
            *(sum(r.num_too_long for r in records), _all_steps(records)),
            *(sum(r.train_seconds for r in records), sum(r.eval_seconds for r in records)),
            _events(records),
        )
    )
    return rows


def solved(answers: Sequence[Answered | None]) -> str | None:
    """Such as `2 of 5`; None where nothing is scored."""
    scored = [a for a in answers if a is not None and a.solved is not None]
    return f"{sum(bool(a.solved) for a in scored)} of {len(scored)}" if scored else None


def _verdict(answer: Answered, num_tests: int) -> str:
    if answer.solved is None:
        return "?"
    if num_tests > 1 and answer.num_correct and not answer.solved:
        return f"{answer.num_correct} of {num_tests} tests"
    return "solved" if answer.solved else "no"


def _cells(answers: Sequence[Answered | None]) -> str | None:
    """The mean share of right cells."""
    shares = [a.cell_accuracy for a in answers if a is not None and a.cell_accuracy is not None]
    return f"{100 * sum(shares) / len(shares):.1f} %" if shares else None


def _all_steps(records: Sequence[TaskRecord]) -> int:
    return sum({r.adapter: r.num_steps for r in records}.values())


def _events(records: Sequence[TaskRecord]) -> str:
    counts: Counter[str] = Counter()
    for record in records:
        counts.update(record.last.events)
    return ", ".join(f"{count} x {event}" for event, count in counts.items())


def write_submission_of(run: Path, records: Sequence[TaskRecord]) -> Path:
    """Kaggle's file of the last answers; a single attempt counts twice."""
    path = run / SUBMISSION
    attempts = {
        record.task: [[to_grid(grids[0]), to_grid(grids[-1])] for grids in record.last.attempts]
        for record in records
    }
    write_submission(path, attempts)
    return path


def make_report(
    run: str, name: str, records: Sequence[TaskRecord], tasks: Sequence[Task]
) -> Report:
    """Of the tasks that are done; `run` is its name."""
    by_id = {task.id: task for task in tasks}
    report = Report(f"ARC test-time training: {name}", run)
    if not records:
        return report
    before, after = [r.before for r in records], [r.after for r in records]
    report.tiles(
        [
            ("solved before", solved(before) or "-"),
            ("solved after", solved(after) or "-"),
            ("cells before", _cells(before) or "-"),
            ("cells after", _cells(after) or "-"),
            ("training", f"{sum(r.train_seconds for r in records):.0f} s"),
            ("answering", f"{sum(r.eval_seconds for r in records):.0f} s"),
        ]
    )
    report.table(HEADERS, record_rows(records))
    report.heading("Training examples")
    families = list(dict.fromkeys(family for r in records for family in r.examples))
    report.table(
        ("task", *families), [(r.task, *(r.examples.get(f, 0) for f in families)) for r in records]
    )
    report.heading("Answers before and after")
    if len(records) > SHOWN_TASKS:
        report.paragraph(f"The first {SHOWN_TASKS} of {len(records)} tasks; all are in {TASKS}.")
    for record in records[:SHOWN_TASKS]:
        outcomes = [("before", record.before), ("after", record.after)]
        shown = [(label, None if a is None else asdict(a)) for label, a in outcomes]
        add_task(report, by_id[record.task], shown)
    return report
