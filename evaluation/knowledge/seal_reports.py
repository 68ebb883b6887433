"""The reports of a table's rows in SEAL's layouts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from evaluation.knowledge.knowledge_report import Results
from evaluation.knowledge.rows import CLOSED_BOOK, UNTRAINED, Part, Setting
from evaluation.knowledge.runs import Done, Outcomes
from evaluation.knowledge.table import Answers, RowAnswers
from training.domains.knowledge.inner import InnerSettings, PooledJob, SumJob
from training.domains.knowledge.seal_cpt import CptArticle, write_cpt_run
from training.domains.knowledge.seal_runs import (
    Article,
    article,
    scored_edit,
    seal_answers,
    seal_run,
    write_run,
)
from training.domains.knowledge.seal_settings import seal_settings

SEAL_FOLDER = "seal"


def write_seal_reports(
    run_path: Path,
    results: Results,
    outcomes: Outcomes,
    settings: InnerSettings,
    *,
    dataset: str,
    setting: Setting,
) -> None:
    """seal/ROW.json for each row of edits, as SEAL's query_server.py writes them; and with all
    passages in one adapter (setting=cpt) seal/ROW.cpt-SEED.json for each adapter, as its CPT.py
    does. Runs that failed are left out."""
    folder = run_path / SEAL_FOLDER
    before_P = {a.passage: a for a in results.answers(CLOSED_BOOK) if a.failed is None}
    for row in results.rows:
        if row.name in UNTRAINED:
            continue
        articles = _articles(results, row, before_P)
        if articles:
            about = seal_settings(
                run_path, settings, dataset=dataset, split_newlines=setting == "single"
            )
            about |= {"exp_name": row.name}
            write_run(folder / f"{row.name}.json", seal_run(articles, about))
        for key in results.plan.runs_of(row.name) if setting == "cpt" else ():
            done = outcomes.get(key)
            parts = [part for part in results.plan.parts[row.name] if part.key == key]
            if done is None or done.outcome.failed is not None:
                continue
            if all(part.passage in before_P for part in parts):
                path = folder / f"{row.name}.cpt-{parts[0].seed}.json"
                _write_cpt(path, run_path, results, parts, done, before_P, settings, dataset)


def _articles(results: Results, row: RowAnswers, before_P: Mapping[int, Answers]) -> list[Article]:
    """The passages of a row with its edits."""
    texts = results.plan.texts_of(row.name)
    articles = []
    for p, passage in enumerate(results.passages_P):
        mine = [a for a in row.answers if a.passage == p and a.failed is None and p in before_P]
        edits = []
        for edit in dict.fromkeys(a.edit for a in mine):
            runs = [a for a in mine if a.edit == edit]
            base = (before_P[p].answers_Q, before_P[p].correct_Q)
            answers = [
                answer
                for run in runs
                for answer in seal_answers(passage, run.seed, base, (run.answers_Q, run.correct_Q))
            ]
            edits.append(scored_edit(texts.get((p, edit, runs[0].seed), ""), answers))
        if edits:
            articles.append(article(passage.title, passage.context, "", edits))
    return articles


def _write_cpt(
    path: Path,
    run_path: Path,
    results: Results,
    parts: Sequence[Part],
    done: Done,
    before_P: Mapping[int, Answers],
    settings: InnerSettings,
    dataset: str,
) -> None:
    outcome = done.outcome
    articles = []
    for part in parts:
        asked = slice(part.start, part.start + len(part.places))
        before = before_P[part.passage]
        articles.append(
            CptArticle(
                results.passages_P[part.passage].title,
                [before.answers_Q[place] for place in part.places],
                [before.correct_Q[place] for place in part.places],
                outcome.answers_Q[asked],
                outcome.correct_Q[asked],
            )
        )
    job = results.plan.jobs.get(parts[0].key)
    assert not isinstance(job, SumJob)
    about = seal_settings(
        *(run_path, settings),
        dataset=dataset,
        split_newlines=False,
        learning_rate=None if job is None else job.learning_rate,
        num_epochs=None if job is None else job.num_epochs,
    )
    # a row of another kind has one text of its own for each passage
    k = max(map(len, job.edits_P_K)) if isinstance(job, PooledJob) else 1
    about |= {"n_articles": len(articles), "k_completions": k}
    write_cpt_run(path, articles, about, train_sequences=outcome.num_documents)
