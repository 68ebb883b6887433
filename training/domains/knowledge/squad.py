"""SQuAD v1.1 (Rajpurkar et al. 2016), one passage per paragraph, and the subsets that SEAL used.

It is read from SEAL's regrouped JSON (a list of {"title", "context", "questions"}), from SQuAD's
own JSON, or from the hub. As in SEAL, the first of several gold answers counts.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from training.domains.base import Split
from training.domains.knowledge.rows import Row, checked_row, file_value
from utils.config.entrypoint import ConfigError

HUB_NAME = "rajpurkar/squad"
_HUB_SPLITS = {"train": "train", "test": "validation"}
# of SEAL; the order of its passages is part of what it published
SUBSET_SEED = 42

T = TypeVar("T")


def subset(items: Sequence[T], start: int, number: int) -> list[T]:
    """SEAL's rule: shuffled with seed 42, then [start:start + number]. Raises ValueError where
    there are not so many."""
    if start + number > len(items):
        raise ValueError(
            f"passages {start} to {start + number} were asked for, and there are {len(items)}; ask "
            "for fewer"
        )
    order = list(items)
    random.Random(SUBSET_SEED).shuffle(order)
    return order[start : start + number]


def read_squad(path: Path, problems: list[str]) -> list[Row]:
    """The paragraphs of a file in their order; what is wrong goes to `problems`, named by where it
    stands. Titles are written with spaces."""
    value = file_value(path, problems)
    if value is None:
        return []
    if isinstance(value, dict) and isinstance(value.get("data"), list):
        rows = _paragraphs(value["data"], str(path), problems)
    elif isinstance(value, list) and value:
        rows = ((f"{path}, [{i}]", row) for i, row in enumerate(value))
    else:
        problems.append(
            f"{path}: SQuAD's JSON has a list \"data\", SEAL's is a list of passages; this is "
            "neither"
        )
        return []
    checked = [checked_row(name, row, problems) for name, row in rows]
    return [_spaced(row) for row in checked if row is not None]


def load_squad(split: Split) -> list[Row]:
    """From the hub: its train split for train, its validation split for test."""
    import datasets

    try:
        loaded = datasets.load_dataset(HUB_NAME, split=_HUB_SPLITS[split])
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"source='squad': {HUB_NAME} could not be fetched from the Hugging Face hub ({error}); "
            "check the network, or give a local copy: data_path=a file of SQuAD v1.1"
        ) from error
    return regrouped([dict(row) for row in loaded])


def regrouped(questions: Sequence[dict[str, Any]]) -> list[Row]:
    """The rows of the hub, one per question, as one per paragraph."""
    groups = itertools.groupby(questions, key=lambda row: (row["title"], row["context"]))
    return [
        _spaced(
            Row(
                title,
                context,
                [(row["question"].strip(), row["answers"]["text"][0]) for row in rows],
            )
        )
        for (title, context), rows in groups
    ]


def _paragraphs(
    articles: list[Any], name: str, problems: list[str]
) -> Iterator[tuple[str, dict[str, Any]]]:
    for i, article in enumerate(articles):
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            problems.append(f'{name}, data[{i}]: an object with a list "paragraphs" is needed')
            continue
        for j, paragraph in enumerate(paragraphs):
            where = f"{name}, data[{i}].paragraphs[{j}]"
            if not isinstance(paragraph, dict):
                problems.append(f"{where}: an object is needed, got {type(paragraph).__name__}")
                continue
            yield (
                where,
                {
                    "title": article.get("title"),
                    "context": paragraph.get("context"),
                    "questions": _first_answers(paragraph.get("qas")),
                },
            )


def _first_answers(asked_Q: Any) -> Any:
    """Questions of SQuAD's own JSON in SEAL's form; what is no list of them is left alone."""
    return [_first_answer(asked) for asked in asked_Q] if isinstance(asked_Q, list) else asked_Q


def _first_answer(asked: Any) -> Any:
    if not isinstance(asked, dict) or not isinstance(asked.get("answers"), list):
        return asked
    answers = asked["answers"]
    first = answers[0] if answers and isinstance(answers[0], dict) else {}
    return {"question": asked.get("question"), "answer": first.get("text")}


def _spaced(row: Row) -> Row:
    return row._replace(title=row.title.replace("_", " "))
