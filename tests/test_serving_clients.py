"""benchmarks/serving_clients.py and cookbook.py: what they compare and read, without their clients'
environments; the openai client, which is installed here, runs against a server."""

import contextlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import datasets
import pytest
from fastapi import FastAPI
from live_app import live
from starlette.responses import JSONResponse
from tiny_chat import save_chat_model

from training.connect import connect

Load = Callable[[str], Any]


@pytest.fixture
def clients(load_benchmark: Load) -> Any:
    return load_benchmark("serving_clients")


@pytest.fixture
def asked(load_benchmark: Load) -> Any:
    return load_benchmark("asked_sums")


@pytest.fixture
def cookbook(load_benchmark: Load) -> Any:
    return load_benchmark("cookbook")


def wanted_of(sums: list[tuple[int, int]], shift: float = 0.0) -> dict[str, list[Any]]:
    answers = [f"{a + b}" if shift == 0 else "none" for a, b in sums]
    logprobs = [[-1.0 + shift, -2.0] for _ in sums]
    texts = ("chat", "streamed", "chat line", "written", "colon", "colon, Anthropic")
    return {**dict.fromkeys(texts, answers), "choice": logprobs}


def test_what_is_not_equal_is_told(clients: Any, asked: Any, load_benchmark: Load) -> None:
    common = load_benchmark("common")
    wanted = {clients.BASE: wanted_of(asked.SUMS, 0.5), clients.ADAPTER: wanted_of(asked.SUMS)}

    def problems(task: str, answers: list[Any], score: float | None) -> list[str]:
        report = common.Report("made_up", clients.Config(quick=True))
        told = {("lm-eval", clients.ADAPTER): {task: asked.Told(answers, score)}}
        return clients.compare(report, told, wanted)

    right = wanted[clients.ADAPTER]
    assert problems("written", right["written"], 1.0) == []
    assert problems("choice", [[a + 5e-5, b] for a, b in right["choice"]], 1.0) == []
    # a text, a logprob, a score
    assert len(problems("written", [*right["written"][:-1], "42 "], 1.0)) == 1
    assert len(problems("choice", [[a + 5e-4, b] for a, b in right["choice"]], 1.0)) == 1
    assert len(problems("written", right["written"], 0.875)) == 1
    wanted[clients.BASE] = right
    assert "written: the adapter answers as its base model does" in problems(
        "written", right["written"], 1.0
    )


def test_scores_by_the_rule_of_each_client(clients: Any, asked: Any) -> None:
    answers = [f"It is {a + b}, not {a}." for a, b in asked.SUMS]
    assert clients.score_of("lm-eval", "written", answers) == 1
    assert clients.score_of("inspect_ai", "chat", answers) == 1
    later = [f"{a} and {b} are {a + b}" for a, b in asked.SUMS]
    assert clients.score_of("lm-eval", "written", later) == 0
    assert clients.score_of("inspect_ai", "chat", later) == 1
    pairs = [[-1.0, -2.0], *[[-3.0, -2.0]] * (len(asked.SUMS) - 1)]
    assert clients.score_of("lm-eval", "choice", pairs) == 1 / len(asked.SUMS)


def test_reads_what_lm_eval_writes(asked: Any, tmp_path: Path) -> None:
    out = tmp_path / "out" / "served"
    out.mkdir(parents=True)
    choice = [
        {"doc_id": at, "resps": [[[str(-0.5 - at), "True"]], [["-4.0", "False"]]]} for at in (1, 0)
    ]
    written = [{"doc_id": 0, "resps": [[" 5"]]}]
    for task, samples in (("choice", choice), ("written", written)):
        lines = "".join(json.dumps(sample) + "\n" for sample in samples)
        (out / f"samples_sums_{task}_2026.jsonl").write_text(lines)
    results = {
        "sums_choice": {"acc,none": 0.25},
        "sums_written": {"exact_match,number": 0.5},
    }
    (out / "results_2026.json").write_text(json.dumps({"results": results}))
    assert asked.told_by_lm_eval(tmp_path, "choice") == ([[-0.5, -4.0], [-1.5, -4.0]], 0.25)
    assert asked.told_by_lm_eval(tmp_path, "written") == ([" 5"], 0.5)
    with pytest.raises(ValueError, match="not enough values"):
        asked.told_by_lm_eval(tmp_path, "chat_line")


def test_reads_what_verifiers_writes(asked: Any, tmp_path: Path) -> None:
    out = tmp_path / "evals" / "sums--tiny" / "0"
    out.mkdir(parents=True)
    # in the order in which they ended
    rollouts = [
        {"example_id": at, "completion": [{"role": "assistant", "content": f"{at}"}]}
        for at in (2, 0, 1)
    ]
    (out / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rollouts))
    (out / "metadata.json").write_text(json.dumps({"avg_reward": 0.25}))
    assert asked.told_by_verifiers(tmp_path) == {"chat": (["0", "1", "2"], 0.25)}


@pytest.mark.parametrize(
    ("status", "told", "problem"),
    [
        (400, "prompt is too long: 9 prompt tokens", None),
        (500, "prompt is too long", "on a full context: 500"),
        (400, "no", "on a full context: 400 .*no"),
        (200, "", "answered beyond the context"),
    ],
)
def test_the_capture_proxy_has_to_know_a_full_context(
    status: int, told: str, problem: str | None, load_benchmark: Load
) -> None:
    app = FastAPI()
    reply = JSONResponse({"error": {"message": told}}, status_code=status)
    app.add_api_route("/v1/messages", lambda: reply, methods=["POST"])
    with live(app) as server, contextlib.ExitStack() as refused:
        if problem is not None:
            refused.enter_context(pytest.raises(SystemExit, match=problem))
        load_benchmark("capture_proxy")._check_overflow(server.url)


@pytest.mark.slow
def test_the_openai_client_tells_what_this_process_does(
    clients: Any, asked: Any, load_benchmark: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_chat_model(tmp_path / "model")
    monkeypatch.setattr(asked, "environment", lambda _packages: [])
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    with load_benchmark("server_process").served(model, "device=cpu") as server:
        told = asked.ask_openai(asked.Served(server.url, server.key, model, model), tmp_path)
    with cast(Any, connect("local", checkpoint_dir=tmp_path / "own", device="cpu")) as service:
        wanted = clients.in_process(service.create_sampling_client(base_model=model))
    for task, (answers, _) in told.items():
        limit = clients.TOLERANCE if task == "choice" else 0
        assert clients.difference(answers, wanted[task]) <= limit, task
    assert len(set(map(tuple, wanted["choice"]))) == len(asked.SUMS)


def test_recipes_find_the_hubs_data_and_tokenizer_in_their_folder(
    cookbook: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = save_chat_model(tmp_path / "model")
    monkeypatch.setattr(cookbook, "ROWS", 32)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    cookbook.write_hub(tmp_path / "work", model)
    monkeypatch.chdir(tmp_path / "work")
    rows = cast(Any, datasets.load_dataset("openai/gsm8k", "main", cache_dir=str(tmp_path / "c")))
    assert (len(rows["train"]), len(rows["test"])) == (32, cookbook.TEST_ROWS)
    assert rows["train"]["answer"][0].rpartition("#### ")[2].isdigit()
    chats = cast(
        Any, datasets.load_dataset("HuggingFaceH4/no_robots", cache_dir=str(tmp_path / "c"))
    )
    assert [m["role"] for m in chats["train"][0]["messages"]] == ["user", "assistant"]
    assert (tmp_path / "work" / cookbook.ALIAS / "tokenizer.json").is_file()


def test_a_recipe_that_fails_says_why(cookbook: Any, tmp_path: Path) -> None:
    recipe = cookbook.Recipe("none_such", {"batch_size": 4}, "loss", steps=3)
    command = cookbook.command_of(recipe, Path(sys.executable), tmp_path / "log")
    assert command[3:] == [
        *(
            f"model_name={cookbook.ALIAS}",
            "batch_size=4",
            "behavior_if_log_dir_exists=raise",
            "max_steps=3",
        ),
        f"log_path={tmp_path / 'log'}",
    ]
    told, metrics = cookbook.run_recipe(command, tmp_path, tmp_path / "log", dict(os.environ))
    assert "No module named" in told and metrics == []


def test_a_recipe_has_to_improve(cookbook: Any, load_benchmark: Load) -> None:
    report = load_benchmark("common").Report("made_up", cookbook.Config(quick=True))

    def is_well(name: str, *values: float, problem: str | None = None) -> bool:
        measure = cookbook.RECIPES[name].measure
        metrics = [{measure: value} for value in values]
        return cookbook.add_row(report, name, [], problem, [*metrics, {"other": 1.0}])

    assert is_well("sl_loop", 2.0, 1.0) and not is_well("sl_loop", 1.0, 2.0)
    assert is_well("rl_loop", 0.1, 0.3) and not is_well("rl_loop", 0.3, 0.1)
    assert not is_well("rl_loop", 0.1, 0.3, problem="it ended")
    assert not is_well("sl_loop") and not is_well("sdft")
    assert is_well("sdft", 1.0, 2.0)


def test_ends_of_a_curve(cookbook: Any) -> None:
    assert cookbook.ends([8.0, 6.0, 0.0, 0.0, 0.0, 0.0, 2.0, 4.0]) == (7.0, 3.0)
    assert cookbook.ends([5.0, 1.0]) == (5.0, 1.0)
