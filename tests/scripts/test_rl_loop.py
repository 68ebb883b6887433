"""scripts/rl_loop.py from end to end on a tiny random model.

uv run pytest tests/scripts/test_rl_loop.py
"""

import itertools
import json
import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import self_edit
from arc_world import ARC, arc_files
from kills import kill_again_and_again
from places import ROOT
from rl_loop import entrypoint
from run_results import Results, results

from training.api import SampledSequence, SampleResponse
from training.chat import render_prompt
from training.domains.base import Problem, Reward, Split, Stateless
from training.domains.gsm8k import Gsm8kConfig, Gsm8kDomain
from training.domains.gym import GymConfig, GymDomain
from training.models import load_tokenizer
from training.rl.policy import Policy
from utils.config.entrypoint import config_entrypoint, load_config
from utils.runs.files import read_jsonl

# answers are 0 to 3, so that a random model that writes such digits is right now and then
GYM = (
    "domain=gym",
    "task=letter_counting",
    'task_config={"min_words": 1, "max_words": 2}',
    "train_size=30",
    "test_size=3",
    "groups_per_batch=2",
    "group_size=6",
    "max_tokens=1",
    "lora_rank=4",
    "learning_rate=0.01",
    "eval_size=3",
    "eval_temperature=1.0",
)


pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tiny_chat import save_chat_model

    return save_chat_model(tmp_path_factory.mktemp("chat"), favourites="0123")


@pytest.fixture(scope="module")
def gym(model: str) -> Callable[..., Path]:
    """gym(path, *arguments) runs the loop on arithmetic."""

    def run(path: Path, *arguments: str) -> Path:
        entrypoint([*GYM, f"model_name={model}", f"log_path={path}", *arguments])
        return path

    return run


def batches(run: Path) -> list[dict[str, Any]]:
    return [m for m in read_jsonl(run / "metrics.jsonl") if "train/reward" in m]


# -------------------------------------------------------------------------------------- algorithms


@pytest.mark.parametrize(
    "arguments",
    [
        ["loss_fn=importance_sampling", "lr_schedule=linear"],
        [
            "loss_fn=ppo",
            "updates_per_batch=3",
            "loss_fn_config.clip_high_threshold=1.3",
            "learning_rate=0.0001",
        ],
        ["loss_fn=cispo", "kl_coef=0.1", "grad_clip_norm=1.0"],
        ["loss_fn=dro", "loss_fn_config.beta=0.05"],
        [
            "loss_fn=gspo",
            "loss_fn_config.clip_low_threshold=0.9",
            "loss_fn_config.clip_high_threshold=1.1",
        ],
    ],
    ids=lambda arguments: arguments[0],
)
def test_grpo(arguments: list[str], gym: Callable[..., Path], tmp_path: Path) -> None:
    run = gym(tmp_path, "num_steps=2", "eval_every=2", *arguments)
    steps = batches(run)
    assert [m["step"] for m in steps] == [1, 2]
    assert [m["step"] for m in read_jsonl(run / "metrics.jsonl") if "eval/reward" in m] == [0, 2]
    trained = [m for m in steps if m["tokens/trained"]]
    assert trained, "no batch with a reward: change the model's seed"
    for m in trained:
        assert m["policy/rms_sampler_trainer"] < 1e-4
        assert m["optim/grad_norm"] > 0
        assert ("policy/kl_base" in m) == ("kl_coef=0.1" in arguments)
    if "lr_schedule=linear" in arguments:
        assert {m["step"]: m["optim/learning_rate"] for m in trained}.items() <= {
            1: 0.01,
            2: 0.005,
        }.items()
    first = trained[0]
    if "updates_per_batch=3" in arguments:
        assert first["tokens/trained"] % 3 == 0
    if "kl_coef=0.1" in arguments and first["step"] == 1:
        # at the start the policy is the base model
        assert abs(first["policy/kl_base"]) < 1e-5
    samples = read_jsonl(run / "samples.jsonl")
    assert [s["kind"] for s in samples].count("train") == 2 * 2 * 6
    assert (run / "report.html").stat().st_size > 1000


def test_rest_em(gym: Callable[..., Path], tmp_path: Path) -> None:
    run = gym(tmp_path, "num_steps=2", "algorithm=rest_em", "lr_schedule=cosine", "eval_every=0")
    steps = batches(run)
    assert any(m["successes"] for m in steps), "no success: change the model's seed"
    for m in steps:
        assert m["successes"] == round(m["train/solved"] * 12)
        if m["successes"]:
            assert m["loss"] < m["loss/first"]
            # sampled at temperature 1 by the weights that the first update begins with
            assert m["policy/rms_sampler_trainer"] < 1e-4


def test_only_evaluation(
    gym: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = gym(tmp_path, "num_steps=0")
    assert [m["step"] for m in read_jsonl(run / "metrics.jsonl")] == [0]
    out = capsys.readouterr().out
    assert "before training" in out and "after 0" not in out
    assert re.search(
        r"Merge it:  uv run scripts/export.py checkpoint_path=\S+ output_dir=XXXX", out
    )


def test_pass_at_k_of_several_held_out_answers(
    gym: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = gym(tmp_path, "num_steps=0", "eval_group_size=4")
    [metrics] = read_jsonl(run / "metrics.jsonl")
    solved: dict[str, list[bool]] = {}
    for sample in read_jsonl(run / "samples.jsonl"):
        solved.setdefault(sample["problem"], []).append(sample["solved"])
    pairs = [any(two) for own in solved.values() for two in itertools.combinations(own, 2)]
    assert 0 < sum(pairs) < len(pairs), "all alike: change the model's seed"
    assert metrics["eval/pass@1"] == pytest.approx(metrics["eval/solved"])
    assert metrics["eval/pass@2"] == pytest.approx(sum(pairs) / len(pairs))
    assert metrics["eval/pass@4"] == pytest.approx(sum(map(any, solved.values())) / len(solved))
    assert metrics["eval/pass@2_low"] < metrics["eval/pass@2"] < metrics["eval/pass@2_high"]
    assert re.search(r"solved\s+pass@2\s+pass@4\n", capsys.readouterr().out)
    page = (run / "report.html").read_text()
    assert "at least one of k answers solves" in page and "its 95% interval" in page


def test_no_interval_of_a_single_problem(gym: Callable[..., Path], tmp_path: Path) -> None:
    run = gym(tmp_path, "num_steps=0", "eval_group_size=4", "test_size=1")
    page = (run / "report.html").read_text()
    assert "at least one of k answers solves" in page and "95% interval" not in page


def test_no_pass_at_k_of_one_answer(gym: Callable[..., Path], tmp_path: Path) -> None:
    run = gym(tmp_path, "num_steps=0", "eval_group_size=1")
    [metrics] = read_jsonl(run / "metrics.jsonl")
    assert not [name for name in metrics if "pass@" in name]
    assert "pass@" not in (run / "report.html").read_text()


def test_dry_run_leaves_nothing_behind(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    entrypoint([*GYM, f"model_name={model}", "num_steps=5", "eval_every=2", "dry_run=true"])
    shown = capsys.readouterr().out
    rows = dict(line.split("  ", 1) for line in shown.splitlines() if "  " in line)
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows["batches"] == "5 of 2 x 6 answers"
    assert rows["evaluations"] == "4 of 3 problems"
    assert rows["answers"] == "60 to train on, 12 held out"
    assert rows["updates"] == "5 (grpo)"
    assert "estimated time" in rows
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------- prompts over the context


def gsm8k_files(folder: Path, *lengths: int) -> Path:
    """Both splits with one question of each length, in words."""
    folder.mkdir()
    rows = [{"question": "word " * n, "answer": "#### 1"} for n in lengths]
    for split in ("train", "test"):
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(text)
    return folder


# the model takes 4096 tokens, a letter each
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_prompt_over_the_context_is_left_out(
    dry_run: bool,
    model: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = gsm8k_files(tmp_path / "data", 1, 2000, 2, 1000, 3)
    run = tmp_path / "run"
    arguments = [
        *("domain=gsm8k", f"data_path={data}", f"model_name={model}", f"log_path={run}"),
        *("num_steps=2", "groups_per_batch=3", "group_size=2", "max_tokens=2", "lora_rank=2"),
    ]
    with caplog.at_level("WARNING"):
        entrypoint([*arguments, f"dry_run={str(dry_run).lower()}"])
    [told, held_out] = [r.message for r in caplog.records if "are left out" in r.message]
    assert told.startswith("2 of 5 train problems ")
    assert "more than 4095 tokens" in told
    assert told.endswith(": gsm8k/train/1, gsm8k/train/3")
    assert held_out.endswith(": gsm8k/test/1, gsm8k/test/3")
    if dry_run:
        out = capsys.readouterr().out
        assert re.search("^problems +3 train, 3 held out$", out, re.MULTILINE)
        assert re.search("^left out +4 whose prompts are over the context$", out, re.MULTILINE)
        assert not run.exists()
        return
    asked = {s["problem"] for s in read_jsonl(run / "samples.jsonl")}
    assert asked == {f"gsm8k/{split}/{i}" for split in ("train", "test") for i in (0, 2, 4)}
    # and the same command goes on
    entrypoint([*arguments, "num_steps=3"])
    assert [m["step"] for m in batches(run)] == [1, 2, 3]


def test_nothing_but_prompts_over_the_context_is_refused(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = gsm8k_files(tmp_path / "data", 1000, 2000)
    run = tmp_path / "run"
    error = refused(
        ["domain=gsm8k", f"data_path={data}", f"model_name={model}", f"log_path={run}"], capsys
    )
    assert "2 of 2 train problems have prompts of more than 4095 tokens" in error
    assert "gsm8k/train/0, gsm8k/train/1; use a model with a longer context" in error
    assert not run.exists()


def test_the_longest_prompt_that_fits_is_trained_on(model: str, tmp_path: Path) -> None:
    """A context of 4096 tokens holds 4095 of a prompt, and one of an answer."""
    data = gsm8k_files(tmp_path / "data", 1)
    config: Any = load_config(Gsm8kConfig, [f"data_path={data}"])
    [problem] = Gsm8kDomain(config).problems("train")
    others = len(render_prompt(load_tokenizer(model), problem.messages)) - len("word")
    rows = [{"question": "w" * (4095 - others + i), "answer": "#### 1"} for i in range(2)]
    for split in ("train", "test"):
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (data / f"{split}.jsonl").write_text(text)
    run = tmp_path / "run"
    entrypoint(
        [
            *("domain=gsm8k", f"data_path={data}", f"model_name={model}", f"log_path={run}"),
            *("num_steps=1", "groups_per_batch=1", "group_size=2", "max_tokens=5", "lora_rank=2"),
        ]
    )
    samples = read_jsonl(run / "samples.jsonl")
    assert {s["problem"] for s in samples} == {"gsm8k/train/0", "gsm8k/test/0"}
    assert [m["step"] for m in batches(run)] == [1]


# a question of as many words as it likes, up to 6000 letters and more
LONG_WORDS = ("domain=gym", "task=letter_counting", "train_size=8", "test_size=4", "max_tokens=1")


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("domain", ["arc", "gym"])
def test_every_domain_leaves_out_prompts_over_the_context(
    domain: str,
    dry_run: bool,
    model: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    if domain == "arc":
        settings = [*ARC, *arc_files(tmp_path / "data", 30, 3, 28, 2)]
        wanted = ["train-30", "train-28"], ["test-30", "test-28"]
    else:
        settings = [*LONG_WORDS, 'task_config={"min_words": 1, "max_words": 1500}']
        wanted = too_long_gym(settings, model)
    settings += [f"model_name={model}", f"log_path={run}", "num_steps=2", "groups_per_batch=2"]
    settings += ["group_size=2", "lora_rank=2", "eval_size=2", f"dry_run={str(dry_run).lower()}"]
    with caplog.at_level("WARNING"):
        entrypoint(settings)
    told = [r.message for r in caplog.records if "and are left out" in r.message]
    for message, ids in zip(told, wanted, strict=True):
        assert "more than 4095 tokens" in message
        assert message.rpartition(": ")[2].split(", ") == ids
    left_out = {problem for ids in wanted for problem in ids}
    if dry_run:
        out = capsys.readouterr().out
        assert re.search(f"^left out +{len(left_out)} whose prompts", out, re.MULTILINE)
        assert not run.exists()
        return
    assert [m["step"] for m in batches(run)] == [1, 2]
    asked = {s["problem"] for s in read_jsonl(run / "samples.jsonl")}
    assert len(asked) >= 4 and not asked & left_out


def too_long_gym(settings: list[str], model: str) -> tuple[list[str], list[str]]:
    """The ids that cannot be asked, of what is looked at: of the test split up to the second that
    can. A letter is a token."""
    config: Any = load_config(GymConfig, settings[1:])
    domain = GymDomain(config, None)
    tokenizer = load_tokenizer(model)
    found: list[list[str]] = []
    sizes: dict[Split, int | None] = {"train": None, "test": 2}
    for split, size in sizes.items():
        ids: list[str] = []
        fitting = 0
        for problem in domain.problems(split):
            if fitting == size:
                break
            if len(render_prompt(tokenizer, problem.messages)) > 4095:
                ids.append(problem.id)
            else:
                fitting += 1
        found.append(ids)
    train, test = found
    assert train and test, "change the seed: nothing is too long"
    return train, test


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("domain", ["arc", "gym"])
def test_every_domain_refuses_where_no_prompt_is_left(
    domain: str,
    dry_run: bool,
    model: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    if domain == "arc":
        settings = [*ARC, *arc_files(tmp_path / "data", 30, 28)]
        ids = "train-30, train-28"
    else:
        settings = [*LONG_WORDS, 'task_config={"min_words": 1500, "max_words": 1500}']
        ids = ", ".join(f"gym/letter_counting/train/{i}" for i in range(8))
    error = refused(
        [*settings, f"model_name={model}", f"log_path={run}", f"dry_run={str(dry_run).lower()}"],
        capsys,
    )
    assert "train problems have prompts of more than 4095 tokens" in error
    assert f"{ids}; use a model with a longer context" in error
    assert not run.exists()


def test_a_single_self_edit_is_refused_by_its_task(
    model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    # a task of 30x30 grids
    with pytest.raises(SystemExit):
        config_entrypoint(self_edit.main, ["task_id=3631a71a", f"model_name={model}"])
    error = capsys.readouterr().err
    assert "1 of 1 tasks have prompts of more than 4095 tokens" in error
    assert "3631a71a; use a model with a longer context" in error


# ------------------------------------------------------------------------------------------ resume

LONG = ("num_steps=4", "eval_every=2", "save_every=1", "loss_fn=ppo", "updates_per_batch=2")


@pytest.fixture(scope="module")
def uninterrupted_run(
    gym: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Results:
    return results(gym(tmp_path_factory.mktemp("reference"), *LONG))


@pytest.mark.parametrize("save_every", [1, 3])
def test_a_run_in_two_parts_is_the_same_run(
    save_every: int, gym: Callable[..., Path], uninterrupted_run: Results, tmp_path: Path
) -> None:
    gym(tmp_path, *LONG, f"save_every={save_every}", "num_steps=1")
    # the evaluation at the end of the first part is none of the whole run's
    cut = read_jsonl(tmp_path / "checkpoints.jsonl")[-1]
    state = json.loads((tmp_path / "loop_state" / f"{cut['name']}.json").read_text())
    assert (state["step"], state["evaluated"]) == (1, True)
    gym(tmp_path, *LONG, f"save_every={save_every}")
    whole = results(tmp_path)
    extra = [line for line in whole.metrics if '"step": 1' in line and "eval/reward" in line]
    assert len(extra) == 1
    metrics = [line for line in whole.metrics if line not in extra]
    samples = [
        line
        for line in whole.samples
        if not (json.loads(line)["kind"] == "eval" and json.loads(line)["step"] == 1)
    ]
    whole = whole._replace(metrics=metrics, samples=samples)
    assert whole.difference(uninterrupted_run) is None


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ('"step": 1, "skipped', signal.SIGINT),
        ('"step": 2, "eval', signal.SIGTERM),
        ('"step": 3, "skipp', signal.SIGINT),
    ],
)
def test_ctrl_c_saves_and_the_same_command_goes_on(
    moment: str,
    number: signal.Signals,
    gym: Callable[..., Path],
    uninterrupted_run: Results,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    metrics = tmp_path / "metrics.jsonl"
    finished = threading.Event()

    def press() -> None:
        while not finished.wait(0.001):
            if metrics.exists() and moment in metrics.read_text():
                os.kill(os.getpid(), number)
                return

    watcher = threading.Thread(target=press)
    watcher.start()
    try:
        with pytest.raises(SystemExit) as exit_info:
            gym(tmp_path, *LONG, "save_every=0")
    finally:
        finished.set()
        watcher.join()
    assert exit_info.value.code == 128 + number
    assert f"the same command with log_path={tmp_path} goes on" in capsys.readouterr().err
    assert len(read_jsonl(tmp_path / "checkpoints.jsonl")) == 1
    assert len(metrics.read_text().splitlines()) < len(uninterrupted_run.metrics)
    gym(tmp_path, *LONG, "save_every=0")
    assert results(tmp_path).difference(uninterrupted_run) is None


def test_twenty_kills_change_nothing(model: str, tmp_path: Path) -> None:
    kill_again_and_again("rl_loop", tmp_path, *GYM, *LONG, f"model_name={model}", kills=20)


# ------------------------------------------------------------------------------------ config errors


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as exit_info:
        entrypoint(arguments)
    assert exit_info.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "messages"),
    [
        (["domain=chess"], ["domain='chess': known are arc, gsm8k, gym"]),
        (
            [
                "domain=gym",
                "group_sise=3",
                "num_steps=many",
                "loss_fn=reinforce",
                "task_set=small",
                "config_file=missing.yaml",
            ],
            [
                "group_sise (from command line): unknown key. Did you mean 'group_size'?",
                "num_steps (from command line): expected int or None, got 'many'",
                "loss_fn (from command line): expected one of importance_sampling, ppo",
                "task_set (from command line): unknown key",
                "missing.yaml: no such file",
            ],
        ),
        (
            ["num_steps=-1", "group_size=0", "updates_per_batch=2", "temperature=-1"],
            ["num_steps=-1", "group_size=0", "needs loss_fn=ppo or cispo", "temperature=-1"],
        ),
        (
            ["model_name=./nowhere", "loss_fn=dro"],
            ["model_name='./nowhere': the folder does not exist", "lacks ['beta']"],
        ),
        (["domain=gym", "task=chain_summ"], ["close are chain_sum"]),
        (["domain=gym", "task_config.terms=2"], ["task_config has ['terms']; chain_sum knows"]),
        (["domain=gsm8k", "data_path=nowhere"], ["data_path='nowhere': no file nowhere"]),
        (["domain=gym", "group_size=1"], ["group_size=1: grpo compares"]),
        (["domain=gym", "algorithm=rest_em", "kl_coef=1"], ["belong to algorithm=grpo"]),
        (["domain=gym", "selection=best"], ["selection=best", "algorithm=rest_em"]),
        (["challenges_file=no.json"], ["challenges_file (from command line): no.json: no such"]),
    ],
)
def test_what_is_wrong_is_told_together_and_leaves_nothing_behind(
    arguments: list[str],
    messages: list[str],
    model: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if not any(argument.startswith("model_name") for argument in arguments):
        arguments = [*arguments, f"model_name={model}"]
    error = refused(arguments, capsys)
    for message in messages:
        assert message in error
    assert list(tmp_path.iterdir()) == []


def test_a_broken_config_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("domain: [gym\n")
    assert f"{path}:2:1: not valid YAML" in refused([f"config_file={path}"], capsys)


def test_another_setting_does_not_resume(
    gym: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gym(tmp_path, "num_steps=0")
    with pytest.raises(SystemExit):
        gym(tmp_path, "num_steps=0", "seed=1")
    assert "seed: stored 0, given 1" in capsys.readouterr().err


@pytest.mark.parametrize("script", ["rl_loop", "self_edit"])
def test_help_loads_nothing_heavy(script: str) -> None:
    code = (
        f"import sys, time; sys.path.insert(0, 'scripts'); from {script} import Config; "
        "assert not {'torch', 'transformers', 'matplotlib', 'datasets'} & set(sys.modules); "
        # time of this process, so that a busy machine does not count
        "print(time.process_time())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert float(done.stdout) < 2
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, f"scripts/{script}.py", "--help"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert "grid_format" in done.stdout
    # a second on a machine of its own
    assert after.ru_utime - before.ru_utime < 2


# -------------------------------------------------------------------------------------- resampling


class Pickers(Stateless):
    """Wants the letter b; anything else is no answer at all."""

    name = "pickers"
    algorithm: Any = "grpo"
    max_tokens = 4
    json_schema: dict[str, Any] | None = {"type": "string"}  # noqa: RUF012
    loop_defaults: dict[str, Any] = {}  # noqa: RUF012

    def invalid(self, answer: str) -> str | None:
        return None if answer == "b" else f"{answer} is no b"

    def problems(self, split: str) -> list[Problem]:
        return [Problem(f"{split}{i}", [{"role": "user", "content": "b?"}], i) for i in range(2)]

    def rewards(self, problems_P: Any, answers_P_G: Any) -> list[list[Reward]]:
        return [[Reward(0, False, self.invalid(a) or "") for a in group] for group in answers_P_G]


class LetterSampler:
    """Answers a to each first request, and b from the `patience`-th new try on."""

    def __init__(self, tokenizer: Any, patience: int) -> None:
        self.tokenizer = tokenizer
        self.patience = patience
        self.tries: dict[str, int] = {}
        self.schemas: list[Any] = []
        self.seeds: list[int] = []

    def sample(self, prompt: Any, num_samples: int, params: Any) -> Any:
        self.schemas.append(params.json_schema)
        self.seeds.append(params.seed)
        letter = "a" if num_samples > 1 or len(self.seeds) <= self.patience else "b"
        tokens = np.array([*self.tokenizer.encode(letter), self.tokenizer.eos_token_id])
        logprobs = np.full(len(tokens), -1.0, dtype=np.float32)
        sequence = SampledSequence(stop_reason="stop", tokens_np=tokens, logprobs_np=logprobs)
        return _Done(SampleResponse([sequence] * num_samples))


class _Done:
    def __init__(self, value: Any) -> None:
        self._value = value

    def result(self) -> Any:
        return self._value


class LetterTrainer:
    def __init__(self, sampler: LetterSampler) -> None:
        self._sampler = sampler

    def get_tokenizer(self) -> Any:
        return self._sampler.tokenizer

    def save_weights_and_get_sampling_client(self) -> Any:
        return _Done(self._sampler)


@pytest.mark.parametrize(
    ("patience", "max_resamples", "num_requests", "text"),
    [(99, 2, 2 + 6 + 6, "a"), (99, 0, 2, "a"), (2, 5, 2 + 6, "b"), (8, 5, 2 + 6 + 6, "b")],
)
def test_invalid_answers_are_sampled_again_at_most_so_often(
    patience: int, max_resamples: int, num_requests: int, text: str
) -> None:
    from tiny_chat import chat_tokenizer

    sampler = LetterSampler(chat_tokenizer(), patience)
    trainer: Any = LetterTrainer(sampler)
    domain: Any = Pickers()
    policy = Policy(trainer, domain, enforce_schema=False, max_resamples=max_resamples, seed=0)
    problems = domain.problems("train")
    groups = policy.answers(problems, size=3, temperature=1.0, key=("train", 0))
    assert [[t.text for t in group] for group in groups] == [[text] * 3] * 2
    assert len(sampler.seeds) == num_requests == len(set(sampler.seeds))
    assert set(sampler.schemas) == {None}


def test_an_enforced_schema_is_not_resampled_and_equal_problems_get_other_seeds() -> None:
    from tiny_chat import chat_tokenizer

    sampler = LetterSampler(chat_tokenizer(), 99)
    trainer: Any = LetterTrainer(sampler)
    domain: Any = Pickers()
    policy = Policy(trainer, domain, enforce_schema=True, max_resamples=3, seed=0)
    first = domain.problems("train")[0]
    policy.answers([first, first], size=3, temperature=1.0, key=("train", 0))
    assert sampler.schemas == [domain.json_schema] * 2
    assert len(set(sampler.seeds)) == 2


def test_arc_without_schema_keeps_the_reason(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = {
        "train": [{"input": [[1, 0]], "output": [[0, 1]]}, {"input": [[2, 0]], "output": [[0, 2]]}],
        "test": [{"input": [[3, 0]]}],
    }
    files = []
    for split in ("", "test_"):
        for name, data in (("challenges", task), ("solutions", [[[0, 3]]])):
            path = tmp_path / f"{split}{name}.json"
            path.write_text(json.dumps({f"{split or 'train_'}0": data}))
            files.append(f"{split}{name}_file={path}")
    run = tmp_path / "run"
    entrypoint(
        [
            "domain=arc",
            "task_set=small",
            *files,
            f"model_name={model}",
            f"log_path={run}",
            "num_steps=1",
            "groups_per_batch=1",
            "group_size=2",
            "eval_size=1",
            "eval_group_size=2",
            "enforce_schema=false",
            "max_resamples=2",
            "max_tokens=4",
            "max_answer_tokens=4",
            "max_example_tokens=4000",
        ]
    )
    samples = read_jsonl(run / "samples.jsonl")
    assert [s["kind"] for s in samples] == ["eval"] * 2 + ["train"] * 2 + ["eval"] * 2
    for sample in samples:
        assert sample["reward"] == 0
        assert "not JSON" in sample["note"] or "expected an object" in sample["note"]
    assert (run / "final_results.json").is_file()
    assert batches(run)[0]["successes"] == 0
    # what came of it, on the screen and on the page
    page = (run / "report.html").read_text(encoding="utf-8")
    for shown in (capsys.readouterr().out, page):
        assert "6 self-edits, 6 of them refused; 0 carried out" in shown
        assert "held-out problem" in shown and "95% for new answers to these" in shown
        assert "no valid form" in shown
        assert "+0.000 on one problem, whose answers earned the same each time" in shown
