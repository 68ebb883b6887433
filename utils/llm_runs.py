"""Runs made of LLM calls: how they end before their end, and what they print at it."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Generator
from pathlib import Path

from utils.llm import LLMClient
from utils.llm_api import LLMError
from utils.llm_batch import STOPPING
from utils.llm_ledger import Ledger
from utils.tables import text_table


@contextlib.contextmanager
def exit_unfinished(run: Path) -> Generator[None]:
    """Ctrl-C ends the program with code 130, an LLMError with code 1; both say how to go on."""
    again = f"Every reply is kept: the same command with log_path={run} goes on from there."
    try:
        yield
    except KeyboardInterrupt:
        print(f"\nStopped. {again}", file=sys.stderr)
        sys.exit(130)
    except LLMError as error:
        print(f"\nError: {error}\n{again}", file=sys.stderr)
        sys.exit(1)


def require_whole(client: LLMClient) -> None:
    """Raises LLMError where a failure ended calls before they were all made: the results there are
    would look like all there is."""
    for (_, role, kind), failures in client.ledger.failures.items():
        if kind in STOPPING and failures.given_up:
            raise LLMError(kind, role, failures.examples[0])


def ledger_text(ledger: Ledger) -> str:
    """What the calls took, and their failures by kind with an example each."""
    text = text_table(ledger.HEADERS, ledger.table())
    if not ledger.failures:
        return text
    return f"{text}\n\n{text_table(ledger.FAILURE_HEADERS, ledger.failure_table())}"
