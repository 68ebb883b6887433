"""A user's own passages: JSON or JSON lines with questions, or a folder of texts without."""

from __future__ import annotations

from pathlib import Path

from training.domains.knowledge.rows import Row, checked_row, file_value
from utils.json_files import read_json_lines, utf8_text

TEXTS = (".txt", ".md")
FORMS = (
    'a .json file (a list of {"title", "context", "questions": [{"question", "answer"}]}), a '
    ".jsonl file (one such object a line), or a folder of .txt and .md files"
)


def read_own(path: Path, problems: list[str]) -> list[Row]:
    """The passages of a file in their order, or those of a folder by name, which have no questions
    and are called as their file. What is wrong goes to `problems`, named by where it stands."""
    if path.is_dir():
        return _texts(path, problems)
    if path.suffix == ".jsonl":
        named = list(read_json_lines(path, problems))
    elif path.suffix == ".json":
        value = file_value(path, problems)
        if value is None:
            return []
        if not isinstance(value, list):
            problems.append(f"{path}: a list of passages is needed, got {type(value).__name__}")
            return []
        named = [(f"{path}, [{i}]", row) for i, row in enumerate(value)]
    else:
        problems.append(f"data_path={str(path)!r}: your own passages come from {FORMS}")
        return []
    if not named and not problems:
        problems.append(f"{path}: holds no passage")
    rows, seen = [], {}
    for name, value in named:
        row = checked_row(name, value, problems)
        if row is None:
            continue
        if row.title in seen:
            problems.append(f"{name}: title={row.title!r} is that of {seen[row.title]} too")
        seen.setdefault(row.title, name)
        rows.append(row)
    return rows


def _texts(folder: Path, problems: list[str]) -> list[Row]:
    paths = sorted(path for path in folder.iterdir() if path.suffix in TEXTS and path.is_file())
    if not paths:
        problems.append(f"data_path={str(folder)!r}: there is no .txt and no .md file in it")
    rows, seen = [], {}
    for path in paths:
        try:
            text = utf8_text(path.read_bytes(), str(path)).removeprefix("\ufeff").strip()
        except ValueError as error:
            problems.append(str(error))
            continue
        if not text:
            problems.append(f"{path}: holds no text")
        if path.stem in seen:
            problems.append(f"{path}: is called as {seen[path.stem]}, but for the ending")
        seen.setdefault(path.stem, path.name)
        rows.append(Row(path.stem, text, []))
    return rows
