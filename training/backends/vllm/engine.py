"""One base model in vLLM, beside the local engine that trains it."""

import logging
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from training.api import CLOSED
from training.backends.local.adapters import AdapterConfig, AdapterWeights
from training.backends.local.decoder import HEAD
from training.backends.local.engine import Engine
from training.backends.vllm.folders import AdapterFolder, AdapterFolders
from training.backends.vllm.options import INSTALL, VllmOptions, rank_size
from training.backends.vllm.process import (
    WORKER,
    OnTokens,
    RefusedError,
    StoppedError,
    VllmProcess,
)
from training.backends.vllm.start_check import PROBE_RANK, StartCheck, make_start_check
from training.models import lacks_tokenizer, resolve_model
from utils.config.errors import AT_ONCE

logger = logging.getLogger(__name__)

KV_CACHE_BYTES = 4 * 2**30


class Asked(NamedTuple):
    """A request, and how to tell that it, or one of its samples, is wanted no more."""

    future: "Future[Any]"
    tell: Callable[..., None]


class VllmEngine:
    """Begins to start when it is made; start() waits, and compares it with the local engine. It is
    started again once after its death: all its state are folders. close() ends it at any time."""

    def __init__(
        self, engine: Engine, options: VllmOptions, *, rank: int, folder: Path, log: Path
    ) -> None:
        self._engine = engine
        self._options = options
        self._log = log
        self._rank_size = rank_size(max(rank, PROBE_RANK))
        self._lock = threading.RLock()
        self._was_restarted = False
        self._closed = False
        self._check: StartCheck | None = None
        self.folders = AdapterFolders(folder, self._release)
        log.parent.mkdir(parents=True, exist_ok=True)
        self._process = self._begin()

    @property
    def max_model_len(self) -> int:
        return self._info["max_model_len"]

    @property
    def base(self) -> AdapterFolder:
        """The base model."""
        assert self._check is not None
        return self._check.base

    @property
    def sleeps(self) -> bool:
        return self._options.sleep

    @property
    def pid(self) -> int:
        return self._process.pid

    def start(self) -> None:
        """Raises ValueError where it cannot serve the model, StoppedError where it was closed."""
        started = time.perf_counter()
        try:
            self._info = self._process.ready.result(self._options.start_seconds)
            if self._check is None:
                adapts_head = self._info["adapts_head"]
                self._check = make_start_check(self._engine, self.folders, adapts_head=adapts_head)
            process = self._process
            distance = self._check.run(lambda kind, values: process.ask(kind, values)[1].result())
        except RefusedError as error:
            self._process.close()
            raise ValueError(_explained(error, self._engine.model_name, self._log)) from error
        except TimeoutError as error:
            self._process.close()
            raise ValueError(
                f"sampler='vllm': vLLM has not started within {self._options.start_seconds:g} s "
                f"(sampler_options.start_seconds); its log is {self._log}"
            ) from error
        except BaseException:
            # Ctrl-C too
            self._process.close()
            raise
        logger.info(
            "vLLM %s is ready after %.0f s: with an adapter, a test text's logprobs are %.2g nats "
            "at most (RMS %.2g) from the local engine's",
            *(self._info["version"], time.perf_counter() - started, *distance),
        )

    def require(self, config: AdapterConfig) -> None:
        """Makes room for adapters of this kind, if need be by a new start of vLLM. Raises
        ValueError where it cannot serve them."""
        if HEAD in config.targets and not self._info["adapts_head"]:
            raise ValueError(
                f"train_unembed=True: vLLM's {self._info['model_class']} takes no adapter on its "
                "output head; pass train_unembed=False, or sampler='local'"
            )
        size = rank_size(config.rank)
        with self._lock:
            if size > self._rank_size:
                logger.info("vLLM starts again, with room for adapters of rank %d", size)
                self._process.wait_until_idle()
                self._process.close()
                self._rank_size = size
                self._process = self._begin()
                self.start()

    def add(self, weights: AdapterWeights) -> AdapterFolder:
        """An adapter that vLLM has read. Raises ValueError where it cannot."""
        adapter = self.folders.write(self._engine, weights)
        try:
            self._answer("add", adapter.key)
        except RefusedError as error:
            raise ValueError(
                f"sampler='vllm': vLLM cannot serve this adapter ({error}); use sampler='local'"
            ) from error
        return adapter

    def ask(self, kind: str, values: Any, on_tokens: OnTokens | None = None) -> Asked:
        """Starts vLLM again where it has ended, once; who waits meanwhile is told."""
        with self._lock:
            if self._process.ended and not (self._was_restarted or self._closed):
                logger.warning("vLLM has ended; it is started again, once")
                self._was_restarted = True
                self._process.close()
                self._process = self._begin()
                self.start()
            process = self._process
        number, future = process.ask(kind, values, on_tokens)
        return Asked(future, lambda what, value=None: process.tell(number, what, value))

    def sleep(self) -> None:
        """When nothing runs any more, its weights leave the GPU; the next request wakes it."""
        self._answer("sleep", None)

    def close(self) -> None:
        self._closed = True
        # whoever waits for its start is told
        self._process.close()
        with self._lock:
            # one that was begun meanwhile
            self._process.close()
        self.folders.close()

    def _answer(self, kind: str, values: Any) -> None:
        """Waits for it; asks again where vLLM ends meanwhile."""
        try:
            self.ask(kind, values).future.result()
        except StoppedError:
            self.ask(kind, values).future.result()

    def _release(self, number: int) -> None:
        self._process.tell(0, "remove", number)

    def _begin(self) -> VllmProcess:
        if self._closed:
            raise StoppedError(CLOSED)
        # safe path: the worker's neighbours are no modules of others
        command = [self._options.interpreter, "-P", str(WORKER)]
        logger.info("vLLM starts, which may take a minute; its log is %s", self._log, extra=AT_ONCE)
        return VllmProcess(command, self._settings(), self._log)

    def _settings(self) -> Mapping[str, Any]:
        """Of AsyncEngineArgs."""
        options, name = self._options, self._engine.model_name
        dtype = self._engine.decoder.dtype_name
        return {
            "model": str(resolve_model(name)),
            "dtype": dtype,
            "skip_tokenizer_init": lacks_tokenizer(name),
            "seed": 0,
            # what fits
            "max_model_len": options.max_model_len or -1,
            "max_num_seqs": options.max_num_seqs,
            "enable_lora": True,
            "max_loras": options.max_loras,
            "max_cpu_loras": options.max_cpu_loras,
            "max_lora_rank": self._rank_size,
            # of the untempered softmax, which the losses use
            "logprobs_mode": "raw_logprobs",
            "max_logprobs": -1,
            "kv_cache_memory_bytes": options.kv_cache_memory_bytes or KV_CACHE_BYTES,
            "enable_sleep_mode": options.sleep,
            "enforce_eager": options.eager,
            # compact JSON, as the local sampler's
            "structured_outputs_config": {"backend": "guidance", "disable_any_whitespace": True},
            # nothing of the model's own sampling settings
            "generation_config": "vllm",
            **({} if dtype == "float32" else {"hf_overrides": {"head_dtype": "float32"}}),
        }


def _explained(error: RefusedError, model_name: str, log: Path) -> str:
    if error.kind == "missing":
        return f"sampler='vllm': vLLM cannot be imported ({error}); {INSTALL}"
    if error.kind == "unsupported":
        first = str(error).strip().split("\n", 1)[0]
        return (
            f"sampler='vllm': vLLM cannot serve {model_name} with adapters: {first}; use "
            "sampler='local'"
        )
    return f"sampler='vllm': vLLM does not start ({error}); its log is {log}"


def new_log(folder: Path) -> Path:
    return folder / f"vllm-{secrets.token_hex(4)}.log"
