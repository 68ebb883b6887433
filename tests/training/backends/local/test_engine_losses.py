"""Losses, gradients and optimizer steps against Hugging Face, PEFT and autograd."""

from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import (
    VOCAB,
    cross_entropy_datum,
    hf_logprobs,
    peft_parts,
    peft_twin,
    policy_datum,
    random_tokens,
    randomise,
    relative_error,
    worst_gradient_error,
)

from training.api import AdamParams, Datum, ModelInput, RequestFailedError
from training.backends.local.losses import LOSSES, loss_and_gradient

CONFIGS: dict[str, dict[str, float]] = {
    "cross_entropy": {},
    "importance_sampling": {},
    "ppo": {"clip_low_threshold": 0.9, "clip_high_threshold": 1.15},
    "cispo": {"clip_low_threshold": 0.7, "clip_high_threshold": 1.3},
    "dro": {"beta": 0.05},
    "gspo": {"clip_low_threshold": 0.97, "clip_high_threshold": 1.04},
}
RL_LOSSES = [name for name in CONFIGS if name != "cross_entropy"]


def reference_loss(
    loss_fn: str, p: torch.Tensor, inputs: dict[str, torch.Tensor], config: dict[str, float]
) -> torch.Tensor:
    """The published formula over one datum, written once more and independently."""
    if loss_fn == "cross_entropy":
        return -(p * inputs["weights"]).sum()
    q, advantages = inputs["logprobs"], inputs["advantages"]
    ratio = torch.exp(p - q)
    low, high = config.get("clip_low_threshold", 0.8), config.get("clip_high_threshold", 1.2)
    if loss_fn == "importance_sampling":
        return -(ratio * advantages).sum()
    if loss_fn == "ppo":
        clipped = torch.clip(ratio, low, high)
        return -torch.min(ratio * advantages, clipped * advantages).sum()
    if loss_fn == "cispo":
        return -(torch.clip(ratio, low, high).detach() * p * advantages).sum()
    if loss_fn == "dro":
        # prompt positions carry zeros and stand for no sampled token
        sampled = (q != 0) | (advantages != 0)
        return -(p * advantages - 0.5 * config["beta"] * (p - q) ** 2)[sampled].sum()
    if loss_fn == "gspo":
        mask = inputs["sequence_ratio_mask"] != 0
        s = torch.exp((p - q)[mask].mean().detach())
        token_ratio = s * torch.exp(p - p.detach())
        clipped = torch.clip(token_ratio, low, high)
        return -torch.min(token_ratio * advantages, clipped * advantages).sum()
    raise ValueError(loss_fn)


def tensors(datum: Datum) -> dict[str, torch.Tensor]:
    return {key: value.to_torch() for key, value in datum.loss_fn_inputs.items()}


def reference_backward(
    twin: Any, data: list[Datum], loss_fn: str, config: dict[str, float]
) -> tuple[float, list[torch.Tensor]]:
    """Adds the gradients to the PEFT model's parameters; the loss and each datum's logprobs."""
    total, logprobs = 0.0, []
    for datum in data:
        inputs = tensors(datum)
        p = hf_logprobs(twin, datum.model_input.to_ints(), inputs["target_tokens"])
        loss = reference_loss(loss_fn, p, inputs, config)
        loss.backward()
        total += loss.item()
        logprobs.append(p.detach())
    return total, logprobs


def top_k_datum(rng: np.random.Generator, length: int, k: int) -> Datum:
    targets = rng.integers(0, VOCAB, (length, k))
    targets[:, 1] = np.where(rng.random(length) < 0.3, targets[:, 0], targets[:, 1])
    weights = rng.normal(0.3, 1, (length, k)).astype(np.float32)
    weights[rng.random((length, k)) < 0.4] = 0.0
    weights[rng.random(length) < 0.3] = 0.0
    inputs = {"target_tokens": targets, "weights": weights}
    return Datum(ModelInput.from_ints(random_tokens(rng, length)), inputs)


def make_data(loss_fn: str, rng: np.random.Generator, reference: Any) -> list[Datum]:
    """Two groups with a prompt each and one sequence alone."""
    if loss_fn == "cross_entropy":
        return [cross_entropy_datum(rng, random_tokens(rng, n)) for n in (1, 2, 30, 70)]
    data = []
    for prompt_length, answers in ((20, (3, 9, 17)), (5, (1, 30))):
        prompt = random_tokens(rng, prompt_length)
        for n in answers:
            answer = random_tokens(rng, n)
            is_gspo = loss_fn == "gspo"
            # gspo's ratio is of whole sequences and its clips are narrow
            spread = 0.05 if is_gspo else 0.4
            data.append(policy_datum(rng, prompt, answer, reference, mask=is_gspo, spread=spread))
    return data


def trained_client(service: Any, folder: str, seed: int, **options: Any) -> Any:
    client = service.create_lora_training_client(folder, rank=4, **options)
    randomise(client, seed)
    return client


@pytest.mark.parametrize("family", ["llama_tied", "gemma2"])
@pytest.mark.parametrize("loss_fn", list(CONFIGS))
def test_loss_and_gradient_equal_the_formula(loss_fn: str, family: str, tiny_model, service):
    folder = tiny_model(family)
    for seed in (0, 1):
        rng = np.random.default_rng(seed)
        client = trained_client(service, folder, seed)
        twin = peft_twin(client, folder)
        data = make_data(loss_fn, rng, twin)
        output = client.forward_backward(data, loss_fn, CONFIGS[loss_fn]).result()
        loss, logprobs = reference_backward(twin, data, loss_fn, CONFIGS[loss_fn])
        assert output.metrics["loss:sum"] == pytest.approx(loss, rel=1e-5, abs=1e-4)
        assert worst_gradient_error(client, twin) <= 2e-5
        for datum, own, wanted in zip(data, output.loss_fn_outputs, logprobs, strict=True):
            inputs, got = tensors(datum), own["logprobs"].to_torch()
            assert got.shape == inputs["target_tokens"].shape and got.dtype == torch.float32
            matters = sum(
                (inputs[k] != 0 for k in inputs if k != "target_tokens"), start=torch.tensor(False)
            )
            torch.testing.assert_close(got[matters], wanted[matters], rtol=0, atol=1e-5)
            # positions that cannot matter are not computed
            assert (got[~matters] == 0).all()


@pytest.mark.parametrize("k", [2, 5])
def test_top_k_cross_entropy(k: int, tiny_model, service):
    """Soft targets [N, K]: repeated targets add up, zero cells are free, negative ones count."""
    folder = tiny_model("llama")
    rng = np.random.default_rng(k)
    client = trained_client(service, folder, k)
    twin = peft_twin(client, folder)
    data = [top_k_datum(rng, n, k) for n in (1, 9, 70)]
    output = client.forward_backward(data, "cross_entropy").result()
    loss, logprobs = reference_backward(twin, data, "cross_entropy", {})
    assert output.metrics["loss:sum"] == pytest.approx(loss, rel=1e-5, abs=1e-4)
    assert worst_gradient_error(client, twin) <= 2e-5
    for datum, own, wanted in zip(data, output.loss_fn_outputs, logprobs, strict=True):
        weights, got = tensors(datum)["weights"], own["logprobs"].to_torch()
        assert got.shape == weights.shape
        assert torch.allclose(got[weights != 0], wanted[weights != 0], atol=1e-5, rtol=0)


def test_missing_weights_are_ones(tiny_model, service):
    folder = tiny_model("llama")
    rng = np.random.default_rng(0)
    tokens, targets = random_tokens(rng, 20), random_tokens(rng, 20)
    outputs, gradients = [], []
    for extra in ({}, {"weights": [1.0] * 20}):
        client = trained_client(service, folder, 0)
        datum = Datum(ModelInput.from_ints(tokens), {"target_tokens": targets, **extra})
        outputs.append(client.forward_backward([datum], "cross_entropy").result().metrics)
        gradients.append(client._adapter.grad.clone())
    assert outputs[0] == outputs[1] and torch.equal(gradients[0], gradients[1])


def test_zero_weights_add_nothing(tiny_model, service):
    client = trained_client(service, tiny_model("llama"), 0)
    rng = np.random.default_rng(0)
    client.forward_backward(
        [cross_entropy_datum(rng, random_tokens(rng, 20))], "cross_entropy"
    ).result()
    before = client._adapter.grad.clone()
    inputs = {"target_tokens": random_tokens(rng, 9), "weights": [0.0] * 9}
    datum = Datum(ModelInput.from_ints(random_tokens(rng, 9)), inputs)
    output = client.forward_backward([datum, datum], "cross_entropy").result()
    assert output.metrics == {"loss:sum": 0.0}
    assert torch.equal(client._adapter.grad, before)


@pytest.mark.parametrize("loss_fn", RL_LOSSES)
def test_placeholders_far_from_the_model_add_nothing(loss_fn: str, tiny_model, service):
    """exp(p - q) is infinite at a token of logprob -200 under the sampler; times advantage 0 the
    term is 0, not NaN."""
    client = trained_client(service, tiny_model("llama"), 0)
    rng = np.random.default_rng(0)
    twin = peft_twin(client, tiny_model("llama"), f"twin-{loss_fn}")
    (datum,) = [policy_datum(rng, random_tokens(rng, 5), random_tokens(rng, 9), twin, mask=True)]
    fields = {k: v.to_numpy().copy() for k, v in datum.loss_fn_inputs.items()}
    fields["logprobs"][8], fields["advantages"][8] = -200.0, 0.0
    fields["sequence_ratio_mask"][8] = 0.0
    if loss_fn != "gspo":
        del fields["sequence_ratio_mask"]
    output = client.forward_backward(
        [Datum(datum.model_input, fields)], loss_fn, CONFIGS[loss_fn]
    ).result()
    assert np.isfinite(output.metrics["loss:sum"])
    assert torch.isfinite(client._adapter.grad).all()
    assert client._adapter.grad.abs().max() > 0


@pytest.mark.parametrize("loss_fn", list(CONFIGS))
def test_per_token_gradients_by_autograd(loss_fn: str):
    """loss_and_gradient alone, on made-up logprobs with ratios on both sides of the clips."""
    for seed in range(5):
        generator = torch.Generator().manual_seed(seed)
        p = -torch.rand(40, generator=generator) * 3
        inputs = {
            "weights": torch.randn(40, generator=generator),
            "logprobs": p + 0.4 * torch.randn(40, generator=generator),
            "advantages": torch.randn(40, generator=generator),
            "sequence_ratio_mask": (torch.rand(40, generator=generator) < 0.8).float(),
        }
        losses, gradient = loss_and_gradient(loss_fn, p, inputs, CONFIGS[loss_fn])
        leaf = p.clone().requires_grad_()
        wanted = reference_loss(loss_fn, leaf, inputs, CONFIGS[loss_fn])
        wanted.backward()
        assert leaf.grad is not None
        torch.testing.assert_close(losses.sum(), wanted.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradient, leaf.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("loss_fn", RL_LOSSES)
def test_extreme_ratios_equal_autograd_in_float64(loss_fn: str):
    """exp(p - q) beyond float32: 0 where the clipped term is a constant or the advantage is 0,
    infinite (for the engine to refuse) where it is really that large, never NaN."""
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        p = -torch.rand(60, generator=generator) * 3
        distance = torch.tensor([0.05, 2.0, 60.0, 100.0, 300.0])[torch.arange(60) % 5]
        noise = torch.randn(60, generator=generator).clamp(-2, 2)
        # gspo averages: one seed in two all rows are as far and on one side
        q = p - (distance if seed % 2 else distance * noise)
        inputs = {
            "logprobs": q,
            "advantages": torch.randn(60, generator=generator) * (torch.arange(60) % 7 != 0),
            "sequence_ratio_mask": (torch.rand(60, generator=generator) < 0.8).float(),
        }
        losses, gradient = loss_and_gradient(loss_fn, p, inputs, CONFIGS[loss_fn])
        leaf = p.double().requires_grad_()
        doubles = {key: value.double() for key, value in inputs.items()}
        reference_loss(loss_fn, leaf, doubles, CONFIGS[loss_fn]).backward()
        assert leaf.grad is not None and torch.isfinite(leaf.grad).all()
        assert not losses.isnan().any()
        # close to what float32 can hold, the ratio may overflow before its product with A does
        got, wanted = (g.double().clamp(-1e30, 1e30) for g in (gradient, leaf.grad))
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def extreme(datum: Datum, q: float, advantage: float, at: int = 8) -> Datum:
    """The datum with another sampler's logprob and advantage at one position."""
    fields = {key: value.to_numpy().copy() for key, value in datum.loss_fn_inputs.items()}
    fields["logprobs"][at], fields["advantages"][at] = q, advantage
    return Datum(datum.model_input, fields)


@pytest.mark.parametrize("loss_fn", RL_LOSSES)
def test_a_token_that_the_sampler_found_impossible(loss_fn: str, tiny_model, service):
    """Finite and right where the loss is bounded there; else refused, by datum and position, and
    alone: the request that shares its pass and the gradients there were are not touched."""
    folder = tiny_model("llama")
    client, other = (trained_client(service, folder, seed) for seed in (0, 1))
    twin = peft_twin(client, folder, f"impossible-{loss_fn}")
    rng = np.random.default_rng(0)
    masked = loss_fn == "gspo"
    good, datum = (
        policy_datum(rng, random_tokens(rng, 5), random_tokens(rng, 9), twin, mask=masked)
        for _ in range(2)
    )
    config = CONFIGS[loss_fn]

    if loss_fn != "importance_sampling":
        data = [good, extreme(datum, -200.0, 1.5)]
        output = client.forward_backward(data, loss_fn, config).result()
        total = 0.0
        for each in data:
            doubles = {key: value.double() for key, value in tensors(each).items()}
            targets = tensors(each)["target_tokens"]
            p = hf_logprobs(twin, each.model_input.to_ints(), targets).double()
            loss = reference_loss(loss_fn, p, doubles, config)
            loss.backward()
            total += loss.item()
        assert output.metrics["loss:sum"] == pytest.approx(total, rel=1e-4)
        assert worst_gradient_error(client, twin) <= 1e-4

    # beyond float32 in the loss itself, and then only on the way to the adapter's gradient
    beyond = {"importance_sampling": (1.5, -200.0, -80.0), "ppo": (-1.5, -200.0, -80.0)}
    beyond["gspo"] = (-9.0, -2000.0, -600.0)
    advantage, *logprobs = beyond.get(loss_fn, (0.0,))
    for q in logprobs:
        before = client._adapter.grad.clone()
        bad = client.forward_backward([good, extreme(datum, q, advantage)], loss_fn, config)
        fine = other.forward_backward([good], loss_fn, config)
        message = rf"data\[1\] at position 8: .*logprobs {q:.4g}, advantages {advantage:.4g}"
        if loss_fn == "gspo":
            # the ratio is the whole sequence's
            message = r"data\[1\] at position \d+: "
        with pytest.raises(RequestFailedError, match=message):
            bad.result()
        assert torch.equal(client._adapter.grad, before)
        if q == logprobs[0]:
            # no gradient there that could be seen to overflow
            with pytest.raises(RequestFailedError, match=message):
                client.forward([good, extreme(datum, q, advantage)], loss_fn, config).result()
        assert np.isfinite(fine.result().metrics["loss:sum"])
        assert torch.isfinite(other._adapter.grad).all() and other._adapter.grad.abs().max() > 0


@pytest.mark.parametrize("loss_fn", ["ppo", "cispo"])
def test_clip_defaults(loss_fn: str):
    p = torch.log(torch.tensor([0.5, 1.0, 1.5, 0.5, 1.0, 1.5]))
    inputs = {"logprobs": torch.zeros(6), "advantages": torch.tensor([1.0] * 3 + [-1.0] * 3)}
    from training.backends.local.losses import resolve_config

    losses, gradient = loss_and_gradient(loss_fn, p, inputs, resolve_config(loss_fn, None))
    if loss_fn == "ppo":
        assert losses.tolist() == pytest.approx([-0.5, -1.0, -1.2, 0.8, 1.0, 1.5])
        assert gradient.tolist() == pytest.approx([-0.5, -1.0, 0.0, 0.0, 1.0, 1.5])
    else:
        assert gradient.tolist() == pytest.approx([-0.8, -1.0, -1.2, 0.8, 1.0, 1.2])


# ----------------------------------------------------------------------------------- bad settings


def rl_datum(**changes: Any) -> Datum:
    fields = {"target_tokens": [3, 4], "logprobs": [-1.0, -1.0], "advantages": [1.0, 1.0]}
    return Datum(ModelInput.from_ints([5, 3]), {**fields, **changes})


@pytest.mark.parametrize(
    ("loss_fn", "config", "message"),
    [
        ("stable_reinforce", None, f"stable_reinforce.*{', '.join(LOSSES)}"),
        ("ppo", {"clip": 0.2}, "'clip'.*clip_low_threshold, clip_high_threshold"),
        ("importance_sampling", {"beta": 0.1}, "'beta'.*none"),
        ("dro", None, "lacks.*'beta'"),
        ("gspo", None, "lacks.*'clip_high_threshold', 'clip_low_threshold'"),
        ("gspo", {"clip_low_threshold": 0.9}, "lacks.*'clip_high_threshold'"),
        ("ppo", {"clip_low_threshold": 1.3}, "low=1.3, high=1.2"),
        ("ppo", {"clip_low_threshold": "0.9"}, "clip_low_threshold.*finite number"),
        ("dro", {"beta": float("nan")}, "beta.*finite number"),
    ],
)
def test_bad_config_says_what_is_allowed(
    loss_fn: Any, config: Any, message: str, tiny_model, service
):
    client = service.create_lora_training_client(tiny_model("llama"), rank=2)
    for method in (client.forward, client.forward_backward):
        with pytest.raises(ValueError, match=message):
            method([rl_datum()], loss_fn, config)


# ------------------------------------------------------------------------- two passes, other calls


@pytest.mark.parametrize("loss_fn", list(CONFIGS))
def test_custom_loss_equals_the_built_in(loss_fn: str, tiny_model, service):
    folder = tiny_model("llama")
    config = CONFIGS[loss_fn]
    built_in, custom = (trained_client(service, folder, 0) for _ in range(2))
    twin = peft_twin(built_in, folder, f"custom-{loss_fn}")
    data = make_data(loss_fn, np.random.default_rng(0), twin)

    def loss(
        given: list[Datum], logprobs: list[torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        assert given == data
        losses = [
            reference_loss(loss_fn, p, tensors(d), config)
            for d, p in zip(given, logprobs, strict=True)
        ]
        return torch.stack(losses).sum(), {"mean_logprob": float(torch.cat(logprobs).mean())}

    expected = built_in.forward_backward(data, loss_fn, config).result()
    got = custom.forward_backward_custom(data, loss).result()
    assert got.metrics["loss:sum"] == pytest.approx(expected.metrics["loss:sum"], rel=1e-5)
    assert got.metrics["mean_logprob"] < 0 and "surrogate_loss:sum" in got.metrics
    assert relative_error(custom._adapter.grad, built_in._adapter.grad) <= 2e-5
    # all logprobs, also where the built-in loss has no weight
    for datum, own in zip(data, got.loss_fn_outputs, strict=True):
        with torch.no_grad():
            targets = tensors(datum)["target_tokens"]
            wanted = hf_logprobs(twin, datum.model_input.to_ints(), targets)
        torch.testing.assert_close(own["logprobs"].to_torch(), wanted, rtol=0, atol=1e-5)


def test_custom_loss_over_pairs_equals_autograd(tiny_model, service):
    """A DPO-like loss, not a sum over tokens, that leaves one datum out."""
    folder = tiny_model("llama")
    client = trained_client(service, folder, 0)
    twin = peft_twin(client, folder, "pairs")
    rng = np.random.default_rng(1)
    data = [
        Datum(ModelInput.from_ints(random_tokens(rng, n)), {"target_tokens": random_tokens(rng, n)})
        for n in (8, 12, 5)
    ]

    def loss(
        _data: list[Datum], logprobs: list[torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        margin = logprobs[0].mean() - logprobs[1].mean()
        return -torch.nn.functional.logsigmoid(margin) * 10, {}

    output = client.forward_backward_custom(data, loss).result()
    logprobs = [
        hf_logprobs(twin, d.model_input.to_ints(), tensors(d)["target_tokens"]) for d in data
    ]
    wanted, _ = loss(data, logprobs)
    wanted.backward()
    assert output.metrics["loss:sum"] == pytest.approx(wanted.item(), rel=1e-5)
    assert worst_gradient_error(client, twin) <= 2e-5


def test_forward_leaves_gradients_alone(tiny_model, service):
    client = trained_client(service, tiny_model("llama"), 0)
    rng = np.random.default_rng(0)
    data = [cross_entropy_datum(rng, random_tokens(rng, 20)) for _ in range(3)]
    forward = client.forward(data, "cross_entropy").result()
    assert (client._adapter.grad == 0).all() and not client._adapter.has_grad
    weights = client._adapter.flat.clone()
    client.optim_step(AdamParams(learning_rate=1.0)).result()
    assert torch.equal(client._adapter.flat, weights)
    backward = client.forward_backward(data, "cross_entropy").result()
    before = client._adapter.grad.clone()
    client.forward(data, "cross_entropy").result()
    assert torch.equal(client._adapter.grad, before) and before.abs().max() > 0
    assert forward.metrics["loss:sum"] == pytest.approx(backward.metrics["loss:sum"], rel=1e-6)


@pytest.mark.parametrize("loss_fn", list(CONFIGS))
def test_gradients_add_up_over_calls(loss_fn: str, tiny_model, service):
    folder = tiny_model("llama")
    together, split = (trained_client(service, folder, 0) for _ in range(2))
    twin = peft_twin(together, folder, f"split-{loss_fn}")
    data = make_data(loss_fn, np.random.default_rng(0), twin)
    whole = together.forward_backward(data, loss_fn, CONFIGS[loss_fn]).result()
    futures = [split.forward_backward([d], loss_fn, CONFIGS[loss_fn]) for d in data]
    parts = [f.result().metrics["loss:sum"] for f in futures]
    assert sum(parts) == pytest.approx(whole.metrics["loss:sum"], rel=1e-5)
    assert relative_error(split._adapter.grad, together._adapter.grad) <= 1e-5


# -------------------------------------------------------------------------------------- optimizer

STEPS = [
    AdamParams(learning_rate=1e-2),
    AdamParams(learning_rate=3e-3, weight_decay=0.1, grad_clip_norm=0.5),
    AdamParams(learning_rate=5e-3, beta1=0.8, beta2=0.99, eps=1e-8),
    AdamParams(learning_rate=1e-3, weight_decay=0.02, grad_clip_norm=1e4),
    AdamParams(learning_rate=2e-3, grad_clip_norm=1e-3),
]


def test_optim_step_equals_torch_adamw(tiny_model, service):
    """Same gradients in, same weights out, with hyperparameters that change at every step."""
    client = trained_client(service, tiny_model("llama"), 0)
    rng = np.random.default_rng(0)
    weights = client._adapter.flat.clone().requires_grad_()
    optimizer = torch.optim.AdamW([weights])
    for p in STEPS:
        data = [cross_entropy_datum(rng, random_tokens(rng, 20)) for _ in range(2)]
        client.forward_backward(data, "cross_entropy").result()
        weights.grad = client._adapter.grad.clone()
        norm = weights.grad.norm().item()
        if p.grad_clip_norm > 0:
            torch.nn.utils.clip_grad_norm_([weights], p.grad_clip_norm)
        betas = (p.beta1, p.beta2)
        optimizer.param_groups[0].update(
            lr=p.learning_rate, betas=betas, eps=p.eps, weight_decay=p.weight_decay
        )
        optimizer.step()
        response = client.optim_step(p).result()
        assert response.metrics == {"grad_norm": pytest.approx(norm, rel=1e-5)}
        torch.testing.assert_close(client._adapter.flat, weights.detach(), rtol=1e-5, atol=1e-6)
        assert (client._adapter.grad == 0).all()


def test_training_equals_peft_and_torch_adamw(tiny_model, service):
    """Five whole steps, forward to update, on the two implementations side by side."""
    folder = tiny_model("qwen2")
    client = trained_client(service, folder, 1)
    twin = peft_twin(client, folder)
    parts = peft_parts(twin)
    # Adam divides by the gradient's size, so a tiny eps would blow up rounding where it is ~0
    optimizer = torch.optim.AdamW(parts.values(), lr=1e-2, betas=(0.9, 0.95), eps=1e-3)
    rng = np.random.default_rng(2)
    losses, wanted_losses = [], []
    data = [cross_entropy_datum(rng, random_tokens(rng, 15)) for _ in range(3)]
    for _ in range(5):
        future = client.forward_backward(data, "cross_entropy")
        client.optim_step(AdamParams(learning_rate=1e-2, eps=1e-3, weight_decay=0.01)).result()
        losses.append(future.result().metrics["loss:sum"])
        optimizer.zero_grad()
        wanted_losses.append(reference_backward(twin, data, "cross_entropy", {})[0])
        optimizer.step()
    assert losses == pytest.approx(wanted_losses, rel=1e-4)
    assert losses[-1] < losses[0]
    for path, parameter in parts.items():
        layer, part = path.rsplit(".", 1)
        got = getattr(client._adapter.layers[layer], part.lower())
        torch.testing.assert_close(got, parameter.detach(), rtol=1e-4, atol=1e-4)


def test_a_step_without_a_gradient_changes_nothing(tiny_model, service):
    client = trained_client(service, tiny_model("llama"), 0)
    rng = np.random.default_rng(0)
    data = [cross_entropy_datum(rng, random_tokens(rng, 20))]
    decaying = AdamParams(learning_rate=0.1, weight_decay=0.5)
    before = client._adapter.flat.clone()
    assert client.optim_step(decaying).result().metrics == {"grad_norm": 0.0}
    assert torch.equal(client._adapter.flat, before)
    client.forward_backward(data, "cross_entropy").result()
    client.optim_step(decaying).result()
    after = client._adapter.flat.clone()
    moments = {k: v.clone() for k, v in client._adapter.optimizer_tensors().items()}
    assert not torch.equal(after, before)
    client.optim_step(decaying).result()
    assert torch.equal(client._adapter.flat, after)
    for key, value in client._adapter.optimizer_tensors().items():
        assert torch.equal(value, moments[key])


def test_a_gradient_that_is_not_finite_is_refused_and_cleared(tiny_model, service):
    folder = tiny_model("llama")
    client = trained_client(service, folder, 0)
    rng = np.random.default_rng(0)
    data = [cross_entropy_datum(rng, random_tokens(rng, 20))]
    overflowing = rl_datum(logprobs=[-1e4, -1.0])
    before = client._adapter.flat.clone()
    with pytest.raises(RequestFailedError, match=r"data\[0\] at position 0: .*logprobs -1e\+04"):
        client.forward_backward([overflowing], "importance_sampling").result()
    # what gets past that, say two gradients whose sum overflows
    client.forward_backward(data, "cross_entropy").result()
    client._adapter.grad[0] = torch.inf
    step = client.optim_step(AdamParams())
    with pytest.raises(FloatingPointError, match="gradient"):
        step.result()
    assert torch.equal(client._adapter.flat, before)
    client.forward_backward(data, "cross_entropy").result()
    client.optim_step(AdamParams()).result()
    assert torch.isfinite(client._adapter.flat).all()
    assert not torch.equal(client._adapter.flat, before)
