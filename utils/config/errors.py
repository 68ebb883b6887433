"""What is wrong with the user's settings, all of it told together."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence

# says on its own, past the root logger, that a request failed and is tried again
HUB_LOGGER = "huggingface_hub.utils._http"


# logger.info(..., extra=AT_ONCE): that something is waited for, which held_log() shows at once
AT_ONCE = {"at_once": True}


class ConfigError(ValueError):
    """What is wrong with the user's settings: `problems`, each one a message of its own."""

    def __init__(self, problems: Sequence[str] | str) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__(self.problems)

    def __str__(self) -> str:
        if len(self.problems) == 1:
            return self.problems[0]
        items = (problem.replace("\n", "\n    ") for problem in self.problems)
        return f"{len(self.problems)} problems:" + "".join(f"\n  - {item}" for item in items)


def raise_problems(problems: Sequence[str], at_most: int | None = None) -> None:
    """Raise one ConfigError with `problems`, with the first `at_most` of them and the number of the
    others; nothing happens when there are none."""
    if at_most is not None and len(problems) > at_most:
        problems = [*problems[:at_most], f"and {len(problems) - at_most} more"]
    if problems:
        raise ConfigError(problems)


@contextlib.contextmanager
def as_config_errors() -> Iterator[None]:
    """For calls whose ValueError, ImportError or OSError says what is wrong with the settings."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, ImportError, OSError) as error:
        raise ConfigError(str(error)) from error


class _Held(logging.Handler):
    """Instead of `handlers`."""

    def __init__(self, handlers: Sequence[logging.Handler]) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self._handlers = handlers

    def emit(self, record: logging.LogRecord) -> None:
        if not hasattr(record, "at_once"):
            self.records.append(record)
            return
        for handler in self._handlers:
            if record.levelno >= handler.level:
                handler.handle(record)


@contextlib.contextmanager
def held_log() -> Iterator[None]:
    """What is logged inside is shown when the block ends, and not at all where that is by a
    ConfigError: an error of the settings comes alone. But for what is logged with AT_ONCE."""
    root, hub = logging.getLogger(), logging.getLogger(HUB_LOGGER)
    handlers = list(root.handlers)
    held = _Held(handlers)
    of_hub = list(hub.handlers), hub.propagate
    root.handlers[:] = hub.handlers[:] = [held]
    hub.propagate = False
    try:
        yield
    except ConfigError:
        held.records.clear()
        raise
    finally:
        root.handlers[:] = handlers
        hub.handlers[:], hub.propagate = of_hub
        for record in held.records:
            root.handle(record)


def problems_of(*checks: Callable[[], object]) -> list[str]:
    """What those checks complain of that raise a ValueError, an ImportError or an OSError. What a
    check logs that complains is not shown."""
    problems: list[str] = []
    for check in checks:
        try:
            with held_log(), as_config_errors():
                check()
        except ConfigError as error:
            problems += error.problems
    return problems
