"""What a model wrote, read as a self-edit."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

from training.domains.knowledge.forms import DEFAULT_CHOICES, FORMS, MODEL, Choices, check_form
from utils.json_files import unique_keys


class EditError(ValueError):
    """Why a text is no self-edit of its form."""


@dataclass(frozen=True)
class ParsedEdit:
    """`text` is what is trained on. `learning_rate` is the model's choice, with form=model only.
    `num_dropped` counts lines that are not of the form, as one that was cut off."""

    form: str
    learning_rate: float | None
    text: str
    num_dropped: int = 0


def parse_edit(written: str, form: str, *, choices: Choices = DEFAULT_CHOICES) -> ParsedEdit:
    """The self-edit in what a model wrote. Raises EditError where there is none."""
    check_form(form)
    text = written.strip()
    if not text:
        raise EditError("the self-edit is empty")
    learning_rate = None
    if form == MODEL:
        head, _, text = text.partition("\n")
        form, learning_rate = _head(head.strip(), choices)
    wanted = FORMS[form]
    if wanted.counts_after is not None:
        text = _after(wanted.counts_after, text)
    num_dropped = 0
    if wanted.line is not None:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        kept = [line for line in lines if re.fullmatch(wanted.line, line)]
        if lines and not kept:
            raise EditError(f"form {form}: none of {len(lines)} lines is one, {lines[0][:80]!r}")
        text, num_dropped = "\n".join(kept), len(lines) - len(kept)
    if not text.strip():
        raise EditError(f"form {form}: nothing was written in it")
    return ParsedEdit(form, learning_rate, text.strip(), num_dropped)


def _head(line: str, choices: Choices) -> tuple[str, float]:
    try:
        head = json.loads(line, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError) as error:
        raise EditError(f"the first line is no JSON ({error}): {line[:80]!r}") from error
    if not isinstance(head, dict) or set(head) != {"form", "learning_rate"}:
        raise EditError(f"the first line has to hold form and learning_rate alone: {line[:80]!r}")
    form, rate = head["form"], head["learning_rate"]
    if form not in choices.forms:
        raise EditError(f"form {form!r} is none of {', '.join(choices.forms)}")
    # true == 1
    if isinstance(rate, bool) or rate not in choices.learning_rates:
        allowed = ", ".join(map(json.dumps, choices.learning_rates))
        raise EditError(f"learning_rate {rate!r} is none of {allowed}")
    return form, float(rate)


def _after(header: str, text: str) -> str:
    """What stands below the first line that is `header`, or begins with it."""
    lines = text.splitlines()
    for at, line in enumerate(lines):
        if line.strip().startswith(header):
            return "\n".join([line.strip().removeprefix(header), *lines[at + 1 :]])
    raise EditError(f"there is no line {header!r}, after which the self-edit counts")
