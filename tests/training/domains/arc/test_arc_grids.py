import numpy as np
import pytest

from training.domains.arc import grids
from training.domains.arc.grids import FAMILIES, INVERSES, TRANSFORMS, permute_colors, to_grid

GRID = to_grid([[1, 2, 3], [4, 5, 6]])


def apply(name: str, values: list[list[int]]) -> list[list[int]]:
    by_name = {a.name: a for family in FAMILIES.values() for a in family}
    grid = to_grid(values)
    return by_name[name].prepare([grid], np.random.default_rng(0))(grid).tolist()


def test_family_sizes():
    sizes = {family: len(augmentations) for family, augmentations in FAMILIES.items()}
    assert sizes == {"basic": 11, "size": 3, "chain": 6, "repeat": 3}
    names = [a.name for family in FAMILIES.values() for a in family]
    assert len(set(names)) == 23


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rotate90", [[2, 4], [1, 3]]),
        ("rotate180", [[4, 3], [2, 1]]),
        ("rotate270", [[3, 1], [4, 2]]),
        ("flip0", [[3, 4], [1, 2]]),
        ("flip1", [[2, 1], [4, 3]]),
        ("transpose", [[1, 3], [2, 4]]),
        ("reflect0", [[1, 2], [3, 4], [3, 4], [1, 2]]),
        ("reflect1", [[1, 2, 2, 1], [3, 4, 4, 3]]),
        ("reflect0_reverse", [[3, 4], [1, 2], [1, 2], [3, 4]]),
        ("reflect1_reverse", [[2, 1, 1, 2], [4, 3, 3, 4]]),
        ("double", [[1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4]]),
        ("double_height", [[1, 2], [1, 2], [3, 4], [3, 4]]),
        ("double_width", [[1, 1, 2, 2], [3, 3, 4, 4]]),
        ("rotate90_double", [[2, 2, 4, 4], [2, 2, 4, 4], [1, 1, 3, 3], [1, 1, 3, 3]]),
        ("transpose_double", [[1, 1, 3, 3], [1, 1, 3, 3], [2, 2, 4, 4], [2, 2, 4, 4]]),
        ("repeat0", [[1, 2], [3, 4], [1, 2], [3, 4]]),
        ("repeat1", [[1, 2, 1, 2], [3, 4, 3, 4]]),
        ("repeat2", [[1, 2, 1, 2], [3, 4, 3, 4], [1, 2, 1, 2], [3, 4, 3, 4]]),
    ],
)
def test_augmentations_by_hand(name, expected):
    assert apply(name, [[1, 2], [3, 4]]) == expected


def test_translate_rolls_all_grids_alike_and_never_by_nothing():
    translate = next(a for a in FAMILIES["basic"] if a.name == "translate")
    marked = np.zeros((6, 5), dtype=np.int8)
    marked[0, 0] = 1
    shifts = set()
    for seed in range(200):
        function = translate.prepare([GRID, marked], np.random.default_rng(seed))
        rows, columns = np.argwhere(function(marked))[0].tolist()
        assert np.array_equal(function(GRID), np.roll(GRID, (rows, columns), axis=(0, 1)))
        shifts.add((rows, columns))
    assert shifts == {(r, c) for r in range(4) for c in range(4)} - {(0, 0)}


def test_shift_stays_below_a_short_side():
    rng = np.random.default_rng(0)
    assert {grids.draw_shift([GRID], rng) for _ in range(100)} == {
        (0, 1),
        (0, 2),
        (1, 0),
        (1, 1),
        (1, 2),
    }
    assert grids.draw_shift([to_grid([[7]])], rng) == (0, 0)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_inverse_undoes_transform(name):
    rng = np.random.default_rng(1)
    for _ in range(20):
        grid = to_grid(rng.integers(0, 10, size=rng.integers(1, 9, size=2)))
        back = TRANSFORMS[INVERSES[name]](TRANSFORMS[name](grid))
        assert np.array_equal(back, grid)


def test_transforms_differ():
    assert len({TRANSFORMS[name](GRID).tobytes() for name in TRANSFORMS}) == len(TRANSFORMS) == 7


def test_colors_move_to_unused_ones_while_there_are_any():
    for seed in range(50):
        table = permute_colors([to_grid([[0, 1, 2, 3]])], np.random.default_rng(seed))
        assert table[0] == 0
        moved = table[[1, 2, 3]].tolist()
        assert len(set(moved)) == 3
        assert set(moved) <= {4, 5, 6, 7, 8, 9}


@pytest.mark.parametrize("used", [[1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 6, 7, 8], list(range(1, 10))])
def test_colors_stay_distinct_when_the_unused_run_out(used):
    tables = set()
    for seed in range(200):
        table = permute_colors([to_grid([[0, *used]])], np.random.default_rng(seed))
        assert table[0] == 0
        assert len({0, *table[used].tolist()}) == len(used) + 1
        tables.add(tuple(table.tolist()))
    assert len(tables) > 20


def test_all_nine_colors_are_swapped_in_pairs():
    for seed in range(50):
        table = permute_colors([to_grid([list(range(10))])], np.random.default_rng(seed))
        assert table[table].tolist() == list(range(10))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ([[1, 2], [3]], "different lengths"),
        ([[]], "at least 1"),
        ([1, 2], r"shape \(2,\)"),
        ([[10]], "0..9"),
        ([[-1]], "0..9"),
        ([[0.5]], "float64"),
        ([[True]], "bool"),
        ([["1"]], "<U1"),
        (None, "shape"),
    ],
)
def test_to_grid_refuses(values, reason):
    with pytest.raises(ValueError, match=reason):
        to_grid(values)


def test_grids_cannot_be_written_to():
    with pytest.raises(ValueError, match="read-only"):
        GRID[0, 0] = 9
