"""What a table will take, and whether its questions fit the model, before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from evaluation.knowledge.rows import DISTILLATION, SKILL, Plan
from evaluation.knowledge.runs import QUESTION_TOKENS
from training.domains.knowledge.answers import Answerer
from training.domains.knowledge.inner import InnerJob, InnerLoop, Job, PooledJob, items_of
from training.domains.knowledge.passages import Passage
from utils.config.errors import raise_problems
from utils.runs.tables import text_table

_PROBE_ADAPTERS = 4


def check_prompts(answerer: Answerer, plan: Plan) -> None:
    """Raises ValueError for the first question that does not fit the model's context, with the text
    that it is to read before where there is one."""
    items = {
        (item.passage.id, item.question.id, item.shown): item
        for job in plan.jobs.values()
        for item in items_of(job)
    }
    answerer.check_all(list(items.values()))


def check_pooled(loop: InnerLoop, plan: Plan) -> None:
    """Raises ConfigError for passages that are longer than the model's context, where all are
    trained into one adapter, which would fail as a whole."""
    context = loop.settings.context
    problems = []
    for passage in {p.id: p for job in plan.jobs.values() for p in _pooled(job)}.values():
        length = loop.trained_tokens(InnerJob(passage, "", num_epochs=1))
        if context is not None and length > context:
            problems.append(
                f"passage {passage.id} ({passage.title!r}): {length} tokens to train on; the "
                f"model's context is {context}, and setting=cpt needs all passages to fit"
            )
    raise_problems(problems, at_most=10)


def _pooled(job: Job) -> tuple[Passage, ...]:
    return job.passages_P if isinstance(job, PooledJob) else ()


def probe(loop: InnerLoop, passage: Passage) -> float:
    """How many tokens are trained in a second, by a few adapters of one passage."""
    jobs = [InnerJob(passage, "", num_epochs=2, repeat=r) for r in range(_PROBE_ADAPTERS)]
    # the first pass of all also loads
    loop.run([replace(jobs[0], edit=None)], desc="probe")
    started = time.perf_counter()
    outcomes = loop.run(jobs, desc="probe")
    seconds = time.perf_counter() - started
    return sum(cost(loop, job) for job in jobs[: len(outcomes)]) / seconds


def cost(loop: InnerLoop, job: Job) -> int:
    """In tokens to train on: what it is trained on, and what its questions take."""
    return loop.trained_tokens(job) + QUESTION_TOKENS * len(items_of(job))


def dry_run_text(
    loop: InnerLoop, passages_P: Sequence[Passage], plan: Plan, tokens_per_second: float
) -> str:
    """Rows with their runs and tokens, and the time that all will take."""
    rows, counted = [], set()
    for row, parts in plan.parts.items():
        keys = list(dict.fromkeys(part.key for part in parts))
        jobs = [plan.jobs[key] for key in keys]
        tokens = sum(loop.trained_tokens(job) for job in jobs)
        new = [key for key in keys if key not in counted]
        counted.update(keys)
        rows.append((row, len(keys), len(new), tokens if jobs else None))
    total = sum(cost(loop, job) for job in plan.jobs.values())
    questions = sum(len(passage.questions) for passage in passages_P)
    lines = [
        f"{len(passages_P)} passages with {questions} questions",
        text_table(("row", "runs", "of them new", "trained tokens"), rows),
        f"{len(plan.jobs)} runs, about {total / tokens_per_second / 60:.1f} minutes with "
        f"{tokens_per_second:.0f} tokens/s, as just measured. Edits that a model is yet to write "
        "are counted as long as two passages, and writing them is not.",
    ]
    if {DISTILLATION, SKILL} & plan.parts.keys():
        lines.append(f"{DISTILLATION} and {SKILL} come on top.")
    return "\n\n".join([*lines, "Nothing was written."])
