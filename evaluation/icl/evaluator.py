"""In-context learners against the exact predictors: trained models, language models, predictors.

A folder that was evaluated (`checkpoints/<step>` of a trained run, the run's own folder for a
language model or a predictor) holds
    metrics.pt      {mode: what ModelEvaluator gives for it, "meta": settings, step, ...}
    metrics.csv     a row per mode, and per task of single_task: the numbers
    positions.csv   a row per mode and position
metrics.pt is written last and in one step: where it is, the evaluation is whole.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from evaluation.icl.checks import hidden_problems, kept_layers, mode_problems, total_sequences
from evaluation.icl.results import METRICS, StoredRun, load_metrics, read_run
from evaluation.icl.text import TextModel
from training.icl.base import Batch, Family, InContextModel, Predictor, TaskSet
from training.icl.config import Evaluation
from training.icl.families import make_family
from training.icl.metrics import compare, references, relative_distance
from training.icl.settings import Setting
from training.icl.tasks import load_task_set, make_generator, new_task_set
from utils.config.entrypoint import as_config_errors, raise_problems, to_plain
from utils.runs.files import atomic_write_text, atomic_writer, shown_path
from utils.runs.progress import Progress, progress
from utils.runs.tables import csv_text, truncate

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

# what is computed changes with none of these
FREE_SETTINGS = ("batch_size", "max_hidden_gb")
_CACHED_BYTES = 1 << 30


class Answer(NamedTuple):
    """What a model says to a batch: predictions (B, P, V), and where there are any, the hidden
    states of each kept layer (B, L, H) and the mass on the items (B, P)."""

    predictions: Tensor
    hidden_states: list[Tensor] | None = None
    item_mass: Tensor | None = None


Answers = Callable[[Batch], Answer]


def predictor_answers(which: Predictor, family: Family, tasks: TaskSet | None) -> Answers:
    """An exact predictor, to be evaluated like a model."""
    return lambda batch: Answer(family.predict(which, batch, tasks))


def counted(answers: Answers, bar: Progress) -> Answers:
    """The same, and the bar goes on by the sequences of each batch."""

    def counting(batch: Batch) -> Answer:
        answer = answers(batch)
        bar.update(len(batch.inputs))
        bar.add(tokens=batch.inputs.shape[0] * batch.inputs.shape[1])
        return answer

    return counting


def text_answers(model: TextModel) -> Answers:
    """A language model on the text form of balls and urns."""

    def answers(batch: Batch) -> Answer:
        answer = model.answer(batch)
        return Answer(answer.predictions, item_mass=answer.item_mass)

    return answers


def trained_answers(
    model: InContextModel,
    family: Family,
    *,
    device: torch.device | str = "cpu",
    hidden_layers: Sequence[int] | None = None,
) -> Answers:
    """A model in training's form; `hidden_layers` are kept, 0 is the embedding, None keeps none."""

    def answers(batch: Batch) -> Answer:
        inputs = batch.inputs.to(device)
        with torch.inference_mode():
            if hidden_layers is None:
                return Answer(family.predictions(model(inputs)).cpu())
            output, states = model(inputs, output_hidden_states=True)
            kept = [states[layer].to(torch.float16).cpu() for layer in hidden_layers]
            return Answer(family.predictions(output).cpu(), kept)

    return answers


class _Part(NamedTuple):
    """Sequences that are drawn in one go: all of a mode, or those of one task."""

    mode: str
    task: int | None = None


class _Reference(NamedTuple):
    """A batch with what the exact predictors make of it."""

    batch: Batch
    exact: dict[Predictor, Tensor]

    def num_bytes(self) -> int:
        tensors = [*self.batch, *self.exact.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


class Sequences:
    """The sequences of an evaluation with the predictors' answers, the same for every checkpoint.

    They follow from evaluation.seed, the mode and the task, not from the batch size. The memorizing
    predictor knows the tasks of the mixture in every mode. ood draws evenly from num_ood_tasks new
    tasks.
    """

    def __init__(self, family: Family, tasks: TaskSet | None, evaluation: Evaluation) -> None:
        raise_problems(mode_problems(family.setting, evaluation))
        self.family = family
        self.tasks = tasks
        self.evaluation = evaluation
        self._ood: TaskSet | None = None
        self._cache: dict[tuple[_Part, int], _Reference] = {}
        self._cached_bytes = 0

    def parts(self, mode: str) -> list[_Part]:
        if mode != "single_task":
            return [_Part(mode)]
        assert self.tasks is not None
        return [_Part(mode, task) for task in range(len(self.tasks.log_prior))]

    def batches(self, part: _Part) -> Iterator[_Reference]:
        """evaluation.num_sequences sequences, batch_size at a time."""
        size = self.evaluation.batch_size
        drawn: Batch | None = None
        for start in range(0, self.evaluation.num_sequences, size):
            reference = self._cache.get((part, start))
            if reference is None:
                drawn = drawn or self._draw(part)
                batch = Batch(*(tensor[start : start + size] for tensor in drawn))
                reference = _Reference(batch, references(self.family, batch, self.tasks))
                num_bytes = reference.num_bytes()
                if self._cached_bytes + num_bytes <= _CACHED_BYTES:
                    self._cache[part, start] = reference
                    self._cached_bytes += num_bytes
            yield reference

    def _draw(self, part: _Part) -> Batch:
        count, seed = self.evaluation.num_sequences, self.evaluation.seed
        of_task = [] if part.task is None else [part.task]
        generator = make_generator("evaluation", part.mode, seed, *of_task)
        if part.mode == "ood":
            if self._ood is None:
                self._ood = new_task_set(
                    self.family.setting, self.family, self.evaluation.num_ood_tasks, seed
                )
            return self.family.sample(self._ood, count, generator)
        if part.mode == "single_task":
            assert part.task is not None
            task_ids = torch.full((count,), part.task)
            return self.family.sample(self.tasks, count, generator, task_ids=task_ids)
        is_iwl = part.mode == "iwl"
        return self.family.sample(self.tasks, count, generator, query_in_context=not is_iwl)


class ModelEvaluator:
    """Measures what answers, by mode."""

    def __init__(self, answers: Answers, sequences: Sequences) -> None:
        self._answers = answers
        self._sequences = sequences

    def evaluate(self) -> dict[str, dict[str, Any]]:
        """For each mode, N sequences and P positions (single_task: N of each task, one task after
        the other):

        loss, loss_error (standard error over sequences), all_loss (N, P), position_loss (P,);
        generalizing_loss, memorizing_loss, constant_loss, and the same with position_ before;
        divergence_generalizing, divergence_memorizing (of the model from each predictor) and
        divergence_between (the two predictors), and the same with position_ before;
        relative_distance, with relative_distance_note where it is None;
        task_ids (N,); item_mass, all_item_mass (N, P) and position_item_mass (P,) of a language
        model; `tasks` of single_task: a dict of these means for each task;
        with save_outputs, outputs (N, P, V) and labels: `labels` (N, P), `eval_labels` (N, P, V);
        with hidden_states, hidden_states (N, layers, L, H) in float16 and hidden_layers.
        Without a finite number of tasks there is no memorizing predictor and nothing of it.
        """
        return {mode: self._mode(mode) for mode in self._sequences.evaluation.modes}

    def _mode(self, mode: str) -> dict[str, Any]:
        parts = self._sequences.parts(mode)
        evaluation = self._sequences.evaluation
        whole, kept = _Means(), _Kept(evaluation, len(parts) * evaluation.num_sequences)
        of_tasks = []
        for part in parts:
            of_part = _Means()
            for reference in self._sequences.batches(part):
                answer = self._answers(reference.batch)
                measured = self._measure(answer, reference)
                of_part.add(measured)
                whole.add(measured)
                kept.add(measured, reference.batch, answer)
            of_tasks.append({"task": part.task, **of_part.numbers()})
        tasks = {"tasks": of_tasks} if mode == "single_task" else {}
        return {**whole.numbers(), **whole.positions(), **kept.tensors(), **tasks}

    def _measure(self, answer: Answer, reference: _Reference) -> dict[str, Tensor]:
        """(B, P) each."""
        sequences = self._sequences
        measured = compare(
            sequences.family,
            answer.predictions,
            reference.batch,
            sequences.tasks,
            reference.exact,
        )
        if answer.item_mass is not None:
            measured["item_mass"] = answer.item_mass
        return measured


class _Means:
    """Over the sequences so far."""

    def __init__(self) -> None:
        self._sums_P: dict[str, Tensor] = {}
        self._losses: list[Tensor] = []  # (B,) each
        self._count = 0

    def add(self, measured: Mapping[str, Tensor]) -> None:
        for name, values_BP in measured.items():
            sums = values_BP.double().sum(0)
            self._sums_P[name] = self._sums_P[name] + sums if name in self._sums_P else sums
        self._losses.append(measured["loss"].double().mean(1))
        self._count += len(measured["loss"])

    def numbers(self) -> dict[str, Any]:
        """Over sequences and positions, with what follows from them."""
        n = self._count
        record: dict[str, Any] = {name: float(s.mean()) / n for name, s in self._sums_P.items()}
        spread = float(torch.cat(self._losses).std()) if n > 1 else None
        record["loss_error"] = None if spread is None else spread / math.sqrt(n)
        record["relative_distance"] = None
        if "divergence_between" in record:
            found = relative_distance(
                record["divergence_generalizing"],
                record["divergence_memorizing"],
                record["divergence_between"],
            )
            record["relative_distance"] = None if math.isnan(found.value) else found.value
            record["relative_distance_note"] = found.reason
        else:
            record["relative_distance_note"] = "num_tasks=inf has no memorizing predictor"
        return record

    def positions(self) -> dict[str, Tensor]:
        return {f"position_{n}": (s / self._count).float() for n, s in self._sums_P.items()}


class _Kept:
    """Tensors of all `total` sequences, as far as they are asked for."""

    def __init__(self, evaluation: Evaluation, total: int) -> None:
        self._save_outputs = evaluation.save_outputs
        self._total = total
        self._parts: dict[str, list[Tensor]] = {}
        self._hidden: Tensor | None = None
        self._count = 0

    def add(self, measured: Mapping[str, Tensor], batch: Batch, answer: Answer) -> None:
        given = {"task_ids": batch.task_ids, "all_loss": measured["loss"].float()}
        if "item_mass" in measured:
            given["all_item_mass"] = measured["item_mass"].float()
        if self._save_outputs:
            given |= {"outputs": answer.predictions.float(), "labels": batch.targets}
            given |= {"eval_labels": batch.truth}
        for name, values in given.items():
            self._parts.setdefault(name, []).append(values)
        if answer.hidden_states is not None:
            states = torch.stack(answer.hidden_states, 1)
            if self._hidden is None:
                # all of it at once: joining parts at the end would take the memory twice
                self._hidden = states.new_empty((self._total, *states.shape[1:]))
            self._hidden[self._count : self._count + len(states)] = states
        self._count += len(batch.inputs)

    def tensors(self) -> dict[str, Any]:
        record: dict[str, Any] = {name: torch.cat(parts) for name, parts in self._parts.items()}
        if self._save_outputs:
            names = ("labels", "eval_labels")
            record["labels"] = {name: record.pop(name) for name in names}
        if self._hidden is not None:
            record["hidden_states"] = self._hidden
        return record


# ---------------------------------------------------------------------------- runs of icl_train.py


class RunPlan(NamedTuple):
    """What is to be done for a run: `steps` of `num_checkpoints`, unless there are `problems`."""

    run: StoredRun
    steps: list[int]
    num_checkpoints: int
    problems: list[str]


def plan_run(run: StoredRun, evaluation: Evaluation, *, overwrite: bool = False) -> RunPlan:
    """Which checkpoints lack an evaluation, and what stands against it; nothing is computed."""
    assert run.is_trained
    all_steps = [step for step in run.steps() if step is not None]
    problems = [] if all_steps else ["no checkpoint yet; train it with scripts/icl_train.py"]
    problems += mode_problems(run.setting, evaluation)
    problems += hidden_problems(
        evaluation,
        run.setting,
        num_layers=run.config["model"]["num_layers"],
        hidden_size=run.config["model"]["hidden_size"],
    )
    steps = all_steps
    if not overwrite:
        done = [step for step in all_steps if (run.metrics_folder(step) / METRICS).exists()]
        steps = [step for step in all_steps if step not in done]
        for step in done:
            problems += settings_problems(run.metrics_folder(step), evaluation)
    told = [f"{shown_path(run.path)}: {problem}" for problem in problems]
    return RunPlan(run, steps, len(all_steps), told)


def evaluate_run(
    run_dir: Path,
    evaluation: Evaluation,
    *,
    overwrite: bool = False,
    device: torch.device | str = "cpu",
) -> list[int]:
    """Evaluates those checkpoints of a run of icl_train.py that are not yet, or all of them with
    `overwrite`, and returns their steps. Killed, it goes on at the checkpoint it was at.

    Raises a ConfigError where a checkpoint was evaluated with other settings, for modes that the
    run's setting does not have, and for hidden states beyond max_hidden_gb.
    """
    plan = plan_run(read_run(run_dir), evaluation, overwrite=overwrite)
    raise_problems(plan.problems)
    return evaluate_plan(plan, evaluation, device=device)


def evaluate_plan(
    plan: RunPlan, evaluation: Evaluation, *, device: torch.device | str = "cpu"
) -> list[int]:
    """See `evaluate_run`."""
    from training.icl.train import load_model

    assert not plan.problems
    if not plan.steps:
        return []
    run = plan.run
    sequences = sequences_of(run.setting, evaluation, Path(run.config["runs_dir"]))
    layers = None
    if evaluation.hidden_states:
        layers = kept_layers(evaluation, run.config["model"]["num_layers"])
    already = plan.num_checkpoints - len(plan.steps)
    tokens = total_sequences(run.setting, evaluation) * run.setting.input_length
    name = truncate(run.path.name, 40)
    with progress(plan.num_checkpoints, name, "checkpoint", initial=already) as bar:
        for step in plan.steps:
            model = load_model(run.path, step, sequences.family, device=str(device))
            answers = trained_answers(model, sequences.family, device=device, hidden_layers=layers)
            modes = ModelEvaluator(answers, sequences).evaluate()
            if layers is not None:
                for record in modes.values():
                    record["hidden_layers"] = layers
            write_metrics(run.metrics_folder(step), modes, evaluation, step=step)
            bar.add(tokens=tokens, **{mode: record["loss"] for mode, record in modes.items()})
            bar.update()
    return plan.steps


def sequences_of(setting: Setting, evaluation: Evaluation, runs_dir: Path) -> Sequences:
    """With the tasks of the mixture from the cache in `runs_dir`. A ConfigError says what is wrong
    with that."""
    family = make_family(setting)
    with as_config_errors():
        tasks = load_task_set(setting, family, runs_dir / "tasks")
    return Sequences(family, tasks, evaluation)


# ------------------------------------------------------------------------------------------ files


def compared_settings(evaluation: Evaluation) -> dict[str, Any]:
    """Those that an evaluation depends on."""
    plain = to_plain(evaluation)
    return {name: value for name, value in plain.items() if name not in FREE_SETTINGS}


def settings_problems(folder: Path, evaluation: Evaluation) -> list[str]:
    """In which settings the evaluation in `folder` differs from `evaluation`."""
    stored = load_metrics(folder)["meta"]["evaluation"]
    given = compared_settings(evaluation)
    different = [name for name in given if stored.get(name) != given[name]]
    if not different:
        return []
    told = ", ".join(
        f"evaluation.{name} was {stored.get(name)!r} and is {given[name]!r}" for name in different
    )
    return [
        f"{folder.name} was evaluated with other settings ({told}); give the same, or "
        "overwrite=true to evaluate it anew"
    ]


def write_metrics(
    folder: Path,
    modes: Mapping[str, dict[str, Any]],
    evaluation: Evaluation,
    *,
    step: int | None,
    **extra: Any,
) -> None:
    """metrics.csv, positions.csv and, last, metrics.pt; each whole or not at all."""
    atomic_write_text(folder / "metrics.csv", csv_text(number_rows(modes)))
    atomic_write_text(folder / "positions.csv", csv_text(position_rows(modes)))
    meta = {"evaluation": compared_settings(evaluation), "step": step, **extra}
    # with hidden states it is too large to be made in memory first
    with atomic_writer(folder / METRICS) as file:
        torch.save({**modes, "meta": meta}, file)


def number_rows(modes: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per mode, with task None, and one per task of single_task."""
    rows = []
    for mode, record in modes.items():
        for entry in (record, *record.get("tasks", ())):
            numbers = {
                name: value
                for name, value in entry.items()
                if name != "task" and (value is None or isinstance(value, (int, float, str)))
            }
            rows.append({"mode": mode, "task": entry.get("task"), **numbers})
    return rows


def position_rows(modes: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row per mode and position, the first position is 0."""
    rows = []
    for mode, record in modes.items():
        columns = {
            name.removeprefix("position_"): values.tolist()
            for name, values in record.items()
            if name.startswith("position_")
        }
        for position in range(len(record["position_loss"])):
            values = {name: column[position] for name, column in columns.items()}
            rows.append({"mode": mode, "position": position, **values})
    return rows
