"""report.html while its run goes on: a browser's tab that shows it is a dashboard.

with LiveReport(run.path / "report.html", make_report, "step", lambda: state.step, 30) as live:
    ...
    live.refresh()
live.finish()
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from utils.runs.report import Report

RELOAD_SECONDS = 10
# of a run's time, what its pages may take but for the first, which waits for what draws them: small
# networks take steps faster than plots are drawn
MAX_SHARE = 0.05


class LiveReport:
    """Writes what `make` makes of the run so far, with how far it is at the top: `done()` of
    `total` units, or of more where more are done. A block that an exception leaves, Ctrl-C say, is
    told as stopped, and its page no longer reloads itself."""

    def __init__(
        self,
        path: Path,
        make: Callable[[], Report],
        unit: str,
        done: Callable[[], int],
        total: int,
        *,
        orderly: tuple[type[BaseException], ...] = (KeyboardInterrupt,),
    ) -> None:
        """After exceptions that are not `orderly`, what the page is made of may be in no state to
        be shown, so its last state stays."""
        self.path = path
        self._make = make
        self._unit, self._done, self._total = unit, done, total
        self._orderly = orderly
        self._last: Report | None = None
        self._started = time.perf_counter()
        self._seconds = 0.0

    def refresh(self) -> None:
        """A new page; left out where pages have taken more than MAX_SHARE of the run's time."""
        started = time.perf_counter()
        is_first = self._last is None
        if is_first or self._seconds <= MAX_SHARE * (started - self._started):
            self._last = self._make()
            self._write(f"running, {self._place()}", reload=True)
            if not is_first:
                self._seconds += time.perf_counter() - started

    def finish(self) -> Path:
        """The page of the finished run; its path. It stays, however the block ends."""
        self._make().write(self.path)
        self._last = None
        return self.path

    def __enter__(self) -> Self:
        self.refresh()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None or self._last is None:
            return
        if issubclass(kind, self._orderly):
            self._last = self._make()
        self._write(f"stopped, {self._place()}", reload=False)

    def _place(self) -> str:
        done = self._done()
        return f"{self._unit} {done} of {max(done, self._total)}"

    def _write(self, status: str, *, reload: bool) -> None:
        assert self._last is not None
        now = datetime.datetime.now(datetime.UTC)
        self._last.status = f"{status} · {now:%Y-%m-%d %H:%M:%S} UTC"
        self._last.reload_seconds = RELOAD_SECONDS if reload else None
        self._last.write(self.path)
