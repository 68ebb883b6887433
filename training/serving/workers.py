"""Threads for what would hold up the server's event loop, and tasks that nobody awaits."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def new_future() -> "asyncio.Future[Any]":
    """Of the loop that runs."""
    return asyncio.get_running_loop().create_future()


class Workers:
    """Checks of requests and loading of models have threads of their own: while a model loads,
    requests to others are still checked. Few, since they share the cores with the engine."""

    def __init__(self) -> None:
        self._checks = ThreadPoolExecutor(2, "serving-check")
        self._loads = ThreadPoolExecutor(2, "serving-load")
        # the loop alone would let a task be collected that nobody holds
        self._tasks: set[asyncio.Task[Any]] = set()

    async def check(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._checks, call)

    async def load(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._loads, call)

    def begin(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Ends the tasks; threads end after what they are on."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._checks.shutdown(wait=False, cancel_futures=True)
        self._loads.shutdown(wait=False, cancel_futures=True)
