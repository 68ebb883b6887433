"""vLLM in a process and an environment of its own: nothing of this project is imported here.

Started by process.py as `python worker.py FD`, with one end of a socket pair. The first message is
the settings; then requests (number, kind, values) come in, and (number, outcome, value) go out,
where the outcome is "tokens" (of a request that streams), "done" or "error" with its kind and text.
One event loop drives vLLM; a thread reads.
"""

import asyncio
import contextlib
import itertools
import os
import sys
import threading
from collections.abc import AsyncIterator
from multiprocessing.connection import Connection
from typing import Any

# between looks whether vLLM's own process lives
LOOK_SECONDS = 1.0

# adapter: its unique name, its unique number from 1, its folder
AdapterKey = tuple[str, int, str]
# finish reason, token ids, logprobs, and the ids and logprobs of the k likeliest at each
Sampled = tuple[str | None, list[int], list[float], list[tuple[list[int], list[float]]]]


class Refused(Exception):
    """vLLM cannot do what is asked; `kind` is "user", "adapter" or "unsupported"."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


def sampled(completion: Any, k: int) -> Sampled:
    """Of a CompletionOutput, in plain values."""
    tokens = list(completion.token_ids)
    logprobs, likeliest = [], []
    for token, position in zip(tokens, completion.logprobs, strict=True):
        logprobs.append(float(position[token].logprob))
        if k:
            # the sampled token is there too, whatever its rank
            ranked = sorted(position.items(), key=lambda item: item[1].rank)[:k]
            likeliest.append(([t for t, _ in ranked], [float(p.logprob) for _, p in ranked]))
    return completion.finish_reason, tokens, logprobs, likeliest


class Worker:
    """`vllm` are the names of the package that are needed; `engine` its AsyncLLM."""

    def __init__(self, vllm: Any, engine: Any, connection: Connection) -> None:
        self._vllm = vllm
        self._engine = engine
        self._connection = connection
        self._added: dict[int, asyncio.Future[None]] = {}
        self._requests: dict[int, asyncio.Task[None]] = {}
        self._unnumbered = itertools.count(-1, -1)
        # (request, sample) -> the sample's own task
        self._samples: dict[tuple[int, int], asyncio.Task[Sampled]] = {}
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._asleep = False
        self._turn = asyncio.Lock()

    def receive(self, message: tuple[int, str, Any]) -> None:
        """Begins what it asks for, on the loop."""
        number, kind, values = message
        if kind == "cancel":
            if (task := self._requests.get(number)) is not None:
                task.cancel()
        elif kind == "enough":
            if (sample := self._samples.get((number, values))) is not None:
                sample.cancel()
        else:
            # nobody waits for those without a number; they must not share one
            number = number or next(self._unnumbered)
            self._requests[number] = asyncio.ensure_future(self._answer(number, kind, values))

    async def _answer(self, number: int, kind: str, values: Any) -> None:
        try:
            value = await getattr(self, f"_{kind}")(number, values)
        except asyncio.CancelledError:
            self._tell(number, "error", ("cancelled", ""))
        except Exception as error:
            self.exit_if_dead()
            kind = "user" if isinstance(error, self._vllm.VLLMValidationError) else "server"
            if isinstance(error, Refused):
                kind = error.kind
            self._tell(number, "error", (kind, f"{error}" or type(error).__name__))
        else:
            self._tell(number, "done", value)
        finally:
            del self._requests[number]

    def _tell(self, number: int, outcome: str, value: Any) -> None:
        self._connection.send((number, outcome, value))

    # ------------------------------------------------------------------------------------ requests

    async def _add(self, _number: int, adapter: AdapterKey) -> None:
        async with _Busy(self):
            await self._load(adapter)

    async def _remove(self, _number: int, adapter_number: int) -> None:
        if adapter_number in self._added:
            await asyncio.wait([self._added.pop(adapter_number)])
            await self._engine.remove_lora(adapter_number)

    async def _sample(self, number: int, values: dict[str, Any]) -> list[Sampled | None]:
        """None for a sample of which there was enough; of one that streams, its last part."""
        async with _Busy(self):
            await self._load(values["adapter"])
            tasks = []
            for index, seed in enumerate(values["seeds"]):
                one = asyncio.ensure_future(self._one(number, index, seed, values))
                self._samples[number, index] = one
                tasks.append(one)
            try:
                outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            except asyncio.CancelledError:
                # gather has cancelled them; each aborts its request when it ends
                await asyncio.wait(tasks)
                raise
            finally:
                for index in range(len(tasks)):
                    del self._samples[number, index]
        results: list[Sampled | None] = []
        for outcome in outcomes:
            if isinstance(outcome, asyncio.CancelledError):
                results.append(None)
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                results.append(outcome)
        return results

    async def _one(self, number: int, index: int, seed: int, values: dict[str, Any]) -> Sampled:
        given = dict(values["params"])
        k = given["logprobs"]
        if given["structured_outputs"] is not None:
            given["structured_outputs"] = self._vllm.StructuredOutputsParams(
                **given["structured_outputs"]
            )
        kinds = self._vllm.RequestOutputKind
        kind = kinds.DELTA if values["streams"] else kinds.FINAL_ONLY
        params = self._vllm.SamplingParams(n=1, seed=seed, output_kind=kind, **given)
        last: Sampled = (None, [], [], [])
        async for output in self._outputs(f"{number}-{index}", values, params):
            last = sampled(output.outputs[0], k)
            if values["streams"]:
                self._tell(number, "tokens", (index, last))
        return last

    async def _logprobs(self, number: int, values: dict[str, Any]) -> list[float]:
        """Of the prompt's tokens after the first, each as the only one that may follow those before
        it. vLLM's prompt logprobs end it (0.32) where samples run beside them: the adapters of the
        head are chosen by the rows of these."""
        tokens = values["prompt"]
        async with _Busy(self):
            await self._load(values["adapter"])
            return await asyncio.gather(
                *(self._of_token(f"{number}-{at}", at, values) for at in range(1, len(tokens)))
            )

    async def _sleep(self, _number: int, _values: None) -> None:
        """When nothing runs any more."""
        async with self._turn:
            if not self._asleep:
                await self._idle.wait()
                await self._engine.sleep(level=1)
                self._asleep = True

    # --------------------------------------------------------------------------------------- parts

    async def awake(self) -> None:
        async with self._turn:
            if self._asleep:
                await self._engine.wake_up()
                self._asleep = False
                # whatever became of the adapters meanwhile: they are read again
                for adapter_number in list(self._added):
                    await self._remove(0, adapter_number)

    def exit_if_dead(self) -> None:
        """vLLM does not come back; whoever waits learns it from the closed connection."""
        if self._engine.errored:
            os._exit(1)

    def begin(self) -> None:
        self._running += 1
        self._idle.clear()

    def end(self) -> None:
        self._running -= 1
        if not self._running:
            self._idle.set()

    async def _load(self, adapter: AdapterKey) -> None:
        """An adapter that vLLM cannot read is told here; in a request it would end vLLM."""
        name, number, path = adapter
        if number not in self._added:
            self._added[number] = asyncio.ensure_future(self._add_lora(name, number, path))
        added = self._added[number]
        try:
            await asyncio.shield(added)
        except Exception as error:
            self._added.pop(number, None)
            raise Refused("adapter", f"{error}") from error

    async def _add_lora(self, name: str, number: int, path: str) -> None:
        await self._engine.add_lora(self._vllm.LoRARequest(name, number, path))

    async def _of_token(self, request_id: str, at: int, values: dict[str, Any]) -> float:
        token = values["prompt"][at]
        params = self._vllm.SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprobs=0,
            allowed_token_ids=[token],
            detokenize=False,
            ignore_eos=True,
            output_kind=self._vllm.RequestOutputKind.FINAL_ONLY,
        )
        before = {**values, "prompt": values["prompt"][:at]}
        found = float("nan")
        async for output in self._outputs(request_id, before, params):
            found = float(output.outputs[0].logprobs[0][token].logprob)
        return found

    def _outputs(self, request_id: str, values: dict[str, Any], params: Any) -> AsyncIterator[Any]:
        return self._engine.generate(
            self._vllm.TokensPrompt(prompt_token_ids=values["prompt"]),
            params,
            request_id=request_id,
            lora_request=self._vllm.LoRARequest(*values["adapter"]),
        )


class _Busy:
    """While something runs, vLLM is awake and stays so."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker

    async def __aenter__(self) -> None:
        await self._worker.awake()
        self._worker.begin()

    async def __aexit__(self, *_exc: object) -> None:
        self._worker.end()


class Names:
    """What is needed of the package. Raises ImportError."""

    def __init__(self) -> None:
        import vllm  # pyrefly: ignore[missing-import]
        from vllm.exceptions import VLLMValidationError  # pyrefly: ignore[missing-import]
        from vllm.lora.request import LoRARequest  # pyrefly: ignore[missing-import]
        from vllm.sampling_params import (  # pyrefly: ignore[missing-import]
            RequestOutputKind,
            StructuredOutputsParams,
        )

        self.version = vllm.__version__
        self.AsyncEngineArgs = vllm.AsyncEngineArgs
        self.AsyncLLM = vllm.AsyncLLMEngine
        self.SamplingParams = vllm.SamplingParams
        self.TokensPrompt = vllm.TokensPrompt
        self.VLLMValidationError = VLLMValidationError
        self.LoRARequest = LoRARequest
        self.RequestOutputKind = RequestOutputKind
        self.StructuredOutputsParams = StructuredOutputsParams

    def model_class(self, model_config: Any) -> type:
        from vllm.model_executor.model_loader import get_model_cls  # pyrefly: ignore

        return get_model_cls(model_config)


def start(vllm: Any, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """vLLM's engine, and what is to be known of it. Raises Refused for a model that it cannot serve
    with adapters, before anything is loaded; then only its log tells why something failed."""
    try:
        config = vllm.AsyncEngineArgs(**settings).create_engine_config()
        model_class = vllm.model_class(config.model_config)
    except (ValueError, OSError, NotImplementedError) as error:
        raise Refused("unsupported", f"{error}") from error
    if not getattr(model_class, "supports_lora", False):
        raise Refused("unsupported", f"its class {model_class.__name__} takes no adapters")
    engine = vllm.AsyncLLM.from_vllm_config(config, disable_log_stats=True)
    info = {
        "version": vllm.version,
        "model_class": model_class.__name__,
        # auto-fitted to the memory that there is
        "max_model_len": config.model_config.max_model_len,
        "adapts_head": "lm_head" in getattr(model_class, "embedding_modules", {}),
    }
    return engine, info


async def serve(connection: Connection) -> None:
    """Until the other end is closed."""
    settings = connection.recv()
    try:
        vllm = Names()
        engine, info = start(vllm, settings)
    except ImportError as error:
        connection.send((0, "error", ("missing", f"{error}")))
        return
    except Refused as error:
        connection.send((0, "error", (error.kind, f"{error}")))
        return
    except Exception as error:
        connection.send((0, "error", ("start", f"{type(error).__name__}: {error}")))
        return
    loop = asyncio.get_running_loop()
    worker = Worker(vllm, engine, connection)
    closed = asyncio.Event()

    def read() -> None:
        try:
            while True:
                loop.call_soon_threadsafe(worker.receive, connection.recv())
        except (EOFError, OSError):
            loop.call_soon_threadsafe(closed.set)

    threading.Thread(target=read, daemon=True).start()
    connection.send((0, "done", info))
    while not closed.is_set():
        worker.exit_if_dead()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(closed.wait(), LOOK_SECONDS)
    engine.shutdown()


def main() -> None:
    descriptor = int(sys.argv[1])
    # vLLM's own processes must not hold it open
    os.set_inheritable(descriptor, False)
    asyncio.run(serve(Connection(descriptor)))


if __name__ == "__main__":
    main()
