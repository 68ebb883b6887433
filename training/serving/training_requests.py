"""Requests to models in training, in the order they came: a step, a save and a snapshot see all
that was asked before them and nothing that was asked after."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from training.api import AdamParams, APIFuture, OptimStepResponse, SamplingClient, TrainingClient
from training.serving import backend as calls
from training.serving.memory_sizes import data_bytes
from training.serving.names import TinkerPath, checkpoint_name
from training.serving.promises import Promise, Promises
from training.serving.scheduler import Scheduler, Work
from training.serving.storage.rows import Run
from training.serving.store import Store
from training.serving.trained_models import Model, TrainedModels
from training.serving.workers import Workers

if TYPE_CHECKING:
    from training.serving.wire.codec import ForwardBackwardRequest

# the SDK's words for the requests that write checkpoints of these kinds
_SAVES = {
    "weights": "SaveWeights",
    "sampler_weights": "SaveWeightsForSampler",
    "external_weights": "SaveWeightsExternal",
}


class TrainingRequests:
    def __init__(
        self,
        models: TrainedModels,
        store: Store,
        promises: Promises,
        scheduler: Scheduler,
        workers: Workers,
    ) -> None:
        self._models = models
        self._store = store
        self._promises = promises
        self._scheduler = scheduler
        self._workers = workers
        self.save_weights = partial(self._save, "weights")
        self.save_sampler_weights = partial(self._save, "sampler_weights")
        self.save_weights_external = partial(self._save, "external_weights")

    async def forward_backward(
        self, owner: str, request: "ForwardBackwardRequest", *, digest: str
    ) -> Promise:
        """forward() where the request says forward_only, else forward_backward()."""
        model = self._models.require(owner, request.model_id)
        kind = "Forward" if request.forward_only else "ForwardBackward"
        promise, is_new = self._models.begin(
            owner, kind, model, request.seq_id, digest, data_bytes(request.data)
        )
        if not is_new:
            return await self._promises.repeated(promise)
        async with self._place(model, promise) as (work, client):
            make = await self._workers.check(
                partial(
                    calls.prepare_training,
                    client,
                    request.data,
                    request.loss_fn,
                    request.loss_fn_config,
                    forward_only=request.forward_only,
                )
            )
            self._scheduler.ready(work, make)
        return promise

    async def optim_step(
        self, owner: str, model_id: str, seq_id: int | None, params: AdamParams, *, digest: str
    ) -> Promise:
        """Its metrics tell the model's `num_steps`, and whether there was a gradient to use."""
        model = self._models.require(owner, model_id)
        promise, is_new = self._models.begin(owner, "OptimStep", model, seq_id, digest)
        if not is_new:
            return await self._promises.repeated(promise)

        def step(client: TrainingClient) -> APIFuture[dict[str, Any]]:
            return client.optim_step(params).map(lambda done: _step_metrics(model, client, done))

        return await self._queue(model, promise, step)

    async def _save(
        self,
        kind: str,
        owner: str,
        model_id: str,
        seq_id: int | None,
        name: str,
        *,
        digest: str,
        overwrite: bool = False,
        ttl_seconds: int | None = None,
        user_metadata: Mapping[str, str] | None = None,
    ) -> Promise:
        """A named checkpoint. Of the kind `weights` it has the optimizer's state and any gradient
        that no step has used, and the result tells whether there was one."""
        model = self._models.require(owner, model_id)
        promise, is_new = self._models.begin(owner, _SAVES[kind], model, seq_id, digest)
        if not is_new:
            return await self._promises.repeated(promise)
        async with self._place(model, promise) as (work, client):
            with_optimizer = kind == "weights"
            begun = self._store.checkpoints.begin(
                owner,
                TinkerPath(model_id, kind, checkpoint_name(name)),
                base_model=model.run.base_model,
                lora=model.run.lora,
                has_optimizer=with_optimizer,
                overwrite=overwrite,
                ttl_seconds=ttl_seconds,
                user_metadata=user_metadata,
            )
            work.undo = partial(self._store.checkpoints.abort, begun)
            work.fault = self._store.disk_fault

            def make() -> APIFuture[dict[str, Any]]:
                saved = calls.save(client, begun.folder, with_optimizer=with_optimizer)

                # on the engine's worker: nothing else of this model runs before it is listed
                def listed(_folder: Any) -> dict[str, Any]:
                    has_gradient = with_optimizer and getattr(client, "has_gradient", False)
                    row = self._store.checkpoints.commit(begun)
                    return {"path": str(row.path), "includes_pending_gradient": has_gradient}

                return saved.map(listed)

            self._scheduler.ready(work, make)
        return promise

    async def snapshot(
        self,
        owner: str,
        model_id: str,
        seq_id: int | None,
        *,
        digest: str,
        keep: Callable[[Run, Any], dict[str, Any]],
        check: Callable[[], None],
    ) -> Promise:
        """A sampling client of the weights as they are in the request's turn, given to `keep`,
        which makes the result."""
        model = self._models.require(owner, model_id)
        promise, is_new = self._models.begin(owner, "SaveWeightsForSampler", model, seq_id, digest)
        if not is_new:
            return await self._promises.repeated(promise)

        def snap(client: TrainingClient) -> APIFuture[SamplingClient]:
            return client.save_weights_and_get_sampling_client()

        return await self._queue(model, promise, snap, partial(keep, model.run), check)

    async def unload_model(
        self, owner: str, model_id: str, seq_id: int | None, *, digest: str
    ) -> Promise:
        """Frees the adapter after what was asked of it before."""
        model = self._models.require(owner, model_id)
        promise, is_new = self._models.begin(owner, "UnloadModel", model, seq_id, digest)
        if not is_new:
            return await self._promises.repeated(promise)

        def unload(_client: TrainingClient) -> APIFuture[None]:
            self._models.remove(model)
            return calls.done(None)

        return await self._queue(model, promise, unload, lambda _: {"model_id": model_id})

    @asynccontextmanager
    async def _place(
        self, model: Model, promise: Promise
    ) -> AsyncIterator[tuple[Work, TrainingClient]]:
        """The request's place in its model's queue, kept while it is checked. A refused one leaves
        it, and the promise is refused."""
        model.num_requests += 1
        work = self._scheduler.reserve(model.lane, promise)
        self._store.runs.touch(model.run.run_id)
        with self._promises.accepting(promise):
            try:
                # shielded, since others wait for it too
                yield work, await asyncio.shield(model.ready)
            except BaseException:
                model.num_requests -= 1
                self._scheduler.withdraw(work)
                raise

    async def _queue(
        self,
        model: Model,
        promise: Promise,
        call: Callable[[TrainingClient], APIFuture[Any]],
        finish: Callable[[Any], Any] = lambda result: result,
        check: Callable[[], None] = lambda: None,
    ) -> Promise:
        """A request with little to check."""
        async with self._place(model, promise) as (work, client):
            check()
            work.finish = finish
            self._scheduler.ready(work, partial(call, client))
        return promise


def _step_metrics(
    model: Model, client: TrainingClient, done: OptimStepResponse
) -> dict[str, dict[str, float]]:
    """On the engine's worker, right after the step."""
    before = model.num_steps
    model.num_steps = getattr(client, "num_steps", before + 1)
    had_gradient = float(model.num_steps > before)
    # not "step": recipes log these beside their own number of that name
    own = {"num_steps": float(model.num_steps), "had_gradient": had_gradient}
    return {"metrics": {**(done.metrics or {}), **own}}
