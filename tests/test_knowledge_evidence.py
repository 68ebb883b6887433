"""benchmarks/knowledge_evidence.py: the tables of its records, without any training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from training.domains.knowledge.general_questions import GENERAL
from utils.runs.files import read_jsonl


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


@pytest.fixture
def rounds(load_benchmark: Callable[[str], Any]) -> Any:
    return load_benchmark("knowledge_rounds")


def held_out(rounds: Any, policy: str, passage: str, reward: float, **changes: Any) -> Any:
    values = {
        **{"policy": policy, "when": "held out", "passage": passage, "form": "qa", "rate": 1e-3},
        **{"lines": 3, "coverage": 0.5, "reward": reward, "text": "Q: a? A: b"},
        **{"right": {"all": 0.25}, "nats": {"all": reward, "direct": 1.0}},
    }
    return rounds.Line(**(values | changes))


def test_policies_are_compared_by_held_out_passage(rounds: Any) -> None:
    """Passages differ by 10; the policy that imitates the best gains 1 or 2 on each of them."""
    lines = [
        held_out(rounds, policy, passage, level + gain)
        for passage, level in (("p", 0.0), ("q", 10.0))
        for policy, gains in (
            ("untrained", (0.0, 0.0)),
            ("best", (1.0, 1.0) if passage == "p" else (2.0, 2.0)),
            ("random", (0.5, -0.5)),
        )
        for gain in gains
    ]
    # what is trained on counts for nothing here
    lines.append(held_out(rounds, "best", "p", 99.0, when="train 1"))
    rows = [line.split() for line in rounds.differences_table(lines).splitlines()[2:]]
    assert [row[:3] for row in rows] == [["best", "-", "untrained"], ["random", "-", "untrained"],
                                         ["best", "-", "random"]]  # fmt: skip
    assert [float(row[4]) for row in rows] == [1.5, 0.0, 1.5]
    assert rows[0][3] == "2"


def test_what_moved_is_counted(rounds: Any) -> None:
    lines = [
        held_out(rounds, "untrained", "p", 1.0),
        held_out(rounds, "untrained", "p", 2.0, form=None, rate=None, lines=0, coverage=0.0),
        held_out(rounds, "best", "p", 3.0, form="reverse", rate=3e-3, coverage=1.0),
    ]
    table = rounds.held_out_table(lines)
    assert "1 none, 1 qa" in table and "1 reverse" in table and "1 0.003" in table
    # wide tables go on in a second block
    [untrained, best] = [line.split() for line in table.split("\n\n")[-1].splitlines()[2:]]
    assert (untrained[0], untrained[-1], best[-1]) == ("untrained", "25", "100")


def test_what_is_kept_is_a_share_of_what_was_known(evidence: Any) -> None:
    """Of 4 general questions 3 are known; one passage's adapter keeps 2 of them, another's 1, and
    with kl_weight both keep all."""

    def probed(setting: str, trained_on: str, right: list[bool]) -> dict[str, Any]:
        return record(evidence.OTHER, 0, 0, 0) | {
            **{"setting": setting, "passage": "general", "trained_on": trained_on},
            "correct_Q": right,
        }

    config = evidence.Config(part="d4")
    known = record(evidence.BASE, 0, 0, 0) | {
        **{"passage": "general", "trained_on": "general"},
        "correct_Q": [True, True, True, False],
    }
    records = [known]
    for i in range(2):
        records.append(record(evidence.BASE, i, 0, 0) | {"trained_on": f"p{i}"})
        for setting in ("s", "s kl1"):
            taught = record(config.kl_edit, i, 0, 2)
            records.append(taught | {"setting": setting, "trained_on": f"p{i}"})
    records += [
        probed("s", "p0", [True, True, False, True]),
        probed("s", "p1", [True, False, False, True]),
        probed("s kl1", "p0", [True, True, True, False]),
        probed("s kl1", "p1", [True, True, True, True]),
    ]
    told, *table = evidence.d4_report(records, config).splitlines()
    assert told.startswith("3 of 4 general questions")
    kept = [line for line in table if " kept " in line]
    assert kept[0].split()[3] == "50" and kept[1].split()[4] == "100"
    assert kept[1].split()[7] == "50"
    nats = [line for line in table if " nats " in line]
    assert nats[0].split()[3] == "2" and nats[1].split()[7] == "0"


def test_what_is_asked_for_again_is_not_what_adapters_are_held_to(
    load_benchmark: Callable[[str], Any],
) -> None:
    probe = load_benchmark("knowledge_probe").PROBE
    held = [question.text for passage in GENERAL for question in passage.questions]
    assert not {question.text for question in probe.questions} & set(held)
    # nor is the answer given away
    answers = {question.answer for question in probe.questions if len(question.answer) > 3}
    assert not [text for text in held if any(answer in text for answer in answers)]


def test_an_adapter_asked_about_two_passages_has_a_record_of_each(
    load_benchmark: Callable[[str], Any],
) -> None:
    from training.domains.knowledge.passages import Passage

    runs = load_benchmark("knowledge_runs")
    first, probe = (Passage(name, name, "", (), name) for name in ("p", "general"))
    run = runs.Run("qa", first, "an edit", 2, asked_too=probe)
    assert run.keys("s") == [
        ("s", "qa", "p", "p", 2),
        ("s", runs.OTHER, "general", "p", 2),
    ]


def test_a_run_that_is_done_again_is_stored_once(
    rounds: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "RESULTS", tmp_path / "rounds.jsonl")
    first, other = rounds.Rounds(), rounds.Rounds(seed=1)
    rounds.store(first, [held_out(rounds, "best", "p", 1.0)] * 2)
    rounds.store(other, [held_out(rounds, "best", "q", 2.0)])
    rounds.store(first, [held_out(rounds, "best", "p", 3.0)])
    stored = [(row["settings"]["seed"], row["reward"]) for row in read_jsonl(rounds.RESULTS)]
    assert stored == [(1, 2.0), (0, 3.0)]
