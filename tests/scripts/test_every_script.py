"""What holds of every script whose runs can be gone on with: with the same model or not at all, and
after a signal.

uv run pytest tests/scripts/test_every_script.py
"""

import contextlib
import io
import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chat
import compare
import continual
import eval as eval_script
import export
import gen_eval
import generate
import icl_eval
import icl_train
import knowledge
import pytest
import rl_loop
import self_edit
import sft
import sweep
import ttt
from bbh_world import generated, write_files
from eval_world import PROPERTIES, prompt
from safetensors.torch import load_file, save_file
from tiny_chat import save_chat_model

from training import models
from training.backends.local.service import (
    LocalSamplingClient,
    LocalServiceClient,
    LocalTrainingClient,
)
from training.models import adapter_fingerprint, model_files
from utils.config.entrypoint import config_entrypoint, dump_yaml, load_yaml
from utils.llm.api import LLMError
from utils.llm.roles import OPENROUTER_KEY
from utils.runs.files import read_jsonl

pytestmark = pytest.mark.usefixtures("one_torch_thread")

LAYERS = ("config_file", "params_file")


@pytest.fixture(autouse=True)
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own with a model in it, and one file of data for each script."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(OPENROUTER_KEY, "")
    save_chat_model(Path("model"), favourites="AB01")
    chats = [
        {"messages": [{"role": "user", "content": str(i)}, {"role": "assistant", "content": "A"}]}
        for i in range(4)
    ]
    Path("chats.jsonl").write_text("".join(f"{json.dumps(chat)}\n" for chat in chats))
    write_files(Path("bbh"), generated(["boolean_expressions"], 4))
    grid = [[0, 1], [1, 0]]
    pair = {"input": grid, "output": grid}
    Path("arc.json").write_text(json.dumps({"a": {"train": [pair, pair], "test": [pair]}}))
    Path("edits.jsonl").write_text('{"title": "A moon", "edit": "Q: Who? A: Ann"}\n')
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("A village.\nRehu is one.")
    Path("texts/b.txt").write_text("Another village is Tolm.")
    asked = [{"question": "Who?", "answer": "Ann"}]
    one = {"title": "A moon", "context": "Ann is there.", "questions": asked}
    Path("one.json").write_text(json.dumps([one]))
    two = {"title": "A sea", "context": "Bob is there.", "questions": asked}
    long = {**two, "context": "Bob is there. " * 400}
    written = {"completions": ["Ann is on a moon."], "prompt": ""}
    for name, rows in {
        "two": [one, two],
        "empty": [],
        "no-text": [one, {**two, "context": " "}],
        "no-questions": [one, {**two, "questions": []}],
        "no-answer": [one, {**two, "questions": [{"question": "Who?", "answer": ""}]}],
        "twice": [one, {**two, "title": "A moon"}],
        "long": [one, long],
        "all-long": [{**long, "title": "A moon"}, long],
        "long-question": [one, {**two, "questions": [{"question": "Who? " * 900, "answer": "x"}]}],
        "long-answer": [one, {**two, "questions": [{"question": "Who?", "answer": "x" * 4090}]}],
        "seal-twice": [{**one, **written}] * 2,
    }.items():
        Path(f"{name}.json").write_text(json.dumps(rows))
    Path("nothing.jsonl").touch()
    Path("torn.jsonl").write_text('{"title": "A moon", "edi')
    Path("no-texts").mkdir()
    Path("no-texts/a.txt").write_text(" \n")
    rule = {"signs-off": PROPERTIES["signs-off"]}
    dump_yaml("x.eval.yaml", {"properties": rule, "prompts": [prompt("q", "c")]})
    return tmp_path


def forget(file: str) -> None:
    """As if the run had been killed before its first task was done."""
    Path("runs/r", file).unlink()


GYM = ("domain=gym", "task=chain_sum", "train_size=4", "test_size=1", "num_steps=1", "group_size=2")
ROLE = ("generator.model=./model", "generator.max_tokens=8")
# of the calls to the model, the one at which a signal comes: some make no second one
AT = {"ttt arc": 1, "eval": 1, "generate": 1, "gen_eval": 1, "icl_eval": 1}
# whose pages are refreshed while they run
LIVE = ("sft", "rl_loop", "rl_loop knowledge", "continual", "knowledge", "ttt bbh", "ttt arc")
LIVE += ("eval", "generate", "gen_eval")
RELOADS = 'http-equiv="refresh"'
# how each script is started, on what, and what makes a finished run one that goes on
SCRIPTS: dict[str, tuple[Callable[[list[str]], object], tuple[str, ...], str, str | None]] = {
    "sft": (
        lambda argv: config_entrypoint(sft.main, argv),
        ("model_name=model", "examples_file=chats.jsonl", "num_epochs=1", "lora_rank=2"),
        "model_name",
        None,
    ),
    "rl_loop": (
        rl_loop.entrypoint,
        ("model_name=model", *GYM, "groups_per_batch=1", "max_tokens=1", "lora_rank=2"),
        "model_name",
        None,
    ),
    "continual": (
        lambda argv: config_entrypoint(continual.main, argv),
        (
            *("model_name=model", "source=made", "preset=small", "n_passages=1", "n_sequences=1"),
            *("method=merge", "inner_epochs=1", "inner_rank=2", "max_answer_tokens=1"),
            "n_untouched=0",
        ),
        "model_name",
        None,
    ),
    "knowledge": (
        lambda argv: config_entrypoint(knowledge.main, argv),
        (
            *("model_name=model", "source=made", "preset=small", "n_passages=1"),
            *('rows=["passage"]', "passage_epochs=1", "inner_epochs=1", "inner_rank=2"),
            *("max_answer_tokens=1", "choices=false"),
        ),
        "model_name",
        None,
    ),
    "rl_loop knowledge": (
        rl_loop.entrypoint,
        (
            *("model_name=model", "domain=knowledge", "source=made", "preset=small", "form=none"),
            *("num_train_passages=1", "num_test_passages=1", "num_steps=1", "groups_per_batch=1"),
            *("group_size=1", "max_tokens=1", "repeats=1", "lora_rank=2", "inner_rank=2"),
            *("inner_epochs=1", "max_answer_tokens=1"),
        ),
        "model_name",
        None,
    ),
    "ttt bbh": (
        ttt.entrypoint,
        (
            *("model_name=model", "data_dir=bbh", 'tasks=["boolean_expressions"]', "k=1"),
            "method=baseline",
        ),
        "model_name",
        "tasks.jsonl",
    ),
    "ttt arc": (
        ttt.entrypoint,
        (
            *("model_name=model", "domain=arc", "challenges_file=arc.json", "method=baseline"),
            *("grid_format=digits", "evaluation=greedy", "lora_rank=2", "max_answer_tokens=8"),
        ),
        "model_name",
        "tasks.jsonl",
    ),
    "eval": (
        lambda argv: config_entrypoint(eval_script.main, argv),
        ("model_name=model", "eval_file=x.eval.yaml", "judge_kind=rule", "max_tokens=2"),
        "model_name",
        None,
    ),
    "generate": (
        lambda argv: config_entrypoint(generate.main, argv, layers=LAYERS),
        (*ROLE, "type=qa", "property=honest", "num_subtypes=2", "verify=false"),
        "generator.model",
        None,
    ),
    "gen_eval": (
        lambda argv: config_entrypoint(gen_eval.main, argv, layers=LAYERS),
        (*ROLE, 'properties=["honest"]', "num_categories=1", "score_realism=false"),
        "generator.model",
        None,
    ),
    "icl_eval": (
        icl_eval.entrypoint,
        (
            *("model=LLM", "model.model_name=model", "setting.num_dims=3", "setting.num_tasks=2"),
            *("setting.context_length=4", "evaluation.num_sequences=2"),
        ),
        "model.model_name",
        "metrics.pt",
    ),
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_refuses_another_model(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # pictures cost seconds
    monkeypatch.setattr("evaluation.icl.plots.make_plots", lambda _frame: ([], {}))
    start, given, setting, last = SCRIPTS[name]
    arguments = [*given, "log_path=runs/r"]
    with contextlib.suppress(SystemExit):
        # what a random model writes may leave nothing, which ends generate.py with code 1
        start(arguments)
    assert list(load_yaml("runs/r/config.yaml")["meta"]["models"]) == [setting]
    if last is not None:
        forget(last)
    for path in Path("runs/r").glob("*results*"):
        path.unlink()
    before = {p: p.read_bytes() for p in Path("runs/r").rglob("*.jsonl")}
    save_chat_model(Path("model"), favourites="AB01", seed=1)
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        start(arguments)
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert "runs/r was started with another model; resume needs the same" in told
    assert f"{setting}: " in told and "holds something else than at the start" in told
    # the same run may still be gone on with
    after = {p: p.read_bytes() for p in before if p.name != "resumes.jsonl"}
    assert after.items() <= before.items()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_stops_at_a_signal_and_goes_on(
    name: str,
    number: signal.Signals,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It comes between two calls to the model."""
    monkeypatch.setattr("evaluation.icl.plots.make_plots", lambda _frame: ([], {}))
    start, given, *_ = SCRIPTS[name]
    arguments = [*given, "log_path=runs/r"]
    asked: list[str] = []

    with monkeypatch.context() as patch:
        for owner, method in (
            (LocalSamplingClient, "sample"),
            (LocalTrainingClient, "forward"),
            (LocalTrainingClient, "forward_backward"),
        ):
            original = getattr(owner, method)

            def signalled(self: Any, *given: Any, original: Any = original, **named: Any) -> Any:
                asked.append(original.__name__)
                if len(asked) == AT.get(name, 2):
                    signal.raise_signal(number)
                return original(self, *given, **named)

            patch.setattr(owner, method, signalled)
        with pytest.raises(SystemExit) as ended:
            start(arguments)
    assert ended.value.code == 128 + number, capsys.readouterr().err
    assert "the same command with log_path=runs/r goes on" in capsys.readouterr().err
    page = Path("runs/r/report.html")
    if name in LIVE:
        shown = page.read_text(encoding="utf-8")
        assert (
            re.search(r"stopped, (step|task|call|run) [01] of \d+ · ", shown)
            and RELOADS not in shown
        )
    # what a random model writes may leave nothing
    is_done = True
    try:
        start(arguments)
    except SystemExit:
        assert name in ("generate", "gen_eval")
        is_done = False
    assert len(read_jsonl("runs/r/resumes.jsonl")) == 1
    assert "Stopped" not in capsys.readouterr().err
    if name in LIVE:
        shown = page.read_text(encoding="utf-8")
        assert "running, " not in shown and RELOADS not in shown
        assert ("stopped, " in shown) is not is_done


# values that are paths, of settings that are and of those that may be
IN_HOME = re.compile(r"=(\./)?(model|chats.jsonl|bbh|arc.json|x.eval.yaml)$")


@pytest.mark.parametrize("name", SCRIPTS)
def test_paths_are_the_same_from_a_file_and_the_command_line(
    name: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was begun with ~ on the command line goes on with the same settings in YAML."""
    monkeypatch.setattr("evaluation.icl.plots.make_plots", lambda _frame: ([], {}))
    monkeypatch.setenv("HOME", str(workplace))
    start, given, _, last = SCRIPTS[name]
    elsewhere = workplace / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    arguments = [*(IN_HOME.sub(r"=~/\2", argument) for argument in given), "log_path=~/runs/r"]
    assert any("=~/" in argument for argument in arguments[:-1])
    domain = [argument for argument in arguments if argument.startswith("domain=")]
    with contextlib.suppress(LLMError, SystemExit):
        start(arguments)
    if last is not None:
        (workplace / "runs" / "r" / last).unlink()
    lines = [argument.replace("=", ": ", 1) for argument in arguments]
    (workplace / "settings.yaml").write_text("\n".join(lines), encoding="utf-8")
    with contextlib.suppress(LLMError, SystemExit):
        start([*domain, "config_file=~/settings.yaml"])
    assert len(read_jsonl(workplace / "runs" / "r" / "resumes.jsonl")) == 1
    # what a run writes goes where it was told, and where scripts put their results
    assert {path.name for path in elsewhere.iterdir()} <= {
        "datasets",
        "evals",
        "eval_results",
        "runs",
    }


# those whose runs cannot be gone on with, or make no calls to a model
OTHERS: dict[str, tuple[Callable[[list[str]], object], tuple[str, ...]]] = {
    "chat": (lambda argv: config_entrypoint(chat.main, argv), ("model_name=./model",)),
    "export": (
        lambda argv: config_entrypoint(export.main, argv),
        ("checkpoint_path=adapter", "model_name=./model", "output_dir=out"),
    ),
    "self_edit": (
        lambda argv: config_entrypoint(self_edit.main, argv),
        ("model_name=./model", "task_id=25ff71a9", "grid_format=digits", "inner_rank=2"),
    ),
    "icl_train": (
        icl_train.entrypoint,
        ("model.hidden_size=8", "training.num_steps=1", "setting.num_tasks=2"),
    ),
    "icl_eval trained": (icl_eval.entrypoint, ("name=mine",)),
    "compare": (
        lambda argv: config_entrypoint(compare.main, argv),
        ("a=samples.jsonl", "b=samples.jsonl"),
    ),
    "sweep": (sweep.entrypoint, ("script=sft", 'sweep={"seed": [1]}', "examples_file=chats.jsonl")),
}
STARTS = {name: (start, given) for name, (start, given, *_) in SCRIPTS.items()} | OTHERS


def save_adapter(folder: str, model: str) -> None:
    with contextlib.closing(LocalServiceClient(checkpoint_dir="kept", device="cpu")) as service:
        trainer = service.create_lora_training_client(model, rank=2, seed=0)
        Path(trainer.save_state("a").result().path).rename(folder)
    shutil.rmtree("kept")


def prepared(arguments: tuple[str, ...]) -> None:
    """The adapters and the model that the arguments name."""
    told = " ".join(arguments)
    if "=adapter" in told:
        save_adapter("adapter", "./model")
    if "stranger" in told:
        # of other weights at the same place
        shutil.copytree("model", "kept-model")
        save_chat_model(Path("model"), favourites="AB01", seed=1)
        save_adapter("stranger", "./model")
        shutil.rmtree("model")
        Path("kept-model").rename("model")
    if "broken" in told:
        shutil.copytree("model", "broken")
        Path("broken/model.safetensors").unlink()
    if "half" in told:
        save_adapter("half", "./model")
        os.truncate("half/adapter_model.safetensors", 300)
    if "torn" in told:
        shutil.copytree("model", "torn")
        os.truncate("torn/model.safetensors", 1000)


BROKEN = "no file named model.safetensors"


def own(name: str) -> tuple[str, str]:
    return "source=own", f"data_path={name}"


# what three scripts are given that cannot do: script, arguments, what is told
KNOWLEDGE: list[tuple[str, tuple[str, ...], str]] = [
    # passages and questions
    *[
        (script, (*own(file), *more), told)
        for script, more in (
            ("knowledge", ("n_passages=2",)),
            ("continual", ("n_passages=2", "edits=model", "form=none", "draw_from=2")),
            ("rl_loop knowledge", ()),
        )
        for file, told in (
            ("empty.json", "empty.json: holds no passage"),
            ("nothing.jsonl", "nothing.jsonl: holds no passage"),
            ("no-text.json", "no-text.json, [1]: context=' ': some text is needed"),
            ("no-questions.json", "no-questions.json, [1]: questions=[]: a list of at least one"),
            ("no-answer.json", "no-answer.json, [1]: questions[0]="),
            ("twice.json", "twice.json, [1]: title='A moon' is that of"),
            ("no-texts", "a.txt: holds no text"),
            ("long-question.json", "question own/1/0 of 'A sea': its prompt has"),
            ("torn.jsonl", "torn.jsonl"),
            ("nowhere.json", "nowhere.json"),
        )
    ],
    ("knowledge", (*own("long-answer.json"), "n_passages=2"), "its prompt and its right answer"),
    ("rl_loop knowledge", own("long-answer.json"), "its prompt and its right answer have"),
    ("continual", (*own("long.json"), "edits=model", "n_passages=2"), "('A sea'): the prompt for"),
    (
        "continual",
        (*own("long-question.json"), "n_passages=2", "edits=model", "form=none", "dry_run=true"),
        "question own/1/0 of 'A sea': its prompt has",
    ),
    ("rl_loop knowledge", own("all-long.json"), "context"),
    ("rl_loop knowledge", own("texts"), "have no questions"),
    *[
        (script, ("data_path=two.json", "source=web"), "source")
        for script in ("knowledge", "continual", "rl_loop knowledge")
    ],
    # edits
    ("knowledge", ("edits_file=nothing.jsonl", 'rows=["file"]'), "nothing.jsonl: no edits in it"),
    ("knowledge", ("edits_file=torn.jsonl", 'rows=["file"]'), "torn.jsonl"),
    ("knowledge", ("edits_file=nowhere.jsonl", 'rows=["file"]'), "no such file"),
    ("knowledge", ("edits_file=edits.jsonl", 'rows=["file"]'), "are about other passages"),
    ("knowledge", ("edits_file=seal-twice.json", 'rows=["file"]'), "[1]: the same passage as [0]"),
    ("knowledge", ("edits_file=one.json", 'rows=["file"]'), "completions"),
    ("continual", ("edits_file=nothing.jsonl",), "nothing.jsonl: no edits in it"),
    ("continual", ("edits_file=torn.jsonl",), "torn.jsonl"),
    ("continual", ("edits_file=nowhere.jsonl",), "no such file"),
    # names
    ("knowledge", ('forms=["poem"]',), "form='poem': there is no such form"),
    ("knowledge", ('rows=["passages"]',), "there is no row 'passages'"),
    ("knowledge", ("setting=both",), "setting"),
    ("rl_loop knowledge", ("form=poem",), "form='poem': there is no such form"),
    ("rl_loop knowledge", ("form=model", 'model_forms=["poem"]'), "poem"),
    ("rl_loop knowledge", ("selection=worst",), "selection"),
    ("rl_loop knowledge", ("reward=luck",), "reward"),
    ("rl_loop knowledge", ("preset=tiny",), "preset"),
    ("continual", ("method=replay=0",), "replay=0"),
    ("continual", ("method=gate=luck",), "gate=luck"),
    ("continual", ("method=None", 'methods=["merge","merge"]'), "each once"),
    ("continual", ("edits=poem",), "edits"),
    # judges
    *[
        (script, ("judge_kind=llm", *more), told)
        for script in ("knowledge", "continual", "rl_loop knowledge")
        for more, told in (
            (("judge.base_url=openrouter",), "judge.api_key_env: OPENROUTER_API_KEY is not set"),
            (("judge.model=./nowhere",), "judge: "),
        )
    ],
    ("rl_loop knowledge", ("judge.model=model",), "judge: judge_kind=rule asks no model"),
    ("knowledge", ("judge_kind=human",), "judge_kind"),
    # numbers
    ("knowledge", ("k=0",), "k=0: at least 1"),
    ("knowledge", ("sampler=vllm", "temperature=0.005"), "temperature=0.005: vLLM samples at 0 or"),
    *[
        ("rl_loop knowledge", ("sampler=vllm", f"{name}=0.005"), f"{name}=0.005: vLLM samples at 0")
        for name in ("temperature", "eval_temperature")
    ],
    ("knowledge", ("seeds=0",), "seeds=0: at least 1"),
    ("knowledge", ("n_passages=0",), "n_passages=0: at least 1"),
    ("rl_loop knowledge", ("repeats=0",), "repeats=0: at least 1"),
    ("rl_loop knowledge", ("group_size=0",), "group_size=0: at least 1"),
    ("rl_loop knowledge", ("num_test_passages=0",), "num_test_passages=0: at least 1"),
    *[
        (script, (f"inner_learning_rate={rate}",), f"inner_learning_rate={rate}: a number above 0")
        for script in ("knowledge", "continual", "rl_loop knowledge")
        for rate in ("nan", "inf", "-1.0")
    ],
]


@pytest.mark.parametrize(
    ("name", "wrong", "told"),
    [
        ("eval", ("eval_file=none.eval.yaml",), "none.eval.yaml"),
        (
            "eval",
            # a model that is judged by itself is warned of
            (
                *("judge_kind=llm", "model_name=./model", "judge.model=./model"),
                "eval_file=none.yaml",
            ),
            "none.yaml",
        ),
        ("eval", ("device=gpu",), "device='gpu'"),
        ("eval", ('checkpoint_paths=["nowhere"]',), "nowhere"),
        ("eval", ('checkpoint_paths=["stranger"]', "model_name=./model"), "whose weights differ"),
        ("eval", ("sampler=vllm", "temperature=0.005"), "temperature=0.005: vLLM samples at 0 or"),
        ("eval", ('checkpoint_paths=["half"]', "model_name=./model"), "is it whole?"),
        ("eval", ("model_name=./broken",), BROKEN),
        ("generate", ("property=none",), "property"),
        ("generate", ("generator.model=./broken",), BROKEN),
        ("gen_eval", ("min_realism=11",), "min_realism=11"),
        ("gen_eval", ("generator.model=./broken",), BROKEN),
        ("sft", ("model_name=./none",), "./none"),
        ("sft", ("model_name=./broken",), BROKEN),
        ("sft", ("model_name=./torn",), "torn: its weights cannot be read"),
        ("sft", ("log_path=chats.jsonl",), "log_path"),
        ("sft", ("max_length=1",), "are longer than 1 tokens (max_length)"),
        (
            "sft",
            ("checkpoint_path=nowhere",),
            "checkpoint_path: nowhere: no such checkpoint folder",
        ),
        ("sft", ("checkpoint_path=stranger", "model_name=./model"), "whose weights differ"),
        ("sft", ("lora_rank=100000",), "lora_rank=100000: at most 32"),
        ("sft", ("lora_alpha=0",), "lora_alpha=0"),
        ("sft", ("seed=-1",), "seed=-1"),
        ("rl_loop", ('sinks=["mlflow"]',), "mlflow"),
        ("rl_loop", ("log_path=chats.jsonl",), "log_path"),
        ("rl_loop", ("lora_rank=100000",), "lora_rank=100000: at most 32"),
        ("rl_loop", ("lora_alpha=0",), "lora_alpha=0"),
        ("rl_loop", ("seed=-1",), "seed=-1"),
        ("rl_loop", ("model_name=./broken",), BROKEN),
        ("continual", ("log_path=chats.jsonl",), "log_path"),
        ("continual", ("model_name=./broken",), BROKEN),
        ("continual", ("inner_rank=100000",), "inner_rank=100000: at most 32"),
        ("continual", ('inner_targets=["none"]',), "inner_targets: "),
        ("continual", ("method=fuse",), "methods: 'fuse' is none; there are merge, replay=LINES"),
        ("continual", ("n_passages=0", "n_sequences=0"), "n_sequences=0: at least 1"),
        ("continual", ("form=poem",), "form='poem' with edits=template; allowed are qa"),
        ("continual", ("edits=model", "form=poem"), "form='poem': there is no such form"),
        ("continual", ("source=squad", "edits=template"), "only made worlds have a generator"),
        ("continual", ("edits_file=chats.jsonl",), '"edit": ...} or rows of a samples.jsonl'),
        ("continual", ("edits_file=edits.jsonl",), "its edits are about other passages"),
        ("continual", ("source=own", "data_path=texts"), "have no questions"),
        ("continual", ("source=own", "data_path=one.json", "n_passages=2"), "passages 0 to 2 were"),
        ("continual", ("judge_kind=llm", "judge.base_url=openrouter"), "OPENROUTER_API_KEY"),
        ("continual", ("gate_budget=1",), "gate_budget=1.0: no method is a gate"),
        ("continual", ('aggregate=["runs"]',), "runs: no such file"),
        ("continual", ('aggregate=["edits.jsonl"]',), "edits.jsonl"),
        *KNOWLEDGE,
        ("ttt bbh", ("log_path=chats.jsonl",), "log_path"),
        ("ttt bbh", ("model_name=./broken",), BROKEN),
        ("ttt bbh", ("method=ttt", "lora_rank=2", 'lora_targets=["none"]'), "none"),
        ("ttt arc", ("log_path=chats.jsonl",), "log_path"),
        ("ttt arc", ("method=ttt", 'lora_targets=["none"]'), "none"),
        ("icl_eval", ('model.words=["A","A"]',), "model.words"),
        ("icl_eval", ("model.model_name=./broken",), BROKEN),
        ("icl_eval", ("model.checkpoint=stranger", "model.model_name=./model"), "weights differ"),
        ("icl_eval trained", (), "runs/icl/mine: no such experiment"),
        ("icl_train", ("device=gpu",), "device='gpu'"),
        ("icl_train", ("log_path=runs/icl",), "log_path=runs/icl: runs_dir=runs/icl lies there"),
        ("icl_train", ("log_path=runs",), "log_path=runs: runs_dir=runs/icl lies there"),
        ("icl_train", ("name=tasks",), "name=tasks"),
        ("icl_train", ("log_path=chats.jsonl",), "log_path"),
        ("icl_train", ('sinks=["mlflow"]',), "mlflow"),
        ("chat", ("checkpoint_path=nowhere",), "nowhere"),
        ("chat", ("checkpoint_path=stranger",), "whose weights differ"),
        ("chat", ("checkpoint_path=half",), "is it whole?"),
        ("chat", ("model_name=./broken",), BROKEN),
        ("chat", ("model_name=model/config.json",), "is a file, not a folder"),
        ("self_edit", ('inner_targets=["none"]',), "inner_targets: "),
        ("self_edit", ("inner_rank=100000",), "inner_rank=100000: at most 32"),
        ("self_edit", ("answer=none",), "JSON"),
        ("self_edit", ("model_name=./broken",), BROKEN),
        ("export", ("checkpoint_path=model",), "not an adapter folder"),
        ("export", ("output_dir=model",), "output_dir='model' exists"),
        ("export", ("model_name=./broken",), BROKEN),
        ("export", ("checkpoint_path=half",), "is it whole?"),
        ("export", ("checkpoint_path=half", "merged=false"), "is it whole?"),
        ("compare", (), "no such file or folder"),
        ("sweep", ('sweep={"seed": [-1]}',), "seed=-1"),
    ],
)
def test_an_error_of_settings_comes_alone(
    name: str,
    wrong: tuple[str, ...],
    told: str,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Nothing is logged before it, and nothing of the run is left."""
    start, given = STARTS[name]
    prepared((*given, *wrong))
    before = sorted(Path().rglob("*"))
    capsys.readouterr()
    with caplog.at_level("INFO"), pytest.raises(SystemExit) as ended:
        start([*given, *wrong])
    said = capsys.readouterr()
    assert ended.value.code == 2
    assert said.err.startswith("Error: ") and told in said.err and "Traceback" not in said.err
    assert said.err.rstrip().endswith("their values and where they come from.")
    assert said.out == "" and caplog.records == []
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("sft", "model_name=./none"),
        ("rl_loop", "model_name=./none"),
        ("continual", "model_name=./none"),
        ("icl_train", "device=gpu"),
    ],
)
def test_sinks_are_told_with_what_else_is_wrong(
    name: str, wrong: str, capsys: pytest.CaptureFixture[str]
) -> None:
    start, given = STARTS[name]
    prepared((*given, wrong))
    capsys.readouterr()
    with pytest.raises(SystemExit):
        start([*given, wrong, 'sinks=["mlflow"]'])
    said = capsys.readouterr().err
    assert said.startswith("Error: 2 problems:")
    assert "sinks names 'mlflow'; allowed: " in said and wrong.partition("=")[2] in said


def sft_run(*arguments: str) -> None:
    start, given, *_ = SCRIPTS["sft"]
    start([*given, *arguments, "log_path=runs/r"])


def models_of_run() -> Any:
    return load_yaml("runs/r/config.yaml")["meta"]["models"]


def test_a_run_of_before_takes_its_model_up_once(caplog: pytest.LogCaptureFixture) -> None:
    sft_run()
    stored = load_yaml("runs/r/config.yaml")
    known = stored.pop("meta")["models"]
    dump_yaml("runs/r/config.yaml", stored)
    with caplog.at_level("INFO"):
        sft_run()
        sft_run()
    assert models_of_run() == known
    told = [r.message for r in caplog.records if "goes on with no other model_name" in r.message]
    assert len(told) == 1


def test_a_copy_of_the_model_is_the_same_model() -> None:
    sft_run()
    shutil.copytree("model", "copy", copy_function=shutil.copyfile)
    shutil.rmtree("model")
    Path("copy").rename("model")
    settings = json.loads(Path("model/config.json").read_text())
    Path("model/config.json").write_text(json.dumps({**settings, "transformers_version": "9"}))
    Path("model/README.md").write_text("nothing that counts")
    sft_run()


def test_the_adapter_that_a_run_starts_from_is_held_until_it_has_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sft_run()
    adapter = max(Path("runs/r/checkpoints").glob("*/weights/*"))
    adapter = adapter.rename("adapter")

    def killed(*_arguments: object) -> None:
        raise RuntimeError("killed")

    given = [*SCRIPTS["sft"][1], "checkpoint_path=adapter", "log_path=runs/from"]
    with monkeypatch.context() as patch:
        patch.setattr(sft, "train_step", killed)
        patch.setattr(sft.Recorder, "save", lambda *_arguments, **_options: None)
        with pytest.raises(RuntimeError, match="killed"):
            config_entrypoint(sft.main, given)
    file = adapter / "adapter_model.safetensors"
    weights, other = file.read_bytes(), load_file(file)
    save_file({name: tensor + 1 for name, tensor in other.items()}, file)
    with pytest.raises(SystemExit):
        config_entrypoint(sft.main, given)
    assert "checkpoint_path: adapter holds something else" in capsys.readouterr().err
    file.write_bytes(weights)
    config_entrypoint(sft.main, given)
    # from now on its own checkpoint is what counts
    shutil.rmtree(adapter)
    config_entrypoint(sft.main, given)


def test_adapters_and_data_that_are_named_by_text_may_lie_in_the_home_folder(
    workplace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sft_run()
    max(Path("runs/r/checkpoints").glob("*/weights/*")).rename("adapter")
    start, given, *_ = SCRIPTS["ttt bbh"]
    start([*given, "log_path=bbh-run"])
    Path("gsm8k").mkdir()
    for split in ("train", "test"):
        row = {"question": split, "answer": "#### 1"}
        Path("gsm8k", f"{split}.jsonl").write_text(json.dumps(row))
    monkeypatch.setattr("evaluation.icl.plots.make_plots", lambda _frame: ([], {}))
    monkeypatch.setenv("HOME", str(workplace))
    elsewhere = workplace / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)

    model = ("model_name=~/model", "log_path=runs/r")
    start, *_ = SCRIPTS["eval"]
    settings = ["eval_file=~/x.eval.yaml", "judge_kind=rule", "max_tokens=2"]
    start([*model, *settings, 'checkpoint_paths=["~/adapter"]'])
    results = load_yaml("eval_results/r.eval-results.yaml")
    tuned = adapter_fingerprint(workplace / "adapter")
    assert results["models"][1]["model"] == f"~/model@{tuned}"
    shutil.rmtree("runs")
    with pytest.raises(SystemExit):
        twice = f'checkpoint_paths=["~/adapter", "{workplace / "adapter"}"]'
        start([*model, *settings, twice, "log_path=runs/twice"])
    assert f"names {workplace / 'adapter'} more than once" in capsys.readouterr().err

    start, given, *_ = SCRIPTS["icl_eval"]
    given = tuple(g.replace("=model", "=~/model") for g in given)
    start([*given, "model.checkpoint=~/adapter", "log_path=runs/r"])
    shutil.rmtree("runs")
    rl_loop.entrypoint(
        [*model, "domain=gsm8k", "data_path=~/gsm8k", "num_steps=0", "lora_rank=2", "max_tokens=2"]
    )
    shutil.rmtree("runs")
    ttt.entrypoint(['compare=["~/bbh-run"]', "log_path=runs/r"])
    chat_input = io.StringIO("hello\n")
    monkeypatch.setattr("sys.stdin", chat_input)
    talk = ["model_name=~/model", "checkpoint_path=~/adapter", "max_tokens=2"]
    config_entrypoint(chat.main, talk)
    given = ("checkpoint_path=~/adapter", "output_dir=~/exported", "model_name=~/model")
    config_entrypoint(export.main, [*given, "merged=false"])
    assert (workplace / "exported" / "adapter_config.json").is_file()
    assert not list(Path().rglob("*~*"))


def test_a_runs_folder_means_its_last_checkpoint(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    sft_run("save_every=1")
    last = max(Path("runs/r/checkpoints").glob("*/weights/*"))
    told = f"runs/r is a run: its last checkpoint is taken, {last}"

    def evaluated(log_path: str) -> Any:
        start, given, *_ = SCRIPTS["eval"]
        start([*given, 'checkpoint_paths=["runs/r"]', f"log_path={log_path}"])
        return load_yaml(f"eval_results/{Path(log_path).name}.eval-results.yaml")["models"][1]

    with caplog.at_level("INFO"):
        model = evaluated("runs/judged")
    assert model["checkpoint"] == str(last) and model["label"] == f"r/{last.name}"
    assert told in caplog.messages
    assert load_yaml("runs/judged/config.yaml")["checkpoint_paths"] == [str(last)]
    start, given, *_ = SCRIPTS["sft"]
    start([*given, "checkpoint_path=runs/r", "log_path=runs/more"])
    models = load_yaml("runs/more/config.yaml")["meta"]["models"]
    assert models["checkpoint_path"]["source"] == str(last)
    exported = ["checkpoint_path=runs/r", "output_dir=out", "merged=false"]
    config_entrypoint(export.main, exported)
    weights = [Path(folder, "adapter_model.safetensors") for folder in ("out", last)]
    assert weights[0].read_bytes() == weights[1].read_bytes()

    Path("runs/r/checkpoints.jsonl").unlink()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        evaluated("runs/again")
    assert "checkpoint_paths: runs/r: this run has no checkpoint" in capsys.readouterr().err


def of(model: str = "model") -> Any:
    with contextlib.closing(LocalServiceClient(device="cpu")) as service:
        return service.base_model_input(model)


def change_tensor(name: str) -> None:
    file = Path("model/model.safetensors")
    weights = load_file(file)
    weights[name] = weights[name] * 1.5
    save_file(weights, file, metadata={"format": "pt"})


def edit(name: str, **values: object) -> None:
    path = Path("model", name)
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    "change",
    [
        lambda: change_tensor("model.layers.1.self_attn.o_proj.weight"),
        # what no adapter touches
        lambda: change_tensor("model.norm.weight"),
        lambda: change_tensor("model.embed_tokens.weight"),
        lambda: edit("config.json", rms_norm_eps=1e-3),
        lambda: edit("generation_config.json", eos_token_id=0),
        lambda: edit("tokenizer_config.json", eos_token="<|endoftext|>"),
        lambda: Path("model/chat_template.jinja").write_text("{{ messages[0].content }}"),
    ],
)
def test_what_makes_another_model(change: Callable[[], object]) -> None:
    before = of()
    assert before.source == "model"
    assert before == of()
    change()
    assert of() != before


def test_a_hub_model_is_known_by_its_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hub's cache that holds two revisions, the first of which `main` means to begin with."""
    repo = tmp_path / "hub" / "models--org--tiny"
    for revision, seed in (("a" * 40, 0), ("b" * 40, 1)):
        save_chat_model(repo / "snapshots" / revision, favourites="AB01", seed=seed)
    shutil.copytree(repo / "snapshots" / ("a" * 40), repo / "snapshots" / ("c" * 40))
    (repo / "refs").mkdir()

    def point_to(letter: str) -> None:
        (repo / "refs" / "main").write_text(letter * 40)

    monkeypatch.setattr("transformers.utils.hub.is_offline_mode", lambda: True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    point_to("a")
    assert model_files("org/tiny")[0] == f"org/tiny at {'a' * 40}"
    first = of("org/tiny")
    point_to("b")
    moved = of("org/tiny")
    assert moved.source == f"org/tiny at {'b' * 40}" and moved.sha256 != first.sha256
    # a revision in which nothing that counts has changed
    point_to("c")
    assert of("org/tiny").sha256 == first.sha256


def test_the_embedded_model_is_the_same_whoever_wrote_its_files() -> None:
    assert model_files(models.EMBEDDED) == (models.EMBEDDED, [])
