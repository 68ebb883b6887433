"""Runs made of LLM calls: where their files go, how they end before their end, what they show."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Generator
from pathlib import Path

from utils.config.entrypoint import raise_problems
from utils.interrupts import exit_when_stopped
from utils.llm.api import LLMError
from utils.llm.batch import STOPPING
from utils.llm.client import LLMClient
from utils.llm.ledger import Ledger
from utils.runs.locks import claimed
from utils.runs.report import Report
from utils.runs.tables import text_table
from utils.terminal import setting


def output_paths(
    folder: Path, log_path: Path, params: str, result: str
) -> tuple[Path, Path, list[str]]:
    """`folder`/<run_id>.<params>.yaml and .<result>.yaml, and what is wrong with writing them."""
    run_id = log_path.resolve().name
    params_path, result_path = (folder / f"{run_id}.{what}.yaml" for what in (params, result))
    problems = []
    if result_path.exists():
        problems.append(
            f"{result_path} exists: that run is finished; start a new one without log_path"
        )
    elif params_path.exists() and not (log_path / "config.yaml").exists():
        problems.append(f"{params_path} exists and is another run's; name another log_path")
    return params_path, result_path, problems


@contextlib.contextmanager
def claimed_output(result: Path, check: Callable[[], list[str]]) -> Generator[None]:
    """While the block runs no other process writes `result` or what is named like it beside it, as
    runs of one name in two places would. Raises a ConfigError for a second one, for a folder that
    cannot be written, and with what `check` finds wrong once it is sure that no other runs."""
    lock = result.with_name(f".{result.name}.lock")
    with claimed(lock, f"output_dir={result.parent}, run {result.name.split('.')[0]}"):
        raise_problems(check())
        yield


@contextlib.contextmanager
def exit_unfinished(run: Path) -> Generator[None]:
    """Ctrl-C or SIGTERM ends the program, and an LLMError with code 1; all say how to go on."""
    where = setting("log_path", run)
    again = f"Every reply is kept: the same command with {where} goes on from there."
    try:
        with exit_when_stopped(lambda: f"Stopped. {again}"):
            yield
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


def add_calls(report: Report, ledger: Ledger) -> None:
    """The same for a page."""
    report.heading("Calls")
    report.table(ledger.HEADERS, ledger.table())
    if ledger.failures:
        report.table(ledger.FAILURE_HEADERS, ledger.failure_table(), "Failures by kind.")
