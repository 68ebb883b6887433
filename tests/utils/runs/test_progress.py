"""Progress off and on a terminal, and phases of time."""

import io
import logging
import sys
import time

import pytest

from utils.runs import progress as module
from utils.runs.progress import Stopwatch, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_off_a_terminal_lines_are_rare(capsys, monkeypatch):
    with progress(3, "train", "step") as bar:
        for _ in range(3):
            bar.add(tokens=1000, loss=0.12345)
            bar.update()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("train: 3/3 step, ") and "tok/s=" in line and "loss=0.1235" in line
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.0)
    with progress(3, "train", "step", leave=False) as bar:
        bar.update()
        bar.update()
    out = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in out] == ["train: 1/3 step", "train: 2/3 step"]
    assert "left" in out[0]


def test_speed_and_time_left_ignore_what_an_earlier_process_did(monkeypatch):
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    with progress(100, "train", "step", initial=60, leave=False) as bar:
        now = 110.0
        bar.add(tokens=5000)
        bar.update(10)
        assert bar.tokens_per_second == 500
        assert (
            bar.line() == "train: 70/100 step, 1 step/s, tok/s=500, 0:00:10 elapsed, 0:00:30 left"
        )
        now = 120.0
    assert bar.n == 70


def test_unknown_total(capsys):
    with progress(None, "samples", "sample") as bar:
        bar.update(5)
    assert capsys.readouterr().err.startswith("samples: 5 sample, ")


def test_a_terminal_gets_a_bar_that_log_lines_do_not_tear(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    root = logging.getLogger()
    handlers = root.handlers[:]
    with progress(2, "train", "step") as bar:
        bar.add(tokens=10, loss=0.5)
        bar.update(2)
    assert root.handlers == handlers
    text = terminal.getvalue()
    assert "train: 100%" in text and "2/2" in text and "tok/s=" in text and "loss=0.5" in text


def test_an_error_inside_closes_and_passes(capsys):
    with pytest.raises(KeyError), progress(3, "train", "step") as bar:
        bar.update()
        raise KeyError("x")
    assert "1/3" in capsys.readouterr().err


def test_stopwatch_adds_up_by_phase(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    stopwatch = Stopwatch()
    for _ in range(2):
        with stopwatch("outer"):
            now += 1
            with stopwatch("inner"):
                now += 2
    with pytest.raises(KeyError), stopwatch("failed"):
        now += 5
        raise KeyError
    assert stopwatch.pop() == {"inner": 4, "outer": 6, "failed": 5}
    assert stopwatch.pop() == {}
