"""One sample() request on its way through vLLM, and through the local engine for what that alone
can tell: prompt logprobs, and those of constrained samples, which vLLM takes from a masked softmax.
"""

import threading
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import numpy as np

from training.api import (
    APIFuture,
    RequestFailedError,
    SampledSequence,
    SampledToken,
    SampleResponse,
    StopReason,
    TopkLogprobs,
)
from training.backends.local.constraint import Constraint
from training.backends.local.engine import Engine
from training.backends.local.sampler import SampleJob, take_every_token
from training.backends.vllm.engine import Asked, VllmEngine
from training.backends.vllm.folders import AdapterFolder
from training.backends.vllm.mapping import (
    cut_where_finished,
    sample_seed,
    sequence,
    stop_reason,
    topk_arrays,
    vllm_params,
)
from training.backends.vllm.process import RefusedError, StoppedError


class SampleCall:
    """Begins when it is made. Holds the adapter's folder until it is answered."""

    def __init__(
        self, job: SampleJob, adapter: AdapterFolder, engine: Engine, vllm: VllmEngine
    ) -> None:
        self._job = job
        self._adapter = adapter
        self._engine = engine
        self._lock = threading.Lock()
        self._future: Future[SampleResponse] = Future()
        # what is cancelled ends as vLLM says
        self._future.set_running_or_notify_cancel()
        self._is_constrained = engine.make_constraint(job.params) is not None
        self._streams = job.on_token is not take_every_token
        self._samples = [_Sample(index) for index in range(job.num_samples)]
        # what the local engine has to tell
        self._local: list[APIFuture[SampleResponse]] = []
        self._parts_missing = 1
        self._prompt: SampleResponse | None = None
        if job.include_prompt_logprobs or job.topk_prompt_logprobs:
            self._parts_missing += 1
            self._ask_engine(replace(job, num_samples=0), self._prompt_known)
        self._vllm = vllm
        self._was_lost = False
        self._values = {
            "adapter": adapter.key,
            "prompt": job.prompt,
            "seeds": [sample_seed(job.seed, index) for index in range(job.num_samples)],
            "params": vllm_params(job, engine.eos_tokens),
            "streams": self._streams,
        }
        self._asked: Asked
        self._ask()

    @property
    def api_future(self) -> APIFuture[SampleResponse]:
        return APIFuture(self._future, lambda _future: self._wait(), self._cancel)

    def _wait(self) -> None:
        for future in list(self._local):
            future.start()

    def _cancel(self) -> None:
        self._job.cancel()
        self._asked.tell("cancel")
        for future in list(self._local):
            future.cancel()

    def _ask(self) -> None:
        # the first tokens may come before this is known
        with self._lock:
            self._asked = self._vllm.ask("sample", self._values, self._tokens_came)
        self._asked.future.add_done_callback(self._samples_came)

    def _ask_again(self) -> None:
        try:
            self._ask()
        except Exception as error:
            self._fail(error)
        if self._job.error is not None:
            # cancelled meanwhile
            self._asked.tell("cancel")

    # ------------------------------------------------------------------------ on vLLM's reader

    def _tokens_came(self, index: int, part: Any) -> None:
        with self._lock:
            asked = self._asked
        sample = self._samples[index]
        if sample.is_enough or self._future.done():
            return
        finish, tokens, logprobs, likeliest = part
        sample.add(finish, tokens, logprobs, likeliest)
        if self._is_constrained:
            # their logprobs are not known yet
            return
        try:
            wanted = self._tell_tokens(sample, len(tokens))
        except Exception as error:
            # what the caller's function raises is the caller's to hear
            self._fail(error)
            asked.tell("cancel")
            return
        if not wanted:
            sample.is_enough = True
            sample.finish = "stop"
            asked.tell("enough", index)

    def _tell_tokens(self, sample: "_Sample", num_new: int) -> bool:
        first = len(sample.tokens) - num_new
        for at in range(first, len(sample.tokens)):
            is_last = at == len(sample.tokens) - 1 and sample.finish is not None
            told = SampledToken(
                sample.tokens[at],
                sample.logprobs[at],
                sample.topk[at] if sample.topk else None,
                sample.index,
                stop_reason(sample.finish) if is_last else None,
            )
            if not self._job.on_token(told):
                sample.cut(at + 1)
                return False
        return True

    def _samples_came(self, future: "Future[Any]") -> None:
        try:
            for sample, result in zip(self._samples, future.result(), strict=True):
                if not self._streams:
                    sample.add(*result)
            if self._is_constrained:
                with self._lock:
                    self._parts_missing += len(self._samples)
                for sample in self._samples:
                    self._score(sample)
            self._part_is_known()
        except RefusedError as error:
            category = "user" if error.kind in ("user", "adapter") else "server"
            self._fail(RequestFailedError(f"vLLM: {error}", category))
        except StoppedError as error:
            # what was told cannot be taken back
            if self._streams or self._was_lost:
                self._fail(error)
                return
            self._was_lost = True
            # this thread is the lost process's, and a new start waits for it
            threading.Thread(target=self._ask_again, name="vllm-again", daemon=True).start()
        except Exception as error:
            self._fail(error)

    def _score(self, sample: "_Sample") -> None:
        """Asks the trainer's engine for the logprobs of a constrained sample, which ends where the
        local sampler's would."""
        constraint: Constraint | None = self._engine.make_constraint(self._job.params)
        assert constraint is not None
        tokens, sample.finish = cut_where_finished(
            sample.tokens, stop_reason(sample.finish), constraint
        )
        sample.cut(len(tokens))
        length = len(self._job.prompt)

        def known(response: SampleResponse) -> None:
            assert response.prompt_logprobs_np is not None
            sample.logprobs = response.prompt_logprobs_np[length:].tolist()
            topk = response.topk_prompt_logprobs_np
            sample.topk = [] if topk is None else _rows(topk, length)
            if self._streams:
                self._tell_tokens(sample, len(sample.tokens))

        scored = replace(
            self._job,
            prompt=self._job.prompt + tokens,
            num_samples=0,
            include_prompt_logprobs=True,
            topk_prompt_logprobs=self._job.topk_sample_logprobs,
        )
        self._ask_engine(scored, known)
        # nothing else will come that it could share a pass with
        self._local[-1].start()

    # ---------------------------------------------------------------------------------- answers

    def _prompt_known(self, response: SampleResponse) -> None:
        self._prompt = response

    def _ask_engine(self, job: SampleJob, known: Any) -> None:
        future = self._engine.submit_sample(job)
        self._local.append(future)

        def done(source: "Future[SampleResponse]") -> None:
            try:
                known(source.result())
                self._part_is_known()
            except Exception as error:
                self._fail(error)

        future.future().add_done_callback(done)

    def _part_is_known(self) -> None:
        with self._lock:
            self._parts_missing -= 1
            if self._parts_missing or self._future.done():
                return
        prompt = self._prompt
        self._future.set_result(
            SampleResponse(
                sequences=[sample.sequence() for sample in self._samples],
                prompt_logprobs_np=None if prompt is None else prompt.prompt_logprobs_np,
                topk_prompt_logprobs_np=None if prompt is None else prompt.topk_prompt_logprobs_np,
            )
        )

    def _fail(self, error: Exception) -> None:
        with self._lock:
            if not self._future.done():
                self._future.set_exception(error)


class _Sample:
    """One of the request's samples, as far as it is known."""

    def __init__(self, index: int) -> None:
        self.index = index
        self.finish: str | None = None
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.topk: list[tuple[np.ndarray, np.ndarray]] = []
        self.is_enough = False

    def add(
        self, finish: str | None, tokens: list[int], logprobs: list[float], likeliest: Any
    ) -> None:
        self.finish = finish
        self.tokens += tokens
        self.logprobs += logprobs
        self.topk += topk_arrays(likeliest)

    def cut(self, length: int) -> None:
        del self.tokens[length:], self.logprobs[length:], self.topk[length:]

    def sequence(self) -> SampledSequence:
        reason: StopReason = stop_reason(self.finish)
        return sequence(self.index, reason, self.tokens, self.logprobs, self.topk)


def _rows(topk: TopkLogprobs, start: int) -> list[tuple[np.ndarray, np.ndarray]]:
    return [
        (ids, logprobs)
        for ids, logprobs in zip(topk.token_ids[start:], topk.logprobs[start:], strict=True)
    ]
