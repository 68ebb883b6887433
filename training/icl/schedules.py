"""At which steps a run keeps a checkpoint."""

import math
from collections.abc import Sequence
from typing import Literal

SaveSchedule = Literal["end_only", "linear", "sqrt", "explicit"]
# the first steps change little that is worth a checkpoint
SQRT_START = 20


def save_steps(
    schedule: SaveSchedule | None,
    num_steps: int,
    num_checkpoints: int = 10,
    explicit: Sequence[int] = (),
) -> list[int]:
    """Ascending steps of 1..num_steps, without repeats; the last step is always one of them.

    linear: i/N of the way for i=1..N=num_checkpoints. sqrt: N steps spaced evenly in their square
    root, from step 20 (or the last, where that comes before), as in the published study of
    transience; dense early. explicit: those given. None: explicit where any are given, else
    end_only. Steps that fall together count once.
    """
    schedule = schedule or ("explicit" if explicit else "end_only")
    steps: list[int] = []
    if schedule == "linear":
        steps = [num_steps * i // num_checkpoints for i in range(1, num_checkpoints + 1)]
    elif schedule == "sqrt" and num_checkpoints > 1:
        first, last = math.sqrt(min(SQRT_START, num_steps)), math.sqrt(num_steps)
        width = (last - first) / (num_checkpoints - 1)
        # the square of a root may end up a rounding below the whole number
        steps = [int((first + i * width) ** 2 + 1e-6) for i in range(num_checkpoints)]
    elif schedule == "explicit":
        steps = list(explicit)
    return sorted({step for step in steps if 1 <= step <= num_steps} | {num_steps})
