"""Sampling: right tokens, right logprobs, right distribution, whoever shares the batch."""

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import (
    VOCAB,
    hf_greedy,
    hf_logits,
    hf_logprobs,
    hf_model,
    peft_twin,
    random_tokens,
    randomise,
)

from training.api import (
    AdamParams,
    Datum,
    ModelInput,
    RequestFailedError,
    SampledSequence,
    SamplingParams,
)
from training.backends.local import attention
from training.backends.local import sampler as sampler_module
from training.backends.local.tokens import sample_tokens

GREEDY = SamplingParams(max_tokens=25, temperature=0, stop=[])


def ints(tokens: list[int]) -> ModelInput:
    return ModelInput.from_ints(tokens)


def prompts_of(seed: int, lengths: tuple[int, ...]) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [random_tokens(rng, n) for n in lengths]


def adapted_client(service: Any, folder: str, seed: int, **options: Any) -> Any:
    client = service.create_lora_training_client(folder, **{"rank": 4, **options})
    randomise(client, seed)
    return client


# ---------------------------------------------------------------------------- sampler and trainer


def trainer_logprobs(client: Any, prompt: list[int], answer: list[int]) -> np.ndarray:
    tokens = prompt + answer
    datum = Datum(ints(tokens[:-1]), {"target_tokens": tokens[1:]})
    output = client.forward([datum], "cross_entropy").result()
    return output.loss_fn_outputs[0]["logprobs"].to_numpy()[len(prompt) - 1 :]


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma2", "gemma3", "gpt2"])
def test_logprobs_are_the_trainers(family: str, tiny_model, service):
    """At every temperature, since the losses never see one; groups, singles and shared prefixes."""
    client = adapted_client(service, tiny_model(family), 0)
    sampler = client.save_weights_and_get_sampling_client().result()
    (shared,) = prompts_of(0, (20,))
    prompts = [*prompts_of(1, (1, 3, 40)), shared, [*shared, 5, 6], [*shared, 7]]
    futures = []
    for i, prompt in enumerate(prompts):
        params = SamplingParams(max_tokens=30, stop=[], seed=i, temperature=(1.0, 0.6, 1.5)[i % 3])
        futures.append(sampler.sample(ints(prompt), 1 + 2 * (i % 2), params))
    for prompt, future in zip(prompts, futures, strict=True):
        for sequence in future.result().sequences:
            wanted = trainer_logprobs(client, prompt, sequence.tokens)
            assert len(sequence.tokens) == 30
            np.testing.assert_allclose(sequence.logprobs, wanted, atol=1e-4)
            # far below what the design asks for
            assert np.abs(sequence.logprobs - wanted).max() <= 2e-5


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_singles_that_share_a_prefix_share_its_cache(family: str, tiny_model, service, monkeypatch):
    """One of them is the prefix itself; they leave at different times."""
    client = adapted_client(service, tiny_model(family), 0)
    sampler = client.save_weights_and_get_sampling_client().result()
    prefixes = []
    block = attention.CacheBlock

    def record(prefix: Any, own: Any, lengths: list[int]) -> Any:
        prefixes.append((0 if prefix is None else prefix[0][0].shape[1], sorted(lengths)))
        return block(prefix, own, lengths)

    monkeypatch.setattr(attention, "CacheBlock", record)
    shared, other = prompts_of(0, (40, 12))
    prompts = [shared, [*shared, 5, 6, 7], [*shared, 7], other]
    params = [
        SamplingParams(max_tokens=n, stop=[], seed=i, temperature=0.8)
        for i, n in enumerate((30, 5, 12, 20))
    ]
    futures = [sampler.sample(ints(p), 1, q) for p, q in zip(prompts, params, strict=True)]
    together = [future.result().sequences[0] for future in futures]
    assert sorted(prefixes) == [(0, [12]), (40, [0, 1, 3])]
    for prompt, q, sequence in zip(prompts, params, together, strict=True):
        alone = sampler.sample(ints(prompt), 1, q).result().sequences[0]
        assert sequence.tokens == alone.tokens and len(sequence.tokens) == q.max_tokens
        np.testing.assert_allclose(sequence.logprobs, alone.logprobs, atol=1e-5)


@pytest.mark.parametrize("train_unembed", [True, False])
def test_cuda_bfloat16_logprobs_are_near_the_trainers(
    train_unembed: bool, tiny_model, cuda_service
):
    """RMS at most 0.05 nats, through slices (groups) and through stacked adapters (singles)."""
    folder = tiny_model("llama")
    clients = [
        adapted_client(cuda_service, folder, i, train_unembed=train_unembed) for i in range(4)
    ]
    samplers = [c.save_weights_and_get_sampling_client().result() for c in clients]
    prompts = prompts_of(0, (5, 20, 33, 50))
    for num_samples in (1, 4):
        params = SamplingParams(max_tokens=40, stop=[], seed=1)
        futures = [
            s.sample(ints(p), num_samples, params) for s, p in zip(samplers, prompts, strict=True)
        ]
        errors = []
        for client, prompt, future in zip(clients, prompts, futures, strict=True):
            for sequence in future.result().sequences:
                wanted = trainer_logprobs(client, prompt, sequence.tokens)
                errors.append(np.array(sequence.logprobs) - wanted)
        assert np.sqrt(np.mean(np.concatenate(errors) ** 2)) <= 0.05


def test_stacked_adapters_add_to_bfloat16():
    """On a GPU the base is bfloat16 and the adapters float32; both ways must add alike."""
    from training.backends.local.linear import (
        LoraPass,
        LoraSlice,
        LowRankGroup,
        LowRankPart,
        Stacked,
        add_low_rank_,
    )

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 8, generator=generator, dtype=torch.float32).bfloat16()
    base = torch.randn(3, 5, generator=generator).bfloat16()
    whole = slice(0, 5), slice(0, 2)
    groups = [
        LowRankGroup(
            torch.randn(2, 8, generator=generator),
            None,
            (LowRankPart(*whole, torch.randn(5, 2, generator=generator), None),),
            0.5,
        )
        for _ in range(3)
    ]
    sliced, stacked = base.clone(), base.clone()
    slices = [LoraSlice(i, i + 1, {"layer": group}) for i, group in enumerate(groups)]
    add_low_rank_(sliced, x, "layer", LoraPass(slices))
    a = torch.stack([group.a.T for group in groups])
    b = torch.stack([group.parts[0].b.T * 0.5 for group in groups])
    stack = Stacked(a, ((*whole, b),))
    add_low_rank_(stacked, x, "layer", LoraPass(stacked={"layer": stack}))
    torch.testing.assert_close(stacked, sliced, rtol=1e-2, atol=1e-2)
    assert not torch.equal(stacked, base)


# -------------------------------------------------------------------------------- rows and batches


def spy_on_steps(service: Any, folder: str, hook: Callable[[int], None]) -> list[int]:
    """Calls hook(n) on the worker before its n-th decoding step; the number of rows at each."""
    sampler = service.engine(folder).sampler
    rows: list[int] = []
    step = sampler.step

    def spied() -> None:
        hook(len(rows))
        rows.append(sampler.rows)
        step()

    sampler.step = spied
    return rows


def test_rows_join_and_leave_while_others_decode(tiny_model, connect_local):
    """Ragged prompts, groups, shared prefixes, several lengths: each as if alone."""
    folder = tiny_model("llama")
    reference = hf_model(folder)
    service = connect_local(max_rows=9, max_prefill_tokens=64)
    sampler = service.create_sampling_client(base_model=folder)
    (shared,) = prompts_of(0, (30,))
    prompts = [*prompts_of(1, (1, 4, 50, 90, 17)), shared, [*shared, 9], [*shared, 10, 11]]
    lengths = (30, 7, 1, 19, 2, 80, 12, 25)
    groups = (1, 3, 1, 2, 1, 2, 1, 4)
    arrives_at = (0, 0, 0, 3, 3, 5, 20, 21)
    futures: dict[int, Any] = {}

    def submit(i: int) -> None:
        params = SamplingParams(max_tokens=lengths[i], temperature=0, stop=[])
        futures[i] = sampler.sample(ints(prompts[i]), groups[i], params)
        # as a thread of its own would
        futures[i].start()

    def hook(step: int) -> None:
        for i, at in enumerate(arrives_at):
            if at == step and i not in futures:
                submit(i)

    rows = spy_on_steps(service, folder, hook)
    for i in (0, 1, 2):
        submit(i)
    futures[0].result()
    for i, prompt in enumerate(prompts):
        wanted = hf_greedy(reference, prompt, lengths[i])
        response = futures[i].result(timeout=60)
        assert [s.tokens for s in response.sequences] == [wanted] * groups[i]
        assert {s.stop_reason for s in response.sequences} == {"length"}
    changes = np.sign(np.diff(rows))
    assert (changes > 0).sum() >= 2 and (changes < 0).sum() >= 3
    assert 1 < max(rows) <= 9


def test_more_samples_than_rows(tiny_model, connect_local):
    """A request larger than max_rows still runs; the others queue behind it."""
    folder = tiny_model("llama")
    sampler = connect_local(max_rows=3).create_sampling_client(base_model=folder)
    prompts = prompts_of(2, (5, 9, 14))
    futures = [sampler.sample(ints(p), 5, GREEDY) for p in prompts]
    for prompt, future in zip(prompts, futures, strict=True):
        wanted = hf_greedy(hf_model(folder), prompt, 25)
        assert [s.tokens for s in future.result().sequences] == [wanted] * 5


def as_lists(sequences: Any) -> list[tuple[list[int], str]]:
    return [(s.tokens, s.stop_reason) for s in sequences]


def test_results_do_not_depend_on_who_shares_the_batch(tiny_model, service):
    """Sampling, not greedy: the random numbers belong to (seed, sample) alone."""
    folder = tiny_model("qwen3")
    sampler = service.create_sampling_client(base_model=folder)
    prompts = prompts_of(3, (1, 8, 30, 30, 60, 12))
    groups = (1, 4, 2, 1, 3, 1)
    settings = [
        SamplingParams(
            max_tokens=10 + 7 * i, seed=i, temperature=0.7 + 0.1 * i, top_k=20, top_p=0.95
        )
        for i in range(6)
    ]
    requests = list(zip(prompts, groups, settings, strict=True))
    alone = [sampler.sample(ints(p), n, s).result().sequences for p, n, s in requests]
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 4, 2, 0]):
        futures = {i: sampler.sample(ints(requests[i][0]), *requests[i][1:]) for i in order}
        for i, wanted in enumerate(alone):
            got = futures[i].result().sequences
            assert as_lists(got) == as_lists(wanted)
            for a, b in zip(got, wanted, strict=True):
                np.testing.assert_allclose(a.logprobs, b.logprobs, atol=1e-5)
    # a larger group begins with the samples of a smaller one
    more = sampler.sample(ints(prompts[1]), 7, settings[1]).result().sequences
    assert as_lists(more)[:4] == as_lists(alone[1])


def test_seeds(tiny_model, service):
    sampler = service.create_sampling_client(base_model=tiny_model("llama"))
    (prompt,) = prompts_of(4, (10,))

    def sample(seed: int | None, n: int = 4) -> list[tuple[list[int], str]]:
        params = SamplingParams(max_tokens=20, seed=seed, stop=[], temperature=1.5)
        return as_lists(sampler.sample(ints(prompt), n, params).result().sequences)

    first = sample(1)
    assert len({tuple(tokens) for tokens, _ in first}) == 4
    assert sample(1) == first and sample(2) != first
    assert sample(None) != sample(None)
    assert len({tuple(tokens) for tokens, _ in sample(None)}) == 4
    for seed in (0, -1, 2**63, 2**64 - 1):
        assert sample(seed, 2) == sample(seed, 2)


# -------------------------------------------------------------------------------- several adapters


@pytest.mark.parametrize(
    ("groups", "with_base", "stacked"),
    [
        ((1,) * 5, False, True),
        ((1,) * 5, True, False),
        ((2, 1, 3, 1, 2), True, False),
        ((1, 1), False, False),
    ],
)
def test_different_adapters_in_one_batch(
    groups: tuple[int, ...], with_base: bool, stacked: bool, tiny_model, service, monkeypatch
):
    """Mixed ranks, scales and layers, decoded by slices or as one batched product."""
    folder = tiny_model("llama")
    options: list[dict[str, Any]] = [
        {"rank": 4},
        {"rank": 1, "train_unembed": False},
        {"rank": 9, "lora_alpha": 3.0, "train_mlp": False},
        {"rank": 2, "target_modules": ["q_proj", "down_proj"]},
        {"rank": 3, "train_attn": False, "train_mlp": False},
    ]
    clients = [adapted_client(service, folder, i, **o) for i, o in enumerate(options)][
        : len(groups)
    ]
    samplers = [c.save_weights_and_get_sampling_client().result() for c in clients]
    references = [peft_twin(c, folder) for c in clients]
    if with_base:
        samplers.append(service.create_sampling_client(base_model=folder))
        references.append(hf_model(folder))
        groups = (*groups, 1)
    passes = []
    make = sampler_module._lora_pass

    def spied(weights: Any) -> Any:
        passes.append((len(weights), make(weights)))
        return passes[-1][1]

    monkeypatch.setattr(sampler_module, "_lora_pass", spied)
    # one prompt for all: its keys and values differ by adapter and must not be shared
    (prompt,) = prompts_of(5, (25,))
    futures = [s.sample(ints(prompt), n, GREEDY) for s, n in zip(samplers, groups, strict=True)]
    answers = []
    for reference, n, future in zip(references, groups, futures, strict=True):
        wanted = hf_greedy(reference, prompt, 25)
        sequences = future.result().sequences
        assert [s.tokens for s in sequences] == [wanted] * n
        logprobs = hf_logprobs(reference, prompt + wanted[:-1], torch.tensor(prompt[1:] + wanted))
        for sequence in sequences:
            np.testing.assert_allclose(sequence.logprobs, logprobs[-25:].detach(), atol=1e-4)
        answers.append(tuple(wanted))
    assert len(set(answers)) == len(answers)
    full = [p for n, p in passes if n == sum(groups)]
    assert full and all(bool(p.stacked) == stacked for p in full)


def test_a_sampler_keeps_its_weights_while_the_trainer_steps_on(tiny_model, service):
    """Also in the middle of decoding, and after the trainer is gone."""
    folder = tiny_model("llama")
    client = adapted_client(service, folder, 0)
    sampler = client.save_weights_and_get_sampling_client().result()
    (prompt,) = prompts_of(6, (12,))
    wanted = hf_greedy(peft_twin(client, folder), prompt, 60)
    datum = Datum(ints(prompt), {"target_tokens": random_tokens(np.random.default_rng(0), 12)})

    def train(step: int) -> None:
        if step in (5, 30):
            client.forward_backward([datum], "cross_entropy")
            client.optim_step(AdamParams(learning_rate=0.3)).start()

    before = client._adapter.flat.clone()
    rows = spy_on_steps(service, folder, train)
    params = SamplingParams(max_tokens=60, temperature=0, stop=[])
    response = sampler.sample(ints(prompt), 2, params).result()
    del service.engine(folder).sampler.step
    assert [s.tokens for s in response.sequences] == [wanted] * 2
    assert len(rows) == 59 and (client._adapter.flat - before).abs().max() > 0.1
    assert sampler.sample(ints(prompt), 1, params).result().sequences[0].tokens == wanted
    newer = client.save_weights_and_get_sampling_client().result()
    assert newer.sample(ints(prompt), 1, params).result().sequences[0].tokens != wanted


# ------------------------------------------------------------------------------------ distribution


def expected_distribution(
    logits: torch.Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> np.ndarray:
    """Temperature, min-p, top-k, then the smallest set of likely tokens with mass top_p."""
    p = (logits.double() / temperature).softmax(-1).numpy()
    p = np.where(p < min_p * p.max(), 0, p)
    order = np.argsort(-p, kind="stable")
    keep = order[: top_k if top_k > 0 else len(p)]
    mass = np.cumsum(p[keep]) / p[keep].sum()
    keep = keep[: int(np.searchsorted(mass, top_p)) + 1] if top_p < 1 else keep
    out = np.zeros_like(p)
    out[keep] = p[keep] / p[keep].sum()
    return out


def chi_square_fits(counts: np.ndarray, probabilities: np.ndarray) -> bool:
    """Rare tokens pooled; five standard deviations of the chi-square distribution."""
    assert counts[probabilities == 0].sum() == 0
    expected = probabilities * counts.sum()
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    freedom = max(1, len(wanted) - 1)
    statistic = ((observed - wanted) ** 2 / wanted).sum()
    return bool(statistic <= freedom + 5 * np.sqrt(2 * freedom))


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, -1, 1.0, 0.0),
        (0.5, -1, 1.0, 0.0),
        (2.0, -1, 1.0, 0.0),
        (1.0, 7, 1.0, 0.0),
        (1.0, -1, 0.8, 0.0),
        (1.3, 25, 0.7, 0.0),
        (1.0, 1, 1.0, 0.0),
        (1.0, 9999, 1e-6, 0.0),
        (1.5, -1, 1.0, 0.1),
        (2.0, -1, 0.8, 0.05),
        (1.0, -1, 1.0, 1.0),
    ],
)
@pytest.mark.parametrize("vocab", [131, 1000])
def test_sample_tokens_follow_the_distribution(
    vocab: int, temperature: float, top_k: int, top_p: float, min_p: float
):
    """Many uniforms through one row of logits; a vocabulary over one 256-wide block as well."""
    n = 4_000 if top_k > 0 or top_p < 1 or min_p > 0 else 20_000
    logits = torch.randn(vocab, generator=torch.Generator().manual_seed(vocab)) * 2
    wanted = expected_distribution(logits, temperature, top_k, top_p, min_p)
    tokens = sample_tokens(
        logits.expand(n, -1),
        temperatures=[temperature] * n,
        top_ks=[top_k] * n,
        top_ps=[top_p] * n,
        min_ps=[min_p] * n,
        uniforms=np.random.default_rng(0).random(n).tolist(),
        masks=[None] * n,
    )
    counts = np.bincount(tokens.numpy(), minlength=vocab)
    assert chi_square_fits(counts, wanted)
    # the test has teeth: another temperature does not fit
    if top_k != 1 and top_p > 0.1 and min_p < 1:
        other = expected_distribution(logits, temperature * 1.3, top_k, top_p, min_p)
        assert counts[other == 0].sum() > 0 or not chi_square_fits(counts, other)


def test_sample_tokens_at_the_edges():
    """Extreme uniforms give the first and last possible token; rows keep their own settings."""
    logits = torch.full((6, 600), -torch.inf)
    logits[:, [3, 280, 511]] = torch.tensor([0.0, 1.0, 0.5])
    allowed = torch.zeros(600, dtype=torch.bool)
    allowed[511] = True
    tokens = sample_tokens(
        logits,
        temperatures=[1.0, 1.0, 0.0, 1.0, 0.0, 1.0],
        top_ks=[-1, -1, -1, 2, -1, -1],
        top_ps=[1.0, 1.0, 1.0, 1.0, 1.0, 0.1],
        min_ps=[0.0] * 6,
        uniforms=[0.0, 1 - 2**-53, 0.99, 0.0, 0.0, 0.99],
        masks=[None, None, None, None, allowed, None],
    )
    assert tokens.tolist() == [3, 511, 280, 280, 511, 280]


@pytest.mark.parametrize("temperature", [1e-37, 2e-38, 1e-38, 1e-39, 5e-324])
@pytest.mark.parametrize("beside", [0.0, 1.0])
def test_tiny_temperatures_take_the_most_likely(temperature: float, beside: float):
    """A float32 of 1e-38 and less makes inf of every logit over it."""
    logits = torch.full((2, 600), -30.0)
    logits[:, [7, 300, 512]] = torch.tensor([20.0, 30.0, -torch.inf])
    tokens = sample_tokens(
        logits,
        temperatures=[temperature, beside],
        top_ks=[-1, -1],
        top_ps=[1.0, 1.0],
        min_ps=[0.0, 0.0],
        uniforms=[0.3, 0.5],
        masks=[None, None],
    )
    assert tokens.tolist() == [300, 300]


def test_extreme_settings_keep_to_what_is_allowed():
    """A top_p whose product with the mass is 0 keeps one token; a temperature beyond float32 is
    uniform over the tokens that the mask allows."""
    logits = torch.randn(600, generator=torch.Generator().manual_seed(0))
    allowed = torch.zeros(600, dtype=torch.bool)
    allowed[[5, 511]] = True
    n = 200
    tokens = sample_tokens(
        logits.expand(n + 1, -1),
        temperatures=[1.0] + [1e300] * n,
        top_ks=[2] + [-1] * n,
        top_ps=[5e-324] + [1.0] * n,
        min_ps=[0.0] * (n + 1),
        uniforms=[0.7, *np.linspace(0, 1 - 2**-53, n)],
        masks=[None] + [allowed] * n,
    )
    assert tokens[0] == logits.argmax()
    assert tokens[1:].tolist() == [5] * (n // 2) + [511] * (n // 2)


def test_an_adapter_that_is_not_a_number_fails_alone(tiny_model, service):
    """Its request says so instead of giving token 0; those in the same batch are right."""
    folder = tiny_model("llama")
    client = adapted_client(service, folder, 0)
    (prompt,) = prompts_of(8, (11,))
    params = SamplingParams(max_tokens=20, temperature=0, stop=[])
    for layer in client._adapter.layers.values():
        layer.b.fill_(torch.nan)
    broken = client.save_weights_and_get_sampling_client().result()
    good = service.create_sampling_client(base_model=folder)
    futures = [
        broken.sample(ints(prompt), 2, params),
        broken.compute_logprobs(ints(prompt)),
        good.sample(ints(prompt), 1, params),
        good.compute_logprobs(ints(prompt)),
    ]
    for future, what in zip(futures, ("0 sampled tokens", "the prompt"), strict=False):
        told = rf"not numbers \(NaN\) after {what}"
        with pytest.raises(RequestFailedError, match=told) as caught:
            future.result(timeout=30)
        # who trained it can change it, and asking again would be in vain
        assert caught.value.category == "user"
    wanted = hf_greedy(hf_model(folder), prompt, 20)
    assert futures[2].result().sequences[0].tokens == wanted
    assert len(futures[3].result()) == len(prompt)


def test_first_tokens_follow_the_model(tiny_model, service):
    """The whole path, prefill to token, with an adapter."""
    folder = tiny_model("llama")
    client = adapted_client(service, folder, 0)
    sampler = client.save_weights_and_get_sampling_client().result()
    (prompt,) = prompts_of(7, (9,))
    params = SamplingParams(max_tokens=2, temperature=1.2, seed=5, stop=[])
    sequences = sampler.sample(ints(prompt), 4000, params).result().sequences
    with torch.no_grad():
        logits = hf_logits(peft_twin(client, folder, "first"), prompt)[-1]
    counts = np.bincount([s.tokens[0] for s in sequences], minlength=VOCAB)
    assert chi_square_fits(counts, expected_distribution(logits, 1.2, -1, 1.0, 0.0))


def test_temperature_zero_ignores_truncation_and_seed(tiny_model, service):
    folder = tiny_model("llama")
    sampler = service.create_sampling_client(base_model=folder)
    (prompt,) = prompts_of(8, (11,))
    wanted = hf_greedy(hf_model(folder), prompt, 20)
    greedy: dict[str, Any] = {"max_tokens": 20, "temperature": 0, "stop": []}
    settings: list[dict[str, Any]] = [{}, {"top_k": 3}, {"top_p": 0.1}, {"seed": 7}]
    settings.append({"temperature": 1, "min_p": 1})
    for changes in settings:
        params = SamplingParams(**{**greedy, **changes})
        sequences = sampler.sample(ints(prompt), 3, params).result().sequences
        assert [s.tokens for s in sequences] == [wanted] * 3


# ------------------------------------------------------------------------------------------- stops


class LetterTokenizer:
    """Token t is a letter; 2 is the end token."""

    eos_token_id = 2

    def decode(self, tokens: list[int], **_options: Any) -> str:
        return "".join("$" if t == 2 else chr(ord("a") + t % 26) for t in tokens)


@pytest.fixture
def stopping(tiny_model, connect_local) -> tuple[Any, list[int], list[int]]:
    """A sampler, a prompt and 30 greedy tokens after it."""
    folder = tiny_model("llama")
    service = connect_local()
    service.engine(folder).tokenizer = LetterTokenizer()
    sampler = service.create_sampling_client(base_model=folder)
    (prompt,) = prompts_of(9, (10,))
    return sampler, prompt, hf_greedy(hf_model(folder), prompt, 30)


def greedy(sampler: Any, prompt: list[int], stop: Any, max_tokens: int = 30) -> SampledSequence:
    params = SamplingParams(max_tokens=max_tokens, temperature=0, stop=stop)
    one = sampler.sample(ints(prompt), 1, params).result().sequences[0]
    two = sampler.sample(ints(prompt), 2, params).result().sequences
    assert as_lists(two) == as_lists([one, one])
    assert one.logprobs is not None and len(one.logprobs) == len(one.tokens)
    return one


def first_at(tokens: list[int], wanted: list[int]) -> int:
    return min(tokens.index(t) for t in wanted if t in tokens)


def test_stop_tokens_are_kept_once(stopping):
    sampler, prompt, free = stopping
    for position in (0, 3, 11):
        stop = free[position]
        expected = free[: free.index(stop) + 1]
        sequence = greedy(sampler, prompt, [stop])
        assert (sequence.tokens, sequence.stop_reason) == (expected, "stop")
        assert sequence.tokens.count(stop) == 1
    several = [free[9], free[4], VOCAB - 1]
    assert greedy(sampler, prompt, several).tokens == free[: first_at(free, several) + 1]


def test_stop_strings_are_kept_once(stopping):
    sampler, prompt, free = stopping
    text = LetterTokenizer().decode(free)
    for start, stop in ((0, 1), (4, 7), (10, 15), (3, 11)):
        wanted = text[start:stop]
        for given in (wanted, [wanted], ["$$$", wanted]):
            sequence = greedy(sampler, prompt, given)
            got = LetterTokenizer().decode(sequence.tokens)
            assert got == text[: text.index(wanted) + len(wanted)]
            assert got.count(wanted) == 1 and sequence.stop_reason == "stop"
    sequence = greedy(sampler, prompt, "never$this")
    assert (sequence.tokens, sequence.stop_reason) == (free, "length")


def test_max_tokens(stopping):
    sampler, prompt, free = stopping
    for n in (1, 2, 17):
        sequence = greedy(sampler, prompt, [], max_tokens=n)
        assert (sequence.tokens, sequence.stop_reason) == (free[:n], "length")
    # the stop token may be the last one allowed
    at = free.index(free[7])
    sequence = greedy(sampler, prompt, [free[7]], max_tokens=at + 1)
    assert (sequence.tokens, sequence.stop_reason) == (free[: at + 1], "stop")


def test_without_max_tokens_the_context_is_the_limit(tiny_model, service):
    folder = tiny_model("llama")
    sampler = service.create_sampling_client(base_model=folder)
    (prompt,) = prompts_of(10, (250,))
    for max_tokens in (None, 100):
        params = SamplingParams(max_tokens=max_tokens, temperature=0, stop=[])
        sequence = sampler.sample(ints(prompt), 1, params).result().sequences[0]
        assert sequence.tokens == hf_greedy(hf_model(folder), prompt, 6)
        assert sequence.stop_reason == "length"


@pytest.mark.parametrize("as_list", [False, True])
def test_end_token(as_list: bool, stopping):
    """stop=None stops at it, [] does not, and it stops beside other stops as well."""
    sampler, prompt, free = stopping
    engine = sampler._engine
    end = free[6]
    engine.decoder.eos_token_ids = [VOCAB - 1, end] if as_list else [end]
    expected = free[: free.index(end) + 1]
    other = next(t for t in range(VOCAB) if t not in free)
    for stop in (None, [other], "zzz$zzz", ["zzz$zzz"]):
        sequence = greedy(sampler, prompt, stop)
        assert (sequence.tokens, sequence.stop_reason) == (expected, "stop")
    sequence = greedy(sampler, prompt, [])
    assert (sequence.tokens, sequence.stop_reason) == (free, "length")


def test_end_token_of_the_tokenizer(stopping):
    sampler, prompt, free = stopping
    sampler._engine.decoder.eos_token_ids = None
    sampler._engine.tokenizer.eos_token_id = free[6]
    assert greedy(sampler, prompt, None).tokens == free[: free.index(free[6]) + 1]


# ---------------------------------------------------------------------------------------- logprobs


@pytest.mark.parametrize("num_samples", [1, 3])
def test_prompt_and_top_k_logprobs(num_samples: int, tiny_model, service):
    folder = tiny_model("gemma2")
    client = adapted_client(service, folder, 0)
    twin = peft_twin(client, folder, f"topk-{num_samples}")
    sampler = client.save_weights_and_get_sampling_client().result()
    (prompt,) = prompts_of(11, (75,))
    params = SamplingParams(max_tokens=6, seed=0, stop=[], temperature=0.8)
    response = sampler.sample(
        ints(prompt),
        num_samples,
        params,
        include_prompt_logprobs=True,
        topk_prompt_logprobs=4,
        topk_sample_logprobs=3,
    ).result()
    with torch.no_grad():
        wanted = hf_logits(twin, prompt).log_softmax(-1)
    known = response.prompt_logprobs
    assert known is not None and known[0] is None
    np.testing.assert_allclose(known[1:], wanted[range(74), prompt[1:]], atol=1e-5)
    assert response.topk_prompt_logprobs is not None
    check_top_k(response.topk_prompt_logprobs[1:], wanted[:-1], 4)
    assert response.topk_prompt_logprobs[0] is None
    for sequence in response.sequences:
        with torch.no_grad():
            logits = hf_logits(twin, prompt + sequence.tokens[:-1])[len(prompt) - 1 :]
        assert sequence.topk_logprobs is not None
        check_top_k(sequence.topk_logprobs, logits.log_softmax(-1), 3)
    plain = sampler.sample(ints(prompt), 1, params).result()
    assert plain.prompt_logprobs is None and plain.topk_prompt_logprobs is None
    assert plain.sequences[0].topk_logprobs is None


def check_top_k(got: Any, logprobs: torch.Tensor, k: int) -> None:
    values, ids = logprobs.topk(k, dim=-1)
    assert len(got) == len(logprobs)
    for row, wanted_ids, wanted in zip(got, ids, values, strict=True):
        assert [token for token, _ in row] == wanted_ids.tolist()
        np.testing.assert_allclose([p for _, p in row], wanted, atol=2e-5)


def test_top_k_over_the_vocabulary_and_a_prompt_of_one_token(tiny_model, service):
    sampler = service.create_sampling_client(base_model=tiny_model("llama"))
    params = SamplingParams(max_tokens=2, seed=0, stop=[])
    for prompt in ([5], [5, 6, 7]):
        response = sampler.sample(
            ints(prompt), 1, params, True, topk_prompt_logprobs=500, topk_sample_logprobs=500
        ).result()
        assert response.prompt_logprobs is not None and len(response.prompt_logprobs) == len(prompt)
        assert response.topk_prompt_logprobs is not None
        assert [None if r is None else len(r) for r in response.topk_prompt_logprobs] == [
            None,
            *[VOCAB] * (len(prompt) - 1),
        ]
        assert [len(r) for r in response.sequences[0].topk_logprobs or []] == [VOCAB] * 2


def test_the_last_token_is_not_read_for_logprobs_alone(tiny_model, service, monkeypatch):
    """Nothing is asked of what follows it: answers of one token to a question cost that question
    alone."""
    folder = tiny_model("llama")
    sampler = service.create_sampling_client(base_model=folder)
    decoder = service.engine(folder).decoder
    hidden, read = decoder.hidden, list[int]()

    def spied(tokens_T: Any, *others: Any) -> Any:
        read.append(len(tokens_T))
        return hidden(tokens_T, *others)

    monkeypatch.setattr(decoder, "hidden", spied)
    (question,) = prompts_of(12, (40,))
    prompts = [[*question, end] for end in (5, 6, 7)]
    futures = [sampler.compute_logprobs(ints(prompt)) for prompt in (*prompts, [5])]
    for prompt, future in zip(prompts, futures, strict=False):
        with torch.no_grad():
            wanted = hf_logits(hf_model(folder), prompt).log_softmax(-1)
        known = future.result()
        assert known[0] is None
        np.testing.assert_allclose(known[1:], wanted[range(40), prompt[1:]], atol=1e-5)
    assert futures[3].result() == [None]
    assert sum(read) == 40 + 1


# ------------------------------------------------------------------------------- the embedded model

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"enum": ["ada", "grace"]},
        "age": {"type": "integer", "minimum": 0, "maximum": 99},
        "likes": {"type": "array", "items": {"type": "string", "maxLength": 5}, "maxItems": 2},
    },
    "required": ["name", "age", "likes"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def embedded(service: Any) -> Any:
    return service.create_sampling_client(base_model="embedded")


def test_json_schema(embedded: Any):
    """Every sample that ends by itself is JSON of the schema; others decode beside it unharmed."""
    tokenizer = embedded.get_tokenizer()
    prompt = ints(tokenizer.encode("Describe a person as JSON: "))
    free_params = SamplingParams(max_tokens=12, temperature=0)
    free_alone = embedded.sample(prompt, 1, free_params).result().sequences[0]
    params = SamplingParams(max_tokens=100, temperature=1.0, seed=0, json_schema=SCHEMA)
    constrained = embedded.sample(prompt, 3, params)
    free = embedded.sample(prompt, 1, free_params)
    assert free.result().sequences[0].tokens == free_alone.tokens
    sequences = constrained.result().sequences
    for sequence in sequences:
        assert sequence.stop_reason == "stop"
        value = json.loads(tokenizer.decode(sequence.tokens, skip_special_tokens=True))
        assert set(value) == {"name", "age", "likes"}
        assert value["name"] in ("ada", "grace") and 0 <= value["age"] <= 99
        assert len(value["likes"]) <= 2 and all(len(s) <= 5 for s in value["likes"])
        # the logprobs are those of the free model
        with_prompt = ints(prompt.to_ints() + sequence.tokens)
        known = embedded.compute_logprobs(with_prompt).result()[prompt.length :]
        np.testing.assert_allclose(sequence.logprobs, known, atol=1e-4)
    assert len({tuple(s.tokens) for s in sequences}) > 1
    cut = SamplingParams(max_tokens=4, temperature=0, json_schema=SCHEMA)
    sequence = embedded.sample(prompt, 1, cut).result().sequences[0]
    assert sequence.stop_reason == "length"
    assert tokenizer.decode(sequence.tokens).startswith("{")


def test_embedded_greedy_and_stop_strings(embedded: Any):
    """A real tokenizer: a stop string that ends inside a token, and one over several tokens."""
    tokenizer = embedded.get_tokenizer()
    prompt = tokenizer.encode("Count: 1, 2, 3, 4,")
    free = embedded.sample(ints(prompt), 1, SamplingParams(max_tokens=20, temperature=0)).result()
    text = tokenizer.decode(free.sequences[0].tokens)
    assert " 5, 6" in text
    for stop in (" 6", "5, 6", "7"):
        params = SamplingParams(max_tokens=20, temperature=0, stop=[stop])
        sequence = embedded.sample(ints(prompt), 1, params).result().sequences[0]
        got = tokenizer.decode(sequence.tokens)
        assert sequence.stop_reason == "stop" and got.count(stop) == 1 and text.startswith(got)
        assert stop not in tokenizer.decode(sequence.tokens[:-1])
    assert embedded._engine.eos_tokens == {tokenizer.eos_token_id}


# ------------------------------------------------------------------------------------- streaming


def test_a_stream_has_the_tokens_of_a_sample(tiny_model, service):
    sampler = service.create_sampling_client(base_model=tiny_model("llama"))
    (prompt,) = prompts_of(21, (12,))
    params = SamplingParams(max_tokens=30, temperature=1.0, seed=4, stop=[])
    wanted = sampler.sample(ints(prompt), 1, params).result().sequences[0].tokens
    assert list(sampler.stream(ints(prompt), params)) == wanted


def test_closing_a_stream_ends_the_sample(tiny_model, connect_local):
    service = connect_local()
    sampler = service.create_sampling_client(base_model=tiny_model("llama"))
    (prompt,) = prompts_of(22, (12,))
    stream = sampler.stream(ints(prompt), SamplingParams(max_tokens=200, seed=1, stop=[]))
    assert len([next(stream) for _ in range(3)]) == 3
    stream.close()
    engine = sampler._engine
    before = engine.sampler.sampled_tokens
    # the next request makes the worker go on, to where the closed one leaves
    sampler.sample(ints(prompt), 1, SamplingParams(max_tokens=10, stop=[])).result()
    assert engine.sampler.rows == 0
    assert engine.sampler.sampled_tokens - before < 100


def test_a_stream_raises_what_is_wrong_with_the_request(tiny_model, service):
    sampler = service.create_sampling_client(base_model=tiny_model("llama"))
    with pytest.raises(ValueError, match="max_tokens"):
        next(sampler.stream(ints([1, 2]), SamplingParams(max_tokens=0)))
