"""Whether vLLM computes what the local engine does, before anything is sampled with it: a short
text's logprobs through an adapter on every layer, and without one.

Names of layers that do not match are no error for vLLM: it then answers as the base model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from training.adapter_proof import FLOAT32_LIMIT, Distance, allowed_distance, probe_tokens
from training.api import ModelInput
from training.backends.local.adapters import (
    DEFAULT_ALPHA,
    Adapter,
    AdapterConfig,
    AdapterWeights,
    choose_targets,
)
from training.backends.local.engine import Engine
from training.backends.local.service import LocalSamplingClient
from training.backends.vllm.folders import AdapterFolder, AdapterFolders
from training.models import lacks_tokenizer

PROBE_RANK = 8
# of B's values: an adapter that changes the text's logprobs by some tenths of a nat
_B_SCALE = 0.02

# (kind, values) -> what vLLM's process answers
Ask = Callable[[str, Any], Any]


@dataclass(frozen=True)
class StartCheck:
    """`base` is an adapter of zeros, which is the base model: vLLM's processor build computes rows
    without an adapter wrongly beside others. Expected are the local engine's logprobs."""

    dtype: str
    tokens: list[int]
    probe: AdapterFolder
    base: AdapterFolder
    expected_probe: np.ndarray
    expected_base: np.ndarray

    def run(self, ask: Ask) -> Distance:
        """How far off vLLM's are with the adapter. Raises ValueError where they are further off
        than a sampler may be from its trainer."""
        distances = []
        for what, adapter, expected in (
            ("the base model", self.base, self.expected_base),
            ("an adapter on every layer", self.probe, self.expected_probe),
        ):
            values = {"adapter": adapter.key, "prompt": self.tokens}
            sampled = np.array(ask("logprobs", values))
            distances.append(distance := Distance.between(sampled, expected))
            if not distance.is_allowed(self.dtype):
                is_base = Distance.between(sampled, self.expected_base).largest <= FLOAT32_LIMIT
                told = "; vLLM answers as the base model does" if is_base else ""
                raise ValueError(
                    f"sampler='vllm': with {what} vLLM's logprobs of a test text are "
                    f"{distance.largest:.2g} nats at most (RMS {distance.rms:.2g}) from the local "
                    f"engine's{told}; allowed is {allowed_distance(self.dtype)}. Use "
                    "sampler='local' with this model"
                )
        return distances[-1]


def make_start_check(engine: Engine, folders: AdapterFolders, *, adapts_head: bool) -> StartCheck:
    """Computes on the engine's worker."""

    def make() -> StartCheck:
        probe = _adapter(engine, train_unembed=adapts_head)
        base = _adapter(engine, train_unembed=False)
        generator = torch.Generator().manual_seed(0)
        for low_rank in probe.layers.values():
            noise = torch.randn(low_rank.b.shape, generator=generator)
            low_rank.b.copy_(_B_SCALE * noise)
        tokens = _tokens(engine)
        probe_weights = probe.snapshot()
        return StartCheck(
            engine.decoder.dtype_name,
            tokens,
            folders.write(engine, probe_weights),
            folders.write(engine, base.snapshot()),
            _logprobs(engine, probe_weights, tokens),
            _logprobs(engine, None, tokens),
        )

    return engine.submit_call(engine.new_queue(), make).result()


def _adapter(engine: Engine, *, train_unembed: bool) -> Adapter:
    targets = choose_targets(
        engine.decoder,
        train_attn=True,
        train_mlp=True,
        train_unembed=train_unembed,
        target_modules=None,
    )
    return Adapter(AdapterConfig(PROBE_RANK, DEFAULT_ALPHA, targets), engine.decoder)


def _tokens(engine: Engine) -> list[int]:
    if lacks_tokenizer(engine.model_name):
        size = engine.decoder.vocab_size
        return [(7 * i + 3) % size for i in range(PROBE_RANK)]
    return probe_tokens(engine.tokenizer)


def _logprobs(engine: Engine, weights: AdapterWeights | None, tokens: list[int]) -> np.ndarray:
    job = LocalSamplingClient(engine, weights).logprobs_job(ModelInput.from_ints(tokens))
    return engine.sampler.prompt_logprobs([job])[0]
