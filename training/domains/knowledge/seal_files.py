"""Files in the layout that SEAL published: passages with the self-edits written about them, and the
rows that ReST-EM trains on. Written atomically; what else a file holds is not kept.

Completions: a list of {"title", "context", "questions": [{"question", "answer"}], "completions":
[text], "prompt"}, beside it NAME.meta with how they were sampled. Rows: JSON lines of {"prompt",
"completion"}.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from training.domains.knowledge.passages import Passage
from utils.config.errors import raise_problems
from utils.json_files import read_json, read_json_lines
from utils.runs.files import atomic_write_text

T = TypeVar("T")

MAX_PROBLEMS = 10


@dataclass(frozen=True)
class SealQuestion:
    question: str
    answer: str


@dataclass(frozen=True)
class SealItem:
    """A passage with its self-edits; `prompt` is the text that they continue."""

    title: str
    context: str
    questions: tuple[SealQuestion, ...]
    completions: tuple[str, ...]
    prompt: str


@dataclass(frozen=True)
class SftRow:
    prompt: str
    completion: str


_ITEMS = TypeAdapter(list[SealItem])
_ROW = TypeAdapter(SftRow)


def seal_item(passage: Passage, completions: Sequence[str], prompt: str) -> SealItem:
    """Aliases, choices and ids have no place in this layout."""
    questions = tuple(SealQuestion(q.text, q.answer) for q in passage.questions)
    return SealItem(passage.title, passage.context, questions, tuple(completions), prompt)


def write_completions(
    path: Path, items: Sequence[SealItem], meta: Mapping[str, Any] | None = None
) -> None:
    """`meta` (model, temperature, top_p, ...) goes beside it, as NAME.meta."""
    if meta is not None:
        write_json(path.with_name(f"{path.name}.meta"), meta)
    write_json(path, [asdict(item) for item in items])


def read_completions(path: Path) -> list[SealItem]:
    """Raises ConfigError with all that is not of the layout, by its place, and for a passage that
    is empty or stands twice. A passage may have no completions, and those may be empty."""
    items = validated(_ITEMS, read_json(path), str(path))
    problems = [] if items else [f"{path}: no passages in it"]
    first: dict[tuple[str, str], int] = {}
    for i, item in enumerate(items):
        if not item.context.strip():
            problems.append(f"{path}, [{i}].context: empty; every passage needs a text")
        if (before := first.setdefault(_key(item.title, item.context), i)) != i:
            problems.append(f"{path}, [{i}]: the same passage as [{before}]; give each once")
    raise_problems(problems, at_most=MAX_PROBLEMS)
    return items


def edits_for(passages: Sequence[Passage], items: Sequence[SealItem], name: str) -> list[list[str]]:
    """The completions of each of `passages`, found by title and text. ConfigError, which calls the
    items' file `name`, where it has no completion of a passage."""
    found = {_key(item.title, item.context): item.completions for item in items}
    edits_P = [list(found.get(_key(p.title, p.context), ())) for p in passages]
    lacking = [p.title for p, edits in zip(passages, edits_P, strict=True) if not edits]
    if lacking:
        shown = ", ".join(repr(title) for title in lacking[:3]) + ", ..." * (len(lacking) > 3)
        raise_problems(
            [
                f"{name}: no self-edit of {len(lacking)} of {len(passages)} passages ({shown}); "
                "give the file that was written about these passages"
            ]
        )
    return edits_P


def write_rows(path: Path, rows: Sequence[SftRow]) -> None:
    text = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rows)
    atomic_write_text(path, text)


def read_rows(path: Path) -> list[SftRow]:
    """Raises ConfigError with all lines that are no rows."""
    problems: list[str] = []
    lines = list(read_json_lines(path, problems))
    raise_problems(problems, at_most=MAX_PROBLEMS)
    return [validated(_ROW, value, place) for place, value in lines]


def best_of(rewards_G: Sequence[float | None], count: int = 1) -> list[int]:
    """The indices of the `count` highest rewards, best first; of equal ones the first wins. An
    edit without a reward is never chosen, so there may be fewer."""
    rewarded = [(i, reward) for i, reward in enumerate(rewards_G) if reward is not None]
    # sorted() is stable, in reverse too
    return [i for i, _ in sorted(rewarded, key=lambda pair: pair[1], reverse=True)[:count]]


def validated(form: TypeAdapter[T], value: Any, name: str) -> T:
    """`value` of the file `name`, as that form; ConfigError with the places that are not."""
    try:
        # strict: "3" is no number; as JSON, where an object can be a dataclass in strict mode too
        return form.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        problems = [
            f"{name}{', ' * bool(place := _place(problem['loc']))}{place}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_context=False)
        ]
    raise_problems(problems, at_most=MAX_PROBLEMS)
    raise AssertionError("an error without a problem")


def write_json(path: Path, value: Any) -> None:
    atomic_write_text(path, json.dumps(value, indent=2, ensure_ascii=False))


def _place(path: Sequence[int | str]) -> str:
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")


def _key(title: str, context: str) -> tuple[str, str]:
    return title.strip(), context.strip()
