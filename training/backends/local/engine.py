"""The worker that owns the device: takes what waits, runs it together, resolves futures.

Requests of one client run in order. forward and forward_backward requests of different clients
that are next in line run as one pass; samples of different clients decode in one batch, which new
requests join between tokens.

Requests are collected until somebody waits for a result; then all that were made so far run. So
requests submitted together run together, and what runs with what depends on the program alone, not
on timing: a program with one thread computes the same bits every time. Requests that nobody waits
for start by themselves after a short while.

One thread: the model is loaded on the worker too, and callers do no large torch operations. On CPU
every thread that does gets a pool of OpenMP threads of its own; with more of those than cores,
libgomp stops spinning between operations, and decoding takes a third longer.
"""

import atexit
import contextlib
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

from training.api import (
    CLOSED,
    CLOSED_BEFORE,
    APIFuture,
    RequestFailedError,
    SampleResponse,
    SamplingParams,
)
from training.backends.local.constraint import Constraint, ConstraintFactory
from training.backends.local.decoder import Decoder
from training.backends.local.options import EngineOptions
from training.backends.local.sampler import SampleJob, Sampler
from training.backends.local.trainer import NotFiniteError, Trainer, TrainJob
from training.models import load_tokenizer

logger = logging.getLogger(__name__)

# Requests that nobody waits for start when none has come for this long.
_UNATTENDED_SECONDS = 1.0
# What an idle worker waits for more requests: in parts of the time for which it worked before, and
# how often that, where requests keep coming.
_GATHER_SHARE = 0.02
_GATHER_MOST = 10


@dataclass
class _TrainRequest:
    job: TrainJob
    future: "Future[Any]"
    arrival: int = 0
    # of its client
    number: int = 0


@dataclass
class _CallRequest:
    """Anything that runs at once on the worker: an optimizer step, a save, a snapshot."""

    call: Callable[[], Any]
    future: "Future[Any]"
    arrival: int = 0
    number: int = 0


@dataclass
class ClientQueue:
    """The requests of one training client, in order."""

    number: int
    waiting: deque[_TrainRequest | _CallRequest] = field(default_factory=deque)


class Engine:
    """One base model on one device."""

    decoder: Decoder
    trainer: Trainer
    sampler: Sampler

    def __init__(
        self,
        load: Callable[[], Decoder],
        model_name: str,
        options: EngineOptions,
        *,
        loads_with_transformers: bool = True,
    ) -> None:
        """Returns when load(), called on the worker, is done; raises what it raises. Where it does
        so without transformers, the tokenizer is loaded meanwhile: two threads that import
        transformers would see each other's half of it."""
        self.model_name = model_name
        self._options = options
        self._condition = threading.Condition()
        # those that have requests, by the clients' order of creation
        self._queues: dict[int, ClientQueue] = {}
        self._num_clients = 0
        # whose requests are in the pass that runs: what they asked next waits for its end
        self._in_pass: set[int] = set()
        self._samples: deque[tuple[SampleJob, Future[SampleResponse], int]] = deque()
        self._in_flight: dict[int, Future[SampleResponse]] = {}
        self._arrivals = 0
        self._last_arrival = 0.0
        # what somebody waits for, and the last request made before that wait began
        self._awaited: list[Future[Any]] = []
        self._limit = 0
        # when the worker began after it was idle, how long it then worked on passes, and whether
        # it has since
        self._began = time.monotonic()
        self._busy_seconds = 0.0
        self._had_pass = False
        self._closed = False
        loaded: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(load, loaded), name="autodidact-engine", daemon=True
        )
        self._thread.start()
        if not loads_with_transformers:
            # importing its classes takes as long as reading the weights; where they are damaged,
            # whoever asks for them is told
            with contextlib.suppress(ValueError):
                _ = self.tokenizer
        loaded.result()
        # a worker that the interpreter's end stops inside torch would abort the process
        atexit.register(self.close)

    # Sampling with token stops alone needs no tokenizer, and a tiny test model may have none.
    @cached_property
    def tokenizer(self) -> Any:
        return load_tokenizer(self.model_name)

    @cached_property
    def eos_tokens(self) -> frozenset[int]:
        """The model's end tokens: the generation config's, else the tokenizer's."""
        ids = self.decoder.eos_token_ids
        if ids is None:
            ids = [self.tokenizer.eos_token_id]
        return frozenset(i for i in ids if i is not None)

    @cached_property
    def _constraints(self) -> ConstraintFactory:
        eos = min(self.eos_tokens, default=None)
        return ConstraintFactory(self.tokenizer, self.decoder.vocab_size, eos)

    def decode(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens)

    def make_constraint(self, params: SamplingParams) -> Constraint | None:
        """What `params` ask for, if anything. Raises ValueError for a schema or a grammar that
        llguidance does not understand."""
        if params.json_schema is None and params.grammar is None:
            return None
        return self._constraints(params)

    # ----------------------------------------------------------------------------- client side

    def new_queue(self) -> ClientQueue:
        with self._condition:
            self._num_clients += 1
            return ClientQueue(self._num_clients)

    def submit_train(self, queue: ClientQueue, job: TrainJob) -> APIFuture[Any]:
        return self._submit(queue, _TrainRequest(job, Future()))

    def submit_call(self, queue: ClientQueue, call: Callable[[], Any]) -> APIFuture[Any]:
        return self._submit(queue, _CallRequest(call, Future()))

    def _submit(self, queue: ClientQueue, request: _TrainRequest | _CallRequest) -> APIFuture[Any]:
        with self._condition:
            request.arrival, request.number = self._arrived(), queue.number
            queue.waiting.append(request)
            self._queues[queue.number] = queue
        return APIFuture(request.future, self._wait_for)

    def submit_sample(self, job: SampleJob) -> APIFuture[SampleResponse]:
        future: Future[SampleResponse] = Future()

        def end(settle: Callable[[Future[SampleResponse]], None]) -> None:
            # rows of a cancelled job may leave one after the other
            if self._in_flight.pop(id(job), None) is not None:
                settle(future)

        job.on_done = lambda response: end(lambda known: known.set_result(response))
        job.on_error = lambda error: end(lambda known: known.set_exception(error))
        with self._condition:
            self._samples.append((job, future, self._arrived()))
        return APIFuture(future, self._wait_for, job.cancel)

    def _wait_for(self, future: "Future[Any]") -> None:
        with self._condition:
            self._awaited.append(future)
            self._limit = self._arrivals
            self._condition.notify()

    def close(self) -> None:
        """Stops the worker after the request it is on; what still waits fails."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        self._thread.join()
        atexit.unregister(self.close)

    def _arrived(self) -> int:
        if self._closed:
            raise RuntimeError(CLOSED)
        self._arrivals += 1
        self._last_arrival = time.monotonic()
        self._condition.notify()
        return self._arrivals

    # ----------------------------------------------------------------------------- worker side

    def _run(self, load: Callable[[], Decoder], loaded: "Future[None]") -> None:
        _resolve(loaded, lambda: self._build(load()))
        if loaded.exception() is None:
            self._work()

    def _build(self, decoder: Decoder) -> None:
        options = self._options
        self.decoder = decoder
        self.trainer = Trainer(
            decoder,
            max_tokens=options.max_train_tokens
            or (2048 if decoder.device.type == "cpu" else 16384),
            share_prompts=options.share_prompts,
        )
        self.sampler = Sampler(
            decoder,
            max_prefill_tokens=options.max_prefill_tokens,
            max_rows=options.max_rows,
            make_constraint=self.make_constraint,
        )

    def _work(self) -> None:
        while (limit := self._next_limit()) is not None:
            self._run_calls(limit)
            if self._run_training(limit):
                self._decode_while_training()
            self._run_calls(limit)
            self._run_sampling(limit)
        error = RuntimeError(CLOSED_BEFORE)
        waiting = [request.future for queue in self._queues.values() for request in queue.waiting]
        waiting += [future for _, future, _ in self._samples]
        for future in [*waiting, *self._in_flight.values()]:
            _fail(future, error)

    def _next_limit(self) -> int | None:
        """Blocks until there is work; the last request that may run now, or None when closed."""
        with self._condition:
            is_idle = False
            while not self._closed:
                self._awaited = [future for future in self._awaited if not future.done()]
                if self._awaited:
                    if is_idle:
                        self._gather()
                        self._began = time.monotonic()
                    return self._limit
                timeout = None
                if self._samples or self.sampler.rows or self._queues:
                    timeout = self._last_arrival + _UNATTENDED_SECONDS - time.monotonic()
                    if timeout <= 0:
                        return self._arrivals
                if self._had_pass:
                    self._busy_seconds = time.monotonic() - self._began
                    self._had_pass = False
                is_idle = True
                self._condition.wait(timeout)
        return None

    def _gather(self) -> None:
        """Waits for requests that come right after the first of a pass."""
        quiet = min(self._options.gather_seconds, _GATHER_SHARE * self._busy_seconds)
        latest = time.monotonic() + _GATHER_MOST * quiet
        while not self._closed and self._has_pass():
            left = min(self._last_arrival + quiet, latest) - time.monotonic()
            if left <= 0:
                break
            self._condition.wait(left)

    def _has_pass(self) -> bool:
        heads = (queue.waiting[0] for queue in self._queues.values())
        return bool(self._samples) or any(isinstance(head, _TrainRequest) for head in heads)

    def _take_heads(self, kind: type, limit: int) -> list[Any]:
        with self._condition:
            taken = []
            for number, queue in sorted(self._queues.items()):
                if number in self._in_pass:
                    continue
                head = queue.waiting[0]
                if head.arrival <= limit and isinstance(head, kind):
                    taken.append(queue.waiting.popleft())
                    if not queue.waiting:
                        del self._queues[number]
            return taken

    def _run_calls(self, limit: int) -> None:
        while requests := self._take_heads(_CallRequest, limit):
            for request in requests:
                if request.future.set_running_or_notify_cancel():
                    _resolve(request.future, request.call)

    def _run_training(self, limit: int) -> bool:
        """Whether there was a pass."""
        requests = [
            request
            for request in self._take_heads(_TrainRequest, limit)
            if request.future.set_running_or_notify_cancel()
        ]
        had_requests = bool(requests)
        self._had_pass |= had_requests
        self._in_pass = {request.number for request in requests}
        while requests:
            try:
                outputs = self.trainer.run(
                    [request.job for request in requests], self._decode_while_training
                )
            except NotFiniteError as error:
                # the fault of one request: it fails alone, and the others run without it
                [culprit] = [request for request in requests if request.job is error.job]
                requests.remove(culprit)
                _fail(culprit.future, error)
            except Exception as error:
                # one future per request: whatever went wrong belongs to the callers, not the worker
                logger.debug("training pass failed", exc_info=True)
                for request in requests:
                    _fail(request.future, error)
                break
            else:
                for request, output in zip(requests, outputs, strict=True):
                    request.future.set_result(output)
                break
        self._in_pass = set()
        return had_requests

    def _decode_while_training(self) -> None:
        for _ in range(self._options.decode_steps_while_training):
            # who comes with an optimizer step or a snapshot now samples beside the others
            self._run_calls(self._limit)
            self._run_sampling(self._limit)
            if not self.sampler.rows:
                break

    def _run_sampling(self, limit: int) -> None:
        admitted: list[SampleJob] = []
        with self._condition:
            while (
                self._samples
                and self._samples[0][2] <= limit
                and self._fits(admitted, self._samples[0][0])
            ):
                job, future, _ = self._samples.popleft()
                if future.set_running_or_notify_cancel():
                    self._in_flight[id(job)] = future
                    admitted.append(job)
        try:
            if admitted:
                self._had_pass = True
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
        if self._options.decode_steps_while_training:
            tokens = sum(len(a.prompt) for a in admitted) + len(job.prompt)
            if tokens > self._options.max_prefill_tokens:
                return False
        planned = self.sampler.rows + sum(a.num_samples for a in admitted)
        return planned + job.num_samples <= self.sampler.max_rows


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
