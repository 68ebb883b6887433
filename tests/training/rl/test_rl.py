"""Advantages, data and diagnostics of reinforcement learning, against closed forms.

uv run pytest tests/training/rl/test_rl.py
"""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from training.api import AdamParams, SampledSequence
from training.domains.base import Problem, Reward
from training.rl.report import print_tables
from training.rl.updates import (
    GrpoSettings,
    RestEmSettings,
    Trajectory,
    answer_datum,
    centred_advantages,
    check_loss,
    entropy,
    grpo_update,
    kl_penalised,
    mean_and_error,
    policy_datum,
    policy_diagnostics,
    problem_batch,
    rest_em_update,
    reward_metrics,
    seed_for,
    selected,
    with_sequence_mask,
)

A = Trajectory([5, 6, 7], [8, 9], np.log([0.5, 0.25]))
B = Trajectory([5], [4, 3, 2], np.log([0.1, 0.2, 0.4]))


def rewards(*values: float) -> list[Reward]:
    return [Reward(value, value == 1.0) for value in values]


def array(datum: Any, name: str) -> list[float]:
    return datum.loss_fn_inputs[name].to_numpy().tolist()


# -------------------------------------------------------------------------------------------- parts


def test_advantages_are_centred_in_their_group() -> None:
    first, second, third = centred_advantages([[1, 0, 0, 1], [0.3, 0.3, 0.3], [0, 1, 5]])
    assert first is not None
    assert third is not None
    np.testing.assert_allclose(first, [0.5, -0.5, -0.5, 0.5])
    assert second is None
    np.testing.assert_allclose(third, [-2, -1, 3])


def test_policy_datum_is_shifted_and_padded() -> None:
    datum = policy_datum(A, np.array([0.5, -0.25]))
    assert datum.model_input.to_ints() == [5, 6, 7, 8]
    assert array(datum, "target_tokens") == [0, 0, 8, 9]
    np.testing.assert_allclose(array(datum, "logprobs"), [0, 0, *np.log([0.5, 0.25])], rtol=1e-6)
    assert array(datum, "advantages") == [0, 0, 0.5, -0.25]
    assert array(with_sequence_mask(datum, 2), "sequence_ratio_mask") == [0, 0, 1, 1]


def test_a_prompt_of_one_token() -> None:
    datum = policy_datum(B, np.ones(3))
    assert datum.model_input.to_ints() == [5, 4, 3]
    assert array(datum, "target_tokens") == [4, 3, 2]
    assert array(datum, "advantages") == [1, 1, 1]


def test_answer_datum_learns_the_answer_only() -> None:
    datum = answer_datum(A)
    assert datum.model_input.to_ints() == [5, 6, 7, 8]
    assert array(datum, "target_tokens") == [6, 7, 8, 9]
    assert array(datum, "weights") == [0, 0, 1, 1]


def test_kl_penalty_moves_tokens_towards_the_base_and_stays_centred() -> None:
    base = [np.log([0.25, 0.25]), np.log([0.1, 0.1, 0.8])]
    penalised, mean = kl_penalised([1.0, -1.0], [A, B], base, kl_coef=0.1)
    estimates = np.log(np.array([2, 1, 1, 2, 0.5]))
    assert mean == pytest.approx(estimates.mean())
    got = np.concatenate(penalised)
    np.testing.assert_allclose(got, [1, 1, -1, -1, -1] - 0.1 * (estimates - estimates.mean()))
    assert got.sum() == pytest.approx(1 + 1 - 1 - 1 - 1)
    # the token that the base finds likelier than the policy is raised above its siblings
    assert penalised[1][2] > -1 > penalised[1][1]


def test_no_penalty_where_policy_and_base_agree() -> None:
    penalised, mean = kl_penalised([0.5, 0.0], [A, B], [A.logprobs_T, B.logprobs_T], kl_coef=3.0)
    assert mean == 0
    assert [p.tolist() for p in penalised] == [[0.5, 0.5], [0, 0, 0]]


def test_diagnostics_of_known_differences() -> None:
    difference = np.array([0.1, -0.2, 0.0, 0.3, 0.1])
    trainer = [
        np.concatenate([[7.0, 7.0], A.logprobs_T + difference[:2]]),
        B.logprobs_T + difference[2:],
    ]
    metrics = policy_diagnostics([A, B], trainer)
    assert metrics["policy/kl_sampler_trainer_k1"] == pytest.approx(-0.06)
    k3 = (np.exp(difference) - 1 - difference).mean()
    assert metrics["policy/kl_sampler_trainer_k3"] == pytest.approx(k3)
    assert metrics["policy/rms_sampler_trainer"] == pytest.approx(np.sqrt(0.15 / 5))
    assert entropy([A, B]) == pytest.approx(-np.log([0.5, 0.25, 0.1, 0.2, 0.4]).mean())


def test_kl_estimates_tend_to_the_kl_divergence() -> None:
    """Both are unbiased for KL(q | p) when tokens come from q (Schulman)."""
    rng = np.random.default_rng(0)
    q, p = np.array([0.6, 0.3, 0.1]), np.array([0.4, 0.4, 0.2])
    tokens = rng.choice(3, 200_000, p=q)
    sampled = Trajectory([0], tokens.tolist(), np.log(q)[tokens])
    metrics = policy_diagnostics([sampled], [np.log(p)[tokens]])
    exact = float((q * np.log(q / p)).sum())
    assert metrics["policy/kl_sampler_trainer_k1"] == pytest.approx(exact, abs=0.005)
    assert metrics["policy/kl_sampler_trainer_k3"] == pytest.approx(exact, abs=0.002)


def test_mean_and_standard_error() -> None:
    assert mean_and_error([3.0]) == (3.0, 0.0)
    mean, error = mean_and_error([0, 0, 1, 1])
    assert mean == 0.5
    assert error == pytest.approx(np.sqrt(1 / 3) / 2)


def test_reward_metrics() -> None:
    metrics = reward_metrics("eval", [rewards(1, 0), rewards(1, 1), rewards(0.5, 0.5)])
    assert metrics["eval/reward"] == pytest.approx(4 / 6)
    assert metrics["eval/solved"] == pytest.approx(3 / 6)
    assert metrics["eval/groups_with_spread"] == pytest.approx(1 / 3)


def test_an_evaluation_says_how_many_batches_and_updates_came_before(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    samples = [
        {"kind": "eval", "step": step, "problem": "p", "reward": 0.0, "solved": False}
        for step in (0, 1, 2, 3)
    ]
    trained = [{"updates": 0}, {"updates": 1}, {"updates": 2000}]
    metrics = [{"step": 0, "eval/reward": 0.0}]
    metrics += [
        {"step": step, "train/reward": 0.0, "tokens/trained": 9.0 * made["updates"], **made}
        for step, made in enumerate(trained, 1)
    ]

    def shown() -> list[str]:
        for name, rows in (("samples", samples), ("metrics", metrics)):
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (tmp_path / f"{name}.jsonl").write_text(text)
        domain: Any = SimpleNamespace()
        print_tables(domain, {"train": [], "test": []}, tmp_path)
        table = capsys.readouterr().out.strip().split("\n\n")[0]
        return [line.partition("  ")[0] for line in table.split("\n")[2:]]

    assert shown() == [
        "before training",
        "after 1 batch, 0 updates",
        "after 2 batches, 1 update",
        "after 3 batches, 2,001 updates",
    ]
    # of a run that began with an earlier version: batches that trained
    for line in metrics:
        line.pop("updates", None)
    assert shown()[-1] == "after 3 batches, 2 updates"


def test_seeds_depend_on_every_part_and_on_nothing_else() -> None:
    assert seed_for(0, "train", 3, "a") == 1819081588
    seeds = {seed_for(s, k, i, p) for s in (0, 1) for k in "ab" for i in (0, 1) for p in "xy"}
    assert len(seeds) == 16


def test_batches_are_passes_over_all_problems() -> None:
    problems = [Problem(str(i), [], None) for i in range(5)]
    drawn = [p.id for step in range(5) for p in problem_batch(problems, step, 3, seed=1)]
    passes = [drawn[i : i + 5] for i in (0, 5, 10)]
    assert [sorted(one) for one in passes] == [list("01234")] * 3
    assert passes[0] != passes[1] or passes[1] != passes[2]
    assert drawn[:3] == [p.id for p in problem_batch(problems, 0, 3, seed=1)]
    others = [p.id for step in range(5) for p in problem_batch(problems, step, 3, seed=2)]
    assert drawn != others
    # a batch may be larger than the data
    assert len(problem_batch(problems, 0, 12, seed=0)) == 12


# ------------------------------------------------------------------------------------------ updates


class RecordingTrainer:
    """Keeps what it is asked for; answers with the sampler's own logprobs."""

    def __init__(self) -> None:
        self.passes: list[tuple[list[Any], str, Any]] = []
        self.rates: list[float] = []

    def forward_backward(self, data: list[Any], loss_fn: str, loss_fn_config: Any = None) -> Any:
        from training.api import ForwardBackwardOutput, TensorData

        self.passes.append((data, loss_fn, loss_fn_config))
        key = "logprobs" if loss_fn != "cross_entropy" else "weights"
        outputs = [
            {"logprobs": TensorData.from_numpy(d.loss_fn_inputs[key].to_numpy())} for d in data
        ]
        return _done(ForwardBackwardOutput("TorchLossReturn", outputs, {"loss:sum": 2.0}))

    def optim_step(self, adam: AdamParams) -> Any:
        from training.api import OptimStepResponse

        self.rates.append(adam.learning_rate)
        return _done(OptimStepResponse({"grad_norm": 1.5}))


class _done:
    def __init__(self, value: Any) -> None:
        self._value = value

    def result(self) -> Any:
        return self._value


ADAM = AdamParams(learning_rate=0.5)


def grpo(rewards_P_G: Sequence[list[Reward]], **settings: Any) -> tuple[Any, Any]:
    trainer: Any = RecordingTrainer()
    update = grpo_update(trainer, [[A, B], [B, A]], rewards_P_G, GrpoSettings(**settings), ADAM)
    return trainer, update


def test_grpo_trains_on_groups_with_spread() -> None:
    trainer, update = grpo([rewards(1, 0), rewards(1, 1)])
    [(data, loss_fn, config)] = trainer.passes
    assert (len(data), loss_fn, config) == (2, "importance_sampling", None)
    assert array(data[0], "advantages") == [0, 0, 0.5, 0.5]
    assert array(data[1], "advantages") == [-0.5, -0.5, -0.5]
    assert update.num_tokens == 4 + 3
    assert (update.metrics["skipped_groups"], update.metrics["updates"]) == (1, 1)
    assert update.metrics["policy/rms_sampler_trainer"] == pytest.approx(0, abs=1e-7)
    assert update.metrics["optim/grad_norm"] == 1.5
    assert update.metrics["optim/learning_rate"] == 0.5


def test_grpo_without_spread_does_nothing(caplog: pytest.LogCaptureFixture) -> None:
    trainer, update = grpo([rewards(0, 0), rewards(1, 1)])
    assert trainer.passes == []
    assert update == ({"skipped_groups": 2, "updates": 0}, 0)
    grpo_update(trainer, [[A, B]], [rewards(1, 1)], GrpoSettings(), ADAM)
    assert [record.message for record in caplog.records] == [
        "All 2 groups had one reward throughout: no update",
        "The only group had one reward throughout: no update",
    ]


def test_grpo_reuses_a_batch_and_passes_the_loss_config_on() -> None:
    clip = {"clip_high_threshold": 1.3}
    trainer, update = grpo(
        [rewards(1, 0), rewards(0, 1)], loss_fn="ppo", loss_fn_config=clip, num_updates=3
    )
    assert [(p[1], p[2]) for p in trainer.passes] == [("ppo", clip)] * 3
    assert trainer.rates == [0.5] * 3 and update.metrics["updates"] == 3
    assert update.num_tokens == 3 * 14


def test_gspo_gets_its_mask() -> None:
    trainer, _ = grpo([rewards(1, 0), rewards(1, 1)], loss_fn="gspo")
    assert array(trainer.passes[0][0][0], "sequence_ratio_mask") == [0, 0, 1, 1]


def test_rest_em_imitates_successes_with_their_mean_loss() -> None:
    trainer: Any = RecordingTrainer()
    settings = RestEmSettings(num_epochs=2, batch_size=2, lr_schedule="linear")
    update = rest_em_update(
        trainer,
        [[A, B], [B, A]],
        [rewards(1, 0), rewards(1, 1)],
        settings,
        ADAM,
        seed=(0, 1),
    )
    assert [len(data) for data, _, _ in trainer.passes] == [2, 1, 2, 1]
    for data, loss_fn, _ in trainer.passes:
        assert loss_fn == "cross_entropy"
        assert sum(sum(array(d, "weights")) for d in data) == pytest.approx(1)
    assert trainer.rates == [0.5, 0.375, 0.25, 0.125]
    assert update.num_tokens == 2 * (4 + 3 + 4)
    assert (update.metrics["successes"], update.metrics["updates"]) == (3, 4)


def test_rest_em_tells_how_far_the_trainer_is_before_it_moves() -> None:
    trainer: Any = RecordingTrainer()
    settings = RestEmSettings(num_epochs=2, batch_size=1)
    update = rest_em_update(trainer, [[B]], [rewards(1)], settings, ADAM, seed=(0,))
    # the trainer of this test answers with the weights, 1 over the number of tokens
    difference = 1 / len(B.tokens_T) - B.logprobs_T
    expected = np.sqrt((difference**2).mean())
    assert update.metrics["policy/rms_sampler_trainer"] == pytest.approx(expected)


def test_rest_em_without_success_does_nothing() -> None:
    trainer: Any = RecordingTrainer()
    update = rest_em_update(trainer, [[A]], [rewards(0.9)], RestEmSettings(), ADAM, seed=(0,))
    assert trainer.passes == []
    assert update == ({"successes": 0, "imitated": 0, "updates": 0}, 0)


def test_what_rest_em_imitates() -> None:
    groups = [
        [Reward(0.9, False), Reward(0.5, True), Reward(0.7, True), Reward(0.7, True)],
        [Reward(0.9, False), Reward(0.1, False)],
    ]
    rng = np.random.default_rng(0)
    assert selected(groups, "solved", rng) == [[1, 2, 3], []]
    # the first of equals; a higher reward that is no success is not the best
    assert selected(groups, "best", rng) == [[2], []]
    chosen = [selected(groups, "random", rng) for _ in range(100)]
    assert {index for first, _ in chosen for index in first} == {0, 1, 2, 3}
    assert all(len(first) == 1 and second == [] for first, second in chosen)


def test_what_may_be_imitated_need_not_be_solved() -> None:
    groups = [[Reward(0.4, False, "", True), Reward(0.7, False, "", True), Reward(0.1, False)]]
    groups += [[Reward(1.0, True, "", False), Reward(0.9, True)]]
    rng = np.random.default_rng(0)
    assert selected(groups, "solved", rng) == [[0, 1], [1]]
    assert selected(groups, "best", rng) == [[1], [1]]


def test_rest_em_on_the_best_of_each_group() -> None:
    trainer: Any = RecordingTrainer()
    settings = RestEmSettings(num_epochs=1, batch_size=4, selection="best")
    groups = [[Reward(1.0, True), Reward(2.0, True)], [Reward(1.0, True), Reward(0.0, True)]]
    update = rest_em_update(trainer, [[A, B], [B, A]], groups, settings, ADAM, seed=(0,))
    ((data, _, _),) = trainer.passes
    assert [datum.model_input.to_ints() for datum in data] == [B.all_tokens[:-1]] * 2
    assert update.metrics["successes"] == 4
    assert update.metrics["imitated"] == 2


def test_wrong_loss_settings_are_told_before_anything_runs() -> None:
    with pytest.raises(ValueError, match="ppo allows the keys: clip_low_threshold"):
        check_loss("ppo", {"clip": 0.2})
    with pytest.raises(ValueError, match=r"lacks \['beta'\]"):
        check_loss("dro", {})
    check_loss("gspo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1})


def test_trajectories_need_logprobs() -> None:
    sequence = SampledSequence(
        stop_reason="stop",
        tokens_np=np.array([1, 2]),
        logprobs_np=np.array([-1.0, -2.0], dtype=np.float32),
    )
    trajectory = Trajectory.of([3], sequence, "text")
    assert trajectory.all_tokens == [3, 1, 2]
    assert trajectory.logprobs_T.dtype == np.float64
