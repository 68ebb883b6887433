import numpy as np
import pytest

from training.domains.arc.grids import INVERSES, TRANSFORMS, Grid, to_grid
from training.domains.arc.tasks import Pair, Task
from training.domains.arc.voting import (
    GEOMETRIC,
    GROUPS,
    Attempts,
    Prediction,
    _row_majority,
    _top_three,
    cell_accuracy,
    invert,
    score,
    vote,
    voting_prompts,
)

A, B, C = [[1, 1]], [[2, 2]], [[3, 3]]


def random_task(num_train: int) -> Task:
    rng = np.random.default_rng(0)
    pairs = [
        Pair(*(to_grid(rng.integers(0, 10, size=(3, 4))) for _ in range(2)))
        for _ in range(num_train + 2)
    ]
    return Task("random", tuple(pairs[2:]), tuple(pairs[:2]))


def predictions(**grids: list[list[list[int]]]) -> list[Prediction]:
    return [Prediction(to_grid(grid), name) for name in grids for grid in grids[name]]


def as_lists(attempts: Attempts) -> list[list[list[int]]]:
    return [attempts.first.tolist(), attempts.second.tolist()]


def test_prompts_by_kind():
    task = random_task(5)
    prompts = voting_prompts(task)
    kinds = [prompt.inverse for prompt in prompts]
    # five subsets, two permutations of each (four demonstrations rarely come out the same)
    assert 5 < kinds.count("identity") <= 15
    assert sorted(set(kinds) - {"identity"}) == sorted(INVERSES[name] for name in GEOMETRIC)
    assert len(prompts) == kinds.count("identity") + 5
    assert len({prompt.task for prompt in prompts}) == len(prompts)
    subsets = {frozenset(prompt.task.train) for prompt in prompts if prompt.inverse == "identity"}
    assert subsets == {frozenset(task.train) - {pair} for pair in task.train}


def test_prompts_of_two_demonstrations_are_known():
    task = random_task(2)
    prompts = voting_prompts(task)
    a, b = task.train
    query = Pair(task.test[0].input)
    assert [prompt.inverse for prompt in prompts] == [
        "identity",
        "identity",
        "transpose",
        "flip0",
        "flip1",
        "rotate270",
        "rotate180",
    ]
    assert [prompt.task for prompt in prompts[:2]] == [
        Task("", (a,), (query,)),
        Task("", (b,), (query,)),
    ]


def test_prompts_never_hold_the_solution():
    for prompt in voting_prompts(random_task(3), test_index=1):
        assert [pair.output for pair in prompt.task.test] == [None]


def test_inverse_recovers_the_answer():
    task = random_task(3)
    for prompt in voting_prompts(task, test_index=1):
        # a model that answers with the input it sees
        recovered = invert(prompt.task.test[0].input, prompt.inverse)
        assert np.array_equal(recovered.grid, task.test[1].input)
        assert recovered.inverse == prompt.inverse in GROUPS


def test_symmetric_versions_are_left_out():
    pair = Pair(to_grid([[1, 2], [2, 1]]), to_grid([[0]]))
    task = Task("t", (pair,), (pair,))
    # transposing and turning by 180 degrees change nothing; flips and the quarter turn agree
    assert [p.inverse for p in voting_prompts(task, include_n=(0,))] == ["identity", "flip0"]


def test_prompts_are_seeded():
    task = random_task(4)
    assert voting_prompts(task) == voting_prompts(task)
    assert voting_prompts(task) != voting_prompts(task, seed=1)
    assert {p.inverse for p in voting_prompts(task, permute_n=0)} == set(GROUPS)


def test_falls_back_to_fewer_demonstrations():
    task = random_task(3)
    prompts = voting_prompts(task, fits=lambda variant: len(variant.train) < 2)
    assert {len(prompt.task.train) for prompt in prompts} == {1}
    assert voting_prompts(task, fits=lambda variant: len(variant.train) < 1) == []
    assert {len(p.task.train) for p in voting_prompts(task, include_n=(0, 1))} == {2, 3}


@pytest.mark.parametrize(
    ("kwargs", "reason"),
    [
        ({"test_index": 2}, "test_index=2: random has 2 tests"),
        ({"include_n": ()}, "include_n"),
        ({"include_n": (-1,)}, "include_n"),
        ({"permute_n": -1}, "permute_n=-1"),
    ],
)
def test_prompts_refuse(kwargs, reason):
    with pytest.raises(ValueError, match=reason):
        voting_prompts(random_task(2), **kwargs)


def test_no_prediction():
    assert as_lists(vote([])) == [[[0]], [[0]]]


def test_one_prediction_is_both_attempts():
    assert as_lists(vote(predictions(identity=[A]))) == [A, A]


def test_most_frequent_first():
    assert as_lists(vote(predictions(identity=[B, A, A, A, B, C]))) == [A, B]


def test_hierarchy_counts_groups_and_not_predictions():
    # C has five of nine predictions, all by one transform, and so 4 of the 15 candidates: one in
    # "all", three in "transpose". A has 9: one in "all", two in "identity", three in each flip.
    attempts = vote(predictions(transpose=[C] * 5, identity=[A, B], flip0=[A], flip1=[A]))
    assert as_lists(attempts) == [A, C]


def test_tie_of_second_and_third_goes_to_the_identity_group():
    # pool: "all" A B C; "identity" A C and a fill that equals A; "flip0" A B and such a fill
    voters = predictions(flip0=[A, A, B], identity=[A, A, C])
    assert as_lists(vote(voters)) == [A, C]
    voters = predictions(identity=[A, A, B], flip0=[A, A, C])
    assert as_lists(vote(voters)) == [A, B]


def test_full_tie_goes_to_the_first_predicted():
    assert as_lists(vote(predictions(flip0=[A, B, C]))) == [A, B]


def test_two_grids_as_frequent_are_two_attempts():
    # there is no third grid: the gap takes the first again, which identity prefers to the second
    square = to_grid([[2, 2], [2, 2]])
    row = to_grid(A)
    voters = [
        *(Prediction(row, "identity"), Prediction(square, "transpose")),
        *(Prediction(row, "transpose"), Prediction(square, "flip0")),
    ]
    assert as_lists(vote(voters)) == [A, square.tolist()]


def test_attempts_differ_where_two_answers_do():
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(1500):
        pool = [to_grid(rng.integers(0, 2, size=rng.integers(1, 3, size=2))) for _ in range(3)]
        voters = [
            Prediction(pool[rng.integers(3)], GROUPS[rng.integers(len(GROUPS))])
            for _ in range(rng.integers(2, 9))
        ]
        distinct = {str(voter.grid.tolist()) for voter in voters}
        first, second = as_lists(vote(voters))
        assert (first != second) == (len(distinct) > 1), voters
        seen += len(distinct) > 1
    assert seen > 1000


def test_row_majority_repairs_single_wrong_rows():
    truth = [[1, 2], [3, 4], [5, 6]]
    wrong = [[*truth[:i], [9, i], *truth[i + 1 :]] for i in range(3)]
    rows = [tuple(map(tuple, grid)) for grid in wrong]
    assert _row_majority(rows) == ((1, 2), (3, 4), (5, 6))


def test_row_majority_skips_other_widths():
    # the commonest shape is 2x2; the 3x2 grid lends its rows, the 3x1 grid cannot
    values = [((1, 1), (2, 2)), ((1, 1), (3, 3)), ((9, 9), (3, 3), (4, 4)), ((7,), (7,), (7,))]
    assert _row_majority(values) == ((1, 1), (3, 3))


def test_gaps_take_the_row_majority_then_the_column_majority():
    # two distinct grids, tied in every row: the first seen wins each, so no new grid arises
    one, two = ((1, 1), (2, 2)), ((1, 1), (3, 3))
    assert _top_three([one, two]) == [one, two, one]
    assert _top_three([two]) == [two, two, two]
    # shapes tie as well: the first seen gives the shape, and the other's rows are too wide
    assert _top_three([((5,),), one]) == [((5,),), one, ((5,),)]
    tall = ((8, 8), (8, 8), (8, 8))
    assert _top_three([one, one, tall, tall, tall]) == [tall, one, tall]


def test_vote_refuses_unknown_transforms():
    with pytest.raises(ValueError, match=r"\['rotate90'\]: allowed are identity"):
        vote([Prediction(to_grid(A), "rotate90")])


def test_perfect_model_wins_the_vote():
    task = random_task(3)
    target = task.test[0].output
    assert target is not None
    names = {inverse: name for name, inverse in INVERSES.items()}
    answers = [
        invert(TRANSFORMS[names[prompt.inverse]](target), prompt.inverse)
        for prompt in voting_prompts(task)
    ]
    assert np.array_equal(vote(answers).first, target)


@pytest.mark.parametrize(
    ("predicted", "accuracy"),
    [([[1, 2], [3, 4]], 1.0), ([[1, 2], [3, 0]], 0.75), ([[0, 0], [0, 0]], 0.0), ([[1, 2]], 0.0)],
)
def test_cell_accuracy(predicted, accuracy):
    assert cell_accuracy(to_grid(predicted), to_grid([[1, 2], [3, 4]])) == accuracy


def grids(*values: list[list[int]]) -> list[Grid]:
    return [to_grid(value) for value in values]


def test_score_needs_every_test():
    task = Task("t", (), (Pair(to_grid([[0]]), to_grid(A)), Pair(to_grid([[0]]), to_grid(B))))
    assert score(task, [grids(C, A), grids(B, C)]) == (True, 2, 2, 1.0)
    assert score(task, [grids(C, A), grids([[2, 1]], [[0, 0]])]) == (False, 1, 2, 0.75)
    assert score(task, [grids(C, C), []]) == (False, 0, 2, 0.0)
    with pytest.raises(ValueError, match="t: attempts at 1 of 2 tests"):
        score(task, [grids(A)])
    with pytest.raises(ValueError, match="t: 0 of 1 tests have a solution"):
        score(Task("t", (), (Pair(to_grid(A)),)), [grids(A)])
