"""What came of comparing a model with its own code, kept so that later starts need not compare.

One file in the user's cache, a note for each model: by its configuration, its weights (some of
them, and the size and time of their files), the device, and everything that computes, this engine's
own source included.
"""

import hashlib
import json
import logging
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from training.backends.local.embedded import cache_dir
from utils.runs.files import atomic_write_text
from utils.runs.provenance import package_versions

logger = logging.getLogger(__name__)

NOTES_FILE = "compared.json"
# old notes go first; a lost one costs a comparison
_MAX_NOTES = 200


class Note(NamedTuple):
    """The name of the mode that is right, and the layers that cannot have adapters."""

    mode: str
    left_out: tuple[str, ...]


def versions() -> dict[str, str]:
    """Of what computes."""
    packages = package_versions(("autodidact", "torch", "transformers"))
    return {**packages, "engine": _engine_digest()}


@cache
def _engine_digest() -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def comparison_key(
    path: str | Path, config: Any, weights: str, device: torch.device, dtype: torch.dtype
) -> str:
    """`weights` is their digest."""
    stats = [(file.name, file.stat()) for file in sorted(Path(path).glob("*.*")) if file.is_file()]
    files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
    parts = [config.to_json_string(), files, weights, device.type, str(dtype), versions()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def weights_digest(weights: Iterable[torch.Tensor]) -> str:
    """Of a few values of each, as a GPU has them: the same on all devices. Their order and names do
    not count, versions of transformers differ in them."""
    digests = []
    for weight in weights:
        flat = weight.detach().flatten()
        sample = flat[:: max(1, len(flat) // 64)].bfloat16().float().cpu()
        digests.append(hashlib.sha256(sample.numpy().tobytes()).digest())
    return hashlib.sha256(b"".join(sorted(digests))).hexdigest()[:16]


def notes_file() -> Path:
    return cache_dir() / NOTES_FILE


def read_note(key: str) -> Note | None:
    match _read().get(key):
        case {"mode": str(mode), "left_out": [*names]}:
            return Note(mode, tuple(map(str, names)))
    return None


def write_note(key: str, note: Note) -> None:
    notes = _read()
    notes[key] = {"mode": note.mode, "left_out": list(note.left_out)}
    kept = dict(list(notes.items())[-_MAX_NOTES:])
    try:
        atomic_write_text(notes_file(), json.dumps(kept, indent=0))
    except OSError as error:
        logger.warning("%s: %s; the model is compared again next time", notes_file(), error)


def _read() -> dict[str, Any]:
    """A file that cannot be read, or holds something else, is as good as none: what it said of a
    model is found out again."""
    try:
        found = json.loads(notes_file().read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
