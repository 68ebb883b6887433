"""What scripts/ttt.py needs of a domain."""

from __future__ import annotations

from typing import Protocol

from training.api import ServiceClient
from utils.runs.inputs import Input
from utils.runs.run_dir import RunDir


class TestTime(Protocol):
    """Test-time training in one domain. Its constructor takes the script's config, reads the data
    and raises a ConfigError with everything that is wrong, before any model is loaded."""

    def plan(self) -> str:
        """What would be trained and asked."""
        ...

    def data(self) -> dict[str, Input]:
        """What a run stores of its tasks, so that it goes on with no others."""
        ...

    def load(self, service: ServiceClient, run: RunDir) -> None:
        """Loads the tokenizer and, where tasks are left to do, the model. Raises a ConfigError with
        what only they tell; nothing is written but what the run is told of the model."""
        ...

    def train_and_answer(self, run: RunDir) -> None:
        """Does every task that the run has no record of, and records it; after `load`."""
        ...

    def finish(self, run: RunDir) -> str:
        """Writes log and report of the run's records; what to print."""
        ...
