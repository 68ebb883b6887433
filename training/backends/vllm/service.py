"""connect("local", sampler="vllm"): trains in the local engine, samples with vLLM."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from training.adapter_proof import Judge, Probed
from training.api import (
    CLOSED,
    APIFuture,
    ForwardBackwardOutput,
    LoraConfig,
    ModelInput,
    SampleResponse,
    SamplingParams,
)
from training.backends.local.adapters import Adapter, AdapterWeights
from training.backends.local.engine import Engine
from training.backends.local.sampler import SampleJob
from training.backends.local.service import (
    LocalSamplingClient,
    LocalServiceClient,
    LocalTrainingClient,
)
from training.backends.local.trainer import TrainJob
from training.backends.vllm.calls import SampleCall
from training.backends.vllm.engine import VllmEngine, new_log
from training.backends.vllm.folders import AdapterFolder
from training.backends.vllm.mapping import check_temperature
from training.backends.vllm.options import VllmOptions, installed_version


class VllmServiceClient(LocalServiceClient):
    """See training.api.ServiceClient. vLLM starts when the first client of a base model is made,
    with room for an adapter of its rank; beside the base model itself, for one of the usual rank.
    """

    def __init__(self, *, sampler_options: Mapping[str, Any] | None = None, **local: Any) -> None:
        super().__init__(**local)
        self._vllm_options = _options(sampler_options or {})
        if self._vllm_options.sleep and self._device.type == "cpu":
            raise ValueError("sampler_options.sleep=true: vLLM can sleep on a GPU alone")
        installed_version(self._vllm_options)
        self._vllms: dict[str, VllmEngine] = {}
        self._closed = False

    def vllm(self, engine: Engine, rank: int = LoraConfig.rank) -> VllmEngine:
        """Raises RuntimeError where the service was closed."""
        with self._lock:
            if self._closed:
                raise RuntimeError(CLOSED)
            found = self._vllms.get(engine.model_name)
            if found is None:
                found = VllmEngine(
                    engine,
                    self._vllm_options,
                    rank=rank,
                    folder=self._checkpoint_dir,
                    log=new_log(self._checkpoint_dir),
                )
                # before it has started, for close() to find it
                self._vllms[engine.model_name] = found
                try:
                    found.start()
                except BaseException:
                    self._vllms.pop(engine.model_name, None)
                    found.close()
                    raise
        return found

    def new_sampling_client(
        self, engine: Engine, weights: AdapterWeights | None
    ) -> "VllmSamplingClient":
        if weights is None:
            vllm = self.vllm(engine)
            return VllmSamplingClient(engine, None, vllm, vllm.base)
        vllm = self.vllm(engine, weights.config.rank)
        vllm.require(weights.config)
        return VllmSamplingClient(engine, weights, vllm, vllm.add(weights))

    @property
    def tokens_sampled(self) -> int | None:
        """vLLM draws them, and tells when a sample is done."""
        return None

    def close(self) -> None:
        # without the lock, which is held while one starts
        self._closed = True
        for vllm in list(self._vllms.values()):
            vllm.close()
        self._vllms.clear()
        super().close()

    def _new_training_client(
        self, engine: Engine, adapter: Adapter, model_id: str
    ) -> "VllmTrainingClient":
        # what could not be sampled from is not to be trained
        self.vllm(engine, adapter.config.rank).require(adapter.config)
        return VllmTrainingClient(self, engine, adapter, model_id, self._checkpoint_dir)


class VllmTrainingClient(LocalTrainingClient):
    """See training.api.TrainingClient."""

    def __init__(
        self,
        service: VllmServiceClient,
        engine: Engine,
        adapter: Adapter,
        model_id: str,
        checkpoint_dir: Path,
    ) -> None:
        super().__init__(service, engine, adapter, model_id, checkpoint_dir)
        self._vllm_service = service

    def save_weights_and_probe(
        self, tokens: list[int], judge: Judge, *, with_answers: bool
    ) -> "APIFuture[VllmSamplingClient]":
        """Local extension: the local client's; vLLM is asked at once, whatever `with_answers`."""
        trained = self._trained(tokens)

        def make() -> VllmSamplingClient:
            client = self._vllm_service.new_sampling_client(self._engine, self._adapter.snapshot())
            if largest := self._adapter.size_of_b():
                client.tell(tokens, judge, largest, trained())
            return client

        return self._engine.submit_call(self._queue, make)

    def probe(
        self,
        sampler: LocalSamplingClient,
        tokens: list[int],
        judge: Judge,
        *,
        with_answers: bool = False,
    ) -> APIFuture[None]:
        """Local extension: as save_weights_and_probe(), of a sampler that there is."""
        assert isinstance(sampler, VllmSamplingClient)
        trained = self._trained(tokens)
        return self._engine.submit_call(
            self._queue, lambda: sampler.tell(tokens, judge, self._adapter.size_of_b(), trained())
        )

    def _submit(self, job: TrainJob) -> APIFuture[ForwardBackwardOutput]:
        vllm = self._vllm_service.vllm(self._engine)
        if vllm.sleeps:
            self._engine.submit_call(self._queue, vllm.sleep)
        return super()._submit(job)


class VllmSamplingClient(LocalSamplingClient):
    """See training.api.SamplingClient. The adapter's folder lives as long as this client and its
    requests. Samples begin at once, whether somebody waits or not."""

    def __init__(
        self,
        engine: Engine,
        weights: AdapterWeights | None,
        vllm: VllmEngine,
        adapter: AdapterFolder,
    ) -> None:
        super().__init__(engine, weights)
        self._vllm = vllm
        self._adapter = adapter

    def own_logprobs(self, prompt: ModelInput) -> APIFuture[list[float | None]]:
        """Local extension: compute_logprobs() by vLLM itself, where that one asks the local
        engine."""
        tokens = self.logprobs_job(prompt).prompt
        values = {"adapter": self._adapter.key, "prompt": tokens}
        future = self._vllm.ask("logprobs", values).future
        return APIFuture(future).map(lambda logprobs: [None, *logprobs])

    def probe(
        self,
        tokens: list[int],
        judge: Judge,
        *,
        size_of_b: float,
        with_answers_of: Sequence[LocalSamplingClient] = (),
    ) -> None:
        """Local extension: the local client's, at once. The local engine, which has the same
        weights, speaks for the trainer."""

        def look() -> None:
            self.tell(tokens, judge, size_of_b, self._of_engine(self, tokens))

        self._engine.submit_call(self._engine.new_queue(), look).result()

    def tell(self, tokens: list[int], judge: Judge, size_of_b: float, trained: np.ndarray) -> None:
        """On the worker: `judge` gets what vLLM says of `tokens`, beside the trainer's logprobs and
        the base model's here."""
        told = self.own_logprobs(ModelInput.from_ints(tokens)).result()
        sampled = np.array(told[1:], float)
        base = self._of_engine(LocalSamplingClient(self._engine, None), tokens)
        unknown = bool(np.isnan(sampled).any())
        judge(None if unknown else Probed(self.dtype, size_of_b, sampled, base, trained, False))

    def _of_engine(self, client: LocalSamplingClient, tokens: list[int]) -> np.ndarray:
        job = client.logprobs_job(ModelInput.from_ints(tokens))
        return self._engine.sampler.prompt_logprobs([job])[0]

    def _submit(self, job: SampleJob) -> APIFuture[SampleResponse]:
        if job.num_samples == 0:
            return super()._submit(job)
        return SampleCall(job, self._adapter, self._engine, self._vllm).api_future

    def _job(self, prompt: ModelInput, num_samples: int, params: SamplingParams) -> SampleJob:
        job = super()._job(prompt, num_samples, params)
        if num_samples:
            check_temperature(params.temperature)
            longest = self._vllm.max_model_len
            room = longest - len(job.prompt)
            if room < 1 or (params.max_tokens or 0) > room:
                raise ValueError(
                    f"prompt has {len(job.prompt)} tokens, and max_tokens={params.max_tokens}: "
                    f"vLLM holds {longest} tokens, prompt and answer together; give it more memory "
                    "(sampler_options.kv_cache_memory_bytes, or max_model_len)"
                )
            job.max_tokens = min(job.max_tokens, room)
        return job


def _options(given: Mapping[str, Any]) -> VllmOptions:
    allowed = [field.name for field in fields(VllmOptions)]
    if unknown := sorted(set(given) - set(allowed)):
        raise ValueError(f"sampler_options has {unknown}; allowed are {', '.join(allowed)}")
    return VllmOptions(**given)
