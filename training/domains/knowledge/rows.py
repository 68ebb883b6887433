"""Passages with questions as they stand in files, checked one by one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from utils.json_files import read_json


class Row(NamedTuple):
    title: str
    context: str
    # (question, answer)
    questions: list[tuple[str, str]]


def file_value(path: Path, problems: list[str]) -> Any:
    """What a JSON file holds; None, and a problem more, where it holds nothing or is no JSON."""
    try:
        value = read_json(path)
        if value is not None:
            return value
        problems.append(f"{path}: holds null")
    except OSError as error:
        problems.append(f"{path}: cannot be read ({error})")
    except ValueError as error:
        problems.append(str(error))
    return None


def checked_row(name: str, value: Any, problems: list[str]) -> Row | None:
    """The row of a {"title", "context", "questions": [{"question", "answer"}]}; other fields are
    not looked at. Adds to the problems, which begin with `name`, and gives None where it is not."""
    if not isinstance(value, dict):
        problems.append(f"{name}: an object is needed, got {type(value).__name__}")
        return None
    found = [
        f"{name}: {field}={_short(value.get(field))}: some text is needed"
        for field in ("title", "context")
        if not _is_text(value.get(field))
    ]
    questions = value.get("questions")
    if not isinstance(questions, list) or not questions:
        found.append(
            f"{name}: questions={_short(questions)}: a list of at least one "
            '{"question": ..., "answer": ...} is needed'
        )
        questions = []
    for i, asked in enumerate(questions):
        fields = ("question", "answer")
        if not isinstance(asked, dict) or not all(_is_text(asked.get(f)) for f in fields):
            found.append(
                f"{name}: questions[{i}]={_short(asked)}: an object with some text as question and "
                "as answer is needed"
            )
    if found:
        problems += found
        return None
    asked_Q = [(asked["question"].strip(), asked["answer"].strip()) for asked in questions]
    return Row(value["title"].strip(), value["context"].strip(), asked_Q)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
