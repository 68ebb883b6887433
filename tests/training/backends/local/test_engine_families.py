"""The engine against Hugging Face's eager models and PEFT, architecture by architecture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import (
    FAMILIES,
    VOCAB,
    WINDOW,
    cross_entropy_datum,
    hf_greedy,
    hf_logits,
    hf_logprobs,
    hf_model,
    peft_parts,
    peft_twin,
    random_tokens,
    randomise,
    worst_gradient_error,
)

from training.api import Datum, ModelInput, SamplingParams
from training.backends.local.decoder import HEAD

families = pytest.mark.parametrize("family", FAMILIES)


def engine_logprobs(client: Any, data: list[Datum]) -> list[torch.Tensor]:
    plain = [
        Datum(d.model_input, {"target_tokens": d.loss_fn_inputs["target_tokens"]}) for d in data
    ]
    output = client.forward(plain, "cross_entropy").result()
    return [o["logprobs"].to_torch() for o in output.loss_fn_outputs]


def random_data(seed: int, lengths: tuple[int, ...] = (1, 2, 19, 33, 40)) -> list[Datum]:
    """Lengths under and over the sliding window, two of them with a prompt in common."""
    rng = np.random.default_rng(seed)
    shared = random_tokens(rng, 21)
    sequences = [random_tokens(rng, n) for n in lengths]
    sequences += [shared + random_tokens(rng, n) for n in (3, 14)]
    return [cross_entropy_datum(rng, s) for s in sequences]


def targets_of(datum: Datum) -> torch.Tensor:
    return datum.loss_fn_inputs["target_tokens"].to_torch()


@families
def test_forward_equals_hugging_face(family: str, tiny_model, service):
    folder = tiny_model(family)
    reference = hf_model(folder)
    client = service.create_lora_training_client(folder, rank=4, seed=0)
    data = random_data(1)
    assert max(d.model_input.length for d in data) > 4 * WINDOW
    for datum, got in zip(data, engine_logprobs(client, data), strict=True):
        with torch.no_grad():
            wanted = hf_logprobs(reference, datum.model_input.to_ints(), targets_of(datum))
        assert (got - wanted).abs().max() <= 1e-5
    # the models are far from uniform, or the comparison would prove little
    with torch.no_grad():
        assert hf_logits(reference, random_tokens(np.random.default_rng(0), 30)).std() > 0.7


@families
@pytest.mark.parametrize("seed", [0, 1])
def test_lora_forward_and_gradients_equal_peft(family: str, seed: int, tiny_model, service):
    folder = tiny_model(family, seed)
    rank = 3 + 4 * seed
    client = service.create_lora_training_client(folder, rank=rank, lora_alpha=5.0 + seed)
    randomise(client, seed)
    twin = peft_twin(client, folder)
    data = random_data(seed)
    output = client.forward_backward(data, "cross_entropy").result()
    loss = torch.zeros(())
    for datum, own in zip(data, output.loss_fn_outputs, strict=True):
        weights = datum.loss_fn_inputs["weights"].to_torch()
        wanted = hf_logprobs(twin, datum.model_input.to_ints(), targets_of(datum))
        loss = loss - (wanted * weights).sum()
        error = (own["logprobs"].to_torch() - wanted.detach())[weights != 0].abs()
        assert error.numel() == 0 or error.max() <= 1e-5
    loss.backward()
    assert output.metrics["loss:sum"] == pytest.approx(loss.item(), rel=1e-5, abs=1e-4)
    assert worst_gradient_error(client, twin) <= 1e-5


@families
def test_greedy_generation_equals_hugging_face(family: str, tiny_model, service):
    folder = tiny_model(family)
    reference = hf_model(folder)
    sampler = service.create_sampling_client(base_model=folder)
    rng = np.random.default_rng(3)
    params = SamplingParams(max_tokens=30, temperature=0)
    prompts = [random_tokens(rng, n) for n in (1, 5, 23)]
    futures = [sampler.sample(ModelInput.from_ints(p), 1, params) for p in prompts]
    distinct: set[int] = set()
    for prompt, future in zip(prompts, futures, strict=True):
        wanted = reference.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=30,
            do_sample=False,
        )[0, len(prompt) :].tolist()
        sequence = future.result().sequences[0]
        assert sequence.tokens == wanted == hf_greedy(reference, prompt, 30, eos=2)
        assert sequence.stop_reason == ("stop" if wanted[-1] == 2 else "length")
        distinct |= set(wanted)
    assert len(distinct) > 5


@families
def test_greedy_generation_with_an_adapter_equals_peft(family: str, tiny_model, service):
    folder = tiny_model(family)
    client = service.create_lora_training_client(folder, rank=4)
    randomise(client, 5)
    twin = peft_twin(client, folder)
    prompt = random_tokens(np.random.default_rng(12), 15)
    sampler = client.save_weights_and_get_sampling_client().result()
    # two samples share a prompt cache, one keeps its own
    params = SamplingParams(max_tokens=20, temperature=0, stop=[])
    pair = sampler.sample(ModelInput.from_ints(prompt), 2, params)
    single = sampler.sample(ModelInput.from_ints(prompt), 1, params)
    wanted = hf_greedy(twin, prompt, 20)
    for sequence in [*pair.result().sequences, *single.result().sequences]:
        assert sequence.tokens == wanted
    assert wanted != hf_greedy(hf_model(folder), prompt, 20)
    assert len(set(wanted)) > 1


@families
def test_compute_logprobs_equals_hugging_face(family: str, tiny_model, service):
    folder = tiny_model(family)
    reference = hf_model(folder)
    sampler = service.create_sampling_client(base_model=folder)
    tokens = random_tokens(np.random.default_rng(6), 90)
    got = sampler.compute_logprobs(ModelInput.from_ints(tokens)).result()
    with torch.no_grad():
        wanted = hf_logprobs(reference, tokens[:-1], torch.tensor(tokens[1:]))
    assert got[0] is None and len(got) == len(tokens)
    np.testing.assert_allclose(got[1:], wanted.numpy(), atol=1e-5)
    assert sampler.compute_logprobs(ModelInput.from_ints(tokens[:1])).result() == [None]


@families
def test_a_new_adapter_is_exactly_the_base(family: str, tiny_model, service):
    folder = tiny_model(family)
    client = service.create_lora_training_client(folder, rank=8, seed=1)
    assert client._adapter.flat.abs().max() > 0
    prompt = ModelInput.from_ints(random_tokens(np.random.default_rng(7), 70))
    base = service.create_sampling_client(base_model=folder)
    adapted = client.save_weights_and_get_sampling_client().result()
    assert adapted.compute_logprobs(prompt).result() == base.compute_logprobs(prompt).result()
    params = SamplingParams(max_tokens=20, seed=3, stop=[])
    ours, theirs = (s.sample(prompt, 3, params).result().sequences for s in (adapted, base))
    for a, b in zip(ours, theirs, strict=True):
        assert a.tokens == b.tokens and a.logprobs == b.logprobs
    # the trainer's forward: two adapters that differ in A alone
    other = service.create_lora_training_client(folder, rank=5, seed=2)
    data = random_data(8)
    for a, b in zip(engine_logprobs(client, data), engine_logprobs(other, data), strict=True):
        assert torch.equal(a, b)


def test_initial_a_is_pefts_distribution(tiny_model, service):
    """Uniform in +-1/sqrt(in), as kaiming_uniform with a = sqrt(5); the seed decides."""
    folder = tiny_model("llama")
    first, again, other = (
        service.create_lora_training_client(folder, rank=16, seed=s)._adapter for s in (0, 0, 1)
    )
    assert torch.equal(first.flat, again.flat) and not torch.equal(first.flat, other.flat)
    unseeded = [service.create_lora_training_client(folder, rank=16)._adapter for _ in range(2)]
    assert not torch.equal(unseeded[0].flat, unseeded[1].flat)
    for low_rank in first.layers.values():
        bound = low_rank.a.shape[1] ** -0.5
        assert low_rank.a.abs().max() <= bound
        assert low_rank.a.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
        assert (low_rank.b == 0).all() and low_rank.scale == 2.0


def test_targets(tiny_model, service):
    folder = tiny_model("llama")

    def targets(**options: Any) -> set[str]:
        client = service.create_lora_training_client(folder, rank=2, **options)
        return {path.rsplit(".", 1)[-1] for path in client._adapter.layers}

    attention, mlp = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}
    assert targets() == attention | mlp | {HEAD}
    assert targets(train_mlp=False, train_unembed=False) == attention
    assert targets(train_attn=False, train_unembed=False) == mlp
    assert targets(train_attn=False, train_mlp=False) == {HEAD}
    assert targets(target_modules=["v_proj", "unembed"]) == {"v_proj", HEAD}


@families
def test_peft_export_has_the_same_logits(family: str, tiny_model, service):
    """peft.PeftModel.from_pretrained reads what save_state writes, for any set of layers."""
    folder = tiny_model(family)
    for seed, options in enumerate(({}, {"train_mlp": False}, {"train_unembed": False})):
        client = service.create_lora_training_client(folder, rank=4, **options)
        randomise(client, seed)
        twin = peft_twin(client, folder)
        for path, parameter in peft_parts(twin).items():
            layer, part = path.rsplit(".", 1)
            assert torch.equal(getattr(client._adapter.layers[layer], part.lower()), parameter)
        data = random_data(seed)
        for datum, got in zip(data, engine_logprobs(client, data), strict=True):
            with torch.no_grad():
                wanted = hf_logprobs(twin, datum.model_input.to_ints(), targets_of(datum))
            assert (got - wanted).abs().max() <= 1e-5


def write_peft_folder(path: Path, folder: str, seed: int, **options: Any) -> Any:
    """An adapter made and written by PEFT itself."""
    from peft import LoraConfig, get_peft_model

    model: Any = get_peft_model(hf_model(folder), LoraConfig(task_type="CAUSAL_LM", **options))
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in peft_parts(model).values():
            parameter.copy_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(path)
    return model.eval()


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("llama", {"r": 4, "lora_alpha": 7, "target_modules": ["q_proj", "v_proj"]}),
        ("llama", {"r": 3, "lora_alpha": 6, "target_modules": "all-linear"}),
        ("llama", {"r": 4, "lora_alpha": 4, "target_modules": ["up_proj", "lm_head"]}),
        ("llama_tied", {"r": 4, "lora_alpha": 4, "target_modules": ["o_proj", "lm_head"]}),
        ("qwen3", {"r": 9, "lora_alpha": 6, "use_rslora": True, "target_modules": ["k_proj"]}),
        ("gemma2", {"r": 4, "lora_alpha": 8, "target_modules": ["o_proj", "down_proj"]}),
        ("gpt2", {"r": 4, "lora_alpha": 8, "target_modules": ["c_attn", "c_proj"]}),
    ],
)
def test_peft_import(family: str, options: dict[str, Any], tiny_model, service, tmp_path: Path):
    folder = tiny_model(family)
    reference = write_peft_folder(tmp_path / "peft", folder, 0, **options)
    client = service.create_training_client_from_state(str(tmp_path / "peft"), folder)
    assert client.get_info().lora_rank == options["r"]
    data = random_data(2)
    for datum, got in zip(data, engine_logprobs(client, data), strict=True):
        with torch.no_grad():
            wanted = hf_logprobs(reference, datum.model_input.to_ints(), targets_of(datum))
        assert (got - wanted).abs().max() <= 1e-5
    # PEFT notes the base model, so naming it is not needed; a sampler reads the folder too
    sampler = service.create_sampling_client(model_path=str(tmp_path / "peft"))
    tokens = random_tokens(np.random.default_rng(9), 30)
    with torch.no_grad():
        wanted = hf_logprobs(reference, tokens[:-1], torch.tensor(tokens[1:])).tolist()
    got = sampler.compute_logprobs(ModelInput.from_ints(tokens)).result()
    assert got[1:] == pytest.approx(wanted, abs=1e-5)


class _NoTokenizer:
    def save_pretrained(self, folder: Path) -> None:
        (folder / "tokenizer_stand_in").write_text("")


@families
@pytest.mark.parametrize("train_unembed", [True, False])
def test_merged_export_has_the_same_logits(
    family: str, train_unembed: bool, tiny_model, service, tmp_path: Path
):
    folder = tiny_model(family)
    client = service.create_lora_training_client(folder, rank=4, train_unembed=train_unembed)
    randomise(client, 3)
    client._engine.tokenizer = _NoTokenizer()
    path = client.export_merged(tmp_path / "merged").result()
    merged = hf_model(path)
    tied = bool(hf_model(folder).config.tie_word_embeddings)
    output_weight = merged.get_output_embeddings().weight
    shared = output_weight.data_ptr() == merged.get_input_embeddings().weight.data_ptr()
    assert shared == (tied and not train_unembed) == merged.config.tie_word_embeddings
    data = random_data(3)
    for datum, got in zip(data, engine_logprobs(client, data), strict=True):
        with torch.no_grad():
            wanted = hf_logprobs(merged, datum.model_input.to_ints(), targets_of(datum))
        # merging rounds the weights once more
        assert (got - wanted).abs().max() <= 3e-5
    assert output_weight.shape[0] == VOCAB


@pytest.mark.parametrize("family", ["llama_tied", "gemma3", "gpt2"])
def test_a_head_delta_leaves_the_tied_embedding_alone(
    family: str, tiny_model, service, tmp_path: Path
):
    folder = tiny_model(family)
    client = service.create_lora_training_client(folder, rank=4, train_attn=False, train_mlp=False)
    randomise(client, 4)
    client._engine.tokenizer = _NoTokenizer()
    merged = hf_model(client.export_merged(tmp_path / "merged").result())
    base = hf_model(folder)
    assert torch.equal(merged.get_input_embeddings().weight, base.get_input_embeddings().weight)
    low_rank = client._adapter.layers[HEAD]
    delta = merged.get_output_embeddings().weight - base.get_output_embeddings().weight
    torch.testing.assert_close(delta, low_rank.b @ low_rank.a * low_rank.scale, atol=1e-5, rtol=0)
