"""Ctrl-C and SIGTERM, which mean the same: keep what there is, and end."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Generator
from types import FrameType

STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextlib.contextmanager
def exit_when_stopped(words: Callable[[], str]) -> Generator[None, None, None]:
    """Inside, the first SIGTERM does what Ctrl-C does; a KeyboardInterrupt that leaves the block
    ends the program with code 130, or 143 after a SIGTERM, and `words` on stderr."""
    terminated: list[int] = []

    def as_ctrl_c(number: int, frame: FrameType | None) -> None:
        terminated.append(number)
        # who stops a whole group of processes reaches this one and `uv run`, which passes it on
        if len(terminated) > 1:
            return
        handler = signal.getsignal(signal.SIGINT)
        # asyncio has one of its own; and Ctrl-C is ignored in the background of a shell script
        if callable(handler):
            handler(signal.SIGINT, frame)
        else:
            raise KeyboardInterrupt

    with _handling(signal.SIGTERM, as_ctrl_c):
        try:
            yield
        except KeyboardInterrupt:
            print(f"\n{words()}", file=sys.stderr)
            sys.exit(128 + (signal.SIGTERM if terminated else signal.SIGINT))


@contextlib.contextmanager
def uninterrupted() -> Generator[None, None, None]:
    """Ctrl-C and a SIGTERM that does the same wait until the block is done, so that a step happens
    whole or not at all."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # neither what is ignored nor what ends the process at once
    before = {n: handler for n in STOPPING if callable(handler := signal.getsignal(n))}
    pressed: list[int] = []
    for number in before:
        signal.signal(number, lambda number, _frame: pressed.append(number))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if pressed:
        before[signal.Signals(pressed[0])](pressed[0], None)


@contextlib.contextmanager
def _handling(
    number: signal.Signals, handler: Callable[[int, FrameType | None], None]
) -> Generator[None, None, None]:
    """Where the process does not ignore the signal, and can have handlers: in its main thread."""
    before = signal.getsignal(number)
    in_main = threading.current_thread() is threading.main_thread()
    if before is signal.SIG_IGN or not in_main:
        yield
        return
    signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)
