"""The networks of the in-context-learning experiments against transformers, brute force and mup's
published table."""

import re
from typing import Any

import chz
import pytest
import torch
from torch import Tensor, nn
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from training.icl.base import Family
from training.icl.config import MLP, Trained, Transformer
from training.icl.coordinate_check import coordinate_check
from training.icl.families import make_family
from training.icl.models import CausalMLP, CausalTransformer, build_model
from training.icl.mup import parameter_groups, scaling, set_learning_rate
from training.icl.schedules import save_steps
from training.icl.settings import BallsAndUrns, Classification, LinearRegression
from training.icl.tasks import new_task_set

pytestmark = pytest.mark.usefixtures("one_torch_thread")

URNS = make_family(BallsAndUrns(num_dims=5, context_length=12))
LINES = make_family(LinearRegression(num_dims=3, context_length=6))
LABELS = make_family(Classification(num_dims=3, context_length=7))
FAMILIES = {"urns": URNS, "lines": LINES, "labels": LABELS}


def inputs_of(family: Family, count: int = 4) -> Tensor:
    return family.sample(None, count, torch.Generator().manual_seed(1)).inputs


def with_noise(model: nn.Module) -> nn.Module:
    """All parameters away from 0 and 1, so that none can be left out unseen."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model


# ------------------------------------------------------------------------------------ transformer


def reference(config: Transformer, family: Family) -> GPTNeoXForCausalLM:
    """transformers' own model of the shape that Transformer documents."""
    rotated = 0.25 if config.positions == "rotary" else 0.0
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=family.output_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            intermediate_size=config.mlp_size or 4 * config.hidden_size,
            hidden_act="gelu",
            attention_bias=False,
            use_parallel_residual=False,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": rotated,
            },
            attn_implementation="eager",  # pyrefly: ignore[unexpected-keyword]
        )
    ).eval()


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("name", ["urns", "lines"])
def test_the_transformer_is_gpt_neox(positions: Any, name: str) -> None:
    family = FAMILIES[name]
    config = Transformer(
        hidden_size=32, num_layers=2, num_heads=2, mlp_size=48, positions=positions
    )
    model = with_noise(build_model(config, family, seed=0))
    assert isinstance(model, CausalTransformer)
    theirs = reference(config, family)
    ours = model.state_dict()
    head = {"lm_head.weight": ours.pop("lm_head.weight")}
    body = {f"gpt_neox.{key}": value for key, value in ours.items()}
    table = torch.zeros(family.output_size, config.hidden_size)
    read_in = {key: body.pop(key) for key in list(body) if "embed_" in key}
    missing, unexpected = theirs.load_state_dict(
        {**body, **head, "gpt_neox.embed_in.weight": table}, strict=False
    )
    assert not missing and not unexpected
    inputs = inputs_of(family)
    weight = read_in["gpt_neox.embed_in.weight"]
    if name == "urns":
        embedded = weight[inputs]
    else:
        embedded = inputs @ weight.T + read_in["gpt_neox.embed_in.bias"]
    if positions == "learned":
        embedded = embedded + read_in["gpt_neox.embed_positions.weight"][None]
    with torch.no_grad():
        expected = theirs(inputs_embeds=embedded, output_hidden_states=True)
        output, states = model(inputs, output_hidden_states=True)
    torch.testing.assert_close(output, expected.logits, atol=2e-6, rtol=1e-5)
    assert len(states) == len(expected.hidden_states) == config.num_layers + 1
    for mine, other in zip(states, expected.hidden_states, strict=True):
        torch.testing.assert_close(mine, other, atol=2e-6, rtol=1e-5)
    assert output.shape == (4, family.input_length, family.output_size)
    assert torch.equal(model(inputs), output)


@pytest.mark.parametrize(
    "config",
    [
        Transformer(hidden_size=16, num_heads=2, num_layers=2),
        Transformer(hidden_size=16, num_heads=2, positions="rotary"),
        MLP(hidden_size=16, num_layers=3),
    ],
    ids=["learned", "rotary", "mlp"],
)
@pytest.mark.parametrize("name", list(FAMILIES))
def test_no_position_sees_a_later_one(config: Trained, name: str) -> None:
    family = FAMILIES[name]
    model = with_noise(build_model(config, family, seed=0))
    inputs = inputs_of(family)
    output = model(inputs)
    for cut in range(1, family.input_length):
        changed = inputs.clone()
        changed[:, cut:] = 0 if family.input_kind == "tokens" else 3.0
        torch.testing.assert_close(model(changed)[:, :cut], output[:, :cut], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(model(inputs[:, :cut]), output[:, :cut], atol=1e-6, rtol=1e-5)
    # and each one does see the first input
    changed = inputs.clone()
    changed[:, 0] = 0 if family.input_kind == "tokens" else 3.0
    assert ((model(changed) - output).abs().amax((0, 2)) > 1e-6).all()


def test_rotary_positions_matter() -> None:
    model = with_noise(build_model(Transformer(hidden_size=16, positions="rotary"), URNS, seed=0))
    first, second = torch.tensor([[5, 0, 1, 2]]), torch.tensor([[5, 1, 0, 2]])
    assert not torch.allclose(model(first)[:, -1], model(second)[:, -1], atol=1e-5)


def test_seeds_and_init_std() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (build_model(Transformer(), URNS, seed=seed) for seed in (1, 1, 2))
    fixed = build_model(Transformer(init_seed=1), URNS, seed=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    head, *heads = (model.get_parameter("lm_head.weight") for model in (one, same, fixed, other))
    assert [torch.equal(head, another) for another in heads] == [True, True, False]

    def stds(model: nn.Module) -> dict[str, float]:
        return {
            name: parameter.std().item()
            for name, parameter in model.named_parameters()
            if parameter.ndim == 2 and "embed_in" not in name
        }

    big = Transformer(hidden_size=128)
    assert all(abs(std - 0.02) < 0.002 for std in stds(build_model(big, URNS, seed=0)).values())
    vectors = stds(build_model(big, LINES, seed=0))
    assert vectors["layers.0.mlp.dense_4h_to_h.weight"] == pytest.approx(512**-0.5, rel=0.05)
    assert vectors["layers.0.attention.dense.weight"] == pytest.approx(128**-0.5, rel=0.05)
    wide = stds(build_model(chz.replace(big, init_std=0.5), LINES, seed=0))
    assert all(std == pytest.approx(0.5, rel=0.1) for std in wide.values())
    assert all(
        not parameter.any()
        for name, parameter in build_model(big, LINES, seed=0).named_parameters()
        if name.endswith("bias")
    )


def test_too_long_sequences_and_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"max_positions=8: .* has 12 inputs; raise it"):
        build_model(Transformer(max_positions=8), URNS, seed=0)
    roomy = build_model(Transformer(hidden_size=8, max_positions=20), URNS, seed=0)
    assert roomy.get_parameter("embed_positions.weight").shape == (20, 8)
    with pytest.raises(ValueError, match=r"21 inputs for model\.max_positions=20"):
        roomy(torch.zeros(1, 21, dtype=torch.long))
    with pytest.raises(ValueError, match="13 inputs for a model of 12"):
        build_model(MLP(hidden_size=8), URNS, seed=0)(torch.zeros(1, 13, dtype=torch.long))
    refused: list[tuple[dict[str, Any], str]] = [
        ({"hidden_size": 10, "num_heads": 3}, r"must divide model\.hidden_size=10"),
        ({"hidden_size": 8, "num_heads": 2, "positions": "rotary"}, "heads of 8"),
        ({"init_std": 0.0}, "above 0"),
        ({"mlp_size": 0}, "at least 1"),
    ]
    for settings, words in refused:
        with pytest.raises(ValueError, match=words):
            Transformer(**settings)
    with pytest.raises(ValueError, match="base_hidden_size=0: at least 1"):
        MLP(base_hidden_size=0)


# -------------------------------------------------------------------------------------------- MLP


@pytest.mark.parametrize("mup", [True, False])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_the_mlp_reads_the_masked_flattened_context(name: str, mup: bool) -> None:
    family = FAMILIES[name]
    config = MLP(hidden_size=24, num_layers=3, mup=mup, base_hidden_size=8)
    model = with_noise(build_model(config, family, seed=0)).double()
    assert isinstance(model, CausalMLP)
    inputs = inputs_of(family)
    length, size = family.input_length, family.input_size
    if family.input_kind == "tokens":
        vectors = torch.nn.functional.one_hot(inputs, size).double()
    else:
        vectors = inputs = inputs.double()
    output, states = model(inputs, output_hidden_states=True)
    weights = model.read_in.reshape(length * size, 24)
    for position in range(length):
        masked = vectors.clone()
        masked[:, position + 1 :] = 0
        hidden = masked.flatten(1) @ weights + model.read_in_bias
        torch.testing.assert_close(states[0][:, position], hidden, atol=1e-9, rtol=0)
        hidden = hidden.relu()
        for layer in model.hidden:
            hidden = torch.relu(layer(hidden))
        torch.testing.assert_close(states[-1][:, position], hidden, atol=1e-9, rtol=0)
        scale = 8 / 24 if mup else 1.0
        expected = scale * (hidden @ model.read_out.weight.T) + model.read_out.bias
        torch.testing.assert_close(output[:, position], expected, atol=1e-9, rtol=0)
    assert len(states) == 4 and len(model.hidden) == 2


def test_the_published_table() -> None:
    """Tensor Programs V, table 8, Adam: fan in n but for the input, base width b, m = n / b."""
    n, b, fan_in = 256, 32, 40
    m = n / b
    # (init variance, multiplier, learning rate), the readout's variance that of the base
    table = {
        "input": (1 / fan_in, 1.0, 1.0),
        "hidden": (1 / n, 1.0, 1 / m),
        "readout": (1 / b, 1 / m, 1.0),
        "bias": (0.0, 1.0, 1.0),
    }
    for kind, (variance, multiplier, rate) in table.items():
        inputs = fan_in if kind == "input" else n
        found = scaling(kind, inputs, width=n, base_width=b)  # type: ignore[arg-type]
        assert found.init_std**2 == pytest.approx(variance, rel=1e-12)
        assert (found.multiplier, found.rate_factor) == (multiplier, rate)
        standard = scaling(kind, inputs, width=n, base_width=None)  # type: ignore[arg-type]
        assert standard.init_std == pytest.approx(0 if kind == "bias" else inputs**-0.5)
        assert (standard.multiplier, standard.rate_factor) == (1.0, 1.0)
        at_base = scaling(kind, b, width=b, base_width=b)  # type: ignore[arg-type]
        assert at_base == scaling(kind, b, width=b, base_width=None)  # type: ignore[arg-type]


def test_training_equals_that_of_the_mup_package() -> None:
    """Where it is installed: it is not in the lock, because it requires torchvision."""
    mup = pytest.importorskip("mup")
    family = make_family(BallsAndUrns(num_dims=5, context_length=6))
    length, size, width, base = 6, 6, 96, 32

    class Net(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.read_in = nn.Linear(length * size, width)
            self.hidden = nn.Linear(width, width)
            self.read_out = mup.MuReadout(width, size)

        def forward(self, x: Tensor) -> Tensor:
            return self.read_out(self.hidden(self.read_in(x).relu()).relu())

    theirs = Net(width)
    mup.set_base_shapes(theirs, Net(base), delta=Net(2 * base))
    ours = build_model(MLP(hidden_size=width, num_layers=2, base_hidden_size=base), family, 0)
    values = dict(ours.named_parameters())
    with torch.no_grad():
        theirs.read_in.weight.copy_(values["read_in"].reshape(length * size, width).T)
        for name, parameter in theirs.named_parameters():
            if name != "read_in.weight":
                parameter.copy_(
                    values[name.replace("read_in.", "read_in_").replace("hidden", "hidden.0")]
                )
    optimizers = [
        mup.MuAdamW(theirs.parameters(), lr=1e-2, weight_decay=0.0),
        torch.optim.AdamW(parameter_groups(ours, learning_rate=1e-2, weight_decay=0.0)),
    ]
    generator = torch.Generator().manual_seed(0)
    earlier = torch.tril(torch.ones(length, length))[None, :, :, None]
    for _ in range(20):
        batch = family.sample(None, 16, generator)
        seen = nn.functional.one_hot(batch.inputs, size).float()[:, None] * earlier
        losses = [
            family.training_loss(theirs(seen.flatten(2)), batch),
            family.training_loss(ours(batch.inputs), batch),
        ]
        assert losses[0].item() == pytest.approx(losses[1].item(), abs=1e-5)
        for loss, optimizer in zip(losses, optimizers, strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.testing.assert_close(theirs.hidden.weight, values["hidden.0.weight"], atol=1e-5, rtol=0)


def test_the_model_follows_the_table() -> None:
    config = MLP(hidden_size=512, num_layers=3, base_hidden_size=64)
    model = build_model(config, URNS, seed=0)
    assert isinstance(model, CausalMLP)
    stds = {name: p.std().item() for name, p in model.named_parameters()}
    assert stds["read_in"] == pytest.approx(URNS.input_length**-0.5, rel=0.03)
    assert stds["hidden.0.weight"] == pytest.approx(512**-0.5, rel=0.03)
    assert stds["read_out.weight"] == pytest.approx(64**-0.5, rel=0.05)
    assert stds["hidden.1.bias"] == stds["read_in_bias"] == 0
    assert model.output_multiplier == 1 / 8
    factors = model.rate_factors
    assert {name for name, factor in factors.items() if factor == 1 / 8} == {
        "hidden.0.weight",
        "hidden.1.weight",
    }
    assert all(
        f == 1 for name, f in factors.items() if name not in ("hidden.0.weight", "hidden.1.weight")
    )
    groups = parameter_groups(model, learning_rate=0.04, weight_decay=0.5)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    by_rate = {group["lr"]: group for group in groups}
    assert set(by_rate) == {0.04, 0.005}
    assert {id(p) for p in by_rate[0.005]["params"]} == {
        id(p) for name, p in model.named_parameters() if re.fullmatch(r"hidden\..\.weight", name)
    }
    # what AdamW takes off a weight, rate x decay, is the same everywhere
    assert all(g["lr"] * g["weight_decay"] == pytest.approx(0.02) for g in groups)
    set_learning_rate(groups, 0.08)
    assert {group["lr"] for group in groups} == {0.08, 0.01}
    plain = parameter_groups(
        build_model(Transformer(), URNS, seed=0), learning_rate=0.1, weight_decay=0.0
    )
    assert len(plain) == 1 and plain[0]["rate_factor"] == 1


def test_at_the_base_width_mup_is_the_standard_parametrisation() -> None:
    one, other = (
        build_model(MLP(hidden_size=32, num_layers=3, base_hidden_size=32, mup=mup), URNS, seed=3)
        for mup in (True, False)
    )
    for mine, theirs in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs)
    inputs = inputs_of(URNS)
    assert torch.equal(one(inputs), other(inputs))
    assert one.rate_factors == other.rate_factors


def slopes(mup: bool) -> dict[str, list[float]]:
    """Of log rms against log width, for each layer."""
    setting = BallsAndUrns(num_dims=5, context_length=6, num_tasks=8)
    family = make_family(setting)
    widths = [32, 64, 128, 256, 512]
    checked = coordinate_check(
        MLP(num_layers=3, mup=mup, base_hidden_size=32),
        widths,
        family,
        new_task_set(setting, family, 8, seed=0),
        learning_rate=2e-3,
        num_steps=5,
        seed=0,
    )
    logs = torch.tensor(widths).double().log()

    def fitted(values: list[float]) -> float:
        ys = torch.tensor(values).double().log()
        return (((logs - logs.mean()) * ys).sum() / (logs - logs.mean()).square().sum()).item()

    layers = range(len(checked[32].change))
    return {
        "change": [fitted([checked[w].change[i] for w in widths]) for i in layers],
        "at_init": [fitted([checked[w].at_init[i] for w in widths]) for i in layers],
    }


def test_coordinate_check() -> None:
    """Activations are flat in width at the start; after some updates mup's have moved by as much at
    every width, while the standard parametrisation's move the further the wider it is."""
    ours, standard = slopes(mup=True), slopes(mup=False)
    # the last two are the top hidden layer and the output
    assert all(abs(slope) < 0.15 for slope in ours["at_init"][:-1])
    assert all(abs(slope) < 0.25 for slope in ours["change"]), ours
    assert standard["change"][-2] > 0.4 and standard["change"][-1] > 0.65, standard
    # at the start mup's output shrinks as one over the root of the width, by design
    assert ours["at_init"][-1] == pytest.approx(-0.5, abs=0.25)


# -------------------------------------------------------------------------------------- schedules


def test_save_steps() -> None:
    steps = save_steps("sqrt", 100_000, 100)
    assert steps[:6] == [20, 58, 115, 193, 291, 408] and steps[-2:] == [98018, 100_000]
    assert len(steps) == 100 and steps == sorted(set(steps))
    assert save_steps("linear", 1000, 3) == [333, 666, 1000]
    assert save_steps("linear", 10, 10) == list(range(1, 11))
    assert save_steps("end_only", 7) == [7] == save_steps(None, 7)
    assert save_steps("explicit", 9, explicit=[4, 2, 4]) == [2, 4, 9]
    assert save_steps(None, 9, explicit=[3]) == [3, 9]
    # a square of a root that is rounded down must not add the step before the last
    for num_steps in range(1, 400):
        found = save_steps("sqrt", num_steps, 5)
        assert found[-1] == num_steps and found[0] == min(20, num_steps)
        assert len(found) < 2 or num_steps < 40 or found[-2] < num_steps - 1
    assert save_steps("sqrt", 500, 1) == [500]
    assert save_steps("linear", 3, 10) == [1, 2, 3]
