"""What a sampler, its trainer and the base model say of a fixed text, for training.adapter_proof.

Sampler and base model are asked for the first tokens of it, in rows of one pass, which may be that
of other prompts: they come last there, if the pass has room for them, and leave the others their
bits. (Where more rows in a pass might change the bits of others, `keeps_rows_apart`, they stay in a
pass of their own.) A sampler with the very bits of its trainer's weights speaks for both. For
another one, and where the first tokens do not settle it, the trainer's own forward() and a pass for
each of the others do, which are cut alike, so that equal weights give equal bits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from training.adapter_proof import QUICK_TOKENS, Judge, Probed, settles_it
from training.api import ModelInput
from training.backends.local.engine import Engine
from training.backends.local.sampler import Probe

if TYPE_CHECKING:
    from training.backends.local.service import LocalSamplingClient


class Trained(NamedTuple):
    """What computes the trainer's logprobs, on the worker, and whether the sampler has the very
    bits of its weights."""

    logprobs: Callable[[], np.ndarray]
    same_weights: bool


def make_probe(
    engine: Engine,
    sampler: LocalSamplingClient,
    base: LocalSamplingClient,
    tokens: list[int],
    judge: Judge,
    *,
    size_of_b: float,
    trainer: Trained | None = None,
) -> Probe:
    """To be settled on the engine's worker. Where what was asked is not numbers, `judge` gets None
    if the probe goes along with prompts, whose answers fail on their own; else that is raised."""
    few, whole_text = (ModelInput.from_ints(t) for t in (tokens[:QUICK_TOKENS], tokens))
    jobs = [client.logprobs_job(few) for client in (sampler, base)]

    def told(logprobs: list[np.ndarray] | None) -> None:
        if logprobs is None:
            if probe not in sampler.probes:
                raise next(job.error for job in jobs if job.error is not None)
            judge(None)
            return
        sampled, of_base = logprobs
        trained = None if trainer is None else sampled
        same = trainer is None or trainer.same_weights
        if not same or not settles_it(sampled, of_base, dtype=sampler.dtype):
            trained = None if trainer is None else trainer.logprobs()
            [sampled], [of_base] = (
                engine.sampler.prompt_logprobs([client.logprobs_job(whole_text)])
                for client in (sampler, base)
            )
        judge(Probed(sampler.dtype, size_of_b, sampled, of_base, trained))

    probe = Probe(jobs, told)
    return probe
