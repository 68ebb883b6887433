"""The backend `tinker`: Thinking Machines' service, or any server of its protocol.

A thin adapter over the official SDK (tinker 0.38, the extra `tinker`), which is imported when the
first client is made. It turns our types into the SDK's and back, and refuses what only the local
backend has.
"""

import concurrent.futures
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

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
    ModelData,
    ModelInput,
    OptimStepResponse,
    RequestFailedError,
    SampledSequence,
    SampleResponse,
    SamplingParams,
    SaveWeightsForSamplerResponse,
    SaveWeightsResponse,
    SupportedModel,
    TensorData,
    TopkLogprobs,
)
from training.models import EMBEDDED, load_tokenizer

if TYPE_CHECKING:
    import tinker
    import torch

S = TypeVar("S")
T = TypeVar("T")

PATH_SCHEME = "tinker://"
# that of every adapter there, as far as is known: no request names it
SERVICE_ALPHA = 32.0
CONNECT_SECONDS = 20.0


class RemoteServiceClient:
    """Raises ImportError where the SDK is not installed, and ValueError where nobody answers, or
    the key is not taken: the SDK itself would try again and again.

    The SDK takes TINKER_API_KEY and, without `base_url`, TINKER_BASE_URL from the environment.
    `sdk_client` and `rest_client` stand in for the SDK's own clients.
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        sdk_client: "tinker.ServiceClient | None" = None,
        rest_client: "tinker.RestClient | None" = None,
    ) -> None:
        sdk = _import_sdk()
        self._base_url = base_url
        if sdk_client is None:
            _check_server(base_url or os.environ.get("TINKER_BASE_URL"))
            sdk_client = sdk.ServiceClient(base_url=base_url)
        self._client = sdk_client
        self._rest_client = rest_client

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
    ) -> "RemoteTrainingClient":
        if lora_alpha not in (None, SERVICE_ALPHA):
            raise ValueError(
                f"lora_alpha={lora_alpha}: the service has {SERVICE_ALPHA:g}; leave it out or use "
                "backend='local'"
            )
        if lora_dropout:
            raise ValueError(
                f"lora_dropout={lora_dropout}: the service has none; leave it out or use "
                "backend='local'"
            )
        future = self._client.create_lora_training_client(
            base_model=base_model,
            rank=rank,
            seed=seed,
            train_mlp=train_mlp,
            train_attn=train_attn,
            train_unembed=train_unembed,
        )
        return _chain(future, RemoteTrainingClient).result()

    def create_training_client_from_state(
        self, path: str, base_model: str | None = None
    ) -> "RemoteTrainingClient":
        future = self._client.create_training_client_from_state(
            path=_checked_path(path), base_model=base_model
        )
        return _chain(future, RemoteTrainingClient).result()

    def create_training_client_from_state_with_optimizer(
        self, path: str, base_model: str | None = None
    ) -> "RemoteTrainingClient":
        future = self._client.create_training_client_from_state_with_optimizer(
            path=_checked_path(path), base_model=base_model
        )
        return _chain(future, RemoteTrainingClient).result()

    def create_sampling_client(
        self, model_path: str | None = None, base_model: str | None = None
    ) -> "RemoteSamplingClient":
        if model_path is None and base_model is None:
            raise ValueError("create_sampling_client needs model_path or base_model")
        if model_path is not None:
            _checked_path(model_path)
        future = self._client.create_sampling_client(model_path=model_path, base_model=base_model)
        return _chain(future, RemoteSamplingClient).result()

    def get_server_capabilities(self) -> GetServerCapabilitiesResponse:
        if self._rest_client is None:
            self._rest_client = _import_sdk().RestClient(base_url=self._base_url)
        future = self._rest_client.get_server_capabilities()
        return _chain(future, _capabilities_from_sdk).result()

    def close(self) -> None:
        _chain(self._client.close("success"), lambda _: None).result()


def _check_server(url: str | None) -> None:
    """Asks once what the SDK would ask for; without a URL the hosted service is meant, which is
    not asked."""
    key = os.environ.get("TINKER_API_KEY")
    if key is None and "TINKER_CREDENTIAL_CMD" not in os.environ:
        raise ValueError(
            "backend='tinker' needs TINKER_API_KEY in the environment or in .env; a server of "
            "scripts/serve.py prints its key when it starts"
        )
    if url is None or key is None:
        return
    asked = f"{url.rstrip('/')}/api/v1/get_server_capabilities"
    try:
        request = urllib.request.Request(asked, headers={"X-API-Key": key})
        urllib.request.urlopen(request, timeout=CONNECT_SECONDS).close()
    except urllib.error.HTTPError as error:
        # what a server may say to this besides is its own matter
        if error.code in (401, 403):
            raise ValueError(
                f"TINKER_API_KEY: {url} does not take it (HTTP {error.code}); a server of "
                "scripts/serve.py prints its key when it starts"
            ) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ValueError(
            f"base_url={url!r}: nobody answers there ({reason}); start a server (uv run "
            "scripts/serve.py), or correct the address"
        ) from error


class RemoteTrainingClient:
    def __init__(self, sdk_client: "tinker.TrainingClient") -> None:
        self._client = sdk_client
        self.model_id: str = sdk_client.model_id

    def forward(
        self, data: list[Datum], loss_fn: LossFnType, loss_fn_config: LossConfig | None = None
    ) -> APIFuture[ForwardBackwardOutput]:
        datums = [datum_to_sdk(datum) for datum in data]
        future = self._client.forward(datums, loss_fn, loss_fn_config)
        return _chain(future, output_from_sdk)

    def forward_backward(
        self, data: list[Datum], loss_fn: LossFnType, loss_fn_config: LossConfig | None = None
    ) -> APIFuture[ForwardBackwardOutput]:
        datums = [datum_to_sdk(datum) for datum in data]
        future = self._client.forward_backward(datums, loss_fn, loss_fn_config)
        return _chain(future, output_from_sdk)

    def forward_backward_custom(
        self, data: list[Datum], loss_fn: CustomLoss
    ) -> APIFuture[ForwardBackwardOutput]:
        def on_ours(
            _: "list[tinker.Datum]", logprobs: "list[torch.Tensor]"
        ) -> "tuple[torch.Tensor, dict[str, float]]":
            return loss_fn(data, logprobs)

        datums = [datum_to_sdk(datum) for datum in data]
        return _chain(self._client.forward_backward_custom(datums, on_ours), output_from_sdk)

    def optim_step(self, optim_params: AdamParams | None = None) -> APIFuture[OptimStepResponse]:
        params = adam_params_to_sdk(optim_params or AdamParams())
        future = self._client.optim_step(params)
        return _chain(future, lambda response: OptimStepResponse(response.metrics))

    def save_state(self, name: str, overwrite: bool = False) -> APIFuture[SaveWeightsResponse]:
        future = self._client.save_state(_checked_name(name), overwrite=overwrite)
        return _chain(future, lambda response: SaveWeightsResponse(response.path))

    def save_weights_for_sampler(self, name: str) -> APIFuture[SaveWeightsForSamplerResponse]:
        future = self._client.save_weights_for_sampler(_checked_name(name))
        return _chain(future, lambda response: SaveWeightsForSamplerResponse(response.path))

    def save_weights_and_get_sampling_client(self) -> "APIFuture[RemoteSamplingClient]":
        return _chain(self._client.save_weights_and_get_sampling_client(), RemoteSamplingClient)

    def create_sampling_client(self, model_path: str) -> "RemoteSamplingClient":
        future = self._client.create_sampling_client(_checked_path(model_path))
        return _chain(future, RemoteSamplingClient).result()

    def get_info(self) -> GetInfoResponse:
        info = self._client.get_info()
        data = info.model_data
        return GetInfoResponse(
            ModelData(arch=data.arch, model_name=data.model_name, tokenizer_id=data.tokenizer_id),
            model_id=info.model_id,
            is_lora=info.is_lora,
            lora_rank=info.lora_rank,
            model_name=info.model_name,
        )

    def get_tokenizer(self) -> Any:
        return self._client.get_tokenizer()


class RemoteSamplingClient:
    def __init__(self, sdk_client: "tinker.SamplingClient") -> None:
        self._client = sdk_client

    def sample(
        self,
        prompt: ModelInput,
        num_samples: int,
        sampling_params: SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
    ) -> APIFuture[SampleResponse]:
        future = self._client.sample(
            prompt=model_input_to_sdk(prompt),
            num_samples=num_samples,
            sampling_params=sampling_params_to_sdk(sampling_params),
            include_prompt_logprobs=include_prompt_logprobs,
            topk_prompt_logprobs=topk_prompt_logprobs,
            topk_sample_logprobs=topk_sample_logprobs,
        )
        return _chain(future, sample_response_from_sdk)

    def compute_logprobs(self, prompt: ModelInput) -> APIFuture[list[float | None]]:
        return _chain(self._client.compute_logprobs(model_input_to_sdk(prompt)), list)

    def get_tokenizer(self) -> Any:
        # the SDK would ask the hub for this name, which is no id there
        if self.get_base_model() == EMBEDDED:
            return load_tokenizer(EMBEDDED)
        return self._client.get_tokenizer()

    def get_base_model(self) -> str:
        return self._client.get_base_model()


# -------------------------------------------------------------------------------------- our -> SDK


def model_input_to_sdk(prompt: ModelInput) -> "tinker.ModelInput":
    return _import_sdk().ModelInput.from_ints(prompt.to_ints())


def datum_to_sdk(datum: Datum) -> "tinker.Datum":
    sdk = _import_sdk()
    tensors = {
        key: sdk.TensorData.from_numpy(tensor.to_numpy())
        for key, tensor in datum.loss_fn_inputs.items()
    }
    return sdk.Datum(
        model_input=model_input_to_sdk(datum.model_input),
        loss_fn_inputs=tensors,
    )


def adam_params_to_sdk(params: AdamParams) -> "tinker.AdamParams":
    return _import_sdk().AdamParams(
        learning_rate=params.learning_rate,
        beta1=params.beta1,
        beta2=params.beta2,
        eps=params.eps,
        weight_decay=params.weight_decay,
        grad_clip_norm=params.grad_clip_norm,
    )


def sampling_params_to_sdk(params: SamplingParams) -> "tinker.SamplingParams":
    """Raises ValueError for min_p, json_schema and grammar, which the service does not know."""
    if params.min_p:
        raise ValueError(
            f"min_p={params.min_p}: the service does not know it; use top_p, or backend='local'"
        )
    for field in ("json_schema", "grammar"):
        if getattr(params, field) is not None:
            raise ValueError(
                f"{field}: the service cannot constrain samples; leave it out and check the "
                "answers, or use backend='local'"
            )
    return _import_sdk().SamplingParams(
        max_tokens=params.max_tokens,
        seed=params.seed,
        stop=params.stop,
        temperature=params.temperature,
        top_k=params.top_k,
        top_p=params.top_p,
    )


# -------------------------------------------------------------------------------------- SDK -> our


def datum_from_sdk(datum: "tinker.Datum") -> Datum:
    tensors = {key: tensor_from_sdk(tensor) for key, tensor in datum.loss_fn_inputs.items()}
    return Datum(ModelInput.from_ints(datum.model_input.to_ints()), tensors)


def tensor_from_sdk(tensor: "tinker.TensorData") -> TensorData:
    """Dense, also where the SDK's tensor is sparse."""
    return TensorData.from_numpy(np.asarray(tensor.to_numpy()))


def output_from_sdk(output: "tinker.ForwardBackwardOutput") -> ForwardBackwardOutput:
    outputs = [
        {key: tensor_from_sdk(tensor) for key, tensor in tensors.items()}
        for tensors in output.loss_fn_outputs
    ]
    return ForwardBackwardOutput(output.loss_fn_output_type, outputs, dict(output.metrics))


def sample_response_from_sdk(response: "tinker.SampleResponse") -> SampleResponse:
    prompt_logprobs = response.prompt_logprobs
    return SampleResponse(
        sequences=[_sequence_from_sdk(sequence) for sequence in response.sequences],
        # the list form turns None into NaN here and exists however the response was made
        prompt_logprobs_np=None
        if prompt_logprobs is None
        else np.asarray(prompt_logprobs, dtype=np.float32),
        topk_prompt_logprobs_np=_topk_from_sdk(response.topk_prompt_logprobs_np),
        prompt_cache_hit_tokens=response.prompt_cache_hit_tokens,
    )


def _sequence_from_sdk(sequence: "tinker.SampledSequence") -> SampledSequence:
    logprobs = sequence.logprobs
    return SampledSequence(
        stop_reason=sequence.stop_reason,
        tokens_np=np.asarray(sequence.tokens, dtype=np.int64),
        logprobs_np=None if logprobs is None else np.asarray(logprobs, dtype=np.float32),
        sequence_id=sequence.sequence_id,
        topk_logprobs_np=_topk_from_sdk(sequence.topk_logprobs_np),
    )


def _topk_from_sdk(topk: Any) -> TopkLogprobs | None:
    return None if topk is None else TopkLogprobs(topk.token_ids, topk.logprobs)


def _capabilities_from_sdk(
    response: "tinker.types.GetServerCapabilitiesResponse",
) -> GetServerCapabilitiesResponse:
    return GetServerCapabilitiesResponse(
        [
            SupportedModel(
                model_name=model.model_name,
                max_context_length=model.max_context_length,
                trainable=model.trainable,
                sampleable=model.sampleable,
            )
            for model in response.supported_models
        ]
    )


# ------------------------------------------------------------------------------------------ shared


def _import_sdk() -> Any:
    try:
        import tinker
    except ImportError as error:
        raise ImportError(
            "backend='tinker' needs the tinker SDK, which is an extra: uv sync --extra tinker"
        ) from error
    return tinker


def _chain(source: "tinker.APIFuture[S]", convert: Callable[[S], T]) -> APIFuture[T]:
    """Our future of the SDK's future, with the result converted."""
    target: concurrent.futures.Future[T] = concurrent.futures.Future()

    def finish(done: "concurrent.futures.Future[S]") -> None:
        if not target.set_running_or_notify_cancel():
            return
        try:
            target.set_result(convert(done.result()))
        except Exception as error:
            # whatever it is belongs to who waits: raised here it would only be logged
            target.set_exception(_error_from_sdk(error))

    source.future().add_done_callback(finish)
    return APIFuture(target)


def _error_from_sdk(error: Exception) -> Exception:
    if not isinstance(error, _import_sdk().RequestFailedError):
        return error
    ours = RequestFailedError(str(error), "user" if error.category == "user" else "server")
    ours.__cause__ = error
    return ours


def _checked_path(path: str) -> str:
    if not path.startswith(PATH_SCHEME):
        raise ValueError(
            f"path={path!r}: the service loads its own checkpoints only ({PATH_SCHEME}run/"
            "weights/name, what save_state returns); use backend='local' for a folder"
        )
    return path


def _checked_name(name: str) -> str:
    if not name or "/" in name:
        raise ValueError(
            f"name={name!r}: the service names checkpoints without a folder, such as '000010'; "
            "use backend='local' to save to a folder"
        )
    return name
