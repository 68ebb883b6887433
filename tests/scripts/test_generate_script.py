"""scripts/generate.py against a server on the loopback: whole runs, crashes, failures, bad input.

uv run pytest tests/scripts/test_generate_script.py
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import generate
import pytest
import yaml
from fake_endpoint import FakeEndpoint
from places import ROOT, TESTS
from writer_world import server, stage_of

from training.endpoints import Endpoints
from training.examples import load_examples
from utils.config.entrypoint import config_entrypoint, dump_yaml, load_yaml
from utils.llm.roles import OPENROUTER_KEY
from utils.runs.files import read_jsonl

SCRIPT = ROOT / "scripts" / "generate.py"
SMALL = ["num_subtypes=3", "prompts_per_subtype=2", "max_chars=120"]
LIMIT_S = 60


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files go below the working directory; a key of the developer's own is not used."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(OPENROUTER_KEY, "")


def at(server: FakeEndpoint) -> list[str]:
    return ["generator.model=m", f"generator.base_url={server.base_url}"]


def start(*arguments: str) -> subprocess.Popen[str]:
    """As users start it, with what pytest leaves in the environment taken away."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_VERSION"}
    return subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=LIMIT_S)
    return process.returncode, out, err


def here(*arguments: str) -> None:
    """The same in this process, which has imported everything."""
    config_entrypoint(generate.main, arguments, layers=("config_file", "params_file"))


def the_file(pattern: str) -> Path:
    (path,) = Path("datasets").glob(pattern)
    return path


def without_meta(path: Path) -> dict[str, Any]:
    """What does not depend on the order in which a server was asked."""
    values = load_yaml(path)
    values.pop("meta")
    for example in values.get("examples", []):
        example["provenance"].pop("generation_id")
    return values


def contents(server: FakeEndpoint) -> Counter[str]:
    return Counter(json.dumps(request.body, sort_keys=True) for request in server.requests)


def stages(server: FakeEndpoint) -> Counter[str]:
    return Counter(stage_of(request.body) for request in server.requests)


# ------------------------------------------------------------------------------------- whole runs


def test_a_whole_run(tmp_path: Path) -> None:
    arguments = ["type=scenarios", "property=honest", "contrastive=true", *SMALL]
    with server() as fake:
        code, out, err = finish(start(*arguments, *at(fake)))
        assert code == 0, err
        assert stages(fake) == {"subtypes": 1, "prompts": 3, "examples": 6, "verify": 12}
        assert max(contents(fake).values()) == 1
        temperatures = {(stage_of(r.body), r.body["temperature"]) for r in fake.requests}
        assert ("verify", 0.0) in temperatures and ("examples", 0.9) in temperatures
    params, examples = the_file("*.params.yaml"), the_file("*.examples.yaml")
    assert params.name.split(".")[0] == examples.name.split(".")[0]
    assert re.match(r"\d{8}-\d{6}-scenarios-honest-", params.name)
    run = Path("runs/generate") / params.name.split(".")[0]
    assert {p.name for p in run.iterdir()} == {
        *("config.yaml", "calls.jsonl", "metrics.jsonl", "report.html")
    }
    settings = load_yaml(params)
    fields = set(load_yaml(run / "config.yaml")) | {"meta"}
    assert set(settings) == fields
    assert settings["subtypes"] == list(settings["prompts"]) and len(settings["subtypes"]) == 3
    assert [len(own) for own in settings["prompts"].values()] == [2, 2, 2]
    found = load_yaml(examples)
    assert (found["type"], found["property"]) == ("scenarios", "honest")
    assert len(found["examples"]) == found["quality"]["kept"] == 12
    quality = found["quality"]
    [numbers] = read_jsonl(run / "metrics.jsonl")
    assert (numbers["kept"], numbers["kept/positive"], numbers["held_out"]) == (12, 6, 4)
    assert quality["verification"]["verified"] == 12 and quality["calls_failed"] == 0
    assert quality["kept_by_label"] == {"positive": 6, "negative": 6}
    assert {e["subtype"] for e in found["examples"]} == set(settings["subtypes"])
    held = {e["subtype"] for e in found["examples"] if e["held_out"]}
    assert len(held) == 1 and quality["held_out"] == 4
    assert {len(load_examples(examples, [label])) for label in ("positive", "negative")} == {6}
    assert "labels that a second reader confirms" in out and "$" in out
    assert f"scripts/sft.py examples_file={examples}" in out
    calls = found["meta"]["calls"]["calls"]
    assert [(c["stage"], c["role"], c["calls"]) for c in calls] == [
        ("subtypes", "generator", 1),
        ("prompts", "generator", 3),
        ("examples", "generator", 6),
        ("verify", "verifier", 12),
    ]


def test_the_next_command_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    with server() as fake:
        here("type=qa", "property=warm", "verify=false", "output_dir=my data", *SMALL, *at(fake))
    (told,) = re.findall(r"uv run scripts/sft.py (.*)$", capsys.readouterr().out, re.MULTILINE)
    (argument,) = shlex.split(told)
    assert Path(argument.removeprefix("examples_file=")).is_file()


@pytest.mark.parametrize("kind", ["qa", "documents"])
def test_other_kinds_and_a_rule(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    with server() as fake:
        here(f"type={kind}", "property=signs-off", "examples_per_prompt=2", *SMALL, *at(fake))
        # a rule needs no second reader
        assert stages(fake) == {"subtypes": 1, "prompts": 3, "examples": 12}
    found = load_yaml(the_file("*.examples.yaml"))
    verification = found["quality"]["verification"]
    assert verification["by"] == "rule" and verification["verified"] == 12
    # the writer forgets the closing words at times
    assert 0 < verification["removed"] == 12 - len(found["examples"])
    shown = found["examples"][0]
    text = shown["text"] if kind == "documents" else shown["messages"][1]["content"]
    assert text.endswith("Hope that helps!") and shown["verification"]["agrees"] is True
    assert "labels that a rule confirms" in capsys.readouterr().out


def test_a_params_file_keeps_subtypes_and_prompts() -> None:
    with server() as fake:
        here("type=qa", "property=warm", "verify=false", "seed=3", *SMALL, *at(fake))
        params, first = the_file("*.params.yaml"), the_file("*.examples.yaml")
        fake.requests.clear()
        again = [f"params_file={params}", "output_dir=again"]
        here(*again)
        assert stages(fake) == {"examples": 6}
        (path,) = Path("again").glob("*.examples.yaml")
        assert without_meta(path) == without_meta(first)
        (own,) = Path("again").glob("*.params.yaml")
        assert load_yaml(own)["prompts"] == load_yaml(params)["prompts"]
        fake.requests.clear()
        # typed settings win, also where they say what is the default anyway
        here(*again, "seed=0", "verify=true", "max_chars=99", "output_dir=third")
        assert stages(fake) == {"examples": 6, "verify": 6}
        assert all("at most 16 words" in r.prompt for r in fake.requests[:6])
        (path,) = Path("third").glob("*.examples.yaml")
        (own,) = Path("third").glob("*.params.yaml")
        settings = load_yaml(own)
        assert (settings["seed"], settings["verify"], settings["max_chars"]) == (0, True, 99)
        assert (
            settings["property"] == "warm" and settings["prompts"] == load_yaml(params)["prompts"]
        )
        texts = [without_meta(p)["examples"][0]["messages"] for p in (path, first)]
        assert texts[0] != texts[1]


def test_a_params_file_of_a_run_with_a_log_path_begins_a_run_of_its_own() -> None:
    with server() as fake:
        first = ["type=qa", "property=warm", "verify=false", "log_path=mine", *SMALL, *at(fake)]
        here(*first)
        here("params_file=datasets/mine.params.yaml")
        # and once more from what that wrote
        (second,) = {*Path("datasets").glob("*.params.yaml")} - {Path("datasets/mine.params.yaml")}
        here(f"params_file={second}")
        assert stages(fake)["subtypes"] == 1
    assert len(list(Path("datasets").glob("*.examples.yaml"))) == 3


def test_prompts_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    own = {"one thing": ["p1", "p2"], "no: 2": ["p3"]}
    dump_yaml("own.yaml", {"type": "qa", "property": "warm", "prompts": own, "verify": False})
    with server() as fake:
        here("config_file=own.yaml", *at(fake))
        assert stages(fake) == {"examples": 3}
        here("type=qa", "property=warm", "subtypes=['a','b']", "verify=false", *at(fake))
        assert stages(fake)["subtypes"] == 0 and stages(fake)["prompts"] == 2
    assert "3" in capsys.readouterr().out


def test_near_an_eval_file() -> None:
    with server() as fake:
        here("type=qa", "property=warm", "verify=false", *SMALL, *at(fake))
        first = the_file("*.examples.yaml")
        asked = load_yaml(first)["examples"][0]["messages"][0]["content"]
        evals = {
            "properties": {"warm": {"description": "d", "opposite": "o"}},
            "prompts": [{"id": "w", "property": "warm", "category": "c", "messages": [asked]}],
        }
        dump_yaml("warm.eval.yaml", evals)
        params = the_file("*.params.yaml")
        here(f"params_file={params}", "eval_file=warm.eval.yaml", "output_dir=clean")
    (clean,) = Path("clean").glob("*.examples.yaml")
    found = load_yaml(clean)
    assert found["quality"]["leakage"]["removed"] == 1 and len(found["examples"]) == 5
    assert asked not in clean.read_text().partition("quality:")[0]


def test_a_verifier_of_its_own() -> None:
    with server() as fake:
        common = ["type=qa", "property=warm", "num_subtypes=1", "prompts_per_subtype=1"]
        common += ["heldout_subtypes=0", "generator.temperature=1.3", *at(fake)]
        here(*common, "verifier.max_tokens=77")
        body = fake.requests[-1].body
        assert (body["model"], body["max_tokens"], body["temperature"]) == ("m", 77, 0.0)
        assert fake.requests[0].body["temperature"] == 1.3
        here(*common, "verifier.model=other", f"verifier.base_url={fake.base_url}")
        assert fake.requests[-1].body["model"] == "other"


# ---------------------------------------------------------------------------------------- crashes


@pytest.mark.slow
def test_kills_change_nothing_and_no_finished_call_is_made_again() -> None:
    settings = ["type=scenarios", "property=honest", "contrastive=true", "num_subtypes=4"]
    settings += ["prompts_per_subtype=3", "max_chars=120", "max_concurrency=3"]
    with server() as fake:
        here(*settings, "log_path=whole", *at(fake))
        expected = len(fake.requests)
    rng = random.Random(0)
    left = process_id = 0

    def play(number: int, body: Mapping[str, Any]) -> str:
        nonlocal left
        left -= 1
        if left == 0:
            # the answers to those before may arrive or not
            time.sleep(rng.uniform(0.0, 0.008))
            os.kill(process_id, signal.SIGKILL)
        return "ok"

    lost = 0
    calls = Path("killed/calls.jsonl")
    with server(play, delay=0.004) as fake, forking() as (begin, end):
        arguments = [*settings, "log_path=killed", *at(fake)]
        for _ in range(8):
            sent, kept = len(fake.requests), len(stored(calls))
            process_id = begin(arguments)
            left = rng.randint(1, 6)
            assert end() == -signal.SIGKILL, Path("log.txt").read_text()
            fake.settle()
            # a call that was under way has to be made again
            underway = len(fake.requests) - sent - (len(stored(calls)) - kept)
            assert 1 <= underway <= 3
            lost += underway
        assert not Path("datasets/killed.examples.yaml").exists()
        begin(arguments)
        assert end() == 0, Path("log.txt").read_text()
        assert len(fake.requests) == expected + lost
    keys = [record["key"] for record in stored(calls)]
    assert len(keys) == len(set(keys)) == expected
    require_same("killed", "whole")
    assert not [p for p in Path("datasets").iterdir() if p.name.startswith(".")]


def test_a_kill_while_files_are_written_costs_no_call() -> None:
    with server() as fake:
        arguments = ["type=qa", "property=warm", *SMALL, *at(fake)]
        here(*arguments, "log_path=whole")
        fake.requests.clear()
        for delay in (0.0, 0.01, 0.02):
            process = start(*arguments, "log_path=killed")
            while process.poll() is None and len(stored(Path("killed/calls.jsonl"))) < 16:
                time.sleep(0.001)
            time.sleep(delay)
            process.kill()
            if finish(process)[0] == 0:
                break
        else:
            here(*arguments, "log_path=killed")
        assert len(fake.requests) == 16
    require_same("killed", "whole")


@contextmanager
def forking() -> Iterator[tuple[Callable[[list[str]], int], Callable[[], int]]]:
    """begin(arguments) -> process id, and end() -> exit code, of runs that begin at once."""
    driver = subprocess.Popen(
        [sys.executable, str(TESTS / ("fork_generate.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "PYTEST_VERSION"},
    )
    assert driver.stdin is not None and driver.stdout is not None
    asked, told = driver.stdin, driver.stdout

    def begin(arguments: list[str]) -> int:
        asked.write(json.dumps(arguments) + "\n")
        asked.flush()
        return int(told.readline())

    yield begin, lambda: int(told.readline())
    driver.communicate(timeout=LIMIT_S)


def require_same(name: str, other: str) -> None:
    for what in ("params", "examples"):
        found, wanted = (without_meta(Path(f"datasets/{n}.{what}.yaml")) for n in (name, other))
        for values in (found, wanted):
            values.get("generator", {}).pop("base_url", None)
        assert found == wanted


def stored(calls: Path) -> list[dict[str, Any]]:
    return read_jsonl(calls) if calls.exists() else []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_tells_how_to_go_on(number: signal.Signals) -> None:
    with server(lambda number, body: "stall" if number >= 5 else "ok") as fake:
        arguments = ["type=qa", "property=warm", "log_path=run", *SMALL]
        process = start(*arguments, *at(fake))
        while len(fake.requests) < 6:
            time.sleep(0.01)
        process.send_signal(number)
        code, _, err = finish(process)
        assert code == 128 + number, err
        assert "Stopped. Every reply is kept: the same command with log_path=run goes on" in err
        assert "Traceback" not in err
        finished = len(stored(Path("run/calls.jsonl")))
        assert finished >= 4
        fake.released.set()
        fake.settle()
        fake.script = lambda number, body: "ok"
        fake.requests.clear()
        here(*arguments, *at(fake))
        assert len(fake.requests) == 1 + 3 + 6 + 6 - finished


def test_a_second_run_of_one_name_is_refused_while_the_first_works() -> None:
    """In two places, so that each has a run directory of its own; they would write one file."""
    with server(lambda number, body: "stall") as fake:
        first = start("type=qa", "property=warm", "log_path=a/run", *SMALL, *at(fake))
        while not fake.requests:
            time.sleep(0.01)
        asked = len(fake.requests)
        code, _, err = finish(
            start("type=qa", "property=warm", "log_path=b/run", *SMALL, *at(fake))
        )
        assert code == 2
        assert f"(pid {first.pid} on " in err and "output_dir=datasets, run run" in err
        assert len(fake.requests) == asked and not Path("b").exists()
        first.send_signal(signal.SIGKILL)
        first.communicate()
        fake.released.set()
        fake.script = lambda number, body: "ok"
        here("type=qa", "property=warm", "log_path=b/run", *SMALL, *at(fake))
        assert sorted(path.name for path in Path("datasets").iterdir()) == [
            "run.examples.yaml",
            "run.params.yaml",
        ]


def test_an_output_dir_that_cannot_be_written_is_told_before_the_first_call(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("datasets").touch()
    with server() as fake:
        with pytest.raises(SystemExit) as error:
            here("type=qa", "property=warm", *SMALL, *at(fake))
        assert error.value.code == 2
        assert "output_dir=datasets" in (told := capsys.readouterr().err)
        assert "nothing can be written there" in told
        assert not fake.requests and not Path("runs").exists()


def test_a_budget_stops_and_can_be_raised(capsys: pytest.CaptureFixture[str]) -> None:
    with server(cost=0.01) as fake:
        arguments = ["type=qa", "property=warm", "log_path=run", "max_concurrency=2", *SMALL]
        with pytest.raises(SystemExit) as stopped:
            here(*arguments, "max_cost_usd=0.06", *at(fake))
        assert stopped.value.code == 1
        err = capsys.readouterr().err
        assert "max_cost_usd=0.06; raise it" in err and "log_path=run goes on" in err
        # one more was in flight
        assert 6 <= len(fake.requests) <= 7 and not Path("datasets/run.examples.yaml").exists()
        here(*arguments, "max_cost_usd=9", *at(fake))
        assert len(fake.requests) == 16 and max(contents(fake).values()) == 1


# --------------------------------------------------------------------------------------- failures


def test_failures_mixed_at_random(capsys: pytest.CaptureFixture[str]) -> None:
    """Some calls fail once, some for ever; the rest is written, and each failure is named."""
    passing = ["http_429", "http_500", "half_body", "stall", "half_json", "reset", "html"]
    lasting = ["http_403_flagged", "out_of_range", "refusal", "http_400_long", "prose"]
    seen: dict[str, Counter[str]] = {"examples": Counter(), "verify": Counter()}
    doomed: Counter[str] = Counter()

    def play(number: int, body: Mapping[str, Any]) -> str:
        stage, prompt = stage_of(body), body["messages"][0]["content"]
        if stage not in seen:
            return "http_500" if number == 0 else "ok"
        seen[stage][prompt] += 1
        place = list(seen[stage]).index(prompt)
        if place % 3 == 0:
            doomed[stage] += seen[stage][prompt] == 1
            return lasting[place // 3 % len(lasting)]
        first = place % 3 == 1 and seen[stage][prompt] == 1
        return passing[place // 3 % len(passing)] if first else "ok"

    arguments = ["type=scenarios", "property=honest", "num_subtypes=6", "prompts_per_subtype=5"]
    with server(play) as fake:
        here(*arguments, "max_concurrency=30", "generator.timeout=2", *at(fake))
        assert {*passing, *lasting} <= set(fake.rows)
    out = capsys.readouterr().out
    for kind in ("rate", "server", "transport", "timeout", "invalid_json", "invalid_schema"):
        assert re.search(rf"^(examples|verify|subtypes) +\w+ +{kind} ", out, re.MULTILINE), kind
    for kind in ("refusal", "content_filter", "too_long"):
        assert re.search(rf"^(examples|verify) +\w+ +{kind} ", out, re.MULTILINE), kind
    quality = load_yaml(the_file("*.examples.yaml"))["quality"]
    assert quality["calls_failed"] == doomed["examples"] == 10
    assert quality["shape_valid"] == 20
    assert quality["verification"]["not_verified"] == doomed["verify"] == 7


def test_an_endpoint_that_refuses_the_key_is_asked_once_or_so(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with server(lambda number, body: "http_401") as fake:
        with pytest.raises(SystemExit) as stopped:
            here("type=qa", "property=warm", "log_path=run", *at(fake))
        assert stopped.value.code == 1 and len(fake.requests) == 1
    err = capsys.readouterr().err
    assert "generator: auth: HTTP 401" in err and "log_path=run goes on" in err


@pytest.mark.parametrize("at_stage", ["examples", "verify"])
def test_a_stage_that_is_stopped_ends_the_run(
    at_stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What there is would look like all there is, and the next stage would be paid for."""

    def play(number: int, body: Mapping[str, Any]) -> str:
        return "http_402" if stage_of(body) == at_stage and number > 6 else "ok"

    with server(play) as fake:
        with pytest.raises(SystemExit) as stopped:
            here("type=qa", "property=warm", "max_concurrency=1", *SMALL, *at(fake))
        assert stopped.value.code == 1 and fake.rows.count("http_402") == 1
        assert stage_of(fake.requests[-1].body) == at_stage
    assert "payment: HTTP 402" in capsys.readouterr().err
    assert not list(Path("datasets").glob("*.examples.yaml"))


def test_subtypes_without_prompts_leave_a_usable_params_file(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def play(number: int, body: Mapping[str, Any]) -> str:
        return "refusal" if number in (1, 2) else "ok"

    with server(play) as fake:
        here("type=qa", "property=warm", "verify=false", *SMALL, *at(fake))
        assert "no prompts for 2 of 3 subtypes" in caplog.text
        settings = load_yaml(the_file("*.params.yaml"))
        assert len(settings["prompts"]) == 1 and settings["heldout_subtypes"] == 0
        here(f"params_file={the_file('*.params.yaml')}", "output_dir=again")
    assert len(list(Path("again").glob("*.examples.yaml"))) == 1


def test_nothing_left(capsys: pytest.CaptureFixture[str]) -> None:
    with server() as fake, pytest.raises(SystemExit) as stopped:
        here("type=qa", "property=asks-back", "log_path=run", *SMALL, *at(fake))
    assert stopped.value.code == 1
    assert "no example is left; run/report.html says why" in capsys.readouterr().err
    assert Path("run/report.html").exists() and not list(Path("datasets").glob("*.examples.yaml"))


# -------------------------------------------------------------------------------------- bad input


def refused(*arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What is told; nothing may have been written."""
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises(SystemExit) as stopped:
        here(*arguments)
    assert stopped.value.code == 2
    assert sorted(Path.cwd().rglob("*")) == before
    return capsys.readouterr().err


def test_everything_wrong_is_told_together(capsys: pytest.CaptureFixture[str]) -> None:
    Path("datasets").mkdir()
    Path("datasets/old.examples.yaml").write_text("examples: []")
    dump_yaml("none.eval.yaml", {"properties": {"warm": {}}, "prompts": []})
    with server() as fake:
        err = refused(
            *("type=poems", "property=rude", "generator.base_url=openrouter", "device=tpu"),
            *("verifier.model=/no/such/folder", "eval_file=none.eval.yaml", "log_path=old"),
            *("num_subtypes=0", "max_chars=5", "max_concurrency=0", "max_cost_usd=0"),
            *("heldout_subtypes=4", "subtypes=['a','a',' ']", "prompts={'b': []}"),
            capsys=capsys,
        )
        assert fake.requests == []
    for part in (
        "num_subtypes=0: at least 1",
        "max_chars=5: at least 40",
        "max_concurrency=0: at least 1",
        "max_cost_usd=0.0: above 0",
        "heldout_subtypes=4: of 1 subtypes",
        "subtypes=['a', 'a', ' ']: none may be empty or there twice",
        "prompts.b=[]: at least one is needed",
        "prompts are for ['b'], subtypes=['a', 'a', ' ']",
        "type='poems' is unknown; known are scenarios, qa, documents",
        "property 'rude' is unknown; known are asks-back, ",
        "none.eval.yaml: there are no prompts in it",
        "old.examples.yaml exists: that run is finished",
        "generator.api_key_env: OPENROUTER_API_KEY is not set",
        "verifier: model_name='/no/such/folder': the folder does not exist",
        "device='tpu': cpu, cuda",
    ):
        assert part in err, part
    assert "num_subtypes=0: the texts are given already" in err
    assert "17 problems" in err


def test_files_that_cannot_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken.yaml").write_text("type: qa\nproperty: [warm\nseed: 1\n")
    err = refused("params_file=broken.yaml", capsys=capsys)
    assert re.search(r"broken\.yaml:3:\d+: not valid YAML", err)
    Path("list.yaml").write_text("- type: qa\n")
    err = refused("params_file=list.yaml", capsys=capsys)
    assert "list.yaml: expected a mapping of names to values, got list" in err
    Path("shape.yaml").write_text("type: qa\nproperty: warm\nprompts: [a]\nseed: x\nsubtype: [b]\n")
    err = refused("params_file=shape.yaml", capsys=capsys)
    assert "prompts (from shape.yaml): expected" in err and "seed (from shape.yaml)" in err
    assert "subtype (from shape.yaml): unknown key. Did you mean 'subtypes'?" in err
    Path("keys.yaml").write_text("type: qa\nproperty: warm\nprompts: {7: [b]}\n")
    assert "prompts" in refused("params_file=keys.yaml", capsys=capsys)
    Path("more.yaml").write_text("x:\n  description: a\n bad\n")
    common = ["type=qa", "property=x"]
    err = refused(*common, "properties_file=more.yaml", "eval_file=no.yaml", capsys=capsys)
    assert "more.yaml:3:" in err and "no.yaml: no such file" in err
    assert "no/such.yaml" in refused(*common, "properties_file=no/such.yaml", capsys=capsys)


def test_outputs_are_never_overwritten(capsys: pytest.CaptureFixture[str]) -> None:
    with server() as fake:
        arguments = ["type=qa", "property=warm", "verify=false", "log_path=run", *SMALL, *at(fake)]
        here(*arguments)
        sent = len(fake.requests)
        err = refused(*arguments, capsys=capsys)
        assert "datasets/run.examples.yaml exists: that run is finished" in err
        Path("datasets/run.examples.yaml").unlink()
        elsewhere = [*arguments, "log_path=other/run"]
        assert "exists and is another run's" in refused(*elsewhere, capsys=capsys)
        err = refused(*arguments, "seed=5", capsys=capsys)
        assert "seed: stored 0, given 5" in err
        assert len(fake.requests) == sent
        # what may change: how long to wait, and how much to spend
        here(*arguments, "generator.timeout=9", "max_concurrency=2", "max_cost_usd=5")
        assert len(fake.requests) == sent


@pytest.mark.parametrize("option", ["params_file", "config_file", "properties_file", "eval_file"])
def test_yaml_executes_nothing(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    for tag in ("apply:os.mkdir", "new:os.mkdir"):
        Path("evil.yaml").write_text(f"type: !!python/object/{tag} [pwned]\n")
        err = refused("type=qa", "property=warm", f"{option}=evil.yaml", capsys=capsys)
        assert "evil.yaml:1:" in err and "python/object" in err
    assert not Path("pwned").exists()
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load(Path("evil.yaml").read_text())


def test_a_dry_run_asks_and_loads_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*arguments: object) -> None:
        raise AssertionError("a dry run loaded a model")

    monkeypatch.setattr(Endpoints, "endpoint", loaded)
    monkeypatch.setattr("training.endpoints.resolve_model", lambda name: Path(name))
    with server() as fake:
        for where in (at(fake), []):
            here(
                *("type=scenarios", "property=honest", "contrastive=true", "dry_run=true"),
                *("num_subtypes=3", "examples_per_prompt=2", *where),
            )
            out = capsys.readouterr().out
            rows = dict(re.findall(r"^(\w+) +(\d+)$", out, re.MULTILINE))
            assert rows == {"subtypes": "1", "prompts": "3", "examples": "24", "verify": "48"}
            assert "List 3 kinds of everyday situations" in out and "{prompt}" in out
        assert fake.requests == []
    assert list(Path.cwd().iterdir()) == []
