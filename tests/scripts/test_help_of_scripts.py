"""The help screens of all scripts, as a new user sees them in a pipe."""

import json
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from places import ROOT

HEAVY = ("torch", "transformers", "matplotlib", "datasets", "scipy", "openai")
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py"))
# each in one process, so that importing chz is paid once
PROGRAM = """
import contextlib, io, json, runpy, sys
calls, heavy = json.loads(sys.argv[1]), json.loads(sys.argv[2])
shown = {}
for call in calls:
    sys.argv = call.split(" ")
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as ended:
            assert ended.code == 0, (call, ended.code)
    shown[call] = out.getvalue()
print(json.dumps([shown, [name for name in heavy if name in sys.modules]]))
"""
TOPICS = {
    "generate generator": "generator.base_url",
    "gen_eval scorer": "scorer.model",
    "eval second_judge": "second_judge.timeout",
    "eval target": "target.base_url",
    "generate verifier": "verifier.model",
    "icl_train model": "model=MLP",
    "icl_eval setting": "setting=Classification",
    "icl_train setting.num_tasks": "tasks in the mixture",
    "rl_loop domain=gym task_config": "settings of that data set",
    "rl_loop inner_rank": "rank of the task adapters",
    "ttt domain=arc split": "of the task set",
    "sweep max_parallel": "cells at a time",
}


def call(text: str) -> str:
    script, *others = text.split(" ")
    return " ".join([str(ROOT / "scripts" / f"{script}.py"), "--help", *others])


@cache
def screens() -> tuple[dict[str, str], list[str]]:
    calls = [*map(call, SCRIPTS), *map(call, TOPICS), call("rl_loop domain=gsm8k")]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(calls), json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    shown, loaded = json.loads(done.stdout)
    return shown, loaded


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_of_a_script(script: str) -> None:
    shown = screens()[0][call(script)]
    source = Path(ROOT / "scripts" / f"{script}.py").read_text(encoding="utf-8")
    first = source.removeprefix('"""').partition("\n")[0]
    assert shown.replace("\n", " ").startswith(first)
    assert shown.count(f"    uv run scripts/{script}.py") >= 2
    assert shown.index("uv run") < shown.index("\nWhat to run\n")
    assert max(map(len, shown.split("\n"))) <= 80 and "\033" not in shown
    # names of modules and classes, and types as Python writes them
    assert not re.search(r"\w+:\w*Config|utils\.|training\.(?!\w+ ?=)|RoleConfig|pathlib", shown)
    assert not re.search(r"str \||Union|Literal|PosixPath|\(\)", shown)


@pytest.mark.parametrize("topic", TOPICS)
def test_help_of_a_setting(topic: str) -> None:
    shown = screens()[0][call(topic)]
    assert TOPICS[topic] in shown and "What to run" not in shown


@pytest.mark.parametrize("topic", ["eval target", "generate verifier", "gen_eval scorer"])
def test_a_role_without_a_model_of_its_own_shows_no_default_that_is_none(topic: str) -> None:
    shown = " ".join(screens()[0][call(topic)].split())
    assert "default: embedded" not in shown and "where OPENROUTER_API_KEY is set" not in shown
    told = {"eval target": "left out, it is model_name that answers"}
    assert told.get(topic, "default: the generator's") in shown


def test_the_domain_decides_what_is_shown() -> None:
    shown = screens()[0]
    assert "inner_rank" in shown[call("rl_loop")]
    other = shown[call("rl_loop domain=gsm8k")]
    assert "inner_rank" not in other and "data_path" in other
    assert "= gsm8k (from command line)" in " ".join(other.split())


def test_help_loads_nothing_heavy() -> None:
    assert screens()[1] == []
