"""evaluation/knowledge/continual_steps.py: what is stored of steps, as matrices of sequences."""

from pathlib import Path

import chz
import pytest

from evaluation.knowledge.continual_steps import TEXT, UNTOUCHED, Step, Steps, learned_accuracy
from training.domains.knowledge.continual import Edit, Outcome, Row
from training.domains.knowledge.continual_methods import parse_method
from utils.runs.run_dir import RunDir

MERGE = parse_method("merge")


@chz.chz
class Settings:
    seed: int = 0


def outcome(row: Row, tokens: int) -> Outcome:
    return Outcome([], Edit("an edit"), row, tokens)


# two sequences of two passages with two questions each; None: not asked, or without a verdict
BEFORE_S = [
    Row([[False, False], [True, False]], [True, True], -2.0),
    Row([[True, True], [False, False]], [False, True], -3.0),
]
FIRST_S = [
    Row([[True, False], None], [True, False], -2.5),
    Row([[True, None], None], [None, True], -3.5),
]
LAST_S = [
    Row([[False, False], [True, True]], [False, False], -4.0),
    Row([[None, None], [True, False]], [True, True], -5.0),
]


def test_steps_as_matrices_now_and_after_resuming(tmp_path: Path) -> None:
    with RunDir.open("continual", tmp_path / "r", Settings()) as run:
        steps = Steps(run, keep_all=False)
        steps.add_before_all(BEFORE_S)
        steps.add(MERGE, Step(1, [outcome(row, 10) for row in FIRST_S], 1.5))
        assert steps.next_number(MERGE, 2) == 2
        steps.add(MERGE, Step(2, [outcome(row, 20) for row in LAST_S], 2.0))
        for read in (steps, Steps(run, keep_all=False)):
            found = read.result(MERGE, 2)
            assert found.matrices_S == [
                [[0.0, 0.5], [0.5, None], [0.0, 1.0]],
                [[1.0, 0.0], [1.0, None], [None, 0.5]],
            ]
            assert found.probes[UNTOUCHED] == [[100.0, 50.0, 0.0], [50.0, 100.0, 100.0]]
            assert found.probes[TEXT] == [[-2.0, -2.5, -4.0], [-3.0, -3.5, -5.0]]
            assert (found.trained_tokens, found.seconds) == (60, 3.5)
            # one of a passage and one of the untouched, then two
            assert found.unscored == 4
            assert read.next_number(MERGE, 2) == 3


def test_what_is_known_of_the_passages_so_far() -> None:
    outcomes_S = [outcome(row, 1) for row in LAST_S]
    # of the first sequence (0 + 1) / 2; of the second what has a verdict, 0.5
    assert learned_accuracy(outcomes_S, 2) == pytest.approx(0.5)
    assert learned_accuracy(outcomes_S, 1) == 0.0
