"""The service client behind the server, with what only some backends have.

Every backend can train and sample. What the local one can do besides (check a request before it is
queued, write checkpoints where it is told, show tokens as they come) is asked for by name, and
where it is missing the plain call does, or an error says what is missing.
"""

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from training.api import (
    APIFuture,
    Datum,
    LoraConfig,
    ModelInput,
    SampledToken,
    SampleResponse,
    SamplingClient,
    SamplingParams,
    ServiceClient,
    TrainingClient,
)
from training.serving.errors import bad_request, server_fault

# of the memory that is free, for one more adapter
_SHARE_FOR_ADAPTERS = 0.5

Make = Callable[[], APIFuture[Any]]
OnToken = Callable[[SampledToken], bool]


class Backend:
    """Calls block: a base model is loaded with its first use."""

    def __init__(self, service: ServiceClient) -> None:
        self._service = service

    def create(self, source: str, lora: LoraConfig) -> TrainingClient:
        """Raises ServingError (400) where there is no room for it."""
        self._check_room(source, lora)
        return self._service.create_lora_training_client(
            source,
            rank=lora.rank,
            seed=lora.seed,
            train_mlp=lora.train_mlp,
            train_attn=lora.train_attn,
            train_unembed=lora.train_unembed,
        )

    def load(
        self, folder: Path, source: str, lora: LoraConfig, *, with_optimizer: bool
    ) -> TrainingClient:
        """As create(); `lora` is what the folder has."""
        self._check_room(source, lora)
        load = self._service.create_training_client_from_state
        if with_optimizer:
            load = self._service.create_training_client_from_state_with_optimizer
        return load(str(folder), source)

    def sampler(self, source: str, folder: Path | None) -> SamplingClient:
        return self._service.create_sampling_client(
            model_path=None if folder is None else str(folder), base_model=source
        )

    def context_length(self, source: str) -> int | None:
        """Of a base model that is loaded; None where the backend does not tell."""
        for model in self._service.get_server_capabilities().supported_models:
            if model.model_name == source:
                return model.max_context_length
        return None

    def fingerprint(self, source: str) -> str:
        """Of a base model's weights, where the backend can tell, else its name."""
        engine = getattr(self._service, "engine", None)
        return source if engine is None else engine(source).decoder.fingerprint

    @property
    def tokens_trained(self) -> int | None:
        """Since it started, up to now; None where the backend does not tell before a pass ends."""
        return getattr(self._service, "tokens_trained", None)

    @property
    def tokens_sampled(self) -> int | None:
        """As tokens_trained, of what was sampled."""
        return getattr(self._service, "tokens_sampled", None)

    def close(self) -> None:
        self._service.close()

    def _check_room(self, source: str, lora: LoraConfig) -> None:
        adapter_memory = getattr(self._service, "adapter_memory", None)
        if adapter_memory is None:
            return
        memory = adapter_memory(
            source,
            lora.rank,
            train_mlp=lora.train_mlp,
            train_attn=lora.train_attn,
            train_unembed=lora.train_unembed,
        )
        # what is left is for passes and samples
        if memory.free is not None and memory.needed > _SHARE_FOR_ADAPTERS * memory.free:
            raise bad_request(
                f"rank: an adapter of rank {lora.rank} needs {memory.needed / 1e6:,.0f} MB to "
                f"train, and {memory.free / 1e6:,.0f} MB of the server's memory are free, of which "
                f"adapters may take {_SHARE_FOR_ADAPTERS:.0%}; unload a model, finish a session, "
                "or use a lower rank",
                param="rank",
            )


def prepare_training(
    client: TrainingClient,
    data: list[Datum],
    loss_fn: Any,
    loss_fn_config: dict[str, float | str],
    *,
    forward_only: bool,
) -> Make:
    """The request, checked where the backend can: call what comes back to queue it."""
    name = "forward" if forward_only else "forward_backward"
    prepare = getattr(client, f"prepare_{name}", None)
    if prepare is not None:
        return prepare(data, loss_fn, loss_fn_config)
    call = getattr(client, name)
    return lambda: call(data, loss_fn, loss_fn_config)


def prepare_sample(
    client: SamplingClient,
    prompt: ModelInput,
    num_samples: int,
    params: SamplingParams,
    *,
    include_prompt_logprobs: bool = False,
    topk_prompt_logprobs: int = 0,
    topk_sample_logprobs: int = 0,
    on_token: OnToken | None = None,
) -> Make:
    """As prepare_training(). A backend that does not show tokens as they come shows them all when
    the answer is there."""
    asked = (
        prompt,
        num_samples,
        params,
        include_prompt_logprobs,
        topk_prompt_logprobs,
        topk_sample_logprobs,
    )
    prepare = getattr(client, "prepare_sample", None)
    if prepare is not None:
        return prepare(*asked, on_token=on_token)
    if on_token is None:
        return lambda: client.sample(*asked)
    return lambda: client.sample(*asked).map(lambda response: _shown(response, on_token))


def save(client: TrainingClient, folder: Path, *, with_optimizer: bool) -> APIFuture[Any]:
    """Writes the adapter to `folder`, whole or not at all."""
    save_into = getattr(client, "save_into", None)
    if save_into is None:
        raise server_fault(
            "this server's backend keeps checkpoints of its own, and cannot write them into the "
            "server's store; serve the local backend to save and load"
        )
    return save_into(folder, with_optimizer=with_optimizer)


def done(value: Any) -> APIFuture[Any]:
    """A request that needs no engine."""
    future: Future[Any] = Future()
    future.set_result(value)
    return APIFuture(future)


def context_overflow(prompt: int, max_tokens: int, context: int) -> str | None:
    """What to say where a prompt and its answer are longer than the model reads. The cookbook's
    capture proxy knows it by `N prompt tokens + M max_tokens > C`, the hosted service's form."""
    if prompt + max_tokens <= context:
        return None
    return (
        "the prompt and its answer are longer than the model's context: "
        f"{prompt} prompt tokens + {max_tokens} max_tokens > {context}"
    )


def check_context(prompt: int, max_tokens: int | None, context: int | None) -> None:
    """Raises ServingError (400): nothing is cut short in silence."""
    if context is None:
        return
    # without max_tokens an answer ends where the context does, but it has one token at least
    told = context_overflow(prompt, max_tokens or 1, context)
    if told is not None:
        raise bad_request(told, param="max_tokens", code="context_length_exceeded")


def _shown(response: SampleResponse, on_token: OnToken) -> SampleResponse:
    for number, sequence in enumerate(response.sequences):
        tokens = sequence.tokens
        logprobs = sequence.logprobs or [float("nan")] * len(tokens)
        known = sequence.topk_logprobs_np
        for at, (token, logprob) in enumerate(zip(tokens, logprobs, strict=True)):
            topk = None if known is None else (known.token_ids[at], known.logprobs[at])
            reason = sequence.stop_reason if at + 1 == len(tokens) else None
            on_token(SampledToken(token, logprob, topk, number, reason))
    return response
