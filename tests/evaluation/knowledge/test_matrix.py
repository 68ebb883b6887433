"""evaluation/knowledge/matrix.py: what is read off a matrix of continual self-edits."""

import math
import statistics
from dataclasses import asdict
from typing import Any

import pytest

from evaluation.knowledge.matrix import (
    MEASURES,
    Estimate,
    Measures,
    cell_estimates,
    compare_methods,
    estimate,
    estimates,
    measures,
)

# rows: after 0 to 3 edits; columns: passages
FULL = [
    [0.1, 0.2, 0.3],
    [0.9, 0.3, 0.2],
    [0.5, 0.8, 0.5],
    [0.6, 0.4, 0.7],
]
TRIANGLE = [FULL[0], [0.9, None, None], [0.5, 0.8, None], FULL[3]]


def test_measures_of_a_full_matrix() -> None:
    expected = {
        "before": 0.2,
        "final": 1.7 / 3,
        "net": (0.5 + 0.2 + 0.4) / 3,
        "acquisition": (0.8 + 0.6 + 0.4) / 3,
        "backward_transfer": (-0.3 - 0.4) / 2,
        "forgetting": (0.3 + 0.4) / 2,
        "forward_transfer": (0.1 + 0.2) / 2,
    }
    assert asdict(measures(FULL)) == pytest.approx(expected)


def test_what_was_not_measured_is_in_no_number() -> None:
    found = measures(TRIANGLE)
    assert found.forward_transfer is None
    for name in MEASURES[:-1]:
        assert getattr(found, name) == pytest.approx(getattr(measures(FULL), name))
    lacking = measures([[0.1, 0.2], [0.5, None], [None, 0.3]])
    assert (lacking.before, lacking.acquisition) == (pytest.approx(0.15), pytest.approx(0.25))
    assert (lacking.final, lacking.net) == (None, None)
    assert (lacking.backward_transfer, lacking.forgetting) == (None, None)


def test_forgetting_is_from_the_best_since_the_own_edit() -> None:
    # better later than right after the own edit; 0.9 before it does not count
    found = measures([[0.9, 0.9, 0.0], [0.2, 0, 0], [0.6, 0.9, 0], [0.5, 0.7, 0.1]])
    assert found.forgetting == pytest.approx((0.1 + 0.2) / 2)
    assert found.backward_transfer == pytest.approx((0.3 - 0.2) / 2)
    # never below 0, though the last row is the best
    assert measures([[0, 0], [0.2, 0], [0.6, 0.9]]).forgetting == 0


def test_one_passage_has_nothing_to_forget() -> None:
    found = measures([[0.25], [1.0]])
    assert (found.acquisition, found.net) == (0.75, 0.75)
    assert (found.backward_transfer, found.forgetting, found.forward_transfer) == (None,) * 3


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        ([], r"a matrix of 0 rows of \[\] cells"),
        ([[]], "a matrix of 1 rows"),
        ([[0.1, 0.2], [0.3, 0.4]], r"of 2 rows of \[2\] cells; K passages need"),
        ([[0.1, 0.2], [0.3], [0.4, 0.5]], r"of 3 rows of \[1, 2\] cells"),
        ([[0.1], [math.nan]], "NaN or an infinity"),
    ],
)
def test_what_is_no_matrix(matrix: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measures(matrix)


def test_estimates_over_sequences() -> None:
    values = [0.2, 0.5, None, 0.8]
    error = statistics.stdev([0.2, 0.5, 0.8]) / math.sqrt(3)
    assert estimate(values) == pytest.approx(Estimate(0.5, error, 3))
    assert estimate([None, 0.3]) == Estimate(0.3, None, 1)
    assert estimate([None]) is None
    other = [[0.3, 0.2, 0.1], [0.7, None, None], [0.5, 0.6, None], [0.2, 0.4, 0.9]]
    found = cell_estimates([TRIANGLE, other])
    assert found[0][0] == pytest.approx(Estimate(0.2, 0.1, 2))
    assert found[1] == [pytest.approx(Estimate(0.8, 0.1, 2)), None, None]
    over = estimates([measures(TRIANGLE), measures(other)])
    assert over["final"] == pytest.approx(
        Estimate((1.7 + 1.5) / 6, statistics.stdev([1.7 / 3, 0.5]) / math.sqrt(2), 2)
    )
    assert over["forward_transfer"] is None
    with pytest.raises(ValueError, match=r"matrices of \[1, 3\] passages"):
        cell_estimates([TRIANGLE, [[0.1], [0.2]]])


def test_methods_are_paired_by_sequence() -> None:
    def ending(*finals: float) -> list[Measures]:
        return [measures([[0.1], [final]]) for final in finals]

    by_method = {
        "replay": ending(0.30, 0.52, 0.71, 0.93),
        "merge": ending(0.2, 0.4, 0.6, 0.8),
        "gate": ending(0.25, 0.35, 0.65, 0.75),
    }
    replay, gate = compare_methods(by_method, "merge")
    assert (replay.method, gate.method) == ("replay", "gate")
    assert replay.difference.difference == pytest.approx(0.115)
    differences = [0.10, 0.12, 0.11, 0.13]
    error = statistics.stdev(differences) / 2
    assert replay.num_errors == pytest.approx(0.115 / error)
    assert gate.num_errors == pytest.approx(0)
    assert replay.difference.p is not None
    assert replay.p_holm == pytest.approx(2 * replay.difference.p)
    assert compare_methods({"merge": ending(0.1)}, "merge") == []
    [same] = compare_methods({"merge": ending(0.1, 0.4), "x": ending(0.2, 0.5)}, "merge")
    assert same.difference.difference == pytest.approx(0.1)
    assert same.num_errors is None
    with pytest.raises(ValueError, match=r"merge has 2 sequences, but \{'x': 1\}"):
        compare_methods({"merge": ending(0.1, 0.2), "x": ending(0.1)}, "merge")
