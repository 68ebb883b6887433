"""Models by the names that OpenAI's clients say: a base model, an alias, or a checkpoint."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from training.api import ModelInput, SamplingClient, SamplingParams
from training.chat import render_prompt
from training.serving import backend as calls
from training.serving.base_models import BaseModels
from training.serving.checkpoint_access import CheckpointAccess
from training.serving.errors import ServingError, bad_request, not_found
from training.serving.hosted import Hosted
from training.serving.named_adapters import NamedAdapters
from training.serving.names import TinkerPath
from training.serving.promises import Promises
from training.serving.sampler_weights import SamplerCache, SamplerWeights
from training.serving.scheduler import Scheduler
from training.serving.workers import Workers

# checkpoints in the model list
_LISTED = 1000


@dataclass(frozen=True)
class ModelEntry:
    """A name of the model list. `created`: seconds since 1970; `parent`: of a checkpoint, its base
    model; `root`: the name of what it is; `max_model_len` is None before the model is loaded."""

    name: str
    created: int
    parent: str | None
    root: str
    max_model_len: int | None


class HostedModels:
    def __init__(
        self,
        bases: BaseModels,
        checkpoints: CheckpointAccess,
        cache: SamplerCache,
        promises: Promises,
        scheduler: Scheduler,
        workers: Workers,
        context_length: Callable[[str], int | None],
        *,
        max_num_samples: int,
        started_at: float,
        named: NamedAdapters | None = None,
    ) -> None:
        self._bases = bases
        self._named = named
        self._checkpoints = checkpoints
        self._cache = cache
        self._promises = promises
        self._scheduler = scheduler
        self._workers = workers
        self._context_length = context_length
        self._max_num_samples = max_num_samples
        self._started_at = started_at

    async def find(self, owner: str, name: str) -> "Hosted":
        """By the name of a base model, an alias, `<run>/<checkpoint>`, the checkpoint's tinker://
        path, or `<base>;<path>`. Loads it. Raises ServingError: 404 model_not_found."""
        weights = self._weights(owner, name)
        opened = self._cache.open(weights)
        # unlike awaiting it, this leaves it alone when one of many gives up
        await asyncio.wait([opened])
        loaded = opened.result()
        try:
            tokenizer = await self._workers.check(loaded.client.get_tokenizer)
        except ValueError as error:
            raise bad_request(f"model {name!r}: {error}", param="model") from error
        return Hosted(
            owner,
            name,
            weights,
            loaded,
            tokenizer,
            self._promises,
            self._scheduler,
            self._workers,
            max_num_samples=self._max_num_samples,
        )

    async def warm_up(self) -> None:
        """What the first requests to the default model would wait for, done before they come: its
        tokenizer, its chat template, and the tables behind answers in JSON."""
        # what fails here is told to whoever asks
        with contextlib.suppress(ServingError, ValueError):
            opened = self._cache.open(self._cache.of_base(self._bases.default))
            await asyncio.wait([opened])
            await self._workers.check(partial(_used, opened.result().client))

    def entries(self, owner: str) -> list[ModelEntry]:
        """Base models, their aliases, adapters that were loaded by name, then checkpoints that can
        be sampled, newest first."""
        entries = []
        for name in self._bases.names:
            source = self._bases.resolve(name)
            length = self._context_length(name)
            entries.append(ModelEntry(name, int(self._started_at), None, source, length))
        for name, named in self._named.of(owner) if self._named is not None else ():
            base = named.weights.base_model
            length = self._context_length(base)
            entries.append(ModelEntry(name, named.created, base, named.path, length))
        for found in self._checkpoints.all_to_sample(owner, _LISTED):
            # of a base model that is not offered any more it can still be listed
            length = None
            if found.base_model in self._bases.names:
                length = self._context_length(found.base_model)
            path = str(found.path)
            entries.append(
                ModelEntry(path, int(found.created_at.timestamp()), found.base_model, path, length)
            )
        return entries

    def _weights(self, owner: str, name: str) -> SamplerWeights:
        if name in self._bases.names:
            return self._cache.of_base(name)
        if self._named is not None and (named := self._named.get(owner, name)) is not None:
            return named
        base, _, path = name.rpartition(";")
        try:
            found = self._checkpoints.to_sample(owner, _as_path(path))
        except ServingError as error:
            unknown = self._unknown(owner, name)
            if "/weights/" in path:
                unknown.message += (
                    "; weights/... are for training to go on from, and sampler_weights/... answer "
                    "(save_weights_for_sampler)"
                )
            raise unknown from error
        if base and not self._bases.same(base, found.base_model):
            raise bad_request(
                f"model: {path} was trained from {found.base_model}, not from {base}", param="model"
            )
        return self._cache.of_checkpoint(found)

    def _unknown(self, owner: str, name: str) -> ServingError:
        error = not_found(f"model {name!r}", [e.name for e in self.entries(owner)], param="model")
        error.code = "model_not_found"
        return error


def _used(client: SamplingClient) -> None:
    tokenizer = client.get_tokenizer()
    tokens = render_prompt(tokenizer, [{"role": "user", "content": "Hello"}])
    in_json = SamplingParams(max_tokens=1, json_schema={})
    # checked, and not made
    calls.prepare_sample(client, ModelInput.from_ints(tokens), 1, in_json)


def _as_path(name: str) -> str:
    """`<run>/<checkpoint>` as the path of weights for sampling."""
    if name.startswith("tinker://"):
        return name
    run, _, checkpoint = name.rpartition("/")
    return str(TinkerPath(run.removesuffix("/sampler_weights"), "sampler_weights", checkpoint))
