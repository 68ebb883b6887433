"""training/domains/knowledge/reliability.py: closed forms, simulations, and SEAL's own rewards."""

import json
import logging
from typing import Any

import numpy as np
import pytest
from places import SHARED_DATA

from training.domains.knowledge.inner import InnerOutcome
from training.domains.knowledge.reliability import (
    reliability,
    repeats_for,
    reward,
    spearman_brown,
    warn_unreliable,
)

SEAL_REWARDS = SHARED_DATA / "seal_results" / "query_server" / "train" / "rank_iter0.json"
# Shrout & Fleiss 1979, table 2: 6 targets by 4 judges
SHROUT_FLEISS = [
    [9, 2, 5, 8],
    [6, 1, 3, 2],
    [8, 4, 6, 8],
    [7, 1, 2, 6],
    [10, 5, 6, 9],
    [6, 2, 4, 7],
]


def test_the_published_example() -> None:
    """Their table 4: ICC(1,1) .17, ICC(3,1) .71, of means of 4 .44 and .91."""
    found = reliability([SHROUT_FLEISS], blocked=False)
    assert found.icc == pytest.approx(0.17, abs=0.005)
    assert found.of_mean == pytest.approx(0.44, abs=0.005)
    found = reliability([SHROUT_FLEISS])
    assert found.icc == pytest.approx(0.71, abs=0.005)
    assert found.of_mean == pytest.approx(0.91, abs=0.005)


def test_only_differences_within_a_passage_count() -> None:
    rng = np.random.default_rng(0)
    rewards = rng.normal(size=(5, 3, 2))
    moved = rewards + 100 * rng.normal(size=(5, 1, 1))
    assert reliability(moved).icc == pytest.approx(reliability(rewards).icc)
    # a passage with one edit tells nothing
    ragged = [*rewards.tolist(), [[3.0, -9.0]]]
    assert reliability(ragged).icc == pytest.approx(reliability(rewards).icc)
    assert reliability(ragged).num_passages == 5


def drawn(rng: np.random.Generator, edits: np.ndarray, repeat: float, noise: float) -> np.ndarray:
    """Rewards of 3 repeats; deviations of what a repeat does to all edits of a passage, and of
    noise."""
    passages, k, _ = edits.shape
    shared = repeat * rng.normal(size=(passages, 1, 3))
    return edits + shared + noise * rng.normal(size=(passages, k, 3))


def test_variances_of_a_simulation_are_found_again() -> None:
    rng = np.random.default_rng(1)
    edits = rng.normal(size=(3000, 5, 1))
    alike = drawn(rng, edits, 0.0, 2.0)
    assert reliability(alike).icc == pytest.approx(1 / 5, abs=0.02)
    assert reliability(alike, blocked=False).icc == pytest.approx(1 / 5, abs=0.02)
    # what a repeat does to all edits alike
    rewards, again = (drawn(rng, edits, 2.0, 1.0) for _ in range(2))
    found = reliability(rewards)
    assert found.icc == pytest.approx(1 / 2, abs=0.02)
    assert reliability(rewards, blocked=False).icc == 0
    # reliability of a mean is its correlation with a second mean
    means, second = ((x.mean(2) - x.mean((1, 2))[:, None]).ravel() for x in (rewards, again))
    assert found.of_mean == pytest.approx(np.corrcoef(means, second)[0, 1], abs=0.02)


def test_the_cross_validated_best_is_what_new_repeats_say() -> None:
    rng = np.random.default_rng(2)
    edits = rng.normal(size=(4000, 5, 1))
    rewards = edits + 2 * rng.normal(size=(4000, 5, 3))
    # chosen on 2 repeats, the true quality of what is chosen
    chosen = rewards[:, :, :2].mean(2).argmax(1)
    truth_P = np.take_along_axis(edits[:, :, 0], chosen[:, None], 1)[:, 0] - edits.mean((1, 2))
    best = reliability(rewards).best
    assert best.error is not None
    assert best.honest == pytest.approx(truth_P.mean(), abs=4 * best.error)
    assert best.apparent > best.honest + 0.5


def test_noise_alone_has_no_honest_best() -> None:
    rng = np.random.default_rng(3)
    found = reliability(rng.normal(size=(2000, 5, 3)))
    assert found.icc == pytest.approx(0, abs=0.02)
    assert found.best.honest == pytest.approx(0, abs=0.05)
    assert found.best.apparent > 0.6


def test_spearman_brown_and_the_repeats_it_asks_for() -> None:
    assert spearman_brown(0.13, 3) == pytest.approx(0.39 / 1.26)
    # SEAL's rewards would take 16 repeats for 0.7
    assert repeats_for(0.13) == 16
    assert repeats_for(0.5, wanted=0.75) == 3
    assert repeats_for(0.9) == 1
    assert repeats_for(0.0) is None
    for icc in (0.05, 0.2, 0.4, 0.65):
        needed = repeats_for(icc)
        assert needed is not None
        assert spearman_brown(icc, needed) >= 0.7 - 1e-9 > spearman_brown(icc, needed - 1)


@pytest.mark.skipif(not SEAL_REWARDS.exists(), reason="SEAL's released results are not here")
def test_seals_own_rewards() -> None:
    """What their answers say: variances 0.0057 and 0.0367, and a best of 5 that is mostly luck."""
    report = json.loads(SEAL_REWARDS.read_text(encoding="utf-8"))
    rewards_P_K_R: Any = []
    for article in report["articles"]:
        rewards_K_R = []
        for completion in article["completions"]:
            verdicts: dict[int, list[bool]] = {}
            for question in completion["questions"]:
                verdicts.setdefault(question["rep"], []).append(question["adapter_correct"])
            rewards_K_R.append([np.mean(verdicts[rep]) for rep in sorted(verdicts)])
        rewards_P_K_R.append(rewards_K_R)
    found = reliability(rewards_P_K_R, blocked=False)
    assert (found.num_passages, found.num_edits, found.num_repeats) == (50, 250, 3)
    assert found.icc is not None and found.of_mean is not None and found.best.error is not None
    assert round(found.icc, 2) == 0.13
    assert round(found.of_mean, 2) == 0.32
    assert round(100 * found.best.apparent, 1) == 14.1
    assert round(100 * found.best.honest, 1) == 2.6
    assert round(100 * found.best.error, 1) == 1.9
    assert found.repeats_needed == 16
    told = found.told("accuracy")
    assert "reliability 0.32" in told and "+14.1 points" in told and "+2.6 ± 1.9" in told
    assert "+0.14 nats" in found.told("logprob")


def test_a_noisy_reward_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(4)
    quiet = rng.normal(size=(20, 4, 1)) + 0.1 * rng.normal(size=(20, 4, 2))
    loud = rng.normal(size=(200, 4, 1)) + 2 * rng.normal(size=(200, 4, 2))
    with caplog.at_level(logging.WARNING):
        warn_unreliable(reliability(quiet), "accuracy")
        assert not caplog.records
        found = reliability(loud)
        warn_unreliable(found, "accuracy")
    assert f"repeats={found.repeats_needed} would give 0.7" in caplog.text
    assert found.repeats_needed is not None and 6 <= found.repeats_needed <= 16


def test_edits_of_one_reward(caplog: pytest.LogCaptureFixture) -> None:
    found = reliability([[[0.5, 0.5], [0.5, 0.5]]])
    assert found.icc is None and found.repeats_needed is None
    assert found.told("gain") == "all 2 edits of a passage have one reward"
    warn_unreliable(found, "accuracy")
    assert "do not differ beyond noise" in caplog.text


def test_rounding_is_no_difference_between_edits() -> None:
    for rewards_R in ([0.4375, 0.6, 0.7], [0.1, 0.1]):
        found = reliability([[rewards_R] * 3])
        assert found.icc is None, rewards_R
    # as small as it is, this is one
    assert reliability([[[0.1, 0.1], [0.1 + 1e-9, 0.1 + 1e-9]]]).icc == 1.0


@pytest.mark.parametrize(
    ("rewards", "message"),
    [
        ([[[1.0], [0.0]]], "at least 2"),
        ([[[1.0, 0.0], [0.0]]], r"\[1, 2\] repeats"),
        ([[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]], r"\[2, 3\] repeats"),
        ([[[1.0, 0.0]]], "no passage with 2 edits"),
        ([], "at least 2"),
    ],
)
def test_what_has_no_reliability(rewards: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reliability(rewards)


def outcome(correct: list[bool | None], logprobs: list[float | None]) -> InnerOutcome:
    return InnerOutcome(["x"] * len(correct), correct, logprobs, [None] * len(correct))


def test_rewards_by_hand() -> None:
    before = outcome([True, False, None, False], [-1.0, -2.0, -3.0, None])
    after = outcome([True, True, True, None], [-0.5, -3.0, -1.0, -1.0])
    assert reward("accuracy", after, before) == 1.0
    # the first two are scored on both sides
    assert reward("gain", after, before) == 0.5
    assert reward("logprob", after, before) == pytest.approx((0.5 - 1.0 + 2.0) / 3)


def test_no_reward() -> None:
    before = outcome([True], [-1.0])
    assert reward("accuracy", InnerOutcome(failed="NaN"), before) is None
    assert reward("logprob", InnerOutcome(failed="NaN"), before) is None
    assert reward("gain", outcome([None], [None]), before) is None
    with pytest.raises(ValueError, match="reward='f1': allowed are accuracy, gain, logprob"):
        reward("f1", before, before)  # type: ignore[arg-type]
