"""Test-time training: many adapters, each on its own data, stepped together through futures."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from training.adapter_proof import AdapterProof
from training.api import AdamParams, Datum, SamplingClient, ServiceClient, TrainingClient
from training.loop import epoch_batches, learning_rate_factor
from utils.runs.progress import progress


@dataclass(frozen=True)
class AdaptSettings:
    """What all adapters of a call share. `lora` are keywords of create_lora_training_client.

    Learning rates fall along a half cosine after `warmup_steps`, or `warmup_share` of a job's steps
    where that is more; losses are divided by the batch's trained tokens, as transformers' Trainer
    does, so that a rate means what it means there.
    """

    lora: dict[str, Any]
    batch_size: int = 2
    warmup_steps: int = 0
    warmup_share: float = 0.0
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_parallel: int = 16


@dataclass(frozen=True)
class AdaptJob:
    """One adapter: its data, learning rate and epochs. No data means the base model itself."""

    datums_D: list[Datum]
    learning_rate: float
    num_epochs: int
    seed: int

    def num_steps(self, batch_size: int) -> int:
        return math.ceil(len(self.datums_D) / batch_size) * self.num_epochs

    @property
    def num_tokens(self) -> int:
        return sum(datum.model_input.length for datum in self.datums_D) * self.num_epochs


def mean_weighted(datums: Sequence[Datum]) -> list[Datum]:
    """The data with weights that sum to 1 over all of them: a sum of losses becomes their mean."""
    total = sum(float(datum.loss_fn_inputs["weights"].to_numpy().sum()) for datum in datums)
    return [
        Datum(
            datum.model_input,
            {
                "target_tokens": datum.loss_fn_inputs["target_tokens"],
                "weights": datum.loss_fn_inputs["weights"].to_numpy() / np.float32(total),
            },
        )
        for datum in datums
    ]


class _Run:
    """One adapter on its way through its data."""

    def __init__(self, client: TrainingClient, job: AdaptJob, settings: AdaptSettings) -> None:
        self.client = client
        self._job = job
        self._settings = settings
        rng = np.random.default_rng(job.seed)
        self._batches = epoch_batches(job.datums_D, settings.batch_size, job.num_epochs, rng)
        share = int(settings.warmup_share * len(self._batches))
        self._warmup_steps = max(settings.warmup_steps, share)
        self._step = 0

    def submit_step(self) -> tuple[list[Any], int] | None:
        """Requests the next step; its futures and its tokens, or None at the end."""
        if self._step == len(self._batches):
            return None
        batch = mean_weighted(self._batches[self._step])
        factor = learning_rate_factor("cosine", self._step, len(self._batches), self._warmup_steps)
        self._step += 1
        loss = self.client.forward_backward(batch, "cross_entropy")
        adam = AdamParams(
            learning_rate=self._job.learning_rate * factor,
            beta1=0.9,
            beta2=self._settings.beta2,
            eps=self._settings.eps,
            weight_decay=self._settings.weight_decay,
        )
        futures = [loss, self.client.optim_step(adam)]
        return futures, sum(datum.model_input.length for datum in batch)


def require_adapters(service: ServiceClient, base_model: str, settings: AdaptSettings) -> None:
    """Makes one adapter and lets it go: raises the ValueError of settings that the model's layers
    cannot have, which only the loaded model knows."""
    service.create_lora_training_client(base_model, seed=0, **settings.lora)


def adapt(
    service: ServiceClient,
    base_model: str,
    jobs_J: Sequence[AdaptJob],
    settings: AdaptSettings,
    *,
    on_adapted: Callable[[int, SamplingClient], None],
    desc: str = "adapting",
    proof: AdapterProof | None = None,
) -> None:
    """Trains every job's adapter; calls on_adapted(index, sampler) as each is finished.

    At most `max_parallel` adapters exist at a time: one that is done makes room for the next, so
    memory does not grow with the number of jobs. `proof` holds the first that is finished against
    its trainer and the base model.
    """
    waiting = sorted(range(len(jobs_J)), key=lambda j: -jobs_J[j].num_tokens)
    running: dict[int, _Run] = {}
    total = sum(job.num_steps(settings.batch_size) for job in jobs_J)
    with progress(total, desc, "step", leave=total > 0) as bar:
        while waiting or running:
            while waiting and len(running) < settings.max_parallel:
                j = waiting.pop(0)
                if jobs_J[j].num_steps(settings.batch_size) == 0:
                    on_adapted(j, service.create_sampling_client(base_model=base_model))
                    continue
                client = service.create_lora_training_client(
                    base_model, seed=jobs_J[j].seed, **settings.lora
                )
                running[j] = _Run(client, jobs_J[j], settings)
            submitted = {j: run.submit_step() for j, run in running.items()}
            for j, step in submitted.items():
                if step is None:
                    client = running.pop(j).client
                    if proof is None:
                        sampler = client.save_weights_and_get_sampling_client().result()
                    else:
                        sampler = proof.sampler(client, f"{desc}, adapter {j + 1} of {len(jobs_J)}")
                    on_adapted(j, sampler)
                else:
                    futures, num_tokens = step
                    for future in futures:
                        future.result()
                    bar.update(1)
                    bar.add(tokens=num_tokens)
