"""What samplers share: the weights of a base model, of a checkpoint, or of one moment of a run."""

import asyncio
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from training.api import SamplingClient
from training.models import adapter_fingerprint
from training.serving.backend import Backend
from training.serving.base_models import BaseModels
from training.serving.checkpoint_access import CheckpointAccess
from training.serving.errors import bad_request
from training.serving.storage.rows import CheckpointRow
from training.serving.workers import Workers


@dataclass(frozen=True)
class LoadedWeights:
    """`fingerprint` tells weights apart that lie, or lay, under one name."""

    client: SamplingClient
    context_length: int | None
    fingerprint: str


@dataclass(eq=False)
class SamplerWeights:
    """`base_model` is the name that a client said, `path` the checkpoint's, if it is one."""

    base_model: str
    path: str | None
    loaded: "asyncio.Future[LoadedWeights]"


class SamplerCache:
    """Weights by what they are: a checkpoint by an identity that is never used again, not by its
    name or its run, so that nothing is ever answered with the weights of another moment."""

    def __init__(
        self, backend: Backend, bases: BaseModels, checkpoints: CheckpointAccess, workers: Workers
    ) -> None:
        self._backend = backend
        self._bases = bases
        self._checkpoints = checkpoints
        self._workers = workers
        self._cached: dict[Hashable, asyncio.Future[LoadedWeights]] = {}

    def of_base(self, name: str) -> SamplerWeights:
        """Raises ServingError (400) for a name that is not offered."""
        source = self._bases.resolve(name)
        loaded = self._load(("base", source), source, None, lambda: None)
        return SamplerWeights(name, None, loaded)

    def of_checkpoint(self, found: CheckpointRow) -> SamplerWeights:
        source = self._bases.resolve(found.base_model)
        # or deleting the checkpoint would take the files from under the load
        release = self._checkpoints.hold(found)
        loaded = self._load(("checkpoint", found.uid), source, found, release)
        return SamplerWeights(found.base_model, str(found.path), loaded)

    def of_moment(self, base_model: str, client: SamplingClient) -> SamplerWeights:
        """Of weights as they were, in memory alone."""
        loaded: asyncio.Future[LoadedWeights] = asyncio.get_running_loop().create_future()
        length = self._backend.context_length(self._bases.resolve(base_model))
        loaded.set_result(LoadedWeights(client, length, ""))
        return SamplerWeights(base_model, None, loaded)

    def forget(self, uid: str) -> None:
        """A deleted checkpoint: those who have its weights keep them."""
        self._cached.pop(("checkpoint", uid), None)

    def _load(
        self, key: Hashable, source: str, found: CheckpointRow | None, release: Callable[[], None]
    ) -> "asyncio.Future[LoadedWeights]":
        known = self._cached.get(key)
        if known is not None:
            release()
            return known
        loaded = self._cached[key] = asyncio.get_running_loop().create_future()

        def load() -> LoadedWeights:
            client = self._backend.sampler(source, None if found is None else found.folder)
            fingerprint = self._backend.fingerprint(source)[:12]
            if found is not None:
                fingerprint = f"{fingerprint}-{adapter_fingerprint(found.folder)}"
            return LoadedWeights(client, self._backend.context_length(source), fingerprint)

        async def run() -> None:
            try:
                loaded.set_result(await self._workers.load(load))
            except Exception as error:
                # the next one tries again
                self._cached.pop(key, None)
                what = source if found is None else found.path
                loaded.set_exception(bad_request(f"{what} could not be loaded: {error}"))
                # nobody need wait for it
                loaded.exception()
            finally:
                release()

        self._workers.begin(run())
        return loaded
