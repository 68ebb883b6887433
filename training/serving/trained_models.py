"""Models in training: one adapter each, made, loaded, looked up and let go."""

import asyncio
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from training.api import LoraConfig, TrainingClient
from training.serving.backend import Backend
from training.serving.base_models import BaseModels
from training.serving.checkpoint_access import CheckpointAccess
from training.serving.errors import bad_request, gone, not_found
from training.serving.promises import Promise, Promises
from training.serving.scheduler import Lane, explain
from training.serving.sessions import Sessions
from training.serving.storage.rows import CheckpointRow, Run
from training.serving.store import Store
from training.serving.workers import Workers, new_future


@dataclass(eq=False)
class Model:
    """`ready` has the client when the adapter is there. `num_steps`: optimizer steps that had a
    gradient, which only the engine's worker writes."""

    run: Run
    source: str
    lane: Lane
    ready: "asyncio.Future[TrainingClient]"
    num_requests: int = 0
    num_steps: int = 0


@dataclass(frozen=True)
class ModelInfo:
    """`tokenizer_id` is a name from which a client on this machine can load the tokenizer."""

    run: Run
    tokenizer_id: str
    max_context_length: int | None


class TrainedModels:
    def __init__(
        self,
        backend: Backend,
        store: Store,
        bases: BaseModels,
        checkpoints: CheckpointAccess,
        sessions: Sessions,
        promises: Promises,
        workers: Workers,
        *,
        max_rank: int,
        max_models: int,
    ) -> None:
        self._backend = backend
        self._store = store
        self._bases = bases
        self._checkpoints = checkpoints
        self._sessions = sessions
        self._promises = promises
        self._workers = workers
        self._max_rank = max_rank
        self._max_models = max_models
        self._models: dict[str, Model] = {}

    # ---------------------------------------------------------------------------- coming and going

    async def create_model(
        self,
        owner: str,
        session_id: str,
        model_seq_id: int,
        base_model: str,
        lora: LoraConfig,
        *,
        digest: str,
        user_metadata: Mapping[str, str] | None = None,
    ) -> Promise:
        """A new adapter. Without a seed in `lora` a random one is drawn, which the run records."""
        promise, is_new = self._begin_new(owner, "CreateModel", session_id, model_seq_id, digest)
        if not is_new:
            return await self._promises.repeated(promise)
        with self._promises.accepting(promise):
            source = self._bases.resolve(base_model)
            self.check_lora(lora)
            if lora.seed is None:
                lora = replace(lora, seed=secrets.randbits(31))
            run = self._new_run(promise, base_model, lora, user_metadata)
            model = self._add(run, source)
        make = partial(self._backend.create, source, lora)
        self._workers.begin(self._make(model, promise, make))
        return promise

    async def load_model(
        self,
        owner: str,
        session_id: str,
        model_seq_id: int,
        path: str,
        *,
        with_optimizer: bool,
        digest: str,
        base_model: str | None = None,
        user_metadata: Mapping[str, str] | None = None,
    ) -> Promise:
        """A new adapter with what a checkpoint holds; its rank and layers are the checkpoint's."""
        promise, is_new = self._begin_new(owner, "LoadWeights", session_id, model_seq_id, digest)
        if not is_new:
            return await self._promises.repeated(promise)
        with self._promises.accepting(promise):
            found = self._checkpoints.to_load(owner, path, with_optimizer=with_optimizer)
            source = self._bases.resolve(found.base_model)
            if base_model is not None and not self._bases.same(base_model, found.base_model):
                raise bad_request(
                    f"base_model: got {base_model!r}, but {path} was trained from "
                    f"{found.base_model!r}; leave base_model out, or load a checkpoint of its own",
                    param="base_model",
                )
            run = self._new_run(promise, found.base_model, found.lora, user_metadata)
            release = self._checkpoints.hold(found)
            model = self._add(run, source)
        self._begin_load(model, promise, found, release, with_optimizer=with_optimizer)
        return promise

    async def load_into(
        self,
        owner: str,
        model_id: str,
        seq_id: int | None,
        path: str,
        *,
        with_optimizer: bool,
        digest: str,
    ) -> Promise:
        """Older clients' load into a model that was just made, before it did anything else."""
        model = self.require(owner, model_id)
        promise, is_new = self.begin(owner, "LoadWeights", model, seq_id, digest)
        if not is_new:
            return await self._promises.repeated(promise)
        with self._promises.accepting(promise):
            before = await asyncio.shield(model.ready)
            if model.num_requests:
                raise bad_request(
                    f"load_weights into {model_id}: only before anything else is asked of it, and "
                    f"it had {model.num_requests} requests; make a new model with "
                    "create_training_client_from_state"
                )
            found = self._checkpoints.to_load(owner, path, with_optimizer=with_optimizer)
            theirs, ours = (replace(lora, seed=None) for lora in (found.lora, model.run.lora))
            if theirs != ours or not self._bases.same(found.base_model, model.run.base_model):
                raise bad_request(
                    f"{path} is {theirs} of {found.base_model}, the model is {ours} of "
                    f"{model.run.base_model}; create_training_client_from_state makes one that fits"
                )
            release = self._checkpoints.hold(found)
            model.ready = new_future()
        self._begin_load(
            model, promise, found, release, with_optimizer=with_optimizer, instead_of=before
        )
        return promise

    def remove(self, model: Model) -> None:
        """Lets go of its adapter; what the engine is on holds it to its end."""
        self._models.pop(model.run.run_id, None)

    def free_session(self, session_id: str) -> int:
        """Lets go of the adapters of a session; how many there were."""
        freed = [m for m in self._models.values() if m.run.session_id == session_id]
        for model in freed:
            self.remove(model)
        return len(freed)

    def info(self, owner: str, model_id: str) -> ModelInfo:
        """Also of a model that is not in memory any more. Raises 404."""
        run = self._store.runs.get(owner, model_id)
        if run is None:
            raise not_found(f"model_id {model_id!r}", param="model_id")
        return ModelInfo(
            run,
            self._bases.client_name(run.base_model),
            self._backend.context_length(self._bases.resolve(run.base_model)),
        )

    @property
    def num_models(self) -> int:
        return len(self._models)

    def num_of(self, session_id: str) -> int:
        return sum(model.run.session_id == session_id for model in self._models.values())

    def is_training(self, session_id: str) -> bool:
        """Whether the engine is on a training request of this session."""
        models = [m for m in self._models.values() if m.run.session_id == session_id]
        return any(model.lane.num_running for model in models)

    # ------------------------------------------------------------------------------------ within

    def require(self, owner: str, model_id: str) -> Model:
        """A model in memory, whose session gave a sign of life. Raises ServingError: 404 for an
        unknown one and another owner's, 410 for one that is not in memory any more."""
        model = self._models.get(model_id)
        if model is not None and model.run.owner == owner:
            self._sessions.require(owner, model.run.session_id)
            return model
        run = self._store.runs.get(owner, model_id)
        if run is None:
            raise not_found(f"model_id {model_id!r}", param="model_id")
        saved = self._checkpoints.last_saved(owner, model_id)
        told = f"load its last checkpoint, {saved.path}" if saved else "save_state() saved nothing"
        raise gone(
            f"model {model_id} is not in memory any more: it was unloaded, its session ended or "
            f"was silent for too long, or the server was restarted; {told}"
        )

    def begin(
        self,
        owner: str,
        kind: str,
        model: Model,
        seq_id: int | None,
        digest: str,
        request_bytes: int = 0,
    ) -> tuple[Promise, bool]:
        """Of a request to a model."""
        return self._promises.begin(
            owner,
            kind,
            model.run.session_id,
            scope=model.run.run_id,
            seq_id=seq_id,
            digest=digest,
            model_id=model.run.run_id,
            request_bytes=request_bytes,
        )

    def _begin_new(
        self, owner: str, kind: str, session_id: str, model_seq_id: int, digest: str
    ) -> tuple[Promise, bool]:
        self._sessions.require(owner, session_id)
        return self._promises.begin(
            owner,
            kind,
            session_id,
            # create and load draw from one row of numbers
            scope=f"{session_id}:train",
            seq_id=model_seq_id,
            digest=digest,
            model_id=f"{session_id}:train:{model_seq_id}",
        )

    def _new_run(
        self,
        promise: Promise,
        base_model: str,
        lora: LoraConfig,
        user_metadata: Mapping[str, str] | None,
    ) -> Run:
        assert promise.model_id is not None
        if len(self._models) >= self._max_models:
            raise bad_request(
                f"{len(self._models)} models are in memory, the most that this server holds; "
                "unload one, or finish a session"
            )
        if self._store.runs.get(promise.owner, promise.model_id) is not None:
            raise bad_request(
                f"model_seq_id: {promise.model_id} was made before the server was restarted; use "
                "the next number, or a new ServiceClient",
                param="model_seq_id",
            )
        return Run(
            promise.model_id,
            promise.owner,
            promise.session_id,
            base_model,
            lora,
            dict(user_metadata or {}),
        )

    def check_lora(self, lora: LoraConfig) -> None:
        """Raises ServingError 400 for an adapter that this server has no place for."""
        if not 1 <= lora.rank <= self._max_rank:
            raise bad_request(f"rank: got {lora.rank}, allowed 1 to {self._max_rank}", param="rank")
        if not (lora.train_attn or lora.train_mlp or lora.train_unembed):
            raise bad_request(
                "train_attn, train_mlp, train_unembed: all are false, at least one must be true",
                param="train_attn",
            )

    def _add(self, run: Run, source: str) -> Model:
        model = Model(run, source, Lane(run.owner, run.run_id), new_future())
        self._models[run.run_id] = model
        return model

    def _begin_load(
        self,
        model: Model,
        promise: Promise,
        found: CheckpointRow,
        release: Callable[[], None],
        *,
        with_optimizer: bool,
        instead_of: TrainingClient | None = None,
    ) -> None:
        """`release` lets go of the checkpoint, which is held or deleting it would take the files
        from under the load."""
        path = str(found.path)

        def load() -> TrainingClient:
            try:
                return self._backend.load(
                    found.folder, model.source, found.lora, with_optimizer=with_optimizer
                )
            except ValueError as error:
                raise ValueError(found.by_its_path(str(error))) from error

        made = self._make(model, promise, load, path=path, instead_of=instead_of, release=release)
        self._workers.begin(made)

    async def _make(
        self,
        model: Model,
        promise: Promise,
        make: Callable[[], TrainingClient],
        *,
        path: str | None = None,
        instead_of: TrainingClient | None = None,
        release: Callable[[], None] = lambda: None,
    ) -> None:
        """Makes the client on a thread; the promise's value is there when it is. `release` is
        called at the end."""
        try:
            client = await self._workers.load(make)
            model.num_steps = getattr(client, "num_steps", 0)
            if instead_of is None:
                self._store.runs.add(model.run)
        except Exception as error:
            message, category = explain(error, promise)
            self._promises.fail(promise, message, category)
            if instead_of is not None:
                model.ready.set_result(instead_of)
                return
            self._models.pop(model.run.run_id, None)
            model.ready.set_exception(bad_request(f"model {model.run.run_id}: {message}"))
            # nobody need wait for it
            model.ready.exception()
        else:
            model.ready.set_result(client)
            value = {"model_id": model.run.run_id}
            self._promises.resolve(promise, value if path is None else {**value, "path": path})
        finally:
            release()
