"""A run's page while it goes on, when it is stopped, and when it is finished."""

from pathlib import Path

import pytest

from utils.runs import live_report
from utils.runs.live_report import LiveReport
from utils.runs.report import Report

RELOADS = '<meta http-equiv="refresh" content="10">'


class Run:
    """Steps that are done, and how often a page was made of them."""

    def __init__(self, path: Path) -> None:
        self.step, self.made = 0, 0
        self.page = path / "report.html"
        self.live = LiveReport(self.page, self.make, "step", lambda: self.step, 30)

    def make(self) -> Report:
        self.made += 1
        report = Report("a run")
        report.paragraph(f"made of {self.step} steps")
        return report

    def text(self) -> str:
        return self.page.read_text(encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(live_report, "MAX_SHARE", float("inf"))
    return Run(tmp_path)


def test_a_running_page_reloads_itself_and_a_finished_one_does_not(run: Run) -> None:
    with run.live as live:
        assert "running, step 0 of 30 · " in run.text() and RELOADS in run.text()
        run.step = 12
        live.refresh()
        assert "running, step 12 of 30 · " in run.text() and "made of 12 steps" in run.text()
    assert run.live.finish() == run.page
    assert "step 12 of 30" not in run.text() and RELOADS not in run.text()
    assert "made of 12 steps" in run.text()


def test_an_interrupted_page_shows_all_there_is(run: Run) -> None:
    with pytest.raises(KeyboardInterrupt), run.live:
        run.step = 7
        raise KeyboardInterrupt
    assert "stopped, step 7 of 30 · " in run.text() and RELOADS not in run.text()
    assert "made of 7 steps" in run.text()


def test_an_error_leaves_the_last_page_as_it_was_but_stopped(run: Run) -> None:
    with pytest.raises(ValueError, match="broken"), run.live:
        run.step = 7
        raise ValueError("broken")
    assert "stopped, step 7 of 30 · " in run.text() and RELOADS not in run.text()
    assert "made of 0 steps" in run.text() and run.made == 1


def test_pages_take_no_more_than_their_share_of_the_time(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_report, "MAX_SHARE", 0.05)
    now = [0.0]
    monkeypatch.setattr(live_report.time, "perf_counter", lambda: now[0])
    make = run.make

    def slow() -> Report:
        now[0] += 1.0
        return make()

    run.live = LiveReport(run.page, slow, "step", lambda: run.step, 30)
    with run.live as live:
        for second in range(1, 41):
            now[0] = max(now[0], float(second))
            live.refresh()
    # the first for nothing, the second at once, others when their seconds are a twentieth
    assert run.made == 4
