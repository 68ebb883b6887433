"""Wrong requests get a clear error and harm nobody else; the engine survives what it can."""

import asyncio
import logging
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import (
    CONTEXT,
    VOCAB,
    cross_entropy_datum,
    hf_greedy,
    hf_model,
    random_tokens,
    randomise,
    relative_error,
    save_tiny_model,
)

from training.api import AdamParams, Datum, ModelInput, RequestFailedError, SamplingParams
from training.connect import connect


def rl_datum(tokens: list[int] | None = None, **changes: Any) -> Datum:
    fields = {"target_tokens": [3, 4], "logprobs": [-1.0, -1.0], "advantages": [1.0, 1.0]}
    return Datum(ModelInput.from_ints([5, 3] if tokens is None else tokens), {**fields, **changes})


def good_data(n: int = 20, seed: int = 0) -> list[Datum]:
    rng = np.random.default_rng(seed)
    return [cross_entropy_datum(rng, random_tokens(rng, n))]


@pytest.fixture
def client(tiny_model, service) -> Any:
    made = service.create_lora_training_client(tiny_model("llama"), rank=2, seed=0)
    randomise(made, 0)
    return made


@pytest.fixture
def sampler(tiny_model, service) -> Any:
    return service.create_sampling_client(base_model=tiny_model("llama"))


# ---------------------------------------------------------------------------------------- training

BAD_DATA: dict[str, tuple[list[Datum], str]] = {
    "no data": ([], "data is empty"),
    "no tokens": ([rl_datum([])], r"data\[0\].model_input is empty"),
    "token too large": ([rl_datum(), rl_datum([5, VOCAB])], rf"data\[1\].*\[5, {VOCAB}\].*0..130"),
    "negative token": ([rl_datum([-1, 3])], r"data\[0\].*\[-1, 3\]"),
    "target too large": ([rl_datum(target_tokens=[3, 999])], r"target_tokens.*999.*0..130"),
    "negative target": ([rl_datum(target_tokens=[-100, 3])], r"target_tokens.*-100"),
    "float targets": (
        [rl_datum(target_tokens=np.array([3.0, 4.0]))],
        "target_tokens has dtype float32; int64",
    ),
    "too long": (
        [Datum(ModelInput.from_ints([5] * (CONTEXT + 1)), {"target_tokens": [5] * (CONTEXT + 1)})],
        rf"{CONTEXT + 1} tokens.*context of {CONTEXT}",
    ),
    "short targets": ([rl_datum(target_tokens=[3])], r"target_tokens has shape \(1,\); \(2,\)"),
    "2-d targets": ([rl_datum(target_tokens=np.ones((2, 2), int))], r"shape \(2, 2\)"),
    "long advantages": ([rl_datum(advantages=[1.0] * 3)], r"advantages has shape \(3,\)"),
    "NaN advantage": ([rl_datum(advantages=[1.0, float("nan")])], r"advantages has NaN"),
    "infinite logprob": ([rl_datum(logprobs=[1.0, float("-inf")])], r"logprobs has NaN or inf"),
    "missing key": (
        [Datum(ModelInput.from_ints([5, 3]), {"target_tokens": [3, 4]})],
        r"lacks \['logprobs', 'advantages'\]",
    ),
    "unknown key": ([rl_datum(mask=np.ones(2))], r"has \['mask'\].*allows.*advantages"),
}


@pytest.mark.parametrize("case", list(BAD_DATA))
def test_bad_training_data(case: str, client: Any):
    data, message = BAD_DATA[case]
    for method in (client.forward, client.forward_backward):
        with pytest.raises(ValueError, match=message):
            method(data, "importance_sampling")
    assert not client._adapter.has_grad


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"target_tokens": [3, 4], "weights": [1.0, float("nan")]}, "weights has NaN"),
        (
            {"target_tokens": np.ones((2, 2), int), "weights": [1.0, 1.0]},
            r"weights has shape \(2,\)",
        ),
        ({"target_tokens": np.ones((3, 2), int)}, r"shape \(3, 2\); \(2,\) or \(2, K\)"),
        ({"weights": [1.0, 1.0]}, r"lacks \['target_tokens'\]"),
        ({"target_tokens": [3, 4], "advantages": [1.0, 1.0]}, r"has \['advantages'\]"),
    ],
)
def test_bad_cross_entropy_data(inputs: dict[str, Any], message: str, client: Any):
    with pytest.raises(ValueError, match=message):
        client.forward_backward([Datum(ModelInput.from_ints([5, 3]), inputs)], "cross_entropy")


def test_one_request_has_one_width_of_targets(client: Any):
    data = [
        Datum(ModelInput.from_ints([5, 3]), {"target_tokens": np.ones((2, k), int)}) for k in (2, 3)
    ]
    with pytest.raises(ValueError, match="share their K"):
        client.forward_backward(data, "cross_entropy")


def test_a_list_needs_a_known_key():
    with pytest.raises(KeyError, match="plain list is accepted only for"):
        Datum(ModelInput.from_ints([1]), {"something": [1.0]})


def test_a_bad_request_leaves_the_client_usable(client: Any):
    wanted = client.forward(good_data(), "cross_entropy").result().metrics
    before = client.forward_backward(good_data(), "cross_entropy")
    for data, _ in BAD_DATA.values():
        with pytest.raises(ValueError):
            client.forward_backward(data, "importance_sampling")
    with pytest.raises(ValueError):
        client.optim_step(AdamParams(learning_rate=-1))
    after = client.forward_backward(good_data(), "cross_entropy")
    # the same sums, but for the kernels that a pass without gradients may choose
    for future in (before, after):
        assert future.result().metrics["loss:sum"] == pytest.approx(wanted["loss:sum"], rel=1e-6)


def test_a_failing_custom_loss_changes_nothing(client: Any):
    def loss(_data: Any, _logprobs: Any) -> Any:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        client.forward_backward_custom(good_data(), loss).result()
    assert not client._adapter.has_grad
    assert client.forward_backward(good_data(), "cross_entropy").result()


def test_an_error_inside_a_pass_leaves_the_gradients_alone(tiny_model, connect_local):
    """Of every client of the pass, though some micro-batches had been added already."""
    folder = tiny_model("llama")
    service = connect_local(max_train_tokens=20)
    clients = [service.create_lora_training_client(folder, rank=2, seed=i) for i in range(2)]
    for client in clients:
        randomise(client, 0)
    clients[0].forward_backward(good_data(), "cross_entropy").result()
    before = [client._adapter.grad.clone() for client in clients]
    decoder = service.engine(folder).decoder
    calls = []

    def hidden(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 4:
            raise RuntimeError("boom")
        return type(decoder).hidden(decoder, *args)

    decoder.hidden = hidden
    futures = [
        c.forward_backward(good_data() + good_data(seed=1), "cross_entropy") for c in clients
    ]
    for future in futures:
        with pytest.raises(RuntimeError, match="boom"):
            future.result()
    # both clients had got something from a micro-batch
    assert len(calls) == 4
    assert [c._adapter.has_grad for c in clients] == [True, False]
    for client, gradient in zip(clients, before, strict=True):
        assert torch.equal(client._adapter.grad, gradient)
        client.forward_backward(good_data(), "cross_entropy").result()
    assert relative_error(clients[0]._adapter.grad, 2 * before[0]) <= 1e-5


# ---------------------------------------------------------------------------------------- sampling


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"max_tokens": 0}, "max_tokens=0: a whole number from 1"),
        ({"max_tokens": -3}, "max_tokens=-3"),
        ({"temperature": -0.1}, "temperature=-0.1"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"top_p": 1.2}, "top_p=1.2"),
        ({"top_k": 0}, "top_k=0: -1 .off. or a whole number from 1"),
        ({"stop": [""]}, "empty string"),
        ({"max_tokens": 0, "top_p": 2}, "max_tokens=0.*top_p=2"),
    ],
)
def test_bad_sampling_params(params: dict[str, Any], message: str, sampler: Any):
    with pytest.raises(ValueError, match=message):
        sampler.sample(ModelInput.from_ints([5]), 1, SamplingParams(**params))


def test_bad_prompts(sampler: Any):
    params = SamplingParams(max_tokens=2)
    for tokens, message in (
        ([], "prompt is empty"),
        ([5, VOCAB], rf"prompt has token ids in \[5, {VOCAB}\]"),
        ([-1], r"\[-1, -1\]"),
        ([5] * (CONTEXT + 1), f"{CONTEXT + 1} tokens.*context of {CONTEXT}"),
        ([5] * CONTEXT, f"{CONTEXT} tokens; the context holds {CONTEXT}, prompt and answer"),
    ):
        with pytest.raises(ValueError, match=message):
            sampler.sample(ModelInput.from_ints(tokens), 1, params)
    # a full context has logprobs though no room for an answer
    full = ModelInput.from_ints([5] * CONTEXT)
    assert len(sampler.compute_logprobs(full).result()) == CONTEXT
    with pytest.raises(ValueError, match="num_samples=0"):
        sampler.sample(ModelInput.from_ints([5]), 0, params)
    with pytest.raises(ValueError, match="topk_prompt_logprobs=-1"):
        sampler.sample(ModelInput.from_ints([5]), 1, params, topk_prompt_logprobs=-1)


def test_stop_tokens_are_ones_of_the_vocabulary(sampler: Any):
    """What no model can write would stop nowhere."""
    prompt = ModelInput.from_ints([5, 6, 7])
    assert sampler.sample(prompt, 1, SamplingParams(max_tokens=2, stop=[VOCAB - 1])).result()
    params = SamplingParams(max_tokens=2, stop=[3, VOCAB, 10**9])
    for sample in (
        lambda: sampler.sample(prompt, 1, params),
        lambda: next(sampler.stream(prompt, params)),
    ):
        with pytest.raises(ValueError, match=rf"stop has .*\[{VOCAB}, {10**9}\].*0..{VOCAB - 1}"):
            sample()
    with pytest.raises(ValueError, match=r"stop=.*-1 is neither a text nor a token id"):
        SamplingParams(stop=[-1])


def test_what_a_request_lacks_is_said_to_it_alone(tiny_model, service, sampler: Any):
    """No tokenizer for stop strings, a bad schema: refused before others share a batch with it."""
    prompt = ModelInput.from_ints([5, 6, 7])
    params = SamplingParams(max_tokens=30, temperature=0, stop=[])
    good = sampler.sample(prompt, 2, params)
    with pytest.raises(ValueError, match="no tokenizer could be loaded"):
        sampler.sample(prompt, 1, SamplingParams(max_tokens=30, stop=["\n"]))
    with pytest.raises(ValueError, match="no tokenizer could be loaded"):
        sampler.sample(prompt, 1, SamplingParams(max_tokens=30, json_schema={}))
    wanted = hf_greedy(hf_model(tiny_model("llama")), [5, 6, 7], 30)
    assert [s.tokens for s in good.result().sequences] == [wanted] * 2
    embedded = service.create_sampling_client(base_model="embedded")
    with pytest.raises(ValueError, match=r"json_schema: .*nonsense"):
        embedded.sample(prompt, 1, SamplingParams(json_schema={"type": "nonsense"}))


def test_an_error_while_sampling_fails_those_requests_and_no_later_one(tiny_model, connect_local):
    folder = tiny_model("llama")
    service = connect_local()
    sampler = service.create_sampling_client(base_model=folder)
    params = SamplingParams(max_tokens=20, temperature=0, stop=[])
    prompt = ModelInput.from_ints([5, 6, 7])
    engine = service.engine(folder)
    wanted = hf_greedy(hf_model(folder), [5, 6, 7], 20)
    for error, expected, message in (
        (RuntimeError("boom"), RuntimeError, "boom"),
        (torch.OutOfMemoryError("no room"), RequestFailedError, "out of memory while sampling"),
    ):
        for fails_at in (1, 8):
            calls = []

            def hidden(*args: Any, calls=calls, fails_at=fails_at, error=error) -> Any:
                calls.append(args)
                if len(calls) == fails_at:
                    raise error
                return type(engine.decoder).hidden(engine.decoder, *args)

            engine.decoder.hidden = hidden
            futures = [sampler.sample(prompt, n, params) for n in (1, 3)]
            for future in futures:
                with pytest.raises(expected, match=message):
                    future.result(timeout=30)
            assert engine.sampler.rows == 0
            response = sampler.sample(prompt, 2, params).result(timeout=30)
            assert [s.tokens for s in response.sequences] == [wanted] * 2


# --------------------------------------------------------------------------------- clients, service


@pytest.mark.parametrize("rank", [0, -1, 2.5, True, "8"])
def test_bad_rank(rank: Any, tiny_model, service):
    with pytest.raises(ValueError, match=r"rank=.*whole number from 1"):
        service.create_lora_training_client(tiny_model("llama"), rank=rank)


def test_bad_adapters(tiny_model, service):
    folder = tiny_model("llama")

    def create(**options: Any) -> None:
        service.create_lora_training_client(folder, rank=2, **options)

    with pytest.raises(ValueError, match="lora_alpha=0"):
        create(lora_alpha=0)
    with pytest.raises(ValueError, match=r"has \['qkv'\]; this model has .*'q_proj'.*'unembed'"):
        create(target_modules=["q_proj", "qkv"])
    with pytest.raises(ValueError, match="at least one of train_attn, train_mlp and train_unembed"):
        create(train_attn=False, train_mlp=False, train_unembed=False)
    with pytest.raises(ValueError, match=r"target_modules is empty; this model has .*'q_proj'"):
        create(target_modules=[])


def test_bad_services(tmp_path: Path):
    with pytest.raises(TypeError, match="unknown_option"):
        connect("local", unknown_option=1)
    for option in ("max_train_tokens", "max_prefill_tokens", "max_rows"):
        arguments: dict[str, Any] = {option: 0}
        with pytest.raises(ValueError, match=f"{option}=0: a whole number from 1"):
            connect("local", **arguments)
    with pytest.raises(ValueError, match="backend='remote': allowed are local, processes"):
        connect("remote")
    with pytest.raises(ValueError, match="base_url"):
        connect("local", base_url="http://x")
    for device in ("mps", "tpu", "cuda:99"):
        with pytest.raises(ValueError, match=rf"device='{device}' is not available.*cpu"):
            connect("local", device=device)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        connect("local").create_sampling_client(base_model=str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="model_path or base_model"):
        connect("local").create_sampling_client()


def test_a_model_with_nan_weights_is_refused(service, tmp_path: Path):
    folder = Path(save_tiny_model(tmp_path / "model", "llama"))
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 3] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="NaN"):
        service.create_sampling_client(base_model=str(folder))


def test_a_closed_service(tiny_model, connect_local):
    service = connect_local()
    client = service.create_lora_training_client(tiny_model("llama"), rank=2)
    sampler = client.save_weights_and_get_sampling_client().result()
    # more work than can be done before the worker sees that it is closed
    params = SamplingParams(max_tokens=200, stop=[])
    unfinished = [sampler.sample(ModelInput.from_ints([5]), 2, params)]
    unfinished += [client.forward_backward(good_data(), "cross_entropy") for _ in range(3)]
    unfinished.append(client.optim_step())
    service.close()
    for future in unfinished:
        with pytest.raises(RuntimeError, match="closed before this request ran"):
            future.result(timeout=10)
    with pytest.raises(RuntimeError, match="the service was closed"):
        client.forward(good_data(), "cross_entropy")
    with pytest.raises(RuntimeError, match="the service was closed"):
        sampler.sample(ModelInput.from_ints([5]), 1, params)
    service.close()


# ----------------------------------------------------------------------------------------- futures


def blocked(client: Any) -> threading.Event:
    """The worker waits for this event before it does anything else."""
    event = threading.Event()
    client._engine.submit_call(client._engine.new_queue(), event.wait).start()
    return event


def test_result_with_a_timeout(client: Any, sampler: Any):
    """TimeoutError; the request goes on and its result can be had later."""
    release = blocked(client)
    futures = [
        client.forward_backward(good_data(), "cross_entropy"),
        client.optim_step(),
        sampler.sample(ModelInput.from_ints([5]), 1, SamplingParams(max_tokens=3)),
        sampler.compute_logprobs(ModelInput.from_ints([5, 6])),
    ]
    for future in futures:
        with pytest.raises(TimeoutError):
            future.result(timeout=0.01)
        assert not future.done()
    release.set()
    for future in futures:
        assert future.result(timeout=30) is not None and future.done()


def test_awaiting_with_a_timeout(client: Any):
    """As with result(): a wait that ends early does not take the request back."""

    async def main() -> None:
        release = blocked(client)
        future = client.forward_backward(good_data(), "cross_entropy")
        logprobs = client.forward(good_data(), "cross_entropy").map(lambda o: o.metrics)
        for waiting in (future, logprobs):
            with pytest.raises(TimeoutError):
                await waiting.result_async(timeout=0.01)
        release.set()
        assert (await future).metrics["loss:sum"] == (await future).metrics["loss:sum"]
        assert "loss:sum" in await logprobs

    asyncio.run(main())
    assert client._adapter.has_grad


def test_await_and_gather(client: Any, sampler: Any):
    async def main() -> Any:
        ready = await client
        assert ready is client and client.result() is client
        prompt = ModelInput.from_ints([5, 6, 7])
        greedy = SamplingParams(max_tokens=4, temperature=0)
        return await asyncio.gather(
            client.forward_backward(good_data(), "cross_entropy"),
            client.optim_step(),
            sampler.sample(prompt, 2, greedy),
            sampler.compute_logprobs(prompt),
            client.save_weights_and_get_sampling_client(),
        )

    output, step, response, logprobs, newer = asyncio.run(main())
    assert output.metrics["loss:sum"] != 0 and step.metrics["grad_norm"] > 0
    assert len(response.sequences) == 2 and logprobs[0] is None
    assert newer.get_base_model() == sampler.get_base_model()


def test_requests_that_nobody_waits_for_run(client: Any):
    future = client.forward_backward(good_data(), "cross_entropy").future()
    assert future.result(timeout=30).metrics["loss:sum"] != 0


# ----------------------------------------------------------------------------------- out of memory


def limit_memory(engine: Any, num_tokens: int, error: type[Exception], message: str) -> list[int]:
    """Passes of more tokens fail, half way: other micro-batches were added before. The sizes."""
    decoder, sizes = engine.decoder, []

    def hidden(tokens: torch.Tensor, *rest: Any) -> torch.Tensor:
        sizes.append(len(tokens))
        if len(tokens) > num_tokens:
            raise error(message)
        return type(decoder).hidden(decoder, tokens, *rest)

    decoder.hidden = hidden
    return sizes


OUT_OF_MEMORY: list[tuple[type[Exception], str]] = [
    (torch.OutOfMemoryError, "CUDA out of memory. Tried to allocate"),
    (RuntimeError, "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
]


@pytest.mark.parametrize(("error", "message"), OUT_OF_MEMORY)
def test_out_of_memory_halves_the_micro_batch(
    error: type[Exception], message: str, tiny_model, connect_local, caplog
):
    """The gradients, earlier ones included, are those of enough memory."""
    folder = tiny_model("llama")
    rng = np.random.default_rng(1)
    data = [cross_entropy_datum(rng, random_tokens(rng, int(n))) for n in rng.integers(5, 60, 30)]
    gradients: list[list[torch.Tensor]] = []
    sizes: list[int] = []
    for limited in (False, True):
        service = connect_local(max_train_tokens=512)
        clients = [service.create_lora_training_client(folder, rank=2, seed=i) for i in range(2)]
        for client in clients:
            randomise(client, 0)
        clients[0].forward_backward(good_data(), "cross_entropy").result()
        if limited:
            sizes = limit_memory(service.engine(folder), 100, error, message)
        with caplog.at_level(logging.WARNING):
            futures = [c.forward_backward(data, "cross_entropy") for c in clients]
            outputs = [future.result() for future in futures]
        assert outputs[0].metrics["loss:sum"] != 0
        gradients.append([c._adapter.grad.clone() for c in clients])
    for got, wanted in zip(gradients[1], gradients[0], strict=True):
        assert relative_error(got, wanted) <= 1e-5
    warnings = [r.getMessage() for r in caplog.records if "Out of memory" in r.getMessage()]
    failed = [size for size in sizes if size > 100]
    assert 2 <= len(warnings) == len(failed) <= 4
    limits = [int(w.split("at most ")[1].split()[0]) for w in warnings]
    assert all(b <= a / 2 for a, b in zip([512, *limits], limits, strict=False))
    # the smaller size stays: no further failure
    sizes.clear()
    clients[0].forward_backward(data, "cross_entropy").result()
    assert max(sizes) <= 100


def test_a_sequence_too_long_for_the_memory(tiny_model, connect_local):
    """RequestFailedError; gradients and the next requests are unharmed."""
    folder = tiny_model("llama")
    service = connect_local()
    client, other = (service.create_lora_training_client(folder, rank=2, seed=i) for i in range(2))
    for c in (client, other):
        randomise(c, 0)
    client.forward_backward(good_data(), "cross_entropy").result()
    before = client._adapter.grad.clone()
    limit_memory(service.engine(folder), 100, *OUT_OF_MEMORY[0])
    too_long = good_data(30) + good_data(150)
    with pytest.raises(RequestFailedError, match="150 tokens in one sequence") as caught:
        client.forward_backward(too_long, "cross_entropy").result()
    assert caught.value.category == "server"
    assert torch.equal(client._adapter.grad, before) and client._adapter.has_grad
    # a sequence over half of the new limit still fits, alone
    data = [datum for seed in range(3) for datum in good_data(90, seed)]
    other.forward_backward(data, "cross_entropy").result()
    client.forward_backward(good_data(), "cross_entropy").result()
    assert relative_error(client._adapter.grad, 2 * before) <= 1e-5
