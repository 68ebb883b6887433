"""PEFT's own adapters: computed as PEFT computes them, or refused by the field's name."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import EvaConfig, LoftQConfig, LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import (
    ArrowConfig,
    BdLoraConfig,
    CordaConfig,
    KasaConfig,
    LoraGAConfig,
    MontecloraConfig,
    VeloraConfig,
)
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.eva import initialize_lora_eva_weights
from peft.tuners.lora.loraga import preprocess_loraga
from safetensors.torch import load_file, save_file
from tiny_models import hf_logprobs, hf_model, peft_parts, random_tokens

from training.api import ModelInput
from training.backends.local.peft_config import READ, REFUSED, WITHOUT_EFFECT, read_peft_config

# PEFT warns of settings that do not go together, which is what is tested here
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

TOKENS = random_tokens(np.random.default_rng(0), 40)
BATCH = {"input_ids": torch.tensor([TOKENS]), "labels": torch.tensor([TOKENS])}


def test_every_field_of_pefts_lora_config_is_known():
    """A new PEFT version's field must be put into one of peft_config.py's tables."""
    tables = (READ, WITHOUT_EFFECT, frozenset(REFUSED))
    assert {field.name for field in dataclasses.fields(LoraConfig)} == frozenset().union(*tables)
    assert sum(map(len, tables)) == len(frozenset().union(*tables))


def lora(**options: Any) -> LoraConfig:
    defaults: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ["q_proj"],
    }
    return LoraConfig(**{**defaults, **options})


def move(model: Any, seed: int = 1) -> None:
    """As training would: away from where the initialisation left A and B."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in peft_parts(model).values():
            parameter += torch.randn(parameter.shape) * 0.1


def logprobs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return hf_logprobs(model.eval(), TOKENS[:-1], torch.tensor(TOKENS[1:]))


def loaded(service: Any, path: Path, folder: str) -> torch.Tensor:
    sampler = service.create_sampling_client(model_path=str(path), base_model=folder)
    return torch.tensor(sampler.compute_logprobs(ModelInput.from_ints(TOKENS)).result()[1:])


ALL = ["q_proj", "o_proj", "up_proj", "down_proj"]


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"init_lora_weights": "gaussian"}),
        ("llama", {"init_lora_weights": False, "target_modules": ALL}),
        ("llama", {"init_lora_weights": "orthogonal", "target_modules": ALL}),
        ("llama", {"init_lora_weights": "mica", "target_modules": ALL}),
        ("llama", {"use_rslora": True, "lora_dropout": 0.3}),
        ("llama", {"exclude_modules": ["k_proj"], "target_modules": "all-linear"}),
        ("llama", {"target_modules": r".*layers\.1\.(self_attn\.v|mlp\.gate)_proj"}),
        ("llama", {"layers_to_transform": [1], "layers_pattern": "layers"}),
        ("llama", {"target_modules": [], "target_parameters": ["mlp.down_proj.weight"]}),
        ("llama", {"task_type": None, "inference_mode": True}),
        ("llama", {"megatron_core": "mine", "qalora_group_size": 8, "revision": "main"}),
        ("gpt2", {"fan_in_fan_out": True, "target_modules": ["c_attn", "c_proj"]}),
    ],
)
def test_what_is_accepted_is_computed_as_by_peft(
    family: str, options: dict[str, Any], tiny_model, service, tmp_path: Path
):
    folder = tiny_model(family)
    model: Any = get_peft_model(hf_model(folder), lora(**options))
    move(model)
    model.save_pretrained(str(tmp_path / "peft"))
    wanted = logprobs(model)
    assert (wanted - logprobs(hf_model(folder))).abs().max() > 0.01
    assert (loaded(service, tmp_path / "peft", folder) - wanted).abs().max() <= 1e-5


# what was trained, what its adapter_config.json says, and what is wrong with that
OTHER_LAYERS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "fewer targets": (
        {"target_modules": ALL},
        {"target_modules": ["q_proj", "o_proj"]},
        r"target_modules=\['q_proj', 'o_proj'\]: .* tensors that adapter_model.safetensors has for "
        r"4 layers \(model.layers.0.mlp.*, \.\.\.\)",
    ),
    "more targets": (
        {"target_modules": ["q_proj", "v_proj"]},
        {"target_modules": ["q_proj", "v_proj", "k_proj"]},
        r"target_modules=.*an adapter on 2 layers \(model.layers.0.self_attn.k_proj, "
        r"model.layers.1.self_attn.k_proj\) without tensors",
    ),
    "embeddings too": (
        {},
        {"target_modules": ["q_proj", "embed_tokens"]},
        r"target_modules=.*1 layer \(model.embed_tokens\) without tensors",
    ),
    "other targets": (
        {},
        {"target_modules": ["k_proj"]},
        r"target_modules=\['k_proj'\]: .*2 layers \(model.layers.0.self_attn.q_proj",
    ),
    "no such targets": (
        {},
        {"target_modules": ["query"]},
        r"target_modules=\['query'\]: PEFT refuses that .*name the 2 layers that have tensors",
    ),
    "a pattern": (
        {},
        {"target_modules": r".*layers\.0.*q_proj"},
        r"target_modules='.*1 layer \(model.layers.1.self_attn.q_proj\)",
    ),
    "not a pattern": ({}, {"target_modules": "*("}, r"target_modules='\*\(': PEFT refuses that"),
    "not a name": ({}, {"target_modules": 3}, r"target_modules=3: PEFT refuses that"),
    "excluded": (
        {},
        {"exclude_modules": ["layers.1.self_attn.q_proj"]},
        r"json: exclude_modules=\['layers.1.self_attn.q_proj'\]: .*1 layer \(model.layers.1",
    ),
    "excluded no more": (
        {"exclude_modules": r".*layers\.1.*"},
        {"exclude_modules": None},
        r"target_modules=.*an adapter on 1 layer \(model.layers.1.self_attn.q_proj\) without",
    ),
    "one layer of two": (
        {},
        {"layers_to_transform": [0]},
        r"json: layers_to_transform=\[0\]: .*1 layer \(model.layers.1.self_attn.q_proj\)",
    ),
    "two layers of one": (
        {"layers_to_transform": [1]},
        {"layers_to_transform": None},
        r"target_modules=.*an adapter on 1 layer \(model.layers.0.self_attn.q_proj\) without",
    ),
    "the other layer": (
        {"layers_to_transform": 1},
        {"layers_to_transform": 0},
        r"json: layers_to_transform=0: .*1 layer \(model.layers.1.self_attn.q_proj\)",
    ),
    "another list of layers": (
        {"layers_to_transform": [0, 1], "layers_pattern": "layers"},
        {"layers_pattern": ["blocks"]},
        r"layers_to_transform=\[0, 1\], layers_pattern=\['blocks'\]: PEFT refuses that",
    ),
    "parameters": (
        {"target_modules": [], "target_parameters": ["mlp.down_proj.weight"]},
        {"target_parameters": ["layers.1.mlp.down_proj.weight"]},
        r"target_parameters=.*1 layer \(model.layers.0.mlp.down_proj\)",
    ),
}


@pytest.mark.parametrize("case", OTHER_LAYERS)
def test_a_config_that_names_other_layers_than_have_tensors_is_refused(
    case: str, tiny_model, service, tmp_path: Path
):
    options, changes, message = OTHER_LAYERS[case]
    folder = tiny_model("llama")
    model: Any = get_peft_model(hf_model(folder), lora(**options))
    move(model)
    model.save_pretrained(str(tmp_path))
    assert loaded(service, tmp_path, folder) is not None
    edit(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        loaded(service, tmp_path, folder)


def test_tensors_that_were_lost_are_missed(tiny_model, service, tmp_path: Path):
    folder = tiny_model("llama")
    model: Any = get_peft_model(hf_model(folder), lora(target_modules=ALL))
    move(model)
    model.save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "layers.1.mlp" not in k}, file)
    with pytest.raises(ValueError, match=r"target_modules=.*on 2 layers \(model.layers.1.mlp.*"):
        loaded(service, tmp_path, folder)


def test_eva_is_computed_as_by_peft(tiny_model, service, tmp_path: Path):
    folder = tiny_model("llama")
    # rho 1 keeps one rank for all layers
    config = lora(init_lora_weights="eva", eva_config=EvaConfig(rho=1.0, use_label_mask=False))
    model: Any = get_peft_model(hf_model(folder), config)
    batches = [{"input_ids": torch.tensor([TOKENS]), "attention_mask": torch.ones(1, len(TOKENS))}]
    initialize_lora_eva_weights(model, batches, show_progress_bar=False)
    move(model)
    model.save_pretrained(str(tmp_path / "peft"))
    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["eva_config"]
    assert (loaded(service, tmp_path / "peft", folder) - logprobs(model)).abs().max() <= 1e-5


def prepare_corda(model: Any, config: LoraConfig) -> None:
    preprocess_corda(model, config, run_model=lambda: model(BATCH["input_ids"]))


def prepare_lora_ga(model: Any, config: LoraConfig) -> None:
    preprocess_loraga(model, config, lambda: model(**BATCH).loss.backward())


@pytest.mark.parametrize(
    ("options", "prepare"),
    [
        ({"init_lora_weights": "pissa"}, None),
        ({"init_lora_weights": "pissa_niter_4"}, None),
        ({"init_lora_weights": "olora"}, None),
        ({"init_lora_weights": "corda", "corda_config": CordaConfig()}, prepare_corda),
        ({"init_lora_weights": "lora_ga", "lora_ga_config": LoraGAConfig()}, prepare_lora_ga),
    ],
)
def test_adapters_that_changed_the_base_are_refused_until_converted(
    options: dict[str, Any],
    prepare: Callable[[Any, LoraConfig], None] | None,
    tiny_model,
    service,
    tmp_path: Path,
):
    """By both ways that the error names."""
    folder, config = tiny_model("llama"), lora(**options, target_modules=ALL)
    base = hf_model(folder)
    if prepare is not None:
        prepare(base, config)
    model: Any = get_peft_model(base, config)
    model.save_pretrained(str(tmp_path / "before"))
    move(model)
    model.save_pretrained(str(tmp_path / "peft"))
    wanted = logprobs(model)
    init = re.escape(f"init_lora_weights={options['init_lora_weights']!r}: ")
    with pytest.raises(
        ValueError, match=f"adapter_config.json: {init}.*path_initial_model_for_weight_conversion"
    ):
        loaded(service, tmp_path / "peft", folder)

    model.save_pretrained(
        str(tmp_path / "converted"),
        path_initial_model_for_weight_conversion=str(tmp_path / "before"),
    )
    assert (loaded(service, tmp_path / "converted", folder) - wanted).abs().max() <= 3e-5

    model.unload().save_pretrained(tmp_path / "changed")
    edit(tmp_path / "peft", init_lora_weights=True)
    got = loaded(service, tmp_path / "peft", str(tmp_path / "changed"))
    assert (got - wanted).abs().max() <= 1e-5


def edit(path: Path, **changes: Any) -> None:
    file = path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


# PEFT's own values, as it writes them
REFUSED_VALUES: dict[str, Any] = {
    "bias": "lora_only",
    "lora_bias": True,
    "rank_pattern": {"q_proj": 8},
    "alpha_pattern": {"q_proj": 8},
    "modules_to_save": ["lm_head"],
    "trainable_token_indices": [3],
    "use_dora": True,
    "kasa_config": KasaConfig(),
    "use_bdlora": BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2),
    "velora_config": VeloraConfig(num_groups=8),
    "monteclora_config": MontecloraConfig(),
    "target_parameters": ["experts.gate_up_proj"],
    "layer_replication": [[0, 2], [1, 2]],
    "ensure_weight_tying": True,
    "alora_invocation_tokens": [3, 4],
    "arrow_config": ArrowConfig(),
    "use_qalora": True,
    "megatron_config": {"num_layers": 2},
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_the_engine_does_not_compute_is_refused_by_name(name: str, tmp_path: Path):
    lora(**{name: REFUSED_VALUES[name]}).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=f"adapter_config.json: {name}=.*not supported; "):
        read_peft_config(tmp_path / "adapter_config.json")


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path):
    lora(use_dora=True, bias="all").save_pretrained(str(tmp_path))
    edit(tmp_path, r=True, lora_alpha="6", task_type="SEQ_CLS", init_lora_weights="loftq")
    with pytest.raises(ValueError, match="use_dora") as caught:
        read_peft_config(tmp_path / "adapter_config.json")
    told = str(caught.value).splitlines()
    assert all(str(tmp_path / "adapter_config.json") in line for line in told)
    names = ("task_type", "r=True", "lora_alpha='6'", "loftq", "bias='all'", "use_dora")
    assert all(sum(name in line for line in told) == 1 for name in names) and len(told) == 6


@pytest.mark.parametrize("init", ["new", "pisa", 3])
def test_an_unknown_initialisation_is_refused(init: Any, tmp_path: Path):
    lora().save_pretrained(str(tmp_path))
    edit(tmp_path, init_lora_weights=init)
    with pytest.raises(ValueError, match=f"init_lora_weights={init!r}: not known here; .*gaussian"):
        read_peft_config(tmp_path / "adapter_config.json")


def test_fields_of_other_versions(tmp_path: Path):
    """At their defaults they say nothing; else what they say is not computed."""
    lora().save_pretrained(str(tmp_path))
    file = tmp_path / "adapter_config.json"
    edit(tmp_path, new_flag=False, new_config=None, new_pattern={})
    assert read_peft_config(file)[:3] == (4, 6.0, 0.0)
    edit(tmp_path, new_flag=True)
    with pytest.raises(ValueError, match="new_flag=True: a field of PEFT that is not known here"):
        read_peft_config(file)


def test_a_newer_peft_knows_its_own_defaults(tmp_path: Path, monkeypatch):
    """Where the tables do not have a field yet, the installed PEFT says what its default is."""
    lora().save_pretrained(str(tmp_path))
    without = WITHOUT_EFFECT - {"qalora_group_size"}
    monkeypatch.setattr("training.backends.local.peft_config.WITHOUT_EFFECT", without)
    file = tmp_path / "adapter_config.json"
    assert read_peft_config(file).rank == 4
    edit(tmp_path, qalora_group_size=8)
    with pytest.raises(ValueError, match="qalora_group_size=8: a field of PEFT"):
        read_peft_config(file)


def test_a_revision_of_the_base_model_is_not_passed_over(tiny_model, service, tmp_path: Path):
    folder = tiny_model("llama")
    get_peft_model(hf_model(folder), lora(revision="abc123")).save_pretrained(str(tmp_path))
    with pytest.raises(ValueError, match=r"llama.*revision='abc123'; .*pass its folder"):
        service.create_sampling_client(model_path=str(tmp_path))
    assert service.create_sampling_client(model_path=str(tmp_path), base_model=folder)


def test_loftq_settings_that_were_kept_are_no_matter(tmp_path: Path):
    lora(loftq_config=LoftQConfig()).save_pretrained(str(tmp_path))
    edit(tmp_path, loftq_config={"loftq_bits": 4, "loftq_iter": 1})
    assert read_peft_config(tmp_path / "adapter_config.json").alpha == 6.0


def test_what_peft_wrote_loads_in_peft(tiny_model, service, tmp_path: Path):
    """The engine's own files name no field that PEFT does not know."""
    folder = tiny_model("llama")
    client = service.create_lora_training_client(folder, rank=2)
    path = client.save_weights_for_sampler("names").result().path
    written = json.loads((Path(path) / "adapter_config.json").read_text())
    assert written.keys() <= {field.name for field in dataclasses.fields(LoraConfig)}
    config: Any = PeftModel.from_pretrained(hf_model(folder), path).peft_config["default"]
    assert config.r == 2
