"""Which layers get LoRA, what is said of it, and that PEFT finds them under the names written."""

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
from tiny_models import hf_logprobs, hf_model, random_tokens, randomise
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from training.api import Datum, ModelInput
from training.backends.local.llama import LLAMA_SHAPED
from training.backends.local.peft_names import takes_adapters

# each with layers that PEFT renames, or a linear layer beside its layers, or experts
FAMILIES = (
    "deepseek_v3",
    "dots1",
    "gemma3",
    "gemma3n_text",
    "gemma4",
    "gemma4_text",
    "git",
    "glm4_moe",
    "laguna",
    "mixtral",
    "olmoe",
    "qwen2_moe",
    "qwen3_moe",
    "qwen3_next",
)
TOKENS = random_tokens(np.random.default_rng(0), 30)
TARGETS = torch.tensor(TOKENS[1:])


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return {}


@pytest.fixture
def tiny(made, load_benchmark, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """tiny(architecture) -> folder of a tiny random model, written once."""

    def make(architecture: str) -> str:
        if architecture not in made:
            save = load_benchmark("tiny_architectures").save_tiny_architecture
            made[architecture] = save(tmp_path_factory.mktemp(architecture), architecture)
        return made[architecture]

    return make


def engine_logprobs(client: Any) -> torch.Tensor:
    datum = Datum(ModelInput.from_ints(TOKENS[:-1]), {"target_tokens": TARGETS})
    return (
        client.forward([datum], "cross_entropy").result().loss_fn_outputs[0]["logprobs"].to_torch()
    )


def logprobs(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return hf_logprobs(model, TOKENS[:-1], TARGETS)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("architecture", FAMILIES)
def test_peft_and_a_merged_export_compute_what_the_engine_does(
    architecture: str, tiny, service, tmp_path: Path
):
    folder = tiny(architecture)
    client = service.create_lora_training_client(folder, rank=4, seed=0)
    randomise(client, 0)
    got = engine_logprobs(client)
    base = logprobs(hf_model(folder))
    path = client.save_weights_for_sampler(architecture).result().path
    twin = PeftModel.from_pretrained(hf_model(folder), path).eval()
    merged = hf_model(client.export_merged(tmp_path / "merged").result())
    assert (got - base).abs().max() > 0.1
    assert (got - logprobs(twin)).abs().max() <= 2e-5
    assert (got - logprobs(merged)).abs().max() <= 5e-5
    # and the engine reads its own folder
    again = service.create_training_client_from_state(path)
    assert torch.equal(engine_logprobs(again), got)


def test_peft_renames_nothing_of_the_families_it_is_not_asked_about():
    assert all(get_checkpoint_conversion_mapping(family) is None for family in LLAMA_SHAPED)


def test_layers_that_peft_refuses_are_those_it_says():
    """It has no public list; its check is asked for every causal LM of transformers."""
    config = LoraConfig()
    for model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        model: Any = SimpleNamespace(config=SimpleNamespace(model_type=model_type))
        for leaf in ("in_proj", "o_proj", "out_proj", "x_proj"):
            try:
                _check_lora_target_modules_mamba(config, model, leaf)
            except ValueError:
                assert not takes_adapters(model_type, leaf), (model_type, leaf)
            else:
                assert takes_adapters(model_type, leaf), (model_type, leaf)


def test_what_peft_cannot_read_is_not_trained(tiny, service):
    folder = tiny("glm4_moe")
    with pytest.raises(
        ValueError, match=r"lora_dropout=0.1: .*'down_proj', 'gate_proj', 'up_proj'"
    ):
        service.create_lora_training_client(folder, rank=4, lora_dropout=0.1)
    assert service.create_lora_training_client(
        folder, rank=4, lora_dropout=0.1, train_mlp=False, train_unembed=False
    )


# Linear layers of the body that text does not run through, as parts of their names.
IDLE = {
    "bart": ("encoder_attn",),
    # without gradients: it chooses what is attended to
    "deepseek_v32": ("indexer",),
    "gemma3": ("vision_tower", "multi_modal_projector"),
    "phi4_multimodal": ("embed_tokens_extend",),
    "whisper": ("encoder_attn",),
    # adapters of a shared layer's other places
    "zamba2": ("gate_up_proj_adapter_list",),
}


@pytest.mark.parametrize("architecture", IDLE)
def test_only_what_text_trains_gets_lora(architecture: str, tiny, service, connect_local):
    """Not towers, encoders or attention to them."""
    folder = tiny(architecture)
    client = service.create_lora_training_client(folder, rank=2)
    targets = set(client._adapter.config.targets)
    body = hf_model(folder).base_model
    outside = {
        name
        for name, module in body.named_modules()
        if isinstance(module, torch.nn.Linear) and name not in targets
    }
    assert outside and all(any(part in name for part in IDLE[architecture]) for name in outside)
    # every other is on the way from tokens to logits: with A and B off zero all get gradients
    randomise(client, 1)
    inputs = {"target_tokens": TARGETS, "weights": torch.ones(len(TARGETS))}
    datum = Datum(ModelInput.from_ints(TOKENS[:-1]), inputs)
    client.forward_backward([datum], "cross_entropy").result()
    idle = [p for p, layer in client._adapter.layers.items() if not layer.grad_b.abs().max() > 0]
    assert not idle
    # a second start, which compares nothing, leaves out the same
    again = connect_local().create_lora_training_client(folder)
    assert set(again._adapter.config.targets) == targets


def test_adapters_that_peft_put_on_idle_layers(tiny, service, tmp_path: Path):
    """Untrained they are nothing; trained, with an encoder say, they are refused."""
    folder = tiny("bart")
    model: Any = get_peft_model(
        hf_model(folder),
        LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "fc1"], init_lora_weights=True),
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name and "encoder_attn" not in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(str(tmp_path / "text"))
    client = service.create_training_client_from_state(str(tmp_path / "text"), folder)
    assert (engine_logprobs(client) - logprobs(model.eval())).abs().max() <= 1e-5
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    model.save_pretrained(str(tmp_path / "all"))
    with pytest.raises(ValueError, match=r"encoder_attn.q_proj' belongs to no linear layer"):
        service.create_training_client_from_state(str(tmp_path / "all"), folder)


def test_what_is_adapted_is_said_once(tiny, service, caplog):
    folder = tiny("qwen3_moe")
    with caplog.at_level(logging.INFO, logger="training.backends.local.service"):
        clients = [service.create_lora_training_client(folder, rank=3) for _ in range(3)]
    told = [r.message for r in caplog.records if "LoRA of rank 3" in r.message]
    size = clients[0]._adapter.flat.numel()
    assert len(told) == 1 and f": {size:,} parameters; no adapter can be on " in told[0]
    for name in ("q_proj (2)", "unembed (1)", "mlp.experts.gate_up_proj", "mlp.gate.weight"):
        assert name in told[0]


def test_nothing_is_left_out_of_a_plain_model(tiny_model, service, caplog):
    with caplog.at_level(logging.INFO, logger="training.backends.local.service"):
        client = service.create_lora_training_client(tiny_model("gpt2"), rank=5)
    (told,) = [r.message for r in caplog.records if "LoRA of rank 5" in r.message]
    size = client._adapter.flat.numel()
    assert told.endswith(f"c_attn (2), c_proj (4), c_fc (2), unembed (1): {size:,} parameters")


def test_a_model_without_the_layers_asked_for(tiny, service):
    folder = tiny("qwen3_moe")
    with pytest.raises(
        ValueError,
        match=r"^train_mlp: this model has no such linear layers; .*experts.gate_up_proj.*"
        "train_attn and train_unembed have some",
    ):
        service.create_lora_training_client(folder, train_attn=False, train_unembed=False)
    with pytest.raises(ValueError, match="at least one of train_attn, train_mlp and train_unembed"):
        service.create_lora_training_client(
            folder, train_attn=False, train_mlp=False, train_unembed=False
        )
