"""Rotary frequencies that depend on the length of a sequence, not on who shares its pass."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import (
    CONTEXT,
    cross_entropy_datum,
    hf_logits,
    hf_logprobs,
    hf_model,
    peft_twin,
    random_tokens,
    randomise,
    save_tiny_model,
    worst_gradient_error,
)

from training.api import Datum, ModelInput, SamplingParams
from training.backends.local.attention import SegmentAttention
from training.backends.local.batching import Segment, build_trees
from training.backends.local.rotary import sequence_lengths

SWITCH = 40
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 2.0, 4.0, 8.0, 12.0, 16.0],
    "original_max_position_embeddings": SWITCH,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """long_model(family) -> folder; "llama" has its own forward pass, "phi3" runs the model's."""
    made: dict[str, str] = {}

    def make(family: str) -> str:
        if family not in made:
            folder = tmp_path_factory.mktemp(f"long-{family}-")
            # Phi-3 has the length beside the other parameters
            beside = {"original_max_position_embeddings": SWITCH} if family == "phi3" else {}
            made[family] = save_tiny_model(folder, family, rope_parameters=LONG, **beside)
        return made[family]

    return make


families = pytest.mark.parametrize("family", ["llama", "phi3"])


def data_on_both_sides(seed: int) -> list[Datum]:
    """Some of them with a common prefix, on one side or on both."""
    rng = np.random.default_rng(seed)
    shared = random_tokens(rng, 30)
    sequences = [random_tokens(rng, n) for n in (5, SWITCH, SWITCH + 1, 90)]
    sequences += [shared + random_tokens(rng, n) for n in (2, 9, 11, 30, 31)]
    return [cross_entropy_datum(rng, s) for s in sequences]


@families
def test_training_equals_peft_on_both_sides(family: str, long_model, service):
    folder = long_model(family)
    client = service.create_lora_training_client(folder, rank=4, seed=0)
    randomise(client, 0)
    twin = peft_twin(client, folder)
    data = data_on_both_sides(0)
    output = client.forward_backward(data, "cross_entropy").result()
    loss = torch.zeros(())
    for datum, own in zip(data, output.loss_fn_outputs, strict=True):
        weights = datum.loss_fn_inputs["weights"].to_torch()
        targets = datum.loss_fn_inputs["target_tokens"].to_torch()
        wanted = hf_logprobs(twin, datum.model_input.to_ints(), targets)
        loss = loss - (wanted * weights).sum()
        assert (own["logprobs"].to_torch() - wanted.detach())[weights != 0].abs().max() <= 1e-4
    loss.backward()
    assert worst_gradient_error(client, twin) <= 1e-4


@families
def test_the_factors_matter(family: str, long_model):
    """One token more changes what is said of all tokens before, or nothing here proves anything."""
    reference = hf_model(long_model(family))
    tokens = random_tokens(np.random.default_rng(1), SWITCH + 1)
    with torch.no_grad():
        change = hf_logits(reference, tokens)[: SWITCH - 1] - hf_logits(reference, tokens[:-1])[:-1]
    assert change.abs().max() > 0.5


@families
def test_sampling_on_both_sides_together(family: str, long_model, service):
    folder = long_model(family)
    reference = hf_model(folder)
    client = service.create_lora_training_client(folder, rank=4, seed=0)
    sampler = client.save_weights_and_get_sampling_client().result()
    rng = np.random.default_rng(2)
    shared = random_tokens(rng, 26)
    prompts = [random_tokens(rng, n) for n in (3, 29, SWITCH + 1, 70)]
    prompts += [shared + random_tokens(rng, n) for n in (1, 3, 15, 22)]
    params = SamplingParams(max_tokens=12, seed=5, stop=[])
    futures = [
        sampler.sample(ModelInput.from_ints(p), n, params, include_prompt_logprobs=True)
        for p, n in zip(prompts, [1, 2] * 4, strict=True)
    ]
    for prompt, future in zip(prompts, futures, strict=True):
        response = future.result()
        with torch.no_grad():
            wanted = hf_logprobs(reference, prompt[:], torch.tensor([*prompt[1:], 0]))[:-1]
        np.testing.assert_allclose(response.prompt_logprobs[1:], wanted, atol=1e-4)
        for sequence in response.sequences:
            inputs = [*prompt, *sequence.tokens][:-1]
            targets = torch.tensor([*prompt, *sequence.tokens][1:])
            with torch.no_grad():
                wanted = hf_logprobs(reference, inputs, targets)[len(prompt) - 1 :]
            np.testing.assert_allclose(sequence.logprobs, wanted, atol=1e-4)
            datum = Datum(ModelInput.from_ints(inputs), {"target_tokens": targets.tolist()})
            (trained,) = client.forward([datum], "cross_entropy").result().loss_fn_outputs
            own = trained["logprobs"].to_numpy()[len(prompt) - 1 :]
            np.testing.assert_allclose(sequence.logprobs, own, atol=1e-4)


@families
def test_an_answer_cannot_cross(family: str, long_model, service):
    """Of its first tokens the sampler would say one thing and training another."""
    sampler = service.create_sampling_client(base_model=long_model(family))
    rng = np.random.default_rng(3)

    def sample(length: int, max_tokens: int | None) -> int:
        prompt = ModelInput.from_ints(random_tokens(rng, length))
        params = SamplingParams(max_tokens=max_tokens, seed=0, stop=[])
        return len(sampler.sample(prompt, 1, params).result().sequences[0].tokens)

    assert sample(SWITCH - 4, 5) == 5
    with pytest.raises(ValueError, match=r"max_tokens=6.*longer than 40 tokens.*at most 5"):
        sample(SWITCH - 4, 6)
    assert sample(SWITCH - 4, None) == 5
    assert sample(SWITCH, 1) == 1
    assert sample(SWITCH + 1, 60) == 60
    # logprobs of a given text need no answer
    tokens = random_tokens(rng, SWITCH)
    assert len(sampler.compute_logprobs(ModelInput.from_ints(tokens)).result()) == SWITCH


def test_dynamic_scaling_up_to_the_context(service, tmp_path: Path):
    """It begins beyond max_position_embeddings, which is refused."""
    folder = save_tiny_model(tmp_path, "llama", rope_parameters=DYNAMIC)
    sampler = service.create_sampling_client(base_model=folder)
    reference = hf_model(folder)
    rng = np.random.default_rng(4)
    sequences = [random_tokens(rng, n) for n in (CONTEXT, 10)]
    futures = [sampler.compute_logprobs(ModelInput.from_ints(s)) for s in sequences]
    for tokens, future in zip(sequences, futures, strict=True):
        with torch.no_grad():
            wanted = hf_logprobs(reference, tokens, torch.tensor([*tokens[1:], 0]))[:-1]
        np.testing.assert_allclose(future.result()[1:], wanted, atol=1e-4)
    with pytest.raises(ValueError, match="257 tokens"):
        sampler.compute_logprobs(ModelInput.from_ints(random_tokens(rng, CONTEXT + 1)))


def test_sequences_are_kept_apart():
    """Those of one kind share a prefix; an owner's trees stay together."""
    long, short = list(range(60)), list(range(30))
    trees = build_trees("aaab", [long, short, long, long], apart=[True, False, True, True])
    assert [(t.owner, t.members, len(t.prefix)) for t in trees] == [
        ("a", [0, 2], 60),
        ("a", [1], 30),
        ("b", [3], 60),
    ]


def test_a_tree_is_as_long_as_its_longest_branch_and_what_forks_from_it() -> None:
    segments = [Segment(10, None), Segment(3, 0), Segment(2, 1), Segment(4, 1), Segment(5, 0)]
    plan = SegmentAttention([*segments, Segment(6, None)])
    lengths = sequence_lengths(torch.zeros(30, dtype=torch.long), plan)
    assert lengths.tolist() == [17] * 24 + [6] * 6
