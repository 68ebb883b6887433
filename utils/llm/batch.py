"""Many LLM calls side by side, under one progress bar, that one failure does not end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextvars import ContextVar
from typing import TypeVar

from utils.llm.api import Kind, LLMError
from utils.runs.progress import Progress, progress

T = TypeVar("T")
logger = logging.getLogger(__name__)

# what the next call would meet as well
STOPPING: frozenset[Kind] = frozenset({"auth", "payment", "bad_request", "not_found", "budget"})


class Batch:
    """What the calls of one `gather_counted` have in common."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.cause: LLMError | None = None
        self._stopped = asyncio.Event()

    def stop(self, cause: LLMError) -> None:
        """Let no call begin that has not."""
        if self.cause is None:
            self.cause = cause
            self._stopped.set()

    async def sleep(self, seconds: float) -> None:
        """Wait, but not for calls that will not begin any more."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), seconds)


current_batch: ContextVar[Batch | None] = ContextVar("current_batch", default=None)


async def gather_counted(
    calls: Sequence[Callable[[], Awaitable[T]]], desc: str, *, unit: str = "calls"
) -> list[T | LLMError]:
    """What `calls` return, in their order, with the LLMError in the place of each that raised one.

    All are begun at once; it is the LLMClient they use that lets only so many through. An error
    that the rest would meet too (STOPPING) lets those in flight finish; what needs another call
    after that fails with kind not_started, except for answers from the cache. Any other exception
    is a bug: it cancels the rest and is raised.
    """
    if current_batch.get() is not None:
        raise RuntimeError("gather_counted inside a call of gather_counted")
    failures: Counter[str] = Counter()
    with progress(len(calls), desc, unit) as bar:
        batch = Batch(bar)

        async def run(call: Callable[[], Awaitable[T]]) -> T | LLMError:
            current_batch.set(batch)
            try:
                return await call()
            except LLMError as error:
                if error.kind in STOPPING:
                    batch.stop(error)
                failures[error.kind] += 1
                bar.add(failed=str(failures.total()))
                return error
            finally:
                bar.update()

        tasks = [asyncio.create_task(run(call)) for call in calls]
        try:
            if tasks:
                await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done():
                    task.result()
            results = [task.result() for task in tasks]
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    if failures:
        counts = ", ".join(f"{kind} {count}" for kind, count in failures.most_common())
        logger.warning("%s: %d of %d failed (%s)", desc, failures.total(), len(calls), counts)
    return results
