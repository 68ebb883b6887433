"""An engine's side of the pool: runs batches of requests on a local service of its own."""

import contextlib
import logging
import os
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.api import APIFuture, RequestFailedError
from training.backends.pool.messages import (
    Answer,
    Kept,
    LogLine,
    Outcome,
    Request,
    packed,
    portable,
    unpacked,
)
from utils.openmp import bound_spinning

if TYPE_CHECKING:
    from training.backends.local.service import LocalServiceClient

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class EngineSettings:
    """What an engine is made with. `folder` is the driver's working directory, which relative
    names of models mean. With `own_device` each engine takes the GPU of its own number. `threads`:
    where the environment is not the driver's to choose."""

    checkpoint_dir: Path
    folder: Path
    num_engines: int
    device: str | None = None
    dtype: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    own_device: bool = True
    threads: int | None = None
    log_level: int = logging.WARNING


def begin(index: int, settings: EngineSettings) -> "EngineHost":
    """The engine of this process, which is its own."""
    if settings.folder.is_dir():
        os.chdir(settings.folder)
    logging.getLogger().setLevel(settings.log_level)
    if settings.threads is not None:
        # before torch is imported
        os.environ |= dict.fromkeys(THREADS, str(settings.threads))
    return EngineHost(index, settings)


class EngineHost:
    """What `settings` describe, as engine number `index`; nothing heavy is loaded before the first
    request needs it."""

    def __init__(self, index: int, settings: EngineSettings) -> None:
        self._index = index
        self._settings = settings
        self._kept: dict[str, Any] = {}
        self._service: LocalServiceClient | None = None

    def run(self, message: bytes) -> bytes:
        """Calls all requests of a batch, so that what can runs together, and waits for all."""
        started = time.perf_counter()
        requests: list[Request] = unpacked(message)
        with _captured_log() as log:
            called = [self._outcome(request, self._call) for request in requests]
            outcomes = [
                outcome if outcome.error else self._outcome(request, self._settled, outcome.value)
                for request, outcome in zip(requests, called, strict=True)
            ]
        return packed(Answer(outcomes, time.perf_counter() - started, log))

    def _outcome(self, request: Request, step: Callable[..., Any], *arguments: Any) -> Outcome:
        try:
            return Outcome(step(request, *arguments), None)
        except Exception as error:
            # whatever it is belongs to who asked, on the other side
            return Outcome(None, portable(error, f"engine {self._index}"))

    def _call(self, request: Request) -> Any:
        if request.kind == "release":
            self._kept.pop(request.method, None)
            return None
        own = getattr(self, f"_{request.method}", None) if request.target is None else None
        if own is not None:
            return own(*request.args)
        if request.target is not None and request.target not in self._kept:
            raise RequestFailedError(
                f"engine {self._index} does not have what this asks; the log says why", "server"
            )
        holder = self._open() if request.target is None else self._kept[request.target]
        return getattr(holder, request.method)(*request.args, **request.kwargs)

    def _settled(self, request: Request, value: Any) -> Any:
        if isinstance(value, APIFuture):
            value = value.result()
        if request.keep_as is None:
            return value
        self._kept[request.keep_as] = value
        info = value.get_info() if hasattr(value, "get_info") else None
        base_model = value.get_base_model() if info is None else info.model_name
        return Kept(base_model, getattr(value, "dtype", None), info)

    def _open(self) -> "LocalServiceClient":
        if self._service is None:
            # before torch is imported
            bound_spinning()
            from training.backends.local.service import LocalServiceClient

            settings = self._settings
            self._service = LocalServiceClient(
                checkpoint_dir=settings.checkpoint_dir,
                device=self._device(),
                dtype=settings.dtype,
                **settings.options,
            )
        return self._service

    def _device(self) -> str | None:
        """Raises ValueError where there are fewer GPUs than engines."""
        settings = self._settings
        if settings.device not in (None, "cuda") or not settings.own_device:
            return settings.device
        import torch

        if not (count := torch.cuda.device_count()):
            return settings.device
        if settings.num_engines > count:
            raise ValueError(
                f"num_engines={settings.num_engines}: this machine has {count} GPUs, one for each "
                "engine; use fewer, or device=cpu"
            )
        return f"cuda:{self._index}"

    # --------------------------------------------------- asked of the engine, not of its service

    def _load(self, base_model: str) -> None:
        self._open().engine(base_model)

    def _probe(self, theirs: Path, ours: Path) -> bool:
        """Whether a file of the driver's is here; if so, one of this engine's is written."""
        if not theirs.is_file():
            return False
        ours.write_text(str(self._index), encoding="utf-8")
        return True


class _Collector(logging.Handler):
    def __init__(self, lines: list[LogLine]) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(LogLine(record.name, record.levelno, record.getMessage()))


@contextlib.contextmanager
def _captured_log() -> Generator[list[LogLine], None, None]:
    """What is logged meanwhile; the driver tells it."""
    lines: list[LogLine] = []
    root, handler = logging.getLogger(), _Collector(lines)
    root.addHandler(handler)
    try:
        yield lines
    finally:
        root.removeHandler(handler)
