"""The rows whose data are made by models: distillation and skill."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from evaluation.knowledge.rows import DISTILLATION, SKILL, Edits, Part, Plan, Rules
from evaluation.knowledge.runs import Done, Outcomes
from training.api import Datum
from training.domains.knowledge.distillation import questions_in
from training.domains.knowledge.documents import DocumentForm, document_texts
from training.domains.knowledge.inner import DatumJob, InnerOutcome, Job, SumJob
from training.domains.knowledge.passages import Passage

# the answers to questions about passages, as data
Distil = Callable[[Sequence[Passage], Sequence[Sequence[str]]], Sequence[Sequence[Datum]]]
TextDatum = Callable[[str], Datum]


def add_distillation(
    plan: Plan,
    passages_P: Sequence[Passage],
    edits: Edits,
    rules: Rules,
    outcomes: Outcomes,
    *,
    distil: Distil,
    texts: Callable[[Passage, str], list[str]],
    text_datum: TextDatum,
    can_read: Callable[[Passage, str], bool],
) -> None:
    """A run for each passage (setting=cpt: one for all) and seed, of the questions in its first
    edit, and of the passage as in all rows. Where an edit asks nothing, or the model cannot read
    the passage before the question, the run is missing. Nobody is asked where all runs are done."""
    together = rules.setting == "cpt"
    for s in range(rules.seeds):
        asked = []
        for p, passage in enumerate(passages_P):
            edit = next((e for e in edits[p][s] if e is not None), None)
            written = [] if edit is None else questions_in(edit.text)
            questions = [question for question in written if can_read(passage, question)]
            if questions:
                asked.append((p, passage, questions))
            else:
                plan.missing[DISTILLATION] += 1
        groups = [asked] if together else [[one] for one in asked]
        keys = [
            f"{DISTILLATION}/{'all' if together else group[0][1].id}/{s}"
            for group in groups
            if group
        ]
        datums: dict[int, Sequence[Datum]] = {}
        if any(key not in outcomes for key in keys):
            found = distil([passage for _, passage, _ in asked], [q for _, _, q in asked])
            datums = {p: data for (p, _, _), data in zip(asked, found, strict=True)}
        for key, group in zip(keys, groups, strict=False):
            own = tuple(passage for _, passage, _ in group)
            if key not in outcomes:
                data = [d for p, _, _ in group for d in datums[p]]
                data += [text_datum(text) for passage in own for text in texts(passage, "")]
                plan.jobs[key] = DatumJob(own, tuple(data), repeat=s, asked=own)
            start = 0
            for p, passage, _ in group:
                places = tuple(range(len(passage.questions)))
                plan.parts[DISTILLATION].append(Part(key, p, 0, s, start, places))
                start += len(places)


def skill_jobs(
    others_P: Sequence[Passage],
    edits: Edits,
    rules: Rules,
    form: DocumentForm,
    cap: int | None,
    text_datum: TextDatum,
) -> dict[str, Job]:
    """For each seed two adapters of other passages: with their edits, and of the passages alone.
    What tells them apart is the skill of answering."""
    jobs: dict[str, Job] = {}
    # they are kept, not asked
    asked = (replace(others_P[0], questions=()),)
    for s in range(rules.seeds):
        alone = [text for p in others_P for text in document_texts(p, "", form)]
        taught = []
        for passage, edits_S in zip(others_P, edits, strict=True):
            for edit in edits_S[s]:
                if edit is not None:
                    taught += document_texts(passage, edit.text, form, cap=cap, add_context=False)
        both = tuple(text_datum(text) for text in [*taught, *alone])
        jobs[_taught(s)] = DatumJob(
            tuple(others_P), both, repeat=s, asked=asked, save_as=f"skill-taught-{s}"
        )
        jobs[_alone(s)] = DatumJob(
            tuple(others_P),
            both[len(taught) :],
            learning_rate=rules.passage_rate,
            num_epochs=rules.passage_epochs,
            repeat=s,
            asked=asked,
            save_as=f"skill-alone-{s}",
        )
    return jobs


def forget_lost(
    plan: Plan, passages_P: Sequence[Passage], jobs: Mapping[str, Job], outcomes: Outcomes
) -> None:
    """Runs whose adapters are gone are to be done again, where a sum still needs them."""
    if all(_sum(passages_P[p], s) in outcomes for p, s in plan.kept):
        return
    for key in (*plan.kept.values(), *jobs):
        done = outcomes.get(key)
        if done is not None and done.outcome.saved and not Path(done.outcome.saved).exists():
            outcomes.forget(key)


def add_skill(plan: Plan, passages_P: Sequence[Passage], outcomes: Outcomes) -> None:
    """The sums: each passage's adapter and the skill. Those whose adapters failed fail too."""
    seeds = dict.fromkeys(s for _, s in plan.kept)
    plan.paid[SKILL] = [*plan.kept.values(), *map(_taught, seeds), *map(_alone, seeds)]
    for (p, s), key in plan.kept.items():
        sum_key = _sum(passages_P[p], s)
        places = tuple(range(len(passages_P[p].questions)))
        plan.parts[SKILL].append(Part(sum_key, p, 0, s, 0, places))
        if sum_key in outcomes:
            continue
        found = [outcomes.get(name) for name in (key, _taught(s), _alone(s))]
        paths = [done.outcome.saved for done in found if done is not None and done.outcome.saved]
        if len(paths) < len(found):
            failed = InnerOutcome(failed="one of the adapters that it is the sum of has failed")
            outcomes.add({sum_key: Done(failed, 0.0)})
            continue
        terms = tuple(zip(paths, (1.0, 1.0, -1.0), strict=True))
        plan.jobs[sum_key] = SumJob(terms, (passages_P[p],))


def delete_adapters(keys: Iterable[str], outcomes: Outcomes) -> None:
    """Those that sums were made of."""
    for key in keys:
        done = outcomes.get(key)
        if done is not None and done.outcome.saved:
            shutil.rmtree(done.outcome.saved, ignore_errors=True)


def _sum(passage: Passage, s: int) -> str:
    return f"{SKILL}/{passage.id}/{s}"


def _taught(s: int) -> str:
    return f"{SKILL}/taught/{s}"


def _alone(s: int) -> str:
    return f"{SKILL}/alone/{s}"
