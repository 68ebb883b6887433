"""A last layer computes the rows that logits are made of, and no others: no result changes.

uv run pytest tests/training/backends/local/test_wanted_rows.py
"""

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import cross_entropy_datum, random_tokens, randomise, relative_error

from training.api import Datum, ModelInput
from training.backends.local.attention import SegmentAttention
from training.backends.local.batching import Segment
from training.backends.local.decoder import Decoder
from training.backends.local.linear import LoraPass


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_wanted_rows_are_those_of_the_whole_pass(family: str, tiny_model: Any) -> None:
    decoder = Decoder(tiny_model(family), torch.device("cpu"))
    tokens = torch.tensor(random_tokens(np.random.default_rng(0), 30))
    positions = torch.cat([torch.arange(18), torch.arange(12)])
    wanted = torch.tensor([3, 4, 17, 18, 29])

    def hidden(rows: torch.Tensor | None) -> torch.Tensor:
        plan = SegmentAttention([Segment(18, None), Segment(12, None)])
        return decoder.hidden(tokens, positions, plan, LoraPass(), rows)

    got, whole = hidden(wanted), hidden(None)
    assert got.shape == (5, whole.shape[1])
    torch.testing.assert_close(got, whole[wanted], rtol=1e-5, atol=1e-5)


def trained(service: Any, folder: str, dropout: float) -> tuple[torch.Tensor, list[float]]:
    """Gradients and logprobs of adapters of two ranks in one pass, with a prompt in common and
    tokens whose weight is zero."""
    clients = [
        service.create_lora_training_client(folder, rank=rank, seed=rank, lora_dropout=dropout)
        for rank in (3, 5)
    ]
    rng = np.random.default_rng(0)
    shared = random_tokens(rng, 30)
    data = [cross_entropy_datum(rng, shared + random_tokens(rng, n)) for n in (4, 23, 11)]
    data.append(cross_entropy_datum(rng, random_tokens(rng, 45)))
    for client in clients:
        randomise(client, client._adapter.config.rank)
    outputs = [client.forward_backward(data, "cross_entropy") for client in clients]
    logprobs = [own["logprobs"].to_numpy() for o in outputs for own in o.result().loss_fn_outputs]
    flat = torch.cat([client._adapter.grad for client in clients])
    return flat, np.concatenate(logprobs).tolist()


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_gradients_are_those_of_the_whole_pass(
    family: str, dropout: float, tiny_model: Any, connect_local: Any, monkeypatch: Any
) -> None:
    folder = tiny_model(family)
    got = trained(connect_local(), folder, dropout)
    hidden = Decoder.hidden

    def of_the_whole(*inputs: Any) -> torch.Tensor:
        *others, wanted = inputs
        whole = hidden(*others)
        return whole if wanted is None else whole.index_select(0, wanted)

    monkeypatch.setattr(Decoder, "hidden", of_the_whole)
    whole = trained(connect_local(), folder, dropout)
    assert relative_error(got[0], whole[0]) <= 1e-5
    np.testing.assert_allclose(got[1], whole[1], atol=1e-5)


def test_the_last_layer_computes_no_more_than_wanted(tiny_model: Any, service: Any) -> None:
    """A prompt has no part in it, and a request without any weight computes nothing at all."""
    client = service.create_lora_training_client(tiny_model("llama"), rank=4, seed=0)
    tokens = list(range(3, 43))
    rows: dict[str, list[int]] = {}
    for product in client._engine.decoder.products():
        product.register_forward_pre_hook(
            lambda layer, inputs: rows.setdefault(layer.name, []).append(len(inputs[0]))
        )

    def train(weights: list[float]) -> None:
        fields = {"target_tokens": tokens, "weights": weights}
        datum = Datum(ModelInput.from_ints(tokens), fields)
        client.forward_backward([datum], "cross_entropy").result()

    train([0.0] * 40)
    assert not rows and client._adapter.has_grad and not client._adapter.grad.any()
    train([0.0] * 33 + [1.0] * 7)
    last = ("self_attn.o_proj", "mlp.gate_proj", "mlp.down_proj")
    assert [rows.pop(f"layers.1.{name}") for name in last] == [[7]] * 3
    assert len(rows) == 5 and all(counts == [40] for counts in rows.values())
