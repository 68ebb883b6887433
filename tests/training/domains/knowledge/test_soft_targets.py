"""training/domains/knowledge/soft_targets.py: targets that another model gives."""

from typing import Any

import numpy as np
import pytest
from tiny_models import random_tokens, randomise

from training.api import ModelInput, SamplingParams, TopkLogprobs
from training.domains.knowledge.soft_targets import answer_datum, distilled_datum, divergences


@pytest.fixture(scope="module")
def clients(tiny_model: Any, service: Any) -> tuple[Any, Any]:
    """A model and another, both with samplers."""
    folder = tiny_model("llama")
    made = [service.create_lora_training_client(folder, rank=4, seed=seed) for seed in (1, 2)]
    for seed, client in enumerate(made):
        randomise(client, seed)
    return made[0], made[1]


def sampler_of(client: Any) -> Any:
    return client.save_weights_and_get_sampling_client().result()


def test_what_was_answered_is_the_target(clients: tuple[Any, Any]) -> None:
    first, second = clients
    prompt = random_tokens(np.random.default_rng(0), 7)
    params = SamplingParams(max_tokens=4, temperature=0.0, stop=[])
    response = (
        sampler_of(first)
        .sample(ModelInput.from_ints(prompt), 1, params, topk_sample_logprobs=1000)
        .result()
    )
    datum = answer_datum(prompt, response)
    tokens = response.sequences[0].tokens
    assert datum.model_input.to_ints() == [*prompt, *tokens[:-1]]
    weights = datum.loss_fn_inputs["weights"].to_numpy()
    np.testing.assert_allclose(weights.sum(axis=1), [0] * 6 + [1] * 4, atol=1e-5)
    # greedy, so what was said is the likeliest
    assert datum.loss_fn_inputs["target_tokens"].to_numpy()[6:, 0].tolist() == tokens

    # with all of the vocabulary among the targets: the divergence of the whole distributions
    [of_itself] = divergences([datum], first.forward([datum], "cross_entropy").result())
    assert of_itself == pytest.approx(0, abs=1e-5)
    [of_other] = divergences([datum], second.forward([datum], "cross_entropy").result())
    wanted = []
    for at in range(4):
        text = ModelInput.from_ints([*prompt, *tokens[:at], 0])
        p, q = (last_distribution(client, text) for client in clients)
        wanted.append(float((p * np.log(p / q)).sum()))
    assert of_other == pytest.approx(np.mean(wanted), rel=1e-3)


def last_distribution(client: Any, text: ModelInput) -> np.ndarray:
    """Of the last token, given those before it."""
    response = (
        sampler_of(client)
        .sample(text, 1, SamplingParams(max_tokens=1), topk_prompt_logprobs=1000)
        .result()
    )
    top = response.topk_prompt_logprobs_np
    order = np.argsort(top.token_ids[-1])
    return np.exp(top.logprobs[-1][order].astype(float))


def test_targets_of_a_text_that_ends_a_longer_prompt() -> None:
    # row p holds what is likely at place p of the prompt [7, 8, 9, 5, 6, 2]
    ids = np.array([[0, 0], [10, 11], [12, 13], [14, 15], [16, 17], [18, 19]])
    logprobs = np.log([[0.5, 0.5], [0.6, 0.2], [0.6, 0.2], [0.6, 0.2], [0.3, 0.1], [0.2, 0.2]])
    datum = distilled_datum([5, 6, 2], [1.0, 1.0, 0.5], TopkLogprobs(ids, logprobs))
    assert datum.model_input.to_ints() == [5, 6]
    assert datum.loss_fn_inputs["target_tokens"].to_numpy().tolist() == [[16, 17], [18, 19]]
    weights = datum.loss_fn_inputs["weights"].to_numpy()
    np.testing.assert_allclose(weights, [[0.75, 0.25], [0.25, 0.25]], rtol=1e-6)
