"""Results as the Tinker face sends them."""

import asyncio
from typing import Any

import anyio.to_thread
import numpy as np
import pytest

from training.api import SampledSequence, SampleResponse
from training.serving.promises import Outcome
from training.serving.sampled import Sampled
from training.serving.wire.bodies import PROTOBUF
from training.serving.wire.codec import encode_sample
from training.serving.wire.replies import outcome_reply


@pytest.mark.parametrize(("length", "num_threads"), [(8, 0), (20_000, 1)])
def test_only_large_results_are_written_in_threads(
    length: int, num_threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With thousands of samples open a thread for each would be most of the work."""
    threads: list[Any] = []
    real = anyio.to_thread.run_sync

    async def counted(*given: Any) -> Any:
        threads.append(given)
        return await real(*given)

    monkeypatch.setattr(anyio.to_thread, "run_sync", counted)
    tokens = np.arange(length)
    response = SampleResponse([SampledSequence("stop", tokens, tokens.astype(np.float32))])
    reply = asyncio.run(outcome_reply(Outcome("result", "Sample", Sampled(response)), PROTOBUF))
    assert reply.body == encode_sample(response)
    assert len(threads) == num_threads
