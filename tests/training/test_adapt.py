"""Test-time training of many adapters at once, on a tiny random model.

uv run pytest tests/training/test_adapt.py
"""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import cross_entropy_datum, random_tokens, randomise
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from training.adapt import AdaptJob, AdaptSettings, adapt, mean_weighted
from training.api import AdamParams, Datum, ModelInput, RequestFailedError, SamplingClient
from training.loop import learning_rate_factor

LORA = {"rank": 4, "lora_alpha": 16.0, "target_modules": ["q_proj", "v_proj", "up_proj"]}


def datums(seed: int, count: int) -> list[Datum]:
    rng = np.random.default_rng(seed)
    made = []
    for length in rng.integers(6, 30, count):
        tokens = random_tokens(rng, int(length))
        weights = np.array([0.0] * 4 + [1.0] * (len(tokens) - 5), dtype=np.float32)
        fields: dict[str, Any] = {"target_tokens": tokens[1:], "weights": weights}
        made.append(Datum(ModelInput.from_ints(tokens[:-1]), fields))
    return made


def jobs() -> list[AdaptJob]:
    """Different sizes, epochs and rates; the third is empty."""
    return [
        AdaptJob(datums(0, 5), learning_rate=1e-2, num_epochs=2, seed=7),
        AdaptJob(datums(1, 2), learning_rate=3e-3, num_epochs=3, seed=8),
        AdaptJob([], learning_rate=1.0, num_epochs=3, seed=9),
        AdaptJob(datums(2, 7), learning_rate=1e-3, num_epochs=1, seed=10),
    ]


def adapted_logprobs(
    service: Any, folder: str, jobs_J: list[AdaptJob], settings: AdaptSettings
) -> list[np.ndarray]:
    """What each adapter thinks of one sequence."""
    prompt = ModelInput.from_ints(random_tokens(np.random.default_rng(5), 20))
    futures: dict[int, Any] = {}

    def on_adapted(index: int, sampler: SamplingClient) -> None:
        assert index not in futures
        futures[index] = sampler.compute_logprobs(prompt)

    adapt(service, folder, jobs_J, settings, on_adapted=on_adapted)
    assert sorted(futures) == list(range(len(jobs_J)))
    return [np.array(futures[j].result()[1:]) for j in sorted(futures)]


@pytest.mark.parametrize("max_parallel", [1, 2, 16])
def test_together_is_one_by_one(max_parallel: int, tiny_model: Any, service: Any) -> None:
    folder = tiny_model("llama")
    # Adam divides gradients by their own size; with a tiny eps the rounding error in a gradient of
    # about zero would become a step of the full learning rate
    settings = AdaptSettings(
        lora=LORA, batch_size=2, warmup_steps=1, eps=1e-4, max_parallel=max_parallel
    )
    together = adapted_logprobs(service, folder, jobs(), settings)
    alone = [adapted_logprobs(service, folder, [job], settings)[0] for job in jobs()]
    base = service.create_sampling_client(base_model=folder)
    prompt = ModelInput.from_ints(random_tokens(np.random.default_rng(5), 20))
    untrained = np.array(base.compute_logprobs(prompt).result()[1:])
    for index, (a, b) in enumerate(zip(together, alone, strict=True)):
        np.testing.assert_allclose(a, b, atol=1e-5, rtol=0)
        moved = np.abs(a - untrained).max()
        assert moved == 0 if index == 2 else moved > 1e-2


def test_a_job_is_what_the_plain_loop_does(tiny_model: Any, service: Any) -> None:
    folder = tiny_model("llama")
    [job, *_] = jobs()
    settings = AdaptSettings(lora=LORA, batch_size=2, warmup_steps=1)
    [got] = adapted_logprobs(service, folder, [job], settings)

    client = service.create_lora_training_client(folder, seed=job.seed, **LORA)
    rng = np.random.default_rng(job.seed)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 1, 6)
    for order in (rng.permutation(5), rng.permutation(5)):
        for chosen in (order[:2], order[2:4], order[4:]):
            batch = [job.datums_D[i] for i in chosen]
            count = sum(datum.loss_fn_inputs["weights"].to_numpy().sum() for datum in batch)
            data = [
                Datum(
                    d.model_input,
                    {
                        "target_tokens": d.loss_fn_inputs["target_tokens"],
                        "weights": d.loss_fn_inputs["weights"].to_numpy() / count,
                    },
                )
                for d in batch
            ]
            client.forward_backward(data, "cross_entropy").result()
            rate = 1e-2 * float(schedule.get_last_lr()[0])
            client.optim_step(AdamParams(rate, beta1=0.9, beta2=0.999, eps=1e-8)).result()
            optimizer.step()
            schedule.step()
    sampler = client.save_weights_and_get_sampling_client().result()
    prompt = ModelInput.from_ints(random_tokens(np.random.default_rng(5), 20))
    wanted = sampler.compute_logprobs(prompt).result()[1:]
    np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=0)


class CountingService:
    """Counts the adapters that have been made and not been handed over yet."""

    def __init__(self, service: Any) -> None:
        self._service = service
        self.alive = self.most = 0

    def create_lora_training_client(self, *args: Any, **kwargs: Any) -> Any:
        self.alive += 1
        self.most = max(self.most, self.alive)
        return self._service.create_lora_training_client(*args, **kwargs)

    def create_sampling_client(self, *args: Any, **kwargs: Any) -> Any:
        return self._service.create_sampling_client(*args, **kwargs)


@pytest.mark.parametrize("max_parallel", [1, 2, 3])
def test_no_more_adapters_than_allowed(max_parallel: int, tiny_model: Any, service: Any) -> None:
    counting: Any = CountingService(service)
    finished: list[int] = []

    def on_adapted(index: int, sampler: SamplingClient) -> None:
        finished.append(index)
        if many[index].datums_D:
            counting.alive -= 1

    many = [*jobs(), *jobs()]
    settings = AdaptSettings(lora=LORA, max_parallel=max_parallel)
    adapt(counting, tiny_model("llama"), many, settings, on_adapted=on_adapted)
    assert sorted(finished) == list(range(8))
    assert counting.most == max_parallel
    assert counting.alive == 0


def test_no_jobs_are_no_work(service: Any) -> None:
    settings = AdaptSettings(lora=LORA)
    adapt(service, "no model is loaded", [], settings, on_adapted=lambda *_: pytest.fail("called"))


@pytest.mark.parametrize("warmup_steps", [0, 1, 3, 8])
@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedules_are_those_of_transformers(schedule: Any, warmup_steps: int) -> None:
    make = {"cosine": get_cosine_schedule_with_warmup, "linear": get_linear_schedule_with_warmup}
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = make[schedule](optimizer, warmup_steps, 10)
    for step in range(10):
        ours = learning_rate_factor(schedule, step, 10, warmup_steps)
        assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        theirs.step()


def test_sizes_of_a_job() -> None:
    job = AdaptJob(datums(0, 5), learning_rate=1e-2, num_epochs=3, seed=0)
    assert job.num_steps(batch_size=2) == 9
    assert job.num_tokens == 3 * sum(datum.model_input.length for datum in job.datums_D)


def test_mean_weights_sum_to_one() -> None:
    rng = np.random.default_rng(0)
    batch = [cross_entropy_datum(rng, random_tokens(rng, n)) for n in (5, 9)]
    weighted = mean_weighted(batch)
    total = sum(datum.loss_fn_inputs["weights"].to_numpy().sum() for datum in weighted)
    assert total == pytest.approx(1, abs=1e-5)
    scaled = mean_weighted(batch, 0.25)
    total = sum(datum.loss_fn_inputs["weights"].to_numpy().sum() for datum in scaled)
    assert total == pytest.approx(0.25, abs=1e-5)
    before, after = (d[0].loss_fn_inputs["weights"].to_numpy() for d in (batch, weighted))
    nonzero = before != 0
    assert np.ptp(after[nonzero] / before[nonzero]) < 1e-6


def test_on_top_of_a_folder(tiny_model: Any, service: Any) -> None:
    folder = tiny_model("llama")
    below = service.create_lora_training_client(folder, seed=1, **LORA)
    randomise(below, 1)
    path = below.save_state("below").result().path
    [job, _, empty, _] = jobs()
    settings = AdaptSettings(lora=LORA, batch_size=2)
    on_top = [replace(job, on_top_of=path), replace(empty, on_top_of=path)]
    trained, untrained = adapted_logprobs(service, folder, on_top, settings)

    prompt = ModelInput.from_ints(random_tokens(np.random.default_rng(5), 20))
    sampler = below.save_weights_and_get_sampling_client().result()
    np.testing.assert_array_equal(untrained, sampler.compute_logprobs(prompt).result()[1:])
    assert np.abs(trained - untrained).max() > 1e-2
    [alone] = adapted_logprobs(service, folder, [job], settings)
    assert np.abs(trained - alone).max() > 1e-2


def test_a_step_that_fails_ends_its_adapter_alone(tiny_model: Any, service: Any) -> None:
    folder = tiny_model("llama")
    first, second, *_ = jobs()
    wild = AdaptJob(datums(3, 4), learning_rate=3e38, num_epochs=2, seed=1)
    settings = AdaptSettings(lora=LORA, batch_size=2, eps=1e-4)
    failed: dict[int, RequestFailedError] = {}
    prompt = ModelInput.from_ints(random_tokens(np.random.default_rng(5), 20))
    futures: dict[int, Any] = {}

    def on_adapted(index: int, sampler: SamplingClient) -> None:
        futures[index] = sampler.compute_logprobs(prompt)

    tokens = adapt(
        service,
        folder,
        [first, wild, second],
        settings,
        on_adapted=on_adapted,
        on_failed=failed.__setitem__,
    )
    assert list(failed) == [1] and sorted(futures) == [0, 2]
    assert tokens[0] == first.num_tokens and tokens[2] == second.num_tokens
    alone = adapted_logprobs(service, folder, [first, second], settings)
    for j, wanted in zip((0, 2), alone, strict=True):
        np.testing.assert_allclose(futures[j].result()[1:], wanted, atol=1e-5, rtol=0)
    with pytest.raises(RequestFailedError):
        adapt(service, folder, [wild], settings, on_adapted=lambda *_: None)


def test_requests_to_trained_adapters(tiny_model: Any, service: Any) -> None:
    """The trainer thinks of a sequence what the sampler thinks; of no data, what the base does."""
    folder = tiny_model("llama")
    tokens = random_tokens(np.random.default_rng(5), 20)
    fields: dict[str, Any] = {"target_tokens": tokens[1:], "weights": [1.0] * 19}
    asked = Datum(ModelInput.from_ints(tokens[:-1]), fields)
    scored: dict[int, Any] = {}
    sampled: dict[int, Any] = {}
    adapt(
        service,
        folder,
        jobs(),
        AdaptSettings(lora=LORA),
        on_trained=lambda j, client: scored.update({j: client.forward([asked], "cross_entropy")}),
        on_adapted=lambda j, sampler: sampled.update(
            {j: sampler.compute_logprobs(ModelInput.from_ints(tokens))}
        ),
    )
    assert sorted(scored) == sorted(sampled) == [0, 1, 2, 3]
    for j, future in scored.items():
        trained = future.result().loss_fn_outputs[0]["logprobs"].to_numpy()
        np.testing.assert_allclose(trained, sampled[j].result()[1:], atol=1e-4)


def test_training_stops_where_the_held_out_loss_rises(tiny_model: Any, service: Any) -> None:
    folder = tiny_model("llama")
    settings = AdaptSettings(lora=LORA, batch_size=2, eps=1e-4)
    same, other = datums(0, 4), datums(9, 3)
    long = {"learning_rate": 1e-2, "num_epochs": 15, "seed": 7}
    # what is learned itself goes on getting likelier
    falling = AdaptJob(same, heldout_D=same, **long)
    rising = AdaptJob(same, heldout_D=other, **long)
    tokens = adapt(service, folder, [falling, rising], settings, on_adapted=lambda *_: None)
    epoch = falling.num_tokens // 15
    assert tokens[0] > 5 * epoch
    assert epoch <= tokens[1] < tokens[0]
    # the epoch after which it stopped is the first that did not lower the loss
    stopped = tokens[1] // epoch
    client = service.create_lora_training_client(folder, seed=7, **LORA)
    losses = [client.forward(other, "cross_entropy").result().metrics["loss:sum"]]
    rng = np.random.default_rng(7)
    orders = [rng.permutation(4) for _ in range(15)]
    step = 0
    for order in orders[:stopped]:
        for chosen in (order[:2], order[2:]):
            client.forward_backward(mean_weighted([same[i] for i in chosen]), "cross_entropy")
            rate = 1e-2 * learning_rate_factor("cosine", step, 30)
            client.optim_step(AdamParams(rate, beta1=0.9, beta2=0.999, eps=1e-4)).result()
            step += 1
        losses.append(client.forward(other, "cross_entropy").result().metrics["loss:sum"])
    after = losses[1:]
    assert all(b < a for a, b in pairwise(after[:-1]))
    assert len(after) == 1 or after[-1] >= after[-2]


def test_anchors_add_their_mean_times_the_weight(tiny_model: Any, service: Any) -> None:
    """One step of a job with anchors is that of both losses together."""
    folder = tiny_model("llama")
    [datum] = datums(0, 1)
    [anchor] = datums(1, 1)
    settings = AdaptSettings(lora=LORA, batch_size=1, anchor_weight=0.5, eps=1e-4)
    job = AdaptJob([datum], learning_rate=1e-2, num_epochs=1, seed=7, anchors_D=[anchor])
    [got] = adapted_logprobs(service, folder, [job], settings)

    client = service.create_lora_training_client(folder, seed=7, **LORA)
    client.forward_backward(mean_weighted([datum]), "cross_entropy")
    client.forward_backward(mean_weighted([anchor], 0.5), "cross_entropy")
    client.optim_step(AdamParams(1e-2, beta1=0.9, beta2=0.999, eps=1e-4)).result()
    sampler = client.save_weights_and_get_sampling_client().result()
    prompt = ModelInput.from_ints(random_tokens(np.random.default_rng(5), 20))
    np.testing.assert_allclose(got, sampler.compute_logprobs(prompt).result()[1:], atol=1e-5)
    [without] = adapted_logprobs(
        service, folder, [job], AdaptSettings(lora=LORA, batch_size=1, eps=1e-4)
    )
    assert np.abs(got - without).max() > 1e-3
