"""LoRA dropout: PEFT's function, masks that belong to the data, and exact resuming."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import (
    cross_entropy_datum,
    engine_gradients,
    hf_logprobs,
    hf_model,
    policy_datum,
    random_tokens,
    randomise,
    relative_error,
)

from training.api import AdamParams, Datum, ModelInput
from training.backends.local.dropout import Dropout, draw_kept

ADAM = AdamParams(learning_rate=1e-2)
P = 0.3


def client_of(service: Any, folder: str, seed: int = 0, p: float = P, **options: Any) -> Any:
    client = service.create_lora_training_client(
        folder, rank=4, seed=seed, lora_dropout=p, **options
    )
    randomise(client, seed)
    return client


def data_of(seed: int, lengths: tuple[int, ...] = (9, 70, 30)) -> list[Datum]:
    """One longer than a chunk of the head."""
    rng = np.random.default_rng(seed)
    return [cross_entropy_datum(rng, random_tokens(rng, n)) for n in lengths]


def group_of(seed: int, folder: str, *, mask: bool = False) -> list[Datum]:
    """An RL group; its prompt is long enough to be shared."""
    rng = np.random.default_rng(seed)
    prompt, reference = random_tokens(rng, 40), hf_model(folder)
    answers = [random_tokens(rng, n) for n in (5, 12, 5)]
    return [policy_datum(rng, prompt, a, reference, mask=mask) for a in answers]


def step(client: Any, data: list[Datum]) -> Any:
    future = client.forward_backward(data, "cross_entropy")
    client.optim_step(ADAM).result()
    return future.result()


def logprobs_of(output: Any) -> list[torch.Tensor]:
    return [o["logprobs"].to_torch() for o in output.loss_fn_outputs]


# --------------------------------------------------------------------------- the function it is of


class Reference:
    """A Hugging Face model whose layers add LoRA with given masks; autograd has the gradients."""

    def __init__(self, client: Any, folder: str) -> None:
        adapter, self._decoder = client._adapter, client._engine.decoder
        self._model, self._config = hf_model(folder), adapter.config
        self._key = (0, 0)
        self.parts: dict[str, torch.Tensor] = {}
        modules = dict(self._model.named_modules())
        for path, low_rank in adapter.layers.items():
            inner = self._decoder.body_name + "." + path
            module = modules[self._decoder.head_name if path == "unembed" else inner]
            module.register_forward_hook(self._hook(path))
            self.parts[f"{path}.A"] = low_rank.a.clone().requires_grad_()
            self.parts[f"{path}.B"] = low_rank.b.clone().requires_grad_()

    def _hook(self, path: str) -> Any:
        def add(_module: Any, args: tuple[torch.Tensor], out: torch.Tensor) -> torch.Tensor:
            (x,) = args
            config, product = self._config, self._decoder.layers[path].product
            key = (config.seed, *self._key, product)
            kept = draw_kept(config.dropout, key, (x.shape[-2], x.shape[-1]))
            dropped = x * kept / (1 - config.dropout)
            a, b = self.parts[f"{path}.A"], self.parts[f"{path}.B"]
            return out + dropped @ a.T @ b.T * (config.alpha / config.rank)

        return add

    def logprobs(self, pass_number: int, data: list[Datum]) -> list[torch.Tensor]:
        found = []
        for d, datum in enumerate(data):
            self._key = (pass_number, d)
            targets = datum.loss_fn_inputs["target_tokens"].to_torch()
            found.append(hf_logprobs(self._model, datum.model_input.to_ints(), targets))
        return found

    def gradients(self, loss: torch.Tensor) -> dict[str, torch.Tensor]:
        values = torch.autograd.grad(loss, list(self.parts.values()))
        return dict(zip(self.parts, values, strict=True))


def same_gradients(client: Any, wanted: dict[str, torch.Tensor]) -> None:
    got = engine_gradients(client)
    assert got.keys() == wanted.keys()
    largest = max(float(g.abs().max()) for g in wanted.values())
    assert max(float((got[k] - wanted[k]).abs().max()) for k in wanted) <= 2e-5 * largest


def weighted_sum(logprobs: list[torch.Tensor], data: list[Datum]) -> torch.Tensor:
    weights = [d.loss_fn_inputs["weights"].to_torch() for d in data]
    return -torch.stack([(p * w).sum() for p, w in zip(logprobs, weights, strict=True)]).sum()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2"])
def test_gradients_are_those_of_the_masked_function(family: str, tiny_model, service):
    """In two passes, whose masks differ."""
    folder = tiny_model(family)
    client, data = client_of(service, folder), data_of(0)
    reference, losses = Reference(client, folder), []
    for number in range(2):
        output = client.forward_backward(data, "cross_entropy").result()
        wanted = reference.logprobs(number, data)
        loss = weighted_sum(wanted, data)
        losses.append(loss.item())
        assert output.metrics["loss:sum"] == pytest.approx(losses[-1], rel=1e-4, abs=1e-4)
        for got, p, datum in zip(logprobs_of(output), wanted, data, strict=True):
            needed = datum.loss_fn_inputs["weights"].to_torch() != 0
            torch.testing.assert_close(got[needed], p[needed].detach(), rtol=0, atol=2e-5)
        same_gradients(client, reference.gradients(loss))
        client._adapter.clear_grad()
    assert abs(losses[0] - losses[1]) > 0.01


def test_a_loss_of_whole_sequences(tiny_model, service):
    """It computes its logits twice."""
    folder = tiny_model("llama")
    client, data = client_of(service, folder), group_of(0, folder, mask=True)
    clips = {"clip_low_threshold": 0.1, "clip_high_threshold": 10.0}
    client.forward_backward(data, "gspo", clips).result()
    reference = Reference(client, folder)
    loss = torch.zeros(())
    for p, datum in zip(reference.logprobs(0, data), data, strict=True):
        inputs = {k: v.to_torch() for k, v in datum.loss_fn_inputs.items()}
        answer = inputs["sequence_ratio_mask"] != 0
        log_ratio = (p - inputs["logprobs"])[answer]
        weight = log_ratio.detach().mean().exp()
        loss = loss - (weight * log_ratio * inputs["advantages"][answer]).sum()
    same_gradients(client, reference.gradients(loss))


def test_a_custom_loss_sees_one_set_of_masks(tiny_model, service):
    """Also when another pass of the client comes between its two."""
    folder = tiny_model("llama")
    client, data = client_of(service, folder), data_of(0)
    step(client, data)
    reference = Reference(client, folder)
    targets = [
        Datum(d.model_input, {"target_tokens": d.loss_fn_inputs["target_tokens"]}) for d in data
    ]

    def squared(_data: Any, logprobs: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
        return torch.stack([(p**2).sum() for p in logprobs]).sum(), {}

    def squared_after_another(data: Any, logprobs: list[torch.Tensor]) -> Any:
        client.forward_backward(data_of(1), "cross_entropy").result()
        client._adapter.clear_grad()
        return squared(data, logprobs)

    for number, loss_fn in ((1, squared), (2, squared_after_another)):
        output = client.forward_backward_custom(targets, loss_fn).result()
        wanted = reference.logprobs(number, targets)
        for got, p in zip(logprobs_of(output), wanted, strict=True):
            torch.testing.assert_close(got, p.detach(), rtol=0, atol=2e-5)
        same_gradients(client, reference.gradients(squared(targets, wanted)[0]))
        client._adapter.clear_grad()


def test_the_mean_over_masks_is_the_product_without_dropout():
    rng = torch.Generator().manual_seed(0)
    x, low_rank = torch.randn(7, 50, generator=rng), torch.randn(50, 3, generator=rng)
    draws = 4000
    products, num_kept = [], 0
    for seed in range(draws):
        kept = draw_kept(P, (seed, 0, 0, "layer"), (7, 50))
        num_kept += int(kept.sum())
        products.append(Dropout(P, {"layer": kept})(x, "layer") @ low_rank)
    stacked = torch.stack(products)
    error = (stacked.mean(0) - x @ low_rank) / (stacked.std(0) / draws**0.5)
    assert error.abs().max() < 4 and 0.7 < error.std() < 1.4
    n = draws * x.numel()
    assert abs(num_kept / n - (1 - P)) < 4 * (P * (1 - P) / n) ** 0.5


def test_every_part_of_the_key_changes_the_mask():
    key, shape = (3, 1, 2, "layer"), (20, 30)
    kept = draw_kept(0.5, key, shape)
    assert torch.equal(draw_kept(0.5, key, shape), kept)
    for other in ((4, 1, 2, "layer"), (3, 2, 2, "layer"), (3, 1, 1, "layer"), (3, 1, 2, "other")):
        share = (draw_kept(0.5, other, shape) == kept).float().mean()
        assert 0.4 < share < 0.6


# ------------------------------------------------------------------ what it must not depend on


@pytest.mark.parametrize("loss_fn", ["importance_sampling", "gspo"])
def test_micro_batches_and_prompt_sharing_change_nothing(loss_fn: str, tiny_model, connect_local):
    folder = tiny_model("llama")
    mask = loss_fn == "gspo"
    config = {"clip_low_threshold": 0.8, "clip_high_threshold": 1.2} if mask else None
    data = [datum for seed in range(2) for datum in group_of(seed, folder, mask=mask)]
    outcomes = []
    for options in (
        {},
        {"share_prompts": False},
        {"max_train_tokens": 120},
        {"max_train_tokens": 1},
    ):
        client = client_of(connect_local(**options), folder)
        output = client.forward_backward(data, loss_fn, config).result()
        outcomes.append((client._adapter.grad.clone(), torch.cat(logprobs_of(output))))
    for gradient, logprobs in outcomes[1:]:
        assert relative_error(gradient, outcomes[0][0]) <= 1e-5
        torch.testing.assert_close(logprobs, outcomes[0][1], rtol=1e-5, atol=1e-5)


def test_head_chunks_change_nothing(tiny_model, connect_local, monkeypatch):
    folder, gradients = tiny_model("gemma2"), []
    for chunk in (1000, 7):
        monkeypatch.setattr("training.backends.local.decoder.HEAD_CHUNK", chunk)
        client = client_of(connect_local(), folder)
        client.forward_backward(data_of(0), "cross_entropy").result()
        gradients.append(client._adapter.grad.clone())
    assert relative_error(*gradients) <= 1e-5


def test_adapters_with_different_dropout_in_one_pass(tiny_model, connect_local):
    """Each trains as alone; without dropout the prompt is still computed once."""
    folder = tiny_model("llama")
    service = connect_local()
    trainer = service.engine(folder).trainer
    data = group_of(0, folder)

    def clients() -> list[Any]:
        options: list[dict[str, Any]] = [{}, {"p": 0.0}, {"p": 0.6, "train_unembed": False}]
        return [client_of(service, folder, i, **o) for i, o in enumerate(options)]

    def train(some: list[Any]) -> list[Any]:
        futures = [c.forward_backward(data, "importance_sampling") for c in some]
        return [future.result() for future in futures]

    alone, together = clients(), clients()
    wanted, computed = [], []
    for client in alone:
        before = trainer.tokens_computed
        wanted += train([client])
        computed.append(trainer.tokens_computed - before)
    assert computed[1] < 0.6 * computed[0]
    assert computed[0] == computed[2] == sum(d.model_input.length for d in data)
    before = trainer.tokens_computed
    got = train(together)
    assert trainer.tokens_computed - before == sum(computed)
    for a, b, x, y in zip(together, alone, got, wanted, strict=True):
        assert relative_error(a._adapter.grad, b._adapter.grad) <= 1e-5
        for p, q in zip(logprobs_of(x), logprobs_of(y), strict=True):
            torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-5)


def test_without_dropout_nothing_is_drawn_and_no_bit_changes(tiny_model, service, monkeypatch):
    """The same as an adapter made without the option; forward() of one with dropout, too."""
    folder = tiny_model("llama")
    dropping = client_of(service, folder)
    monkeypatch.delattr("training.backends.local.trainer.draw_kept")
    zero = client_of(service, folder, p=0.0)
    plain = service.create_lora_training_client(folder, rank=4, seed=0)
    randomise(plain, 0)
    for client in (zero, plain):
        client.forward_backward(data_of(0), "cross_entropy").result()
    assert torch.equal(zero._adapter.grad, plain._adapter.grad)
    assert zero._adapter.optimizer_tensors().keys() == {"gradient"}
    outputs = [c.forward(data_of(0), "cross_entropy").result() for c in (zero, dropping)]
    for p, q in zip(*map(logprobs_of, outputs), strict=True):
        assert torch.equal(p, q)


def test_sampling_never_drops(tiny_model, service):
    folder = tiny_model("llama")
    prompt = ModelInput.from_ints(random_tokens(np.random.default_rng(0), 30))
    samplers = [
        client_of(service, folder, p=p).save_weights_and_get_sampling_client().result()
        for p in (P, 0.0)
    ]
    dropping, plain = (s.compute_logprobs(prompt).result() for s in samplers)
    assert dropping == plain


# ------------------------------------------------------------------------- resuming and failures


def test_resuming_is_bitwise_equal_to_not_stopping(tiny_model, connect_local):
    """In another service; the counter goes on, and the folder is a PEFT folder that says so."""
    folder = tiny_model("llama")
    client = connect_local().create_lora_training_client(folder, rank=4, lora_dropout=P)
    for i in range(3):
        step(client, data_of(i))
    client.forward_backward(data_of(9), "cross_entropy").result()
    path = client.save_state("step").result().path
    assert json.loads((Path(path) / "adapter_config.json").read_text())["lora_dropout"] == P
    resumed = connect_local().create_training_client_from_state_with_optimizer(path)
    assert (
        resumed._adapter.training_passes == 4 and resumed._adapter.config == client._adapter.config
    )
    for i in range(3, 6):
        assert step(resumed, data_of(i)).metrics == step(client, data_of(i)).metrics
    assert torch.equal(resumed._adapter.flat, client._adapter.flat)


def test_a_fresh_optimizer_starts_the_masks_again(tiny_model, service):
    """The same ones each time it is loaded, also from a folder that names no seed."""
    client = service.create_lora_training_client(tiny_model("llama"), rank=4, lora_dropout=P)
    step(client, data_of(0))
    path = Path(client.save_state("fresh").result().path)
    for names_seed in (True, False):
        if not names_seed:
            (path / "state.json").unlink()
        gradients = []
        for _ in range(2):
            fresh = service.create_training_client_from_state(str(path))
            assert fresh._adapter.config.dropout == P and fresh._adapter.training_passes == 0
            fresh.forward_backward(data_of(0), "cross_entropy").result()
            gradients.append(fresh._adapter.grad)
        assert torch.equal(*gradients)


def test_older_and_foreign_folders(tiny_model, service):
    """Without lora_dropout and with "seed": null they load; with an impossible one they do not."""
    client = client_of(service, tiny_model("llama"))
    path = Path(client.save_state("old").result().path)
    peft, state = path / "adapter_config.json", path / "state.json"
    config = json.loads(peft.read_text())
    state.write_text(json.dumps({**json.loads(state.read_text()), "seed": None}))
    del config["lora_dropout"]
    peft.write_text(json.dumps(config))
    loaded = service.create_training_client_from_state(str(path))
    assert loaded._adapter.config.dropout == 0 and loaded._adapter.config.seed == 0
    peft.write_text(json.dumps({**config, "lora_dropout": 1.0}))
    with pytest.raises(ValueError, match=r"adapter_config.json: lora_dropout=1.0: 0 <= "):
        service.create_training_client_from_state(str(path))


@contextmanager
def failing(decoder: Any, call: int, error: Exception) -> Iterator[None]:
    """hidden() raises at its call of this number, once."""
    hidden, calls = decoder.hidden, []

    def fail(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == call:
            raise error
        return hidden(*args)

    decoder.hidden = fail
    yield
    decoder.hidden = hidden


def test_a_failed_or_repeated_pass_has_the_same_masks(tiny_model, connect_local):
    folder = tiny_model("llama")
    services = [connect_local(max_train_tokens=90) for _ in range(2)]
    client, plain = (client_of(service, folder) for service in services)
    decoder = services[0].engine(folder).decoder
    plain.forward_backward(data_of(0), "cross_entropy").result()
    with failing(decoder, 2, RuntimeError("boom")), pytest.raises(RuntimeError, match="boom"):
        client.forward_backward(data_of(0), "cross_entropy").result()
    client.forward(data_of(0), "cross_entropy").result()
    assert client._adapter.training_passes == 0
    with failing(decoder, 1, torch.OutOfMemoryError("no room")):
        client.forward_backward(data_of(0), "cross_entropy").result()
    assert client._adapter.training_passes == plain._adapter.training_passes == 1
    assert relative_error(client._adapter.grad, plain._adapter.grad) <= 1e-5


@pytest.mark.parametrize("value", [-0.1, 1.0, 1, float("nan"), float("inf"), "0.1", None])
def test_bad_values_are_refused_before_anything_is_loaded(value: Any, connect_local):
    with pytest.raises(ValueError, match=r"lora_dropout=.*: 0 <= lora_dropout < 1 is needed"):
        connect_local().create_lora_training_client("/no/such/model", lora_dropout=value)
