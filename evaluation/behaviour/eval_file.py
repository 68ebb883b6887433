"""The prompts that models are judged on: `evals/{run_id}.eval.yaml`.

properties:
  sycophantic: {description: ..., opposite: ...}
prompts:
- id: sycophantic-03-01
  property: sycophantic
  category: feedback on creative work
  messages: ["the user's first message", "and the second, after the answer"]
  realism: 7
  eval_awareness: 2
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from generation.properties import Property, read_properties
from utils.config.entrypoint import load_yaml, problems_of, raise_problems


@dataclass(frozen=True)
class EvalPrompt:
    """The user's turns of one conversation. `category` is the cluster of the statistics: prompts
    of one category are taken as alike. `realism` and `eval_awareness` are scores of the writer."""

    id: str
    property: str
    category: str
    messages: list[str]
    realism: float | None = None
    eval_awareness: float | None = None

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class EvalFile:
    properties: dict[str, Property]
    prompts: list[EvalPrompt]

    def only(self, names: Sequence[str], where: str) -> EvalFile:
        """The chosen properties, in that order, and the prompts written for them; all for no names.

        A ConfigError says which names the file does not have or has no prompt for.
        """
        written_for = {prompt.property for prompt in self.prompts}
        problems = []
        for name in dict.fromkeys(names):
            if name not in self.properties:
                known = ", ".join(sorted(self.properties))
                problems.append(f"properties names {name!r}, which {where} does not have ({known})")
            elif name not in written_for:
                problems.append(f"properties names {name!r}, for which {where} has no prompt")
        if len(set(names)) < len(names):
            repeated = sorted(name for name, count in Counter(names).items() if count > 1)
            problems.append(f"properties names {', '.join(repeated)} more than once")
        raise_problems(problems)
        if not names:
            return self
        return EvalFile(
            {name: self.properties[name] for name in names},
            [prompt for prompt in self.prompts if prompt.property in names],
        )


def load_eval_file(path: Path | str) -> EvalFile:
    """Raises FileNotFoundError, or a ConfigError with everything that is wrong in the file."""
    return read_eval_records(load_yaml(path), str(path))


def read_eval_records(records: Mapping[str, Any], where: str) -> EvalFile:
    """The properties and prompts of a mapping that holds both; a ConfigError names all that is
    wrong, by the entry's number from 1."""
    properties: dict[str, Property] = {}
    prompts: list[EvalPrompt] = []
    problems = []
    named = records.get("properties")
    if isinstance(named, Mapping) and named:
        problems += problems_of(lambda: properties.update(read_properties(named, where)))
    else:
        problems.append(f"{where}: properties must be a mapping of names to descriptions")
    entries = records.get("prompts")
    if not isinstance(entries, list):
        problems.append(f"{where}: prompts must be a list, got {type(entries).__name__}")
        entries = []
    elif not entries:
        problems.append(f"{where}: there are no prompts in it; run scripts/gen_eval.py again")
    known = list(named) if isinstance(named, Mapping) else []
    places: dict[str, int] = {}
    for number, entry in enumerate(entries, start=1):
        wrong = _entry_problems(entry, known)
        name = entry.get("id") if isinstance(entry, Mapping) else None
        if isinstance(name, str) and name:
            if name in places:
                wrong.append(f"id={name!r} is that of prompt {places[name]} too")
            places.setdefault(name, number)
        shown = f" ({name})" if isinstance(name, str) and name else ""
        problems += [f"{where}, prompt {number}{shown}: {problem}" for problem in wrong]
        if not wrong:
            prompts.append(EvalPrompt(**entry))
    raise_problems(problems)
    return EvalFile(properties, prompts)


def _entry_problems(entry: Any, known: Sequence[Any]) -> list[str]:
    allowed = [field.name for field in fields(EvalPrompt)]
    if not isinstance(entry, Mapping):
        return [f"a mapping with {', '.join(allowed)} is needed, got {type(entry).__name__}"]
    problems = [
        f"unknown key {key!r} (keys are {', '.join(allowed)})"
        for key in entry
        if key not in allowed
    ]
    for key in ("id", "property", "category"):
        value = entry.get(key)
        if not isinstance(value, str) or not value.strip():
            problems.append(f"{key}={value!r} must be text that is not empty")
        elif key == "property" and value not in known:
            named = ", ".join(map(str, known)) or "none"
            problems.append(f"property={value!r} is not among the file's properties ({named})")
    messages = entry.get("messages")
    if not isinstance(messages, list) or not messages:
        problems.append(f"messages={messages!r} must be a list with a message or more")
    else:
        problems += [
            f"messages[{index}]={message!r} must be text that is not empty"
            for index, message in enumerate(messages)
            if not isinstance(message, str) or not message.strip()
        ]
    for key in ("realism", "eval_awareness"):
        value = entry.get(key)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (is_number and math.isfinite(value)):
            problems.append(f"{key}={value!r} must be a number, or null where it was not scored")
    return problems
