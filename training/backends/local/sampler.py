"""Group sampling: prompts prefilled once, rows joining and leaving while others decode."""

import math
from collections.abc import Callable
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from training.api import (
    RequestFailedError,
    SampledSequence,
    SampledToken,
    SampleResponse,
    SamplingParams,
    StopReason,
    TopkLogprobs,
)
from training.backends.local.adapters import AdapterWeights
from training.backends.local.attention import DecodeAttention, SegmentAttention
from training.backends.local.batching import Tree, build_trees, micro_batches, pack, to_device
from training.backends.local.bodies import DecodeBlock, RowStarts
from training.backends.local.constraint import Constraint
from training.backends.local.decoder import HEAD_CHUNK, Decoder
from training.backends.local.linear import LoraPass, LoraSlice, Stacked
from training.backends.local.stops import StopStrings
from training.backends.local.tokens import no_topk, sample_tokens, stack_topk, top_k

# oneDNN computes so many rows at a time; a few in a block of their own cost as much as in a pass of
# their own (265 rows take a fifth longer than 256, 249 hardly longer than 240)
_BLOCK = 64


def take_every_token(_token: SampledToken) -> bool:
    return True


@dataclass
class SampleJob:
    """One sample() request, checked. num_samples = 0 asks for prompt logprobs alone."""

    weights: AdapterWeights | None
    prompt: list[int]
    num_samples: int
    params: SamplingParams
    seed: int
    max_tokens: int
    stop_tokens: frozenset[int]
    stop_strings: StopStrings | None
    include_prompt_logprobs: bool = False
    topk_prompt_logprobs: int = 0
    topk_sample_logprobs: int = 0
    prompt_logprobs: np.ndarray | None = None
    prompt_topk: TopkLogprobs | None = None
    sequences: dict[int, SampledSequence] = field(default_factory=dict)
    on_done: Callable[[SampleResponse], None] = lambda _response: None
    # what went wrong with this request alone; it ends without harm to those beside it
    error: Exception | None = None
    on_error: Callable[[Exception], None] = lambda _error: None
    # sees every token as it comes; False ends the sample there
    on_token: Callable[[SampledToken], bool] = take_every_token
    # what is to be known before any of this is answered
    probes: tuple["Probe", ...] = ()

    @property
    def read(self) -> list[int]:
        """The tokens to run the model on. The last one of a prompt whose logprobs alone are asked
        for predicts nothing that is wanted, as in training."""
        return self.prompt if self.num_samples else self.prompt[: max(1, len(self.prompt) - 1)]

    def cancel(self) -> None:
        """From any thread: its rows leave the batch with their next token."""
        if self.error is None:
            self.error = CancelledError()

    def finish_if_complete(self) -> None:
        if self.error is not None:
            self.on_error(self.error)
        elif len(self.sequences) == self.num_samples:
            self.on_done(
                SampleResponse(
                    sequences=[self.sequences[j] for j in range(self.num_samples)],
                    prompt_logprobs_np=self.prompt_logprobs,
                    topk_prompt_logprobs_np=self.prompt_topk,
                )
            )


@dataclass(eq=False)
class Probe:
    """Requests for prompt logprobs alone that go along with the first prefill of other requests, or
    just before it.

    `judge` gets the float64 logprobs of each prompt after its first token, or None where some are
    not numbers. What it raises ends those that wait for it, and all that come after them.
    """

    jobs: list[SampleJob]
    judge: Callable[[list[np.ndarray] | None], None]
    error: Exception | None = None

    def settle(self) -> None:
        """Once the logprobs are there. Lets go of jobs and judge, and of the weights they hold."""
        jobs, judge = self.jobs, self.judge
        self.jobs, self.judge = [], lambda _logprobs: None
        try:
            judge(None if any(job.error for job in jobs) else [_known(job) for job in jobs])
        except Exception as error:
            self.error = error
            raise


class _Row:
    """One sample being decoded. Its random numbers depend on (seed, sample index) alone."""

    def __init__(self, job: SampleJob, sample: int, constraint: Constraint | None) -> None:
        self.job = job
        self.sample = sample
        self.constraint = constraint
        self.random = np.random.Generator(
            np.random.Philox(key=np.array([job.seed, sample], dtype=np.uint64))
        )
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.topk: list[tuple[np.ndarray, np.ndarray]] = []

    def accept(self, token: int, logprob: float) -> bool:
        """Takes the next token; True when the row is finished."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if self.constraint is not None:
            self.constraint.accept(token)
            if self.constraint.error is not None:
                self.job.error = self.constraint.error
                return True
        stop_reason: StopReason | None = None
        if (
            token in self.job.stop_tokens
            or (self.job.stop_strings is not None and self.job.stop_strings.found_in(self.tokens))
            or (self.constraint is not None and self.constraint.finished)
        ):
            stop_reason = "stop"
        elif len(self.tokens) >= self.job.max_tokens:
            stop_reason = "length"
        topk = (self.topk[-1][0], self.topk[-1][1]) if self.topk else None
        wanted = self.job.on_token(SampledToken(token, logprob, topk, self.sample, stop_reason))
        if stop_reason is None and wanted:
            return False
        self.job.sequences[self.sample] = SampledSequence(
            stop_reason=stop_reason or "stop",
            tokens_np=np.array(self.tokens, dtype=np.int64),
            logprobs_np=np.array(self.logprobs, dtype=np.float32),
            sequence_id=str(self.sample),
            topk_logprobs_np=stack_topk(self.topk) if self.topk else None,
        )
        return True


class _Prefilled(NamedTuple):
    """A prompt's packed positions, and which tree of the pass shares how many of them."""

    job: SampleJob
    index: torch.Tensor
    tree: int
    shared: int


@dataclass
class _Block:
    """Rows and their cache, in the same order."""

    rows: list[_Row]
    cache: DecodeBlock


class Sampler:
    """Holds the rows in flight; the engine calls admit() and step() between other work."""

    def __init__(
        self,
        decoder: Decoder,
        *,
        max_prefill_tokens: int,
        max_rows: int,
        make_constraint: Callable[[SamplingParams], Constraint | None],
    ) -> None:
        self._decoder = decoder
        self._max_prefill_tokens = max_prefill_tokens
        self.max_rows = max_rows
        self._make_constraint = make_constraint
        self._blocks: list[_Block] = []
        self._lora: LoraPass | None = None
        self.prompt_tokens = 0
        self.sampled_tokens = 0

    @property
    def rows(self) -> int:
        return sum(len(block.rows) for block in self._blocks)

    def has_room(self, job: SampleJob) -> bool:
        return self.rows == 0 or self.rows + job.num_samples <= self.max_rows

    def abandon(self) -> list[SampleJob]:
        """Drops everything in flight and returns its jobs, after an error in a step."""
        jobs = {id(row.job): row.job for block in self._blocks for row in block.rows}
        self._blocks, self._lora = [], None
        return list(jobs.values())

    # ------------------------------------------------------------------------------------ prefill

    @torch.no_grad()
    def admit(self, jobs: list[SampleJob]) -> None:
        """Prefills prompts, shared prefixes once, and samples every row's first token. Raises what
        the judge of a probe raises."""
        probes = _probes_of(jobs)
        weights = {id(job.weights): job.weights for job in jobs}
        owners: list[int] = [id(job.weights) for job in jobs]
        prompts_P = [job.read for job in jobs]
        trees = build_trees(
            owners,
            prompts_P,
            share=self._decoder.shares_prefixes,
            apart=[self._decoder.length_kind(len(prompt)) for prompt in prompts_P],
        )
        batches = micro_batches(trees, self._max_prefill_tokens)
        asked = range(len(jobs), len(jobs) + sum(len(probe.jobs) for probe in probes))
        jobs = [*jobs, *(job for probe in probes for job in probe.jobs)]
        # after all others and an owner of its own each: no product of the others has more rows but
        # those with packed weights, and these give a row the same bits (keeps_rows_apart)
        weights |= {~m: jobs[m].weights for m in asked}
        guests = [Tree(~m, jobs[m].read, [[]], [m]) for m in asked]
        if guests:
            rows, more = (sum(t.num_tokens for t in trees) for trees in (batches[0], guests))
            # alone a row has bits of its own
            if rows > 1 and 0 < rows % _BLOCK <= _BLOCK - more:
                batches[0] += guests
            else:
                batches.insert(0, guests)
        for batch in batches:
            packing = pack(batch)
            lora = LoraPass(
                [
                    w.slice(start, stop)
                    for owner, start, stop in packing.owner_slices
                    if (w := weights[int(owner)]) is not None  # type: ignore[call-overload]
                ]
            )
            cache = self._decoder.new_cache()
            hidden = self._decoder.hidden(
                to_device(packing.tokens, self._decoder.device),
                to_device(packing.positions, self._decoder.device),
                SegmentAttention(packing.segments, cache),
                lora,
            )
            self.prompt_tokens += len(packing.tokens)
            index = {m: to_device(i, self._decoder.device) for m, i in packing.index.items()}
            probed = [(jobs[m], hidden[index.pop(m)]) for m in asked if m in index]
            self._prompt_logprobs([(jobs[m], hidden[i]) for m, i in index.items()])
            prompts = [
                _Prefilled(jobs[m], index[m], number, len(tree.prefix))
                for number, tree in enumerate(batch)
                for m in tree.members
                if m in index and jobs[m].num_samples and jobs[m].error is None
            ]
            logits = self._first_logits(prompts, hidden, probed)
            if probed:
                for probe in probes:
                    probe.settle()
            self._start_rows(prompts, logits, cache)
            for m in index:
                jobs[m].finish_if_complete()

    def settle(self, probe: Probe) -> None:
        """At once, in a pass of its own, if it is not settled. Raises what its judge raises."""
        if probe.jobs:
            self.admit(probe.jobs)
            probe.settle()

    def prompt_logprobs(self, jobs: list[SampleJob]) -> list[np.ndarray]:
        """At once, in a pass of their own: the float64 logprobs of prompts after their first token,
        of jobs that ask for these alone."""
        self.admit(jobs)
        for job in jobs:
            if job.error is not None:
                raise job.error
        return [_known(job) for job in jobs]

    def _prompt_logprobs(self, prompts: list[tuple[SampleJob, torch.Tensor]]) -> None:
        asked = [(job, hidden) for job, hidden in prompts if job.include_prompt_logprobs]
        if asked:
            self._chosen_logprobs(asked)
        for job, hidden in prompts:
            if job.topk_prompt_logprobs:
                parts = []
                rows = _predicting(job, hidden)
                for start in range(0, len(rows), HEAD_CHUNK):
                    chunk = rows[start : start + HEAD_CHUNK]
                    part = LoraPass([job.weights.slice(0, len(chunk))] if job.weights else [])
                    logprobs = self._decoder.logits(chunk, part).log_softmax(-1)
                    parts += top_k(logprobs, job.topk_prompt_logprobs)
                job.prompt_topk = stack_topk([no_topk(job.topk_prompt_logprobs), *parts])
                _check_prompt(job, job.prompt_topk.logprobs)

    def _chosen_logprobs(self, prompts: list[tuple[SampleJob, torch.Tensor]]) -> None:
        """Of the prompts' own tokens; all rows together, so that the head is read once for many."""
        weights = [job.weights for job, _ in prompts for _ in job.prompt[1:]]
        hidden = torch.cat([_predicting(job, rows) for job, rows in prompts])
        targets = [token for job, _ in prompts for token in job.prompt[1:]]
        known = self._decoder.target_logprobs(
            hidden, torch.tensor(targets, dtype=torch.long, device=hidden.device), _runs(weights)
        )
        _set_prompt_logprobs([job for job, _ in prompts], known)

    def _first_logits(
        self,
        prompts: list[_Prefilled],
        hidden: torch.Tensor,
        probed: list[tuple[SampleJob, torch.Tensor]],
    ) -> torch.Tensor:
        """[prompts, vocab], after their last tokens. What is probed comes along, so that the head
        is read once for both."""
        lora = _lora_pass([prompt.job.weights for prompt in prompts])
        # alone a row has bits of its own
        if len(prompts) < 2 or lora.stacked:
            self._prompt_logprobs(probed)
            probed = []
        if not prompts:
            return hidden.new_empty(0, self._decoder.vocab_size)
        last = hidden[torch.stack([prompt.index[-1] for prompt in prompts])]
        if not probed:
            return self._decoder.logits(last, lora)
        n = len(prompts)
        guests = _runs([job.weights for job, _ in probed for _ in job.prompt[1:]])
        slices = [*lora.slices, *(s.part(s.start, s.stop, -n) for s in guests.slices)]
        rows = torch.cat([last, *(_predicting(job, rows) for job, rows in probed)])
        logits = self._decoder.logits(rows, LoraPass(slices))
        targets = torch.tensor([token for job, _ in probed for token in job.prompt[1:]])
        known = logits[n:].log_softmax(-1).gather(1, targets.to(logits.device).view(-1, 1))
        _set_prompt_logprobs([job for job, _ in probed], known.view(-1))
        return logits[:n]

    def _start_rows(
        self, prompts: list[_Prefilled], logits: torch.Tensor, cache: RowStarts
    ) -> None:
        """First tokens for all rows, then a cache block for each group that goes on."""
        if not prompts:
            return
        singles: dict[int, list[tuple[_Row, _Prefilled]]] = {}
        for prompt, row_logits in zip(prompts, logits, strict=True):
            job = prompt.job
            rows = [_Row(job, j, self._make_constraint(job.params)) for j in range(job.num_samples)]
            alive = self._choose(rows, row_logits.expand(len(rows), -1))
            if len(alive) == 1:
                singles.setdefault(prompt.tree, []).append((alive[0], prompt))
            elif alive:
                self._blocks.append(_Block(alive, cache.group_block(len(alive), prompt.index)))
        self._start_singles(list(singles.values()), cache)
        self._lora = None

    def _start_singles(self, trees: list[list[tuple[_Row, _Prefilled]]], cache: RowStarts) -> None:
        """Rows of one sample each: those whose prompts share a prefix together, and all others."""
        rest: list[tuple[_Row, _Prefilled]] = []
        for rows in trees:
            if len(rows) == 1:
                rest += rows
            else:
                self._add_singles(rows, rows[0][1].shared, cache)
        if rest:
            rest.sort(key=lambda single: id(single[0].job.weights))
            self._add_singles(rest, 0, cache)

    def _add_singles(
        self, singles: list[tuple[_Row, _Prefilled]], shared: int, cache: RowStarts
    ) -> None:
        prefix = singles[0][1].index[:shared] if shared else None
        own = [prompt.index[shared:] for _, prompt in singles]
        for members, block in cache.single_blocks(prefix, own):
            self._blocks.append(_Block([singles[i][0] for i in members], block))

    # ------------------------------------------------------------------------------------- decode

    @torch.no_grad()
    def step(self) -> None:
        """One more token for every row in flight."""
        rows = [row for block in self._blocks for row in block.rows]
        caches = [block.cache for block in self._blocks]
        for cache in caches:
            cache.begin_step()
        if self._lora is None:
            self._lora = _lora_pass([row.job.weights for row in rows])
            self._lora.decoding = True
        device = self._decoder.device
        tokens = torch.tensor([row.tokens[-1] for row in rows], device=device)
        positions = torch.tensor(
            [len(row.job.prompt) + len(row.tokens) - 1 for row in rows], device=device
        )
        hidden = self._decoder.hidden(tokens, positions, DecodeAttention(caches), self._lora)
        logits = self._decoder.logits(hidden, self._lora)
        for cache in caches:
            cache.end_step()
        alive = {id(row) for row in self._choose(rows, logits)}
        if len(alive) == len(rows):
            return
        self._lora = None
        for block in self._blocks:
            kept = [at for at, row in enumerate(block.rows) if id(row) in alive]
            if 0 < len(kept) < len(block.rows):
                block.cache.keep(kept)
            block.rows = [block.rows[at] for at in kept]
        self._blocks = [block for block in self._blocks if block.rows]
        for job in {id(row.job): row.job for row in rows if id(row) not in alive}.values():
            job.finish_if_complete()

    def _choose(self, rows: list[_Row], logits: torch.Tensor) -> list[_Row]:
        """Samples a token for each row from logits [rows, vocab]; the rows that go on."""
        if not rows:
            return []
        self.sampled_tokens += len(rows)
        logprobs = logits.log_softmax(-1)
        tokens = sample_tokens(
            logits,
            temperatures=[row.job.params.temperature for row in rows],
            top_ks=[row.job.params.top_k for row in rows],
            top_ps=[row.job.params.top_p for row in rows],
            min_ps=[row.job.params.min_p for row in rows],
            uniforms=[row.random.random() for row in rows],
            masks=[None if row.constraint is None else row.constraint.allowed() for row in rows],
        )
        chosen = logprobs.gather(1, tokens.unsqueeze(1)).squeeze(1)
        logprobs_of_chosen = chosen.tolist()
        for row, logprob in zip(rows, logprobs_of_chosen, strict=True):
            if math.isnan(logprob):
                row.job.error = not_a_number(f"{len(row.tokens)} sampled tokens")
        for at, row in enumerate(rows):
            if k := row.job.topk_sample_logprobs:
                row.topk += top_k(logprobs[at : at + 1], k)
        going_on = [
            row
            for row, token, logprob in zip(rows, tokens.tolist(), logprobs_of_chosen, strict=True)
            if row.job.error is None and not row.accept(token, logprob)
        ]
        # an error ends all rows of its job at once
        return [row for row in going_on if row.job.error is None]


def _probes_of(jobs: list[SampleJob]) -> list[Probe]:
    """Those that are not settled. Raises what the judge of one that is raised."""
    probes = {id(probe): probe for job in jobs for probe in job.probes}
    for probe in probes.values():
        if probe.error is not None:
            raise probe.error
    return [probe for probe in probes.values() if probe.jobs]


def _predicting(job: SampleJob, hidden: torch.Tensor) -> torch.Tensor:
    """Of the states [read tokens, d] after a prompt's tokens those that its own tokens follow."""
    return hidden[: len(job.prompt) - 1]


def _known(job: SampleJob) -> np.ndarray:
    """The float64 logprobs of its prompt after the first token."""
    assert job.prompt_logprobs is not None
    return job.prompt_logprobs[1:].astype(float)


def not_a_number(what: str) -> RequestFailedError:
    return RequestFailedError(
        f"the model's logits are not numbers (NaN) after {what}: its adapter has grown beyond what "
        "the computation can hold; go back to an earlier checkpoint, with a lower learning rate",
        category="user",
    )


def _set_prompt_logprobs(jobs: list[SampleJob], known: torch.Tensor) -> None:
    """`known` are the logprobs of all tokens that have one, prompt by prompt."""
    parts = known.cpu().split([len(job.prompt) - 1 for job in jobs])
    for job, part in zip(jobs, parts, strict=True):
        job.prompt_logprobs = np.concatenate([[np.nan], part.numpy()]).astype(np.float32)
        _check_prompt(job, job.prompt_logprobs)


def _check_prompt(job: SampleJob, logprobs: np.ndarray) -> None:
    if np.isnan(logprobs[1:]).any():
        job.error = not_a_number("the prompt")


def _lora_pass(weights: list[AdapterWeights | None]) -> LoraPass:
    """The adapters of decode rows: runs of one adapter, or one batched product if all differ."""
    runs = _runs(weights)
    if len(runs.slices) < 3 or len(runs.slices) < len(weights):
        return runs
    return LoraPass(stacked=_stack([w for w in weights if w is not None]))


def _runs(weights: list[AdapterWeights | None]) -> LoraPass:
    """The adapters of rows, a slice for those that stand together."""
    slices: list[LoraSlice] = []
    start = 0
    while start < len(weights):
        stop = start + 1
        while stop < len(weights) and weights[stop] is weights[start]:
            stop += 1
        current = weights[start]
        if current is not None:
            slices.append(current.slice(start, stop))
        start = stop
    return LoraPass(slices)


def _stack(weights: list[AdapterWeights]) -> dict[str, Stacked]:
    """Adapters side by side, padded with zeros to the largest rank."""
    slices = [w.slice(i, i + 1) for i, w in enumerate(weights)]
    rank = max(w.config.rank for w in weights)
    stacks = {}
    for name in dict.fromkeys(name for s in slices for name in s.groups):
        members = [(i, s.groups[name]) for i, s in enumerate(slices) if name in s.groups]
        columns = sorted(
            {(p.columns.start, p.columns.stop) for _, group in members for p in group.parts}
        )
        first = members[0][1].a
        a = first.new_zeros(len(weights), first.shape[1], rank * len(columns))
        parts = {
            span: (
                slice(k * rank, (k + 1) * rank),
                first.new_zeros(len(weights), rank, span[1] - span[0]),
            )
            for k, span in enumerate(columns)
        }
        for i, group in members:
            for part in group.parts:
                ranks, b = parts[part.columns.start, part.columns.stop]
                own = part.b.shape[1]
                a[i, :, ranks.start : ranks.start + own] = group.a[part.ranks].T
                b[i, :own] = part.b.T * group.scale
        stacks[name] = Stacked(
            a, tuple((slice(*span), ranks, b) for span, (ranks, b) in parts.items())
        )
    return stacks
