"""benchmarks/knowledge_evidence.py: the tables of its records, without any training."""

from collections.abc import Callable
from typing import Any

import pytest


@pytest.fixture
def evidence(load_benchmark: Callable[[str], Any]) -> Any:
    return load_benchmark("knowledge_evidence")


def record(arm: str, passage: int, seed: int, right: int) -> dict[str, Any]:
    """Of 4 questions, `right` of them right."""
    return {
        **{"setting": "s", "arm": arm, "passage": f"p{passage}", "seed": seed, "seconds": 1.0},
        "kinds": ["direct", "direct", "reverse", "derived"],
        "answers_Q": ["x"] * 4,
        "correct_Q": [i < right for i in range(4)],
        "logprobs_Q": [-4.0 + right] * 4,
        "choices_Q": [None] * 4,
        **{"trained_tokens": 5, "num_documents": 2, "failed": None},
    }


def test_differences_are_paired_by_passage(evidence: Any) -> None:
    config = evidence.Config(edit="qa")
    records = [
        record(arm, passage, seed, right + (passage == 0))
        for seed in range(2)
        for passage in range(3)
        for arm, right in ((evidence.PASSAGE, 1), ("qa", 3), (evidence.BASE, 0))
    ]
    records += [record(evidence.OTHER, passage, 0, 0) for passage in range(3)]
    lines = evidence.d1_report(records, config).splitlines()
    assert lines[2].split()[:8] == ["qa", "-", "passage", "only", "all", "3", "50", "-"]


def test_reliability_of_edits_that_differ_and_do_not(evidence: Any) -> None:
    config = evidence.Config(seeds=2)
    records = [record(evidence.BASE, passage, 0, 0) for passage in range(2)]
    drafts = [f"half {config.edit} {draft}" for draft in range(evidence.DRAFTS)]
    for seed in range(2):
        for passage in range(2):
            for i, arm in enumerate(evidence.D2_FORMS):
                records.append(record(arm, passage, seed, min(4, i)))
            for arm in drafts:
                records.append(record(arm, passage, seed, 2))
    rows = [line.split() for line in evidence.d2_report(records, config).splitlines()[2:]]
    assert [row[:4] for row in rows[:2]] == [
        ["between", "forms", "accuracy", "2"],
        ["between", "forms", "gain", "2"],
    ]
    # icc and the reliability of 2 repeats: 1 where repeats agree, none where nothing differs
    assert rows[0][5:7] == ["1", "1"] and rows[3][5:7] == ["-", "-"]


def test_a_draft_is_half_the_lines(evidence: Any) -> None:
    edit = "\n".join("abcdefgh")
    first, again, second = (evidence.half(edit, draft) for draft in (0, 0, 1))
    assert first == again != second
    assert len(first.splitlines()) == 4 and set(first.splitlines()) < set("abcdefgh")
