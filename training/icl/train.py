"""Training a small network on sequences of tasks.

A plain loop instead of transformers' Trainer: every batch is new and made by the family, the model
has no text, labels or padding, and what matters here (exact resume with the data's random numbers,
evaluation against predictors, checkpoints at given steps) would have to be forced on the Trainer by
subclassing most of it. An update is: sample, forward, loss, backward, clip, AdamW.

In a run's folder: checkpoints/<step>/{model.safetensors, config.yaml} to keep, and resume/state.pt,
the last state with optimizer and random numbers, which is replaced.
"""

import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import chz
import safetensors.torch
import torch
from torch import Tensor, nn

from training.icl.base import Batch, Family, Predictor, TaskSet
from training.icl.config import Trained, Training
from training.icl.metrics import compare, references, summarise
from training.icl.models import build_model
from training.icl.mup import parameter_groups, set_learning_rate
from training.icl.settings import Classification, Setting
from training.icl.tasks import make_generator
from training.loop import learning_rate_factor
from utils.config.entrypoint import ConfigError, dump_yaml, load_config
from utils.interrupts import uninterrupted
from utils.runs.files import atomic_write_bytes, atomic_writer
from utils.runs.progress import progress
from utils.runs.run_dir import RunDir

logger = logging.getLogger(__name__)

MAX_TASKS_LOGGED = 16
# sequences of an evaluation that are in memory at a time
EVAL_CHUNK = 128
WEIGHTS = "model.safetensors"


@chz.chz(typecheck=True)
class CheckpointConfig:
    """What a checkpoint's config.yaml holds: all it takes to build the model again."""

    setting: Setting
    model: Trained
    step: int


class Trainer:
    """A model, its optimizer and its data, one update at a time. `step` updates are done.

    Everything random comes from `seed`; `state_dict` and `load_state_dict` continue bit by bit on
    the CPU.
    """

    def __init__(
        self,
        model: Trained,
        training: Training,
        family: Family,
        tasks: TaskSet | None,
        *,
        seed: int,
        device: str = "cpu",
    ) -> None:
        self.step = 0
        self.model = build_model(model, family, seed).to(device)
        self.learning_rate = 0.0
        self._training = training
        self._family = family
        self._tasks = tasks
        self._device = device
        groups = parameter_groups(
            self.model, learning_rate=training.learning_rate, weight_decay=training.weight_decay
        )
        # fused: one pass over each parameter instead of a dozen small operations
        self._optimizer = torch.optim.AdamW(groups, fused=True)
        self._parameters = list(self.model.parameters())
        self._data = make_generator("data", seed)
        self._loss_sum = torch.zeros((), device=device)
        self._num_losses = 0

    def train_step(self) -> None:
        training = self._training
        batch = self._family.sample(self._tasks, training.batch_size, self._data)
        if self._device != "cpu":
            here = batch.inputs.to(self._device), batch.targets.to(self._device)
            batch = batch._replace(inputs=here[0], targets=here[1])
        loss = self._family.training_loss(self.model(batch.inputs), batch)
        self._optimizer.zero_grad()
        loss.backward()
        if training.grad_clip_norm:
            nn.utils.clip_grad_norm_(self._parameters, training.grad_clip_norm)
        factor = learning_rate_factor(
            training.lr_schedule, self.step, training.num_steps, training.warmup_steps
        )
        self.learning_rate = training.learning_rate * factor
        set_learning_rate(self._optimizer.param_groups, self.learning_rate)
        self._optimizer.step()
        # reading the number here would make a GPU wait at every step
        self._loss_sum += loss.detach()
        self._num_losses += 1
        self.step += 1

    def take_loss(self) -> float:
        """The mean training loss of the updates since it was last taken."""
        mean = self._loss_sum.item() / self._num_losses
        self._loss_sum.zero_()
        self._num_losses = 0
        return mean

    def state_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "data": self._data.get_state(),
            "loss_sum": self._loss_sum,
            "num_losses": self._num_losses,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._data.set_state(state["data"])
        self._loss_sum.copy_(state["loss_sum"])
        self._num_losses = state["num_losses"]


class _Mode(NamedTuple):
    """Sequences that stay the same, and what the exact predictors say about them."""

    name: str
    batch: Batch
    exact: dict[Predictor, Tensor]


class OnlineEvaluation:
    """Losses of a model in training on sequences that stay the same, beside the exact predictors'.

    id: tasks of the mixture; ood: new tasks; iwl (classification with a number of tasks): the
    query's item is not in the context; task_000, ...: each of the first tasks by itself.
    """

    def __init__(
        self,
        family: Family,
        tasks: TaskSet | None,
        training: Training,
        *,
        seed: int,
        device: str = "cpu",
    ) -> None:
        self._family = family
        self._tasks = tasks
        self._device = device
        count = training.eval_sequences
        batches = {
            "id": family.sample(tasks, count, make_generator("evaluation", "id", seed)),
            "ood": family.sample(None, count, make_generator("evaluation", "ood", seed)),
        }
        # with a single pair there is no other to fill the context with
        if isinstance(family.setting, Classification) and tasks and len(tasks.log_prior) > 1:
            generator = make_generator("evaluation", "iwl", seed)
            batches["iwl"] = family.sample(tasks, count, generator, query_in_context=False)
        self._modes = [
            _Mode(name, batch, references(family, batch, tasks)) for name, batch in batches.items()
        ]
        self._per_task: Batch | None = None
        self._num_per_task = training.per_task_sequences
        if tasks is not None and training.per_task:
            logged = min(MAX_TASKS_LOGGED, len(tasks.log_prior))
            task_ids = torch.arange(logged).repeat_interleave(self._num_per_task)
            generator = make_generator("evaluation", "per_task", seed)
            self._per_task = family.sample(tasks, len(task_ids), generator, task_ids=task_ids)

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """eval/<mode>/{loss, generalizing_loss, memorizing_loss, constant_loss,
        divergence_generalizing, divergence_memorizing, divergence_between, relative_distance} and
        eval/task_<number>/loss: means over sequences and positions. Those of the memorizing
        predictor need a number of tasks; the relative distance is left out where it means nothing.
        """
        found: dict[str, float] = {}
        for name, batch, exact in self._modes:
            predictions = self._predictions(model, batch)
            values = summarise(compare(self._family, predictions, batch, self._tasks, exact))
            if math.isnan(values.get("relative_distance", 0.0)):
                del values["relative_distance"]
            found |= {f"eval/{name}/{key}": value for key, value in values.items()}
        if self._per_task is not None:
            predictions = self._predictions(model, self._per_task)
            losses = self._family.loss(predictions, self._per_task).mean(1)
            means = losses.view(-1, self._num_per_task).mean(1).tolist()
            found |= {f"eval/task_{i:03d}/loss": loss for i, loss in enumerate(means)}
        return found

    @torch.no_grad()
    def _predictions(self, model: nn.Module, batch: Batch) -> Tensor:
        was_training = model.training
        model.eval()
        chunks = batch.inputs.split(EVAL_CHUNK)
        outputs = [model(chunk.to(self._device)).cpu() for chunk in chunks]
        model.train(was_training)
        return self._family.predictions(torch.cat(outputs))


def train(
    trainer: Trainer,
    evaluation: OnlineEvaluation,
    run: RunDir,
    state: dict[str, Any] | None,
    *,
    model: Trained,
    training: Training,
    setting: Setting,
    save_steps: Sequence[int],
    on_record: Callable[[], None],
) -> None:
    """Updates until training.num_steps, from the run's last `state` on; `on_record` is
    called after each evaluation and checkpoint on the way. Ctrl-C keeps a new one
    and goes on as KeyboardInterrupt. ConfigError where the loss is no longer a number."""
    if state is None:
        run.truncate_logs({})
    else:
        run.truncate_logs(state["logged"])
        trainer.load_state_dict(state["trainer"])
        logger.info("resuming after step %d", trainer.step)
    keep = set(save_steps)
    seconds, timed = 0.0, 0

    def due(every: int) -> bool:
        return trainer.step == training.num_steps or (every > 0 and trainer.step % every == 0)

    if trainer.step == 0:
        run.log_metrics(0, evaluation.metrics(trainer.model))
    on_record()
    try:
        with progress(training.num_steps, "icl_train", "step", initial=trainer.step) as bar:
            while trainer.step < training.num_steps:
                with uninterrupted():
                    started = time.perf_counter()
                    trainer.train_step()
                    record: dict[str, float] = {}
                    if due(training.log_every):
                        record["train/loss"] = _finite(trainer.take_loss(), trainer.step, training)
                        record["learning_rate"] = trainer.learning_rate
                    seconds += time.perf_counter() - started
                    timed += 1
                    if record:
                        record["speed/steps_per_second"] = timed / seconds
                        bar.add(loss=record["train/loss"])
                        seconds, timed = 0.0, 0
                    if due(training.eval_every):
                        record |= evaluation.metrics(trainer.model)
                    if record:
                        run.log_metrics(trainer.step, record)
                    if trainer.step in keep:
                        save_checkpoint(run.path, trainer, setting, model)
                    if trainer.step in keep or due(training.resume_every):
                        save_resume_state(run, trainer)
                if trainer.step < training.num_steps and (
                    trainer.step in keep or due(training.eval_every)
                ):
                    on_record()
                bar.update()
    except KeyboardInterrupt:
        with uninterrupted():
            save_resume_state(run, trainer)
        raise


def _finite(loss: float, step: int, training: Training) -> float:
    if not math.isfinite(loss):
        raise ConfigError(
            f"training.learning_rate={training.learning_rate}: the loss is {loss} by step {step}; "
            "a lower rate, a warm-up or training.grad_clip_norm may help"
        )
    return loss


# ------------------------------------------------------------------------------------------- disk


def save_checkpoint(run_dir: Path, trainer: Trainer, setting: Setting, model: Trained) -> None:
    """checkpoints/<step>/ of the run; the weights come last and whole, so a folder with them is
    complete."""
    folder = run_dir / "checkpoints" / str(trainer.step)
    dump_yaml(
        folder / "config.yaml", CheckpointConfig(setting=setting, model=model, step=trainer.step)
    )
    weights = {name: t.cpu().contiguous() for name, t in trainer.model.state_dict().items()}
    atomic_write_bytes(folder / WEIGHTS, safetensors.torch.save(weights))


def checkpoint_steps(run_dir: Path) -> list[int]:
    """The steps whose checkpoints are complete, ascending."""
    folders = [path.parent for path in (run_dir / "checkpoints").glob(f"*/{WEIGHTS}")]
    return sorted(int(folder.name) for folder in folders if folder.name.isdecimal())


def load_model(run_dir: Path, step: int, family: Family, device: str = "cpu") -> nn.Module:
    """The model of a checkpoint, for evaluation. FileNotFoundError where there is none of `step`,
    ValueError where its sequences are of another shape than the family's."""
    folder = run_dir / "checkpoints" / str(step)
    if not (folder / WEIGHTS).is_file():
        known = ", ".join(map(str, checkpoint_steps(run_dir))) or "none"
        raise FileNotFoundError(f"{folder}: no checkpoint of step {step}; there are: {known}")
    config = load_config(CheckpointConfig, [f"config_file={folder / 'config.yaml'}"])
    model = build_model(config.model, family, seed=0)
    weights = safetensors.torch.load_file(folder / WEIGHTS)
    wanted = {name: tuple(t.shape) for name, t in model.state_dict().items()}
    stored = {name: tuple(t.shape) for name, t in weights.items()}
    if wanted != stored:
        names = sorted(n for n in wanted | stored if wanted.get(n) != stored.get(n))
        raise ValueError(
            f"{folder}: trained on other sequences ({config.setting}) than those given "
            f"({family.setting}): {', '.join(names)} have other shapes"
        )
    model.load_state_dict(weights)
    return model.to(device).eval()


def save_resume_state(run: RunDir, trainer: Trainer) -> None:
    """resume/state.pt: all that the loop needs to go on, and how long the logs are by now."""
    with atomic_writer(run.path / "resume" / "state.pt") as file:
        torch.save({"trainer": trainer.state_dict(), "logged": run.log_sizes()}, file)


def load_resume_state(run_dir: Path) -> dict[str, Any] | None:
    """The last state that was kept; None where there is none yet."""
    path = run_dir / "resume" / "state.pt"
    return torch.load(path, map_location="cpu", weights_only=True) if path.is_file() else None


# ------------------------------------------------------------------------------------------- plan


def memory_estimate(model: nn.Module, family: Family, batch_size: int) -> int:
    """Bytes that training holds: weights, gradients and two moments, and what one sequence's
    forward pass keeps for the backward pass (measured) times batch_size."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = family.sample(None, 1, torch.Generator().manual_seed(0))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = family.training_loss(model(batch.inputs), batch)
    del loss
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return 4 * weights + batch_size * sum(kept.values())
