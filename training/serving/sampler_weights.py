"""What samplers share: the weights of a base model, of a checkpoint, or of one moment of a run.

A training loop makes a sampler a step and never closes one, so only the last ones used are kept in
memory. The others sleep in files, and are read again when somebody asks.
"""

import asyncio
import logging
import secrets
import shutil
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from training.api import SamplingClient
from training.models import adapter_fingerprint
from training.serving.backend import Backend
from training.serving.base_models import BaseModels
from training.serving.checkpoint_access import CheckpointAccess
from training.serving.errors import bad_request
from training.serving.storage.rows import CheckpointRow
from training.serving.workers import Workers, new_future

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedWeights:
    """`fingerprint` tells weights apart that lie, or lay, under one name."""

    client: SamplingClient
    context_length: int | None
    fingerprint: str


def _nothing() -> None:
    pass


@dataclass(eq=False)
class SamplerWeights:
    """`base_model` is the name that a client said, `source` what the service takes. `row`: of a
    checkpoint. `folder`: where a moment sleeps. `users`: sampling sessions that count on it."""

    base_model: str
    source: str
    row: CheckpointRow | None = None
    folder: Path | None = None
    loaded: "asyncio.Future[LoadedWeights] | None" = None
    users: int = 0
    let_go: Callable[[], None] = _nothing

    @property
    def path(self) -> str | None:
        return None if self.row is None else str(self.row.path)


class SamplerCache:
    """Weights by what they are: a checkpoint by an identity that is never used again, not by its
    name or its run, so that nothing is ever answered with the weights of another moment. At most
    `max_awake` adapters are in memory beside those that requests are being answered with."""

    def __init__(
        self,
        backend: Backend,
        bases: BaseModels,
        checkpoints: CheckpointAccess,
        workers: Workers,
        *,
        folder: Path,
        max_awake: int,
    ) -> None:
        self._backend = backend
        self._bases = bases
        self._checkpoints = checkpoints
        self._workers = workers
        self._folder = folder
        self._max_awake = max_awake
        self._of_bases: dict[str, asyncio.Future[LoadedWeights]] = {}
        self._of_checkpoints: dict[str, SamplerWeights] = {}
        # the least recently used first
        self._awake: OrderedDict[SamplerWeights, None] = OrderedDict()

    @property
    def num_awake(self) -> int:
        return len(self._awake)

    def of_base(self, name: str) -> SamplerWeights:
        """Raises ServingError (400) for a name that is not offered."""
        return SamplerWeights(name, self._bases.resolve(name))

    def of_checkpoint(self, row: CheckpointRow) -> SamplerWeights:
        known = self._of_checkpoints.get(row.uid)
        if known is None:
            source = self._bases.resolve(row.base_model)
            known = self._of_checkpoints[row.uid] = SamplerWeights(row.base_model, source, row)
        return known

    def of_moment(self, base_model: str, client: SamplingClient) -> SamplerWeights:
        """Of weights as they were, which are not saved."""
        source = self._bases.resolve(base_model)
        loaded: asyncio.Future[LoadedWeights] = new_future()
        loaded.set_result(LoadedWeights(client, self._backend.context_length(source), ""))
        return SamplerWeights(base_model, source, loaded=loaded)

    def open(self, weights: SamplerWeights) -> "asyncio.Future[LoadedWeights]":
        """There at once where they are in memory; else they are being loaded from now on."""
        if weights.row is None and weights.folder is None and weights.loaded is None:
            if weights.source not in self._of_bases:
                self._of_bases[weights.source] = self._load(weights)
            return self._of_bases[weights.source]
        if weights.loaded is None:
            weights.loaded = self._load(weights)
        self._awake[weights] = None
        self._awake.move_to_end(weights)
        while len(self._awake) > self._max_awake:
            oldest, _ = self._awake.popitem(last=False)
            self._workers.begin(self._put_to_sleep(oldest))
        return weights.loaded

    def use(self, weights: SamplerWeights) -> None:
        """A session counts on them: what they are loaded from stays. Raises ServingError 404 where
        it is gone already."""
        if not weights.users and weights.row is not None:
            weights.let_go = self._checkpoints.hold(weights.row)
        weights.users += 1
        self.open(weights)

    def leave(self, weights: SamplerWeights) -> None:
        weights.users -= 1
        if weights.users:
            return
        weights.let_go()
        if weights.row is None:
            self._awake.pop(weights, None)
            self._remove_folder(weights)
        elif weights.loaded is None:
            self._of_checkpoints.pop(weights.row.uid, None)

    def forget(self, uid: str) -> None:
        """A deleted checkpoint: those who use its weights keep them."""
        self._of_checkpoints.pop(uid, None)

    async def _put_to_sleep(self, weights: SamplerWeights) -> None:
        """What is in no file yet is saved first."""
        if weights.loaded is None:
            return
        if weights.row is None and weights.users and weights.folder is None:
            await asyncio.wait([weights.loaded])
            save_into = getattr(weights.loaded.result().client, "save_into", None)
            if save_into is None:
                return
            folder = self._folder / f"sampler-{secrets.token_hex(16)}"
            try:
                await save_into(folder)
            except Exception as error:
                # it stays where it is
                logger.error("a sampler could not be saved to free memory: %s", error)
                return
            weights.folder = folder
        # unless somebody asked for them meanwhile
        if weights not in self._awake:
            weights.loaded = None
            if weights.users:
                return
            self._remove_folder(weights)
            if weights.row is not None:
                self._of_checkpoints.pop(weights.row.uid, None)

    def _remove_folder(self, weights: SamplerWeights) -> None:
        if weights.folder is not None:
            shutil.rmtree(weights.folder, ignore_errors=True)

    def _load(self, weights: SamplerWeights) -> "asyncio.Future[LoadedWeights]":
        loaded: asyncio.Future[LoadedWeights] = new_future()
        row, source = weights.row, weights.source
        folder = weights.folder if row is None else row.folder
        # or deleting the checkpoint would take the files from under the load
        release = _nothing if row is None else self._checkpoints.hold(row)

        def load() -> LoadedWeights:
            client = self._backend.sampler(source, folder)
            fingerprint = self._backend.fingerprint(source)[:12]
            if folder is not None:
                fingerprint = f"{fingerprint}-{adapter_fingerprint(folder)}"
            return LoadedWeights(client, self._backend.context_length(source), fingerprint)

        async def run() -> None:
            try:
                loaded.set_result(await self._workers.load(load))
            except Exception as error:
                # the next one who asks tries again
                weights.loaded = None
                self._awake.pop(weights, None)
                if folder is None:
                    self._of_bases.pop(source, None)
                why = str(error) if row is None else row.by_its_path(str(error))
                loaded.set_exception(
                    bad_request(f"{weights.path or weights.base_model} cannot be loaded: {why}")
                )
                # nobody need wait for it
                loaded.exception()
            finally:
                release()

        self._workers.begin(run())
        return loaded
