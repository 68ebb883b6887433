"""Test-time training: many adapters, each on its own data, stepped together through futures."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from training.adapter_proof import AdapterProof
from training.api import (
    AdamParams,
    APIFuture,
    Datum,
    ForwardBackwardOutput,
    RequestFailedError,
    SamplingClient,
    ServiceClient,
    TrainingClient,
)
from training.loop import Schedule, epoch_batches, learning_rate_factor
from utils.runs.progress import progress


@dataclass(frozen=True)
class AdaptSettings:
    """What all adapters of a call share. `lora` are keywords of create_lora_training_client.

    Learning rates follow `schedule` after `warmup_steps`, or `warmup_share` of a job's steps where
    that is more; losses are divided by the batch's trained tokens, as transformers' Trainer does,
    so that a rate means what it means there. `anchor_weight` is how much a batch of a job's anchors
    adds to each step.
    """

    lora: dict[str, Any]
    batch_size: int = 2
    warmup_steps: int = 0
    warmup_share: float = 0.0
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_parallel: int = 16
    schedule: Schedule = "cosine"
    anchor_weight: float = 0.0


@dataclass(frozen=True)
class AdaptJob:
    """One adapter: its data, learning rate and epochs. No data means the base model itself.

    `heldout_D` are not trained on: after the first epoch in which their loss has not fallen
    training stops. `anchors_D` are soft targets that hold the adapter to the base model.
    `on_top_of` is the folder of an adapter below this one, as if merged into the base model before
    (a local extension).
    """

    datums_D: list[Datum]
    learning_rate: float
    num_epochs: int
    seed: int
    heldout_D: list[Datum] = field(default_factory=list)
    anchors_D: list[Datum] = field(default_factory=list)
    on_top_of: str | None = None

    def num_steps(self, batch_size: int) -> int:
        return math.ceil(len(self.datums_D) / batch_size) * self.num_epochs

    @property
    def num_tokens(self) -> int:
        return sum(datum.model_input.length for datum in self.datums_D) * self.num_epochs


def mean_weighted(datums: Sequence[Datum], scale: float = 1.0) -> list[Datum]:
    """The data with weights that sum to `scale` over all of them: with 1, a sum of losses becomes
    their mean."""
    total = sum(float(datum.loss_fn_inputs["weights"].to_numpy().sum()) for datum in datums)
    return [
        Datum(
            datum.model_input,
            {
                "target_tokens": datum.loss_fn_inputs["target_tokens"],
                "weights": datum.loss_fn_inputs["weights"].to_numpy() / np.float32(total / scale),
            },
        )
        for datum in datums
    ]


class _Run:
    """One adapter on its way through its data."""

    def __init__(self, client: TrainingClient, job: AdaptJob, settings: AdaptSettings) -> None:
        self.client = client
        self.num_tokens = 0
        self._job = job
        self._settings = settings
        rng = np.random.default_rng(job.seed)
        self._batches = epoch_batches(job.datums_D, settings.batch_size, job.num_epochs, rng)
        self._steps_per_epoch = math.ceil(len(job.datums_D) / settings.batch_size)
        # apart from the order of the data, which must not depend on whether there are any
        anchor_rng = np.random.default_rng([job.seed, 1])
        self._anchors = []
        if job.anchors_D and settings.anchor_weight:
            epochs = math.ceil(len(self._batches) * settings.batch_size / len(job.anchors_D))
            self._anchors = epoch_batches(
                job.anchors_D, min(settings.batch_size, len(job.anchors_D)), epochs, anchor_rng
            )
        share = int(settings.warmup_share * len(self._batches))
        self._warmup_steps = max(settings.warmup_steps, share)
        self._step = 0
        self._heldout: APIFuture[ForwardBackwardOutput] | None = None
        self._best_loss = math.inf

    def submit_step(self) -> list[APIFuture[Any]]:
        """Requests the next step; its futures, none at the end."""
        if self._step == len(self._batches):
            return []
        settings, client = self._settings, self.client
        batch = mean_weighted(self._batches[self._step])
        factor = learning_rate_factor(
            settings.schedule, self._step, len(self._batches), self._warmup_steps
        )
        futures: list[APIFuture[Any]] = [client.forward_backward(batch, "cross_entropy")]
        if self._anchors:
            anchors = self._anchors[self._step % len(self._anchors)]
            weighted = mean_weighted(anchors, settings.anchor_weight)
            futures.append(client.forward_backward(weighted, "cross_entropy"))
        self._step += 1
        adam = AdamParams(
            learning_rate=self._job.learning_rate * factor,
            beta1=0.9,
            beta2=settings.beta2,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        )
        futures.append(client.optim_step(adam))
        if self._job.heldout_D and self._step % self._steps_per_epoch == 0:
            self._heldout = client.forward(self._job.heldout_D, "cross_entropy")
            futures.append(self._heldout)
        self.num_tokens += sum(datum.model_input.length for datum in batch)
        return futures

    def finish_step(self) -> None:
        """After the step's futures: ends the training where the held-out loss has not fallen."""
        if self._heldout is None:
            return
        loss = self._heldout.result().metrics["loss:sum"]
        self._heldout = None
        if loss >= self._best_loss:
            self._step = len(self._batches)
        self._best_loss = min(loss, self._best_loss)


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
    on_trained: Callable[[int, TrainingClient], None] | None = None,
    on_failed: Callable[[int, RequestFailedError], None] | None = None,
    desc: str = "adapting",
    proof: AdapterProof | None = None,
) -> list[int]:
    """Trains every job's adapter; calls on_adapted(index, sampler) as each is finished. Returns on
    how many tokens each was trained.

    At most `max_parallel` adapters exist at a time: one that is done makes room for the next, so
    memory does not grow with the number of jobs. `proof` holds the first that is finished against
    its trainer and the base model. on_trained(index, client) may make requests to a trained
    adapter, or to a new one that is the base model, and must not wait for them. Where a step fails,
    on_failed(index, error) is called and the others go on; without it the error is raised.
    """
    waiting = sorted(range(len(jobs_J)), key=lambda j: -jobs_J[j].num_tokens)
    running: dict[int, _Run] = {}
    tokens_J = [0] * len(jobs_J)
    total = sum(job.num_steps(settings.batch_size) for job in jobs_J)

    def failed(j: int, error: RequestFailedError) -> None:
        if on_failed is None:
            raise error
        running.pop(j, None)
        on_failed(j, error)

    def new_client(j: int) -> TrainingClient:
        job, lora = jobs_J[j], dict(settings.lora)
        if job.on_top_of is not None:
            lora["on_top_of"] = job.on_top_of
        return service.create_lora_training_client(base_model, seed=job.seed, **lora)

    with progress(total, desc, "step", leave=total > 0) as bar:
        while waiting or running:
            while waiting and len(running) < settings.max_parallel:
                j = waiting.pop(0)
                if jobs_J[j].num_steps(settings.batch_size) == 0:
                    if on_trained is not None:
                        on_trained(j, new_client(j))
                    below = jobs_J[j].on_top_of
                    on_adapted(j, service.create_sampling_client(below, base_model))
                    continue
                running[j] = _Run(new_client(j), jobs_J[j], settings)
            submitted = {j: run.submit_step() for j, run in running.items()}
            done = [j for j, futures in submitted.items() if not futures]
            for j, futures in submitted.items():
                try:
                    for future in futures:
                        future.result()
                    if futures:
                        running[j].finish_step()
                        bar.update(1)
                        bar.add(tokens=running[j].num_tokens - tokens_J[j])
                        tokens_J[j] = running[j].num_tokens
                except RequestFailedError as error:
                    failed(j, error)
            # all of them first, so that what they request runs together
            if on_trained is not None:
                for j in done:
                    on_trained(j, running[j].client)
            for j in done:
                client = running.pop(j).client
                try:
                    if proof is None:
                        sampler = client.save_weights_and_get_sampling_client().result()
                    else:
                        sampler = proof.sampler(client, f"{desc}, adapter {j + 1} of {len(jobs_J)}")
                except RequestFailedError as error:
                    failed(j, error)
                else:
                    on_adapted(j, sampler)
    return tokens_J
