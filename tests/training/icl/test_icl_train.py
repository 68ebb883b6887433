"""icl_train: the loop against torch's own, exact resume, folders, presets, refusals."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import chz
import icl_train
import pytest
import torch
from kills import kill_again_and_again
from places import ROOT
from run_results import icl_difference
from torch import nn
from transformers.optimization import get_inverse_sqrt_schedule

from training.icl.config import MLP, Training, Transformer, run_folder_name
from training.icl.families import make_family
from training.icl.models import build_model
from training.icl.settings import BallsAndUrns, Classification, LinearRegression
from training.icl.tasks import load_task_set, make_generator, new_task_set
from training.icl.train import (
    OnlineEvaluation,
    Trainer,
    checkpoint_steps,
    load_model,
    memory_estimate,
)
from training.loop import learning_rate_factor
from utils.config.entrypoint import load_config, load_yaml
from utils.config.presets import list_presets, load_preset
from utils.runs.files import read_jsonl

pytestmark = pytest.mark.usefixtures("one_torch_thread")

SETTING = BallsAndUrns(num_dims=4, context_length=6, num_tasks=3)
SMALL = [
    "setting.num_dims=4",
    "setting.context_length=6",
    "setting.num_tasks=3",
    "model.hidden_size=8",
    "training.batch_size=4",
    "training.eval_sequences=8",
    "training.per_task_sequences=2",
]
STEPS = ["training.num_steps=12", "training.eval_every=5", "training.log_every=3"]
STEPS += ["training.save_steps=[4,9]", "training.resume_every=2"]


def run(*arguments: str) -> None:
    icl_train.entrypoint([*arguments])


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    return read_jsonl(folder / "metrics.jsonl")


# ------------------------------------------------------------------------------------------- loop


@pytest.mark.parametrize(
    "model",
    [Transformer(hidden_size=16, num_heads=2), MLP(hidden_size=16, base_hidden_size=8)],
    ids=["transformer", "mlp"],
)
def test_updates_are_those_of_torch(model: Any) -> None:
    """Against an own loop with torch.optim.AdamW and LambdaLR, for each group by itself."""
    family = make_family(SETTING)
    tasks = new_task_set(SETTING, family, 3, seed=0)
    training = Training(
        num_steps=20,
        batch_size=4,
        learning_rate=0.01,
        weight_decay=0.1,
        grad_clip_norm=0.5,
        lr_schedule="inverse_sqrt",
        warmup_steps=3,
    )
    trainer = Trainer(model, training, family, tasks, seed=7)
    theirs = build_model(model, family, seed=7)
    hidden = [p for name, p in theirs.named_parameters() if name.startswith("hidden.")]
    slow = [p for p in hidden if p.ndim == 2] if isinstance(model, MLP) else []
    fast = [p for p in theirs.parameters() if all(p is not other for other in slow)]
    groups = [{"params": fast, "lr": 0.01, "weight_decay": 0.1}]
    if slow:
        groups.append({"params": slow, "lr": 0.005, "weight_decay": 0.2})
    optimizer = torch.optim.AdamW(groups, fused=False, foreach=False)
    schedule = get_inverse_sqrt_schedule(optimizer, 3)
    data = make_generator("data", 7)
    losses = []
    for _ in range(20):
        batch = family.sample(tasks, 4, data)
        logits = theirs(batch.inputs)
        loss = nn.functional.cross_entropy(logits.reshape(-1, 5), batch.targets.reshape(-1))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        trainer.train_step()
    assert trainer.take_loss() == pytest.approx(sum(losses) / 20, rel=1e-5)
    for mine, other in zip(trainer.model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine, other, atol=2e-5, rtol=1e-4)
    trainer.train_step()
    assert trainer.learning_rate == pytest.approx(optimizer.param_groups[0]["lr"])


def test_inverse_sqrt_is_that_of_transformers() -> None:
    for warmup in (0, 5):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule = get_inverse_sqrt_schedule(optimizer, warmup)
        for index in range(40):
            ours = learning_rate_factor("inverse_sqrt", index, 40, warmup)
            assert ours == pytest.approx(schedule.get_last_lr()[0], rel=1e-12)
            optimizer.step()
            schedule.step()


class Exact(nn.Module):
    """A model whose outputs are an exact predictor's."""

    def __init__(self, family: Any, tasks: Any, which: Any) -> None:
        super().__init__()
        self.family, self.tasks, self.which = family, tasks, which

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        from training.icl.base import Batch

        empty = torch.empty(0)
        found = self.family.predict(self.which, Batch(inputs, empty, empty, empty), self.tasks)
        # the token BOS, which predictions leave out, may have any logit
        return torch.cat([found, torch.full_like(found[..., :1], 3.0)], dim=-1)


def test_evaluation_knows_the_predictors() -> None:
    setting = BallsAndUrns(num_dims=4, context_length=8, num_tasks=3)
    family = make_family(setting)
    tasks = new_task_set(setting, family, 3, seed=0)
    # more sequences than one chunk
    training = Training(eval_sequences=150, per_task_sequences=4)
    evaluation = OnlineEvaluation(family, tasks, training, seed=0)
    found = evaluation.metrics(Exact(family, tasks, "memorizing"))
    for mode in ("id", "ood"):
        assert found[f"eval/{mode}/loss"] == pytest.approx(found[f"eval/{mode}/memorizing_loss"])
        assert found[f"eval/{mode}/divergence_memorizing"] == pytest.approx(0, abs=1e-6)
        assert found[f"eval/{mode}/relative_distance"] == pytest.approx(1, abs=1e-5)
    assert found["eval/id/memorizing_loss"] < found["eval/id/generalizing_loss"]
    assert found["eval/ood/generalizing_loss"] < found["eval/ood/memorizing_loss"]
    per_task = {key for key in found if key.startswith("eval/task_")}
    assert per_task == {f"eval/task_{i:03d}/loss" for i in range(3)}
    # each task's loss is on sequences of that task: of draws from its urn alone
    second = tasks._replace(
        values={"urns": tasks.values["urns"][1:2]}, log_prior=torch.zeros(1).double()
    )
    alone = Exact(family, second, "memorizing")
    single = evaluation.metrics(alone)
    assert single["eval/task_001/loss"] == pytest.approx(0, abs=1e-6)
    assert min(single["eval/task_000/loss"], single["eval/task_002/loss"]) > 0.01
    general = evaluation.metrics(Exact(family, tasks, "generalizing"))
    assert general["eval/id/relative_distance"] == pytest.approx(0, abs=1e-5)
    endless = OnlineEvaluation(family, None, training, seed=0)
    found = endless.metrics(Exact(family, None, "generalizing"))
    assert not [key for key in found if "memorizing" in key or "task" in key or "relative" in key]


def test_classification_is_evaluated_in_weights_too() -> None:
    setting = Classification(num_dims=3, context_length=5, num_tasks=4)
    family = make_family(setting)
    tasks = new_task_set(setting, family, 4, seed=0)
    model = build_model(Transformer(hidden_size=8), family, seed=0)
    training = Training(eval_sequences=64)
    found = OnlineEvaluation(family, tasks, training, seed=0).metrics(model)
    # a guess costs ln 2 = 0.693; from a context without the pair one cannot do better
    assert found["eval/id/generalizing_loss"] < 0.6 < 0.69 < found["eval/iwl/generalizing_loss"]
    assert found["eval/iwl/memorizing_loss"] < 0.6
    alone = OnlineEvaluation(family, new_task_set(setting, family, 1, seed=0), training, seed=0)
    assert not [key for key in alone.metrics(model) if "iwl" in key]


def test_losses_fall_to_the_predictors(tmp_path: Path) -> None:
    run(
        f"log_path={tmp_path / 'run'}",
        f"runs_dir={tmp_path}",
        "setting.num_tasks=2",
        "setting.context_length=16",
        "training.num_steps=60",
        "training.learning_rate=3e-3",
        "training.eval_every=30",
    )
    records = [r for r in metrics_of(tmp_path / "run") if "eval/id/loss" in r]
    assert [r["step"] for r in records] == [0, 30, 60]
    losses = [r["eval/id/loss"] for r in records]
    # two urns: only who knows them comes below the generalizing predictor
    assert losses[2] < 0.5 * losses[0] and losses[2] < 0.5 * records[2]["eval/id/generalizing_loss"]
    assert records[2]["eval/id/relative_distance"] > 0.6


# ------------------------------------------------------------------------------------------- runs


def test_a_run_leaves_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    run(*SMALL, *STEPS, "name=mine")
    (folder,) = [path.parent for path in tmp_path.glob("runs/icl/mine/*/config.yaml")]
    assert folder.name == run_folder_name([*SMALL, *STEPS])
    assert len(list((tmp_path / "runs/icl/tasks").glob("*.pt"))) == 1
    assert checkpoint_steps(folder) == [4, 9, 12]
    stored = load_yaml(folder / "config.yaml")
    assert stored["training"]["save_steps"] == [4, 9, 12]
    assert stored["model"]["type"] == "Transformer" and stored["setting"]["type"] == "BallsAndUrns"
    records = metrics_of(folder)
    assert [r["step"] for r in records if "train/loss" in r] == [3, 6, 9, 12]
    assert [r["step"] for r in records if "eval/id/loss" in r] == [0, 5, 10, 12]
    assert all(r["speed/steps_per_second"] > 0 for r in records if "train/loss" in r)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "memorizing" in page and page.count("<svg") >= 4
    out = capsys.readouterr().out
    assert "icl_eval.py name=mine" in out and "relative distance" in out
    # the same command says that it is done, and trains nothing
    before = {path: path.read_bytes() for path in folder.glob("*/**/*") if path.is_file()}
    run(*SMALL, *STEPS, "name=mine")
    after = {path: path.read_bytes() for path in folder.glob("*/**/*") if path.is_file()}
    assert before == after and metrics_of(folder) == records


def test_a_checkpoint_is_the_model_of_that_step(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = [*SMALL, *STEPS, f"runs_dir={tmp_path}"]
    run(*arguments, f"log_path={folder}")
    setting = BallsAndUrns(num_dims=4, context_length=6, num_tasks=3)
    family = make_family(setting)
    tasks = load_task_set(setting, family, tmp_path / "tasks")
    training = Training(num_steps=12, batch_size=4)
    trainer = Trainer(Transformer(hidden_size=8), training, family, tasks, seed=0)
    inputs = family.sample(tasks, 3, torch.Generator().manual_seed(0)).inputs
    for step in range(1, 13):
        trainer.train_step()
        if step in (4, 9, 12):
            loaded = load_model(folder, step, family)
            assert not loaded.training
            assert torch.equal(loaded(inputs), trainer.model(inputs))
    with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 5; there are: 4, 9, 12"):
        load_model(folder, 5, family)
    longer = make_family(chz.replace(setting, num_dims=9))
    with pytest.raises(ValueError, match=r"embed_in\.weight, lm_head\.weight have"):
        load_model(folder, 4, longer)


@pytest.mark.parametrize("kind", ["Transformer", "MLP"])
def test_interrupted_is_uninterrupted(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [*SMALL, *STEPS, f"model={kind}", f"runs_dir={tmp_path}"]
    arguments += ["training.resume_every=5"]
    run(*arguments, f"log_path={tmp_path / 'whole'}")
    original = Trainer.train_step
    # Ctrl-C before the first state and between two; a crash with more logged than a state knows
    for stop, crash, done in ((1, False, 1), (7, False, 7), (8, True, 5)):
        folder = tmp_path / f"stopped{stop}"
        number = signal.SIGTERM if stop == 7 else signal.SIGINT

        def interrupted(
            self: Trainer, stop: int = stop, crash: bool = crash, number: int = number
        ) -> None:
            if self.step == stop - 1 and crash:
                raise MemoryError
            if self.step == stop - 1:
                signal.raise_signal(number)
            original(self)

        monkeypatch.setattr(Trainer, "train_step", interrupted)
        with pytest.raises(MemoryError if crash else SystemExit) as ended:
            run(*arguments, f"log_path={folder}")
        assert crash or getattr(ended.value, "code", None) == 128 + number
        steps: list[int] = []

        def counted(self: Trainer, steps: list[int] = steps) -> None:
            steps.append(self.step)
            original(self)

        monkeypatch.setattr(Trainer, "train_step", counted)
        run(*arguments, f"log_path={folder}")
        # starting again would end the same: that it went on shows here alone
        assert steps == list(range(done, 12))
        monkeypatch.setattr(Trainer, "train_step", original)
        assert icl_difference(folder, tmp_path / "whole") is None


@pytest.mark.slow
def test_kills_change_nothing(tmp_path: Path) -> None:
    settings = [*SMALL, *STEPS, "training.num_steps=40", f"runs_dir={tmp_path / 'runs'}"]
    kill_again_and_again("icl_train", tmp_path, *settings)


def test_other_settings_do_not_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*SMALL, *STEPS, f"runs_dir={tmp_path}", f"log_path={tmp_path / 'run'}"]
    run(*arguments)
    before = (tmp_path / "run" / "config.yaml").read_bytes()
    with pytest.raises(SystemExit) as ended:
        run(*arguments, "training.learning_rate=0.5")
    assert ended.value.code == 2
    assert "training.learning_rate: stored 0.001, given 0.5" in capsys.readouterr().err
    assert (tmp_path / "run" / "config.yaml").read_bytes() == before
    # what does not change the run may be another
    run(*arguments, "training.resume_every=5", "evaluation.num_sequences=7", "name=other")


def test_a_config_yaml_gives_the_same_run(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    run(*SMALL, *STEPS, "model=MLP", f"runs_dir={tmp_path}", f"log_path={first}")
    run(f"config_file={first / 'config.yaml'}", f"log_path={second}")
    assert icl_difference(first, second) is None


def test_a_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(*SMALL, *STEPS, f"runs_dir={tmp_path / 'runs'}", "dry_run=true")
    out = capsys.readouterr().out
    assert "3: 4, 9, 12" in out and "288" in out.replace(",", "") and "Nothing was written" in out
    assert not (tmp_path / "runs").exists()


def test_the_memory_estimate_counts_what_is_kept() -> None:
    setting = BallsAndUrns(num_dims=4, context_length=32)
    family = make_family(setting)
    model = build_model(MLP(hidden_size=64, num_layers=3), family, seed=0)
    weights = 4 * 4 * sum(p.numel() for p in model.parameters())
    one, ten = (memory_estimate(model, family, size) - weights for size in (1, 10))
    assert ten == 10 * one
    # three layers' outputs and what stands before the first non-linearity, at the least
    assert one >= 3 * 32 * 64 * 4 and one < 20 * 32 * 64 * 4


def test_a_loss_that_is_no_number_ends_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SMALL, "training.learning_rate=1e30", "training.grad_clip_norm=0"]
    with pytest.raises(SystemExit) as ended:
        run(*arguments, f"runs_dir={tmp_path}", f"log_path={tmp_path / 'run'}")
    assert ended.value.code == 2
    assert "training.learning_rate=1e+30: the loss is nan" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model.max_positions=5", "setting.context_length=6"], "has 6 inputs; raise it"),
        (
            ["setting=LinearRegression", "setting.context_length=8", "model.max_positions=14"],
            "has 15 inputs",
        ),
        (["training.save_steps=[0,3]", "training.num_steps=2"], r"save_steps=[0, 3]: steps from 1"),
        (["training.save_steps=[1]", "training.save_schedule=sqrt"], "give one of them"),
        (["training.save_schedule=explicit"], "needs training.save_steps"),
        (["training.warmup_steps=9", "training.num_steps=5"], "at most training.num_steps=5"),
        (["training.learning_rate=-1"], "training.learning_rate=-1.0: a number from 0"),
        (["training.batch_size=0"], "training.batch_size=0: at least 1"),
        (["model.num_heads=3"], "model.num_heads=3: must divide model.hidden_size=64"),
        (["model=Bayes"], "Bayes"),
        (["setting=Coins"], "Coins"),
        (["setting.task_prior=zipf"], "zipf"),
        (["experiment=nothing_like_it"], "balls_and_urns_small"),
        (["device=tpu"], "device='tpu' is not available"),
        (['sinks=["nowhere"]'], "sinks names 'nowhere'"),
    ],
)
def test_bad_input_is_refused_before_any_work(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run(*arguments, f"runs_dir={tmp_path / 'runs'}", f"log_path={tmp_path / 'run'}")
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_folder_names() -> None:
    assert run_folder_name(["setting.num_tasks=4", "model.hidden_size=128"]) == (
        "hidden_size=128,num_tasks=4"
    )
    # what leaves the run alone leaves its folder alone
    others = ["name=a", "experiment=b", "evaluation.seed=3", "device=cpu", "dry_run=true"]
    others += ["runs_dir=x", "sinks=wandb", "training.resume_every=7", "config_file=c.yaml"]
    assert run_folder_name(others) == "run"
    assert run_folder_name(["model=MLP", "seed=1", *others]) == "model=MLP,seed=1"
    # the order and what is overridden do not matter
    one = run_folder_name(["seed=1", "model=MLP", "seed=2"])
    assert one == run_folder_name(["seed=2", "model=MLP"]) == "model=MLP,seed=2"
    # endings that two keys share stay apart
    assert run_folder_name(["seed=1", "setting.seed=2"]) == "seed=1,setting.seed=2"
    assert run_folder_name(["...seed=1"]) == "seed=1"
    long = [f"training.{'x' * 30}{i}=1" for i in range(9)]
    name, other = run_folder_name(long), run_folder_name([*long, "seed=3"])
    assert name != other and len(name) <= 110 and "/" not in name
    listed, same = (
        run_folder_name(["training.save_steps=[1,2]"]),
        run_folder_name(["training.save_steps=(1,2)"]),
    )
    assert listed.startswith("save_steps=-1,2-") and listed != same


PRESETS = sorted((ROOT / "training/icl/experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_a_config(path: Path) -> None:
    """All of a preset's settings and axes are known to icl_train; those for icl_eval alone are
    tested there."""
    preset = load_preset(path.stem)
    assert preset.doc and preset.sweep and preset.scripts
    if "icl_train" not in preset.scripts:
        pytest.skip("for icl_eval")

    def value_at(config: Any, key: str) -> Any:
        for part in key.split("."):
            config = getattr(config, part)
        return config

    def load(*arguments: str) -> icl_train.Config:
        return load_config(
            icl_train.Config, [f"experiment={path.stem}", *arguments], script="icl_train"
        )

    config = load()
    assert config.name == path.stem
    for key, value in preset.values.items():
        found = value_at(config, key)
        assert (type(found).__name__ if key in ("model", "setting") else found) == value, key
    for axis, values in preset.sweep.items():
        for value in values:
            assert value_at(load(f"{axis}={value}"), axis) == value


def test_presets_are_listed() -> None:
    trained = set(list_presets("icl_train"))
    assert {"balls_and_urns_small", "task_diversity", "transience", "width_transfer"} <= trained
    assert "llm" not in trained and {"llm", "bayes"} <= set(list_presets("icl_eval"))


def test_help_is_quick_and_checks_are_json(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_VERSION"}
    script = str(ROOT / "scripts" / "icl_train.py")

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, script, *arguments],
            capture_output=True,
            text=True,
            env=environment,
            cwd=tmp_path,
        )

    shown = call("experiment=transience", "--help")
    assert shown.returncode == 0 and "preset transience" in shown.stdout
    folded = call("experiment=transience", "--help", "model", "training")
    assert "model.hidden_size" in folded.stdout and "training.save_schedule" in folded.stdout
    checked = call("experiment=transience", "model.max_positions=63", "--check")
    assert checked.returncode == 2
    (problem,) = json.loads(checked.stdout)["problems"]
    assert "model.max_positions=63" in problem
    fine = call("experiment=transience", "--check")
    answer = json.loads(fine.stdout)
    assert answer["problems"] == [] and answer["experiment_dir"] == "runs/icl/transience"
    code = "import sys, icl_train; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "scripts", env=environment)
    assert done.returncode == 0, "torch is imported before it is needed"


def test_linear_regression_trains(tmp_path: Path) -> None:
    run(
        "experiment=linear_regression_small",
        f"log_path={tmp_path / 'run'}",
        f"runs_dir={tmp_path}",
        "training.num_steps=80",
        "training.eval_every=40",
    )
    losses = [r["eval/id/loss"] for r in metrics_of(tmp_path / "run") if "eval/id/loss" in r]
    assert losses[-1] < 0.5 * losses[0]
    family = make_family(LinearRegression(num_dims=2, context_length=8, num_tasks=2))
    assert load_model(tmp_path / "run", 80, family) is not None
