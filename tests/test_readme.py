"""The commands of README.md are commands of these scripts, with settings that they know."""

import json
import os
import re
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def commands() -> list[list[str]]:
    """Script and arguments of each command that is written out, without those with gaps."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"uv run (scripts/\w+\.py[^`\n]*)", text)
    whole = [
        line for line in dict.fromkeys(found) if not re.search(r"\.\.\.|XXXX|=path/|=S\b", line)
    ]
    return [shlex.split(line.replace("\\|", "|").partition(" #")[0]) for line in whole]


def test_readme_commands_are_valid(tmp_path: Path) -> None:
    # the experiment that README takes to be there
    (tmp_path / "runs" / "icl" / "my_experiment").mkdir(parents=True)
    # under pytest, chz raises where users see a message
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_VERSION"}

    def problems(command: list[str]) -> list[str]:
        done = subprocess.run(
            [sys.executable, str(ROOT / command[0]), *command[1:], "--check"],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
            timeout=60,
        )
        told = json.loads(done.stdout)["problems"] if done.stdout else [done.stderr]
        # files that only a user has
        return [problem for problem in told if "no such file" not in problem]

    found = commands()
    assert len(found) >= 15
    assert {Path(command[0]).stem for command in found} >= {
        *("rl_loop", "generate", "gen_eval", "ttt", "icl_train", "icl_eval", "sweep", "export"),
    }
    with ThreadPoolExecutor(2) as pool:
        told = dict(zip(map(shlex.join, found), pool.map(problems, found), strict=True))
    wrong = {command: problems for command, problems in told.items() if problems}
    if wrong:
        pytest.fail(json.dumps(wrong, indent=1))
