"""A Host over the local engine and a tiny model, and the requests that tests make of it."""

import asyncio
import hashlib
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tiny_models import random_tokens

from training.api import (
    AdamParams,
    Datum,
    ForwardBackwardOutput,
    LoraConfig,
    ModelInput,
    SamplingParams,
)
from training.serving.base_models import BaseModels
from training.serving.host import Host, HostOptions
from training.serving.promises import Outcome, Promise
from training.serving.sampled import Sampled
from training.serving.store import Store
from training.serving.wire.codec import ForwardBackwardRequest, SampleRequest

OWNER = "ann"
PROMPT = [5, 6, 7, 8]
RANK_4: dict[str, Any] = {"rank": 4, "seed": 1}
STEP = AdamParams(learning_rate=0.05)
GREEDY = SamplingParams(max_tokens=6, temperature=0, stop=[])


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def make_host(
    service: Any,
    store: Store,
    folder: str,
    clock: Callable[[], float] | None = None,
    **options: Any,
) -> Host:
    bases = BaseModels([folder], {"an/alias": folder})
    given: dict[str, Any] = {} if clock is None else {"clock": clock}
    return Host(service, store, bases, HostOptions(**options), **given)


def data_of(seed: int, lengths: Sequence[int] = (9, 12)) -> list[Datum]:
    rng = np.random.default_rng(seed)
    data = []
    for length in lengths:
        tokens = random_tokens(rng, length)
        inputs = {"target_tokens": tokens[1:], "weights": [1.0] * (length - 1)}
        data.append(Datum(ModelInput.from_ints(tokens[:-1]), inputs))
    return data


def digest_of(*parts: Any) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


class Client:
    """What the SDK sends, with its numbers; answers are waited for as it does."""

    def __init__(self, host: Host, owner: str = OWNER) -> None:
        self.host = host
        self.owner = owner
        self.session_id = host.create_session(owner)
        self.models = 0
        self.samplers = 0
        self.requests: dict[str, int] = {}

    def next_of(self, scope: str) -> int:
        self.requests[scope] = self.requests.get(scope, 0) + 1
        return self.requests[scope]

    async def outcome(self, promise: Promise) -> Outcome:
        found = await self.host.wait(self.owner, promise.request_id, 60)
        assert found.state != "pending"
        return found

    async def result(self, promise: Promise) -> Any:
        found = await self.outcome(promise)
        assert found.state == "result", found.message
        return found.value

    async def create(self, base: str = "an/alias", **lora: Any) -> str:
        number = self.next_of("models") - 1
        config = LoraConfig(**{**RANK_4, **lora})
        promise = await self.host.create_model(
            self.owner, self.session_id, number, base, config, digest=digest_of(base, config)
        )
        return (await self.result(promise))["model_id"]

    async def load(self, path: str, *, with_optimizer: bool, **given: Any) -> str:
        number = self.next_of("models") - 1
        promise = await self.host.load_model(
            self.owner,
            self.session_id,
            number,
            path,
            with_optimizer=with_optimizer,
            digest=digest_of(path, with_optimizer),
            **given,
        )
        return (await self.result(promise))["model_id"]

    async def post_train(
        self,
        model_id: str,
        data: list[Datum],
        *,
        forward_only: bool = False,
        seq: int | None = None,
    ) -> Promise:
        seq = seq or self.next_of(model_id)
        request = ForwardBackwardRequest(model_id, seq, data, "cross_entropy", {}, forward_only)
        return await self.host.forward_backward(self.owner, request, digest=digest_of(seq))

    async def train(self, model_id: str, data: list[Datum], **given: Any) -> ForwardBackwardOutput:
        return await self.result(await self.post_train(model_id, data, **given))

    async def post_step(
        self, model_id: str, params: AdamParams = STEP, seq: int | None = None
    ) -> Promise:
        seq = seq or self.next_of(model_id)
        digest = digest_of(params)
        return await self.host.optim_step(self.owner, model_id, seq, params, digest=digest)

    async def step(self, model_id: str, params: AdamParams = STEP) -> dict[str, float]:
        return (await self.result(await self.post_step(model_id, params)))["metrics"]

    async def save(self, model_id: str, name: str, kind: str = "weights", **given: Any) -> str:
        call = {
            "weights": self.host.save_weights,
            "external_weights": self.host.save_weights_external,
        }.get(kind)
        seq, digest = self.next_of(model_id), digest_of(kind, name)
        if call is None:
            promise = await self.host.save_weights_for_sampler(
                self.owner, model_id, seq, name=name, digest=digest, **given
            )
        else:
            promise = await call(self.owner, model_id, seq, name, digest=digest, **given)
        return (await self.result(promise))["path"]

    async def snapshot(self, model_id: str) -> str:
        number, seq = self.next_of("samplers"), self.next_of(model_id)
        promise = await self.host.save_weights_for_sampler(
            self.owner,
            model_id,
            seq,
            sampling_session_seq_id=number,
            digest=digest_of("snapshot", number),
        )
        return (await self.result(promise))["sampling_session_id"]

    async def sampler(self, **what: Any) -> str:
        number = self.next_of("samplers")
        return await self.host.create_sampling_session(self.owner, self.session_id, number, **what)

    async def post_sample(
        self,
        sampler_id: str,
        prompt: list[int] | None = None,
        num_samples: int = 1,
        params: SamplingParams = GREEDY,
        seq: int | None = None,
        **asked: Any,
    ) -> Promise:
        seq = self.next_of(sampler_id) if seq is None else seq
        request = SampleRequest(
            sampler_id, seq, num_samples, ModelInput.from_ints(prompt or PROMPT), params, **asked
        )
        return await self.host.sample(self.owner, request, digest=digest_of(prompt, params))

    async def sample(self, sampler_id: str, *args: Any, **asked: Any) -> Sampled:
        return await self.result(await self.post_sample(sampler_id, *args, **asked))

    async def logprobs(self, sampler_id: str, tokens: list[int]) -> np.ndarray:
        params = SamplingParams(max_tokens=1)
        found = await self.sample(sampler_id, tokens, 1, params, prompt_logprobs=True)
        assert found.response.prompt_logprobs_np is not None
        return found.response.prompt_logprobs_np[1:]

    async def trained_logprobs(self, model_id: str, tokens: list[int]) -> np.ndarray:
        datum = Datum(ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:]})
        output = await self.train(model_id, [datum], forward_only=True)
        return output.loss_fn_outputs[0]["logprobs"].to_numpy()


def serve(host: Host, scenario: Callable[[Host], Awaitable[Any]]) -> Any:
    """Runs the scenario on a loop of its own, and closes the host."""

    async def run() -> Any:
        await host.startup()
        try:
            return await asyncio.wait_for(scenario(host), 120)
        finally:
            await host.aclose()

    return asyncio.run(run())


@contextmanager
def stopped_engine(service: Any, folder: str) -> Iterator[None]:
    """The engine's worker does nothing meanwhile: what is asked of it waits."""
    engine = service.engine(folder)
    reached, go_on = threading.Event(), threading.Event()

    def stop() -> None:
        reached.set()
        assert go_on.wait(60)

    engine.submit_call(engine.new_queue(), stop).start()
    assert reached.wait(60)
    try:
        yield
    finally:
        go_on.set()


def weights_of(host: Host, model_id: str) -> np.ndarray:
    client: Any = host._trained._models[model_id].ready.result()
    return client._adapter.flat.numpy().copy()


def open_store(folder: Path) -> Store:
    return Store(folder / "store")
