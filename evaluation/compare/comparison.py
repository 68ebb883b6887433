"""Two models on the items that both answered."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

from evaluation.compare.items import Item, Side
from evaluation.stats import (
    McNemar,
    PairedDifference,
    holm,
    mcnemar_exact,
    paired_difference,
    sign_flip_test,
)
from utils.config.entrypoint import ConfigError, raise_problems
from utils.student_t import SIGNIFICANCE


@dataclass(frozen=True)
class Matched:
    """ids: of the items on both sides, in a's order. Left out are those on one side only, and those
    that are another question on each side (other_question)."""

    ids: list[str]
    only_a: list[str]
    only_b: list[str]
    other_question: list[str]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """One metric, b minus a. mcnemar: where every score is 0 or 1."""

    metric: str
    found: PairedDifference
    p_holm: float | None
    p_sign_flip: float | None
    mcnemar: McNemar | None

    @property
    def verdict(self) -> str:
        """What may be said of it, in words."""
        if self.p_holm is None or self.found.difference is None:
            return "not comparable"
        if self.p_holm < SIGNIFICANCE:
            return "b higher" if self.found.difference > 0 else "b lower"
        return "no difference shown"


def match_items(a: Side, b: Side) -> Matched:
    """Raises ConfigError for two forms, and where no item is on both sides."""
    if a.form != b.form:
        raise ConfigError(f"a is {a.form}, b {b.form}: both have to be of one form")
    common = [id for id in a.items if id in b.items]
    comparable = a.dialect == b.dialect
    other = [id for id in common if comparable and _differ(a.items[id], b.items[id])]
    left_out = set(other)
    ids = [id for id in common if id not in left_out]
    if not ids:
        first_a, first_b = (", ".join(list(side.items)[:3]) for side in (a, b))
        reason = f"a has {first_a}, ...; b has {first_b}, ..."
        if len(other) == 1:
            reason = f"the only id in common, {other[0]}, is another question on each side"
        elif other:
            reason = (
                f"the {len(other)} ids in common are other questions on each side, such as "
                f"{other[0]}"
            )
        raise ConfigError(f"a={a.path}, b={b.path}: no item in common ({reason})")
    notes = []
    if not comparable:
        notes.append(
            "a and b word their questions for other models: items are matched by their ids alone"
        )
    return Matched(
        ids,
        only_a=[id for id in a.items if id not in b.items],
        only_b=[id for id in b.items if id not in a.items],
        other_question=other,
        notes=tuple(notes),
    )


def _differ(a: Item, b: Item) -> bool:
    return None not in (a.fingerprint, b.fingerprint) and a.fingerprint != b.fingerprint


def choose_metrics(a: Side, b: Side, chosen: Sequence[str]) -> list[str]:
    """Those the user names, or all; a ConfigError for a metric that one side lacks, and for a side
    of which nothing was scored."""
    problems = [
        "; ".join((f"{label}={side.path}: {_nothing_scored(len(side.items))}", *side.notes))
        for label, side in (("a", a), ("b", b))
        if not side.unusable and not _is_scored(side)
    ]
    raise_problems(problems)
    for name in chosen:
        for label, side in (("a", a), ("b", b)):
            if name in side.unusable:
                problems.append(f"metrics names {name!r}: in {label}, {side.unusable[name]}")
            elif name not in side.metrics:
                known = ", ".join(side.metrics)
                problems.append(f"metrics names {name!r}, which {label} does not have ({known})")
    raise_problems(problems)
    if chosen:
        return list(dict.fromkeys(chosen))
    common = [name for name in a.metrics if name in b.metrics]
    advice = "both have none with a number for each item"
    if common:
        advice = f"choose with metrics= of what both have ({', '.join(common)})"
    for label, side, other in (("a", a, b), ("b", b, a)):
        missing = [name for name in side.metrics if name not in other.metrics]
        if missing:
            unusable = {name: other.unusable[name] for name in missing if name in other.unusable}
            problems.append(
                f"{', '.join(missing)} of {label} ({side.path}) is no metric of the other side"
                f"{_reasons(unusable)}; {advice}"
            )
    if not common and not problems:
        problems.append(
            "a and b have no metric with a number for each item"
            f"{_reasons({f'{name} of a': why for name, why in a.unusable.items()})}"
            f"{_reasons({f'{name} of b': why for name, why in b.unusable.items()})}"
        )
    raise_problems(problems)
    return common


def _reasons(unusable: Mapping[str, str]) -> str:
    return "".join(f"; {name}: {why}" for name, why in unusable.items())


def _nothing_scored(number: int) -> str:
    return (
        "its only item has no score" if number == 1 else f"none of its {number} items has a score"
    )


def _is_scored(side: Side) -> bool:
    return any(score is not None for item in side.items.values() for score in item.scores.values())


def compare(
    a: Side, b: Side, matched: Matched, metrics: Sequence[str], cluster: str | None, *, seed: int
) -> list[Row]:
    """A row for each metric; Holm's correction is over all of them.

    Items are independent units, or clusters of those with the same value of the field `cluster`; a
    ConfigError where an item has no such field, or another value on each side.
    """
    clusters = _clusters(a, b, matched, cluster)
    rows = []
    for metric in metrics:
        ids = [
            id
            for id in matched.ids
            if metric in a.items[id].scores and metric in b.items[id].scores
        ]
        a_P = [a.items[id].scores[metric] for id in ids]
        b_P = [b.items[id].scores[metric] for id in ids]
        found = paired_difference(a_P, b_P, [clusters[id] for id in ids])
        binary = all(value in (0, 1, None) for value in (*a_P, *b_P))
        rows.append(
            Row(
                metric,
                found,
                p_holm=None,
                p_sign_flip=sign_flip_test(found.unit_differences, seed=seed).p,
                mcnemar=mcnemar_exact(
                    [None if value is None else bool(value) for value in a_P],
                    [None if value is None else bool(value) for value in b_P],
                )
                if binary
                else None,
            )
        )
    adjusted = holm([row.found.p for row in rows])
    return [replace(row, p_holm=p) for row, p in zip(rows, adjusted, strict=True)]


def _clusters(a: Side, b: Side, matched: Matched, cluster: str | None) -> dict[str, Hashable]:
    if cluster is None:
        return {id: id for id in matched.ids}
    found: dict[str, Hashable] = {}
    for id in matched.ids:
        fields = [side.items[id].fields for side in (a, b)]
        for label, own in zip("ab", fields, strict=True):
            if cluster not in own:
                raise ConfigError(
                    f"cluster={cluster!r}: item {id!r} of {label} has no such field "
                    f"({', '.join(map(str, own)) or 'it has none'})"
                )
        first, second = (str(own[cluster]) for own in fields)
        if first != second:
            raise ConfigError(
                f"cluster={cluster!r}: item {id!r} is in {first!r} for a, in {second!r} for b"
            )
        found[id] = first
    return found
