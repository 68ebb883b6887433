"""Adapters on top of others, and sums of adapters, against merged models and plain products.

uv run pytest tests/training/backends/local/test_adapter_sums.py
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import cross_entropy_datum, random_tokens, randomise

from training.api import AdamParams, Datum

ADAM = AdamParams(learning_rate=1e-3, weight_decay=0.01, grad_clip_norm=5.0)


def data_of(seed: int) -> list[Datum]:
    rng = np.random.default_rng(seed)
    return [cross_entropy_datum(rng, random_tokens(rng, n)) for n in (9, 30)]


def train(client: Any, steps: range) -> None:
    for step in steps:
        client.forward_backward(data_of(step), "cross_entropy").result()
        client.optim_step(ADAM).result()


def logprobs(client: Any) -> np.ndarray:
    output = client.forward(data_of(99), "cross_entropy").result()
    return np.concatenate([o["logprobs"].to_numpy() for o in output.loss_fn_outputs])


def saved(service: Any, folder: str, seed: int, name: str, **options: Any) -> tuple[Any, str]:
    """A client with random values, and its folder."""
    client = service.create_lora_training_client(folder, seed=seed, **options)
    randomise(client, seed)
    return client, client.save_state(name).result().path


def deltas(client: Any) -> dict[str, torch.Tensor]:
    return {
        path: (low_rank.b @ low_rank.a) * low_rank.scale
        for path, low_rank in client._adapter.layers.items()
    }


@pytest.mark.parametrize("family", ["llama_tied", "gpt2"])
def test_on_top_of_an_adapter_is_on_top_of_the_merged_model(
    family: str, tiny_model, connect_local, tmp_path: Path
) -> None:
    service = connect_local()
    folder = tiny_model(family)
    below, path = saved(service, folder, 1, "below", rank=3, lora_alpha=5.0)
    below.export_merged(tmp_path / "merged").result()
    options: dict[str, Any] = {"rank": 2, "seed": 7, "lora_alpha": 8.0}
    merged = connect_local().create_lora_training_client(str(tmp_path / "merged"), **options)
    top = service.create_lora_training_client(folder, on_top_of=path, **options)
    assert top.get_info().lora_rank == 5
    # before training it is the adapter below, and afterwards the model that had it merged
    np.testing.assert_allclose(logprobs(top), logprobs(below), atol=1e-5)
    before = {p: (x.a[:3].clone(), x.b[:, :3].clone()) for p, x in top._adapter.layers.items()}
    started = logprobs(top)
    for client in (top, merged):
        train(client, range(3))
    assert np.abs(logprobs(top) - started).max() > 1e-3
    np.testing.assert_allclose(logprobs(top), logprobs(merged), atol=1e-4)
    for p, low_rank in top._adapter.layers.items():
        assert torch.equal(low_rank.a[:3], before[p][0])
        assert torch.equal(low_rank.b[:, :3], before[p][1])


def test_an_adapter_on_top_resumes_bitwise(tiny_model, connect_local) -> None:
    service = connect_local()
    folder = tiny_model("llama")
    _, path = saved(service, folder, 1, "below", rank=3)
    top = service.create_lora_training_client(folder, rank=2, seed=7, on_top_of=path)
    train(top, range(2))
    state = top.save_state("top").result().path
    resumed = connect_local().create_training_client_from_state_with_optimizer(state)
    for client in (top, resumed):
        train(client, range(2, 4))
    assert torch.equal(resumed._adapter.flat, top._adapter.flat)


def test_a_sum_of_adapters_is_the_sum_of_their_deltas(tiny_model, connect_local) -> None:
    service = connect_local()
    folder = tiny_model("llama")
    first, a = saved(service, folder, 1, "a", rank=3, lora_alpha=5.0, train_mlp=False)
    second, b = saved(service, folder, 2, "b", rank=2, train_unembed=False)
    both = service.create_training_client_from_sum([(a, 0.5), (b, -2.0)], folder)
    assert both.get_info().lora_rank == 5
    parts, total = (deltas(first), deltas(second)), deltas(both)
    assert total.keys() == parts[0].keys() | parts[1].keys()
    for path, delta in total.items():
        wanted = sum(w * d[path] for w, d in zip((0.5, -2.0), parts, strict=True) if path in d)
        torch.testing.assert_close(delta, wanted, atol=1e-6, rtol=1e-5)
    # what is saved is what answers
    again = connect_local().create_training_client_from_state(both.save_state("s").result().path)
    np.testing.assert_allclose(logprobs(again), logprobs(both), atol=1e-6)


def test_what_was_trained_on_top_is_scaled_alone(tiny_model, connect_local) -> None:
    service = connect_local()
    folder = tiny_model("llama")
    below, path = saved(service, folder, 1, "below", rank=3)
    top = service.create_lora_training_client(folder, rank=2, seed=7, on_top_of=path)
    train(top, range(3))
    state = top.save_state("top").result().path
    half = deltas(service.create_training_client_scaled(state, 0.5, folder))
    whole, frozen = deltas(top), deltas(below)
    for p, delta in half.items():
        wanted = frozen[p] + 0.5 * (whole[p] - frozen[p])
        torch.testing.assert_close(delta, wanted, atol=1e-6, rtol=1e-4)


def test_what_cannot_be_put_together_is_refused(tiny_model, connect_local) -> None:
    service = connect_local()
    folder = tiny_model("llama")
    _, path = saved(service, folder, 1, "below", rank=3)
    make = service.create_lora_training_client
    with pytest.raises(ValueError, match=r"on_top_of: .*other layers \(.*\.mlp\.down_proj"):
        make(folder, rank=2, train_mlp=False, on_top_of=path)
    with pytest.raises(ValueError, match=r"lora_dropout=0.1 with on_top_of"):
        make(folder, rank=2, lora_dropout=0.1, on_top_of=path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        make(folder, rank=2, on_top_of="nowhere")
    with pytest.raises(ValueError, match="at least one folder"):
        service.create_training_client_from_sum([], folder)
    with pytest.raises(ValueError, match="weight in the sum is nan"):
        service.create_training_client_from_sum([(path, math.nan)], folder)
    with pytest.raises(ValueError, match="weight is inf"):
        service.create_training_client_scaled(path, math.inf, folder)
    other = tiny_model("llama_tied")
    with pytest.raises(ValueError, match="saved from base model"):
        service.create_training_client_from_sum([(path, 1.0)], other)
