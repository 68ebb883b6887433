"""What a sequence of self-edits does to the knowledge of its passages: the (K+1) x K matrix of
accuracies, and what is read off it.

Row r is the model after r self-edits, row 0 the model before all; column k holds the questions of
passage k, which the (k+1)th self-edit is about. A cell that was not measured is None.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from statistics import fmean
from typing import NamedTuple

from evaluation.stats import PairedDifference, holm, paired_difference
from utils.student_t import student_t

Cell = float | None
Matrix = Sequence[Sequence[Cell]]


class Estimate(NamedTuple):
    """A mean over n values that do not depend on each other, and its standard error (None of a
    single value)."""

    mean: float
    error: float | None
    n: int


@dataclass(frozen=True)
class Measures:
    """Of one sequence; None where a cell that a number needs was not measured.

    before, final       means of row 0 and of the last row; net is final - before
    acquisition         right after its own self-edit minus before all: the diagonal's gain
    backward_transfer   at the end minus right after its own self-edit, without the last passage
                        (Lopez-Paz & Ranzato 2017, arXiv 1706.08840)
    forgetting          the best since its own self-edit minus at the end, without the last passage,
                        so that 0 is the least (Chaudhry et al. 2018, arXiv 1801.10112)
    forward_transfer    right before its own self-edit minus before all, without the first passage;
                        needs cells of passages still to come
    """

    before: Cell
    final: Cell
    net: Cell
    acquisition: Cell
    backward_transfer: Cell
    forgetting: Cell
    forward_transfer: Cell


MEASURES = tuple(field.name for field in fields(Measures))


def check_matrix(matrix: Matrix) -> None:
    """Raises ValueError unless it is K+1 rows of K cells, K at least 1, each None or finite."""
    num_passages = len(matrix) - 1
    if num_passages < 1 or any(len(row) != num_passages for row in matrix):
        raise ValueError(
            f"a matrix of {len(matrix)} rows of {sorted({len(row) for row in matrix})} cells; "
            "K passages need K+1 rows of K cells"
        )
    if not all(cell is None or math.isfinite(cell) for row in matrix for cell in row):
        raise ValueError("a matrix with NaN or an infinity; None is a cell that was not measured")


def measures(matrix: Matrix) -> Measures:
    """Raises ValueError for what is no matrix of a sequence."""
    check_matrix(matrix)
    last = len(matrix) - 1
    first_row, last_row = matrix[0], matrix[last]
    own = [matrix[k + 1][k] for k in range(last)]
    best = [_max(matrix[r][k] for r in range(k + 1, last + 1)) for k in range(last)]
    earlier = range(last - 1)
    return Measures(
        before=_mean(first_row),
        final=_mean(last_row),
        net=_mean_difference(last_row, first_row),
        acquisition=_mean_difference(own, first_row),
        backward_transfer=_mean_difference([last_row[k] for k in earlier], own[:-1]),
        forgetting=_mean_difference(best[:-1], [last_row[k] for k in earlier]),
        forward_transfer=_mean_difference(
            [matrix[k][k] for k in range(1, last)], [first_row[k] for k in range(1, last)]
        ),
    )


def estimate(values: Iterable[Cell]) -> Estimate | None:
    """Over the values that are there; None without any."""
    given = [value for value in values if value is not None]
    if len(given) < 2:
        return Estimate(given[0], None, 1) if given else None
    t = student_t(given)
    return Estimate(t.mean, t.error, len(given))


def estimates(measures_S: Sequence[Measures]) -> dict[str, Estimate | None]:
    """Of each measure over sequences."""
    return {name: estimate(getattr(m, name) for m in measures_S) for name in MEASURES}


def cell_estimates(matrices_S: Sequence[Matrix]) -> list[list[Estimate | None]]:
    """Of each cell over sequences; ValueError where they differ in size."""
    for matrix in matrices_S:
        check_matrix(matrix)
    if len({len(matrix) for matrix in matrices_S}) != 1:
        raise ValueError(
            f"matrices of {sorted({len(m) - 1 for m in matrices_S})} passages; one number is needed"
        )
    num_rows = len(matrices_S[0])
    return [
        [estimate(matrix[r][k] for matrix in matrices_S) for k in range(num_rows - 1)]
        for r in range(num_rows)
    ]


@dataclass(frozen=True)
class MethodDifference:
    """A method minus the base method over the same sequences; p after Holm's correction."""

    method: str
    difference: PairedDifference
    p_holm: float | None

    @property
    def num_errors(self) -> float | None:
        """The difference in its standard errors; None where it has none."""
        if self.difference.interval is None:
            return None
        t = student_t(self.difference.unit_differences)
        return t.mean / t.error


def compare_methods(
    by_method: Mapping[str, Sequence[Measures]], base: str, measure: str = "final"
) -> list[MethodDifference]:
    """Each other method against `base`, paired by sequence. Raises ValueError where methods have
    different numbers of sequences."""
    values = {
        method: [getattr(m, measure) for m in measures_S]
        for method, measures_S in by_method.items()
    }
    base_S = values.pop(base)
    uneven = {name: len(row) for name, row in values.items() if len(row) != len(base_S)}
    if uneven:
        raise ValueError(
            f"{base} has {len(base_S)} sequences, but {uneven}; methods are compared on the same"
        )
    differences = [
        paired_difference(base_S, values_S, range(len(base_S))) for values_S in values.values()
    ]
    corrected = holm([difference.p for difference in differences])
    return [
        MethodDifference(method, difference, p)
        for method, difference, p in zip(values, differences, corrected, strict=True)
    ]


def _mean(cells: Sequence[Cell]) -> Cell:
    given = [cell for cell in cells if cell is not None]
    return fmean(given) if given and len(given) == len(cells) else None


def _mean_difference(after: Sequence[Cell], before: Sequence[Cell]) -> Cell:
    return _mean(
        [None if a is None or b is None else a - b for a, b in zip(after, before, strict=True)]
    )


def _max(cells: Iterable[Cell]) -> Cell:
    """None with any cell that was not measured."""
    values = list(cells)
    given = [value for value in values if value is not None]
    return max(given) if len(given) == len(values) else None
