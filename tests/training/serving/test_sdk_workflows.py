"""The official SDK, unmodified, against scripts/serve.py: what its users do, end to end.

uv run pytest tests/training/serving/test_sdk_workflows.py
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
import torch
from served import Served, served
from tiny_chat import save_chat_model
from tiny_models import CONTEXT, VOCAB, hf_greedy, hf_logprobs, hf_model

BIG_STEP = tinker.AdamParams(learning_rate=0.05)
NO_STOP = tinker.SamplingParams(max_tokens=6, stop=[])
GREEDY = tinker.SamplingParams(max_tokens=6, stop=[], temperature=0)
PROMPT = [5, 6, 7, 8, 9]


@pytest.fixture(scope="module")
def places(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., str]
) -> tuple[Path, str]:
    """The server's folder, and that of its first model."""
    folder = tmp_path_factory.mktemp("server")
    save_chat_model(folder / "chat", favourites="AB")
    return folder, tiny_model("llama")


@pytest.fixture(scope="module")
def server(places: tuple[Path, str]) -> Iterator[Served]:
    folder, model = places
    settings = [f"model_name={model}", f'aliases={{"Org/Tiny": "{model}", "Org/Chat": "chat"}}']
    with served(folder, settings) as running:
        yield running


@pytest.fixture(scope="module")
def service(server: Served) -> Iterator[tinker.ServiceClient]:
    client = tinker.ServiceClient(base_url=server.url, api_key=server.key)
    yield client
    client.close("success").result()


@pytest.fixture(scope="module")
def rest(server: Served) -> tinker.RestClient:
    return tinker.RestClient(base_url=server.url, api_key=server.key)


@pytest.fixture
def trainer(service: tinker.ServiceClient) -> tinker.TrainingClient:
    return service.create_lora_training_client("Org/Tiny", rank=4, seed=0).result()


def datum(tokens: list[int], **more: Any) -> tinker.Datum:
    inputs: dict[str, Any] = {"target_tokens": tokens[1:], "weights": [1.0] * (len(tokens) - 1)}
    return tinker.Datum(tinker.ModelInput.from_ints(tokens[:-1]), {**inputs, **more})


BATCH = [datum([5, 6, 7, 8]), datum([9, 10, 11])]


def prompt(tokens: list[int] = PROMPT) -> tinker.ModelInput:
    return tinker.ModelInput.from_ints(tokens)


def learn(trainer: tinker.TrainingClient, batch: list[tinker.Datum] = BATCH) -> None:
    trainer.forward_backward(batch, "cross_entropy")
    trainer.optim_step(BIG_STEP).result()


def loss_of(trainer: tinker.TrainingClient, batch: list[tinker.Datum] = BATCH) -> float:
    return trainer.forward(batch, "cross_entropy").result().metrics["loss:sum"]


def greedy(sampler: tinker.SamplingClient, tokens: list[int] = PROMPT) -> list[int]:
    return sampler.sample(prompt(tokens), 1, GREEDY).result().sequences[0].tokens


def scored(sampler: tinker.SamplingClient, tokens: list[int] = PROMPT) -> np.ndarray:
    """After the first token."""
    logprobs = sampler.compute_logprobs(prompt(tokens)).result()
    assert logprobs[0] is None and len(logprobs) == len(tokens)
    return np.array(logprobs[1:], dtype=np.float64)


# -------------------------------------------------------------------------------------- training


def test_the_spine(service: tinker.ServiceClient, places: tuple[Path, str]) -> None:
    reference = hf_model(places[1])
    trainer = service.create_lora_training_client("Org/Tiny", rank=4, seed=0).result()
    session, _, number = trainer.model_id.rpartition(":train:")
    assert session and number.isdecimal()
    before = trainer.forward_backward(BATCH, "cross_entropy").result()
    for item, output in zip(BATCH, before.loss_fn_outputs, strict=True):
        tokens = item.model_input.to_ints()
        targets = torch.tensor(item.loss_fn_inputs["target_tokens"].data)
        wanted = hf_logprobs(reference, tokens, targets).detach().numpy()
        np.testing.assert_allclose(output["logprobs"].to_numpy(), wanted, atol=1e-4)
    trainer.optim_step(BIG_STEP).result()
    path = trainer.save_state("first").result().path
    assert path == f"tinker://{trainer.model_id}/weights/first"
    resumed = service.create_training_client_from_state_with_optimizer(path).result()
    fresh = service.create_training_client_from_state(path).result()
    losses = []
    for client in (trainer, resumed, fresh):
        assert loss_of(client) == loss_of(trainer) < before.metrics["loss:sum"]
    for client in (trainer, resumed, fresh):
        learn(client)
        losses.append(loss_of(client))
    # the next step is bitwise the same one with the optimizer's state, and another without it
    assert losses[0] == losses[1] != losses[2]
    sampler = trainer.save_weights_and_get_sampling_client().result()
    response = sampler.sample(prompt(), num_samples=2, sampling_params=NO_STOP).result()
    assert [len(sequence.tokens) for sequence in response.sequences] == [6, 6]
    tokens = [*BATCH[0].model_input.to_ints(), 8]
    trained = trainer.forward(BATCH, "cross_entropy").result().loss_fn_outputs[0]["logprobs"]
    np.testing.assert_allclose(scored(sampler, tokens), trained.to_numpy(), atol=1e-4)


def test_forward_leaves_gradients_alone_and_passes_add_up(service: tinker.ServiceClient) -> None:
    def trained(passes: list[list[tinker.Datum]], forward: bool) -> float:
        client = service.create_lora_training_client("Org/Tiny", rank=4, seed=3).result()
        for batch in passes:
            client.forward_backward(batch, "cross_entropy")
            if forward:
                client.forward(BATCH, "cross_entropy")
        client.optim_step(BIG_STEP).result()
        return loss_of(client)

    whole = trained([BATCH], forward=False)
    assert trained([BATCH], forward=True) == whole
    assert trained([BATCH[:1], BATCH[1:]], forward=False) == pytest.approx(whole, abs=1e-5)


def test_a_custom_loss_is_the_loss_it_computes(service: tinker.ServiceClient) -> None:
    def as_cross_entropy(
        data: list[tinker.Datum], logprobs: list[torch.Tensor]
    ) -> tuple[torch.Tensor, dict[str, float]]:
        return -torch.cat(logprobs).sum(), {"own": 2.0}

    losses = []
    for custom in (False, True):
        client = service.create_lora_training_client("Org/Tiny", rank=4, seed=3).result()
        if custom:
            output = client.forward_backward_custom(BATCH, as_cross_entropy).result()
            assert output.metrics["own"] == 2.0
        else:
            output = client.forward_backward(BATCH, "cross_entropy").result()
        client.optim_step(BIG_STEP).result()
        losses.append((output.metrics["loss:sum"], loss_of(client)))
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)


def test_a_batch_in_chunks_is_one_batch(service: tinker.ServiceClient) -> None:
    """The SDK cuts at 1024 data, and sends the first chunk last."""
    many = [datum([3 + i % 100, 4 + i % 90, 5]) for i in range(1030)]
    client = service.create_lora_training_client("Org/Tiny", rank=2, seed=3).result()
    output = client.forward_backward(many, "cross_entropy").result()
    client.optim_step(tinker.AdamParams(learning_rate=1e-3)).result()
    assert len(output.loss_fn_outputs) == 1030
    again = client.forward(many[1024:], "cross_entropy").result()
    assert again.metrics["loss:sum"] < sum(
        -o["logprobs"].to_numpy().sum() for o in output.loss_fn_outputs[1024:]
    )


def test_targets_of_several_tokens_arrive_dense_or_sparse(trainer: tinker.TrainingClient) -> None:
    """(N, K) targets with mostly zero weights, which the SDK sends as CSR."""
    tokens = torch.tensor([[6, 7, 0, 0, 0, 0], [7, 0, 0, 0, 0, 0], [8, 9, 0, 0, 0, 0]])
    weights = torch.tensor([[0.5, 0.5, 0, 0, 0, 0], [1.0, 0, 0, 0, 0, 0], [2.0, -1, 0, 0, 0, 0]])
    inputs: dict[str, Any] = {"target_tokens": tokens, "weights": weights}
    item = tinker.Datum(prompt([5, 6, 7]), inputs)
    output = trainer.forward([item], "cross_entropy").result()
    logprobs = output.loss_fn_outputs[0]["logprobs"].to_numpy()
    assert logprobs.shape == (3, 6)
    expected = -(logprobs * weights.numpy()).sum()
    assert output.metrics["loss:sum"] == pytest.approx(expected, abs=1e-4)


def test_a_step_without_gradients_changes_nothing(trainer: tinker.TrainingClient) -> None:
    before = loss_of(trainer)
    metrics = trainer.optim_step(BIG_STEP).result().metrics
    assert metrics is not None and loss_of(trainer) == before


def test_every_loss_is_served(trainer: tinker.TrainingClient) -> None:
    inputs: dict[str, Any] = {
        "target_tokens": [6, 7, 8],
        "logprobs": [-1.0, -2.0, -3.0],
        "advantages": [1.0, 0.5, -1],
    }
    item = tinker.Datum(prompt([5, 6, 7]), inputs)
    masked = tinker.Datum(prompt([5, 6, 7]), inputs | {"sequence_ratio_mask": [1.0, 1.0, 1.0]})
    for loss, config in (
        ("importance_sampling", None),
        ("ppo", {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}),
        ("cispo", None),
        ("dro", {"beta": 0.05}),
    ):
        output = trainer.forward_backward([item], loss, config).result()
        assert np.isfinite(output.metrics["loss:sum"]), loss
    clips = {"clip_low_threshold": 0.9, "clip_high_threshold": 1.1}
    trainer.forward_backward([masked], "gspo", clips).result()


# -------------------------------------------------------------------------------------- sampling


def test_sampling_of_the_base_model(
    service: tinker.ServiceClient, places: tuple[Path, str]
) -> None:
    sampler = service.create_sampling_client(base_model="Org/Tiny").result()
    assert sampler.get_base_model() == "Org/Tiny"
    reference = hf_model(places[1])
    assert greedy(sampler) == hf_greedy(reference, PROMPT, 6)
    wanted = hf_logprobs(reference, PROMPT[:-1], torch.tensor(PROMPT[1:])).detach().numpy()
    np.testing.assert_allclose(scored(sampler), wanted, atol=1e-4)


def test_seeds_stops_and_counts(service: tinker.ServiceClient) -> None:
    sampler = service.create_sampling_client(base_model="Org/Tiny").result()

    def texts(seed: int) -> list[list[int]]:
        params = tinker.SamplingParams(max_tokens=8, seed=seed, stop=[])
        return [s.tokens for s in sampler.sample(prompt(), 3, params).result().sequences]

    assert texts(1) == texts(1) != texts(2)
    assert len({tuple(tokens) for tokens in texts(1)}) == 3
    first = greedy(sampler)
    params = tinker.SamplingParams(max_tokens=6, temperature=0, stop=[first[2]])
    [cut] = sampler.sample(prompt(), 1, params).result().sequences
    # the stop token stays, once
    assert cut.tokens == first[: first.index(first[2]) + 1] and cut.stop_reason == "stop"
    [whole] = sampler.sample(prompt(), 1, GREEDY).result().sequences
    assert whole.stop_reason == "length" and len(whole.tokens) == 6
    one = tinker.SamplingParams(max_tokens=3, top_k=1, stop=[])
    assert sampler.sample(prompt(), 1, one).result().sequences[0].tokens == first[:3]


def test_prompt_logprobs_and_the_likeliest_tokens(service: tinker.ServiceClient) -> None:
    sampler = service.create_sampling_client(base_model="Org/Tiny").result()
    response = sampler.sample(
        prompt(), 1, NO_STOP, include_prompt_logprobs=True, topk_prompt_logprobs=5
    ).result()
    assert response.prompt_logprobs is not None and response.topk_prompt_logprobs is not None
    found = np.array(response.prompt_logprobs[1:], dtype=np.float64)
    np.testing.assert_allclose(found, scored(sampler), atol=1e-5)
    assert response.topk_prompt_logprobs[0] is None
    for token, logprob, top in zip(
        PROMPT[1:], response.prompt_logprobs[1:], response.topk_prompt_logprobs[1:], strict=True
    ):
        assert top is not None and len(top) == 5
        values = [value for _, value in top]
        assert values == sorted(values, reverse=True)
        if token in dict(top):
            assert dict(top)[token] == pytest.approx(logprob, abs=1e-5)
    top = sampler.sample(prompt(), 1, GREEDY, topk_sample_logprobs=3).result().sequences[0]
    assert top.topk_logprobs is not None and top.logprobs is not None
    for token, logprob, best in zip(top.tokens, top.logprobs, top.topk_logprobs, strict=True):
        assert best is not None and best[0] == (token, pytest.approx(logprob, abs=1e-5))


def test_every_way_to_name_weights_answers_with_those_weights(
    service: tinker.ServiceClient, trainer: tinker.TrainingClient, places: tuple[Path, str]
) -> None:
    """The canary: no path may be answered by the base model, or by another checkpoint."""
    tokens = [*PROMPT, 3]
    item = [datum(tokens)]

    def now() -> np.ndarray:
        return (
            trainer.forward(item, "cross_entropy")
            .result()
            .loss_fn_outputs[0]["logprobs"]
            .to_numpy()
        )

    learn(trainer)
    first_path = trainer.save_weights_for_sampler("first").result().path
    assert first_path == f"tinker://{trainer.model_id}/sampler_weights/first"
    by_first = now()
    snapshot = trainer.save_weights_and_get_sampling_client().result()
    learn(trainer, item)
    second_path = trainer.save_weights_for_sampler("second").result().path
    by_second = now()
    base = scored(service.create_sampling_client(base_model="Org/Tiny").result(), tokens)
    for sampler, wanted in (
        (service.create_sampling_client(model_path=first_path).result(), by_first),
        (trainer.create_sampling_client(second_path).result(), by_second),
        (snapshot, by_first),
    ):
        np.testing.assert_allclose(scored(sampler, tokens), wanted, atol=1e-4)
        # of a path on loopback the folder, from which the SDK can load the tokenizer
        expected = "Org/Tiny" if sampler is snapshot else places[1]
        assert sampler.get_base_model() == expected
    assert np.abs(by_first - base).max() > 0.1 and np.abs(by_second - by_first).max() > 0.1


def test_a_handle_of_a_sampler_works_elsewhere(
    service: tinker.ServiceClient, server: Served
) -> None:
    sampler = service.create_sampling_client(base_model="Org/Tiny").result()
    handle = sampler.get_sampler_handle()
    clone = tinker.SamplingClient.from_sampler_handle(handle, api_key=server.key)
    assert greedy(clone) == greedy(sampler)


# ----------------------------------------------------------------------------------- information


def test_a_tokenizer_is_loaded_from_what_the_server_says(service: tinker.ServiceClient) -> None:
    trainer = service.create_lora_training_client("Org/Chat", rank=2).result()
    assert trainer.get_tokenizer().decode(trainer.get_tokenizer().encode("AB")) == "AB"
    info = trainer.get_info()
    assert info.is_lora and info.lora_rank == 2
    assert info.model_data.model_name == "Org/Chat" and info.model_id == trainer.model_id


def test_capabilities_name_what_clients_may_say(rest: tinker.RestClient) -> None:
    models = rest.get_server_capabilities().result().supported_models
    found = {model.model_name: model.max_context_length for model in models}
    assert found["Org/Tiny"] == CONTEXT and found["Org/Chat"] == 4096


def test_lists_and_what_is_done_to_checkpoints(
    service: tinker.ServiceClient, rest: tinker.RestClient
) -> None:
    trainer = service.create_lora_training_client(
        "Org/Tiny", rank=3, train_mlp=False, user_metadata={"purpose": "lists"}
    ).result()
    run = trainer.model_id
    path = trainer.save_state("final", ttl_seconds=7200, user_metadata={"a": "b"}).result().path
    for_sampler = trainer.save_weights_for_sampler("final").result().path
    external = trainer.save_weights_external("final").result().path
    described = rest.get_training_run(run).result()
    assert described.base_model == "Org/Tiny" and described.lora_rank == 3 and described.is_lora
    assert described.user_metadata == {"purpose": "lists"}
    assert described.last_checkpoint is not None
    assert described.last_checkpoint.tinker_path == path
    assert described.last_sampler_checkpoint is not None
    assert described.last_sampler_checkpoint.tinker_path == for_sampler
    assert rest.get_training_run_by_tinker_path(path).result() == described
    listed = rest.list_training_runs(limit=1).result()
    assert [r.training_run_id for r in listed.training_runs] == [run]
    assert listed.cursor.total_count > 1 and listed.cursor.limit == 1

    def of_run() -> dict[str, Any]:
        return {c.tinker_path: c for c in rest.list_checkpoints(run).result().checkpoints}

    assert set(of_run()) == {path, for_sampler, external}
    first = of_run()[path]
    assert first.checkpoint_id == "weights/final" and first.checkpoint_type == "training"
    assert first.size_bytes is not None and first.size_bytes > 1000
    assert first.time.tzinfo is not None and first.expires_at is not None
    assert first.user_metadata == {"a": "b"}
    assert 7000 < (first.expires_at - first.time).total_seconds() < 7400
    everything = rest.list_user_checkpoints(limit=2).result()
    assert len(everything.checkpoints) == 2 and everything.cursor is not None
    assert everything.cursor.total_count >= 3
    info = rest.get_weights_info_by_tinker_path(path).result()
    assert (info.base_model, info.is_lora, info.lora_rank) == ("Org/Tiny", True, 3)
    assert (info.train_attn, info.train_mlp, info.train_unembed) == (True, False, True)
    rest.set_checkpoint_ttl_from_tinker_path(path, None).result()
    assert of_run()[path].expires_at is None
    rest.publish_checkpoint_from_tinker_path(path).result()
    assert of_run()[path].public
    rest.unpublish_checkpoint_from_tinker_path(path).result()
    assert not of_run()[path].public
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert set(of_run()) == {for_sampler, external}
    with pytest.raises(tinker.NotFoundError):
        rest.delete_checkpoint_from_tinker_path(path).result()
    sessions = rest.list_sessions().result().sessions
    session = run.partition(":train:")[0]
    assert session in sessions
    assert run in rest.get_session(session).result().training_run_ids


def test_a_deleted_checkpoint_serves_until_its_sampler_ends(
    service: tinker.ServiceClient, rest: tinker.RestClient, trainer: tinker.TrainingClient
) -> None:
    learn(trainer)
    path = trainer.save_weights_for_sampler("gone").result().path
    sampler = service.create_sampling_client(model_path=path).result()
    before = greedy(sampler)
    rest.delete_checkpoint_from_tinker_path(path).result()
    assert greedy(sampler) == before
    with pytest.raises(tinker.NotFoundError):
        service.create_sampling_client(model_path=path).result()


# ---------------------------------------------------------------------------- what is refused


def test_a_mistake_is_told_in_one_sentence_at_once(
    service: tinker.ServiceClient, trainer: tinker.TrainingClient, server: Served
) -> None:
    sampler = service.create_sampling_client(base_model="Org/Tiny").result()
    path = trainer.save_state("mistakes").result().path
    long = [3] * (CONTEXT - 2)
    mistakes: list[tuple[str, Callable[[], Any]]] = [
        ("Org/Tiny", lambda: service.create_lora_training_client("Org/Huge").result()),
        ("rank", lambda: service.create_lora_training_client("Org/Tiny", rank=999).result()),
        ("rank", lambda: service.create_lora_training_client("Org/Tiny", rank=0).result()),
        ("/weights/mistakes exists", lambda: trainer.save_state("mistakes").result()),
        ("name", lambda: trainer.save_state("../up").result()),
        ("weights", lambda: service.create_sampling_client(model_path=path).result()),
        ("nothere", lambda: service.create_sampling_client(base_model="nothere").result()),
        (
            str(CONTEXT),
            lambda: sampler.sample(prompt(long), 1, tinker.SamplingParams(max_tokens=9)).result(),
        ),
        (
            "temperature",
            lambda: sampler.sample(
                prompt(), 1, tinker.SamplingParams(max_tokens=1, temperature=-1)
            ).result(),
        ),
        (
            str(VOCAB),
            lambda: trainer.forward_backward([datum([5, VOCAB])], "cross_entropy").result(),
        ),
        (
            "importance_sampling",
            lambda: trainer.forward_backward(BATCH, "stable_reinforce").result(),
        ),
        ("typo", lambda: trainer.forward_backward(BATCH, "ppo", {"typo": 1.0}).result()),
        (
            "weights",
            lambda: trainer.forward_backward(
                [datum([5, 6, 7], weights=[1.0, float("nan")])], "cross_entropy"
            ).result(),
        ),
    ]
    for word, mistake in mistakes:
        began = time.monotonic()
        with pytest.raises((tinker.APIStatusError, tinker.RequestFailedError)) as told:
            mistake()
        # the SDK goes on for five minutes where it takes an error for a passing one
        assert time.monotonic() - began < 60, word
        assert word in str(told.value), (word, str(told.value))
        assert "Traceback" not in str(told.value) and str(told.value).count("\n") <= 1
    # and nothing of them is left behind
    assert loss_of(trainer) == loss_of(service.create_training_client_from_state(path).result())
    assert "Traceback" not in server.log


def test_a_wrong_key_is_told_at_once(server: Served) -> None:
    with pytest.raises(tinker.AuthenticationError):
        tinker.RestClient(
            base_url=server.url, api_key="tml-wrong"
        ).get_server_capabilities().result()
