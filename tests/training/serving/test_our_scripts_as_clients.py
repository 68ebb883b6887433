"""Our own scripts as clients of scripts/serve.py, by the official SDK.

uv run pytest tests/training/serving/test_our_scripts_as_clients.py -m slow
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT
from served import Served, served, server_environment
from tiny_chat import save_chat_model

pytestmark = pytest.mark.slow

GYM = ("domain=gym", "task=chain_sum", "train_size=4", "test_size=1", "num_steps=2", "group_size=2")
TABLE = (
    *("source=own", "data_path=rows.json", "n_passages=1", "preset=small", 'rows=["passage"]'),
    *("max_answer_tokens=2", "inner_rank=2", "inner_epochs=1", "passage_epochs=1"),
)
PASSAGES = [
    {
        "title": "Ostrel",
        "context": "Ostrel has a mayor, Ada.",
        "questions": [{"question": "Who is the mayor of Ostrel?", "answer": "Ada"}],
    }
]


def run(server: Served, folder: Path, script: str, *settings: str) -> Path:
    """The run's folder."""
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / f"scripts/{script}.py"), "backend=tinker"),
            *(f"base_url={server.url}", f"log_path=runs/{script}", *settings),
        ],
        cwd=folder,
        env={**server_environment(), "TINKER_API_KEY": server.key, "OPENROUTER_API_KEY": ""},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return folder / "runs" / script


def test_rl_loop_and_knowledge_run_as_they_are(tmp_path: Path) -> None:
    model = save_chat_model(tmp_path / "chat" / "model", favourites="Ad0123")
    (tmp_path / "rows.json").write_text(json.dumps(PASSAGES))
    with served(tmp_path, [f"model_name={model}"]) as server:
        loop = run(
            *(server, tmp_path, "rl_loop", f"model_name={model}", *GYM),
            *("groups_per_batch=2", "max_tokens=4", "lora_rank=2"),
        )
        lines = (loop / "metrics.jsonl").read_text().splitlines()
        assert len(lines) >= 2
        paths = (loop / "checkpoints.jsonl").read_text()
        assert "tinker://" in paths
        table = run(server, tmp_path, "knowledge", f"model_name={model}", *TABLE)
        assert os.listdir(table)
        assert "Traceback" not in server.log


def test_the_line_that_the_server_prints(tmp_path: Path) -> None:
    """With the embedded model's own name, which is no id of the hub's."""
    with served(tmp_path, ["model_name=embedded"]) as server:
        loop = run(
            *(server, tmp_path, "rl_loop", "model_name=embedded", "domain=gym", "task=chain_sum"),
            *("num_steps=0", "eval_size=1", "max_tokens=2"),
        )
        assert (loop / "metrics.jsonl").read_text()
