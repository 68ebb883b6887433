"""The worker that owns the device: takes what waits, runs it together, resolves futures.

Requests of one client run in order. forward and forward_backward requests of different clients
that are next in line run as one pass; samples of different clients decode in one batch, which new
requests join between tokens.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from training.api import APIFuture, RequestFailedError, SampleResponse
from training.local.constraint import ConstraintFactory
from training.local.decoder import Decoder
from training.local.sampler import SampleJob, Sampler
from training.local.trainer import Trainer, TrainJob
from training.models import load_tokenizer

logger = logging.getLogger(__name__)

# A pass waits this long for company after the last arrival, and at most ten times as long.
_LINGER_SECONDS = 0.003


@dataclass(frozen=True)
class EngineOptions:
    """Sizes of the batched passes, and switches that benchmarks compare.

    max_train_tokens: packed tokens per micro-batch; None: 2048 on CPU, 16384 on a GPU.
    max_prefill_tokens: prompt tokens prefilled at once. max_rows: samples decoding together.
    share_prompts: compute a prefix common to several sequences once.
    """

    max_train_tokens: int | None = None
    max_prefill_tokens: int = 4096
    max_rows: int = 256
    share_prompts: bool = True

    def __post_init__(self) -> None:
        for name in ("max_train_tokens", "max_prefill_tokens", "max_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value}: at least 1 is needed")


@dataclass
class _TrainRequest:
    job: TrainJob
    future: "Future[Any]"


@dataclass
class _CallRequest:
    """Anything that runs at once on the worker: an optimizer step, a save, a snapshot."""

    call: Callable[[], Any]
    future: "Future[Any]"


@dataclass
class ClientQueue:
    """The requests of one training client, in order."""

    waiting: deque[_TrainRequest | _CallRequest] = field(default_factory=deque)


class Engine:
    """One base model on one device."""

    def __init__(self, decoder: Decoder, model_name: str, options: EngineOptions) -> None:
        self.decoder = decoder
        self.model_name = model_name
        on_cpu = decoder.device.type == "cpu"
        self.trainer = Trainer(
            decoder,
            max_tokens=options.max_train_tokens or (2048 if on_cpu else 16384),
            share_prompts=options.share_prompts,
        )
        self.sampler = Sampler(
            decoder,
            max_prefill_tokens=options.max_prefill_tokens,
            max_rows=options.max_rows,
            decode=lambda tokens: self.tokenizer.decode(tokens),
            make_constraint=lambda schema: self._constraints(schema),
        )
        self._condition = threading.Condition()
        self._queues: list[ClientQueue] = []
        self._samples: deque[tuple[SampleJob, Future[SampleResponse]]] = deque()
        self._in_flight: dict[int, Future[SampleResponse]] = {}
        self._last_arrival = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="autodidact-engine", daemon=True)
        self._thread.start()

    # Sampling with token stops alone needs no tokenizer, and a tiny test model may have none.
    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.model_name)

    @cached_property
    def eos_tokens(self) -> frozenset[int]:
        """The model's end tokens: the generation config's, else the tokenizer's."""
        configured = getattr(self.decoder.hf_model.generation_config, "eos_token_id", None)
        if configured is None:
            configured = self.tokenizer.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        return frozenset(i for i in ids if i is not None)

    @cached_property
    def _constraints(self) -> ConstraintFactory:
        eos = min(self.eos_tokens, default=None)
        return ConstraintFactory(self.tokenizer, self.decoder.vocab_size, eos)

    # ----------------------------------------------------------------------------- client side

    def new_queue(self) -> ClientQueue:
        queue = ClientQueue()
        with self._condition:
            self._queues.append(queue)
        return queue

    def submit_train(self, queue: ClientQueue, job: TrainJob) -> APIFuture[Any]:
        return self._submit(queue, _TrainRequest(job, Future()))

    def submit_call(self, queue: ClientQueue, call: Callable[[], Any]) -> APIFuture[Any]:
        return self._submit(queue, _CallRequest(call, Future()))

    def _submit(self, queue: ClientQueue, request: _TrainRequest | _CallRequest) -> APIFuture[Any]:
        with self._condition:
            self._check_open()
            queue.waiting.append(request)
            self._arrived()
        return APIFuture(request.future)

    def submit_sample(self, job: SampleJob) -> APIFuture[SampleResponse]:
        future: Future[SampleResponse] = Future()
        job.on_done = lambda response: self._sample_done(job, response)
        with self._condition:
            self._check_open()
            self._samples.append((job, future))
            self._arrived()
        return APIFuture(future)

    def close(self) -> None:
        """Stops the worker after the request it is on; what still waits fails."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("the service was closed; make a new one with connect()")

    def _arrived(self) -> None:
        self._last_arrival = time.monotonic()
        self._condition.notify()

    # ----------------------------------------------------------------------------- worker side

    def _work(self) -> None:
        while True:
            with self._condition:
                while not (self._closed or self._waiting() or self.sampler.rows):
                    self._condition.wait()
                if self._closed:
                    break
            if self._waiting():
                self._linger()
            self._run_calls()
            self._run_training()
            self._run_calls()
            self._run_sampling()
        error = RuntimeError("the service was closed before this request ran")
        waiting = [request.future for queue in self._queues for request in queue.waiting]
        waiting += [future for _, future in self._samples]
        for future in [*waiting, *self._in_flight.values()]:
            _fail(future, error)

    def _waiting(self) -> bool:
        return bool(self._samples) or any(queue.waiting for queue in self._queues)

    def _linger(self) -> None:
        """Lets requests that arrive together run together."""
        started = time.monotonic()
        while True:
            now = time.monotonic()
            quiet = now - self._last_arrival
            if quiet >= _LINGER_SECONDS or now - started >= 10 * _LINGER_SECONDS:
                return
            time.sleep(_LINGER_SECONDS - quiet)

    def _take_heads(self, kind: type) -> list[Any]:
        with self._condition:
            heads = [queue for queue in self._queues if queue.waiting]
            return [q.waiting.popleft() for q in heads if isinstance(q.waiting[0], kind)]

    def _run_calls(self) -> None:
        while requests := self._take_heads(_CallRequest):
            for request in requests:
                if request.future.set_running_or_notify_cancel():
                    _resolve(request.future, request.call)

    def _run_training(self) -> None:
        requests = [
            request
            for request in self._take_heads(_TrainRequest)
            if request.future.set_running_or_notify_cancel()
        ]
        if not requests:
            return
        try:
            outputs = self.trainer.run([request.job for request in requests])
        except Exception as error:
            # one future per request: whatever went wrong belongs to the callers, not the worker
            logger.debug("training pass failed", exc_info=True)
            for request in requests:
                _fail(request.future, error)
            return
        for request, output in zip(requests, outputs, strict=True):
            request.future.set_result(output)

    def _run_sampling(self) -> None:
        admitted: list[SampleJob] = []
        with self._condition:
            while self._samples and self._fits(admitted, self._samples[0][0]):
                job, future = self._samples.popleft()
                if future.set_running_or_notify_cancel():
                    self._in_flight[id(job)] = future
                    admitted.append(job)
        try:
            if admitted:
                self.sampler.admit(admitted)
            if self.sampler.rows:
                self.sampler.step()
        except Exception as error:
            logger.debug("sampling failed", exc_info=True)
            for job in {id(j): j for j in [*admitted, *self.sampler.abandon()]}.values():
                future = self._in_flight.pop(id(job), None)
                if future is not None:
                    _fail(future, _explain(error))

    def _fits(self, admitted: list[SampleJob], job: SampleJob) -> bool:
        if not admitted:
            return self.sampler.has_room(job)
        planned = self.sampler.rows + sum(a.num_samples for a in admitted)
        return planned + job.num_samples <= self.sampler.max_rows

    def _sample_done(self, job: SampleJob, response: SampleResponse) -> None:
        self._in_flight.pop(id(job)).set_result(response)


def _resolve(future: "Future[Any]", call: Callable[[], Any]) -> None:
    try:
        result = call()
    except Exception as error:
        _fail(future, error)
    else:
        future.set_result(result)


def _fail(future: "Future[Any]", error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)


def _explain(error: Exception) -> Exception:
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return RequestFailedError(
            "out of memory while sampling; lower max_rows, num_samples or max_tokens", "server"
        )
    return error

