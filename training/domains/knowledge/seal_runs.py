"""The report of a run in SEAL's layout: every answer before and after training on a self-edit, and
the means over them.

{"overall": {...}, ..., "articles": [{"stats", "title", "context", "completions": [{"text", "stats",
"questions": [{"rep", "question", "answer", "baseline_answer", "adapter_answer", "baseline_correct",
"adapter_correct"}]}], "prompt"}]}. A rep is an independent inner run of one self-edit. Standard
deviations are those of samples, and 0 of a single value. An answer without a verdict is null, which
SEAL does not know, and is left out of the means; a mean of nothing is null.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from training.domains.knowledge.grading import accuracy
from training.domains.knowledge.passages import Passage
from training.domains.knowledge.seal_files import SftRow, best_of, validated, write_json
from utils.json_files import read_json_object


@dataclass(frozen=True)
class SealAnswer:
    rep: int
    question: str
    answer: str
    baseline_answer: str
    adapter_answer: str
    baseline_correct: bool | None
    adapter_correct: bool | None


@dataclass(frozen=True)
class EditStats:
    baseline_mean: float | None
    baseline_std: float | None
    adapter_mean: float | None
    adapter_std: float | None
    gain_mean: float | None


@dataclass(frozen=True)
class ArticleStats:
    """Over the article's self-edits."""

    baseline_accuracy: float | None
    adapter_mean_accuracy: float | None
    adapter_std_over_completions: float | None
    mean_adapter_std_within_completions: float | None
    mean_gain: float | None


@dataclass(frozen=True)
class Overall:
    """Over articles, each with the same weight."""

    baseline_mean_accuracy: float | None
    baseline_std_of_article_means: float | None
    adapter_mean_accuracy: float | None
    adapter_std_of_article_means: float | None
    mean_adapter_std_over_completions: float | None
    mean_adapter_std_within_completions: float | None
    mean_gain: float | None


@dataclass(frozen=True)
class ScoredEdit:
    text: str
    stats: EditStats
    questions: tuple[SealAnswer, ...]


@dataclass(frozen=True)
class Article:
    stats: ArticleStats
    title: str
    context: str
    completions: tuple[ScoredEdit, ...]
    prompt: str


@dataclass(frozen=True)
class SealRun:
    """`settings` stand beside the two in the file, under any names."""

    overall: Overall
    articles: tuple[Article, ...]
    settings: dict[str, Any] = field(default_factory=dict)


S = TypeVar("S", ArticleStats, Overall)

_RUN = TypeAdapter(SealRun)


def seal_answers(
    passage: Passage,
    rep: int,
    baseline: tuple[Sequence[str], Sequence[bool | None]],
    adapter: tuple[Sequence[str], Sequence[bool | None]],
) -> list[SealAnswer]:
    """One inner run's answers to the passage's questions, with their verdicts; `baseline` and
    `adapter` are those of the model before and after."""
    return [
        SealAnswer(rep, question.text, question.answer, *texts, *verdicts)
        for question, texts, verdicts in zip(
            passage.questions,
            zip(baseline[0], adapter[0], strict=True),
            zip(baseline[1], adapter[1], strict=True),
            strict=True,
        )
    ]


def scored_edit(text: str, answers: Sequence[SealAnswer]) -> ScoredEdit:
    """A self-edit with the answers of all its inner runs."""
    reps: dict[int, list[SealAnswer]] = {}
    for answer in answers:
        reps.setdefault(answer.rep, []).append(answer)
    baseline = [accuracy([a.baseline_correct for a in rep]) for rep in reps.values()]
    adapter = [accuracy([a.adapter_correct for a in rep]) for rep in reps.values()]
    pairs = zip(baseline, adapter, strict=True)
    gains = [after - before for before, after in pairs if before is not None and after is not None]
    # each run's numbers are rounded by SEAL's server, before any mean
    baseline, adapter, gains = ([_rounded(x) for x in row] for row in (baseline, adapter, gains))
    stats = EditStats(
        baseline_mean=_mean(baseline),
        baseline_std=_std(baseline),
        adapter_mean=_mean(adapter),
        adapter_std=_std(adapter),
        gain_mean=_mean(gains),
    )
    return ScoredEdit(text, stats, tuple(answers))


def article(title: str, context: str, prompt: str, edits: Sequence[ScoredEdit]) -> Article:
    return Article(_rounded_all(_article_stats(edits)), title, context, tuple(edits), prompt)


def seal_run(articles: Sequence[Article], settings: Mapping[str, Any]) -> SealRun:
    """The run's report, with its counts beside `settings` (timestamp, exp_name, dataset,
    split_newlines, lora_params, ...)."""
    stats_P = [_article_stats(item.completions) for item in articles]
    edits = [edit for item in articles for edit in item.completions]
    baseline_P = [s.baseline_accuracy for s in stats_P]
    adapter_P = [s.adapter_mean_accuracy for s in stats_P]
    overall = Overall(
        baseline_mean_accuracy=_mean(baseline_P),
        baseline_std_of_article_means=_std(baseline_P),
        adapter_mean_accuracy=_mean(adapter_P),
        adapter_std_of_article_means=_std(adapter_P),
        mean_adapter_std_over_completions=_mean([s.adapter_std_over_completions for s in stats_P]),
        mean_adapter_std_within_completions=_mean(
            [s.mean_adapter_std_within_completions for s in stats_P]
        ),
        mean_gain=_mean([s.mean_gain for s in stats_P]),
    )
    counts = {
        "n_articles": len(articles),
        "k_completions": max((len(item.completions) for item in articles), default=0),
        "eval_times": max((len({a.rep for a in edit.questions}) for edit in edits), default=0),
    }
    return SealRun(_rounded_all(overall), tuple(articles), {**settings, **counts})


def write_run(path: Path, run: SealRun) -> None:
    plain = asdict(run)
    write_json(path, {"overall": plain["overall"], **run.settings, "articles": plain["articles"]})


def read_run(path: Path) -> SealRun:
    """Raises ConfigError with the places that are not of the layout."""
    record = read_json_object(path)
    settings = {key: record[key] for key in record if key not in ("overall", "articles")}
    known = {key: record[key] for key in record if key not in settings}
    return validated(_RUN, {**known, "settings": settings}, str(path))


def best_rows(run: SealRun, count: int = 1) -> list[SftRow]:
    """What SEAL's ReST-EM imitates, whatever the run's reward and selection: of each article the
    `count` self-edits with the highest mean accuracy after training; of equal ones the first."""
    return [
        SftRow(item.prompt, item.completions[i].text)
        for item in run.articles
        for i in best_of([edit.stats.adapter_mean for edit in item.completions], count)
    ]


def _article_stats(edits: Sequence[ScoredEdit]) -> ArticleStats:
    stats_G = [edit.stats for edit in edits]
    adapter_G = [stats.adapter_mean for stats in stats_G]
    return ArticleStats(
        baseline_accuracy=_mean([s.baseline_mean for s in stats_G]),
        adapter_mean_accuracy=_mean(adapter_G),
        adapter_std_over_completions=_std(adapter_G),
        mean_adapter_std_within_completions=_mean([s.adapter_std for s in stats_G]),
        mean_gain=_mean([s.gain_mean for s in stats_G]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return statistics.fmean(given) if given else None


def _std(values: Sequence[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    if not given:
        return None
    return statistics.stdev(given) if len(given) > 1 else 0.0


def _rounded_all(stats: S) -> S:
    return replace(stats, **{key: _rounded(value) for key, value in asdict(stats).items()})


def _rounded(value: float | None) -> float | None:
    """As SEAL rounds what it shows, and what its server sends of each inner run."""
    return None if value is None else round(value, 4)
