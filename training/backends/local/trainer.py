"""One training pass: the forward and backward of several clients' data together."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from training.api import ForwardBackwardOutput, RequestFailedError, TensorData
from training.backends.local.adapters import Adapter
from training.backends.local.attention import SegmentAttention
from training.backends.local.batching import (
    Packing,
    Tree,
    build_trees,
    micro_batches,
    pack,
    to_device,
)
from training.backends.local.decoder import HEAD, Decoder
from training.backends.local.dropout import Dropout, draw_kept
from training.backends.local.linear import LoraPass
from training.backends.local.losses import (
    LOSSES,
    Inputs,
    LossInputs,
    loss_and_gradient,
    overflow_message,
)

logger = logging.getLogger(__name__)


@dataclass
class TrainJob:
    """One client's forward or forward_backward request, checked.

    `drop`: with the adapter's dropout. `pass_number` chooses the masks: the number of the adapter's
    training passes before this one, which is set when the job runs, unless it was given.
    """

    adapter: Adapter
    sequences: list[list[int]]
    prepared: list[LossInputs]
    loss_fn: str
    config: dict[str, float]
    backward: bool
    drop: bool = False
    pass_number: int | None = None


class NotFiniteError(RequestFailedError):
    """The loss or the gradient of `job` is not finite: the fault of its data, not of the pass."""

    def __init__(self, job: TrainJob, message: str) -> None:
        super().__init__(message, category="user")
        self.job = job


class Trainer:
    """Runs jobs in token-budget micro-batches; results do not depend on how they are cut."""

    def __init__(self, decoder: Decoder, *, max_tokens: int, share_prompts: bool = True) -> None:
        self._decoder = decoder
        self._max_tokens = max_tokens
        self._share_prompts = share_prompts
        self._batch: list[Tree] = []
        self.tokens_computed = 0
        # positions of data whose micro-batch is done, where a shared prompt counts for each
        self.tokens_trained = 0

    def run(
        self, jobs: list[TrainJob], between: Callable[[], None] = lambda: None
    ) -> list[ForwardBackwardOutput]:
        """All jobs in one pass, or an error that leaves every gradient as it was.

        `between` is called between two micro-batches, when no graph of autograd is held.
        NotFiniteError names the job that has to go so that the others can run. Out of memory halves
        the micro-batch, for good, and starts over.
        """
        before = [job.adapter.grad.clone() if job.adapter.has_grad else None for job in jobs]
        for job in jobs:
            if job.pass_number is None:
                job.pass_number = job.adapter.training_passes
        while True:
            try:
                outputs = self._run(jobs, between)
                for job in jobs:
                    job.adapter.training_passes += job.backward
                return outputs
            except Exception as error:
                for job, grad in zip(jobs, before, strict=True):
                    job.adapter.grad.zero_() if grad is None else job.adapter.grad.copy_(grad)
                    job.adapter.has_grad = grad is not None
                if not _is_out_of_memory(error):
                    raise
                tokens = sum(tree.num_tokens for tree in self._batch)
                if len(_members(self._batch)) == 1:
                    raise RequestFailedError(
                        f"out of memory with {tokens} tokens in one sequence; use shorter "
                        "sequences, a smaller model or a device with more memory",
                        category="server",
                    ) from error
                self._max_tokens = max(1, min(self._max_tokens, tokens) // 2)
            if self._decoder.device.type == "cuda":
                torch.cuda.empty_cache()
            logger.warning(
                "Out of memory: micro-batches now hold at most %d tokens", self._max_tokens
            )

    def _run(
        self, jobs: list[TrainJob], between: Callable[[], None]
    ) -> list[ForwardBackwardOutput]:
        members = [(j, d) for j, job in enumerate(jobs) for d in range(len(job.sequences))]
        results = [_Result(job) for job in jobs]

        def sequence_of(member: int) -> list[int]:
            job, datum = members[member]
            return jobs[job].sequences[datum]

        is_first = True
        for backward in (False, True):
            chosen = [m for m, (j, _) in enumerate(members) if jobs[j].backward == backward]
            if not chosen:
                continue
            trees = build_trees(
                [members[m][0] for m in chosen],
                [sequence_of(m) for m in chosen],
                share=self._share_prompts and self._decoder.shares_prefixes,
                # the masks of two data differ from their first token on
                unshared=[j for j, job in enumerate(jobs) if job.drop],
                apart=[self._decoder.length_kind(len(sequence_of(m))) for m in chosen],
                # answers that are only scored; gradients are summed as they were
                forks=not backward,
            )
            for tree in trees:
                tree.members = [chosen[i] for i in tree.members]
            for batch in micro_batches(trees, self._max_tokens):
                if not is_first:
                    between()
                is_first = False
                self._micro_batch(batch, jobs, members, results, backward)
                self.tokens_trained += sum(len(sequence_of(m)) for m in _members(batch))
        _check_gradients(results)
        return [result.output() for result in results]

    def _micro_batch(
        self,
        batch: list[Tree],
        jobs: list[TrainJob],
        members: list[tuple[int, int]],
        results: list["_Result"],
        backward: bool,
    ) -> None:
        self._batch = batch
        packing = pack(batch)
        self.tokens_computed += len(packing.tokens)
        device = self._decoder.device
        data_of_job: dict[int, list[tuple[int, int]]] = {}
        for member in _members(batch):
            job_index, datum = members[member]
            data_of_job.setdefault(job_index, []).append((member, datum))
        lora = LoraPass(training=backward)
        for owner, start, stop in packing.owner_slices:
            job_index = int(owner)  # type: ignore[call-overload]
            job, data = jobs[job_index], [d for _, d in data_of_job[job_index]]
            dropout = _body_dropout(job, data, device)
            lora.slices.append(job.adapter.slice(start, stop, dropout))
            job.adapter.has_grad |= backward
        index_of_job = {
            job_index: _positions_with_logits(jobs[job_index], data, packing)
            for job_index, data in data_of_job.items()
        }
        wanted = np.unique(np.concatenate([*index_of_job.values()]))
        if not len(wanted):
            return
        with torch.set_grad_enabled(backward):
            hidden = self._decoder.hidden(
                to_device(packing.tokens, device),
                to_device(packing.positions, device),
                SegmentAttention(packing.segments),
                lora,
                None if len(wanted) == len(packing.tokens) else to_device(wanted, device),
            )
        with torch.no_grad():
            d_hidden = torch.zeros(hidden.shape, device=device) if backward else None
            for job_index, data in data_of_job.items():
                index = np.searchsorted(wanted, index_of_job[job_index])
                rows = _JobRows(jobs[job_index], data, index, device)
                if len(rows.index):
                    self._head(rows, hidden, d_hidden, results[job_index])
        if d_hidden is not None:
            hidden.backward(d_hidden.to(hidden.dtype))

    def _head(
        self,
        rows: "_JobRows",
        hidden: torch.Tensor,
        d_hidden: torch.Tensor | None,
        result: "_Result",
    ) -> None:
        picked = hidden.detach().index_select(0, rows.index)
        lora = LoraPass([rows.job.adapter.slice(0, len(picked), rows.dropout())])
        if d_hidden is None:
            logprobs = self._decoder.target_logprobs(picked, rows.targets, lora)
        else:
            gradient_of = rows.gradient_of
            if LOSSES[rows.job.loss_fn].whole_sequence:
                # the gradient at a token needs the datum's other logprobs: one more look first
                known = self._decoder.target_logprobs(picked, rows.targets, lora)
                gradient_of = rows.precomputed(known)
            logprobs, d_picked = self._decoder.target_logprobs_and_grad(
                picked, rows.targets, gradient_of, lora
            )
            d_hidden.index_add_(0, rows.index, d_picked)
        for d, part, inputs in rows.split(logprobs):
            losses, gradient = loss_and_gradient(rows.job.loss_fn, part, inputs, rows.job.config)
            result.add(d, part, losses, gradient)


def _body_dropout(job: TrainJob, data: list[int], device: torch.device) -> Dropout | None:
    """For all rows of `data`, in their order."""
    if not job.drop:
        return None
    kept = {
        name: torch.cat([_kept(job, d, name, size, device) for d in data])
        for name, size in job.adapter.input_sizes().items()
        if name != HEAD
    }
    return Dropout(job.adapter.config.dropout, kept)


def _kept(job: TrainJob, datum: int, product: str, size: int, device: torch.device) -> torch.Tensor:
    """[length of the datum, size]"""
    assert job.pass_number is not None
    config = job.adapter.config
    key = (config.seed, job.pass_number, datum, product)
    return draw_kept(config.dropout, key, (len(job.sequences[datum]), size), device)


def _members(batch: Sequence[Tree]) -> list[int]:
    return [m for tree in batch for m in tree.members]


def _positions_with_logits(
    job: TrainJob, member_datums: list[tuple[int, int]], packing: Packing
) -> np.ndarray:
    """Of one job, datum after datum, where they stand in the packing."""
    return np.concatenate([packing.index[m][job.prepared[d].positions] for m, d in member_datums])


class _JobRows:
    """What the head needs of one job in one micro-batch; `index` [n] are its rows of hidden."""

    def __init__(
        self,
        job: TrainJob,
        member_datums: list[tuple[int, int]],
        index: np.ndarray,
        device: torch.device,
    ) -> None:
        self.job = job
        self._datums = [d for _, d in member_datums]
        prepared = [job.prepared[d] for d in self._datums]
        self._counts = [len(p.positions) for p in prepared]
        self.index = to_device(index, device)
        # K may differ between data only where a datum has no positions at all
        filled = [p for p in prepared if len(p.positions)]
        self.targets = _cat([p.targets for p in filled], device)
        self._inputs: Inputs = {
            key: _cat([p.inputs[key] for p in filled], device)
            for key in (filled[0].inputs if filled else {})
        }

    def dropout(self) -> Dropout | None:
        """The head's, of these rows."""
        size = self.job.adapter.input_sizes().get(HEAD)
        if not self.job.drop or size is None:
            return None
        kept = [
            _kept(self.job, d, HEAD, size, self.index.device)[self.job.prepared[d].positions]
            for d in self._datums
        ]
        return Dropout(self.job.adapter.config.dropout, {HEAD: torch.cat(kept)})

    def gradient_of(self, rows: slice, logprobs: torch.Tensor) -> torch.Tensor:
        inputs = {key: value[rows] for key, value in self._inputs.items()}
        return loss_and_gradient(self.job.loss_fn, logprobs, inputs, self.job.config)[1]

    def precomputed(self, logprobs: torch.Tensor) -> Callable[[slice, torch.Tensor], torch.Tensor]:
        gradients = torch.cat(
            [
                loss_and_gradient(self.job.loss_fn, part, inputs, self.job.config)[1]
                for _, part, inputs in self.split(logprobs)
            ]
        )
        return lambda rows, _logprobs: gradients[rows]

    def split(self, logprobs: torch.Tensor) -> list[tuple[int, torch.Tensor, Inputs]]:
        parts, start = [], 0
        for d, count in zip(self._datums, self._counts, strict=True):
            if count:
                rows = slice(start, start + count)
                inputs = {key: value[rows] for key, value in self._inputs.items()}
                parts.append((d, logprobs[rows], inputs))
            start += count
        return parts


def _cat(tensors: list[torch.Tensor], device: torch.device) -> torch.Tensor:
    return torch.cat(tensors).to(device) if tensors else torch.empty(0, device=device)


class _Result:
    def __init__(self, job: TrainJob) -> None:
        self.job = job
        # of a logprob, so far; and what to say should it be too large for what comes before
        self.largest_gradient = 0.0
        self.largest_message: Callable[[], str] | None = None
        self._logprobs = [np.zeros(p.target_shape, dtype=np.float32) for p in job.prepared]
        self._loss = 0.0

    def add(
        self, datum: int, logprobs: torch.Tensor, losses: torch.Tensor, gradient: torch.Tensor
    ) -> None:
        """Raises NotFiniteError."""
        prepared = self.job.prepared[datum]
        total, largest = torch.stack(
            [losses.double().sum(), gradient.abs().max().double()]
        ).tolist()
        message = partial(overflow_message, datum, prepared, logprobs, losses, gradient)
        if not (math.isfinite(total) and math.isfinite(largest)):
            raise NotFiniteError(self.job, message())
        if largest > self.largest_gradient:
            self.largest_gradient, self.largest_message = largest, message
        self._logprobs[datum][prepared.positions] = logprobs.cpu().numpy()
        self._loss += total

    def output(self) -> ForwardBackwardOutput:
        return ForwardBackwardOutput(
            loss_fn_output_type="TorchLossReturn",
            loss_fn_outputs=[{"logprobs": TensorData.from_numpy(a)} for a in self._logprobs],
            metrics={"loss:sum": self._loss},
        )


def _check_gradients(results: list[_Result]) -> None:
    """Raises NotFiniteError: finite gradients of logprobs may overflow on their way to A and B."""
    trained = [(r, r.largest_message) for r in results if r.job.backward and r.largest_message]
    if not trained:
        return
    norms = torch.stack([result.job.adapter.grad.norm() for result, _ in trained]).tolist()
    broken = [pair for pair, norm in zip(trained, norms, strict=True) if not math.isfinite(norm)]
    if broken:
        # what overflows in a packed pass may spoil its neighbours
        result, message = max(broken, key=lambda pair: pair[0].largest_gradient)
        raise NotFiniteError(result.job, message())


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
