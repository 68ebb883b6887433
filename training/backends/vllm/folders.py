"""Adapters as folders for vLLM, a new one with a name and a number of its own for each version:
vLLM knows an adapter by its name and its path alone, and keeps what it computed for them."""

import contextlib
import itertools
import secrets
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path

from training.backends.local.adapters import AdapterWeights
from training.backends.local.checkpoints import save_adapter
from training.backends.local.engine import Engine
from utils.config.errors import ConfigError
from utils.runs.locks import Claim

MEMORY = Path("/dev/shm")
PREFIX = "autodidact-vllm-"
# of what is free in memory, what one adapter may take
_SHARE = 0.25


class AdapterFolder:
    """One version. `on_release`, which must return at once, gets its number when nobody holds it
    any more; then the folder goes."""

    def __init__(self, number: int, path: Path, on_release: Callable[[int], None]) -> None:
        self.key = (f"adapter-{number}", number, str(path))
        weakref.finalize(self, _release, number, path, on_release)

    @property
    def path(self) -> Path:
        return Path(self.key[2])


def _release(number: int, path: Path, on_release: Callable[[int], None]) -> None:
    on_release(number)
    # what vLLM has loaded it needs no longer
    shutil.rmtree(path, ignore_errors=True)


class AdapterFolders:
    """Private folders, in memory where a file system there has the room, else below `on_disk`. What
    killed processes have left in the same place goes when they are made."""

    def __init__(self, on_disk: Path, on_release: Callable[[int], None]) -> None:
        self._on_disk = on_disk
        self._on_release = on_release
        self._numbers = itertools.count(1)
        self._roots: dict[Path, Path] = {}
        self._removals: list[weakref.finalize] = []

    def write(self, engine: Engine, weights: AdapterWeights) -> AdapterFolder:
        number = next(self._numbers)
        root = self._root(weights.flat.numel() * weights.flat.element_size())
        path = root / f"adapter-{number}"
        save_adapter(
            path,
            weights.config,
            weights.layers,
            engine.decoder,
            engine.model_name,
            optimizer=None,
            overwrite=False,
        )
        return AdapterFolder(number, path, self._on_release)

    def close(self) -> None:
        for remove in self._removals:
            remove()

    def _root(self, size: int) -> Path:
        parent = self._on_disk
        if MEMORY.is_dir() and size < _SHARE * shutil.disk_usage(MEMORY).free:
            parent = MEMORY
        if parent not in self._roots:
            parent.mkdir(parents=True, exist_ok=True)
            _remove_left(parent)
            root = parent / f"{PREFIX}{secrets.token_hex(4)}"
            # held before the folder is there, by which others find it
            claim = Claim(_lock_of(root), f"the folder {root}")
            root.mkdir(mode=0o700)
            self._removals.append(weakref.finalize(self, _remove, root, claim))
            self._roots[parent] = root
        return self._roots[parent]


def _lock_of(root: Path) -> Path:
    return root.with_suffix(".lock")


def _remove(root: Path, claim: Claim) -> None:
    shutil.rmtree(root, ignore_errors=True)
    claim.release()


def _remove_left(parent: Path) -> None:
    """Folders whose process does not live any more."""
    for root in parent.glob(f"{PREFIX}*"):
        # what lives is claimed, and another user's cannot be
        with contextlib.suppress(ConfigError):
            if root.is_dir() and _lock_of(root).exists():
                _remove(root, Claim(_lock_of(root), f"the folder {root}"))
