"""Every public method of the installed SDK does what the table in docs/serving.md says.

uv run pytest tests/training/serving/test_sdk_methods.py
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from places import ROOT
from tiny_chat import save_chat_model


def documented(version: str, cells: dict[str, str]) -> dict[str, str]:
    """{method: outcome} of that column of the table."""
    lines = (ROOT / "docs/serving.md").read_text(encoding="utf-8").splitlines()
    start = next(at for at, line in enumerate(lines) if line.startswith("| method |"))
    column = [cell.strip() for cell in lines[start].split("|")].index(version)
    outcomes = {cell: outcome for outcome, cell in cells.items()}
    found = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        row = [cell.strip() for cell in line.split("|")]
        if row[column] != "-":
            found[row[1].strip("`")] = outcomes[row[column]]
    return found


def test_every_method_does_what_the_table_says(
    tmp_path: Path, load_benchmark: Callable[[str], Any]
) -> None:
    model = tmp_path / "model"
    save_chat_model(model)
    matrix = load_benchmark("sdk_matrix")
    with load_benchmark("server_process").served(str(model)) as server:
        arguments = [server.url, server.key, str(model)]
        done = subprocess.run(
            [sys.executable, str(ROOT / "benchmarks/sdk_methods.py"), *arguments],
            env={**os.environ, "TINKER_TELEMETRY": "0", "HF_HUB_OFFLINE": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    outcomes = {name: method["outcome"] for name, method in found["methods"].items()}
    wrong = {n: m["told"] for n, m in found["methods"].items() if m["outcome"] == "wrong"}
    assert wrong == {}
    assert outcomes == documented(found["sdk"], matrix.CELLS)
    # a refusal is one sentence, and some of both kinds are there
    refused = [m["told"] for m in found["methods"].values() if m["outcome"] == "refused"]
    assert refused and all("\n" not in told and len(told) > 20 for told in refused)
    assert sum(outcome == "served" for outcome in outcomes.values()) > 40
