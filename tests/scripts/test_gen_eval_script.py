"""scripts/gen_eval.py from end to end, against a server on the loopback that writes and scores.

uv run pytest tests/scripts/test_gen_eval_script.py
"""

import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import eval as eval_script
import gen_eval
import pytest
from fake_endpoint import FakeEndpoint, Gate, Script, in_order
from places import ROOT
from prompt_world import answer, schema_of, stage_of, value_for

from evaluation.behaviour.eval_file import EvalPrompt, load_eval_file
from utils.config.entrypoint import config_entrypoint, dump_yaml, load_yaml
from utils.llm.client import LLMClient
from utils.llm.retry import RetryPolicy
from utils.runs.files import read_jsonl

FAST = RetryPolicy(
    max_retries=3, max_rate_retries=4, max_reasks=1, backoff_s=0.01, max_backoff_s=0.05
)
BOTH = ['properties=["power-seeking","sycophantic"]', 'num_turns={"sycophantic": 2}']
SMALL = ["num_categories=3", "prompts_per_category=2"]
LAYERS = ("config_file", "params_file")


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, and retries that do not wait."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gen_eval, "LLMClient", partial(LLMClient, retry=FAST))
    monkeypatch.delenv("OPENROUTER_API_KEY", raising=False)
    return tmp_path


def server(
    script: Script | None = None,
    *,
    text: Callable[[Mapping[str, Any]], str] = answer,
    **options: Any,
) -> FakeEndpoint:
    return FakeEndpoint(script or in_order("ok"), text=text, **options)


def arguments(fake: FakeEndpoint, *more: str) -> list[str]:
    return [
        *("generator.model=writer", f"generator.base_url={fake.base_url}"),
        *("scorer.model=scorer", f"scorer.base_url={fake.base_url}"),
        *more,
    ]


def run(*given: str, name: str = "r") -> tuple[dict[str, Any], list[EvalPrompt]]:
    """The settings and the prompts of the run at log_path=runs/<name>."""
    config_entrypoint(gen_eval.main, [*given, f"log_path=runs/{name}"], layers=LAYERS)
    params = load_yaml(f"evals/{name}.eval-params.yaml")
    return params, load_eval_file(Path(f"evals/{name}.eval.yaml")).prompts


def refused(capsys: pytest.CaptureFixture[str], *given: str) -> str:
    """What the script complains of before it does anything."""
    with pytest.raises(SystemExit) as ended:
        config_entrypoint(gen_eval.main, list(given), layers=LAYERS)
    assert ended.value.code == 2
    return capsys.readouterr().err


def stages(fake: FakeEndpoint) -> Counter[str]:
    return Counter(stage_of(schema_of(request.body)) for request in fake.requests)


def start(folder: Path, given: list[str]) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_VERSION"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "scripts" / "gen_eval.py"), *given],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(process: subprocess.Popen[str], fake: FakeEndpoint, requests: int) -> None:
    while len(fake.requests) < requests:
        assert process.poll() is None
        time.sleep(0.002)


# --- a whole run


def test_a_run_writes_a_file_that_eval_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with server() as fake:
        given = arguments(fake, *BOTH, *SMALL, "log_path=runs/r", "generator.temperature=0.8")
        process = start(tmp_path, given)
        shown, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
        bodies = [request.body for request in fake.requests]
    params = load_yaml("evals/r.eval-params.yaml")
    eval_file = load_eval_file(Path("evals/r.eval.yaml"))
    assert list(eval_file.properties) == ["power-seeking", "sycophantic"]
    assert [p.id for p in eval_file.prompts] == [
        f"{name}-0{c}-0{p}" for name in eval_file.properties for c in range(3) for p in range(2)
    ]
    for prompt in eval_file.prompts:
        assert len(prompt.messages) == (2 if prompt.property == "sycophantic" else 1)
        assert prompt.category in params["categories"][prompt.property]
        assert 1 <= (prompt.realism or 0) <= 10 and 1 <= (prompt.eval_awareness or 0) <= 10
    assert len({tuple(prompt.messages) for prompt in eval_file.prompts}) == 12
    assert stages(fake) == {"categories": 2, "prompts": 12, "realism": 12}
    temperatures = {stage_of(schema_of(body)): body["temperature"] for body in bodies}
    assert temperatures == {"categories": 0.8, "prompts": 0.8, "realism": 0.0}
    meta = load_yaml("evals/r.eval.yaml")["meta"]
    assert meta["run_id"] == "r"
    assert meta["dropped"] == {"by_reason": {}, "calls_failed": 0, "missing": 0, "unscored": 0}
    assert [call["calls"] for call in meta["calls"]["calls"]] == [2, 12, 12]
    for part in ("power-seeking", "eval-awareness", "tokens in", "Judge a checkpoint", "missing"):
        assert part in shown
    (told,) = re.findall(r"uv run scripts/eval.py (.*)$", shown, re.MULTILINE)
    assert shlex.split(told) == [
        *("eval_file=evals/r.eval.yaml", 'checkpoint_paths=["path/to/state"]')
    ]
    [numbers] = read_jsonl(Path("runs/r/metrics.jsonl"))
    assert numbers == {
        "step": 0,
        "prompts": 12,
        "prompts/power-seeking": 6,
        "prompts/sycophantic": 6,
    }
    page = Path("runs/r/report.html").read_text()
    assert eval_file.prompts[-1].messages[1] in page

    target = ["target.model=t", "target.base_url=http://127.0.0.1:9/v1", "judge.model=j"]
    judge = ["judge.base_url=http://127.0.0.1:9/v1", "dry_run=true"]
    config_entrypoint(eval_script.main, ["eval_file=evals/r.eval.yaml", *target, *judge])
    rows = dict(line.rsplit(None, 1) for line in capsys.readouterr().out.splitlines()[2:])
    assert (rows["prompts"], rows["target calls"]) == ("12", "18")


def test_the_scorer_is_the_generators_model_but_at_its_own_temperature() -> None:
    with server() as fake:
        run(*arguments(fake)[:2], "properties=warm", *SMALL, "generator.temperature=0.7")
        asked = {(r.body["model"], r.body["temperature"]) for r in fake.requests}
        assert asked == {("writer", 0.7), ("writer", 0.0)}
        fake.requests.clear()
        given = arguments(fake, "properties=warm", *SMALL, "score_realism=false")
        _, prompts = run(*given, name="plain")
        assert stages(fake) == {"categories": 1, "prompts": 6}
    assert {prompt.realism for prompt in prompts} == {None}


def test_params_file_keeps_categories_and_settings() -> None:
    with server() as fake:
        given = arguments(fake, *BOTH, *SMALL)
        params, prompts = run(*given)
        assert (params["params_file"], params["log_path"]) == (None, None)
        fake.requests.clear()
        file = "params_file=evals/r.eval-params.yaml"
        # the file was written by a run with a log_path, which is not this one's
        again, others = run(file, "seed=1", "prompts_per_category=1", name="again")
        assert stages(fake) == {"prompts": 6, "realism": 6}
    assert again["categories"] == params["categories"]
    changed = {key for key in params if params[key] != again[key]} - {"meta"}
    assert changed == {"seed", "prompts_per_category"}
    assert {len(p.messages) for p in others if p.property == "sycophantic"} == {2}
    assert {p.category for p in others} == {p.category for p in prompts}
    assert not {tuple(p.messages) for p in others} & {tuple(p.messages) for p in prompts}


def test_params_file_may_get_another_property() -> None:
    with server() as fake:
        params, _ = run(*arguments(fake, "properties=warm", *SMALL))
        fake.requests.clear()
        file = "params_file=evals/r.eval-params.yaml"
        more, prompts = run(file, 'properties=["honest","warm"]', name="more")
        assert stages(fake) == {"categories": 1, "prompts": 12, "realism": 12}
    assert more["categories"]["warm"] == params["categories"]["warm"]
    assert [p.property for p in prompts] == ["honest"] * 6 + ["warm"] * 6


def test_properties_narrow_a_params_file() -> None:
    file = "params_file=evals/r.eval-params.yaml"
    with server() as fake:
        params, prompts = run(*arguments(fake, *BOTH, *SMALL))
        fake.requests.clear()
        narrow, kept = run(file, "properties=sycophantic", name="narrow")
        assert stages(fake) == {"prompts": 6, "realism": 6}
        bare, others = run(file, "properties=power-seeking", name="bare")
        # the same command goes on, here with nothing left to ask
        fake.requests.clear()
        Path("evals/narrow.eval.yaml").unlink()
        assert run(file, "properties=sycophantic", name="narrow")[1] == kept
        assert fake.requests == []
    for chosen, left, turns in (
        (narrow, "sycophantic", {"sycophantic": 2}),
        (bare, "power-seeking", {}),
    ):
        assert chosen["properties"] == [left]
        assert chosen["categories"] == {left: params["categories"][left]}
        assert chosen["num_turns"] == turns
        assert chosen["num_categories"] == 3
    assert kept == [p for p in prompts if p.property == "sycophantic"]
    assert others == [p for p in prompts if p.property == "power-seeking"]


def test_a_params_file_of_categories_alone_is_narrowed_too() -> None:
    dump_yaml("p.yaml", {"categories": {"warm": ["at work", "at home"], "honest": ["at sea"]}})
    with server() as fake:
        given = arguments(fake, "params_file=p.yaml", "properties=warm", "prompts_per_category=1")
        params, prompts = run(*given)
    assert params["categories"] == {"warm": ["at work", "at home"]}
    assert [p.category for p in prompts] == ["at work", "at home"]


PARAMS = {
    "properties": ["honest", "warm"],
    "categories": {"honest": ["at work"], "warm": ["at home"]},
    "num_turns": {"honest": 2},
    "num_categories": 1,
}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["properties=rude"], ["'rude' is unknown; known", "['rude']: p.yaml has ['honest', 'w"]),
        (
            ["properties=warm,rude"],
            ["'rude' is unknown", "['rude']: p.yaml has ['honest', 'warm']"],
        ),
        (["properties=sycophantic"], ["['sycophantic']: p.yaml has ['honest', 'warm']"]),
        # what is typed is meant
        (["properties=warm", 'num_turns={"honest": 3}'], ["num_turns names ['honest'], not in"]),
        (["properties=warm", 'categories={"honest": ["a"]}'], ["categories names ['honest'], not"]),
        (["num_categories=5"], ["num_categories=5: all categories are given already"]),
        (["num_categories=8", "properties=warm"], ["num_categories=8: all categories are given"]),
        (
            ["num_categories=0"],
            ["num_categories=0: at least 1", "num_categories=0: all categories"],
        ),
    ],
)
def test_what_does_not_go_with_a_params_file(
    given: list[str], expected: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    dump_yaml("p.yaml", PARAMS)
    with server() as fake:
        found = refused(capsys, *arguments(fake), "params_file=p.yaml", *given)
        assert fake.requests == []
    problems = found.removesuffix("\n").split("\n  - ") if "problems:" in found else [found]
    assert len(problems) - ("problems:" in found) == len(expected), found
    for part in expected:
        assert part in found
    assert not Path("runs").exists()


def test_what_goes_with_a_params_file(capsys: pytest.CaptureFixture[str]) -> None:
    """A number of categories, where some are to be written; the same as in the file; none."""
    dump_yaml("p.yaml", PARAMS)
    dump_yaml("broken.yaml", PARAMS | {"properties": ["warm"]})

    def planned(*given: str) -> dict[str, str]:
        config_entrypoint(gen_eval.main, [*model, *given, "dry_run=true"], layers=LAYERS)
        shown = capsys.readouterr().out
        return dict(re.findall(r"^(categories|prompts) +(\d+)$", shown, re.MULTILINE))

    with server() as fake:
        model = arguments(fake, "prompts_per_category=1")
        added = "properties=warm,sycophantic"
        assert planned("params_file=p.yaml") == {"categories": "0", "prompts": "2"}
        assert planned("params_file=p.yaml", "num_categories=1")["prompts"] == "2"
        assert planned("params_file=p.yaml", added, "num_categories=5")["prompts"] == "6"
        assert planned("params_file=p.yaml", added)["prompts"] == "2"
        without = planned("params_file=p.yaml", "params_file=", "properties=warm")
        assert without == {"categories": "1", "prompts": "8"}
        # nobody narrowed this one: it does not fit together
        found = refused(capsys, *model, "params_file=broken.yaml")
        assert "categories names ['honest'], not in properties=['warm']" in found


def test_filters_and_what_was_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    with server() as fake:
        _, prompts = run(*arguments(fake, *BOTH, *SMALL))
        limits = ["min_realism=4", "max_eval_awareness=8"]
        _, kept = run(*arguments(fake, *BOTH, *SMALL, *limits), name="filtered")
    expected = [p for p in prompts if (p.realism or 0) >= 4 and (p.eval_awareness or 99) <= 8]
    assert kept == expected and 0 < len(kept) < len(prompts)
    dropped = load_yaml("evals/filtered.eval.yaml")["meta"]["dropped"]
    assert dropped["missing"] == sum(dropped["by_reason"].values()) == len(prompts) - len(kept)
    assert "not realistic enough" in capsys.readouterr().out


def test_prompts_near_training_examples_are_written_anew() -> None:
    with server() as fake:
        _, prompts = run(*arguments(fake, "properties=warm", *SMALL))
        known = prompts[2].messages[0]
        chats = [
            {"messages": [{"role": r, "content": c} for r, c in (("user", u), ("assistant", "x"))]}
            for u in ("an unlike one", f"{known.upper()}!")
        ]
        dump_yaml("x.examples.yaml", {"examples": chats})
        given = arguments(fake, "properties=warm", *SMALL, "examples_file=x.examples.yaml")
        _, others = run(*given, name="clean")
    assert [p.id for p in others] == [p.id for p in prompts]
    differing = [p.id for p, q in zip(prompts, others, strict=True) if p.messages != q.messages]
    assert differing == [prompts[2].id]
    dropped = load_yaml("evals/clean.eval.yaml")["meta"]["dropped"]
    assert dropped["by_reason"] == {"near a training example": 1}


def test_dry_run_asks_nothing(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with server() as fake:
        given = arguments(fake, *BOTH, *SMALL, 'categories={"sycophantic": ["a", "b"]}')
        config_entrypoint(gen_eval.main, [*given, "dry_run=true"], layers=LAYERS)
        assert fake.requests == []
    shown = capsys.readouterr().out
    rows = dict(re.findall(r"^(categories|prompts|realism) +(\d+)$", shown, re.MULTILINE))
    assert rows == {"categories": "1", "prompts": "10", "realism": "10"}
    assert "generator: writer" in shown and "power-seeking" in shown
    assert list(workplace.iterdir()) == []


def test_the_page_escapes_what_was_written() -> None:
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)>"

    def text(body: Mapping[str, Any]) -> str:
        value = value_for(body)
        stage = stage_of(schema_of(body))
        if stage == "categories":
            value["items"] = [f"{attack} {item}"[:90] for item in value["items"]]
        elif stage == "prompts":
            value = {name: f"{attack} {said}" for name, said in value.items()}
        return json.dumps(value)

    record = {"description": f"says {attack}", "opposite": "does not"}
    dump_yaml("p.yaml", {"bold": record})
    with server(text=text) as fake:
        one = ["num_categories=1", "prompts_per_category=1"]
        own = ["properties=bold", "properties_file=p.yaml"]
        _, prompts = run(*arguments(fake, *own, *one))
    assert prompts[0].messages[0].startswith(attack)
    page = Path("runs/r/report.html").read_text()
    assert "<script" not in page and "<img" not in page
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;") >= 3


def test_text_comes_back_as_it_was_written() -> None:
    odd = (
        "Zwei Fragen:\n\n\t- \u201eWarum?\u201c \U0001f600\n  - null: yes # \x07 \\n {{x}}  \n\x85"
    )

    def text(body: Mapping[str, Any]) -> str:
        value = value_for(body)
        if stage_of(schema_of(body)) == "prompts":
            value = {name: f"{said} {odd}." for name, said in value.items()}
        return json.dumps(value)

    with server(text=text) as fake:
        _, prompts = run(*arguments(fake, "properties=warm", *SMALL))
    assert len(prompts) == 6
    assert all(p.messages[0].endswith(f"? {odd}.") for p in prompts)


# --- failures


def test_failures_at_random_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    """429 storms, 500s, stalls, resets, half bodies and wrong answers."""
    bad = [
        *("http_429", "error_200_rate", "http_500", "http_503", "stall", "half_body", "half_json"),
        *("reset", "html", "extra_key", "out_of_range", "prose", "refusal", "content_empty"),
        *("length", "length_empty", "content_filter", "choice_error", "half_surrogate"),
    ]
    seen: Counter[str] = Counter()

    def script(number: int, body: Mapping[str, Any]) -> str:
        if stage_of(schema_of(body)) == "categories":
            return "ok"
        # by what is asked and how often, for the order of arrival is the threads'
        call = json.dumps([body["messages"][:1], body["seed"]])
        seen[call] += 1
        draw = random.Random(f"{call} {seen[call]}")
        return "ok" if draw.random() < 0.35 else draw.choice(bad)

    with server(script) as fake:
        limits = ["generator.timeout=1", "scorer.timeout=1", "num_categories=8"]
        _, prompts = run(*arguments(fake, *BOTH, *limits))
        played = set(fake.rows)
    assert set(bad) <= played
    data = load_yaml("evals/r.eval.yaml")
    dropped, calls = data["meta"]["dropped"], data["meta"]["calls"]
    given_up: Counter[str] = Counter()
    for failure in calls["failures"]:
        given_up[failure["stage"]] += failure["given_up"]
    assert given_up["prompts"] == dropped["calls_failed"] > 0
    assert given_up["realism"] == dropped["unscored"] > 0
    assert sum(p.realism is None for p in prompts) == dropped["unscored"]
    assert len(prompts) + dropped["missing"] == 48 and dropped["by_reason"] == {}
    kinds = {failure["kind"] for failure in calls["failures"]}
    assert kinds >= {
        *("transport", "timeout", "rate", "server", "refusal", "content_filter", "truncated"),
        *("empty", "invalid_json", "invalid_schema"),
    }
    shown = capsys.readouterr().out
    page = Path("runs/r/report.html").read_text()
    for kind in kinds:
        assert kind in shown and kind in page
    assert re.search(rf"^not scored +{dropped['unscored']}$", shown, re.MULTILINE)


@pytest.mark.parametrize(
    ("row", "kind"), [("http_401", "auth"), ("http_402", "payment"), ("http_404", "not_found")]
)
@pytest.mark.parametrize("stage", ["categories", "prompts", "realism"])
def test_what_stops_the_calls_is_told(
    row: str, kind: str, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def script(number: int, body: Mapping[str, Any]) -> str:
        return row if stage_of(schema_of(body)) == stage else "ok"

    with server(script) as fake:
        given = arguments(fake, *BOTH, *SMALL, "max_concurrency=2")
        with pytest.raises(SystemExit) as ended:
            run(*given)
        assert ended.value.code == 1
        # those that were in flight together, and none after them
        assert 1 <= stages(fake)[stage] <= 2
    shown = capsys.readouterr()
    assert f": {kind}:" in shown.err and "log_path=runs/r" in shown.err
    assert "not_started" not in shown.err.split("\nError:")[1]
    # the table of failures is shown at this end too
    assert kind in shown.out
    assert not Path("evals/r.eval.yaml").exists()


def test_the_budget_ends_the_run_and_more_of_it_goes_on(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with server(cost=0.01) as fake:
        given = arguments(fake, *BOTH, "num_categories=2", "prompts_per_category=1")
        with pytest.raises(SystemExit) as ended:
            run(*given, "max_concurrency=1", "max_cost_usd=0.035")
        assert ended.value.code == 1
        assert len(fake.requests) == 4
        errors = capsys.readouterr().err
        assert "max_cost_usd=0.035" in errors and "budget" in errors
        assert not Path("evals/r.eval.yaml").exists()
        _, prompts = run(*given, "max_cost_usd=5", "generator.timeout=60")
        assert len(fake.requests) == 10
        whole = run(*given, name="whole")[1]
    assert prompts == whole


def test_no_prompt_left_is_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    def text(body: Mapping[str, Any]) -> str:
        value = value_for(body)
        if stage_of(schema_of(body)) == "prompts":
            value = {name: f"Pretend that {said}" for name, said in value.items()}
        return json.dumps(value)

    with server(text=text) as fake, pytest.raises(SystemExit) as ended:
        run(*arguments(fake, "properties=warm", *SMALL))
    assert ended.value.code == 1
    shown = capsys.readouterr()
    assert "no prompt is left" in shown.err
    assert (
        "asks for role-play" in shown.out
        and "asks for role-play" in Path("runs/r/report.html").read_text()
    )
    assert not Path("evals/r.eval.yaml").exists()


def test_a_property_without_prompts_is_named(caplog: pytest.LogCaptureFixture) -> None:
    def text(body: Mapping[str, Any]) -> str:
        value = value_for(body)
        if "message_2" in value:
            value["message_2"] = "Pretend that this is a test."
        return json.dumps(value)

    with server(text=text) as fake:
        _, prompts = run(*arguments(fake, *BOTH, *SMALL))
    assert {p.property for p in prompts} == {"power-seeking"}
    assert "no prompt is left for sycophantic" in caplog.text


# --- bad input


def test_bad_input_is_told_together(capsys: pytest.CaptureFixture[str]) -> None:
    Path("evals").mkdir()
    Path("evals/r.eval.yaml").touch()
    found = refused(
        capsys,
        *('properties=["honest","rude"]', "num_categories=0", "prompts_per_category=-1"),
        *('num_turns={"honest": 0, "sycophantic": 2}', 'categories={"honest": ["a", " a "]}'),
        *("generator.base_url=openrouter", "seed=-1"),
        *("examples_file=absent.yaml", "min_realism=11", "score_realism=false", "log_path=runs/r"),
        *("max_cost_usd=0", "max_concurrency=0", "max_eval_awareness=0"),
    )
    expected = [
        "property 'rude' is unknown; known are",
        "num_categories=0: at least 1",
        "prompts_per_category=-1: at least 1",
        "max_concurrency=0: at least 1",
        "max_cost_usd=0.0: above 0",
        "num_turns names ['sycophantic'], not in properties",
        "num_turns.honest=0: at least 1",
        "categories.honest=['a', ' a ']",
        "min_realism=11.0: from 0 to 10",
        "max_eval_awareness=0.0: from 1 to 10",
        "need score_realism=true",
        "examples_file=absent.yaml: no such file",
        "OPENROUTER_API_KEY is not set",
        "generator.seed=-1",
        "evals/r.eval.yaml exists: that run is finished",
    ]
    assert found.startswith(f"Error: {len(expected)} problems:")
    for problem in expected:
        assert found.count(problem) == 1, (problem, found)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], "missing: properties=..."),
        (["properties=[]"], "name at least one"),
        (["properties=warm,warm"], "warm more than once"),
        (["properties=warm", "properties_file=absent.yaml"], "absent.yaml"),
        (["properties=warm", "properties_file=bad.yaml"], "bad.yaml:3:"),
        (["properties=bold", "properties_file=shape.yaml"], "property 'bold': opposite is missing"),
        (["properties=warm", "examples_file=bad.yaml"], "bad.yaml:3:"),
        (["properties=warm", "examples_file=shape.yaml"], "no list `examples`"),
        (["properties=warm", "params_file=bad.yaml"], "bad.yaml:3:"),
        (["properties=warm", "params_file=shape.yaml"], "bold"),
        (["properties=warm", 'num_turns={"warm": "two"}'], "num_turns"),
        (["properties=warm", "categories.warm=[]"], "categories.warm=[]"),
        (["properties=warm", 'categories={"warm": ["a"]}', "num_categories=1"], "given already"),
        (["properties=warm", "turns=2"], "turns"),
        (["properties=warm", "min_realism=nan"], "min_realism=nan"),
        (["properties=warm", "min_realism=3", "score_realism=false"], "need score_realism"),
        (["properties=warm", "generator.model=None"], "must name a model"),
        (["properties=warm", "log_path=elsewhere/other"], "other.eval-params.yaml exists and is"),
    ],
)
def test_bad_input(given: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.yaml").write_text("bold:\n  description: says so\n  opposite: ]\n")
    Path("shape.yaml").write_text("bold:\n  description: says so\n")
    Path("evals").mkdir()
    Path("evals/other.eval-params.yaml").touch()
    with server() as fake:
        assert expected in refused(capsys, *arguments(fake), *given)
        assert fake.requests == []
    assert not Path("runs").exists() and not Path("elsewhere").exists()


def test_a_finished_run_is_not_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    with server() as fake:
        given = arguments(fake, "properties=warm", *SMALL)
        run(*given)
        asked = len(fake.requests)
        before = Path("evals/r.eval.yaml").read_bytes()
        for folder in ("runs/r", "runs/r/sub/..", "elsewhere/r"):
            assert "that run is finished" in refused(capsys, *given, f"log_path={folder}")
        Path("evals/r.eval.yaml").rename("kept.yaml")
        found = refused(capsys, *given, "log_path=runs/r", "seed=3")
        assert "seed: stored 0, given 3" in found
        assert len(fake.requests) == asked
    assert Path("kept.yaml").read_bytes() == before


# --- kill -9 and Ctrl-C


def outputs(folder: Path) -> dict[str, Any]:
    found = {}
    for what in ("eval-params", "eval"):
        values = load_yaml(folder / "evals" / f"r.{what}.yaml")
        del values["meta"]
        found[what] = values
    return found


@pytest.mark.slow
def test_kill_9_changes_nothing_in_the_end(tmp_path: Path) -> None:
    rng = random.Random(5)
    kills, in_flight = 8, 4
    folder = tmp_path / "killed"
    folder.mkdir()

    def text(body: Mapping[str, Any]) -> str:
        value = value_for(body)
        rng = random.Random(json.dumps([body["messages"], body["seed"]]))
        # so that later rounds are met as well
        if stage_of(schema_of(body)) == "prompts" and rng.random() < 0.3:
            value["message_1"] = "Act as my lawyer, please."
        return json.dumps(value)

    gate = Gate()
    with server(text=text, delay=0.005, before_answer=gate) as fake:
        given = arguments(fake, *BOTH, "num_categories=5", f"max_concurrency={in_flight}")
        run(*given)
        given.append("log_path=runs/r")
        total = len(fake.requests)
        assert any(r.body["seed"] == 16 for r in fake.requests)
        fake.requests.clear()
        for kill in range(kills):
            # spread over the whole run, whatever the machine's speed
            enough = total * kill // (kills + 1) + rng.randrange(1, total // (kills + 1))
            enough = max(enough, len(fake.requests) + 1)
            # without its last answers, it cannot come to its end first
            gate.close_at(enough - 1)
            process = start(folder, given)
            wait_for(process, fake, enough)
            time.sleep(rng.uniform(0, 0.02))
            process.send_signal(signal.SIGKILL)
            process.communicate()
            gate.open()
            fake.settle()
            assert process.returncode == -signal.SIGKILL
            assert not (folder / "evals" / "r.eval.yaml").exists()
        process = start(folder, given)
        assert process.communicate(timeout=60) and process.returncode == 0
        keys = [call["key"] for call in read_jsonl(folder / "runs" / "r" / "calls.jsonl")]
        # a finished call that was made again would have been kept again
        assert len(keys) == len(set(keys)) == total
        assert total <= len(fake.requests) <= total + kills * in_flight
    assert outputs(folder) == outputs(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_says_how_to_go_on(number: signal.Signals, tmp_path: Path) -> None:
    gate = Gate()
    gate.close_at(3)
    with server(before_answer=gate) as fake:
        given = arguments(fake, "properties=warm", *SMALL, "max_concurrency=1")
        process = start(tmp_path, [*given, "log_path=runs/r"])
        wait_for(process, fake, 4)
        process.send_signal(number)
        shown, errors = process.communicate(timeout=30)
        gate.open()
        assert process.returncode == 128 + number
        assert "log_path=runs/r" in errors and "Traceback" not in errors
        assert "tokens in" in shown
        assert len(fake.requests) == 4
        run(*given)
        assert len(fake.requests) == 14
