"""training/domains/knowledge/gate.py: how far a self-edit is let in."""

import math

import pytest

from training.domains.knowledge.gate import (
    BUDGETS,
    GateDecision,
    accuracy_lost,
    largest_scale,
    nats_lost,
)


def test_what_costs_little_is_let_in_whole() -> None:
    assert largest_scale(lambda scale: 0.3, 0.3) == GateDecision(1.0, 0.3, ((1.0, 0.3),))


def test_what_costs_too_much_is_refused() -> None:
    decision = largest_scale(lambda scale: scale, 0.05)
    assert decision == GateDecision(None, None, ((1.0, 1.0), (0.1, 0.1)))
    assert largest_scale(lambda scale: math.nan, 9.0).scale is None


@pytest.mark.parametrize("limit", [0.1, 0.37, 0.5, 0.999])
def test_bisection_comes_within_half_a_step_of_each_halving(limit: float) -> None:
    decision = largest_scale(lambda scale: scale**2, limit**2 + 1e-12)
    assert decision.scale is not None
    assert limit - 0.9 / 2**7 < decision.scale <= limit + 1e-9
    assert decision.cost == decision.scale**2
    assert len(decision.tried) == 9
    # no scale between the accepted one and the largest that fits was tried
    assert decision.scale == max(scale for scale, cost in decision.tried if scale <= limit + 1e-9)


def test_fewer_halvings_from_another_smallest_scale() -> None:
    decision = largest_scale(lambda scale: scale, 0.6, num_halvings=1, smallest=0.2)
    assert [scale for scale, _ in decision.tried] == pytest.approx([1.0, 0.2, 0.6])
    assert largest_scale(lambda scale: scale, 0.6, num_halvings=0).scale == 0.1


def test_a_nan_on_the_way_is_too_much() -> None:
    decision = largest_scale(lambda scale: math.nan if scale > 0.4 else 0.0, 0.0)
    assert decision.scale == pytest.approx(0.4, abs=0.01)
    assert decision.scale is not None
    assert decision.scale <= 0.4


def test_costs() -> None:
    assert accuracy_lost([True, True, False, None], [False, True, False, True]) == 1 / 3
    assert accuracy_lost([False], [True]) == -1
    assert accuracy_lost([None], [True]) == 0
    assert nats_lost([-1.0, -2.0], [-2.5, -1.0]) == pytest.approx(0.25)
    assert nats_lost([], []) == 0
    assert BUDGETS["kl"] == pytest.approx(0.2079, abs=1e-4)
    with pytest.raises(ValueError, match="zip"):
        nats_lost([-1.0], [])
