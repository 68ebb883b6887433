"""Self-edits that the policy did not write: another model did, called by its role, or a file has
them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from training.domains.knowledge.forms import EditPrompts
from training.domains.knowledge.passages import Passage
from training.domains.knowledge.seal_files import read_completions
from utils.config.errors import ConfigError, raise_problems
from utils.json_files import read_json_lines
from utils.llm.api import LLMError, Message
from utils.llm.batch import gather_counted
from utils.llm.client import LLMClient
from utils.llm.runs import require_whole

logger = logging.getLogger(__name__)

GENERATOR = "generator"
_MAX_PROBLEMS = 10
_ROW_FORMS = '{"id": ..., "edit": ...}, {"title": ..., "edit": ...} or rows of a samples.jsonl'


class WrittenEdits(NamedTuple):
    """`texts_P_K[p]` are the texts written about passage p, as they were written, in their order;
    of k for each passage `num_missing` are not there."""

    texts_P_K: list[list[str]]
    num_missing: int


async def write_edits(
    client: LLMClient, prompts: EditPrompts, passages_P: Sequence[Passage], k: int
) -> WrittenEdits:
    """`k` edits of each passage by the client's role `generator`, one call each. Those that
    fail are missing; raises LLMError where a failure ended the calls before all were made."""
    _check_k(k)
    messages_P: list[list[Message]] = [
        [{"role": m["role"], "content": m["content"]} for m in prompts.messages(passage)]
        for passage in passages_P
    ]
    # an edit that the limit cut off still has its lines before
    calls = [
        partial(client.ask, GENERATOR, messages, sample_index=i, allow_truncated=True)
        for messages in messages_P
        for i in range(k)
    ]
    replies = await gather_counted(calls, "self-edits")
    require_whole(client)
    texts_P_K = [
        [r.text for r in replies[p * k : (p + 1) * k] if not isinstance(r, LLMError)]
        for p in range(len(passages_P))
    ]
    return _counted(texts_P_K, k, GENERATOR)


def read_edits(path: Path, passages_P: Sequence[Passage], k: int) -> WrittenEdits:
    """At most `k` edits of each passage from a file: SEAL's JSON with completions, or JSON lines.

    A line holds `edit` with the `id` or `title` of its passage, or is one of a samples.jsonl; of
    these the newest steps come first. Raises ConfigError with all lines that are neither, for
    titles that several passages have, and for a file that is about other passages altogether;
    FileNotFoundError where there is none.
    """
    _check_k(k)
    if not path.is_file():
        raise FileNotFoundError(
            f"edits_file={str(path)!r}: no such file; give SEAL's JSON, or JSON lines: {_ROW_FORMS}"
        )
    if path.suffix == ".jsonl":
        texts_P_K, about = _from_lines(path, passages_P)
    else:
        items = {(i.title.strip(), i.context.strip()): i for i in read_completions(path)}
        found = [items.get((p.title.strip(), p.context.strip())) for p in passages_P]
        texts_P_K = [[] if item is None else list(item.completions) for item in found]
        about = [item.title for item in items.values()]
    if not any(texts_P_K):
        raise ConfigError(
            f"{path}: its edits are about other passages ({_shown(about)}) than these "
            f"({_shown([p.title for p in passages_P])}); give the file that was written about them"
        )
    texts_P_K = [[text for text in texts_K if text.strip()][:k] for texts_K in texts_P_K]
    return _counted(texts_P_K, k, str(path))


def _from_lines(path: Path, passages_P: Sequence[Passage]) -> tuple[list[list[str]], list[str]]:
    """The edits of each passage, and what all edits of the file are about."""
    problems: list[str] = []
    rows = []
    for place, value in read_json_lines(path, problems):
        row = _row(value)
        if row is None:
            problems.append(f"{place}: {str(value)[:80]!r}; {_ROW_FORMS} are needed")
        else:
            rows.append(row)
    if not rows and not problems:
        problems.append(f"{path}: no edits in it")
    # stable: edits of one step, or of none, stay in their order
    rows.sort(key=lambda row: -row.step)
    by_id: dict[str, list[str]] = {}
    by_title: dict[str, list[str]] = {}
    for row in rows:
        (by_title if row.by_title else by_id).setdefault(row.name, []).append(row.edit)
    titles = [passage.title for passage in passages_P]
    problems += [
        f"{path}: title {title!r} is that of {titles.count(title)} passages; give the id"
        for title in by_title
        if titles.count(title) > 1
    ]
    raise_problems(problems, at_most=_MAX_PROBLEMS)
    found = [[*by_id.get(p.id, []), *by_title.get(p.title, [])] for p in passages_P]
    return found, [*by_id, *by_title]


class _Row(NamedTuple):
    name: str
    by_title: bool
    edit: str
    step: int


def _row(value: Any) -> _Row | None:
    if not isinstance(value, dict):
        return None
    step = value.get("step", 0)
    for name_key, edit_key in (("id", "edit"), ("title", "edit"), ("problem", "answer")):
        name, edit = value.get(name_key), value.get(edit_key)
        if isinstance(name, str) and isinstance(edit, str) and isinstance(step, int):
            return _Row(name, name_key == "title", edit, step)
    return None


def _counted(texts_P_K: list[list[str]], k: int, source: str) -> WrittenEdits:
    num_missing = sum(k - len(texts_K) for texts_K in texts_P_K)
    if num_missing:
        logger.warning("%s: %d of %d edits are missing", source, num_missing, k * len(texts_P_K))
    return WrittenEdits(texts_P_K, num_missing)


def _check_k(k: int) -> None:
    if k < 1:
        raise ConfigError(f"k={k}: at least one edit of each passage is needed")


def _shown(names: Iterable[str]) -> str:
    names = list(dict.fromkeys(names))
    return ", ".join(map(repr, names[:3])) + ", ..." * (len(names) > 3)
