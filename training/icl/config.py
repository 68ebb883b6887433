"""Settings of the in-context-learning experiments, shared by icl_train.py and icl_eval.py."""

import hashlib
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import chz

from training.icl.settings import BallsAndUrns, Setting
from utils.config.entrypoint import raise_problems
from utils.config.help import EVALUATION, MODEL, OUTPUT, WHAT
from utils.devices import DTYPE_DOC, Dtype
from utils.sweeps.manifest import axis_labels

# what a run's folder is named after; evaluation must not move it
RUN_KEYS = ("model", "seed", "setting", "training")
MAY_CHANGE = ("training.resume_every",)
MAX_FOLDER_NAME = 100
# the folder of task sets, beside those of the experiments
TASKS = "tasks"


@chz.chz(typecheck=True)
class Model:
    """What answers: a Transformer or an MLP trained here, an LLM, or an exact predictor (Bayes)."""


@chz.chz(typecheck=True)
class Trained(Model):
    """What icl_train.py can train."""

    hidden_size: int = chz.field(default=64, doc="width")
    num_layers: int = chz.field(default=1, doc="blocks, or hidden layers of an MLP")
    init_seed: int | None = chz.field(default=None, doc="of the weights; default: the run's seed")

    @chz.validate
    def _check_sizes(self) -> None:
        problems = []
        for name in ("hidden_size", "num_layers"):
            if getattr(self, name) < 1:
                problems.append(f"model.{name}={getattr(self, name)}: at least 1 is needed")
        raise_problems(problems)


@chz.chz(typecheck=True)
class Transformer(Trained):
    """GPT-NeoX's blocks, with learned positions as in the small studies or GPT-NeoX's own."""

    positions: Literal["learned", "rotary"] = chz.field(
        default="learned", doc="learned vectors, or GPT-NeoX's rotation of a quarter of each head"
    )
    num_heads: int = chz.field(default=1, doc="of attention; they share hidden_size")
    mlp_size: int | None = chz.field(default=None, doc="inner width; default: 4 x hidden_size")
    max_positions: int | None = chz.field(
        default=None, doc="longest input; default: what the setting needs"
    )
    init_std: float | None = chz.field(
        default=None, doc="of normal weights; default: 0.02 for tokens, 1/sqrt(fan in) for vectors"
    )

    @chz.validate
    def _check_transformer(self) -> None:
        problems = []
        if self.num_heads < 1 or self.hidden_size % self.num_heads:
            problems.append(
                f"model.num_heads={self.num_heads}: must divide model.hidden_size="
                f"{self.hidden_size}"
            )
        elif self.positions == "rotary" and self.hidden_size // self.num_heads < 8:
            # a quarter of fewer than 8 is no pair of dimensions, and nothing would be turned
            problems.append(
                f"model.positions=rotary: needs heads of 8 dimensions or more, got "
                f"model.hidden_size={self.hidden_size} / model.num_heads={self.num_heads}"
            )
        for name in ("mlp_size", "max_positions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"model.{name}={value}: at least 1 is needed")
        if self.init_std is not None and not 0 < self.init_std < math.inf:
            problems.append(f"model.init_std={self.init_std}: a number above 0 is needed")
        raise_problems(problems)


@chz.chz(typecheck=True)
class MLP(Trained):
    """Perceptron on the causally masked, flattened context. mup (for the MLP alone; a Transformer
    is trained in the standard parametrisation) keeps one learning rate good at all widths."""

    num_layers: int = chz.field(default=2, doc="hidden layers")
    mup: bool = chz.field(default=True, doc="scale init and learning rates with the width")
    base_hidden_size: int = chz.field(
        default=64, doc="of mup: at this width it is the standard parametrisation"
    )

    @chz.validate
    def _check_base(self) -> None:
        if self.base_hidden_size < 1:
            raise_problems(
                [f"model.base_hidden_size={self.base_hidden_size}: at least 1 is needed"]
            )


@chz.chz(typecheck=True)
class LLM(Model):
    """A language model that reads the task as text (balls and urns only)."""

    model_name: str = chz.field(default="embedded", doc="embedded, a folder or a hub id")
    words: list[str] = chz.field(
        default_factory=list, doc="one for each kind of ball, single tokens; default: chosen by us"
    )
    checkpoint: str | None = chz.field(
        default=None,
        doc="an adapter on model_name: a folder that sft.py, rl_loop.py or ttt.py saved",
    )
    dtype: Dtype | None = chz.field(default=None, doc=DTYPE_DOC)


@chz.chz(typecheck=True)
class Bayes(Model):
    """An exact predictor, evaluated like a model."""

    predictor: Literal["generalizing", "memorizing", "constant"] = chz.field(
        default="generalizing", doc="which one"
    )


@chz.chz(typecheck=True)
class Training:
    num_steps: int = chz.field(default=5000, doc="updates")
    batch_size: int = chz.field(default=64, doc="sequences per update, all new")
    learning_rate: float = chz.field(default=1e-3, doc="of AdamW, at its highest")
    weight_decay: float = chz.field(default=0.0, doc="of AdamW")
    grad_clip_norm: float = chz.field(default=1.0, doc="global norm; 0: off")
    lr_schedule: Literal["constant", "linear", "cosine", "inverse_sqrt"] = chz.field(
        default="constant", doc="after the warm-up"
    )
    warmup_steps: int = chz.field(default=0, doc="in which the rate rises")
    log_every: int = chz.field(default=10, doc="updates between lines of train/loss, their mean")
    eval_every: int = chz.field(
        default=100, doc="updates between evaluations, beside the first and the last; 0: only those"
    )
    eval_sequences: int = chz.field(default=256, doc="of each evaluation, always the same ones")
    per_task: bool = chz.field(default=True, doc="log the loss on each of the first 16 tasks too")
    per_task_sequences: int = chz.field(default=32, doc="of each task, with per_task")
    save_schedule: Literal["end_only", "linear", "sqrt", "explicit"] | None = chz.field(
        default=None,
        doc="which steps keep a checkpoint beside the last; default: explicit where save_steps are "
        "given, else end_only",
    )
    num_checkpoints: int = chz.field(default=10, doc="of linear and sqrt")
    save_steps: list[int] = chz.field(default_factory=list, doc="of explicit")
    resume_every: int = chz.field(
        default=500, doc="updates between states a killed run goes on from; 0: only at checkpoints"
    )

    @chz.validate
    def _check(self) -> None:
        problems = []
        for name in (
            "num_steps", "batch_size", "log_every", "eval_sequences", "per_task_sequences",
            "num_checkpoints",
        ):  # fmt: skip
            if getattr(self, name) < 1:
                problems.append(f"training.{name}={getattr(self, name)}: at least 1 is needed")
        for name in ("warmup_steps", "eval_every", "resume_every"):
            if getattr(self, name) < 0:
                problems.append(f"training.{name}={getattr(self, name)}: 0 or more is needed")
        for name in ("learning_rate", "weight_decay", "grad_clip_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                problems.append(f"training.{name}={getattr(self, name)}: a number from 0 is needed")
        if self.warmup_steps > self.num_steps:
            problems.append(
                f"training.warmup_steps={self.warmup_steps}: at most training.num_steps="
                f"{self.num_steps}"
            )
        wrong = [step for step in self.save_steps if not 1 <= step <= self.num_steps]
        if wrong:
            problems.append(
                f"training.save_steps={wrong}: steps from 1 to training.num_steps={self.num_steps}"
            )
        if self.save_steps and self.save_schedule not in (None, "explicit"):
            problems.append(
                f"training.save_schedule={self.save_schedule} and training.save_steps: give one "
                "of them"
            )
        if self.save_schedule == "explicit" and not self.save_steps:
            problems.append("training.save_schedule=explicit: needs training.save_steps")
        raise_problems(problems)


@chz.chz(typecheck=True)
class Evaluation:
    num_sequences: int = chz.field(default=512, doc="of each mode; of each task in single_task")
    batch_size: int = chz.field(default=64, doc="sequences in memory at a time")
    modes: list[str] = chz.field(
        default_factory=lambda: ["standard", "ood"],
        doc="standard (tasks of the mixture), ood (new tasks), single_task (each task by itself), "
        "iwl (classification: the query's item is not in the context)",
    )
    num_ood_tasks: int = chz.field(default=500, doc="new tasks of ood")
    seed: int = chz.field(default=1, doc="of the sequences, the same for all checkpoints")
    save_outputs: bool = chz.field(default=False, doc="keep predictions and targets in metrics.pt")
    hidden_states: bool = chz.field(default=False, doc="keep every layer's states, in float16")
    hidden_layers: list[int] = chz.field(
        default_factory=list, doc="of hidden_states; default: all, 0 is the embedding"
    )
    max_hidden_gb: float = chz.field(default=4.0, doc="more than this is refused beforehand")

    @chz.validate
    def _check(self) -> None:
        problems = []
        for name in ("num_sequences", "batch_size", "num_ood_tasks"):
            if getattr(self, name) < 1:
                problems.append(f"evaluation.{name}={getattr(self, name)}: at least 1 is needed")
        known = ("standard", "ood", "single_task", "iwl")
        unknown = [mode for mode in self.modes if mode not in known]
        if unknown or not self.modes:
            problems.append(f"evaluation.modes={self.modes}: one or more of {', '.join(known)}")
        raise_problems(problems)


@chz.chz(typecheck=True)
class Experiment:
    """What both scripts are told. A run's folder is log_path, else runs_dir/name/<what the command
    line sets of model, setting, training and seed>."""

    setting: Setting = chz.field(
        blueprint_unspecified=BallsAndUrns,
        doc="the tasks",
        metadata=WHAT,
    )
    seed: int = chz.field(default=0, doc="of weights and training sequences")

    device: str | None = chz.field(
        default=None, doc="cpu or cuda; default: cuda where there is one", metadata=MODEL
    )

    evaluation: Evaluation = chz.field(
        default_factory=Evaluation, doc="sequences and modes of icl_eval.py", metadata=EVALUATION
    )

    name: str = chz.field(
        default="default", doc="of the experiment: the folder of its runs", metadata=OUTPUT
    )
    runs_dir: Path = chz.field(default=Path("runs/icl"), doc="where experiments and task sets lie")
    log_path: Path | None = chz.field(default=None, doc="run directory; an existing one resumes")

    @chz.validate
    def _check_paths(self) -> None:
        problems = []
        if self.name == TASKS:
            problems.append(f"name={TASKS}: {self.runs_dir / TASKS} is for task sets; another name")
        log_path = self.log_path
        if log_path is not None and (self.runs_dir / TASKS).resolve().is_relative_to(
            log_path.resolve()
        ):
            problems.append(
                f"log_path={log_path}: runs_dir={self.runs_dir} lies there, with experiments and "
                f"task sets; give the run a folder of its own, such as {self.runs_dir / 'mine'}"
            )
        raise_problems(problems)

    @property
    def experiment_dir(self) -> Path:
        return self.runs_dir / self.name


def run_folder_name(argv: Sequence[str]) -> str:
    """The folder of the run that a command line describes, inside its experiment's: what it sets of
    model, setting, training and seed, sorted, as in `hidden_size=128,num_tasks=4`; `run` where it
    sets none of them. Keys are shortened to their shortest different endings, characters that
    folders should not have become -, and a name that this or its length changed ends in a hash."""
    given: dict[str, str] = {}
    for argument in argv:
        key, _, value = argument.partition("=")
        key = key.removesuffix("@")
        # ...key=value sets fields of this name anywhere
        if key.startswith("...") or (key.split(".")[0] in RUN_KEYS and key not in MAY_CHANGE):
            given[key] = value
    if not given:
        return "run"
    keys = sorted(given)
    labels = axis_labels(keys)
    exact = ",".join(f"{key}={given[key]}" for key in keys)
    name = ",".join(f"{labels[key]}={given[key]}" for key in keys)
    safe = re.sub(r"[^A-Za-z0-9.,=_+-]+", "-", name)
    if safe == name and len(name) <= MAX_FOLDER_NAME:
        return name
    digest = hashlib.sha256(exact.encode()).hexdigest()[:8]
    return f"{safe[:MAX_FOLDER_NAME].rstrip('.,=-')}-{digest}"
