"""The rows of scripts/knowledge.py: the adapters to be trained for each, and what they are asked.

closed-book       the model as it came
in-context        it reads the passage before each question: how much there is to know
bm25              it reads the passage that BM25 finds for the question
passage           trained on the passage alone; the others are held against it
template-FORM     the passage and the generator's own edit, of made worlds (paraphrase, qa, ...)
model, model-FORM edits that the untrained model writes, of all `forms` or of one
generator         edits of another model, by its role
file              edits from a file
other             asked about a passage, the adapter of another one
covering longest random   of the k edits of a passage one: in which most answers stand, ...
equal-ROW         ROW trained for as many tokens as the reference edit of the passage
distillation      the answers of the model that reads the passage, as probabilities, to the
                  reference edit's questions (arXiv 2412.14964)
skill             passage, and what an adapter learned about answering from edits of other passages
                  (arXiv 2601.11258)
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Literal, NamedTuple

from training.domains.knowledge.bm25 import Bm25
from training.domains.knowledge.grading import conveys
from training.domains.knowledge.inner import InnerJob, Job, PooledJob
from training.domains.knowledge.passages import Passage

Setting = Literal["single", "cpt"]

CLOSED_BOOK, IN_CONTEXT, BM25, PASSAGE = "closed-book", "in-context", "bm25", "passage"
MODEL, GENERATOR, FILE, OTHER = "model", "generator", "file", "other"
DISTILLATION, SKILL = "distillation", "skill"
EQUAL, TEMPLATE, OF_MODEL = "equal-", "template-", "model-"
PICKS = ("covering", "longest", "random")
UNTRAINED = (CLOSED_BOOK, IN_CONTEXT, BM25)
# they are about the adapters of single passages
SINGLE_ONLY = (OTHER, SKILL)
# beside those that are not trained
NEED_QUESTIONS = (OTHER, "covering")


class Edit(NamedTuple):
    """`learning_rate` None: that of the settings."""

    text: str
    learning_rate: float | None = None


# of each passage and seed the k edits; None: one that could not be had, or is none
Edits = Sequence[Sequence[Sequence[Edit | None]]]
NO_EDIT = Edit("")


class Part(NamedTuple):
    """Of a row: what run `key` answered from its question `start` on are the questions `places` of
    passage `passage`."""

    key: str
    passage: int
    edit: int
    seed: int
    start: int
    places: tuple[int, ...]


@dataclass
class Plan:
    """`jobs` by key, each once, whatever rows it is of; `parts` by row; `missing` counts the edits
    that a row should have and has not. `kept`: by passage and seed, the run of the passage alone
    whose adapter the row skill needs."""

    jobs: dict[str, Job] = field(default_factory=dict)
    parts: dict[str, list[Part]] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)
    kept: dict[tuple[int, int], str] = field(default_factory=dict)
    paid: dict[str, list[str]] = field(default_factory=dict)

    def runs_of(self, row: str) -> list[str]:
        """The keys of its runs, each once."""
        return list(dict.fromkeys(part.key for part in self.parts[row]))

    def texts_of(self, row: str) -> dict[tuple[int, int, int], str]:
        """Its edits by passage, edit and seed, of runs that are trained on texts."""
        found = {}
        for part in self.parts[row]:
            job = self.jobs.get(part.key)
            if isinstance(job, InnerJob) and job.edit:
                found[part.passage, part.edit, part.seed] = job.edit
            elif isinstance(job, PooledJob):
                edits_K = job.edits_P_K[part.passage]
                found[part.passage, part.edit, part.seed] = "\n---\n".join(edits_K)
        return found


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What rows are made by. `reference` names the edits whose training the others are compared
    with at equal tokens, and `pool` those that covering, longest and random choose from.
    `passage_rate` and `passage_epochs` are for the passage alone, None: as for edits. `count` is
    the number of tokens that a job is trained on."""

    setting: Setting
    seeds: int
    reference: str
    pool: str
    passage_rate: float | None
    passage_epochs: int | None
    count: Callable[[Job], int]
    seed: int = 0


def make_plan(
    passages_P: Sequence[Passage],
    rows: Sequence[str],
    edits: Mapping[str, Edits],
    rules: Rules,
) -> Plan:
    """The runs of all rows but distillation and skill, whose data come of a model's answers and of
    adapters. `edits` by the row that trains on them."""
    plan = Plan()
    planner = _Planner(passages_P, edits, rules, plan, OTHER in rows)
    for row in rows:
        plan.parts.setdefault(row, [])
        if row in UNTRAINED:
            planner.untrained(row)
        elif row == OTHER:
            planner.other()
        elif row == SKILL:
            planner.keep_passages()
        elif row != DISTILLATION:
            planner.trained(row)
    return plan


def written_in(row: str, rules: Rules) -> str:
    """Whose edits a row is trained on; the name of the row itself where it has its own."""
    row = row.removeprefix(EQUAL)
    if row in PICKS:
        return rules.pool
    return rules.reference if row in (OTHER, DISTILLATION) else row


def writers_needed(rows: Sequence[str], rules: Rules) -> list[str]:
    """Whose edits the rows are trained on, or held against."""
    trained = [row for row in rows if row not in UNTRAINED]
    needed = [written_in(row, rules) for row in trained if row != SKILL]
    if any(row.startswith(EQUAL) for row in trained):
        needed.append(rules.reference)
    return [writer for writer in dict.fromkeys(needed) if writer != PASSAGE]


def picked(
    pick: str, passage: Passage, edits_K: Sequence[Edit | None], seed: object
) -> tuple[int, Edit] | None:
    """Of a passage's edits the one in which most answers stand, the longest in words, or any; the
    first of equal ones. None where there is no edit."""
    there = [(k, edit) for k, edit in enumerate(edits_K) if edit is not None]
    if not there:
        return None
    if pick == "random":
        return random.Random(f"pick/{seed}/{passage.id}").choice(there)
    if pick == "longest":
        return max(there, key=lambda one: len(one[1].text.split()))
    return max(there, key=lambda one: covered(passage, one[1].text))


def covered(passage: Passage, text: str) -> int:
    """How many of the questions have their answer in the text, as it stands."""
    return sum(conveys(text, question, "phrase") for question in passage.questions)


def others_of(passages_P: Sequence[Passage]) -> list[int]:
    """For each passage the one of another cluster that is most like it in its words (BM25), so that
    what is asked about both is alike. Raises ValueError where all are of one cluster."""
    if len({passage.cluster for passage in passages_P}) < 2:
        raise ValueError(
            f"row {OTHER}: {len(passages_P)} passages of one cluster have no other; give a larger "
            f"n_passages, or rows without {OTHER}"
        )
    bm25 = Bm25([passage.context for passage in passages_P])
    found = []
    for passage in passages_P:
        scores = bm25.scores(passage.context)
        apart = [i for i, other in enumerate(passages_P) if other.cluster != passage.cluster]
        found.append(max(apart, key=scores.__getitem__))
    return found


def job_key(job: InnerJob | PooledJob) -> str:
    """Of what is trained and asked."""
    if isinstance(job, InnerJob):
        own = [[job.passage.id, job.edit]]
    else:
        pairs = zip(job.passages_P, job.edits_P_K, strict=True)
        own = [[passage.id, list(edits_K)] for passage, edits_K in pairs]
    asked = [[p.id, [q.id for q in p.questions]] for p in job.asked]
    parts = [own, job.learning_rate, job.num_epochs, job.repeat, asked, job.shown]
    name = own[0][0] if len(own) == 1 else f"{len(own)} passages"
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    return f"{name}/{digest[:20]}"


class _Planner:
    def __init__(
        self,
        passages_P: Sequence[Passage],
        edits: Mapping[str, Edits],
        rules: Rules,
        plan: Plan,
        asks_others: bool,
    ) -> None:
        self._passages = passages_P
        self._edits = edits
        self._rules = rules
        self._plan = plan
        # of each passage those that its reference adapters are asked about besides itself
        self._asks_too: list[list[int]] = [[] for _ in passages_P]
        if asks_others:
            for asked, adapter in enumerate(others_of(passages_P)):
                self._asks_too[adapter].append(asked)
        texts = [f"{passage.title} {passage.context}" for passage in passages_P]
        self._bm25 = Bm25(texts)

    def untrained(self, row: str) -> None:
        for p, passage in enumerate(self._passages):
            for shown, places in self._shown(row, passage):
                asked = replace(passage, questions=tuple(passage.questions[i] for i in places))
                job = InnerJob(asked, None, asked=(asked,), shown=shown)
                self._add(row, job, [(p, 0, 0, 0, places)])

    def _shown(self, row: str, passage: Passage) -> list[tuple[str, tuple[int, ...]]]:
        """What is read before which questions."""
        every = tuple(range(len(passage.questions)))
        if row != BM25:
            return [(passage.context if row == IN_CONTEXT else "", every)]
        by_text: dict[str, list[int]] = {}
        for place, question in enumerate(passage.questions):
            found = self._bm25.best(f"{passage.title} {question.text}")
            text = "" if found is None else self._passages[found].context
            by_text.setdefault(text, []).append(place)
        return [(text, tuple(places)) for text, places in by_text.items()]

    def trained(self, row: str) -> None:
        if self._rules.setting == "cpt":
            self._trained_together(row)
            return
        for s in range(self._rules.seeds):
            for p, passage in enumerate(self._passages):
                for k, edit in self._chosen(row, p, s):
                    if edit is None:
                        self._plan.missing[row] += 1
                        continue
                    job = self._job(row, p, s, edit)
                    if row.startswith(EQUAL):
                        job = replace(job, num_epochs=self._equal_epochs(job, p, s))
                    self._add(row, job, [(p, k, s, 0, _all(passage))])

    def other(self) -> None:
        """Asked by the adapters of the reference edits, which are asked about their own passage
        too."""
        reference = self._rules.reference
        for s in range(self._rules.seeds):
            for p, passage in enumerate(self._passages):
                for k, edit in self._chosen(reference, p, s):
                    if edit is None:
                        continue
                    job = self._job(reference, p, s, edit)
                    start = len(passage.questions)
                    for asked in self._asks_too[p]:
                        places = _all(self._passages[asked])
                        self._add(OTHER, job, [(asked, k, s, start, places)])
                        start += len(places)

    def keep_passages(self) -> None:
        for s in range(self._rules.seeds):
            for p in range(len(self._passages)):
                job = replace(self._job(PASSAGE, p, s, NO_EDIT), save_as=f"passage-{p}-{s}")
                self._plan.kept[p, s] = key = job_key(job)
                self._plan.jobs[key] = job

    def _trained_together(self, row: str) -> None:
        passages = tuple(self._passages)
        for s in range(self._rules.seeds):
            edits_P_K = []
            for p in range(len(passages)):
                edits_K = [edit for _, edit in self._chosen(row, p, s)]
                self._plan.missing[row] += edits_K.count(None)
                edits_P_K.append(tuple(e.text for e in edits_K if e is not None and e.text))
            job = self._pooled(row, s, tuple(edits_P_K))
            if row.startswith(EQUAL):
                job = replace(job, num_epochs=self._equal_epochs(job, 0, s))
            parts, start = [], 0
            for p, passage in enumerate(passages):
                parts.append((p, 0, s, start, _all(passage)))
                start += len(passage.questions)
            self._add(row, job, parts)

    def _job(self, row: str, p: int, s: int, edit: Edit) -> InnerJob:
        passage, rules = self._passages[p], self._rules
        rate, epochs = edit.learning_rate, None
        if row.removeprefix(EQUAL) == PASSAGE:
            rate, epochs = rules.passage_rate, rules.passage_epochs
        asked = [passage]
        if row == rules.reference:
            asked += [self._passages[i] for i in self._asks_too[p]]
        return InnerJob(
            passage,
            edit.text,
            learning_rate=rate,
            num_epochs=epochs,
            repeat=s,
            asked=tuple(asked),
        )

    def _pooled(self, row: str, s: int, edits_P_K: tuple[tuple[str, ...], ...]) -> PooledJob:
        rate = epochs = None
        if row.removeprefix(EQUAL) == PASSAGE:
            rate, epochs = self._rules.passage_rate, self._rules.passage_epochs
        passages = tuple(self._passages)
        return PooledJob(
            passages, edits_P_K, learning_rate=rate, num_epochs=epochs, repeat=s, asked=passages
        )

    def _equal_epochs(self, job: InnerJob | PooledJob, p: int, s: int) -> int:
        """With which it is trained on about as many tokens as the reference edits are."""
        reference = self._rules.reference
        count = self._rules.count
        if isinstance(job, InnerJob):
            edits = [edit for _, edit in self._chosen(reference, p, s) if edit is not None]
            budgets = [count(self._job(reference, p, s, edit)) for edit in edits]
            budget = fmean(budgets) if budgets else 0
        else:
            edits_P_K = tuple(
                tuple(e.text for _, e in self._chosen(reference, q, s) if e is not None)
                for q in range(len(self._passages))
            )
            budget = count(self._pooled(reference, s, edits_P_K))
        return max(1, round(budget / count(replace(job, num_epochs=1))))

    def _chosen(self, row: str, p: int, s: int) -> list[tuple[int, Edit | None]]:
        """The edits of a row about a passage, with their numbers among those that were written."""
        name = row.removeprefix(EQUAL)
        if name == PASSAGE:
            return [(0, NO_EDIT)]
        edits_K = self._edits[written_in(name, self._rules)][p][s]
        if name in PICKS:
            seed = f"{self._rules.seed}/{s}"
            found = picked(name, self._passages[p], edits_K, seed)
            return [(0, None)] if found is None else [found]
        return list(enumerate(edits_K))

    def _add(
        self,
        row: str,
        job: InnerJob | PooledJob,
        parts: Sequence[tuple[int, int, int, int, tuple[int, ...]]],
    ) -> None:
        key = job_key(job)
        # one of another row may be told to keep its adapter
        self._plan.jobs.setdefault(key, job)
        self._plan.parts.setdefault(row, []).extend(Part(key, *part) for part in parts)


def _all(passage: Passage) -> tuple[int, ...]:
    return tuple(range(len(passage.questions)))
