"""How engines are started, spoken to and ended: what the pool needs of processes, here or far."""

import os
from typing import Protocol


class EngineLostError(Exception):
    """The engine is gone, or silent, or never began; what it was asked may or may not be done."""


class EngineLink(Protocol):
    """One engine that runs."""

    @property
    def pid(self) -> int: ...

    @property
    def place(self) -> str:
        """The machine it is on, for messages."""
        ...

    def run(self, message: bytes) -> bytes:
        """Waits for the engine's answer. Raises EngineLostError."""
        ...

    def kill(self) -> None:
        """Ends it by force: when this returns it writes nothing more, and its device is free."""
        ...


class Transport(Protocol):
    """Makes engines, and never a second time by itself: an engine that was made again without its
    adapters would answer as if nothing had happened."""

    def start(self, index: int) -> EngineLink:
        """A new engine number `index`, without any state. Raises EngineLostError where it did not
        begin, and ValueError where none can."""
        ...

    def close(self) -> None:
        """After all links are killed."""
        ...


def share_of_cores(num_engines: int) -> int:
    """How many of this machine's cores each of its engines has. Raises ValueError for more engines
    than cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    share = (cores or 1) // num_engines
    if share == 0:
        raise ValueError(
            f"num_engines={num_engines}: this machine has {cores} cores, and each engine needs "
            "one; use fewer, or backend=ray on several machines"
        )
    return share
