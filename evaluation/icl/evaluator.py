"""In-context learners against the exact predictors: trained models, language models, predictors.
runs.py says what of a run is evaluated, and where that is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from evaluation.icl.checks import mode_problems
from evaluation.icl.text import TextModel
from training.icl.base import Batch, Family, InContextModel, Predictor, TaskSet
from training.icl.config import Evaluation
from training.icl.metrics import compare, references, relative_distance
from training.icl.tasks import make_generator, new_task_set
from utils.config.entrypoint import raise_problems
from utils.runs.progress import Progress

if TYPE_CHECKING:
    from torch import Tensor

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
