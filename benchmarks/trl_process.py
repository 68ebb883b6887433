"""TRL in a process of its own, as the engine has one: two threads that compute in one process slow
each other down on a CPU."""

import multiprocessing
from collections.abc import Callable
from typing import Any


class TrlProcess:
    """`function(turns, *arguments)` in a fresh process. Before each of its turns it waits on the
    connection `turns`, and then sends what came of it."""

    def __init__(self, function: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._here, there = context.Pipe()
        self._process = context.Process(target=function, args=(there, *arguments))
        self._process.start()
        there.close()

    def turn(self) -> Any:
        """What comes of its next turn. RuntimeError where it has ended."""
        try:
            self._here.send("go on")
            return self._here.recv()
        except (EOFError, OSError):
            raise RuntimeError("TRL's process ended early; its error is above") from None

    def end(self) -> None:
        self._here.close()
        self._process.join()
