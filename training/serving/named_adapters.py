"""Adapters of folders on this machine, which clients load and unload by a name they choose."""

import asyncio
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from training.serving.base_models import BaseModels
from training.serving.errors import ServingError, bad_request, not_found
from training.serving.names import checkpoint_name
from training.serving.sampler_weights import SamplerCache, SamplerWeights
from training.serving.workers import Workers

# of a PEFT folder; nothing else of it is read
_FILES = ("adapter_config.json", "adapter_model.safetensors")
# of one owner; they take disk, and those that are used last memory
_MOST = 64


class Named(NamedTuple):
    """`path`: the folder as it was asked for. `created`: seconds since 1970."""

    weights: SamplerWeights
    path: str
    created: int


class NamedAdapters:
    """What a client asks for must lie in `folder`. It is copied to `staging` first: what is written
    to the client's folder later changes no answer. Lives as long as the server."""

    def __init__(
        self,
        folder: Path,
        cache: SamplerCache,
        bases: BaseModels,
        workers: Workers,
        *,
        staging: Path,
    ) -> None:
        self._folder = folder.resolve()
        self._cache = cache
        self._bases = bases
        self._workers = workers
        self._staging = staging
        self._named: dict[tuple[str, str], Named] = {}

    def get(self, owner: str, name: str) -> SamplerWeights | None:
        found = self._named.get((owner, name))
        return None if found is None else found.weights

    def of(self, owner: str) -> Iterator[tuple[str, Named]]:
        """Names and what they stand for."""
        for (named_by, name), found in self._named.items():
            if named_by == owner:
                yield name, found

    async def load(self, owner: str, name: str, path: str, *, replaces: bool = False) -> None:
        """Comes back when it can answer. With `replaces` one of the same name is let go of then.
        Raises ServingError: 400 for a name that is taken, for a path outside of the folder and for
        what is no adapter of the default model, 404 where there is nothing."""
        self._check_name(owner, name, replaces)
        source = self._source(path)
        copy = self._staging / f"adapter-{secrets.token_hex(16)}"
        try:
            await self._workers.load(lambda: _copy(source, copy))
        except OSError as error:
            raise bad_request(
                f"lora_path: {path}: {error.strerror or error}; needed are {' and '.join(_FILES)}",
                param="lora_path",
            ) from error
        base = self._bases.default
        weights = SamplerWeights(base, self._bases.resolve(base), folder=copy)
        self._cache.use(weights)
        try:
            loaded = self._cache.open(weights)
            await asyncio.wait([loaded])
            if (error := loaded.exception()) is not None:
                assert isinstance(error, ServingError)
                told = error.message.partition(" cannot be loaded: ")[2].replace(str(copy), path)
                raise bad_request(f"lora_path: {path}: {told}", param="lora_path")
            # another request may have been quicker
            self._check_name(owner, name, replaces)
        except BaseException:
            self._cache.leave(weights)
            raise
        before = self._named.get((owner, name))
        self._named[owner, name] = Named(weights, path, int(time.time()))
        if before is not None:
            self._cache.leave(before.weights)

    def unload(self, owner: str, name: str) -> None:
        """Requests that are being answered keep it. Raises ServingError 404."""
        found = self._named.pop((owner, name), None)
        if found is None:
            raise not_found(
                f"adapter {name!r}", [known for known, _ in self.of(owner)], param="lora_name"
            )
        self._cache.leave(found.weights)

    def _check_name(self, owner: str, name: str, replaces: bool) -> None:
        checkpoint_name(name, "lora_name")
        if name in self._bases.names or ((owner, name) in self._named and not replaces):
            raise bad_request(
                f"lora_name: {name!r} is taken; unload it first, or choose another name",
                param="lora_name",
            )
        if sum(known != name for known, _ in self.of(owner)) >= _MOST:
            raise bad_request(
                f"{_MOST} adapters of this key are loaded, the most that is allowed; unload one"
            )

    def _source(self, path: str) -> Path:
        """The folder that is meant, links followed. Raises ServingError."""
        try:
            found = (self._folder / path).resolve()
            is_folder = found.is_dir()
        except (OSError, ValueError) as error:
            raise bad_request(f"lora_path: {path!r} is no path", param="lora_path") from error
        if found == self._folder or not found.is_relative_to(self._folder):
            raise bad_request(
                f"lora_path: {path!r} is not below adapters_dir, where adapters are loaded from",
                param="lora_path",
            )
        if not is_folder:
            raise not_found(f"lora_path {path!r}", param="lora_path")
        return found


def _copy(source: Path, copy: Path) -> None:
    """Raises OSError, and then nothing is left."""
    copy.mkdir()
    try:
        for name in _FILES:
            # links could lead to anything
            if (source / name).is_symlink():
                raise OSError(0, f"{name} is a link")
            shutil.copyfile(source / name, copy / name)
    except BaseException:
        shutil.rmtree(copy)
        raise
