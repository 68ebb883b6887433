"""Inner runs of the benchmarks of knowledge incorporation, each stored when it is done."""

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from training.domains.knowledge.general_questions import GENERAL
from training.domains.knowledge.inner import InnerJob, InnerLoop, InnerOutcome, InnerSettings
from training.domains.knowledge.passages import Passage
from utils.runs.files import append_jsonl, read_jsonl

logger = logging.getLogger(__name__)

RESULTS = Path(__file__).parent / "results" / "knowledge_evidence.jsonl"
BASE, PASSAGE, OTHER = "no training", "passage only", "another's adapter"

Record = dict[str, Any]
Key = tuple[str, str, str, str, int]


@dataclass(frozen=True)
class Run:
    """One inner run to do. `asked_too`: another passage whose questions this adapter gets as well,
    noted under `others_arm`."""

    arm: str
    passage: Passage
    edit: str | None
    seed: int
    asked_too: Passage | None = None
    others_arm: str = OTHER

    def parts(self) -> list[tuple[str, Passage]]:
        """Whose questions its adapter gets, and the arm that this belongs to."""
        others = [] if self.asked_too is None else [(self.others_arm, self.asked_too)]
        return [(self.arm, self.passage), *others]

    def keys(self, setting: str) -> list[Key]:
        """Of its records."""
        return [
            (setting, arm, passage.id, self.passage.id, self.seed) for arm, passage in self.parts()
        ]


def setting_name(settings: InnerSettings) -> str:
    adapt = settings.adapt
    anchored = ""
    if adapt.anchor_weight:
        kind = "lines" if settings.anchors_as_lines else "prompts"
        # without a word more: made things
        of_kind = f" {kind}" if settings.anchors == GENERAL else ""
        anchored = f" kl{adapt.anchor_weight:g}{of_kind}"
    return (
        f"r{adapt.lora['rank']} lr{settings.learning_rate:g} e{settings.num_epochs} "
        f"b{adapt.batch_size}{anchored}"
    )


def stored() -> dict[Key, Record]:
    names = ("setting", "arm", "passage", "trained_on", "seed")
    return {
        tuple(record[name] for name in names): record
        for record in read_jsonl(RESULTS, missing_ok=True)
    }


def carry_out(loop: InnerLoop, runs: Sequence[Run], *, at_once: int, deadline: float) -> None:
    """Does the runs that are not stored yet, `at_once` at a time."""
    name, done = setting_name(loop.settings), stored()
    todo = [run for run in runs if any(key not in done for key in run.keys(name))]
    for start in range(0, len(todo), at_once):
        if time.monotonic() > deadline:
            logger.info("%s: %d runs are left for the next time", name, len(todo) - start)
            return
        chunk = todo[start : start + at_once]
        jobs = [
            InnerJob(
                run.passage,
                run.edit,
                repeat=run.seed,
                asked=tuple(passage for _, passage in run.parts()),
            )
            for run in chunk
        ]
        started = time.perf_counter()
        outcomes = loop.run(jobs, desc=f"{name} {start + len(chunk)}/{len(todo)}")
        seconds = (time.perf_counter() - started) / len(chunk)
        for run, outcome in zip(chunk, outcomes, strict=True):
            for record in _records(name, run, outcome):
                append_jsonl(RESULTS, {**record, "seconds": seconds})


def _records(setting: str, run: Run, outcome: InnerOutcome) -> Iterator[Record]:
    """A record for each passage that was asked about."""
    start = 0
    for arm, passage in run.parts():
        stop = start + len(passage.questions)
        yield {
            "setting": setting,
            "arm": arm,
            "passage": passage.id,
            "trained_on": run.passage.id,
            "seed": run.seed,
            "kinds": [question.kind for question in passage.questions],
            **asdict(_cut(outcome, start, stop)),
        }
        start = stop


def _cut(outcome: InnerOutcome, start: int, stop: int) -> InnerOutcome:
    """The outcome of some of the questions."""
    return dataclasses.replace(
        outcome,
        answers_Q=outcome.answers_Q[start:stop],
        correct_Q=outcome.correct_Q[start:stop],
        logprobs_Q=outcome.logprobs_Q[start:stop],
        choices_Q=outcome.choices_Q[start:stop],
    )


def share(records: Sequence[Record], kind: str | None = None, of: str = "correct_Q") -> Any:
    """In percent, over all questions, or those of one kind."""
    found = [
        value
        for record in records
        for value, its_kind in zip(record[of], record["kinds"], strict=True)
        if value is not None and kind in (None, its_kind)
    ]
    return 100 * fmean(found) if found else None


def arm_rows(records: Sequence[Record]) -> list[tuple[Any, ...]]:
    rows = []
    for arm in dict.fromkeys(record["arm"] for record in records):
        of_arm = [record for record in records if record["arm"] == arm]
        logprobs = [lp for record in of_arm for lp in record["logprobs_Q"]]
        rows.append(
            (
                *(of_arm[0]["setting"], arm, len(of_arm)),
                *(share(of_arm, kind) for kind in (None, "direct", "reverse", "derived")),
                *(share(of_arm, of="choices_Q"), fmean(logprobs) if logprobs else None),
                fmean([record["trained_tokens"] for record in of_arm]),
                fmean([record["seconds"] for record in of_arm]),
                sum(record["failed"] is not None for record in of_arm),
            )
        )
    return rows


ARM_HEADERS = (
    *("setting", "arm", "runs", "right %", "direct", "reverse", "derived", "4-way %"),
    *("logprob", "tokens", "seconds", "failed"),
)


def by_passage(records: Sequence[Record], arm: str, kind: str | None) -> dict[str, float]:
    """Means over seeds, in percent."""
    passages = dict.fromkeys(record["passage"] for record in records if record["arm"] == arm)
    return {
        passage: share([r for r in records if r["arm"] == arm and r["passage"] == passage], kind)
        for passage in passages
    }
