"""report.html of a run of LLM calls: while they are made, what they took and the newest replies.

with LiveCalls(run, "Evaluation", total=60) as calls:
    client = LLMClient(endpoints, watcher=calls)
    ...
    calls.finish(report)
"""

from __future__ import annotations

from collections import deque
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from utils.llm.api import LLMError, Reply
from utils.llm.ledger import Ledger
from utils.llm.runs import add_calls
from utils.runs.live_report import LiveReport
from utils.runs.report import Report
from utils.runs.run_dir import RunDir

NEWEST = 12
CHARS = 2000


class _Shown(NamedTuple):
    stage: str
    role: str
    text: str


class LiveCalls:
    """A client's `watcher`. `total` is how many calls there will be, as far as is known before; a
    run that goes on counts those that its cache answers."""

    def __init__(self, run: RunDir, title: str, total: int) -> None:
        self.ledger = Ledger()
        self._title, self._run_id = title, run.run_id
        self._num_done = 0
        self._newest: deque[_Shown] = deque(maxlen=NEWEST)
        self._final: Report | None = None
        path = run.path / "report.html"
        self._live = LiveReport(
            *(path, self._page, "call", lambda: self._num_done, total),
            orderly=(KeyboardInterrupt, LLMError),
        )

    def answered(self, stage: str, role: str, outcome: Reply | LLMError) -> None:
        """Notes what came of a call, and refreshes the page now and then."""
        self._num_done += 1
        text = f"failed: {outcome}" if isinstance(outcome, LLMError) else outcome.text
        self._newest.appendleft(_Shown(stage, role, text))
        self._live.refresh()

    def finish(self, report: Report) -> Path:
        """Writes the page of the finished run; its path."""
        self._final = report
        return self._live.finish()

    def _page(self) -> Report:
        if self._final is not None:
            return self._final
        report = Report(self._title, self._run_id)
        report.tiles(
            [
                ("calls done", self._num_done),
                ("calls failed", self.ledger.given_up),
                ("cost", f"${self.ledger.cost_usd:.4g}"),
            ]
        )
        add_calls(report, self.ledger)
        if self._newest:
            report.heading("Newest replies")
        for shown in self._newest:
            text = shown.text if len(shown.text) <= CHARS else f"{shown.text[:CHARS]} ..."
            report.pre(text, ", ".join(dict.fromkeys((shown.stage, shown.role))))
        return report

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._live.__exit__(kind, error, traceback)
