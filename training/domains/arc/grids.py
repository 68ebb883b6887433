"""Grids and what is done to them: augmentations, colour permutations, invertible transforms.

The augmentation families are those of "The Surprising Effectiveness of Test-Time Training"
(arXiv 2411.07279), which SEAL (arXiv 2506.10943) lets a model switch on and off.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Grid = npt.NDArray[np.int8]
Family = Literal["basic", "size", "chain", "repeat"]

MAX_SIDE = 30
NUM_COLORS = 10


def to_grid(values: Any) -> Grid:
    """A read-only int8 grid. ValueError unless `values` is a non-empty rectangle of 0..9.

    Grids above 30x30 are allowed here: augmentations make them before they are filtered.
    """
    try:
        array = np.array(values)
    except ValueError:
        raise ValueError("rows of different lengths") from None
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"shape {array.shape}, expected rows x columns, both at least 1")
    if array.dtype.kind not in "iu":
        raise ValueError(f"cells of type {array.dtype}, expected integers 0..{NUM_COLORS - 1}")
    if array.min() < 0 or array.max() >= NUM_COLORS:
        raise ValueError(f"cells {array.min()}..{array.max()}, expected 0..{NUM_COLORS - 1}")
    grid = np.ascontiguousarray(array, dtype=np.int8)
    grid.setflags(write=False)
    return grid


class Augmentation(NamedTuple):
    """One augmentation. `prepare` sees all grids of a task, so that they are treated alike."""

    name: str
    prepare: Callable[[Sequence[Grid], np.random.Generator], Callable[[Grid], Grid]]


def rotate(grid: Grid, angle: int) -> Grid:
    """Counter-clockwise by a multiple of 90 degrees."""
    return np.rot90(grid, k=angle // 90)


def reflect(grid: Grid, axis: int, *, reverse: bool = False) -> Grid:
    """The grid followed by its mirror image along `axis`; the image comes first if `reverse`."""
    parts = [grid, np.flip(grid, axis)]
    return np.concatenate(parts[::-1] if reverse else parts, axis=axis)


def stretch(grid: Grid, height: int, width: int) -> Grid:
    """Every cell becomes `height` x `width` cells."""
    return grid.repeat(height, axis=0).repeat(width, axis=1)


def draw_shift(grids: Sequence[Grid], rng: np.random.Generator) -> tuple[int, int]:
    """Rows and columns to roll by, each below min(4, the longest side) and not both zero.

    The published shifts may be zero; such a copy equals the original and is dropped anyway.
    """
    num_rows = min(4, max(grid.shape[0] for grid in grids))
    num_columns = min(4, max(grid.shape[1] for grid in grids))
    if num_rows * num_columns == 1:
        return 0, 0
    rows, columns = divmod(int(rng.integers(1, num_rows * num_columns)), num_columns)
    return rows, columns


def _prepare_translate(grids: Sequence[Grid], rng: np.random.Generator) -> Callable[[Grid], Grid]:
    shift = draw_shift(grids, rng)
    return lambda grid: np.roll(grid, shift, axis=(0, 1))


def _fixed(name: str, function: Callable[[Grid], Grid]) -> Augmentation:
    return Augmentation(name, lambda _grids, _rng: function)


_TURNS: dict[str, Callable[[Grid], Grid]] = {
    "rotate90": lambda grid: rotate(grid, 90),
    "rotate270": lambda grid: rotate(grid, 270),
    "rotate180": lambda grid: rotate(grid, 180),
    "flip0": lambda grid: np.flip(grid, 0),
    "flip1": lambda grid: np.flip(grid, 1),
    "transpose": lambda grid: grid.T,
}

# What voting applies to a task, and the transform that undoes it on the answer.
TRANSFORMS: dict[str, Callable[[Grid], Grid]] = {"identity": lambda grid: grid, **_TURNS}
INVERSES = {name: name for name in TRANSFORMS} | {
    "rotate90": "rotate270",
    "rotate270": "rotate90",
}


def _then_double(turn: Callable[[Grid], Grid]) -> Callable[[Grid], Grid]:
    return lambda grid: stretch(turn(grid), 2, 2)


FAMILIES: dict[Family, tuple[Augmentation, ...]] = {
    "basic": (
        *(_fixed(name, turn) for name, turn in _TURNS.items() if name != "transpose"),
        _fixed("reflect0_reverse", lambda grid: reflect(grid, 0, reverse=True)),
        _fixed("reflect1_reverse", lambda grid: reflect(grid, 1, reverse=True)),
        _fixed("reflect0", lambda grid: reflect(grid, 0)),
        _fixed("reflect1", lambda grid: reflect(grid, 1)),
        Augmentation("translate", _prepare_translate),
        _fixed("transpose", _TURNS["transpose"]),
    ),
    "size": (
        _fixed("double", lambda grid: stretch(grid, 2, 2)),
        _fixed("double_height", lambda grid: stretch(grid, 2, 1)),
        _fixed("double_width", lambda grid: stretch(grid, 1, 2)),
    ),
    "chain": tuple(_fixed(f"{name}_double", _then_double(turn)) for name, turn in _TURNS.items()),
    "repeat": (
        _fixed("repeat0", lambda grid: np.tile(grid, (2, 1))),
        _fixed("repeat1", lambda grid: np.tile(grid, (1, 2))),
        _fixed("repeat2", lambda grid: np.tile(grid, (2, 2))),
    ),
}


def permute_colors(grids: Sequence[Grid], rng: np.random.Generator) -> Grid:
    """A table `new = table[old]`: colour 0 stays and colours in use stay distinct.

    Colours in use move to unused ones while there are any; the rest are swapped in pairs.
    """
    used = sorted(set(np.unique(np.concatenate([grid.ravel() for grid in grids])).tolist()) - {0})
    pool = rng.permutation([color for color in range(1, NUM_COLORS) if color not in used]).tolist()
    partners = rng.permutation(used).tolist()
    table = np.arange(NUM_COLORS, dtype=np.int8)
    swapped: set[int] = set()
    for color in used:
        if color in swapped:
            continue
        if pool:
            table[color] = pool.pop()
            continue
        # a partner that had moved to an unused colour gives that up for the swap
        partner = partners.pop()
        table[color], table[partner] = partner, color
        swapped |= {color, partner}
        partners = [other for other in partners if other != color]
    return table
