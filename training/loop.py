"""What loops share: their resumable state, checkpoints, schedules and safe interruption."""

import contextlib
import json
import logging
import math
import shutil
import signal
import threading
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from training.api import TrainingClient
from utils.files import atomic_write_text
from utils.runs import RunDir

logger = logging.getLogger(__name__)


@dataclass
class LoopState:
    """Where a loop is: `step` batches are done; `evaluated` after the last of them."""

    step: int = 0
    evaluated: bool = False
    domain: dict[str, Any] = field(default_factory=dict)
    checkpoint: str | None = None


class Recorder:
    """Saves and finds a run's checkpoints together with the loop's state."""

    def __init__(self, run: RunDir) -> None:
        self.run = run

    def load(self) -> LoopState:
        """The state of the last checkpoint, or a new one; later metrics are forgotten."""
        last = self.run.last_checkpoint()
        if last is None:
            self.run.truncate_metrics(0)
            return LoopState()
        state = LoopState(**json.loads(Path(last["loop_state"]).read_text(encoding="utf-8")))
        state.checkpoint = last["state_path"]
        self.run.truncate_metrics(state.step + 1)
        logger.info("resuming after step %d from %s", state.step, state.checkpoint)
        return state

    def save(self, trainer: TrainingClient, state: LoopState, *, keep: int) -> None:
        """One checkpoint of trainer and loop; then all but the last `keep` are deleted."""
        name = f"{state.step:06d}"
        state.checkpoint = trainer.save_state(name, overwrite=True).result().path
        file = self.run.path / "loop_state" / f"{name}.json"
        file.parent.mkdir(exist_ok=True)
        atomic_write_text(file, json.dumps(asdict(state)))
        self.run.log_checkpoint(name, state.step, "state", state.checkpoint, loop_state=str(file))
        if keep:
            self._delete_old(keep)

    def _delete_old(self, keep: int) -> None:
        """Only folders inside the run: a remote service keeps its own checkpoints."""
        known = [Path(c["state_path"]) for c in self.run.checkpoints()]
        newest = list(dict.fromkeys(reversed(known)))[:keep]
        for path in set(known) - set(newest):
            if path.is_relative_to(self.run.path) and path.is_dir():
                shutil.rmtree(path)


Schedule = Literal["constant", "linear", "cosine"]


def learning_rate_factor(schedule: Schedule, index: int, total: int) -> float:
    """The factor at update `index` (from 0) of `total`; linear and cosine end near 0."""
    if schedule == "constant":
        return 1.0
    done = min(1.0, index / max(1, total))
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


@contextlib.contextmanager
def uninterrupted() -> Generator[None, None, None]:
    """Ctrl-C inside waits until the block is done, so that a step happens whole or not at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _frame: pressed.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed:
        raise KeyboardInterrupt
