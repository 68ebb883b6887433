"""The Tinker-style API that every script drives a model through: types and protocols.

Names, fields, defaults and semantics are those of the official SDK (tinker 0.38), so code moves
between the two by changing an import. What only the local backend has is marked "Local extension".
Importing this module loads numpy but neither torch nor the SDK.
"""

import asyncio
import concurrent.futures
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np

from training import checks

if TYPE_CHECKING:
    import torch

T_co = TypeVar("T_co", covariant=True)
U = TypeVar("U")

LossFnType = Literal["cross_entropy", "importance_sampling", "ppo", "cispo", "dro", "gspo"]
StopReason = Literal["stop", "length"]
TensorDtype = Literal["int64", "float32"]


# what every backend says
CLOSED = "the service was closed; make a new one with connect()"
CLOSED_BEFORE = "the service was closed before this request ran"


class RequestFailedError(RuntimeError):
    """A request the engine could not carry out; `category` is the SDK's "user" or "server"."""

    def __init__(self, message: str, category: Literal["user", "server"] = "user") -> None:
        super().__init__(message)
        self.category = category


class APIFuture(Generic[T_co]):
    """The result of a request: blocks with .result(timeout), or is awaited.

    `on_wait` is called when somebody begins to wait for a result that is not there yet, `on_cancel`
    when nobody wants it any more.
    """

    def __init__(
        self,
        future: "concurrent.futures.Future[T_co]",
        on_wait: "Callable[[concurrent.futures.Future[Any]], None] | None" = None,
        on_cancel: Callable[[], None] | None = None,
    ) -> None:
        self._future = future
        self._on_wait = on_wait
        self._on_cancel = on_cancel

    def result(self, timeout: float | None = None) -> T_co:
        """Raises TimeoutError after `timeout` seconds, and whatever the request raised."""
        self.start()
        return self._future.result(timeout)

    def start(self) -> None:
        """Local extension: lets the request run, as waiting for it does, but does not wait."""
        if self._on_wait is not None and not self._future.done():
            self._on_wait(self._future)

    def cancel(self) -> None:
        """Local extension: nobody wants the result. A request that waits is dropped, and a sample
        that is being decoded ends within a token; its future then raises CancelledError."""
        self._future.cancel()
        if self._on_cancel is not None:
            self._on_cancel()

    async def result_async(self, timeout: float | None = None) -> T_co:
        self.start()
        async with asyncio.timeout(timeout):
            # a wait that times out leaves the request alone, as result(timeout) does
            return await asyncio.shield(asyncio.wrap_future(self._future))

    def __await__(self) -> Generator[Any, None, T_co]:
        return self.result_async().__await__()

    def future(self) -> "concurrent.futures.Future[T_co]":
        return self._future

    def done(self) -> bool:
        return self._future.done()

    def map(self, function: "Callable[[T_co], U]") -> "APIFuture[U]":
        """The future of function(result); waiting for it waits for this one."""
        mapped: concurrent.futures.Future[U] = concurrent.futures.Future()

        def done(source: "concurrent.futures.Future[T_co]") -> None:
            try:
                result = function(source.result())
                if mapped.set_running_or_notify_cancel():
                    mapped.set_result(result)
            except BaseException as error:
                if not mapped.done():
                    mapped.set_exception(error)

        self._future.add_done_callback(done)
        return APIFuture(mapped, lambda _mapped: self.start(), self.cancel)


# ---------------------------------------------------------------------------------------- tensors

# Plain lists are accepted for these keys only, because only for these the dtype is known.
_LIST_DTYPES: dict[str, TensorDtype] = {
    "target_tokens": "int64",
    "weights": "float32",
    "advantages": "float32",
    "logprobs": "float32",
    "clip_low_threshold": "float32",
    "clip_high_threshold": "float32",
    "sequence_ratio_mask": "float32",
}


@dataclass(eq=False)
class TensorData:
    """A flat list or array with its dtype and shape. Equality is identity, as in the SDK.

    Raises ValueError for data that do not have that dtype or shape.
    """

    data: Sequence[int] | Sequence[float] | np.ndarray
    dtype: TensorDtype
    shape: list[int] | None = None

    def __post_init__(self) -> None:
        if self.dtype not in ("int64", "float32"):
            raise ValueError(f"TensorData dtype {self.dtype!r}: allowed are 'int64' and 'float32'")
        try:
            array = _whole_array(self.data) if self.dtype == "int64" else _real_array(self.data)
        except (TypeError, ValueError) as error:
            raise ValueError(f"TensorData data: {error}") from error
        shape = array.shape if self.shape is None else tuple(checks.tokens(self.shape))
        if array.ndim != 1 or math.prod(shape) != array.size or min(shape, default=0) < 0:
            raise ValueError(
                f"TensorData data has shape {array.shape} and shape={self.shape!r}: flat data are "
                "needed, and a shape that holds as many"
            )
        self.shape = list(shape)

    @classmethod
    def from_numpy(cls, array: np.ndarray) -> "TensorData":
        """Whole numbers become int64, others float32; True and False are 1 and 0."""
        if np.issubdtype(array.dtype, np.integer):
            return cls(_whole_array(array.ravel()), "int64", list(array.shape))
        return cls(_real_array(array.ravel()), "float32", list(array.shape))

    @classmethod
    def from_torch(cls, tensor: "torch.Tensor") -> "TensorData":
        return cls.from_numpy(tensor.detach().cpu().numpy())

    def to_numpy(self) -> np.ndarray:
        assert self.shape is not None
        return np.asarray(self.data, dtype=self.dtype).reshape(self.shape)

    def to_torch(self) -> "torch.Tensor":
        import torch

        return torch.from_numpy(self.to_numpy())

    def tolist(self) -> list[Any]:
        return self.to_numpy().tolist()


def _whole_array(data: Any) -> np.ndarray:
    """As int64. Raises ValueError where that would change a value."""
    if not isinstance(data, np.ndarray):
        # numpy would cut 1.5 to 1 and take True for 1
        data = np.array([_whole_numbers(row) for row in data])
    if data.size and not np.issubdtype(data.dtype, np.integer):
        raise ValueError(f"whole numbers within int64 are needed; got {data.dtype}")
    if data.size and data.dtype == np.uint64 and data.max() > np.iinfo(np.int64).max:
        raise ValueError(f"whole numbers within int64 are needed; got {data.max()}")
    return data.astype(np.int64)


def _whole_numbers(value: Any) -> Any:
    """A number, or the rows of a nested list."""
    if isinstance(value, list | tuple):
        return [_whole_numbers(item) for item in value]
    return value if type(value) is int else checks.whole()(value)


def _real_array(data: Any) -> np.ndarray:
    """As float32, which may round. Raises ValueError for what is no number."""
    array = np.asarray(data)
    if array.size and array.dtype.kind not in "biuf":
        raise ValueError(f"numbers are needed; got {array.dtype}")
    return array.astype(np.float32)


def _to_tensor_data(key: str, value: Any) -> TensorData:
    if isinstance(value, TensorData):
        return value
    if isinstance(value, np.ndarray):
        return TensorData.from_numpy(value)
    if hasattr(value, "detach"):
        return TensorData.from_torch(value)
    if key not in _LIST_DTYPES:
        raise KeyError(
            f"loss_fn_inputs[{key!r}]: a plain list is accepted only for {sorted(_LIST_DTYPES)}; "
            "pass a TensorData, numpy array or torch tensor"
        )
    try:
        whole = _LIST_DTYPES[key] == "int64"
        return TensorData.from_numpy(_whole_array(value) if whole else _real_array(value))
    except (TypeError, ValueError) as error:
        raise ValueError(f"loss_fn_inputs[{key!r}]: {error}") from error


@dataclass(frozen=True)
class EncodedTextChunk:
    tokens: Sequence[int]

    def __post_init__(self) -> None:
        checks.check_fields(self, tokens=checks.tokens)

    @property
    def length(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class ModelInput:
    chunks: list[EncodedTextChunk] = field(default_factory=list)

    def __post_init__(self) -> None:
        for at, chunk in enumerate(self.chunks):
            if not isinstance(chunk, EncodedTextChunk):
                raise ValueError(
                    f"ModelInput: chunks[{at}] is a {type(chunk).__name__}; only EncodedTextChunk "
                    "is served here"
                )

    @classmethod
    def from_ints(cls, tokens: Sequence[int]) -> "ModelInput":
        return cls([EncodedTextChunk(tokens)])

    @classmethod
    def empty(cls) -> "ModelInput":
        return cls([])

    def to_ints(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.tokens]

    @property
    def length(self) -> int:
        return sum(chunk.length for chunk in self.chunks)

    def append(self, chunk: EncodedTextChunk) -> "ModelInput":
        return ModelInput([*self.chunks, chunk])

    def append_int(self, token: int) -> "ModelInput":
        return self.append(EncodedTextChunk([token]))


def require_model_input(prompt: Any) -> ModelInput:
    """Raises ValueError for anything else."""
    if not isinstance(prompt, ModelInput):
        raise ValueError(
            f"prompt is a {type(prompt).__name__}; a ModelInput is needed, "
            "ModelInput.from_ints(tokens) makes one"
        )
    return prompt


@dataclass(frozen=True)
class Datum:
    """One training sequence. Every tensor in `loss_fn_inputs` is aligned with `model_input`:
    position i predicts token i + 1, so the caller shifts (inputs [:-1], targets [1:])."""

    model_input: ModelInput
    loss_fn_inputs: dict[str, Any]

    def __post_init__(self) -> None:
        if not isinstance(self.model_input, ModelInput):
            raise ValueError(
                f"Datum: model_input is a {type(self.model_input).__name__}; a ModelInput is "
                "needed, ModelInput.from_ints(tokens) makes one"
            )
        if not isinstance(self.loss_fn_inputs, Mapping):
            raise ValueError(
                f"Datum: loss_fn_inputs is a {type(self.loss_fn_inputs).__name__}; a dict is needed"
            )
        converted = {key: _to_tensor_data(key, value) for key, value in self.loss_fn_inputs.items()}
        object.__setattr__(self, "loss_fn_inputs", converted)


# ----------------------------------------------------------------------------- parameters, results


@dataclass(frozen=True)
class SamplingParams:
    """`stop=None` stops at the model's end token; `[]` never stops before max_tokens.

    The stop token or string stays in the output, once. Logprobs are those of the untempered
    distribution, the one the trainer's losses use.
    """

    max_tokens: int | None = None
    seed: int | None = None
    stop: str | Sequence[str] | Sequence[int] | None = None
    temperature: float = 1
    top_k: int = -1
    top_p: float = 1
    # Local extension: tokens less likely than this share of the likeliest are never drawn.
    min_p: float = 0
    # Local extension: every sample is JSON that fits this schema (through llguidance).
    json_schema: dict[str, Any] | None = None
    # Local extension: every sample is a text of this grammar (llguidance's dialect of Lark).
    grammar: str | None = None

    def __post_init__(self) -> None:
        checks.check_fields(
            self,
            max_tokens=checks.optional(checks.whole(1)),
            seed=checks.optional(checks.whole()),
            stop=checks.stop,
            temperature=checks.real("a finite number from 0", lambda t: t >= 0),
            top_k=_top_k,
            top_p=checks.real("a number above 0 and at most 1", lambda p: 0 < p <= 1),
            min_p=checks.real("a number from 0 to 1", lambda p: 0 <= p <= 1),
            json_schema=_schema,
            grammar=checks.optional(_grammar),
        )
        if self.json_schema is not None and self.grammar is not None:
            raise ValueError(
                "SamplingParams: json_schema and grammar are both given; a sample can be held to "
                "one of them (a grammar may hold a schema: start: %json {...})"
            )


def _top_k(value: Any) -> int:
    try:
        return checks.whole(1)(value)
    except ValueError:
        if checks.whole()(value) == -1:
            return -1
        raise ValueError("-1 (off) or a whole number from 1 is needed") from None


def _schema(value: Any) -> Mapping[str, Any] | None:
    if value is not None and not isinstance(value, Mapping):
        raise ValueError("a JSON schema as a dict is needed")
    return value


def _grammar(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("a grammar in llguidance's dialect of Lark, a text that is not empty")
    return value


@dataclass(frozen=True)
class AdamParams:
    """Decoupled weight decay (AdamW); grad_clip_norm is the global norm, 0 turns it off."""

    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0

    def __post_init__(self) -> None:
        from_zero = checks.real("a finite number from 0", lambda x: x >= 0)
        beta = checks.real("a number from 0 and below 1", lambda b: 0 <= b < 1)
        checks.check_fields(
            self,
            learning_rate=from_zero,
            beta1=beta,
            beta2=beta,
            eps=from_zero,
            weight_decay=from_zero,
            grad_clip_norm=from_zero,
        )


@dataclass(frozen=True)
class LoraConfig:
    rank: int = 32
    seed: int | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True
    # Local extension: the service's alpha is fixed at 32.
    alpha: float = 32.0

    def __post_init__(self) -> None:
        checks.check_fields(
            self,
            rank=checks.whole(1),
            seed=checks.optional(checks.whole()),
            train_unembed=checks.flag,
            train_mlp=checks.flag,
            train_attn=checks.flag,
            alpha=checks.real("a finite number above 0", lambda a: a > 0),
        )


@dataclass(frozen=True)
class ForwardBackwardOutput:
    loss_fn_output_type: str
    loss_fn_outputs: list[dict[str, TensorData]]
    metrics: dict[str, float]


@dataclass(frozen=True)
class OptimStepResponse:
    metrics: dict[str, float] | None = None


@dataclass(frozen=True)
class SaveWeightsResponse:
    path: str


@dataclass(frozen=True)
class SaveWeightsForSamplerResponse:
    path: str


@dataclass(frozen=True)
class TopkLogprobs:
    """(n, k) token ids and logprobs; an empty slot is (0, -99999.0)."""

    token_ids: np.ndarray
    logprobs: np.ndarray

    def to_lists(self) -> list[list[tuple[int, float]] | None]:
        return [
            [(int(t), float(p)) for t, p in zip(ids, lps, strict=True) if p > -99999.0] or None
            for ids, lps in zip(self.token_ids, self.logprobs, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class SampledSequence:
    stop_reason: StopReason
    tokens_np: np.ndarray
    logprobs_np: np.ndarray | None = None
    sequence_id: str | None = None
    topk_logprobs_np: TopkLogprobs | None = None

    @property
    def tokens(self) -> list[int]:
        return self.tokens_np.tolist()

    @property
    def logprobs(self) -> list[float] | None:
        return None if self.logprobs_np is None else self.logprobs_np.tolist()

    @property
    def topk_logprobs(self) -> list[list[tuple[int, float]] | None] | None:
        return None if self.topk_logprobs_np is None else self.topk_logprobs_np.to_lists()


class SampledToken(NamedTuple):
    """Local extension: a token of sample number `sample` as it comes, which ends it where there is
    a `stop_reason`. `topk`: ids and logprobs, [k] each, where they were asked for."""

    token: int
    logprob: float
    topk: tuple[np.ndarray, np.ndarray] | None
    sample: int
    stop_reason: StopReason | None


@dataclass(frozen=True, eq=False)
class SampleResponse:
    sequences: Sequence[SampledSequence]
    prompt_logprobs_np: np.ndarray | None = None
    topk_prompt_logprobs_np: TopkLogprobs | None = None
    prompt_cache_hit_tokens: int = 0

    @property
    def prompt_logprobs(self) -> list[float | None] | None:
        if self.prompt_logprobs_np is None:
            return None
        return [None if np.isnan(p) else float(p) for p in self.prompt_logprobs_np]

    @property
    def topk_prompt_logprobs(self) -> list[list[tuple[int, float]] | None] | None:
        if self.topk_prompt_logprobs_np is None:
            return None
        return self.topk_prompt_logprobs_np.to_lists()


@dataclass(frozen=True)
class ModelData:
    arch: str | None = None
    model_name: str | None = None
    tokenizer_id: str | None = None
    max_context_length: int | None = None


@dataclass(frozen=True)
class GetInfoResponse:
    model_data: ModelData
    model_id: str
    is_lora: bool | None = None
    lora_rank: int | None = None
    model_name: str | None = None


@dataclass(frozen=True)
class SupportedModel:
    model_name: str | None = None
    max_context_length: int | None = None
    trainable: bool | None = None
    sampleable: bool | None = None


@dataclass(frozen=True)
class GetServerCapabilitiesResponse:
    supported_models: list[SupportedModel]


# ---------------------------------------------------------------------------------------- protocols

CustomLoss = Callable[[list[Datum], "list[torch.Tensor]"], "tuple[torch.Tensor, dict[str, float]]"]
LossConfig = Mapping[str, float | str]


class SamplingClient(Protocol):
    def sample(
        self,
        prompt: ModelInput,
        num_samples: int,
        sampling_params: SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
    ) -> APIFuture[SampleResponse]: ...

    def compute_logprobs(self, prompt: ModelInput) -> APIFuture[list[float | None]]:
        """The logprob of each prompt token given those before it; the first is None."""
        ...

    def get_tokenizer(self) -> Any: ...

    def get_base_model(self) -> str: ...


class TrainingClient(Protocol):
    """One adapter. Requests run in the order they are made; gradients add up to optim_step."""

    model_id: str

    def forward(
        self, data: list[Datum], loss_fn: LossFnType, loss_fn_config: LossConfig | None = None
    ) -> APIFuture[ForwardBackwardOutput]: ...

    def forward_backward(
        self, data: list[Datum], loss_fn: LossFnType, loss_fn_config: LossConfig | None = None
    ) -> APIFuture[ForwardBackwardOutput]: ...

    def forward_backward_custom(
        self, data: list[Datum], loss_fn: CustomLoss
    ) -> APIFuture[ForwardBackwardOutput]: ...

    def optim_step(
        self, optim_params: AdamParams | None = None
    ) -> APIFuture[OptimStepResponse]: ...

    def save_state(self, name: str, overwrite: bool = False) -> APIFuture[SaveWeightsResponse]: ...

    def save_weights_for_sampler(self, name: str) -> APIFuture[SaveWeightsForSamplerResponse]: ...

    def save_weights_and_get_sampling_client(self) -> APIFuture[SamplingClient]: ...

    def create_sampling_client(self, model_path: str) -> SamplingClient: ...

    def get_info(self) -> GetInfoResponse: ...

    def get_tokenizer(self) -> Any: ...


class ServiceClient(Protocol):
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
    ) -> TrainingClient: ...

    def create_training_client_from_state(
        self, path: str, base_model: str | None = None
    ) -> TrainingClient: ...

    def create_training_client_from_state_with_optimizer(
        self, path: str, base_model: str | None = None
    ) -> TrainingClient: ...

    def create_sampling_client(
        self, model_path: str | None = None, base_model: str | None = None
    ) -> SamplingClient: ...

    def get_server_capabilities(self) -> GetServerCapabilitiesResponse: ...

    def close(self) -> None: ...
