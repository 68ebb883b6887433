"""Progress bars with tokens per second and time left, and wall time by phase."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Generator
from typing import Any

SECONDS_BETWEEN_LINES = 20.0


class Progress:
    """What `progress` yields: `update` counts units, `add` counts tokens and shows values."""

    def __init__(self, total: int | None, desc: str, unit: str, initial: int = 0) -> None:
        self.total, self.desc, self.unit = total, desc, unit
        self.n = self._initial = initial
        self.tokens = 0
        self._values: dict[str, Any] = {}
        self._started = time.perf_counter()

    def update(self, n: int = 1) -> None:
        """`n` more units are done."""
        self.n += n
        self._show(n)

    def add(self, *, tokens: int = 0, **values: float | str) -> None:
        """`tokens` more were processed; `values` (a loss, a reward) replace those shown so far."""
        self.tokens += tokens
        self._values.update(values)
        self._show(0)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / max(self.elapsed, 1e-9)

    def line(self) -> str:
        """The state in one line of text, for logs."""
        done = self.n - self._initial
        rate = done / max(self.elapsed, 1e-9)
        of_total = "" if self.total is None else f"/{self.total}"
        parts = [f"{self.n}{of_total} {self.unit}", f"{rate:.3g} {self.unit}/s"]
        parts += [f"{name}={value}" for name, value in self._postfix().items()]
        parts.append(f"{_clock(self.elapsed)} elapsed")
        if self.total is not None and done and self.n < self.total:
            parts.append(f"{_clock((self.total - self.n) / rate)} left")
        return f"{self.desc}: {', '.join(parts)}"

    def _postfix(self) -> dict[str, str]:
        shown = {"tok/s": f"{self.tokens_per_second:,.0f}"} if self.tokens else {}
        for name, value in self._values.items():
            shown[name] = f"{value:.4g}" if isinstance(value, float) else str(value)
        return shown

    def _show(self, n: int) -> None:
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError


class _Lines(Progress):
    """For logs and pipes, where a redrawn bar would be noise."""

    def __init__(self, *args: Any, last_line: bool) -> None:
        super().__init__(*args)
        self._last_line = last_line
        self._printed = self._started

    def _show(self, n: int) -> None:
        now = time.perf_counter()
        if now - self._printed >= SECONDS_BETWEEN_LINES:
            self._printed = now
            print(self.line(), file=sys.stderr, flush=True)

    def _close(self) -> None:
        if self._last_line:
            print(self.line(), file=sys.stderr, flush=True)


class _Bar(Progress):
    def __init__(self, *args: Any, leave: bool) -> None:
        super().__init__(*args)
        from tqdm import tqdm

        self._bar = tqdm(
            total=self.total,
            desc=self.desc,
            unit=self.unit,
            initial=self.n,
            leave=leave,
            dynamic_ncols=True,
        )

    def _show(self, n: int) -> None:
        self._bar.set_postfix(self._postfix(), refresh=False)
        if n:
            self._bar.update(n)
        else:
            self._bar.refresh()

    def _close(self) -> None:
        self._bar.close()


@contextlib.contextmanager
def progress(
    total: int | None, desc: str, unit: str = "it", *, initial: int = 0, leave: bool = True
) -> Generator[Progress, None, None]:
    """A bar on a terminal; elsewhere a line on stderr every 20 seconds and one at the end.

    `initial` units were done by an earlier process and do not count for the speed. With
    `leave=False` the bar vanishes, and the last line stays away: for loops inside loops.
    """
    with contextlib.ExitStack() as stack:
        if sys.stderr is not None and sys.stderr.isatty():
            from tqdm.contrib.logging import logging_redirect_tqdm

            # a log line in the middle of a bar would tear it
            stack.enter_context(logging_redirect_tqdm())
            bar: _Bar | _Lines = _Bar(total, desc, unit, initial, leave=leave)
        else:
            bar = _Lines(total, desc, unit, initial, last_line=leave)
        stack.callback(bar._close)
        yield bar


class Stopwatch:
    """Wall time by phase: `with stopwatch("sampling"): ...`; phases may nest and repeat."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def __call__(self, phase: str) -> Generator[None, None, None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            passed = time.perf_counter() - started
            self._seconds[phase] = self._seconds.get(phase, 0.0) + passed

    def pop(self) -> dict[str, float]:
        """Seconds by phase since the last pop."""
        seconds, self._seconds = self._seconds, {}
        return seconds


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
