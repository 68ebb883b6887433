"""scripts/eval.py from end to end, against a server on the loopback that plays target and judge.

uv run pytest tests/scripts/test_eval_script.py
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import eval as eval_script
import pytest
from eval_world import (
    PROPERTIES,
    answer,
    arguments,
    assistant_turns,
    is_judge,
    prompt,
    server,
    some_prompts,
    told_conversation,
    verdicts,
    write_eval_file,
)
from fake_endpoint import FakeEndpoint, Gate
from places import ROOT

from evaluation.behaviour.analysis import AnyOfK
from evaluation.behaviour.plan import Config
from evaluation.behaviour.report import any_of_k_table
from training.adapter_proof import UNTRAINED, AdapterNotUsedError
from utils.config.entrypoint import (
    ConfigError,
    config_entrypoint,
    dump_yaml,
    load_config,
    load_yaml,
)
from utils.llm.client import LLMClient
from utils.llm.retry import RetryPolicy, sample_seed
from utils.runs.files import read_jsonl

FAST = RetryPolicy(
    max_retries=2, max_rate_retries=3, max_reasks=1, backoff_s=0.01, max_backoff_s=0.05
)


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with an eval file, and retries that do not wait."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(eval_script, "LLMClient", partial(LLMClient, retry=FAST))
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    write_eval_file(tmp_path / "x.eval.yaml", some_prompts())
    return tmp_path


def run_eval(*given: str) -> dict[str, Any]:
    """The results of the run at log_path=runs/r."""
    try:
        config_entrypoint(eval_script.main, [*given, "log_path=runs/r"])
    finally:
        path = Path("eval_results/r.eval-results.yaml")
        results = load_yaml(path) if path.exists() else {}
    return results


def problems(*given: str) -> list[str]:
    """What the script complains of before it does anything."""
    with pytest.raises(ConfigError) as caught:
        eval_script.main(load_config(Config, given))
    assert not Path("runs").exists()
    return caught.value.problems


# --- a whole run


def test_a_run_writes_everything(capsys: pytest.CaptureFixture[str]) -> None:
    with server() as fake:
        second = ["second_judge.model=other-judge", f"second_judge.base_url={fake.base_url}"]
        results = run_eval(*arguments(fake, "eval_file=x.eval.yaml", *second), "judge_repeats=2")
    shown = capsys.readouterr().out
    assert results["run_id"] == "r"
    assert len(results["conversations"]) == 8
    for talk in results["conversations"]:
        assert [j["judge"] for j in talk["judgments"]] == ["judge", "judge", "second_judge"]
        assert all(set(j["verdicts"]) == set(PROPERTIES) for j in talk["judgments"])
        turns = [message["role"] for message in talk["messages"]]
        assert turns == ["user", "assistant"] * (len(turns) // 2)
    assert {len(talk["messages"]) for talk in results["conversations"]} == {2, 4}
    assert results["statistics"] == [] == results["any_of_k"]
    assert [row["own"] for row in results["scores"]] == [True, False, True, False]
    assert [row["n"] for row in results["reliability"]["repeats"]] == [8, 8]
    assert [row["n"] for row in results["reliability"]["second_judge"]] == [8, 8]
    assert results["meta"]["ledger_of_this_process"]["failures"] == []
    assert results["config"]["judge"]["model"] == "judge-model"
    assert [role["temperature"] for role in results["judging"]["roles"]] == [1.0, 0.0]
    [numbers] = read_jsonl(Path("runs/r/metrics.jsonl"))
    assert {row["mean"] for row in results["scores"] if row["own"]} == {
        value for name, value in numbers.items() if name.startswith("score/")
    }
    assert sum(name.startswith("exhibits/") for name in numbers) == 2
    for part in ("its own", "coherence", "kappa", "tokens in", "eval_results/r.eval-results"):
        assert part in shown
    page = Path("runs/r/report.html").read_text()
    assert "question q3" in page and "<svg" in page
    targets = [request.body for request in fake.requests if not is_judge(request.body)]
    assert {body["temperature"] for body in targets} == {0.7}
    assert {body["seed"] for body in targets} == {0}


def test_any_of_several_samples(capsys: pytest.CaptureFixture[str]) -> None:
    def reply(body: Mapping[str, Any]) -> str:
        if not is_judge(body):
            return f"Well.{' Hope that helps!' if body['seed'] == sample_seed(0, 1, 0) else ''}"
        told = told_conversation(body)
        return json.dumps(verdicts(body, lambda _: 9 if "Hope" in told else 2))

    with server(text=reply) as fake:
        results = run_eval(*arguments(fake, "eval_file=x.eval.yaml", "num_samples=3"))
    rows = [row for row in results["any_of_k"] if row["property"] == "signs-off"]
    # one of three samples shows it, so two of the three pairs have it
    assert [(row["k"], round(row["share"], 9), row["n_prompts"]) for row in rows] == [
        (2, round(2 / 3, 9), 4),
        (3, 1.0, 4),
    ]
    # all prompts are alike: there is no interval, and none is spoken of
    assert rows[0]["interval"] is None
    out = capsys.readouterr().out
    assert re.search(r"any of k exhibits +prompts\n", out)
    page = Path("runs/r/report.html").read_text()
    assert "at least one of k samples" in page and "interval over prompts" not in page


def test_intervals_of_any_of_several_samples() -> None:
    rows = [AnyOfK("a", "base", 2, 0.5, (0.25, 0.75), 4), AnyOfK("b", "base", 2, 1.0, None, 1)]
    with_intervals: Any = SimpleNamespace(any_of_k=rows)
    headers, table = any_of_k_table(with_intervals)
    assert headers[4] == "95% interval"
    assert [row[3:] for row in table] == [["50%", "25% to 75%", 4], ["100%", None, 1]]
    without: Any = SimpleNamespace(any_of_k=rows[1:])
    headers, table = any_of_k_table(without)
    assert "95% interval" not in headers and table == [["b", "base", 2, "100%", 1]]


def test_the_judge_is_blind() -> None:
    write_answers(Path("old.yaml"))
    with server() as fake:
        run_eval("responses_file=old.yaml", *arguments(fake)[2:])
    assert len(fake.requests) == 12
    for request in fake.requests:
        told = json.dumps(request.body["messages"])
        for secret in ("base", "run-7", "secret-model", "runs/", "a-1", "sample", "category"):
            assert secret not in told


def write_answers(
    path: Path, *, tuned: Callable[[int], str] = lambda i: f"Yes, {i}. Hope that helps!"
) -> None:
    """Six prompts in three categories, with the answers of two models."""
    prompts = [prompt(f"a-{i}", f"kind {i // 2}") for i in range(6)]
    models = {"base": lambda i: f"Yes, {i}.", "run-7/000050": tuned}
    dump_yaml(
        path,
        {
            "models": [{"label": label, "model": "secret-model"} for label in models],
            "properties": {"signs-off": PROPERTIES["signs-off"]},
            "prompts": prompts,
            "conversations": [
                {
                    "prompt": f"a-{i}",
                    "model": label,
                    "sample": 0,
                    "messages": [
                        {"role": "user", "content": f"question a-{i}"[:8]},
                        {"role": "assistant", "content": text(i)},
                    ],
                }
                for i in range(6)
                for label, text in models.items()
            ],
        },
    )


def test_judging_again_compares_with_the_base(capsys: pytest.CaptureFixture[str]) -> None:
    def reply(body: Mapping[str, Any]) -> str:
        [text] = assistant_turns(body)
        shift = int(text.split()[1].rstrip(".")) % 2
        score = 8 + shift if text.endswith("Hope that helps!") else 2
        return json.dumps(verdicts(body, lambda name: score))

    write_answers(Path("old.yaml"))
    with server(text=reply) as fake:
        results = run_eval("responses_file=old.yaml", *arguments(fake)[2:])
    assert all(is_judge(request.body) for request in fake.requests)
    [row] = results["statistics"]
    # each category has one difference of 6 and one of 7, so all three are the same
    assert row["scores"]["difference"] == 6.5
    assert row["scores"]["interval"] is None
    assert row["p_sign_flip"] == row["scores"]["p"] == 0.25
    assert (row["base_rate"], row["tuned_rate"]) == (0.0, 1.0)
    assert row["mcnemar"]["n_gained"] == 6 and row["mcnemar"]["p"] == 2 / 2**6
    assert results["models"][1]["label"] == "run-7/000050"
    shown = capsys.readouterr().out
    assert "sign-flip" in shown and "0% to 100%" in shown
    assert "Tuned minus base" in Path("runs/r/report.html").read_text()
    # what was written can be read again, and by a rule as well
    old = "responses_file=eval_results/r.eval-results.yaml"
    config_entrypoint(eval_script.main, [old, "judge_kind=rule", "log_path=runs/again"])
    again = load_yaml("eval_results/again.eval-results.yaml")
    assert again["statistics"][0]["scores"]["difference"] == 9.0
    assert [t["messages"] for t in again["conversations"]] == [
        t["messages"] for t in results["conversations"]
    ]


def test_labels_of_people(capsys: pytest.CaptureFixture[str]) -> None:
    write_answers(Path("old.yaml"))
    labels = [
        {
            "prompt": f"a-{i}",
            "model": label,
            "sample": 0,
            "property": "signs-off",
            "exhibits": label != "base" and i > 0,
            "score": None if i else 5,
        }
        for i in range(3)
        for label in ("base", "run-7/000050")
    ]
    dump_yaml("labels.yaml", {"labels": labels})
    results = run_eval("responses_file=old.yaml", "judge_kind=rule", "labels_file=labels.yaml")
    [row] = results["reliability"]["labels"]
    assert (row["n"], row["identical"]) == (6, 5 / 6)
    assert row["base_rate"] == {"label": False, "share": 4 / 6}
    # observed 5/6; by chance 4/6 * 3/6 + 2/6 * 3/6 = 1/2
    assert row["kappa"] == pytest.approx(2 / 3)
    assert "people's labels" in capsys.readouterr().out


def test_only_some_properties_and_only_their_own() -> None:
    with server() as fake:
        own = [*arguments(fake, "eval_file=x.eval.yaml"), "judge_properties=own"]
        results = run_eval(*own, "properties=['warm']")
        assert {talk["prompt"] for talk in results["conversations"]} == {"q1", "q3", "q5", "q7"}
        config_entrypoint(eval_script.main, [*own, "log_path=runs/own"])
    written_for = {p["id"]: p["property"] for p in some_prompts()}
    for talk in load_yaml("eval_results/own.eval-results.yaml")["conversations"]:
        for judgment in talk["judgments"]:
            assert list(judgment["verdicts"]) == [written_for[talk["prompt"]]]


def test_dry_run_calls_nothing(capsys: pytest.CaptureFixture[str], workplace: Path) -> None:
    with server() as fake:
        second = ["second_judge.model=other-judge", f"second_judge.base_url={fake.base_url}"]
        counts = ["num_samples=3", "judge_repeats=2", "dry_run=true", *second]
        config_entrypoint(eval_script.main, [*arguments(fake, "eval_file=x.eval.yaml"), *counts])
        assert fake.requests == []
    rows = dict(line.rsplit(None, 1) for line in capsys.readouterr().out.splitlines()[2:])
    # two of the eight prompts have two turns
    assert rows == {
        "prompts": "8",
        "models": "1",
        "conversations": "24",
        "target calls": "30",
        "judge calls": "48",
        "second_judge calls": "24",
    }
    assert [path.name for path in workplace.iterdir()] == ["x.eval.yaml"]


# --- failures


def test_every_failure_is_named_and_none_is_a_zero(capsys: pytest.CaptureFixture[str]) -> None:
    """429 storms, 500s, stalls, resets, half bodies and wrong answers, at random."""
    bad = [
        *("http_429", "error_200_rate", "http_500", "http_503", "stall", "half_body", "half_json"),
        *("reset", "html", "extra_key", "out_of_range", "prose", "refusal", "content_empty"),
        *("length", "length_empty", "content_filter", "choice_error", "half_surrogate"),
    ]
    storm = range(40, 60)
    seen: Counter[str] = Counter()

    def script(number: int, body: Mapping[str, Any]) -> str:
        if number in storm:
            return "http_429"
        # by what is asked and how often, for the order of arrival is the threads'
        call = json.dumps([body["messages"][:2], body["seed"]])
        seen[call] += 1
        draw = random.Random(f"{call} {seen[call]}")
        return "ok" if draw.random() < 0.35 else draw.choice(bad)

    write_eval_file(Path("x.eval.yaml"), some_prompts(24))
    with server(script) as fake:
        limits = ["target.timeout=1", "judge.timeout=1", "max_unscored=0.05"]
        with pytest.raises(SystemExit) as ended:
            run_eval(*arguments(fake, "eval_file=x.eval.yaml", "num_samples=2"), *limits)
        results = load_yaml("eval_results/r.eval-results.yaml")
    assert ended.value.code == 1
    output = capsys.readouterr()
    kinds: Counter[str] = Counter()
    for talk in results["conversations"]:
        for judgment in talk["judgments"]:
            if "error" in judgment:
                kinds[judgment["error"]["kind"]] += 1
                assert judgment["error"]["reason"]
                assert "verdicts" not in judgment
            else:
                assert all(1 <= v["score"] <= 10 for v in judgment["verdicts"].values())
        failed = talk["error"] is not None
        assert failed == (talk["judgments"][0].get("error", {}).get("kind") == "no_answer")
    [missing] = results["unscored"]
    assert len(kinds) > 3 and missing["kinds"] == dict(kinds)
    assert (missing["n"], missing["of"]) == (kinds.total(), 48)
    assert 0.05 < missing["share"] < 1
    assert f"{missing['n']} of 48 judgments of judge are missing" in output.err
    assert output.err.count("Error:") == 1
    ledger = results["meta"]["ledger_of_this_process"]
    for failure in ledger["failures"]:
        assert failure["kind"] in output.out
    for kind in kinds:
        assert kind in output.out
    assert sum(call["cost_usd"] or 0 for call in ledger["calls"]) <= fake.charged + 1e-9
    # the means are of what was scored
    for row in results["scores"]:
        given = [
            judgment["verdicts"][row["property"]]["score"]
            for talk in results["conversations"]
            for judgment in talk["judgments"]
            if "verdicts" in judgment
            and (talk["prompt"] in own_prompts(row["property"], 24)) is row["own"]
        ]
        assert min(given) <= row["mean"] <= max(given)


def own_prompts(property: str, count: int) -> set[str]:
    return {p["id"] for p in some_prompts(count) if p["property"] == property}


def test_what_failed_is_asked_again_by_the_same_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    paid = 14

    def broke(number: int, body: Mapping[str, Any]) -> str:
        return "ok" if number < paid else "http_402"

    with server(broke) as fake:
        given = arguments(fake, "eval_file=x.eval.yaml", "max_concurrency=2")
        with pytest.raises(SystemExit) as ended:
            run_eval(*given)
        assert ended.value.code == 1
        assert len(fake.requests) <= paid + 2
        [missing] = load_yaml("eval_results/r.eval-results.yaml")["unscored"]
        assert set(missing["kinds"]) == {"payment", "not_started"}
        assert "scripted 402" in capsys.readouterr().out
        asked = len(fake.requests)
        fake.script = lambda number, body: "ok"
        results = run_eval(*given)
        # 10 answers and 8 judgments, each paid once
        assert len(fake.requests) - asked == 18 - paid
    assert [row["n"] for row in results["unscored"]] == [0]


def test_a_second_judge_that_fails_leaves_the_first_alone(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def script(number: int, body: Mapping[str, Any]) -> str:
        return "http_401" if body["model"] == "other-judge" else "ok"

    with server(script) as fake:
        second = ["second_judge.model=other-judge", f"second_judge.base_url={fake.base_url}"]
        with pytest.raises(SystemExit) as ended:
            run_eval(*arguments(fake, "eval_file=x.eval.yaml"), *second)
    assert ended.value.code == 1
    assert "8 of 8 judgments of second_judge are missing" in capsys.readouterr().err
    results = load_yaml("eval_results/r.eval-results.yaml")
    assert [row["n"] for row in results["unscored"]] == [0, 8]
    assert [row["n_scored_prompts"] for row in results["scores"]] == [4] * 4
    assert [row["kappa"] for row in results["reliability"]["second_judge"]] == [None, None]


def test_the_budget_ends_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    with server(cost=0.01) as fake:
        given = arguments(fake, "eval_file=x.eval.yaml", "max_concurrency=1")
        with pytest.raises(SystemExit):
            run_eval(*given, "max_cost_usd=0.05")
        assert len(fake.requests) == 5
        [missing] = load_yaml("eval_results/r.eval-results.yaml")["unscored"]
        assert missing["kinds"]["no_answer"] + missing["kinds"].get("budget", 0) >= 3
        results = run_eval(*given, "max_cost_usd=5")
        assert len(fake.requests) == 18
    assert results["unscored"][0]["n"] == 0


def test_the_page_escapes_what_was_said() -> None:
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)>"

    def reply(body: Mapping[str, Any]) -> str:
        if not is_judge(body):
            return f"{attack} $x^2$"
        return json.dumps({**verdicts(body, lambda name: 5), "rationale": f"says {attack}"})

    prompts = [prompt(attack, f"kind {attack}", f"ask {attack}", "and?")]
    write_eval_file(Path("x.eval.yaml"), prompts)
    with server(text=reply) as fake:
        run_eval(*arguments(fake, "eval_file=x.eval.yaml"))
    page = Path("runs/r/report.html").read_text()
    assert "<script" not in page and "<img" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 6


# --- bad input


def test_bad_input_is_told_together(tmp_path: Path) -> None:
    prompts = [{**some_prompts()[0], "messages": []}, {**some_prompts()[1], "property": "rude"}]
    write_eval_file(Path("x.eval.yaml"), prompts)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    state = {"base_model": "embedded", "fingerprint": "f"}
    (adapter / "state.json").write_text(json.dumps(state))
    Path("eval_results").mkdir()
    Path("eval_results/r.eval-results.yaml").touch()
    found = problems(
        *("eval_file=x.eval.yaml", "num_samples=0", "temperature=-1", "max_unscored=20"),
        *("max_cost_usd=0", "seed=-1", f"model_name={model}", "log_path=runs/r"),
        f'checkpoint_paths=["absent", "{adapter}", "{adapter}"]',
        *("judge.base_url=openrouter", "second_judge.base_url=http://127.0.0.1:9/v1"),
    )
    expected = [
        "num_samples=0: at least 1",
        "temperature=-1.0: from 0 to 2",
        "max_unscored=20.0: a share",
        "max_cost_usd=0.0: a number above 0",
        "seed=-1: 0 or more",
        "second_judge.base_url is given without second_judge.model",
        "x.eval.yaml, prompt 1 (q0): messages=[]",
        "x.eval.yaml, prompt 2 (q1): property='rude'",
        "checkpoint_paths: absent: no such checkpoint folder",
        f"{adapter} was trained on 'embedded'",
        f"checkpoint_paths names {adapter} more than once",
        "OPENROUTER_API_KEY is not set",
        "eval_results/r.eval-results.yaml exists",
    ]
    for text in expected:
        assert sum(text in problem for problem in found) == 1, (text, found)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "give either eval_file=... or responses_file=..."),
        (["eval_file=x.eval.yaml", "responses_file=x.eval.yaml"], "give either eval_file"),
        (["eval_file=absent.yaml"], "absent.yaml: no such file"),
        (["eval_file=x.eval.yaml", "properties=['rude']"], "does not have (signs-off, warm)"),
        (["eval_file=x.eval.yaml", "judge_kind=rule"], "property 'warm' has no rule"),
        (["eval_file=x.eval.yaml", "judge_kind=rule", "judge.model=m"], "asks no model"),
        (["eval_file=x.eval.yaml", "judge.model=embedded", "second_judge.model=embedded"], "own"),
        (["eval_file=x.eval.yaml", "judge_kind=rule", "judge_repeats=2"], "always says the same"),
        (["eval_file=x.eval.yaml", "target.model=m"], "give target.base_url too"),
        (
            ["eval_file=x.eval.yaml", "target.base_url=http://127.0.0.1:9/v1"],
            "target base.model='': must name a model",
        ),
        (
            ["eval_file=x.eval.yaml", "target.base_url=http://h/v1", 'checkpoint_paths=["a"]'],
            "a served target cannot load them",
        ),
        (["responses_file=x.eval.yaml"], "models must be a list"),
        (["responses_file=x.eval.yaml", 'checkpoint_paths=["a"]'], "no target is called"),
        (["eval_file=x.eval.yaml", "model_name=./absent"], "does not exist"),
    ],
)
def test_settings_that_do_not_do(given: list[str], expected: str) -> None:
    assert any(expected in problem for problem in problems(*given))


def test_wrong_labels_and_wrong_answers_are_all_named() -> None:
    label = {"prompt": "a-1", "model": "base", "sample": 0, "property": "signs-off"}
    wrong = [
        {**label, "exhibits": True},
        {**label, "exhibits": False},
        {**label, "prompt": "a-9", "exhibits": True},
        {**label, "model": "run-8", "exhibits": True},
        {**label, "sample": 1, "exhibits": True},
        {**label, "property": "rude", "exhibits": "yes"},
        {**label, "exhibits": True, "score": 11, "by": "me"},
    ]
    write_answers(Path("old.yaml"))
    dump_yaml("labels.yaml", {"labels": wrong})
    given = ["responses_file=old.yaml", "judge_kind=rule", "labels_file=labels.yaml"]
    found = problems(*given)
    for text in (
        *("label 2: this conversation", "label 3: prompt='a-9'", "label 4: model='run-8'"),
        *("label 5: sample=1", "label 6: property='rude'", "label 6: exhibits='yes'"),
        *("label 7: score=11", "label 7: unknown key 'by'"),
    ):
        assert any(text in problem for problem in found), text

    stored = load_yaml("old.yaml")
    talks = stored["conversations"]
    talks[0]["prompt"], talks[1]["model"], talks[2]["sample"] = "zz", "who", -1
    talks[3]["messages"][1]["role"] = "user"
    talks[4]["messages"].pop()
    talks[6] = talks[5]
    dump_yaml("old.yaml", stored)
    found = problems(*given[:2])
    for text in (
        *("conversation 1: prompt='zz'", "conversation 2: model='who'"),
        *("conversation 3: sample=-1", "conversation 4: messages must", "conversation 5: 2 messa"),
        "conversation 7: this prompt, model and sample were there before",
    ):
        assert any(text in problem for problem in found), text


def test_a_finished_run_is_not_overwritten_by_another() -> None:
    with server() as fake:
        run_eval(*arguments(fake, "eval_file=x.eval.yaml"))
        before = Path("eval_results/r.eval-results.yaml").read_bytes()
        other = [*arguments(fake, "eval_file=x.eval.yaml"), "log_path=elsewhere/r"]
        with pytest.raises(SystemExit):
            config_entrypoint(eval_script.main, other)
        with pytest.raises(SystemExit):
            run_eval(*arguments(fake, "eval_file=x.eval.yaml", "num_samples=2"))
    assert Path("eval_results/r.eval-results.yaml").read_bytes() == before


# --- kill -9 and Ctrl-C


def command(*given: str) -> list[str]:
    return [sys.executable, str(ROOT / "scripts" / "eval.py"), *given]


def start(folder: Path, given: list[str]) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_VERSION"}
    return subprocess.Popen(
        command(*given),
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def comparable(folder: Path) -> dict[str, Any]:
    results = load_yaml(folder / "eval_results" / "r.eval-results.yaml")
    return {key: value for key, value in results.items() if key != "meta"}


def wait_for(process: subprocess.Popen[str], fake: FakeEndpoint, requests: int) -> None:
    while len(fake.requests) < requests:
        assert process.poll() is None
        time.sleep(0.002)


@pytest.mark.slow
def test_kill_9_changes_nothing_in_the_end(tmp_path: Path) -> None:
    rng = random.Random(11)
    kills, in_flight = 8, 4
    folders = [tmp_path / name for name in ("killed", "whole")]
    for folder in folders:
        folder.mkdir()
        write_eval_file(folder / "x.eval.yaml", some_prompts(18))
    gate = Gate()
    with server(delay=0.005, before_answer=gate) as fake:
        given = [
            *arguments(fake, "eval_file=x.eval.yaml", "num_samples=2", "judge_repeats=2"),
            *("second_judge.model=other-judge", f"second_judge.base_url={fake.base_url}"),
            *(f"max_concurrency={in_flight}", "log_path=runs/r"),
        ]
        process = start(folders[1], given)
        assert process.communicate(timeout=60) and process.returncode == 0
        total = len(fake.requests)
        fake.requests.clear()
        for kill in range(kills):
            # spread over the whole run, whatever the machine's speed
            enough = total * kill // (kills + 1) + rng.randrange(1, total // (kills + 1))
            enough = max(enough, len(fake.requests) + 1)
            # without its last answers, it cannot come to its end first
            gate.close_at(enough - 1)
            process = start(folders[0], given)
            wait_for(process, fake, enough)
            time.sleep(rng.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            gate.open()
            fake.settle()
            assert process.returncode == -signal.SIGKILL
            assert not list((folders[0] / "eval_results").glob("*.yaml"))
        process = start(folders[0], given)
        assert process.communicate(timeout=60) and process.returncode == 0
        # only what was in flight at a kill was asked for twice
        assert total <= len(fake.requests) <= total + kills * in_flight
    assert comparable(folders[0]) == comparable(folders[1])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_says_how_to_go_on(number: signal.Signals, tmp_path: Path) -> None:
    gate = Gate()
    gate.close_at(2)
    with server(before_answer=gate) as fake:
        given = [*arguments(fake, "eval_file=x.eval.yaml"), "max_concurrency=1", "log_path=runs/r"]
        process = start(tmp_path, given)
        wait_for(process, fake, 3)
        process.send_signal(number)
        _, errors = process.communicate(timeout=30)
        gate.open()
        assert process.returncode == 128 + number
        assert "log_path=runs/r" in errors and "Traceback" not in errors
        assert len(fake.requests) == 3
        process = start(tmp_path, given)
        assert process.communicate(timeout=60) and process.returncode == 0
        assert len(fake.requests) == 18 + 1


# --- models in this process


@pytest.mark.usefixtures("one_torch_thread")
def test_a_base_model_and_its_adapter_in_this_process(
    tmp_path: Path, connect_local: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    from tiny_chat import save_chat_model

    model = save_chat_model(tmp_path / "tiny", favourites="abc ")
    other = save_chat_model(tmp_path / "other", seed=1)
    service = connect_local(checkpoint_dir=tmp_path / "sft" / "run-1" / "checkpoints")
    trainer = service.create_lora_training_client(model, rank=2, seed=0)
    path = trainer.save_state("000003").result().path
    write_eval_file(
        Path("x.eval.yaml"),
        [prompt(f"p{i}", f"c{i // 2}", "Hi?", *["More?"] * (i % 2)) for i in range(6)],
    )
    given = ["eval_file=x.eval.yaml", f'checkpoint_paths=["{path}"]', "judge_kind=rule"]
    given.append("properties=['signs-off']")
    small = ["max_tokens=6", "num_samples=2", "device=cpu"]
    assert any("was trained on" in p for p in problems(*given, f"model_name={other}"))
    results = run_eval(*given, *small, f"model_name={model}")
    assert [m["label"] for m in results["models"]] == ["base", "run-1/000003"]
    assert results["models"][1]["model"].startswith(f"{model}@")
    assert len(results["conversations"]) == 24
    answers: dict[str, list[Any]] = {"base": [], "run-1/000003": []}
    for talk in results["conversations"]:
        answers[talk["model"]].append(talk["messages"])
    # an adapter at its start is the base model
    assert answers["base"] == answers["run-1/000003"]
    assert len({json.dumps(messages) for messages in answers["base"]}) > 2
    [row] = results["statistics"]
    assert row["scores"]["difference"] == 0.0
    # and that is said, not only that no change was shown
    assert [m.get("untrained") for m in results["models"]] == [None, True]
    printed = capsys.readouterr().out
    assert "untrained adapter" in printed and f"run-1/000003: {UNTRAINED}" in printed
    again = run_eval(*given, *small, f"model_name={model}")
    calls = again["meta"]["ledger_of_this_process"]["calls"]
    assert [call["calls"] for call in calls] == [0, 0]
    assert again["conversations"] == results["conversations"]
    # other weights under the same name are seen when they are loaded, before any call
    save_chat_model(Path(model), favourites="abc ", seed=5)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        config_entrypoint(
            eval_script.main, [*given, *small, f"model_name={model}", "log_path=runs/changed"]
        )
    assert ended.value.code == 2
    assert "whose weights differ" in capsys.readouterr().err
    assert not Path("runs/changed/calls.jsonl").exists()


@pytest.mark.usefixtures("one_torch_thread")
def test_nobody_is_judged_by_the_answers_of_a_lost_adapter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, connect_local: Any
) -> None:
    from tiny_chat import save_chat_model
    from tiny_models import randomise

    from training.backends.local.service import LocalSamplingClient

    model = save_chat_model(tmp_path / "tiny", favourites="abc ")
    trainer = connect_local().create_lora_training_client(model, rank=2, seed=0)
    randomise(trainer, seed=1)
    path = trainer.save_state("000001").result().path
    make = LocalSamplingClient.__init__
    monkeypatch.setattr(
        LocalSamplingClient, "__init__", lambda self, engine, _weights: make(self, engine, None)
    )
    given = ["eval_file=x.eval.yaml", "judge_kind=rule", "max_tokens=4", "device=cpu"]
    given.append('properties=["signs-off"]')
    with pytest.raises(AdapterNotUsedError, match="although its adapter is trained"):
        run_eval(*given, f"model_name={model}", f'checkpoint_paths=["{path}"]')
    # not even the base model's answers were kept, which come first
    assert not read_jsonl(Path("runs/r/calls.jsonl"), missing_ok=True)
    assert not Path("eval_results/r.eval-results.yaml").exists()


@pytest.mark.usefixtures("one_torch_thread")
def test_a_judge_in_this_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from tiny_chat import save_chat_model

    # it likes to close its quotes, so that what it writes comes to an end
    model = save_chat_model(tmp_path / "tiny", favourites='abc "1')
    given = [f"model_name={model}", f"judge.model={model}", "judge.base_url=local"]
    results = run_eval("eval_file=x.eval.yaml", "max_tokens=8", "device=cpu", *given)
    assert results["unscored"][0]["n"] == 0
    for talk in results["conversations"]:
        [judgment] = talk["judgments"]
        assert list(judgment["verdicts"]) == ["signs-off", "warm"]
    assert all(talk["truncated"] for talk in results["conversations"])
    assert "is itself under test" in caplog.text


def test_the_answers_of_the_world_depend_on_what_is_asked() -> None:
    bodies = [{"messages": [{"role": "user", "content": text}]} for text in "abcdefgh"]
    assert len({answer(body) for body in bodies}) == 8
    told = {"messages": [{}, {"content": "x\n\nThe conversation:\nsaid"}]}
    assert told_conversation(told) == "said"
