"""rl_loop.py domain=knowledge with a model as the judge: what it says is kept in the run, and what
it failed to say is asked again.

uv run pytest tests/training/domains/knowledge/test_judged_run.py
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint
from rl_loop import entrypoint
from tiny_chat import save_chat_model

from training import endpoints
from utils.config.entrypoint import load_yaml
from utils.llm.roles import OPENROUTER_KEY
from utils.runs.files import read_jsonl

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPENROUTER_KEY, "")
    monkeypatch.chdir(tmp_path)
    save_chat_model(Path("model"), favourites="ae ")


def start(*arguments: str) -> None:
    entrypoint(
        [
            *("domain=knowledge", "model_name=model", "source=made", "preset=small", "form=none"),
            *("num_train_passages=1", "num_test_passages=1", "num_steps=1", "groups_per_batch=1"),
            *("group_size=1", "eval_size=1", "eval_group_size=1", "max_tokens=8", "repeats=1"),
            *("inner_epochs=1", "inner_rank=2", "lora_rank=2", "max_answer_tokens=4"),
            *("log_path=r", "reward=accuracy", "judge_kind=llm", *arguments),
        ]
    )


def asked_about(body: Mapping[str, Any]) -> str:
    return body["messages"][1]["content"]


def known() -> list[dict[str, Any]]:
    """All outcomes that the last checkpoint has."""
    last = max(Path("r/loop_state").glob("*.json"))
    stored = json.loads(last.read_text(encoding="utf-8"))["domain"]["known"]
    return [outcome for outcomes_R in stored.values() for outcome in outcomes_R]


def test_verdicts_are_kept_and_what_failed_is_asked_again(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    failing: set[str] = set()

    def play(number: int, body: Mapping[str, Any]) -> str:
        # every third question, whatever is tried
        if len(failing) < 9 and number % 3 == 0:
            failing.add(asked_about(body))
        return "refusal" if asked_about(body) in failing else "ok"

    with FakeEndpoint(play, text=lambda body: '{"conveys": "yes"}') as server:
        judge = (f"judge.base_url={server.base_url}", "judge.model=some-model")
        start(*judge, "num_steps=0")
        told = capsys.readouterr().out
        first = known()
        unscored = sum(outcome["correct_Q"].count(None) for outcome in first)
        total = sum(len(outcome["correct_Q"]) for outcome in first)
        assert 0 < unscored < total
        # at the end the base model was asked about more
        counts = re.search(r"Judge: (\d+) answers, (\d+) without a verdict, which are asked", told)
        assert counts is not None
        assert int(counts[1]) >= total and int(counts[2]) == len(failing) >= unscored
        kept = read_jsonl("r/judge_calls.jsonl")
        assert len(kept) == len({asked_about(r.body) for r in server.requests} - failing)

        num_requests = len(server.requests)
        failing_before = set(failing)
        server.script = lambda number, body: "ok"
        with caplog.at_level("INFO"):
            start(*judge, "num_steps=1")
        again = {asked_about(r.body) for r in server.requests[num_requests:]}
    assert failing_before <= again
    # what was said is not asked again
    assert (
        not again & {asked_about(r.body) for r in server.requests[:num_requests]} - failing_before
    )
    assert f"{unscored} answers had no verdict; {unscored} of them have one now" in caplog.messages
    assert all(None not in outcome["correct_Q"] for outcome in known())
    assert " 0 without a verdict\n" in capsys.readouterr().out


def test_a_judge_of_this_process_is_on_the_runs_device(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    connect = endpoints.connect

    def connected(backend: str, **options: Any) -> Any:
        asked.append(options["device"])
        return connect(backend, **options)

    monkeypatch.setattr(endpoints, "connect", connected)
    save_chat_model(Path("other"), favourites="yesno")
    arguments = ("judge.model=./other", "judge.max_tokens=20", "num_steps=0", "device=cpu")
    start(*arguments)
    assert asked == ["cpu"]
    assert list(load_yaml("r/config.yaml")["meta"]["models"]) == ["model_name", "judge.model"]
    # another judge would say other things
    save_chat_model(Path("other"), favourites="yesno", seed=1)
    with pytest.raises(SystemExit) as ended:
        start(*arguments)
    assert ended.value.code == 2


def test_a_plan_asks_no_judge(capsys: pytest.CaptureFixture[str]) -> None:
    with FakeEndpoint(lambda number, body: "ok") as server:
        start(f"judge.base_url={server.base_url}", "judge.model=some-model", "dry_run=true")
        assert server.requests == []
    assert "Nothing was written." in capsys.readouterr().out
    assert not Path("r").exists()


def test_finished_times_are_summed_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from training.domains.knowledge import shown
    from training.domains.knowledge.edit_parsing import ParsedEdit
    from training.domains.knowledge.inner import InnerOutcome
    from training.domains.knowledge.passages import Passage, Question
    from training.domains.knowledge.shown import Trial, summary_lines

    passage = Passage("p", "T", "Ann is there.", (Question("q", "Who?", "Ann"),), "p")
    right, wrong = (InnerOutcome(["x"], [v], [-1.0], [None]) for v in (True, False))

    def trial(when: str, step: int, outcome: InnerOutcome, text: str) -> Trial:
        sample = {"when": when, "step": step}
        return Trial(sample, passage, ParsedEdit("qa", None, text), [outcome], wrong)

    looked_at: list[str] = []
    covered = shown.covered

    def counted(passage: Passage, text: str) -> list[bool]:
        looked_at.append(text)
        return covered(passage, text)

    monkeypatch.setattr(shown, "covered", counted)
    lines: dict[object, str] = {}
    early = [
        trial("held out, before", 0, wrong, "Bob"),
        trial("train, batch 1", 1, right, "Ann"),
        trial("held out, after", 1, right, "Ann, Ann"),
    ]
    first = summary_lines(early, lines)
    assert looked_at == ["Bob", "Ann", "Ann, Ann"]
    assert [line.partition(";")[0] for line in first] == [
        "held out, before: 0% right before, 0% after",
        "train, batch 1: 0% right before, 100% after",
        "held out, after: 0% right before, 100% after",
    ]
    assert summary_lines(early, lines) == first and len(looked_at) == 3
    # what was the last evaluation is one in the middle now, and a batch has one more
    later = [*early[:2], trial("train, batch 1", 1, wrong, "Cyd")]
    later += [
        trial("held out, step 1", 1, right, "Ann, Ann"),
        trial("held out, after", 2, wrong, "Dan"),
    ]
    second = summary_lines(later, lines)
    assert second == summary_lines(later, {})
    assert second[0] == first[0] and second[1].startswith("train, batch 1: 0% right before, 50%")
    assert second[3].startswith("held out, after: 0% right before, 0% after")
