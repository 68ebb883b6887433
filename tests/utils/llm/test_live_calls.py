"""The page of a run of LLM calls while they are made.

uv run pytest tests/utils/llm/test_live_calls.py
"""

import asyncio
from pathlib import Path

import pytest

from utils.llm.api import LLMError, Reply, Request, Role, Usage
from utils.llm.client import LLMClient, stage
from utils.llm.live_calls import LiveCalls
from utils.llm.retry import RetryPolicy
from utils.runs import live_report
from utils.runs.report import Report
from utils.runs.run_dir import RunDir

RELOADS = '<meta http-equiv="refresh" content="10">'


class Endpoint:
    """Answers with what it was asked, and with an error where that is asked for; notes the page
    as it was when a call began."""

    def __init__(self, page: Path) -> None:
        self.role = Role("writer", "model", "http://127.0.0.1:1")
        self.page = page
        self.seen: list[str] = []

    async def complete(self, request: Request) -> Reply:
        self.seen.append(self.page.read_text(encoding="utf-8"))
        said = request.messages[-1]["content"]
        if said == "refuse":
            raise LLMError("refusal", "writer", "no <b>way</b>")
        return Reply(f"said {said}", "stop", Usage(1, 1, 0.25), "model")

    async def close(self) -> None:
        pass


async def ask(endpoint: Endpoint, calls: LiveCalls, *texts: str, cache: Path | None = None) -> None:
    retry = RetryPolicy()
    async with LLMClient([endpoint], cache_path=cache, retry=retry, watcher=calls) as client:
        for text in texts:
            with stage("stories"):
                try:
                    await client.complete("writer", [{"role": "user", "content": text}])
                except LLMError:
                    continue


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    monkeypatch.setattr(live_report, "MAX_SHARE", float("inf"))
    return RunDir.open("x", tmp_path / "run", {})


def test_the_page_follows_the_calls(run: RunDir) -> None:
    page = run.path / "report.html"
    endpoint = Endpoint(page)
    with LiveCalls(run, "Stories", total=4) as calls:
        asyncio.run(ask(endpoint, calls, "one <i>", "refuse", "three"))
        first, second, third = endpoint.seen
        assert "running, call 0 of 4 · " in first and "Newest replies" not in first
        assert "running, call 1 of 4 · " in second and "said one &lt;i&gt;" in second
        assert "running, call 2 of 4 · " in third and "no &lt;b&gt;way" in third
        shown = page.read_text(encoding="utf-8")
        assert "running, call 3 of 4 · " in shown and RELOADS in shown
        # the newest first
        assert shown.index("said three") < shown.index("said one")
        assert "stories, writer" in shown and "$0.5" in shown
        assert calls.finish(Report("Whole", "run")) == page
    shown = page.read_text(encoding="utf-8")
    assert "Whole" in shown and "call 3" not in shown and RELOADS not in shown


def test_calls_from_the_cache_count_and_more_than_planned_are_told(run: RunDir) -> None:
    page = run.path / "report.html"
    cache = run.path / "calls.jsonl"
    for first in (0, 2):
        endpoint = Endpoint(page)
        with LiveCalls(run, "Stories", total=2) as calls:
            asyncio.run(ask(endpoint, calls, "one", "two", "three", cache=cache))
            assert "running, call 3 of 3 · " in page.read_text(encoding="utf-8")
            assert len(endpoint.seen) == (0 if first else 3)


def test_a_finished_page_stays_where_an_error_comes_after(run: RunDir) -> None:
    """Nothing that was written was kept, say."""
    with pytest.raises(LLMError), LiveCalls(run, "Stories", total=1) as calls:
        calls.finish(Report("Whole", "run"))
        raise LLMError("empty", "writer", "no story is left")
    shown = (run.path / "report.html").read_text(encoding="utf-8")
    assert "Whole" in shown and "stopped" not in shown


def test_an_error_stops_the_page(run: RunDir) -> None:
    endpoint = Endpoint(run.path / "report.html")
    with pytest.raises(LLMError), LiveCalls(run, "Stories", total=3) as calls:
        asyncio.run(ask(endpoint, calls, "one"))
        raise LLMError("auth", "writer", "no key")
    shown = (run.path / "report.html").read_text(encoding="utf-8")
    assert "stopped, call 1 of 3 · " in shown and "said one" in shown and RELOADS not in shown
