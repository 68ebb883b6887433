"""A package `vllm` for the worker of the vLLM sampler, in its process: the names that it uses, over
the local engine. $FAKE_VLLM says what is wrong with it.

As the real one it appends an end token to constrained samples and gives them logprobs of another
softmax.
"""

import asyncio
import os
import sys
import time
import types
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from training import api

__version__ = "0.32.0"
WRONG = os.environ.get("FAKE_VLLM", "").split(",")
TOKEN_SECONDS = 0.01


def install(folder: Path) -> None:
    """Makes `folder` one that has this package, for PYTHONPATH."""
    folder.mkdir()
    (folder / "vllm.py").write_text(Path(__file__).read_text())
    about = folder / "vllm-0.32.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0\n")


class VLLMValidationError(ValueError):
    pass


class LoRARequest:
    def __init__(self, lora_name: str, lora_int_id: int, lora_path: str) -> None:
        self.lora_name, self.lora_int_id, self.lora_path = lora_name, lora_int_id, lora_path


class RequestOutputKind:
    DELTA, FINAL_ONLY = "delta", "final"


class StructuredOutputsParams(SimpleNamespace):
    pass


class SamplingParams(SimpleNamespace):
    pass


def TokensPrompt(prompt_token_ids: list[int]) -> dict[str, list[int]]:
    return {"prompt_token_ids": prompt_token_ids}


class Model:
    supports_lora = "no adapters" not in WRONG
    embedding_modules = {} if "no head" in WRONG else {"lm_head": "output_embeddings"}


class AsyncEngineArgs:
    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def create_engine_config(self) -> SimpleNamespace:
        if "unknown architecture" in WRONG:
            raise ValueError("Model architectures ['Odd'] are not supported for now\nmore")
        length = self.settings["max_model_len"]
        model_config = SimpleNamespace(max_model_len=256 if length == -1 else length)
        return SimpleNamespace(settings=self.settings, model_config=model_config)


class AsyncLLMEngine:
    errored = False

    def __init__(self, settings: dict[str, Any]) -> None:
        from training.backends.local.service import LocalServiceClient

        print("fake vLLM starts", flush=True)
        self._settings = settings
        self._service = LocalServiceClient(dtype=settings["dtype"], device="cpu")
        self._loaded: dict[int, api.SamplingClient] = {}
        self._generating = 0
        self._asleep = False
        self._base = self._service.create_sampling_client(base_model=settings["model"])

    @classmethod
    def from_vllm_config(
        cls, config: SimpleNamespace, *, disable_log_stats: bool
    ) -> "AsyncLLMEngine":
        if "starts for long" in WRONG:
            time.sleep(600)
        if "does not start" in WRONG:
            raise RuntimeError("Engine core initialization failed")
        return cls(config.settings)

    async def add_lora(self, request: LoRARequest) -> bool:
        if "refuses adapters" in WRONG and request.lora_int_id > 2:
            raise RuntimeError("Call to add_lora method failed: no room")
        self._loaded[request.lora_int_id] = self._service.create_sampling_client(
            request.lora_path, self._settings["model"]
        )
        return True

    async def remove_lora(self, number: int) -> bool:
        return self._loaded.pop(number, None) is not None

    async def sleep(self, level: int) -> None:
        assert not self._generating and not self._asleep
        print(f"asleep at level {level}", flush=True)
        # nothing survives that need not
        self._asleep, self._loaded = True, {}

    async def wake_up(self) -> None:
        assert self._asleep
        print("awake", flush=True)
        self._asleep = False

    async def generate(
        self,
        prompt: dict[str, list[int]],
        sampling_params: SamplingParams,
        request_id: str,
        lora_request: LoRARequest,
    ) -> AsyncIterator[SimpleNamespace]:
        assert request_id and not self._asleep
        self._generating += 1
        try:
            async for output in self._generate(prompt, sampling_params, lora_request):
                yield output
        finally:
            self._generating -= 1

    async def _generate(
        self, prompt: dict[str, list[int]], params: SamplingParams, lora_request: LoRARequest
    ) -> AsyncIterator[SimpleNamespace]:
        # raises where the adapter was not added before
        client = self._loaded[lora_request.lora_int_id]
        if "ignores adapters" in WRONG:
            client = self._base
        text = api.ModelInput.from_ints(prompt["prompt_token_ids"])
        # as it does with an adapter of the head, beside samples
        assert not hasattr(params, "prompt_logprobs"), "einsum(): subscript b has size 29"
        if hasattr(params, "allowed_token_ids"):
            [token] = params.allowed_token_ids
            logprobs = await client.compute_logprobs(
                api.ModelInput.from_ints([*text.to_ints(), token])
            )
            told = [{token: SimpleNamespace(logprob=logprobs[-1], rank=1)}]
            completion = SimpleNamespace(finish_reason="length", token_ids=[token], logprobs=told)
            yield SimpleNamespace(outputs=[completion])
            return
        if params.max_tokens == 13:
            raise VLLMValidationError("13 is no good number")
        yield_all = params.output_kind == RequestOutputKind.FINAL_ONLY
        async for part in self._parts(client, text, params):
            if not yield_all:
                yield part
                await asyncio.sleep(TOKEN_SECONDS)
        if yield_all:
            yield part

    async def _parts(
        self, client: Any, text: api.ModelInput, params: SamplingParams
    ) -> AsyncIterator[SimpleNamespace]:
        structured = params.structured_outputs
        [sequence] = (
            await client.sample(
                text,
                1,
                api.SamplingParams(
                    max_tokens=params.max_tokens,
                    seed=params.seed,
                    temperature=params.temperature,
                    top_k=params.top_k,
                    top_p=params.top_p,
                    min_p=params.min_p,
                    stop=[*params.stop, *params.stop_token_ids],
                    json_schema=getattr(structured, "json", None),
                    grammar=getattr(structured, "grammar", None),
                ),
                topk_sample_logprobs=max(1, params.logprobs),
            )
        ).sequences
        tokens, logprobs = sequence.tokens, np.array(sequence.logprobs)
        finish = sequence.stop_reason
        topk = sequence.topk_logprobs
        if structured is not None:
            logprobs = logprobs + 1.0
            if finish == "stop":
                end = min(client.eos_tokens)
                tokens, logprobs = [*tokens, end], [*logprobs, 0.0]
                topk = [*topk, [(end, 0.0)]]
        positions = []
        for token, logprob, likeliest in zip(tokens, logprobs, topk, strict=True):
            # the chosen token first, whatever its rank, as vLLM has it
            position = {token: SimpleNamespace(logprob=logprob, rank=99)}
            for rank, (other, value) in enumerate(likeliest, 1):
                position[other] = SimpleNamespace(
                    logprob=logprob if other == token else value, rank=rank
                )
            positions.append(position)
        if "loses samples" in WRONG:
            finish = "abort"
        one_by_one = params.output_kind == RequestOutputKind.DELTA
        size = 1 if one_by_one else len(tokens)
        for start in range(0, len(tokens), size):
            stop = start + size
            completion = SimpleNamespace(
                finish_reason=finish if stop >= len(tokens) else None,
                token_ids=tokens[start:stop],
                logprobs=positions[start:stop],
            )
            yield SimpleNamespace(outputs=[completion])

    def shutdown(self) -> None:
        self._service.close()


def _module(name: str, **names: Any) -> None:
    module = types.ModuleType(f"vllm.{name}")
    vars(module).update(names)
    sys.modules[f"vllm.{name}"] = module


if __name__ == "vllm":
    _module("exceptions", VLLMValidationError=VLLMValidationError)
    _module("lora")
    _module("lora.request", LoRARequest=LoRARequest)
    _module(
        "sampling_params",
        RequestOutputKind=RequestOutputKind,
        StructuredOutputsParams=StructuredOutputsParams,
    )
    _module("model_executor")
    _module("model_executor.model_loader", get_model_cls=lambda _config: Model)
