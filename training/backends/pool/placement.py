"""Which engine does what: the same for the same program, whatever the timing."""

from collections.abc import Sequence


def emptiest(loads: Sequence[float]) -> int:
    """The engine with the least load; of equal ones the first."""
    return min(range(len(loads)), key=lambda engine: loads[engine])


def spread(costs: Sequence[float], loads: Sequence[float], home: int, worth: float) -> list[int]:
    """The engine of each request to one sampler: where its adapter is, `home`, unless all of them
    cost at least `worth`; then wherever least is to do, at home if that is equal. `loads`: what
    each engine has been given already."""
    if sum(costs) < worth:
        return [home] * len(costs)
    loads = list(loads)
    engines = []
    for cost in costs:
        engine = min(range(len(loads)), key=lambda e: (loads[e], e != home, e))
        loads[engine] += cost
        engines.append(engine)
    return engines
