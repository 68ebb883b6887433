"""Which numbers of a config are out of their range, in the words that all scripts use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def range_problems(
    config: Any,
    *,
    at_least_1: Sequence[str] = (),
    at_least_0: Sequence[str] = (),
    from_0: Sequence[str] = (),
    above_0: Sequence[str] = (),
    below_1: Sequence[str] = (),
) -> list[str]:
    """A message for each of the named settings that has such a value; None is allowed everywhere.

    at_least_1, at_least_0: counts. from_0, above_0: finite numbers. below_1: shares, from 0.
    """
    ranges = (
        (at_least_1, lambda value: value >= 1, "at least 1"),
        (at_least_0, lambda value: value >= 0, "0 or more"),
        (from_0, lambda value: 0 <= value < math.inf, "a number from 0"),
        (above_0, lambda value: 0 < value < math.inf, "a number above 0"),
        (below_1, lambda value: 0 <= value < 1, "from 0 to below 1"),
    )
    return [
        f"{name}={value}: {wanted} is needed"
        for names, allowed, wanted in ranges
        for name in names
        if (value := getattr(config, name)) is not None and not allowed(value)
    ]
