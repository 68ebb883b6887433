"""Self-edits by another model and from files: in order, counted, kept, and of these passages."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from training.domains.knowledge.edits import GENERATOR, WrittenEdits, read_edits, write_edits
from training.domains.knowledge.forms import EditPrompts
from training.domains.knowledge.passages import Passage
from training.domains.knowledge.seal_files import seal_item, write_completions
from utils.config.errors import ConfigError
from utils.llm.api import LLMError, Reply, Request, Role, Usage
from utils.llm.client import LLMClient
from utils.llm.retry import RetryPolicy

PASSAGES = [Passage(f"p{i}", name, f"{name} is far.", (), f"p{i}") for i, name in enumerate("AB")]
FAST = RetryPolicy(max_retries=0, max_rate_retries=0, max_reasks=0, backoff_s=0.01)


# ---------------------------------------------------------------------------------- another model


class Writer:
    """Says which passage and sample it was asked for; fails for what `failing` names."""

    def __init__(self, failing: dict[tuple[str, int], Any] | None = None) -> None:
        self.role = Role(GENERATOR, "some-model", None, seed=1)
        self.failing = failing or {}
        self.requests: list[Request] = []

    async def complete(self, request: Request) -> Reply:
        self.requests.append(request)
        title = request.messages[-1]["content"].split("Title: ")[1][0]
        if (title, request.sample_index) in self.failing:
            raise LLMError(self.failing[title, request.sample_index], GENERATOR, "as told")
        text = f"{title} {request.sample_index}"
        return Reply(text, "length", Usage(10, 20), model="some-model")

    async def close(self) -> None:
        pass


def written(writer: Writer, cache_path: Path | None = None, k: int = 2) -> WrittenEdits:
    async def run() -> WrittenEdits:
        async with LLMClient([writer], cache_path=cache_path, retry=FAST) as client:
            return await write_edits(client, EditPrompts("rewrite"), PASSAGES, k)

    return asyncio.run(run())


def test_edits_of_a_model_are_in_order_and_come_from_the_cache_again(tmp_path: Path) -> None:
    writer = Writer()
    wanted = WrittenEdits([["A 0", "A 1"], ["B 0", "B 1"]], 0)
    assert written(writer, tmp_path / "calls.jsonl") == wanted
    assert len(writer.requests) == 4
    told = [list(map(dict, request.messages)) for request in writer.requests]
    assert told[0] == EditPrompts("rewrite").messages(PASSAGES[0])
    again = Writer()
    assert written(again, tmp_path / "calls.jsonl") == wanted and not again.requests
    # a third of each is all that is new
    assert written(again, tmp_path / "calls.jsonl", k=3).texts_P_K[0] == ["A 0", "A 1", "A 2"]
    assert len(again.requests) == 2


def test_failed_calls_are_missing_and_those_that_stop_all_are_raised() -> None:
    one = written(Writer({("A", 1): "server"}))
    assert one == WrittenEdits([["A 0"], ["B 0", "B 1"]], 1)
    with pytest.raises(LLMError, match="payment"):
        written(Writer({("A", 0): "payment"}))


# ------------------------------------------------------------------------------------------ files


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_edits_of_seal_s_files(tmp_path: Path) -> None:
    path = tmp_path / "edits.json"
    items = [seal_item(PASSAGES[1], ["b0", " ", "b1", "b2"], "prompt")]
    other = Passage("x", "X", "X is near.", (), "x")
    write_completions(path, [*items, seal_item(other, ["x0"], "prompt")])
    assert read_edits(path, PASSAGES, 2) == WrittenEdits([[], ["b0", "b1"]], 2)
    assert read_edits(path, PASSAGES, 3) == WrittenEdits([[], ["b0", "b1", "b2"]], 3)
    # the title alone does not do
    changed = [Passage("p1", "B", "B is near.", (), "p1")]
    with pytest.raises(ConfigError, match=r"edits.json: its edits are about other passages \('B'"):
        read_edits(path, changed, 1)


def test_edits_of_lines_by_id_and_by_title(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "edits.jsonl",
        {"title": "B", "edit": "b0"},
        {"id": "p0", "edit": "a0"},
        {"title": "B", "edit": "b1"},
        {"id": "p9", "edit": "of another"},
    )
    assert read_edits(path, PASSAGES, 2) == WrittenEdits([["a0"], ["b0", "b1"]], 1)


def test_edits_of_our_own_samples_begin_with_the_newest(tmp_path: Path) -> None:
    rows = [
        {"step": step, "kind": "train", "problem": "p0", "answer": f"{step} {i}", "reward": 0.5}
        for step in (1, 2)
        for i in range(2)
    ]
    path = lines(tmp_path / "samples.jsonl", *rows)
    assert read_edits(path, PASSAGES[:1], 3) == WrittenEdits([["2 0", "2 1", "1 0"]], 0)


def test_files_that_do_not_do_are_refused_by_name(tmp_path: Path) -> None:
    path = lines(tmp_path / "e.jsonl", {"title": "C", "edit": "c"}, {"id": "p7", "edit": "d"})
    with pytest.raises(ConfigError, match=r"e\.jsonl: its edits are about other .*'p7'.*'A', 'B'"):
        read_edits(path, PASSAGES, 1)
    lines(path, {"title": "A", "text": "a"}, "A", {"id": 3, "edit": "a"}, {"id": "p0", "edit": "a"})
    with pytest.raises(ConfigError) as error:
        read_edits(path, PASSAGES, 1)
    assert [problem.split(":")[0][-6:] for problem in error.value.problems] == [
        "line 1",
        "line 2",
        "line 3",
    ]
    lines(path)
    with pytest.raises(ConfigError, match=r"e\.jsonl: no edits in it"):
        read_edits(path, PASSAGES, 1)
    lines(path, {"title": "A", "edit": "a"})
    twice = [*PASSAGES, Passage("p2", "A", "A is near.", (), "p2")]
    with pytest.raises(ConfigError, match=r"title 'A' is that of 2 passages; give the id"):
        read_edits(path, twice, 1)
    with pytest.raises(ConfigError, match="k=0"):
        read_edits(path, PASSAGES, 0)
    for missing in (tmp_path / "none.jsonl", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"edits_file=.*: no such file; give SEAL's"):
            read_edits(missing, PASSAGES, 1)
