"""The engine's promises in every dtype that a device computes in.

uv run pytest tests/training/backends/local/test_engine_dtypes.py

In bfloat16 there is no exact value to hold the engine against: it is held against float32, and must
be as near to it as transformers and PEFT are in the same dtype. What cutting and batching change is
bounded by what that rounding changes anyway.
"""

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from tiny_models import (
    cross_entropy_datum,
    engine_gradients,
    hf_logprobs,
    peft_gradients,
    peft_twin,
    random_tokens,
    randomise,
)

from training.api import AdamParams, Datum, ModelInput, SamplingParams
from training.backends.local.linear import PackedMatrix
from training.connect import connect
from utils import devices
from utils.devices import choose_dtype, warn_if_emulated

FAMILIES = ("llama", "qwen3", "gemma2", "gpt2")


class Bounds(NamedTuple):
    """Nats, and gradients relative to their norm. In bfloat16: twice what was measured over
    FAMILIES and six seeds, where a step of rounding is 2^-8 of a value."""

    logprobs_rms: float
    gradients: float
    cutting: float
    sampler_rms: float


BOUNDS = {
    "float32": Bounds(1e-5, 1e-5, 1e-5, 1e-5),
    "bfloat16": Bounds(0.08, 0.06, 0.012, 0.05),
}
HERE = [
    pytest.param(
        (device, dtype),
        id=f"{device}-{dtype}",
        marks=pytest.mark.skipif(
            device == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"
        ),
    )
    for device in ("cpu", "cuda")
    for dtype in BOUNDS
]


@pytest.fixture(scope="module", params=HERE)
def place(request: pytest.FixtureRequest) -> tuple[str, str]:
    return request.param


@pytest.fixture(scope="module")
def bounds(place: tuple[str, str]) -> Bounds:
    return BOUNDS[place[1]]


@pytest.fixture(scope="module")
def open_service(
    place: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def make(**options: Any) -> Any:
        folder = tmp_path_factory.mktemp("checkpoints")
        made.append(
            connect("local", device=place[0], dtype=place[1], checkpoint_dir=folder, **options)
        )
        return made[-1]

    yield make
    for service in made:
        service.close()


@pytest.fixture(scope="module")
def here(open_service: Callable[..., Any]) -> Any:
    return open_service()


def data_of(seed: int) -> list[Datum]:
    """Of several lengths, three with a prompt in common."""
    rng = np.random.default_rng(seed)
    shared = random_tokens(rng, 24)
    sequences = [random_tokens(rng, n) for n in (2, 17, 40)]
    sequences += [shared + random_tokens(rng, n) for n in (3, 9, 14)]
    return [cross_entropy_datum(rng, sequence) for sequence in sequences]


def trained(client: Any, data: list[Datum]) -> tuple[np.ndarray, np.ndarray]:
    """Logprobs where they count, and the whole gradient, as float64 vectors."""
    client._adapter.grad.zero_()
    output = client.forward_backward(data, "cross_entropy").result()
    parts = [
        own["logprobs"].to_numpy()[datum.loss_fn_inputs["weights"].to_numpy() != 0]
        for own, datum in zip(output.loss_fn_outputs, data, strict=True)
    ]
    gradient = torch.cat([g.flatten() for g in engine_gradients(client).values()])
    return np.concatenate(parts).astype(float), gradient.cpu().numpy().astype(float)


def by_peft(twin: Any, data: list[Datum]) -> tuple[np.ndarray, np.ndarray]:
    twin.zero_grad()
    parts, loss = [], torch.zeros(())
    for datum in data:
        targets = datum.loss_fn_inputs["target_tokens"].to_torch()
        weights = datum.loss_fn_inputs["weights"].to_torch()
        logprobs = hf_logprobs(twin, datum.model_input.to_ints(), targets)
        loss = loss - (logprobs.float() * weights).sum()
        parts.append(logprobs.detach().float()[weights != 0].numpy())
    loss.backward()
    gradients = peft_gradients(twin)
    flat = torch.cat([g.float().flatten() for g in gradients.values()])
    return np.concatenate(parts).astype(float), flat.numpy().astype(float)


def in_order(client: Any, twin: Any, flat: np.ndarray) -> np.ndarray:
    """PEFT's gradient with the layers in the engine's order."""
    starts, at = {}, 0
    for key, gradient in peft_gradients(twin).items():
        starts[key] = flat[at : at + gradient.numel()]
        at += gradient.numel()
    return np.concatenate([starts[key] for key in engine_gradients(client)])


def rms(difference: np.ndarray) -> float:
    return float(np.sqrt((difference**2).mean()))


def relative(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@pytest.mark.parametrize("family", FAMILIES)
def test_as_near_to_float32_as_transformers_and_peft(
    family: str,
    place: tuple[str, str],
    here: Any,
    bounds: Bounds,
    tiny_model: Any,
    record_property: Callable[[str, Any], None],
) -> None:
    folder = tiny_model(family)
    client = here.create_lora_training_client(folder, rank=4, seed=0)
    randomise(client, 1)
    data = data_of(1)
    got = trained(client, data)
    exact = peft_twin(client, folder, "exact")
    wanted = by_peft(exact, data)
    gradient = in_order(client, exact, wanted[1])
    ours = rms(got[0] - wanted[0]), relative(got[1], gradient)
    record_property("rms and relative error", ours)
    assert ours[0] <= bounds.logprobs_rms
    assert ours[1] <= bounds.gradients
    if place[1] == "bfloat16":
        rounded = peft_twin(client, folder, "rounded").to(torch.bfloat16)
        theirs = by_peft(rounded, data)
        # PEFT rounds the adapter too
        assert ours[0] <= 1.1 * rms(theirs[0] - wanted[0])
        assert ours[1] <= 1.1 * relative(in_order(client, rounded, theirs[1]), gradient)
        # and it is bfloat16 that computes
        assert ours[0] > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_cutting_and_sharing_change_no_more_than_rounding(
    family: str, open_service: Callable[..., Any], bounds: Bounds, tiny_model: Any
) -> None:
    """Micro-batches, shared prompts, and other clients in the pass."""
    folder = tiny_model(family)
    plain = open_service(share_prompts=False, max_train_tokens=10_000)
    cut = open_service(max_train_tokens=45)
    clients = [s.create_lora_training_client(folder, rank=4, seed=0) for s in (plain, cut)]
    other = cut.create_lora_training_client(folder, rank=2, seed=1)
    for seed, client in enumerate([*clients, other]):
        randomise(client, seed // 2)
    data = data_of(2)
    wanted = trained(clients[0], data)
    beside = other.forward_backward(data_of(3), "cross_entropy")
    got = trained(clients[1], data)
    beside.result()
    assert rms(got[0] - wanted[0]) <= bounds.cutting
    assert relative(got[1], wanted[1]) <= bounds.cutting


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sampler_is_near_the_trainer(
    family: str, here: Any, bounds: Bounds, tiny_model: Any
) -> None:
    client = here.create_lora_training_client(tiny_model(family), rank=4, seed=0)
    randomise(client, 2)
    sampler = client.save_weights_and_get_sampling_client().result()
    rng = np.random.default_rng(0)
    params = SamplingParams(max_tokens=30, seed=3, stop=[])
    prompts = [random_tokens(rng, n) for n in (5, 21)]
    asked = [sampler.sample(ModelInput.from_ints(p), 4, params) for p in prompts]
    data, sampled = [], []
    for prompt, future in zip(prompts, asked, strict=True):
        for sequence in future.result().sequences:
            tokens = prompt + sequence.tokens
            weights = [0.0] * (len(prompt) - 1) + [1.0] * len(sequence.tokens)
            fields = {"target_tokens": tokens[1:], "weights": weights}
            data.append(Datum(ModelInput.from_ints(tokens[:-1]), fields))
            sampled.append(sequence.logprobs)
    output = client.forward(data, "cross_entropy").result()
    known = [
        own["logprobs"].to_numpy()[-len(logprobs) :]
        for own, logprobs in zip(output.loss_fn_outputs, sampled, strict=True)
    ]
    assert rms(np.concatenate(known) - np.concatenate(sampled)) <= bounds.sampler_rms


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_the_same_seed_and_a_resumed_run_give_the_same_bits(
    family: str, place: tuple[str, str], here: Any, tiny_model: Any
) -> None:
    if place[0] == "cuda":
        pytest.skip("bitwise on a CPU")
    folder = tiny_model(family)

    def steps(client: Any, numbers: range) -> None:
        for number in numbers:
            client.forward_backward(data_of(number), "cross_entropy")
            client.optim_step(AdamParams(learning_rate=1e-2)).result()

    first, second = (here.create_lora_training_client(folder, rank=4, seed=5) for _ in range(2))
    steps(first, range(4))
    steps(second, range(2))
    path = second.save_state(f"half-{family}").result().path
    resumed = here.create_training_client_from_state_with_optimizer(path)
    steps(second, range(2, 4))
    steps(resumed, range(2, 4))
    assert torch.equal(first._adapter.flat, second._adapter.flat)
    assert torch.equal(first._adapter.flat, resumed._adapter.flat)


def test_packed_bfloat16_products_round_once() -> None:
    """Their sums are float32's: as far from the exact product as one rounding."""
    matrix = torch.randn(96, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    x = torch.randn(33, 64, generator=torch.Generator().manual_seed(1))
    got = PackedMatrix(matrix)(x)
    assert got.dtype == torch.float32
    exact = x.bfloat16().double() @ matrix.double().T
    assert (
        torch.equal(got, exact.float().bfloat16().float())
        or ((got - exact).abs() <= exact.abs() * 2**-8 + 1e-5).all()
    )


# ----------------------------------------------------------------------------------------- choosing


def test_a_run_goes_on_in_its_own_dtype(tiny_model: Any, connect_local: Any) -> None:
    folder = tiny_model("llama")
    exact, rounded = connect_local(), connect_local(dtype="bfloat16")
    client = exact.create_lora_training_client(folder, rank=2, seed=0)
    client.forward_backward(data_of(0), "cross_entropy")
    client.optim_step(AdamParams(learning_rate=1e-3)).result()
    path = client.save_state("first").result().path
    with pytest.raises(ValueError, match=r"dtype=bfloat16: .* in float32, .* pass dtype=float32"):
        rounded.create_training_client_from_state_with_optimizer(path)
    # weights alone are the same in both
    again = rounded.create_training_client_from_state(path)
    assert torch.equal(again._adapter.flat, client._adapter.flat)
    assert rounded.create_sampling_client(model_path=path).dtype == "bfloat16"
    path = again.save_state("second").result().path
    exact.create_training_client_from_state(path)
    with pytest.raises(ValueError, match="pass dtype=bfloat16"):
        exact.create_training_client_from_state_with_optimizer(path)


def test_the_embedded_model_is_compared_in_each_dtype() -> None:
    """A note of float32 says nothing of bfloat16."""
    from training.backends.local import loading
    from training.models import resolve_model

    folder = Path(resolve_model("embedded"))
    files = {loading._compared_file(folder, d) for d in (torch.float32, torch.bfloat16)}
    assert len(files) == 2


def test_what_is_chosen(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert [choose_dtype(None, device) for device in ("cpu", "cuda")] == ["float32", "bfloat16"]
    assert choose_dtype("float32", "cuda") == "float32"
    assert not caplog.records
    monkeypatch.setattr(devices, "has_native_bfloat16", lambda: True)
    assert choose_dtype("bfloat16", "cpu") == "bfloat16"
    warn_if_emulated(torch.bfloat16, "cpu")
    assert not caplog.records
    assert choose_dtype("auto", "cpu") == "bfloat16"
    assert "dtype=auto: bfloat16, since this cpu has bfloat16" in caplog.text
    monkeypatch.setattr(devices, "has_native_bfloat16", lambda: False)
    assert [choose_dtype("auto", device) for device in ("cpu", "cuda")] == ["float32", "bfloat16"]
    assert "dtype=auto: float32, since this cpu has no bfloat16" in caplog.text
    assert choose_dtype("bfloat16", "cpu") == "bfloat16"
    for dtype, device in ((torch.float32, "cpu"), (torch.bfloat16, "cuda")):
        warn_if_emulated(dtype, device)
    assert caplog.records[-1].levelname == "INFO"
    warn_if_emulated(torch.bfloat16, "cpu")
    assert caplog.records[-1].levelname == "WARNING"
    assert "times as long as in float32" in caplog.text
    with pytest.raises(ValueError, match=r"dtype='float16': allowed are float32, bfloat16, auto"):
        choose_dtype("float16", "cpu")
    with pytest.raises(ValueError, match="dtype='half'"):
        connect("local", dtype="half")
