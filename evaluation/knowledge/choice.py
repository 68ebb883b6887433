"""Which rows a table has: names that are known, what each needs, and sensible ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.knowledge.rows import (
    BM25,
    CLOSED_BOOK,
    DISTILLATION,
    EQUAL,
    FILE,
    GENERATOR,
    IN_CONTEXT,
    MODEL,
    OF_MODEL,
    OTHER,
    PASSAGE,
    PICKS,
    SINGLE_ONLY,
    SKILL,
    TEMPLATE,
    Setting,
)
from training.domains.knowledge.made_edits import TEMPLATE_FORMS

TEMPLATE_ROWS = tuple(f"{TEMPLATE}{form}" for form in TEMPLATE_FORMS)
_PLAIN = (CLOSED_BOOK, IN_CONTEXT, BM25, PASSAGE, *TEMPLATE_ROWS, MODEL, GENERATOR, FILE)
KNOWN = (*_PLAIN, OTHER, *PICKS, DISTILLATION, SKILL)


@dataclass(frozen=True, kw_only=True)
class Means:
    """What rows can be made of: `forms` that the model writes in, templates, another model, a file;
    `sums`: adapters can be added up."""

    setting: Setting
    forms: Sequence[str]
    has_templates: bool
    has_generator: bool
    has_file: bool
    sums: bool = True

    @property
    def pool(self) -> str:
        """Whose k edits are chosen from."""
        if self.has_file:
            return FILE
        return GENERATOR if self.has_generator else f"{OF_MODEL}{self.forms[0]}"

    @property
    def reference(self) -> str:
        """The edits that other rows are held against at equal tokens, and whose questions are
        asked: the generator's own, of two wordings for each fact, or else the pool's."""
        return f"{TEMPLATE}qa" if self.has_templates else self.pool

    @property
    def skill_writer(self) -> str:
        """Whose edits of other passages teach to answer; a file need not have any."""
        return self.reference if self.has_templates else f"{OF_MODEL}{self.forms[0]}"


def default_rows(means: Means) -> list[str]:
    """Few enough to be done in minutes on a small model."""
    rows = [CLOSED_BOOK, IN_CONTEXT, BM25, PASSAGE]
    if means.has_templates:
        rows += [f"{TEMPLATE}paraphrase", f"{TEMPLATE}statements", f"{TEMPLATE}qa"]
    rows.append(MODEL)
    if means.has_generator:
        rows.append(GENERATOR)
    if means.has_file:
        rows.append(FILE)
    rows.append(f"{EQUAL}{PASSAGE}")
    if means.setting == "cpt":
        return rows
    rows += [OTHER, *PICKS]
    if means.has_templates:
        rows.append(DISTILLATION)
    return [*rows, SKILL] if means.sums else rows


def expanded_rows(rows: Sequence[str], means: Means) -> list[str]:
    """Each once, the model's edits as a row for every form; the model as it came stands first,
    since all others are held against it too."""
    found = [CLOSED_BOOK]
    for row in rows:
        prefix = EQUAL if row.startswith(EQUAL) else ""
        if row.removeprefix(EQUAL) == MODEL:
            found += [f"{prefix}{OF_MODEL}{form}" for form in means.forms]
        else:
            found.append(row)
    return list(dict.fromkeys(found))


def row_problems(rows: Sequence[str], means: Means) -> list[str]:
    """What is wrong with the names of rows, and what those that are right cannot be made of."""
    problems = []
    if not rows:
        problems.append("rows=[]: name one or more, or leave it out")
    of_model = [f"{OF_MODEL}{form}" for form in means.forms]
    for row in rows:
        plain = row.removeprefix(EQUAL)
        is_equal = row != plain
        if plain not in (*KNOWN, *of_model) or (is_equal and plain not in _trained(of_model)):
            problems.append(
                f"rows: there is no row {row!r}; known are {', '.join(KNOWN)}, "
                f"{', '.join(of_model)}, and {EQUAL}ROW for those of edits"
            )
        elif plain in TEMPLATE_ROWS and not means.has_templates:
            problems.append(f"rows: {row} needs source=made, whose generator has templates")
        elif plain == FILE and not means.has_file:
            problems.append(f"rows: {row} needs edits_file=")
        elif plain == GENERATOR and not means.has_generator:
            problems.append(f"rows: {row} needs the role, e.g. generator.model=...")
        elif plain in SINGLE_ONLY and means.setting != "single":
            problems.append(f"rows: {row} needs setting=single, with an adapter for each passage")
        elif plain == SKILL and not means.sums:
            problems.append(f"rows: {row} adds adapters up, which backend=tinker cannot")
    return problems


def _trained(of_model: Sequence[str]) -> tuple[str, ...]:
    return (PASSAGE, *TEMPLATE_ROWS, MODEL, *of_model, GENERATOR, FILE, *PICKS)
