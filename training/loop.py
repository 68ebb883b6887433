"""What loops share: their resumable state, checkpoints, schedules and safe interruption."""

import contextlib
import json
import logging
import math
import shutil
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from training.api import ServiceClient, TrainingClient
from training.connect import Sampler, SamplingWeights, connect, has_own_engines
from training.models import adapter_fingerprint
from utils.config.entrypoint import as_config_errors
from utils.interrupts import exit_when_stopped, uninterrupted
from utils.json_files import read_json_object
from utils.runs.files import atomic_write_text
from utils.runs.inputs import Input
from utils.runs.run_dir import RunDir
from utils.terminal import setting

logger = logging.getLogger(__name__)
T = TypeVar("T")


def connect_for_run(
    log_path: Path,
    backend: str,
    *,
    base_url: str | None,
    device: str | None,
    dtype: str | None = None,
    num_engines: int | None = None,
    sampler: Sampler = "local",
    sampler_options: Mapping[str, Any] | None = None,
    sampling_weights: SamplingWeights | None = None,
) -> ServiceClient:
    """connect(), where this project's own engines keep their checkpoints inside the run."""
    return connect(
        backend,
        base_url=base_url,
        device=device,
        dtype=dtype,
        num_engines=num_engines,
        checkpoint_dir=log_path.resolve() / "checkpoints" if has_own_engines(backend) else None,
        sampler=sampler,
        sampler_options=sampler_options,
        sampling_weights=sampling_weights,
    )


def require_models(
    run: RunDir,
    service: ServiceClient,
    names: Mapping[str, str],
    adapters: Mapping[str, str] | None = None,
) -> None:
    """Loads the models, `names` by setting, and raises a ConfigError where the run began with
    others, or with other `adapters`. A remote service tells nothing of its weights, so nothing is
    held against it."""
    told = getattr(service, "base_model_input", None)
    if told is None:
        return
    with as_config_errors():
        models = {key: told(name) for key, name in names.items()}
        for name, path in (adapters or {}).items():
            models[name] = Input(path, adapter_fingerprint(path))
        run.require_models(models)


@dataclass
class LoopState:
    """Where a loop is: `step` batches are done; `evaluated` after the last of them.

    `logged` is how long the run's logs were: what a resumed loop does again is logged once.
    """

    step: int = 0
    evaluated: bool = False
    domain: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None
    logged: dict[str, int] = field(default_factory=dict)


class Recorder:
    """Saves and finds a run's checkpoints together with the loop's state."""

    def __init__(self, run: RunDir) -> None:
        self.run = run
        self._saved: tuple[int, bool] | None = None

    def load(self) -> LoopState:
        """The state of the last checkpoint, or a new one; what was logged later is forgotten."""
        last = self.run.last_checkpoint()
        if last is None:
            self.run.truncate_logs({})
            return LoopState()
        file = self._loop_state(last["name"])
        state = LoopState(**read_json_object(file))
        state.checkpoint = last["state_path"]
        self.run.truncate_logs(state.logged)
        self._saved = (state.step, state.evaluated)
        logger.info("resuming after step %d from %s", state.step, state.checkpoint)
        return state

    def save(self, trainer: TrainingClient, state: LoopState, *, keep: int) -> None:
        """One checkpoint of trainer and loop, whole or not at all; then all but the last `keep`
        are deleted. Nothing happens where the last one is of this very state."""
        if self._saved == (state.step, state.evaluated):
            return
        with uninterrupted():
            name = f"{state.step:06d}"
            state.checkpoint = trainer.save_state(name, overwrite=True).result().path
            state.logged = self.run.log_sizes()
            # where the checkpoint lies changes with the run's folder: only checkpoints.jsonl tells
            stored = asdict(replace(state, checkpoint=None))
            atomic_write_text(self._loop_state(name), json.dumps(stored))
            self.run.log_checkpoint(name, state.step, "state", state.checkpoint)
            self._saved = (state.step, state.evaluated)
            if keep:
                self._delete_old(keep)

    def _delete_old(self, keep: int) -> None:
        """Only what lies inside the run: a remote service keeps its own checkpoints."""
        records = self.run.checkpoints()
        newest = list(dict.fromkeys(r["state_path"] for r in reversed(records)))[:keep]
        kept = [r for r in records if r["state_path"] in newest]
        for path in self._files(records) - self._files(kept):
            if not path.is_relative_to(self.run.path.resolve()):
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)

    def _files(self, records: Sequence[Mapping[str, Any]]) -> set[Path]:
        paths = {Path(record["state_path"]) for record in records}
        return paths | {self._loop_state(record["name"]) for record in records}

    def _loop_state(self, name: str) -> Path:
        return self.run.path.resolve() / "loop_state" / f"{name}.json"


Schedule = Literal["constant", "linear", "cosine", "inverse_sqrt"]
# of inverse_sqrt where there is no warm-up to take it from, as in transformers
INVERSE_SQRT_TIMESCALE = 10_000


def learning_rate_factor(
    schedule: Schedule, index: int, total: int, warmup_steps: int = 0
) -> float:
    """The factor at update `index` (from 0) of `total`, as transformers' schedules of these names:
    a linear warm-up from 0, then constant, or down towards 0 along a line or half a cosine, or as
    1/sqrt(1 + updates since the warm-up / T), T the warm-up's length or 10000."""
    if index < warmup_steps:
        return index / warmup_steps
    if schedule == "constant":
        return 1.0
    if schedule == "inverse_sqrt":
        timescale = warmup_steps or INVERSE_SQRT_TIMESCALE
        return 1.0 / math.sqrt(1.0 + (index - warmup_steps) / timescale)
    done = min(1.0, (index - warmup_steps) / max(1, total - warmup_steps))
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def epoch_batches(
    items: Sequence[T], size: int, num_epochs: int, rng: np.random.Generator
) -> list[list[T]]:
    """Batches of `num_epochs` passes, each in a new order; the last of a pass may be smaller."""
    orders = [rng.permutation(len(items)) for _ in range(num_epochs)]
    return [
        [items[i] for i in order[start : start + size]]
        for order in orders
        for start in range(0, len(order), size)
    ]


@contextlib.contextmanager
def exit_on_interrupt(run: RunDir, kept: str | None = None) -> Generator[None, None, None]:
    """Ends the program at Ctrl-C or SIGTERM, and says from where the run can go on: from its last
    checkpoint, or with what is `kept`."""

    def words() -> str:
        last = run.last_checkpoint()
        where = "before the first checkpoint" if last is None else f"after step {last['step']}"
        where = where if kept is None else f"({kept})"
        where_to = setting("log_path", run.path)
        return f"Stopped {where}; the same command with {where_to} goes on from there."

    with exit_when_stopped(words):
        yield
