"""The local backend's clients: the API of training/api.py over an engine in this process."""

import itertools
import logging
import queue
import secrets
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch

from training.adapter_proof import Judge, probe_datum
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
    SampledToken,
    SampleResponse,
    SamplingParams,
    SaveWeightsForSamplerResponse,
    SaveWeightsResponse,
    SupportedModel,
    require_model_input,
)
from training.backends.local import losses
from training.backends.local.adapter_sums import summed, with_trained_ranks_scaled
from training.backends.local.adapters import (
    DEFAULT_ALPHA,
    Adapter,
    AdapterConfig,
    AdapterWeights,
    choose_targets,
    describe,
    on_top,
    training_bytes,
)
from training.backends.local.checkpoints import (
    base_model_of,
    export_merged,
    load_adapter,
    read_state,
    save_adapter,
    size_of_b,
)
from training.backends.local.custom_loss import Surrogate, for_logprobs
from training.backends.local.decoder import Decoder
from training.backends.local.engine import Engine, EngineOptions
from training.backends.local.loading import loads_with_transformers
from training.backends.local.peft_folders import targets_for_peft
from training.backends.local.probing import Trained, make_probe
from training.backends.local.sampler import Probe, SampleJob
from training.backends.local.stops import StopStrings
from training.backends.local.trainer import TrainJob
from training.checks import (
    check_values,
    checkpoint_name,
    flag,
    optional,
    real,
    sample_arguments,
    whole,
)
from training.models import (
    EMBEDDED,
    check_sampling_weights,
    lacks_tokenizer,
    model_files,
    resolve_model,
)
from utils.devices import choose_device, choose_dtype, free_memory
from utils.runs.inputs import Input, data_input

logger = logging.getLogger(__name__)

DEFAULT_CHECKPOINT_DIR = Path("runs/checkpoints")


class _Ready:
    """Factories return the client itself; .result() and await work too, as on the SDK's futures."""

    def result(self, timeout: float | None = None) -> Self:
        return self

    def __await__(self) -> Generator[Any, None, Self]:
        yield from ()
        return self


class AdapterMemory(NamedTuple):
    """Bytes on the device: what an adapter in training needs, and what is free, if known."""

    needed: int
    free: int | None


class LocalServiceClient:
    """See training.api.ServiceClient. Base models load once, when a client first needs them."""

    def __init__(
        self,
        *,
        checkpoint_dir: str | Path | None = None,
        device: str | None = None,
        dtype: str | None = None,
        **engine_options: Any,
    ) -> None:
        self._checkpoint_dir = Path(checkpoint_dir or DEFAULT_CHECKPOINT_DIR)
        self._device = torch.device(choose_device(device))
        self._dtype: torch.dtype = getattr(torch, choose_dtype(dtype, self._device.type))
        self._options = EngineOptions(**engine_options)
        weights = self._options.sampling_weights
        if weights and self._device.type != "cpu":
            raise ValueError(
                f"sampling_weights={weights!r} needs device='cpu'; got device={self._device.type!r}"
            )
        if weights == "bfloat16" and self._dtype == torch.bfloat16:
            raise ValueError(
                "sampling_weights='bfloat16' needs dtype='float32'; with dtype='bfloat16' samples "
                "are decoded with such weights anyway: leave it out"
            )
        self._engines: dict[str, Engine] = {}
        self._told: set[str] = set()
        self._lock = threading.Lock()
        # one for each base model: while one loads, others can be used
        self._loading: dict[str, threading.Lock] = {}
        self._session = secrets.token_hex(4)
        self._counter = itertools.count()

    def engine(self, base_model: str) -> Engine:
        """Local extension: the engine of a base model, loaded on first use."""
        if base_model in self._engines:
            return self._engines[base_model]
        with self._lock:
            loading = self._loading.setdefault(base_model, threading.Lock())
        with loading:
            if base_model not in self._engines:
                source = resolve_model(base_model)
                weights = self._options.sampling_weights
                check_sampling_weights(base_model, weights)
                self._engines[base_model] = Engine(
                    lambda: Decoder(source, self._device, self._dtype, sampling_weights=weights),
                    base_model,
                    self._options,
                    loads_with_transformers=loads_with_transformers(source, self._dtype),
                )
            return self._engines[base_model]

    @property
    def tokens_trained(self) -> int:
        """Local extension: of all base models, counted as micro-batches end."""
        return sum(engine.trainer.tokens_trained for engine in list(self._engines.values()))

    @property
    def tokens_sampled(self) -> int | None:
        """Local extension: of all base models, counted as they are drawn."""
        return sum(engine.sampler.sampled_tokens for engine in list(self._engines.values()))

    def adapter_memory(
        self,
        base_model: str,
        rank: int,
        *,
        train_mlp: bool = True,
        train_attn: bool = True,
        train_unembed: bool = True,
    ) -> AdapterMemory:
        """Local extension: what one more adapter takes. Loads the base model."""
        engine = self.engine(base_model)
        targets = choose_targets(
            engine.decoder,
            train_attn=train_attn,
            train_mlp=train_mlp,
            train_unembed=train_unembed,
            target_modules=None,
        )
        config = AdapterConfig(rank, DEFAULT_ALPHA, targets)
        needed = training_bytes(config, engine.decoder)
        return AdapterMemory(needed, free_memory(self._device))

    def base_model_input(self, base_model: str) -> Input:
        """Local extension: what tells a base model apart that lies at the same place: its weights,
        by the decoder's two digests, its settings, its tokenizer and its template. Loads it."""
        engine = self.engine(base_model)
        # brings a hub's files here
        _ = engine.tokenizer
        source, files = model_files(base_model)
        weights = [engine.decoder.fingerprint, engine.decoder.weights_digest]
        return data_input(source, [*weights, files])

    def size_of_b(self, path: str) -> float:
        """Local extension: of a checkpoint's file (see adapter_proof.first_sizeable()); 0 of an
        adapter that changes nothing."""
        return size_of_b(read_state(path))

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
    ) -> "LocalTrainingClient":
        """Local extensions: lora_alpha (default 32, as the service's), lora_dropout (0 <= p < 1),
        target_modules, the layers' short names (["q_proj", "v_proj"]; "unembed" is the head),
        instead of train_*, and on_top_of, an adapter folder.

        With on_top_of the new adapter is trained as if the other had been merged into the base
        model before: its `rank` ranks come after that adapter's, which stay as they are. What is
        saved or sampled is both together, one adapter of the sum of the ranks.

        lora_dropout is PEFT's, in forward_backward and forward_backward_custom alone, but layers
        computed as one product here (q, k and v; gate and up) share the mask of their input. Masks
        follow from `seed`, the number of training passes before, and a datum's place in its
        request. Data with dropout do not share the computation of common prompts.
        """
        above_zero = real("a finite number above 0", lambda alpha: alpha > 0)
        dropout = real("0 <= lora_dropout < 1", lambda share: 0 <= share < 1)
        checked = check_values(
            "create_lora_training_client",
            {
                "rank": (rank, whole(1)),
                "seed": (seed, optional(whole())),
                "train_mlp": (train_mlp, flag),
                "train_attn": (train_attn, flag),
                "train_unembed": (train_unembed, flag),
                "lora_alpha": (lora_alpha, optional(above_zero)),
                "lora_dropout": (lora_dropout, dropout),
            },
        )
        engine = self.engine(base_model)
        targets = choose_targets(
            engine.decoder,
            train_attn=train_attn,
            train_mlp=train_mlp,
            train_unembed=train_unembed,
            target_modules=target_modules,
        )
        alpha, seed = checked["lora_alpha"], checked["seed"]
        config = AdapterConfig(
            checked["rank"],
            DEFAULT_ALPHA if alpha is None else float(alpha),
            targets,
            secrets.randbits(63) if seed is None else seed,
            float(checked["lora_dropout"]),
        )
        below = None
        if on_top_of is not None:
            below = load_adapter(read_state(on_top_of), engine.decoder, with_optimizer=False)
            config = on_top(config, below.config)
        told = f"{base_model}: {describe(config, engine.decoder)}"
        if told not in self._told:
            # once, not for each of a thousand adapters
            self._told.add(told)
            logger.info(told)
        adapter = Adapter(config, engine.decoder)
        if below is not None:
            adapter.put_on(below)
        return self._training_client(engine, adapter)

    def create_training_client_from_sum(
        self, terms: Sequence[tuple[str, float]], base_model: str
    ) -> "LocalTrainingClient":
        """Local extension: the weighted sum of adapter folders as one adapter, exact (the ranks
        are concatenated); weights may be negative."""
        engine = self.engine(base_model)
        return self._training_client(engine, summed(terms, engine.decoder))

    def create_training_client_scaled(
        self, path: str, weight: float, base_model: str
    ) -> "LocalTrainingClient":
        """Local extension: an adapter with what it learned times `weight`; the frozen ranks that it
        was put on top of stay whole."""
        engine = self.engine(base_model)
        scaled = with_trained_ranks_scaled(path, weight, engine.decoder)
        return self._training_client(engine, scaled)

    def create_training_client_from_state(
        self, path: str, base_model: str | None = None
    ) -> "LocalTrainingClient":
        return self._from_state(path, base_model, with_optimizer=False)

    def create_training_client_from_state_with_optimizer(
        self, path: str, base_model: str | None = None
    ) -> "LocalTrainingClient":
        return self._from_state(path, base_model, with_optimizer=True)

    def create_sampling_client(
        self, model_path: str | None = None, base_model: str | None = None
    ) -> "LocalSamplingClient":
        if model_path is None and base_model is None:
            raise ValueError("create_sampling_client needs model_path or base_model")
        if model_path is None:
            assert base_model is not None
            return self.new_sampling_client(self.engine(base_model), None)
        state = read_state(model_path)
        engine = self.engine(base_model_of(state, base_model))
        adapter = load_adapter(state, engine.decoder, with_optimizer=False)
        return self.new_sampling_client(engine, adapter.snapshot())

    def new_sampling_client(
        self, engine: Engine, weights: AdapterWeights | None
    ) -> "LocalSamplingClient":
        """Local extension: of weights as they are, None for the base model's; on the worker too."""
        return LocalSamplingClient(engine, weights)

    def get_server_capabilities(self) -> GetServerCapabilitiesResponse:
        """The embedded model and the base models loaded so far; any folder or hub id works."""
        names = dict.fromkeys([EMBEDDED, *self._engines])
        models = []
        for name in names:
            engine = self._engines.get(name)
            length = None if engine is None else engine.decoder.context_length
            models.append(SupportedModel(name, length, trainable=True, sampleable=True))
        return GetServerCapabilitiesResponse(models)

    def close(self) -> None:
        for engine in list(self._engines.values()):
            engine.close()
        self._engines.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def _from_state(
        self, path: str, base_model: str | None, *, with_optimizer: bool
    ) -> "LocalTrainingClient":
        state = read_state(path)
        engine = self.engine(base_model_of(state, base_model))
        adapter = load_adapter(state, engine.decoder, with_optimizer=with_optimizer)
        return self._training_client(engine, adapter)

    def _training_client(self, engine: Engine, adapter: Adapter) -> "LocalTrainingClient":
        # what could not be saved is not to be trained
        targets_for_peft(adapter.config, engine.decoder)
        return self._new_training_client(
            engine, adapter, f"{self._session}-train-{next(self._counter)}"
        )

    def _new_training_client(
        self, engine: Engine, adapter: Adapter, model_id: str
    ) -> "LocalTrainingClient":
        return LocalTrainingClient(self, engine, adapter, model_id, self._checkpoint_dir)


class LocalTrainingClient(_Ready):
    """See training.api.TrainingClient."""

    def __init__(
        self,
        service: LocalServiceClient,
        engine: Engine,
        adapter: Adapter,
        model_id: str,
        checkpoint_dir: Path,
    ) -> None:
        self.model_id = model_id
        self._service = service
        self._engine = engine
        self._adapter = adapter
        self._queue = engine.new_queue()
        self._folder = checkpoint_dir / model_id
        # of the weights as they are
        self._probe: Probe | None = None

    def forward(
        self, data: list[Datum], loss_fn: LossFnType, loss_fn_config: LossConfig | None = None
    ) -> APIFuture[ForwardBackwardOutput]:
        return self.prepare_forward(data, loss_fn, loss_fn_config)()

    def forward_backward(
        self, data: list[Datum], loss_fn: LossFnType, loss_fn_config: LossConfig | None = None
    ) -> APIFuture[ForwardBackwardOutput]:
        return self.prepare_forward_backward(data, loss_fn, loss_fn_config)()

    def prepare_forward(
        self, data: list[Datum], loss_fn: LossFnType, loss_fn_config: LossConfig | None = None
    ) -> Callable[[], APIFuture[ForwardBackwardOutput]]:
        """Local extension: forward(), checked now and made when what comes back is called."""
        job = self._job(data, loss_fn, loss_fn_config, backward=False, drop=False)
        return lambda: self._submit(job)

    def prepare_forward_backward(
        self, data: list[Datum], loss_fn: LossFnType, loss_fn_config: LossConfig | None = None
    ) -> Callable[[], APIFuture[ForwardBackwardOutput]]:
        """Local extension: as prepare_forward()."""
        job = self._job(data, loss_fn, loss_fn_config, backward=True, drop=True)
        return lambda: self._submit(job)

    def forward_backward_custom(
        self, data: list[Datum], loss_fn: CustomLoss
    ) -> APIFuture[ForwardBackwardOutput]:
        """Two passes: logprobs, then cross_entropy with weights -dC/dlogp, exact because
        cross_entropy is linear in the logprobs. Blocks for the first pass."""
        data = list(data)
        output, pass_number = self.logprobs_for_custom(for_logprobs(data)).result()
        surrogate = Surrogate(data, loss_fn, output)
        return self.backward_of_custom(surrogate.data, pass_number).map(surrogate.combined)

    def logprobs_for_custom(
        self, data: list[Datum]
    ) -> "APIFuture[tuple[ForwardBackwardOutput, int]]":
        """Local extension: the first pass of forward_backward_custom, with the number of the pass
        that its dropout masks are those of."""
        job = self._job(data, "cross_entropy", None, backward=False, drop=True)

        def numbered(output: ForwardBackwardOutput) -> tuple[ForwardBackwardOutput, int]:
            assert job.pass_number is not None
            return output, job.pass_number

        return self._submit(job).map(numbered)

    def backward_of_custom(
        self, data: list[Datum], pass_number: int
    ) -> APIFuture[ForwardBackwardOutput]:
        """Local extension: the second pass, with the masks of the first: others would make it the
        gradient of another function."""
        job = self._job(data, "cross_entropy", None, backward=True, drop=True)
        job.pass_number = pass_number
        return self._submit(job)

    @property
    def has_gradient(self) -> bool:
        """Local extension: whether there is a gradient that no step has used."""
        return self._adapter.has_grad

    @property
    def num_steps(self) -> int:
        """Local extension: the optimizer's steps, those before a checkpoint with it was loaded
        included."""
        return self._adapter.num_steps

    def optim_step(self, optim_params: AdamParams | None = None) -> APIFuture[OptimStepResponse]:
        p = optim_params or AdamParams()

        def step() -> OptimStepResponse:
            self._settle_probe()
            metrics = self._adapter.step(
                learning_rate=p.learning_rate,
                beta1=p.beta1,
                beta2=p.beta2,
                eps=p.eps,
                weight_decay=p.weight_decay,
                grad_clip_norm=p.grad_clip_norm,
            )
            return OptimStepResponse(metrics)

        return self._engine.submit_call(self._queue, step)

    def save_state(self, name: str, overwrite: bool = False) -> APIFuture[SaveWeightsResponse]:
        """A PEFT folder with optimizer moments and any gradient not yet used."""

        def save() -> SaveWeightsResponse:
            folder = self._place("weights", name)
            self._save(folder, with_optimizer=True, overwrite=overwrite)
            return SaveWeightsResponse(str(folder))

        return self._engine.submit_call(self._queue, save)

    def save_into(
        self, folder: Path, *, with_optimizer: bool, overwrite: bool = False
    ) -> APIFuture[str]:
        """Local extension: what save_state() writes, or without the optimizer what
        save_weights_for_sampler() writes, as a folder of the caller's."""

        def save() -> str:
            self._save(folder, with_optimizer=with_optimizer, overwrite=overwrite)
            return str(folder)

        return self._engine.submit_call(self._queue, save)

    def save_weights_for_sampler(self, name: str) -> APIFuture[SaveWeightsForSamplerResponse]:
        def save() -> SaveWeightsForSamplerResponse:
            folder = self._place("sampler_weights", name)
            self._save(folder, with_optimizer=False, overwrite=False)
            return SaveWeightsForSamplerResponse(str(folder))

        return self._engine.submit_call(self._queue, save)

    def save_weights_and_get_sampling_client(self) -> "APIFuture[LocalSamplingClient]":
        """A sampler of the weights as they are when this request's turn comes."""
        return self._engine.submit_call(
            self._queue,
            lambda: self._service.new_sampling_client(self._engine, self._adapter.snapshot()),
        )

    def save_weights_and_probe(
        self, tokens: list[int], judge: Judge, *, with_answers: bool
    ) -> "APIFuture[LocalSamplingClient]":
        """Local extension: save_weights_and_get_sampling_client(), where `judge` gets what that
        sampler, this client and the base model say of `tokens` (see probing.py). Where B is zero
        nobody is asked.

        That happens in this request's turn and a pass of its own; `with_answers` along with the
        sampler's first prefill, before any of it is answered and before this client's weights
        change. Nothing else runs sooner, later or with others because of that.
        """
        trained = self._trained(tokens)

        def make() -> LocalSamplingClient:
            sampler = LocalSamplingClient(self._engine, self._adapter.snapshot())
            largest = self._adapter.size_of_b()
            if largest != 0:
                self._look(sampler, tokens, judge, largest, trained, with_answers)
            return sampler

        return self._engine.submit_call(self._queue, make)

    def probe(
        self,
        sampler: "LocalSamplingClient",
        tokens: list[int],
        judge: Judge,
        *,
        with_answers: bool = False,
    ) -> APIFuture[None]:
        """Local extension: as save_weights_and_probe(), of a sampler that there is."""
        trained = self._trained(tokens)

        def look() -> None:
            largest = self._adapter.size_of_b()
            # of zeros is told at once
            later = with_answers and largest != 0
            self._look(sampler, tokens, judge, largest, trained, later)

        return self._engine.submit_call(self._queue, look)

    def export_merged(self, folder: str | Path) -> APIFuture[str]:
        """Local extension: base model plus adapter as one Hugging Face folder, without a tokenizer
        where the base model's folder has none."""

        def export() -> str:
            engine = self._engine
            tokenizer = None if lacks_tokenizer(engine.model_name) else engine.tokenizer
            export_merged(Path(folder), self._adapter.layers, engine.decoder, tokenizer)
            return str(folder)

        return self._engine.submit_call(self._queue, export)

    def create_sampling_client(self, model_path: str) -> "LocalSamplingClient":
        return self._service.create_sampling_client(model_path, self._engine.model_name)

    def get_info(self) -> GetInfoResponse:
        decoder = self._engine.decoder
        return GetInfoResponse(
            model_data=ModelData(
                arch=decoder.config.model_type,
                model_name=self._engine.model_name,
                tokenizer_id=self._engine.model_name,
                max_context_length=decoder.context_length,
            ),
            model_id=self.model_id,
            is_lora=True,
            lora_rank=self._adapter.config.rank,
            model_name=self._engine.model_name,
        )

    def get_tokenizer(self) -> Any:
        return self._engine.tokenizer

    def _job(
        self,
        data: list[Datum],
        loss_fn: LossFnType,
        loss_fn_config: LossConfig | None,
        *,
        backward: bool,
        drop: bool,
    ) -> TrainJob:
        # what can be read once would be empty the second time
        data = list(data or ())
        if not data:
            raise ValueError("data is empty: pass at least one Datum")
        for i, datum in enumerate(data):
            if not isinstance(datum, Datum):
                raise ValueError(f"data[{i}] is a {type(datum).__name__}; a Datum is needed")
        config = losses.resolve_config(loss_fn, loss_fn_config)
        decoder = self._engine.decoder
        sequences = [datum.model_input.to_ints() for datum in data]
        for i, sequence in enumerate(sequences):
            _check_tokens(f"data[{i}].model_input", sequence, decoder)
        prepared = [
            losses.prepare(i, datum, loss_fn, decoder.vocab_size) for i, datum in enumerate(data)
        ]
        if len(widths := {p.target_shape[1:] for p in prepared}) > 1:
            raise ValueError(f"target_tokens of one request must share their K; got {widths}")
        drop = drop and self._adapter.config.dropout > 0
        return TrainJob(self._adapter, sequences, prepared, loss_fn, config, backward, drop)

    def _trained(self, tokens: list[int]) -> Callable[[], np.ndarray]:
        """What gives this client's logprobs of `tokens` after the first, on the worker."""
        job = self._job([probe_datum(tokens)], "cross_entropy", None, backward=False, drop=False)

        def logprobs() -> np.ndarray:
            [output] = self._engine.trainer.run([job])
            return output.loss_fn_outputs[0]["logprobs"].to_numpy().astype(float)

        return logprobs

    def _look(
        self,
        sampler: "LocalSamplingClient",
        tokens: list[int],
        judge: Judge,
        size_of_b: float,
        trained: Callable[[], np.ndarray],
        with_answers: bool,
    ) -> None:
        """On the worker: at once, or `with_answers` when the sampler is first asked."""
        self._settle_probe()
        weights = sampler.weights
        same = weights is not None and self._adapter.equals(weights)
        self._probe = make_probe(
            *(self._engine, sampler, LocalSamplingClient(self._engine, None), tokens, judge),
            size_of_b=size_of_b,
            trainer=Trained(trained, same),
        )
        if with_answers and self._engine.decoder.keeps_rows_apart:
            sampler.probes.append(self._probe)
        else:
            self._settle_probe()

    def _settle_probe(self) -> None:
        """On the worker, before the weights change that a sampler was given."""
        if (probe := self._probe) is not None:
            self._probe = None
            self._engine.sampler.settle(probe)

    def _submit(self, job: TrainJob) -> APIFuture[ForwardBackwardOutput]:
        return self._engine.submit_train(self._queue, job)

    def _place(self, kind: str, name: str) -> Path:
        return self._folder / kind / checkpoint_name(name)

    def _save(self, folder: Path, *, with_optimizer: bool, overwrite: bool) -> None:
        save_adapter(
            folder,
            self._adapter.config,
            self._adapter.layers,
            self._engine.decoder,
            self._engine.model_name,
            optimizer=self._adapter.optimizer_tensors() if with_optimizer else None,
            overwrite=overwrite,
        )


class LocalSamplingClient(_Ready):
    """See training.api.SamplingClient. Holds its own copy of the adapter's weights."""

    def __init__(self, engine: Engine, weights: AdapterWeights | None) -> None:
        self._engine = engine
        self._weights = weights
        # Local extension: go along with the first request
        self.probes: list[Probe] = []

    def sample(
        self,
        prompt: ModelInput,
        num_samples: int,
        sampling_params: SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
    ) -> APIFuture[SampleResponse]:
        return self.prepare_sample(
            prompt,
            num_samples,
            sampling_params,
            include_prompt_logprobs,
            topk_prompt_logprobs,
            topk_sample_logprobs,
        )()

    def prepare_sample(
        self,
        prompt: ModelInput,
        num_samples: int,
        sampling_params: SamplingParams,
        include_prompt_logprobs: bool = False,
        topk_prompt_logprobs: int = 0,
        topk_sample_logprobs: int = 0,
        on_token: Callable[[SampledToken], bool] | None = None,
    ) -> Callable[[], APIFuture[SampleResponse]]:
        """Local extension: sample(), checked now and made when what comes back is called.

        `on_token` is given every token as it comes, on the worker's thread, and must return at
        once; False ends that sample.
        """
        checked = sample_arguments(
            num_samples, include_prompt_logprobs, topk_prompt_logprobs, topk_sample_logprobs
        )
        job = self._job(prompt, checked["num_samples"], sampling_params)
        vocab_size = self._engine.decoder.vocab_size
        job.include_prompt_logprobs = checked["include_prompt_logprobs"]
        job.topk_prompt_logprobs = min(checked["topk_prompt_logprobs"], vocab_size)
        job.topk_sample_logprobs = min(checked["topk_sample_logprobs"], vocab_size)
        if on_token is not None:
            job.on_token = on_token
        return lambda: self._submit(job)

    def stream(self, prompt: ModelInput, sampling_params: SamplingParams) -> Iterator[int]:
        """Local extension: the tokens of one sample as they come. Closing the iterator ends it."""
        tokens: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        wanted = True

        def on_token(sampled: SampledToken) -> bool:
            tokens.put(sampled.token)
            return wanted

        job = self._job(prompt, 1, sampling_params)
        job.on_token = on_token
        future = self._submit(job)
        future.future().add_done_callback(lambda _future: tokens.put(None))
        future.start()
        try:
            while (token := tokens.get()) is not None:
                yield token
            future.result()
        finally:
            wanted = False

    def compute_logprobs(self, prompt: ModelInput) -> APIFuture[list[float | None]]:
        job = self.logprobs_job(prompt)
        return self._engine.submit_sample(job).map(lambda r: r.prompt_logprobs or [])

    def save_into(self, folder: Path, *, overwrite: bool = False) -> APIFuture[str]:
        """Local extension: writes its adapter as a folder that create_sampling_client takes."""
        weights, engine = self._weights, self._engine
        if weights is None:
            raise ValueError("this sampler is the base model's; it has no adapter to save")

        def save() -> str:
            save_adapter(
                folder,
                weights.config,
                weights.layers,
                engine.decoder,
                engine.model_name,
                optimizer=None,
                overwrite=overwrite,
            )
            return str(folder)

        return engine.submit_call(engine.new_queue(), save)

    def probe(
        self,
        tokens: list[int],
        judge: Judge,
        *,
        size_of_b: float,
        with_answers_of: Sequence["LocalSamplingClient"] = (),
    ) -> None:
        """Local extension: `judge` gets what this client and the base model say of `tokens` (see
        probing.py); `size_of_b` is what its adapter's B should have.

        That happens along with the first prefill for any of `with_answers_of`, before any of it is
        answered; at once, in a pass of its own, where there are none.
        """
        engine = self._engine
        base = LocalSamplingClient(engine, None)
        probe = make_probe(engine, self, base, tokens, judge, size_of_b=size_of_b)
        if with_answers_of and engine.decoder.keeps_rows_apart:
            for client in with_answers_of:
                client.probes.append(probe)
        else:
            engine.submit_call(engine.new_queue(), lambda: engine.sampler.settle(probe)).result()

    @property
    def weights(self) -> AdapterWeights | None:
        """Local extension: its adapter; None of the base model."""
        return self._weights

    @property
    def eos_tokens(self) -> frozenset[int]:
        """Local extension: the model's end tokens."""
        return self._engine.eos_tokens

    @property
    def dtype(self) -> str:
        """Local extension: of the base model's weights, float32 or bfloat16."""
        return self._engine.decoder.dtype_name

    def get_tokenizer(self) -> Any:
        return self._engine.tokenizer

    def get_base_model(self) -> str:
        return self._engine.model_name

    def logprobs_job(self, prompt: ModelInput) -> SampleJob:
        """What compute_logprobs() asks of the engine."""
        job = self._job(prompt, 0, SamplingParams(max_tokens=1, stop=[]))
        job.include_prompt_logprobs = True
        return job

    def _submit(self, job: SampleJob) -> APIFuture[SampleResponse]:
        return self._engine.submit_sample(job)

    def _job(self, prompt: ModelInput, num_samples: int, params: SamplingParams) -> SampleJob:
        tokens = require_model_input(prompt).to_ints()
        decoder = self._engine.decoder
        _check_tokens("prompt", tokens, decoder)
        room = decoder.context_length - len(tokens)
        if num_samples and room < 1:
            raise ValueError(
                f"prompt has {len(tokens)} tokens; the context holds {decoder.context_length}, "
                "prompt and answer together"
            )
        # the last token of an answer is never read
        same_kind = decoder.longest_of_kind(len(tokens)) - len(tokens) + 1
        if num_samples and (params.max_tokens or 0) > same_kind < room:
            raise ValueError(
                f"max_tokens={params.max_tokens} after a prompt of {len(tokens)} tokens: "
                "the model computes sequences longer than "
                f"{decoder.longest_of_kind(len(tokens))} tokens with other rotary frequencies "
                f"(longrope), all of their positions; at most {same_kind} tokens can be sampled "
                "here, or any number after a longer prompt"
            )
        room = min(room, same_kind)
        # what is wrong here must not fail the batch that the request would join
        stop_tokens, strings = self._stops(params)
        stop_strings = StopStrings(strings, tokens, self._engine.decode) if strings else None
        self._engine.make_constraint(params)
        return SampleJob(
            weights=self._weights,
            prompt=tokens,
            num_samples=num_samples,
            params=params,
            seed=secrets.randbits(63) if params.seed is None else params.seed % 2**64,
            max_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
            stop_tokens=stop_tokens,
            stop_strings=stop_strings,
            probes=tuple(self.probes),
        )

    def _stops(self, params: SamplingParams) -> tuple[frozenset[int], tuple[str, ...]]:
        """The model's end token stops too, unless stop=[] asks for no stop at all."""
        given = params.stop
        if given is None:
            return self._engine.eos_tokens, ()
        stops = [given] if isinstance(given, str) else list(given)
        if not stops:
            return frozenset(), ()
        tokens = frozenset(s for s in stops if not isinstance(s, str))
        vocab_size = self._engine.decoder.vocab_size
        if unknown := sorted(token for token in tokens if token >= vocab_size):
            raise ValueError(f"stop has token ids {unknown}; the vocabulary is 0..{vocab_size - 1}")
        strings = tuple(s for s in stops if isinstance(s, str))
        return tokens | self._engine.eos_tokens, strings


def _check_tokens(where: str, tokens: list[int], decoder: Decoder) -> None:
    if not tokens:
        raise ValueError(f"{where} is empty; it needs at least one token")
    if len(tokens) > decoder.context_length:
        raise ValueError(
            f"{where} has {len(tokens)} tokens; the model has a context of {decoder.context_length}"
        )
    low, high = min(tokens), max(tokens)
    if low < 0 or high >= decoder.vocab_size:
        raise ValueError(
            f"{where} has token ids in [{low}, {high}]; "
            f"the vocabulary is 0..{decoder.vocab_size - 1}"
        )
