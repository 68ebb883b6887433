"""The steps of a run of continual self-edits: kept in steps.jsonl as each is done, so that a run
that was ended goes on after the last of them, and read as matrices."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from evaluation.knowledge.continual_report import MethodResult
from evaluation.knowledge.matrix import Cell, Matrix, estimates, measures
from evaluation.knowledge.summaries import summarise
from training.domains.knowledge.continual import Before, Edit, Outcome, Row
from training.domains.knowledge.continual_methods import Method
from training.domains.knowledge.continual_passages import Drawn
from training.domains.knowledge.grading import accuracy
from training.domains.knowledge.seal_files import write_json
from utils.runs.files import append_jsonl, read_jsonl
from utils.runs.run_dir import RunDir

STEPS = "steps.jsonl"
UNTOUCHED = "right answers about passages that were never learned, %"
TEXT = "log-probability of a fixed text, nats per token"


@dataclass(frozen=True)
class Step:
    """A step of a method in all sequences, and how long it took."""

    number: int
    outcomes_S: list[Outcome]
    seconds: float


class Steps:
    """What of a run is done; only the adapters that are needed to go on stay on disk, unless
    `keep_all`."""

    def __init__(self, run: RunDir, *, keep_all: bool = False) -> None:
        self._run = run
        self._root = run.path.resolve()
        self._keep_all = keep_all
        self.before_all_S: list[Row] = []
        self.by_method: dict[str, list[Step]] = {}
        logged: Mapping[str, int] = {}
        for record in read_jsonl(run.path / STEPS, missing_ok=True):
            logged = record["logged"]
            if record["step"] == 0:
                self.before_all_S = [Row(**row) for row in record["rows"]]
            else:
                outcomes_S = [self._outcome(plain) for plain in record["outcomes"]]
                step = Step(record["step"], outcomes_S, record["seconds"])
                self.by_method.setdefault(record["method"], []).append(step)
        # what was logged of a step that did not come to its end
        run.truncate_logs(logged)
        self._delete_unused()

    def add_before_all(self, rows_S: Sequence[Row]) -> None:
        self.before_all_S = list(rows_S)
        self._append({"method": "", "step": 0, "rows": [asdict(row) for row in rows_S]})

    def add(self, method: Method, step: Step) -> None:
        """Call it last: what was logged before belongs to the step."""
        outcomes = [self._plain(outcome) for outcome in step.outcomes_S]
        seconds = round(step.seconds, 3)
        record = {"method": method.label, "step": step.number, "seconds": seconds}
        self._append({**record, "outcomes": outcomes})
        self.by_method.setdefault(method.label, []).append(step)
        self._delete_unused()

    def next_number(self, method: Method, num_passages: int) -> int:
        """The step that comes next, num_passages + 1 after all; `joint` has the last alone."""
        done = self.by_method.get(method.label, [])
        if done:
            return done[-1].number + 1
        return num_passages if method.kind == "joint" else 1

    def before(self, method: Method, s: int) -> tuple[list[str], Row, list[Edit]]:
        """Adapters, row and edits of sequence s after the steps that are done."""
        done = [step.outcomes_S[s] for step in self.by_method.get(method.label, [])]
        if not done:
            return [], self.before_all_S[s], []
        return done[-1].adapters, done[-1].row, [outcome.edit for outcome in done]

    def adapters(self, method: Method) -> list[list[str]]:
        """Of each sequence, after the steps that are done."""
        return [self.before(method, s)[0] for s in range(len(self.before_all_S))]

    def result(self, method: Method, num_passages: int) -> MethodResult:
        done = self.by_method.get(method.label, [])
        by_number = {step.number: step for step in done}
        matrices_S: list[Matrix] = []
        untouched_S: list[list[Cell]] = []
        text_S: list[list[Cell]] = []
        outcomes = [outcome for step in done for outcome in step.outcomes_S]
        for s, first in enumerate(self.before_all_S):
            rows_R: list[Row | None] = [first]
            for number in range(1, num_passages + 1):
                step = by_number.get(number)
                rows_R.append(None if step is None else step.outcomes_S[s].row)
            matrices_S.append([_cells(row, num_passages) for row in rows_R])
            untouched_S.append([None if row is None else _percent(row.probe_Q) for row in rows_R])
            text_S.append([None if row is None else row.text_nats for row in rows_R])
        has_untouched = any(row.probe_Q for row in self.before_all_S)
        return MethodResult(
            method.label,
            matrices_S,
            trained_tokens=sum(outcome.trained_tokens for outcome in outcomes),
            seconds=sum(step.seconds for step in done),
            edits_failed=sum(outcome.edits_failed for outcome in outcomes),
            unscored=sum(_unscored(outcome.row) for outcome in outcomes),
            probes={**({UNTOUCHED: untouched_S} if has_untouched else {}), TEXT: text_S},
        )

    # ------------------------------------------------------------------------------------- private

    def _append(self, record: Mapping[str, Any]) -> None:
        record = {**record, "logged": self._run.log_sizes()}
        append_jsonl(self._run.path / STEPS, record, fsync=True)

    def _plain(self, outcome: Outcome) -> dict[str, Any]:
        """With paths relative to the run, whose folder can be moved."""
        inside = [
            Path(folder).resolve().relative_to(self._root).as_posix() if folder else ""
            for folder in outcome.adapters
        ]
        return {**asdict(outcome), "adapters": inside}

    def _outcome(self, plain: Mapping[str, Any]) -> Outcome:
        adapters = [str(self._root / folder) if folder else "" for folder in plain["adapters"]]
        outcome = Outcome(**plain)
        edit, row = Edit(**plain["edit"]), Row(**plain["row"])
        return replace(outcome, adapters=adapters, edit=edit, row=row)

    def _delete_unused(self) -> None:
        """Also what a step that did not come to its end has left."""
        counts = slice(None) if self._keep_all else slice(-1, None)
        used = {
            Path(folder)
            for done in self.by_method.values()
            for step in done[counts]
            for outcome in step.outcomes_S
            for folder in outcome.adapters
            if folder
        }
        # checkpoints/CLIENT/sampler_weights/NAME
        for client in (self._root / "checkpoints").glob("*"):
            if not any(folder.is_relative_to(client) for folder in used):
                shutil.rmtree(client)


def write_results(
    folder: Path,
    steps: Steps,
    methods: Sequence[Method],
    drawn: Drawn,
    *,
    dataset: str,
    base_model: str,
) -> None:
    """summary.METHOD.json in SEAL's layout, and results.json with the matrix of each sequence."""
    plain: dict[str, Any] = {"dataset": dataset, "base_model": base_model}
    plain["passages_S_K"] = [[p.id for p in passages_K] for passages_K in drawn.sequences_S_K]
    plain["methods"] = {}
    for method in methods:
        result = steps.result(method, len(drawn.sequences_S_K[0]))
        summary = summarise(
            result.matrices_S, dataset=dataset, base_model=base_model, method=method.label
        )
        write_json(folder / f"summary.{method.label}.json", summary.to_plain())
        found = estimates([measures(matrix) for matrix in result.matrices_S])
        done = [o for step in steps.by_method.get(method.label, []) for o in step.outcomes_S]
        plain["methods"][method.label] = {
            "measures": {n: None if e is None else e._asdict() for n, e in found.items()},
            "matrices_S": result.matrices_S,
            "probes": result.probes,
            "trained_tokens": result.trained_tokens,
            "seconds": round(result.seconds, 1),
            "unscored": result.unscored,
            "failed": [outcome.failed for outcome in done if outcome.failed],
            "edits_failed": result.edits_failed,
            "scales": [outcome.scale for outcome in done] if method.gate else None,
        }
    write_json(folder / "results.json", plain)


def learned_accuracy(outcomes_S: Sequence[Outcome], number: int) -> float | None:
    """Of the passages learned by then, mean over sequences of their passages' mean."""
    values = []
    for outcome in outcomes_S:
        cells = [accuracy(correct_Q or []) for correct_Q in outcome.row.correct_K_Q[:number]]
        given = [cell for cell in cells if cell is not None]
        if given:
            values.append(fmean(given))
    return fmean(values) if values else None


def standing(steps: Steps, method: Method, edits_S: Sequence[Sequence[Edit]]) -> list[Before]:
    """Every sequence before its next step, with the edits (one; all of them for `joint`) that are
    learned then."""
    found = []
    for s, new in enumerate(edits_S):
        adapters, row, edits = steps.before(method, s)
        found.append(Before(adapters, row, [*edits, *new]))
    return found


def _cells(row: Row | None, num_passages: int) -> list[Cell]:
    if row is None:
        return [None] * num_passages
    return [accuracy(correct_Q or []) for correct_Q in row.correct_K_Q]


def _percent(correct_Q: Sequence[bool | None]) -> Cell:
    share = accuracy(correct_Q)
    return None if share is None else 100 * share


def _unscored(row: Row) -> int:
    asked = [*(correct_Q or [] for correct_Q in row.correct_K_Q), row.probe_Q]
    return sum(correct_Q.count(None) for correct_Q in asked)
