"""The adapter over the tinker SDK, driven with a fake in place of the SDK's clients.

uv run --extra tinker pytest tests/training/backends/test_remote.py

Every call that reaches the fake is bound to the signature of the real method, so an argument that
the installed SDK does not have fails here.
"""

import asyncio
import concurrent.futures
import dataclasses
import http.server
import inspect
import subprocess
import sys
import threading
import typing
from typing import Any

import numpy as np
import pytest
import torch

from training import api
from training.backends import tinker as remote
from training.connect import connect

tinker = pytest.importorskip("tinker")

Calls = list[tuple[str, dict[str, Any]]]


class FakeClient:
    """Answers the methods of an SDK class; an answer that is an Exception is raised by a future."""

    def __init__(self, sdk_class: type, calls: Calls, **answers: Any) -> None:
        self._sdk_class = sdk_class
        self._calls = calls
        self._answers = answers
        self.model_id = "session:train:0"

    def __getattr__(self, name: str) -> Any:
        signature = inspect.signature(getattr(self._sdk_class, name))

        def call(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(self, *args, **kwargs)
            self._calls.append((name, {k: v for k, v in bound.arguments.items() if k != "self"}))
            answer = self._answers[name]
            if name in {"get_info", "get_tokenizer", "get_base_model"}:
                return answer
            future: concurrent.futures.Future[Any] = concurrent.futures.Future()
            if isinstance(answer, Exception):
                future.set_exception(answer)
            else:
                future.set_result(answer(bound.arguments) if inspect.isfunction(answer) else answer)
            return tinker.lib.public_interfaces.api_future.AwaitableConcurrentFuture(future)

        return call


DATUM = api.Datum(
    api.ModelInput([api.EncodedTextChunk([1, 2]), api.EncodedTextChunk([3])]),
    {"target_tokens": [2, 3, 4], "weights": [0.0, 1.0, -0.5]},
)
OUTPUT = tinker.ForwardBackwardOutput(
    loss_fn_output_type="x",
    loss_fn_outputs=[{"logprobs": tinker.TensorData([-1.0, -2.0, -3.0], "float32", [3])}],
    metrics={"loss:sum": 1.5},
)
SAMPLES = tinker.SampleResponse(
    sequences=[
        tinker.SampledSequence(
            stop_reason="stop",
            sequence_id="s0",
            tokens_np=np.array([5, 6], np.int32),
            logprobs_np=np.array([-0.5, -0.25], np.float32),
            topk_logprobs_np=tinker.types.topk_logprobs.TopkLogprobs(
                np.array([[5, 0], [6, 7]], np.int32),
                np.array([[-0.5, -99999.0], [-0.25, -2.0]], np.float32),
            ),
        ),
        tinker.SampledSequence(stop_reason="length", sequence_id="s1", _tokens_list=[8]),
    ],
    prompt_logprobs_np=np.array([np.nan, -1.0], np.float32),
    prompt_cache_hit_tokens=3,
)


def service_with(**training_answers: Any) -> tuple[remote.RemoteServiceClient, Calls]:
    calls: Calls = []
    sampler = FakeClient(
        tinker.SamplingClient,
        calls,
        sample=SAMPLES,
        compute_logprobs=[None, -1.0],
        get_base_model="base",
        get_tokenizer="tokenizer",
    )
    info = tinker.types.GetInfoResponse(
        model_data=tinker.types.ModelData(arch="llama", model_name="base", tokenizer_id="tok"),
        model_id="session:train:0",
        is_lora=True,
        lora_rank=8,
        model_name="base",
    )
    answers = {
        "forward": OUTPUT,
        "forward_backward": OUTPUT,
        "optim_step": tinker.OptimStepResponse(metrics={"norm": 2.0}),
        "save_state": tinker.types.SaveWeightsResponse(path="tinker://r/weights/000010"),
        "save_weights_for_sampler": tinker.types.SaveWeightsForSamplerResponse(
            path="tinker://r/sampler_weights/a"
        ),
        "save_weights_and_get_sampling_client": sampler,
        "create_sampling_client": sampler,
        "get_info": info,
        "get_tokenizer": "tokenizer",
        **training_answers,
    }
    trainer = FakeClient(tinker.TrainingClient, calls, **answers)
    service = FakeClient(
        tinker.ServiceClient,
        calls,
        create_lora_training_client=trainer,
        create_training_client_from_state=trainer,
        create_training_client_from_state_with_optimizer=trainer,
        create_sampling_client=sampler,
        close=None,
    )
    capabilities = tinker.types.GetServerCapabilitiesResponse(
        supported_models=[
            tinker.types.get_server_capabilities_response.SupportedModel(
                model_name="base", max_context_length=64, trainable=True
            )
        ]
    )
    rest = FakeClient(tinker.RestClient, calls, get_server_capabilities=capabilities)
    made = remote.RemoteServiceClient(
        sdk_client=typing.cast(Any, service), rest_client=typing.cast(Any, rest)
    )
    return made, calls


# ---------------------------------------------------------------------------- the real SDK's types


@pytest.mark.parametrize("name", ["AdamParams", "SamplingParams", "LoraConfig"])
def test_defaults_are_the_sdks(name: str) -> None:
    extensions = {
        "SamplingParams": {"min_p", "json_schema", "grammar"},
        "LoraConfig": {"alpha"},
    }
    local_only = extensions.get(name, set())
    ours = {
        field.name: field.default
        for field in dataclasses.fields(getattr(api, name))
        if field.name not in local_only
    }
    if name == "LoraConfig":
        # the SDK's rank has no default there; its create_lora_training_client has
        signature = inspect.signature(tinker.ServiceClient.create_lora_training_client)
        assert ours.pop("rank") == signature.parameters["rank"].default
    parameters = inspect.signature(getattr(tinker.types, name)).parameters
    theirs = {key: p.default for key, p in parameters.items() if key in ours or key != "rank"}
    assert ours == theirs


def test_loss_functions_are_the_sdks() -> None:
    # the other two need the service itself: an unpublished formula, and losses it has compiled
    theirs = set(typing.get_args(tinker.types.LossFnType))
    assert set(typing.get_args(api.LossFnType)) == theirs - {"stable_reinforce", "custom"}
    assert set(typing.get_args(api.StopReason)) == set(typing.get_args(tinker.StopReason))


@pytest.mark.parametrize(
    ("protocol", "adapter", "sdk_class"),
    [
        (api.ServiceClient, remote.RemoteServiceClient, tinker.ServiceClient),
        (api.TrainingClient, remote.RemoteTrainingClient, tinker.TrainingClient),
        (api.SamplingClient, remote.RemoteSamplingClient, tinker.SamplingClient),
    ],
)
def test_methods_have_the_protocols_and_the_sdks_parameters(
    protocol: type, adapter: type, sdk_class: type
) -> None:
    for name, method in inspect.getmembers(protocol, inspect.isfunction):
        if name.startswith("_"):
            continue
        ours = inspect.signature(getattr(adapter, name)).parameters
        assert list(ours) == list(inspect.signature(method).parameters), name
        defaults = {key: p.default for key, p in ours.items()}
        assert defaults == {
            key: p.default for key, p in inspect.signature(method).parameters.items()
        }
        if name == "close":
            continue  # ours always closes with "success"
        theirs = inspect.signature(getattr(sdk_class, name)).parameters
        for key, default in defaults.items():
            if key not in ("lora_alpha", "lora_dropout"):
                assert theirs[key].default == default, (name, key)


def test_datum_round_trip() -> None:
    targets_NK = np.array([[2, 3], [0, 4], [5, 6]])
    datum = api.Datum(
        DATUM.model_input,
        {"target_tokens": targets_NK, "weights": np.array([[0, 1], [0, 2], [-3, 4]], np.float32)},
    )
    for original in (DATUM, datum):
        sent = remote.datum_to_sdk(original)
        assert isinstance(sent, tinker.Datum)
        back = remote.datum_from_sdk(sent)
        assert back.model_input.to_ints() == [1, 2, 3]
        assert set(back.loss_fn_inputs) == set(original.loss_fn_inputs)
        for key, tensor in original.loss_fn_inputs.items():
            returned = back.loss_fn_inputs[key]
            assert (returned.dtype, returned.shape) == (tensor.dtype, tensor.shape)
            np.testing.assert_array_equal(returned.to_numpy(), tensor.to_numpy())


def test_sparse_tensors_arrive_dense() -> None:
    dense = torch.zeros(6, 8)
    dense[2, 3] = 1.5
    sparse = tinker.TensorData.from_torch_sparse(dense)
    assert sparse.sparse_crow_indices is not None
    np.testing.assert_array_equal(remote.tensor_from_sdk(sparse).to_numpy(), dense.numpy())


def test_sample_response_reads_like_the_sdks() -> None:
    ours = remote.sample_response_from_sdk(SAMPLES)
    assert ours.prompt_logprobs == SAMPLES.prompt_logprobs == [None, -1.0]
    assert ours.topk_prompt_logprobs is None
    assert ours.prompt_cache_hit_tokens == 3
    for mine, theirs in zip(ours.sequences, SAMPLES.sequences, strict=True):
        for name in ("stop_reason", "sequence_id", "tokens", "logprobs", "topk_logprobs"):
            assert getattr(mine, name) == getattr(theirs, name), name
    assert ours.sequences[0].topk_logprobs == [[(5, -0.5)], [(6, -0.25), (7, -2.0)]]


# ---------------------------------------------------------------------------------- the adapter


def test_a_training_step_reaches_the_sdk() -> None:
    service, calls = service_with()
    trainer = service.create_lora_training_client("base", rank=8, seed=3, train_unembed=False)
    assert trainer.model_id == "session:train:0"
    for method in (trainer.forward, trainer.forward_backward):
        output = method([DATUM], "cispo", {"clip_low_threshold": 0.8}).result(timeout=1)
        assert isinstance(output, api.ForwardBackwardOutput)
        assert output.metrics == {"loss:sum": 1.5}
        assert output.loss_fn_outputs[0]["logprobs"].tolist() == [-1.0, -2.0, -3.0]
    step = trainer.optim_step(api.AdamParams(learning_rate=0.5, eps=1e-8)).result()
    assert step.metrics == {"norm": 2.0}
    trainer.optim_step()
    assert trainer.save_state("000010", overwrite=True).result().path.endswith("000010")
    assert trainer.save_weights_for_sampler("a").result().path == "tinker://r/sampler_weights/a"
    assert trainer.get_info() == api.GetInfoResponse(
        api.ModelData("llama", "base", "tok"), "session:train:0", True, 8, "base"
    )
    assert trainer.get_tokenizer() == "tokenizer"

    names = [name for name, _ in calls]
    assert names[:3] == ["create_lora_training_client", "forward", "forward_backward"]
    made = calls[0][1]
    assert (made["rank"], made["seed"], made["train_mlp"], made["train_unembed"]) == (
        8,
        3,
        True,
        False,
    )
    sent = calls[2][1]
    assert (sent["loss_fn"], sent["loss_fn_config"]) == ("cispo", {"clip_low_threshold": 0.8})
    assert isinstance(sent["data"][0], tinker.Datum)
    steps = [arguments["optim_params"] for name, arguments in calls if name == "optim_step"]
    assert steps[0] == tinker.AdamParams(learning_rate=0.5, eps=1e-8)
    assert steps[1] == tinker.AdamParams()


def test_sampling_reaches_the_sdk() -> None:
    service, calls = service_with()
    trainer = service.create_training_client_from_state_with_optimizer("tinker://r/weights/a")
    service.create_training_client_from_state("tinker://r/weights/a", "base")
    samplers = [
        service.create_sampling_client(base_model="base"),
        trainer.save_weights_and_get_sampling_client().result(),
        trainer.create_sampling_client("tinker://r/sampler_weights/a"),
    ]
    params = api.SamplingParams(max_tokens=4, seed=1, stop=[7], temperature=0.5, top_k=9, top_p=0.5)
    for sampler in samplers:
        response = sampler.sample(DATUM.model_input, 2, params, topk_sample_logprobs=2).result()
        assert [sequence.tokens for sequence in response.sequences] == [[5, 6], [8]]
        assert sampler.compute_logprobs(DATUM.model_input).result() == [None, -1.0]
        assert (sampler.get_base_model(), sampler.get_tokenizer()) == ("base", "tokenizer")
    embedded = FakeClient(tinker.SamplingClient, calls, get_base_model="embedded")
    tokenizer = remote.RemoteSamplingClient(embedded).get_tokenizer()  # type: ignore[arg-type]
    assert tokenizer.decode(tokenizer.encode("a word")) == "a word"
    sent = next(arguments for name, arguments in calls if name == "sample")
    assert sent["prompt"].to_ints() == [1, 2, 3]
    assert (sent["num_samples"], sent["topk_sample_logprobs"]) == (2, 2)
    assert sent["sampling_params"] == tinker.SamplingParams(
        max_tokens=4, seed=1, stop=[7], temperature=0.5, top_k=9, top_p=0.5
    )
    (model,) = service.get_server_capabilities().supported_models
    assert model == api.SupportedModel("base", 64, True, None)
    service.close()
    assert calls[-1] == ("close", {"status": "success"})


def test_custom_loss_gets_our_datums() -> None:
    def run_loss(arguments: dict[str, Any]) -> Any:
        logprobs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
        loss, metrics = arguments["loss_fn"](arguments["data"], [logprobs])
        return tinker.ForwardBackwardOutput("x", [], {**metrics, "loss:sum": loss.item()})

    def loss_fn(
        data: list[api.Datum], logprobs: list[torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        assert data == [DATUM]
        weights = data[0].loss_fn_inputs["weights"].to_torch()
        return -(weights * logprobs[0]).sum(), {"n": 1.0}

    service, _ = service_with(forward_backward_custom=run_loss)
    trainer = service.create_lora_training_client("base")
    output = trainer.forward_backward_custom([DATUM], loss_fn).result()
    assert output.metrics == {"n": 1.0, "loss:sum": 0.5}


def test_futures_can_be_awaited() -> None:
    service, _ = service_with()
    trainer = service.create_lora_training_client("base")

    async def step() -> api.ForwardBackwardOutput:
        first = trainer.forward_backward([DATUM], "cross_entropy")
        second = trainer.optim_step()
        await second
        return await first

    assert asyncio.run(step()).metrics == {"loss:sum": 1.5}


@pytest.mark.parametrize(
    ("category", "expected"), [("user", "user"), ("server", "server"), ("unknown", "server")]
)
def test_a_failed_request_raises_our_error(category: str, expected: str) -> None:
    sdk_category = tinker.types.RequestErrorCategory(category)
    error = tinker.RequestFailedError("no such loss", "id", sdk_category)
    service, _ = service_with(forward=error, optim_step=OSError("network"))
    trainer = service.create_lora_training_client("base")
    with pytest.raises(api.RequestFailedError, match="no such loss") as raised:
        trainer.forward([DATUM], "ppo").result()
    assert raised.value.category == expected
    with pytest.raises(OSError, match="network"):
        trainer.optim_step().result()


def test_what_only_the_local_backend_has_is_refused() -> None:
    service, calls = service_with()
    trainer = service.create_lora_training_client("base")
    sampler = service.create_sampling_client(base_model="base")
    calls.clear()
    with pytest.raises(ValueError, match=r"lora_alpha=16: .*backend='local'"):
        service.create_lora_training_client("base", lora_alpha=16)
    with pytest.raises(ValueError, match=r"lora_dropout=0.1: .*backend='local'"):
        service.create_lora_training_client("base", lora_dropout=0.1)
    with pytest.raises(ValueError, match=r"min_p=0.1: .*backend='local'"):
        sampler.sample(DATUM.model_input, 1, api.SamplingParams(min_p=0.1))
    with pytest.raises(ValueError, match=r"json_schema: .*backend='local'"):
        sampler.sample(DATUM.model_input, 1, api.SamplingParams(json_schema={"type": "object"}))
    with pytest.raises(ValueError, match=r"grammar: .*backend='local'"):
        sampler.sample(DATUM.model_input, 1, api.SamplingParams(grammar='start: "a"'))
    with pytest.raises(ValueError, match=r"name='runs/a': .*without a folder"):
        trainer.save_state("runs/a")
    with pytest.raises(ValueError, match=r"path='/tmp/a': .*its own checkpoints only"):
        service.create_training_client_from_state("/tmp/a")
    with pytest.raises(ValueError, match=r"path='/tmp/a'"):
        service.create_sampling_client(model_path="/tmp/a")
    with pytest.raises(ValueError, match="model_path or base_model"):
        service.create_sampling_client()
    assert calls == []
    # what it has anyway
    service.create_lora_training_client("base", lora_alpha=32.0)
    assert [name for name, _ in calls] == ["create_lora_training_client"]


def test_a_missing_sdk_names_the_install_command() -> None:
    code = "import sys; sys.modules['tinker'] = None; import training.connect; "
    code += "training.connect.connect('tinker')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: backend='tinker' needs the tinker SDK" in done.stderr
    assert "uv sync --extra tinker" in done.stderr


class Answers(http.server.BaseHTTPRequestHandler):
    """With 401 to those without the key."""

    def do_GET(self) -> None:
        self.send_response(404 if self.headers["X-API-Key"] == "tml-right" else 401)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_who_does_not_answer_is_told_when_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """The SDK would ask again and again, and tell of a key by a traceback."""
    monkeypatch.delenv("TINKER_BASE_URL", raising=False)
    monkeypatch.delenv("TINKER_API_KEY", raising=False)
    with pytest.raises(ValueError, match="needs TINKER_API_KEY"):
        connect("tinker", base_url="http://127.0.0.1:9")
    monkeypatch.setenv("TINKER_API_KEY", "tml-wrong")
    for url in ("http://127.0.0.1:9", "127.0.0.1:9", "http://["):
        with pytest.raises(ValueError, match=r"base_url=.*: nobody answers there"):
            connect("tinker", base_url=url)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        with pytest.raises(ValueError, match=r"TINKER_API_KEY: .* does not take it \(HTTP 401\)"):
            connect("tinker", base_url=url)
        monkeypatch.setenv("TINKER_BASE_URL", url)
        with pytest.raises(ValueError, match="TINKER_API_KEY: "):
            connect("tinker")
        # a server without that route is one
        monkeypatch.setenv("TINKER_API_KEY", "tml-right")
        assert isinstance(connect("tinker"), remote.RemoteServiceClient)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    with pytest.raises(ValueError, match="checkpoint_dir"):
        connect("tinker", checkpoint_dir="runs")
