"""A model that answers requests of the OpenAI face, whole or token by token."""

import asyncio
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any, NamedTuple

from training.api import (
    ModelInput,
    SampledToken,
    SampleResponse,
    SamplingParams,
    StopReason,
)
from training.serving import backend as calls
from training.serving.backend import OnToken
from training.serving.errors import ServingError, bad_request, server_fault
from training.serving.promises import SAMPLE, Promise, Promises
from training.serving.sampler_weights import LoadedWeights, SamplerWeights
from training.serving.scheduler import Scheduler, Work
from training.serving.workers import Workers

# requests of this face belong to no session
_NO_SESSION = ""


class StreamedToken(NamedTuple):
    """A token of sample number `sample`; the last one of each sample has a stop_reason. `topk`:
    the most likely tokens and their logprobs, most likely first."""

    token: int
    logprob: float
    topk: list[tuple[int, float]] | None
    sample: int
    stop_reason: StopReason | None


class Hosted:
    """`name` is what was asked for; `template` is for training.chat; `context_length` is None where
    the backend does not tell."""

    def __init__(
        self,
        owner: str,
        name: str,
        weights: SamplerWeights,
        loaded: LoadedWeights,
        tokenizer: Any,
        promises: Promises,
        scheduler: Scheduler,
        workers: Workers,
        *,
        max_num_samples: int,
    ) -> None:
        self.name = name
        self.base_model = weights.base_model
        self.adapter_path = weights.path
        self.tokenizer = tokenizer
        self.template = "auto"
        # where the backend does not tell, the tokenizer's own is one of them
        self.eos_tokens: frozenset[int] = getattr(loaded.client, "eos_tokens", frozenset())
        self.context_length = loaded.context_length
        self.fingerprint = loaded.fingerprint
        self._owner = owner
        self._client = loaded.client
        self._promises = promises
        self._scheduler = scheduler
        self._workers = workers
        self._max_num_samples = max_num_samples

    async def sample(
        self,
        prompt: ModelInput,
        num_samples: int,
        params: SamplingParams,
        *,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
    ) -> SampleResponse:
        """Raises ServingError. Cancelling the task that awaits frees the rows."""
        promise = await self._begin(
            prompt,
            num_samples,
            params,
            include_prompt_logprobs=include_prompt_logprobs,
            topk_prompt_logprobs=topk_prompt_logprobs,
            topk_sample_logprobs=topk_sample_logprobs,
        )
        try:
            await asyncio.wait([promise.done])
        finally:
            self._end(promise)
        return _result(promise)

    async def stream(
        self, prompt: ModelInput, params: SamplingParams, num_samples: int = 1, topk: int = 0
    ) -> AsyncGenerator[StreamedToken, None]:
        """The tokens that sample() gives, as they come. Raises ServingError. Closing the iterator
        frees the rows."""
        loop = asyncio.get_running_loop()
        tokens: asyncio.Queue[SampledToken | None] = asyncio.Queue()
        is_wanted = True

        def on_token(token: SampledToken) -> bool:
            if not loop.is_closed():
                loop.call_soon_threadsafe(tokens.put_nowait, token)
            return is_wanted

        promise = await self._begin(
            prompt, num_samples, params, topk_sample_logprobs=topk, on_token=on_token
        )
        promise.done.add_done_callback(lambda _: tokens.put_nowait(None))
        try:
            while (token := await tokens.get()) is not None:
                yield _streamed(token)
            _result(promise)
        finally:
            is_wanted = False
            self._end(promise)

    async def _begin(
        self,
        prompt: ModelInput,
        num_samples: int,
        params: SamplingParams,
        *,
        on_token: OnToken | None = None,
        **asked: Any,
    ) -> Promise:
        promise, _ = self._promises.begin(self._owner, SAMPLE, _NO_SESSION)
        with self._promises.accepting(promise):
            if num_samples > self._max_num_samples:
                raise bad_request(
                    f"n: got {num_samples}, allowed 1 to {self._max_num_samples}", param="n"
                )
            calls.check_context(prompt.length, params.max_tokens, self.context_length)
            make = await self._workers.check(
                partial(
                    calls.prepare_sample,
                    self._client,
                    prompt,
                    num_samples,
                    params,
                    on_token=on_token,
                    **asked,
                )
            )
            self._scheduler.add_sample(_NO_SESSION, Work(promise, make, rows=num_samples))
        return promise

    def _end(self, promise: Promise) -> None:
        """Nobody asks for the result again."""
        if promise.is_open:
            self._scheduler.drop([promise])
            promise.done.add_done_callback(lambda _: self._promises.discard(promise))
        else:
            self._promises.discard(promise)


def _result(promise: Promise) -> SampleResponse:
    outcome = promise.outcome
    if outcome.state == "result":
        return outcome.value
    if outcome.state == "pending":
        raise ServingError(503, "the server is being stopped")
    if outcome.category == "user":
        raise bad_request(outcome.message)
    raise server_fault(outcome.message)


def _streamed(token: SampledToken) -> StreamedToken:
    topk = None
    if token.topk is not None:
        ids, logprobs = token.topk
        topk = list(zip(ids.tolist(), logprobs.tolist(), strict=True))
    return StreamedToken(token.token, token.logprob, topk, token.sample, token.stop_reason)
