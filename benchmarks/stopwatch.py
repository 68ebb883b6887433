"""Where a computation's time goes, by named parts: exclusive seconds of functions that call others.

For code on one thread that waits for every result, as the engine's worker does on a CPU.
"""

import functools
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple


class Part(NamedTuple):
    """What `owner.function` spends counts for `name`; with `whole`, so does all that it calls."""

    name: str
    owner: Any
    function: str
    whole: bool = False


class Stopwatch:
    """`seconds` of each part inside the first one of those given, and how often that was called.

    What a part spends in another counts for that one alone.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls = 0
        self._running: list[str] = []
        self._since = 0.0
        self._in_whole = False

    @contextmanager
    def running(self, parts: list[Part]) -> Iterator[None]:
        """Inside, the parts' functions are replaced where they are looked up."""
        originals = [getattr(part.owner, part.function) for part in parts]
        for part, original in zip(parts, originals, strict=True):
            setattr(part.owner, part.function, self._timed(part, original, part is parts[0]))
        try:
            yield
        finally:
            for part, original in zip(parts, originals, strict=True):
                setattr(part.owner, part.function, original)

    def _timed(self, part: Part, function: Callable[..., Any], first: bool) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._in_whole or not (first or self._running):
                return function(*args, **kwargs)
            self.calls += first
            self._turn()
            self._running.append(part.name)
            self._in_whole = part.whole
            try:
                return function(*args, **kwargs)
            finally:
                self._in_whole = False
                self._turn()
                self._running.pop()

        return timed

    def _turn(self) -> None:
        """What has passed since the last turn belongs to what ran until now."""
        now = time.perf_counter()
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now
