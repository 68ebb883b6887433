"""Does the inner loop of knowledge incorporation teach what it should, and is its reward reliable?

    uv run benchmarks/knowledge_evidence.py part=sweep   # settings of preset=small, few passages
    uv run benchmarks/knowledge_evidence.py part=d1      # question-and-answer edits, controls
    uv run benchmarks/knowledge_evidence.py part=d2      # reliability of the reward

Made passages, edits by their generator (training wordings), questions in evaluation wordings, the
embedded model, rule judge. Every inner run is stored in benchmarks/results/knowledge_evidence.jsonl
as it is done; the same command goes on where it stopped, then prints its table.

sweep: passage only against statements and questions, for settings on each axis. d1: edits of
questions with answers against the passage alone and against another passage's adapter; 24 passages,
3 seeds of edits and adapters. d2: reliability of the reward between forms of edits, and between
edits of one form that cover a half of the facts each, as drafts of one model do.
"""

import dataclasses
import logging
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import chz

from evaluation.stats import paired_difference
from training.connect import connect
from training.domains.knowledge.grading import RuleJudge
from training.domains.knowledge.inner import (
    InnerJob,
    InnerLoop,
    InnerOutcome,
    InnerSettings,
    preset,
)
from training.domains.knowledge.passages import Passage
from training.domains.knowledge.reliability import REWARDS, reliability, reward, spearman_brown
from training.domains.knowledge.sources import Source, open_source
from training.models import context_length, load_tokenizer
from utils.runs.files import append_jsonl, read_jsonl
from utils.runs.tables import text_table
from utils.terminal import print_anything

logger = logging.getLogger(__name__)

RESULTS = Path(__file__).parent / "results" / "knowledge_evidence.jsonl"
BASE, PASSAGE, OTHER = "no training", "passage only", "another's adapter"
# template forms joined by +; "half qa 3" is the fourth draft of half the lines
DRAFTS = 4
D2_FORMS = ("statements", "cloze", "qa", "reverse", "qa+reverse")


@chz.chz(typecheck=True)
class Config:
    part: Literal["sweep", "d1", "d2"] = chz.field(default="d1", doc="what is measured")
    passages: int = chz.field(default=24, doc="made passages; sweep takes 6 of them, d2 8")
    seeds: int = chz.field(default=3, doc="seeds of edits and adapters; repeats of d2")
    edit: str = chz.field(default="qa+reverse", doc="forms of d1's edits")
    rank: int | None = chz.field(default=None, doc="of the adapter; default: preset=small's")
    learning_rate: float | None = chz.field(default=None, doc="default: preset=small's")
    epochs: int | None = chz.field(default=None, doc="default: preset=small's")
    passage_epochs: int = chz.field(
        default=15, doc="of the passage alone, which makes about as many tokens as d1's edits have"
    )
    passage_rate: float = chz.field(
        default=1e-3, doc="of the passage alone, which higher rates make worse"
    )
    batch_size: int | None = chz.field(default=None, doc="default: preset=small's")
    at_once: int = chz.field(default=6, doc="adapters that train together")
    choices: bool = chz.field(default=False, doc="4-way choices too, which takes longer")
    max_minutes: float = chz.field(default=1e9, doc="stop after this time; run again to go on")


@dataclass(frozen=True)
class Run:
    """One inner run to do. `asked_too`: another passage whose questions this adapter gets as well,
    noted under OTHER."""

    arm: str
    passage: Passage
    edit: str | None
    seed: int
    asked_too: Passage | None = None


def settings_of(
    config: Config,
    *,
    rank: int | None = None,
    learning_rate: float | None = None,
    epochs: int | None = None,
    batch_size: int | None = None,
) -> InnerSettings:
    """preset=small with what a sweep and the command change."""
    small = preset("small", base_model="embedded", context=context_length("embedded"))
    lora = {**small.adapt.lora, "rank": rank or config.rank or small.adapt.lora["rank"]}
    return dataclasses.replace(
        small,
        choices=config.choices,
        adapt=dataclasses.replace(
            small.adapt,
            lora=lora,
            batch_size=batch_size or config.batch_size or small.adapt.batch_size,
            max_parallel=config.at_once,
        ),
        learning_rate=learning_rate or config.learning_rate or small.learning_rate,
        num_epochs=epochs or config.epochs or small.num_epochs,
    )


def setting_name(settings: InnerSettings) -> str:
    return (
        f"r{settings.adapt.lora['rank']} lr{settings.learning_rate:g} e{settings.num_epochs} "
        f"b{settings.adapt.batch_size}"
    )


def edit_text(source: Source, passage: Passage, forms: str, seed: int) -> str:
    edits = [source.template_edit(passage, form, seed) for form in forms.split("+")]
    assert None not in edits, f"the source has no template of {forms}"
    return "\n".join(edit for edit in edits if edit is not None)


def half(edit: str, draft: int) -> str:
    """Half of an edit's lines, drawn by the number of the draft."""
    lines = edit.splitlines()
    return "\n".join(random.Random(f"{edit}/{draft}").sample(lines, len(lines) // 2))


def sweep_runs(config: Config, source: Source) -> Iterator[tuple[InnerSettings, list[Run]]]:
    passages = source.passages("test")[:6]
    yield settings_of(config), [Run(BASE, passage, None, 0) for passage in passages]
    for epochs in (10, 20, 40):
        yield (
            settings_of(config, epochs=epochs, learning_rate=config.passage_rate),
            [Run(PASSAGE, passage, "", 0) for passage in passages],
        )
    axes: list[dict[str, Any]] = [{}]
    axes += [{"epochs": n} for n in (2, 6)]
    axes += [{"learning_rate": rate} for rate in (1e-3, 2e-3, 5e-3)]
    axes += [{"rank": rank} for rank in (4, 64)]
    axes += [{"batch_size": size} for size in (2, 8)]
    for changes in axes:
        runs = []
        for forms in ("statements", "qa", "qa+reverse"):
            runs += [Run(forms, p, edit_text(source, p, forms, 0), 0) for p in passages]
        yield settings_of(config, **changes), runs


def d1_runs(config: Config, source: Source) -> Iterator[tuple[InnerSettings, list[Run]]]:
    passages = source.passages("test")[: config.passages]
    runs = [Run(BASE, passage, None, 0) for passage in passages]
    for seed in range(config.seeds):
        for i, passage in enumerate(passages):
            # of the same kind, so that its questions are answered in the same way
            other = passages[(i + 6) % len(passages)]
            edit = edit_text(source, passage, config.edit, seed)
            runs.append(Run(config.edit, passage, edit, seed, asked_too=other))
    yield settings_of(config), runs
    yield (
        settings_of(config, epochs=config.passage_epochs, learning_rate=config.passage_rate),
        [Run(PASSAGE, p, "", seed) for seed in range(config.seeds) for p in passages],
    )


def d2_runs(config: Config, source: Source) -> Iterator[tuple[InnerSettings, list[Run]]]:
    passages = source.passages("test")[:8]
    runs = [Run(BASE, passage, None, 0) for passage in passages]
    for seed in range(config.seeds):
        for passage in passages:
            runs += [Run(f, passage, edit_text(source, passage, f, 0), seed) for f in D2_FORMS]
            whole = edit_text(source, passage, config.edit, 0)
            for draft in range(DRAFTS):
                arm = f"half {config.edit} {draft}"
                runs.append(Run(arm, passage, half(whole, draft), seed))
    yield settings_of(config), runs


PARTS = {"sweep": sweep_runs, "d1": d1_runs, "d2": d2_runs}


def record_of(
    name: str, run: Run, passage: Passage, arm: str, part: InnerOutcome
) -> dict[str, Any]:
    kinds = [question.kind for question in passage.questions]
    return {
        "setting": name,
        "arm": arm,
        "passage": passage.id,
        "trained_on": run.passage.id,
        "seed": run.seed,
        "kinds": kinds,
        **asdict(part),
    }


def cut(outcome: InnerOutcome, start: int, stop: int) -> InnerOutcome:
    """The outcome of some of the questions."""
    return dataclasses.replace(
        outcome,
        answers_Q=outcome.answers_Q[start:stop],
        correct_Q=outcome.correct_Q[start:stop],
        logprobs_Q=outcome.logprobs_Q[start:stop],
        choices_Q=outcome.choices_Q[start:stop],
    )


def key_of(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[key] for key in ("setting", "arm", "passage", "seed"))


def stored() -> dict[tuple[Any, ...], dict[str, Any]]:
    records = read_jsonl(RESULTS) if RESULTS.exists() else []
    return {key_of(record): record for record in records}


def carry_out(loop: InnerLoop, runs: Sequence[Run], config: Config, deadline: float) -> None:
    """Does the runs that are not stored yet, `at_once` at a time."""
    name, done = setting_name(loop.settings), stored()
    todo = [run for run in runs if (name, run.arm, run.passage.id, run.seed) not in done]
    for start in range(0, len(todo), config.at_once):
        if time.monotonic() > deadline:
            logger.info("%s: %d runs are left for the next time", name, len(todo) - start)
            return
        chunk = todo[start : start + config.at_once]
        jobs = [
            InnerJob(
                run.passage,
                run.edit,
                repeat=run.seed,
                asked=(run.passage, *([run.asked_too] if run.asked_too else [])),
            )
            for run in chunk
        ]
        started = time.perf_counter()
        outcomes = loop.run(jobs, desc=f"{name} {start + len(chunk)}/{len(todo)}")
        seconds = (time.perf_counter() - started) / len(chunk)
        for run, outcome in zip(chunk, outcomes, strict=True):
            count = len(run.passage.questions)
            parts = [(run.passage, run.arm, cut(outcome, 0, count))]
            if run.asked_too is not None:
                parts.append((run.asked_too, OTHER, cut(outcome, count, 2 * count)))
            for passage, arm, part in parts:
                record = record_of(name, run, passage, arm, part)
                append_jsonl(RESULTS, {**record, "seconds": seconds})


def share(records: Sequence[dict[str, Any]], kind: str | None = None, of: str = "correct_Q") -> Any:
    """In percent, over all questions, or those of one kind."""
    found = [
        value
        for record in records
        for value, its_kind in zip(record[of], record["kinds"], strict=True)
        if value is not None and kind in (None, its_kind)
    ]
    return 100 * fmean(found) if found else None


def arm_rows(records: Sequence[dict[str, Any]]) -> list[tuple[Any, ...]]:
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


def by_passage(records: Sequence[dict[str, Any]], arm: str, kind: str | None) -> dict[str, float]:
    """Means over seeds, in percent."""
    passages = dict.fromkeys(record["passage"] for record in records if record["arm"] == arm)
    return {
        passage: share([r for r in records if r["arm"] == arm and r["passage"] == passage], kind)
        for passage in passages
    }


def d1_report(records: Sequence[dict[str, Any]], config: Config) -> str:
    rows = []
    for first, second in ((PASSAGE, config.edit), (BASE, config.edit), (BASE, OTHER)):
        for kind in (None, "direct"):
            base, tuned = (by_passage(records, arm, kind) for arm in (first, second))
            both = [passage for passage in base if passage in tuned]
            found = paired_difference([base[p] for p in both], [tuned[p] for p in both], both)
            low, high = found.interval or (None, None)
            rows.append(
                (
                    *(f"{second} - {first}", kind or "all", len(both)),
                    *(found.difference, low, high, found.p),
                )
            )
    headers = ("difference", "questions", "passages", "points", "from", "to", "p")
    return text_table(headers, rows)


def d2_report(records: Sequence[dict[str, Any]], config: Config) -> str:
    outcomes = {
        (record["arm"], record["passage"], record["seed"]): InnerOutcome(
            **{f.name: record[f.name] for f in dataclasses.fields(InnerOutcome) if f.name in record}
        )
        for record in records
    }
    groups = {
        "between forms": D2_FORMS,
        "between drafts": tuple(f"half {config.edit} {draft}" for draft in range(DRAFTS)),
    }
    passages = list(dict.fromkeys(record["passage"] for record in records))
    rows = []
    for group, arms in groups.items():
        for kind in REWARDS:
            rewards_P_K_R = [
                [
                    [
                        reward(kind, outcomes[arm, p, seed], outcomes[BASE, p, 0])
                        for seed in range(config.seeds)
                    ]
                    for arm in arms
                ]
                for p in passages
            ]
            rewards = [[[r for r in row if r is not None] for row in k] for k in rewards_P_K_R]
            found = reliability(rewards)
            rows.append(
                (
                    *(group, kind, len(passages), config.seeds, found.icc),
                    None if found.icc is None else spearman_brown(found.icc, 2),
                    *(found.best.apparent, found.best.honest, found.best.error),
                )
            )
    headers = (
        *("edits", "reward", "passages", "repeats", "ICC", "of 2 repeats"),
        *("best of k", "cross-validated", "+-"),
    )
    return text_table(headers, rows)


def main(config: Config) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    print_anything()
    deadline = time.monotonic() + 60 * config.max_minutes
    source = open_source("made", num_train=0, num_test=config.passages)
    service, tokenizer = connect(), load_tokenizer("embedded")
    rows, records = [], []
    for settings, runs in PARTS[config.part](config, source):
        loop = InnerLoop(service, tokenizer, settings, RuleJudge(), source.shots)
        carry_out(loop, runs, config, deadline)
        done, name = stored(), setting_name(settings)
        keys = [(name, run.arm, run.passage.id, run.seed) for run in runs]
        keys += [
            (name, OTHER, run.asked_too.id, run.seed) for run in runs if run.asked_too is not None
        ]
        found = [done[key] for key in keys if key in done]
        rows += arm_rows(found)
        records += found
    print(text_table(ARM_HEADERS, rows))
    if config.part == "d1":
        print(f"\n{d1_report(records, config)}")
    elif config.part == "d2":
        print(f"\n{d2_report(records, config)}")


if __name__ == "__main__":
    chz.nested_entrypoint(main)
