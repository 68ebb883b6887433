"""The API of training/api.py over engines in other processes: what a script holds of them."""

import logging
import secrets
import weakref
from collections.abc import Callable, Generator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Self

from training.api import (
    AdamParams,
    APIFuture,
    CustomLoss,
    Datum,
    ForwardBackwardOutput,
    GetInfoResponse,
    GetServerCapabilitiesResponse,
    LossConfig,
    LossFnType,
    ModelInput,
    OptimStepResponse,
    SampleResponse,
    SamplingParams,
    SaveWeightsForSamplerResponse,
    SaveWeightsResponse,
    require_model_input,
)
from training.backends.local.options import EngineOptions
from training.backends.pool.host import EngineSettings
from training.backends.pool.lane import LaneOptions
from training.backends.pool.messages import Request
from training.backends.pool.pool import GUESSED_TOKENS, Pool, PoolOptions, SamplerPlace
from training.backends.pool.transport import Transport
from training.checks import check_values, checkpoint_name, real, sample_arguments, whole
from training.models import load_tokenizer
from utils.runs.inputs import Input

DEFAULT_CHECKPOINT_DIR = Path("runs/checkpoints")
# how long an engine may give no sign of life
SILENCE_SECONDS = 60.0


class _Ready:
    """Factories return the client itself; .result() and await work too, as on the SDK's futures."""

    def result(self, timeout: float | None = None) -> Self:
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        yield from ()
        return self


class PoolServiceClient:
    """See training.api.ServiceClient. `make_transport(settings, silence=...)` chooses how engines
    are started; they begin at once, and load a model when a client first needs it.

    Of `options`, those of LaneOptions and spread_tokens (PoolOptions) are the pool's,
    silence_seconds the transport's, and the rest EngineOptions of every engine. Raises TypeError
    for unknown ones, ValueError for wrong ones and for engines that cannot begin.
    """

    def __init__(
        self,
        make_transport: Callable[..., Transport],
        *,
        num_engines: int,
        checkpoint_dir: str | Path | None = None,
        device: str | None = None,
        dtype: str | None = None,
        **options: Any,
    ) -> None:
        checked = check_values(
            "connect",
            {
                "num_engines": (num_engines, whole(1)),
                "spread_tokens": (options.pop("spread_tokens", 4096), whole(0)),
                "silence_seconds": (
                    options.pop("silence_seconds", SILENCE_SECONDS),
                    real("a number above 0", lambda seconds: seconds > 0),
                ),
            },
        )
        names = [field.name for field in fields(LaneOptions)]
        lanes = LaneOptions(**{name: options.pop(name) for name in names if name in options})
        # what is wrong with them is told now, not by an engine
        EngineOptions(**options)
        self._checkpoint_dir = Path(checkpoint_dir or DEFAULT_CHECKPOINT_DIR).absolute()
        settings = EngineSettings(
            self._checkpoint_dir,
            Path.cwd(),
            checked["num_engines"],
            device,
            dtype,
            options,
            log_level=logging.getLogger().getEffectiveLevel(),
        )
        self._tokenizers: dict[str, Any] = {}
        self.pool = Pool(
            make_transport(settings, silence=checked["silence_seconds"]),
            checked["num_engines"],
            self._checkpoint_dir,
            PoolOptions(lanes, checked["spread_tokens"]),
        )

    def create_lora_training_client(
        self,
        base_model: str,
        rank: int = 32,
        seed: int | None = None,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
        lora_alpha: float | None = None,
        lora_dropout: float = 0.0,
        target_modules: list[str] | None = None,
        on_top_of: str | None = None,
    ) -> "PoolTrainingClient":
        """Local extensions as LocalServiceClient has them."""
        return self._training_client(
            "create_lora_training_client",
            base_model=base_model,
            rank=rank,
            # made again it has to be the same
            seed=secrets.randbits(63) if seed is None else seed,
            train_mlp=train_mlp,
            train_attn=train_attn,
            train_unembed=train_unembed,
            lora_alpha=lora_alpha,
            lora_dropout=lora_dropout,
            target_modules=target_modules,
            on_top_of=on_top_of,
        )

    def create_training_client_from_sum(
        self, terms: Sequence[tuple[str, float]], base_model: str
    ) -> "PoolTrainingClient":
        """Local extension: see LocalServiceClient."""
        return self._training_client(
            "create_training_client_from_sum", terms=list(terms), base_model=base_model
        )

    def create_training_client_scaled(
        self, path: str, weight: float, base_model: str
    ) -> "PoolTrainingClient":
        """Local extension: see LocalServiceClient."""
        return self._training_client(
            "create_training_client_scaled",
            path=path,
            weight=weight,
            base_model=base_model,
        )

    def create_training_client_from_state(
        self, path: str, base_model: str | None = None
    ) -> "PoolTrainingClient":
        return self._training_client(
            "create_training_client_from_state", path=path, base_model=base_model
        )

    def create_training_client_from_state_with_optimizer(
        self, path: str, base_model: str | None = None
    ) -> "PoolTrainingClient":
        return self._training_client(
            "create_training_client_from_state_with_optimizer",
            path=path,
            base_model=base_model,
        )

    def create_sampling_client(
        self, model_path: str | None = None, base_model: str | None = None
    ) -> "PoolSamplingClient":
        if model_path is None and base_model is None:
            raise ValueError("create_sampling_client needs model_path or base_model")
        arguments = {"model_path": model_path, "base_model": base_model}
        key = self.pool.new_key("sampler")
        request = Request("create", None, "create_sampling_client", (), arguments, keep_as=key)
        return PoolSamplingClient(self, self.pool.create_sampler(base_model, request))

    def get_server_capabilities(self) -> GetServerCapabilitiesResponse:
        """As the first engine tells it."""
        return self.pool.call(0, Request("ask", None, "get_server_capabilities"))

    def base_model_input(self, base_model: str) -> Input:
        """Local extension: see LocalServiceClient."""
        self.pool.load(base_model)
        return self.pool.call(0, Request("ask", None, "base_model_input", (base_model,)))

    def size_of_b(self, path: str) -> float:
        """Local extension: see LocalServiceClient."""
        return self.pool.call(0, Request("ask", None, "size_of_b", (path,)))

    def tokenizer(self, base_model: str) -> Any:
        """Local extension: loaded in this process."""
        if base_model not in self._tokenizers:
            self._tokenizers[base_model] = load_tokenizer(base_model)
        return self._tokenizers[base_model]

    @property
    def num_lost(self) -> int:
        """Local extension: how many engines were lost and replaced so far."""
        return sum(lane.num_lost for lane in self.pool.lanes)

    def close(self) -> None:
        self.pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _training_client(self, method: str, **arguments: Any) -> "PoolTrainingClient":
        key = self.pool.new_key("train")
        request = Request("create", None, method, (), arguments, keep_as=key)
        engine, kept = self.pool.create_client(arguments["base_model"], request)
        info = replace(kept.info, model_id=key)
        return PoolTrainingClient(self, engine, info, self._checkpoint_dir / key)


class PoolTrainingClient(_Ready):
    """See training.api.TrainingClient. It lives on one engine; what is wrong with a request is told
    to who waits for it."""

    def __init__(
        self,
        service: PoolServiceClient,
        engine: int,
        info: GetInfoResponse,
        folder: Path,
    ) -> None:
        self.model_id = info.model_id
        self._service = service
        self._pool = service.pool
        self._engine = engine
        self._info = info
        self._folder = folder
        _when_dropped(self, service.pool.release_client, self.model_id, engine)

    def forward(
        self, data: list[Datum], loss_fn: LossFnType, loss_fn_config: LossConfig | None = None
    ) -> APIFuture[ForwardBackwardOutput]:
        return self._ask("ask", "forward", list(data or ()), loss_fn, loss_fn_config)

    def forward_backward(
        self, data: list[Datum], loss_fn: LossFnType, loss_fn_config: LossConfig | None = None
    ) -> APIFuture[ForwardBackwardOutput]:
        return self._ask("train", "forward_backward", list(data or ()), loss_fn, loss_fn_config)

    def forward_backward_custom(
        self, data: list[Datum], loss_fn: CustomLoss
    ) -> APIFuture[ForwardBackwardOutput]:
        """As the local one; the loss is computed in this process, which loads torch for it."""
        from training.backends.local.custom_loss import Surrogate, for_logprobs

        data = list(data or ())
        output, number = self._ask("ask", "logprobs_for_custom", for_logprobs(data)).result()
        surrogate = Surrogate(data, loss_fn, output)
        second = self._ask("train", "backward_of_custom", surrogate.data, number)
        return second.map(surrogate.combined)

    def optim_step(self, optim_params: AdamParams | None = None) -> APIFuture[OptimStepResponse]:
        return self._ask("train", "optim_step", optim_params)

    def save_state(self, name: str, overwrite: bool = False) -> APIFuture[SaveWeightsResponse]:
        folder = self._folder / "weights" / checkpoint_name(name)
        saved = self._ask("save", "save_into", folder, with_optimizer=True, overwrite=overwrite)
        return saved.map(SaveWeightsResponse)

    def save_weights_for_sampler(self, name: str) -> APIFuture[SaveWeightsForSamplerResponse]:
        folder = self._folder / "sampler_weights" / checkpoint_name(name)
        saved = self._ask("save", "save_into", folder, with_optimizer=False)
        return saved.map(SaveWeightsForSamplerResponse)

    def save_weights_and_get_sampling_client(self) -> "APIFuture[PoolSamplingClient]":
        key = self._pool.new_key("sampler")
        request = Request(
            "sampler",
            self.model_id,
            "save_weights_and_get_sampling_client",
            keep_as=key,
        )
        made = self._pool.ask(self._engine, request, self)
        return made.map(
            lambda kept: PoolSamplingClient(
                self._service, SamplerPlace(key, kept.base_model, kept.dtype, [self._engine])
            )
        )

    def create_sampling_client(self, model_path: str) -> "PoolSamplingClient":
        return self._service.create_sampling_client(model_path, self._info.model_name)

    def get_info(self) -> GetInfoResponse:
        return self._info

    def get_tokenizer(self) -> Any:
        assert self._info.model_name is not None
        return self._service.tokenizer(self._info.model_name)

    def _ask(self, kind: Any, method: str, *args: Any, **kwargs: Any) -> APIFuture[Any]:
        request = Request(kind, self.model_id, method, args, kwargs)
        return self._pool.ask(self._engine, request, self)


class PoolSamplingClient(_Ready):
    """See training.api.SamplingClient. Its requests may be answered by several engines."""

    def __init__(self, service: PoolServiceClient, place: SamplerPlace) -> None:
        self._service = service
        self._place = place
        _when_dropped(self, service.pool.release_sampler, place)

    def sample(
        self,
        prompt: ModelInput,
        num_samples: int,
        sampling_params: SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
    ) -> APIFuture[SampleResponse]:
        tokens = require_model_input(prompt).length
        checked = sample_arguments(
            num_samples, include_prompt_logprobs, topk_prompt_logprobs, topk_sample_logprobs
        )
        if sampling_params.seed is None:
            # asked again it has to be the same
            sampling_params = replace(sampling_params, seed=secrets.randbits(63))
        tokens += checked["num_samples"] * (sampling_params.max_tokens or GUESSED_TOKENS)
        return self._ask("sample", tokens, prompt, sampling_params=sampling_params, **checked)

    def compute_logprobs(self, prompt: ModelInput) -> APIFuture[list[float | None]]:
        return self._ask("compute_logprobs", require_model_input(prompt).length, prompt)

    @property
    def dtype(self) -> str | None:
        """Local extension: of the base model's weights, float32 or bfloat16."""
        return self._place.dtype

    def get_tokenizer(self) -> Any:
        return self._service.tokenizer(self._place.base_model)

    def get_base_model(self) -> str:
        return self._place.base_model

    def _ask(self, method: str, tokens: int, *args: Any, **kwargs: Any) -> APIFuture[Any]:
        request = Request("ask", self._place.key, method, args, kwargs)
        return self._service.pool.ask_sampler(self._place, request, tokens, self)


def _when_dropped(client: object, call: Callable[..., None], *arguments: Any) -> None:
    """At the interpreter's end nobody is told: the engines go then too."""
    finalizer: Any = weakref.finalize(client, call, *arguments)
    finalizer.atexit = False
