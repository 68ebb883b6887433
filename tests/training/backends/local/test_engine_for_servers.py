"""What a server asks of the engine: checks before queueing, tokens as they come, requests that are
dropped, and samples that go on while a training pass runs."""

import threading
import time
from concurrent.futures import CancelledError, wait
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import cross_entropy_datum, engine_gradients, random_tokens, randomise

from training.api import AdamParams, ModelInput, SampledToken, SamplingParams
from training.backends.local import engine as engine_module

PROMPT = ModelInput.from_ints([5, 6, 7, 8])


def data_of(seed: int, lengths: tuple[int, ...]) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [cross_entropy_datum(rng, random_tokens(rng, length)) for length in lengths]


def count_steps(service: Any, folder: str, events: list[str]) -> None:
    """Notes every decoding step, admission and micro-batch of the engine in `events`."""
    engine = service.engine(folder)

    def noted(owner: Any, name: str, event: str) -> None:
        before = getattr(owner, name)

        def call(*args: Any) -> Any:
            events.append(event)
            return before(*args)

        setattr(owner, name, call)

    noted(engine.sampler, "step", "step")
    noted(engine.sampler, "admit", "admit")
    noted(engine.trainer, "_micro_batch", "batch")


def test_a_prepared_request_is_checked_at_once_and_made_later(tiny_model, service):
    folder = tiny_model("llama")
    client = service.create_lora_training_client(folder, rank=4, seed=1)
    twin = service.create_lora_training_client(folder, rank=4, seed=1)
    for one in (client, twin):
        randomise(one, 3)
    data = data_of(0, (12, 7))
    with pytest.raises(ValueError, match=r"data\[0\].*vocabulary"):
        client.prepare_forward_backward([far_token()], "cross_entropy")
    make = client.prepare_forward_backward(data, "cross_entropy")
    assert not client.has_gradient
    wanted = twin.forward_backward(data, "cross_entropy").result()
    got = make().result()
    assert got.metrics == wanted.metrics and client.has_gradient
    looked = client.prepare_forward(data, "cross_entropy")().result()
    assert looked.metrics["loss:sum"] == pytest.approx(got.metrics["loss:sum"], rel=1e-5)
    mine, theirs = engine_gradients(client), engine_gradients(twin)
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    sampler = service.create_sampling_client(base_model=folder)
    with pytest.raises(ValueError, match="num_samples"):
        sampler.prepare_sample(PROMPT, 0, SamplingParams(max_tokens=2))


def far_token() -> Any:
    rng = np.random.default_rng(0)
    return cross_entropy_datum(rng, [1, 2, 100_000, 3])


def test_steps_are_counted_through_a_checkpoint(tiny_model, service, tmp_path):
    folder = tiny_model("llama")
    client = service.create_lora_training_client(folder, rank=4)
    assert client.num_steps == 0
    for _ in range(2):
        client.forward_backward(data_of(0, (9,)), "cross_entropy")
        client.optim_step(AdamParams()).result()
    # without a gradient there is no step
    client.optim_step(AdamParams()).result()
    assert client.num_steps == 2
    path = client.save_into(tmp_path / "state", with_optimizer=True).result()
    assert path == str(tmp_path / "state")
    assert service.create_training_client_from_state_with_optimizer(path).num_steps == 2
    assert service.create_training_client_from_state(path).num_steps == 0
    weights = client.save_into(tmp_path / "weights", with_optimizer=False).result()
    with pytest.raises(FileNotFoundError, match="no optimizer state"):
        service.create_training_client_from_state_with_optimizer(weights)
    with pytest.raises(FileExistsError):
        client.save_into(tmp_path / "weights", with_optimizer=False).result()


def test_tokens_come_one_by_one_with_all_that_the_answer_has(tiny_model, service):
    sampler = service.create_sampling_client(base_model=tiny_model("llama"))
    params = SamplingParams(max_tokens=9, seed=4, stop=[])
    seen: list[SampledToken] = []

    def on_token(token: SampledToken) -> bool:
        seen.append(token)
        return True

    asked = (PROMPT, 3, params, False, 0, 2)
    response = sampler.prepare_sample(*asked, on_token=on_token)().result()
    plain = sampler.sample(*asked).result()
    for number, sequence in enumerate(response.sequences):
        own = [token for token in seen if token.sample == number]
        assert [token.token for token in own] == sequence.tokens == plain.sequences[number].tokens
        assert [token.logprob for token in own] == pytest.approx(sequence.logprobs, rel=1e-6)
        for token, ids in zip(own, sequence.topk_logprobs_np.token_ids, strict=True):
            assert token.topk is not None and token.topk[0].tolist() == ids.tolist()
        assert [token.stop_reason for token in own] == [None] * 8 + ["length"]


def test_false_from_on_token_ends_that_sample_alone(tiny_model, service):
    sampler = service.create_sampling_client(base_model=tiny_model("llama"))
    params = SamplingParams(max_tokens=9, seed=4, stop=[])
    wanted = sampler.sample(PROMPT, 2, params).result().sequences
    counts = [0, 0]

    def on_token(token: SampledToken) -> bool:
        counts[token.sample] += 1
        return token.sample == 1 or counts[0] < 3

    first, second = (
        sampler.prepare_sample(PROMPT, 2, params, on_token=on_token)().result().sequences
    )
    assert first.tokens == wanted[0].tokens[:3] and first.stop_reason == "stop"
    assert second.tokens == wanted[1].tokens


def test_a_cancelled_sample_leaves_with_the_next_token(tiny_model, connect_local):
    folder = tiny_model("llama")
    service = connect_local()
    sampler = service.create_sampling_client(base_model=folder)
    params = SamplingParams(max_tokens=60, seed=1, stop=[])
    alone = sampler.sample(PROMPT, 1, params).result().sequences[0].tokens
    engine_sampler = service.engine(folder).sampler
    rows: list[int] = []
    futures: list[Any] = []

    def on_token(token: SampledToken) -> bool:
        rows.append(engine_sampler.rows)
        if len(rows) == 10:
            futures[1].cancel()
            # once more, while its rows leave one after the other
            futures[1].cancel()
        return True

    futures.append(sampler.prepare_sample(PROMPT, 1, params, on_token=on_token)())
    futures.append(sampler.sample(PROMPT, 5, params))
    futures.append(sampler.sample(PROMPT, 2, params).map(len))
    futures[2].cancel()
    assert futures[0].result().sequences[0].tokens == alone
    with pytest.raises(CancelledError):
        futures[1].result()
    with pytest.raises(CancelledError):
        futures[2].result()
    # the sixth row of the batch is the one that watches; the two never came in
    assert max(rows) == 6 and set(rows[11:]) == {1}


def test_a_cancelled_request_that_waits_never_runs(tiny_model, connect_local):
    folder = tiny_model("llama")
    client = connect_local().create_lora_training_client(folder, rank=4)
    waits = client.forward_backward(data_of(0, (9,)), "cross_entropy")
    waits.cancel()
    client.optim_step(AdamParams()).result()
    assert client.num_steps == 0 and not client.has_gradient
    with pytest.raises(CancelledError):
        waits.result()


@pytest.mark.parametrize("steps", [0, 3])
def test_samples_go_on_between_the_micro_batches_of_a_pass(steps: int, tiny_model, connect_local):
    """Each micro-batch is followed by `steps` tokens, also of a sample that came during the pass;
    gradients and samples are the same bits as without."""
    folder = tiny_model("llama")
    data = data_of(0, (30, 29, 28, 27, 26))
    late = SamplingParams(max_tokens=7, seed=2, stop=[])

    plain = connect_local(max_train_tokens=32)
    client = plain.create_lora_training_client(folder, rank=4, seed=1)
    output = client.forward_backward(data, "cross_entropy").result()
    wanted = engine_gradients(client)
    sampler = plain.create_sampling_client(base_model=folder)
    tokens = sampler.sample(PROMPT, 2, late).result().sequences

    service = connect_local(max_train_tokens=32, decode_steps_while_training=steps)
    mine = service.create_lora_training_client(folder, rank=4, seed=1)
    asking = service.create_sampling_client(base_model=folder)
    events: list[str] = []
    count_steps(service, folder, events)
    futures: list[Any] = []
    trainer = service.engine(folder).trainer
    batch = trainer._micro_batch

    def ask_during(*args: Any) -> None:
        batch(*args)
        if not futures:
            futures.append(asking.sample(PROMPT, 2, late))
            futures[0].start()

    trainer._micro_batch = ask_during
    got = mine.forward_backward(data, "cross_entropy").result()
    answers = futures[0].result().sequences
    gradients = engine_gradients(mine)
    assert got.metrics == output.metrics
    assert all(torch.equal(gradients[name], wanted[name]) for name in wanted)
    assert [s.tokens for s in answers] == [s.tokens for s in tokens]
    if steps:
        # the first token comes with the admission, which is followed by a step
        assert events[:10] == ["batch", "admit", *["step"] * 3, "batch", *["step"] * 3, "batch"]
    else:
        assert events[:6] == [*["batch"] * 5, "admit"]


def test_clients_come_in_between_the_tokens_that_follow_a_pass(tiny_model, connect_local):
    """One who steps and asks samples beside those who wait, not after all of their tokens: clients
    that fell out of step would stay so, each with passes of its own."""
    folder = tiny_model("llama")
    service = connect_local(decode_steps_while_training=16)
    trains = service.create_lora_training_client(folder, rank=4, seed=1)
    comes = service.create_lora_training_client(folder, rank=4, seed=2)
    asking = service.create_sampling_client(base_model=folder)
    params = SamplingParams(max_tokens=10, stop=[])
    events: list[str] = []
    count_steps(service, folder, events)
    engine = service.engine(folder)
    futures: list[Any] = []

    def before(owner: Any, name: str, act: Any) -> None:
        call = getattr(owner, name)

        def acts(*args: Any) -> Any:
            if (future := act()) is not None:
                future.start()
                futures.append(future)
            return call(*args)

        setattr(owner, name, acts)

    def comes_at_first() -> Any:
        if len(futures) != 1:
            return None
        future = comes.save_weights_and_get_sampling_client()
        future.future().add_done_callback(lambda _: events.append("call"))
        return future

    before(engine.trainer, "_micro_batch", lambda: asking.sample(PROMPT, 1, params))
    before(engine.sampler, "step", comes_at_first)
    trains.forward_backward(data_of(0, (9,)), "cross_entropy").result()
    assert len(futures[0].result().sequences[0].tokens) == 10
    assert events[:5] == ["batch", "admit", "step", "call", "step"]


def test_calls_of_clients_outside_a_pass_run_between_its_micro_batches(tiny_model, connect_local):
    """Those inside wait for its end: their gradients are half added up."""
    folder = tiny_model("llama")
    data = data_of(0, (30, 29, 28))
    step = AdamParams(learning_rate=1e-2)

    def trained(service: Any) -> Any:
        client = service.create_lora_training_client(folder, rank=4, seed=1)
        client.forward_backward(data, "cross_entropy").result()
        client.optim_step(step).result()
        return client.forward(data, "cross_entropy").result().metrics

    wanted = trained(connect_local(max_train_tokens=32))
    service = connect_local(max_train_tokens=32, decode_steps_while_training=1)
    inside = service.create_lora_training_client(folder, rank=4, seed=1)
    outside = service.create_lora_training_client(folder, rank=4, seed=2)
    outside.forward_backward(data_of(1, (9,)), "cross_entropy").result()
    events: list[str] = []
    count_steps(service, folder, events)
    trainer = service.engine(folder).trainer
    batch, futures = trainer._micro_batch, []

    def step_during(*args: Any) -> None:
        batch(*args)
        if not futures:
            for name, client in (("inside", inside), ("outside", outside)):
                futures.append(client.optim_step(step))
                futures[-1].future().add_done_callback(lambda _, name=name: events.append(name))
                futures[-1].start()

    trainer._micro_batch = step_during
    inside.forward_backward(data, "cross_entropy").result()
    for future in futures:
        future.result()
    assert events == ["batch", "outside", "batch", "batch", "inside"]
    assert inside.forward(data, "cross_entropy").result().metrics == wanted


def test_a_crowd_that_comes_during_a_pass_joins_in_bounded_prefills(tiny_model, connect_local):
    folder = tiny_model("llama")
    service = connect_local(decode_steps_while_training=1, max_prefill_tokens=8)
    sampler = service.create_sampling_client(base_model=folder)
    sizes: list[int] = []
    admit = service.engine(folder).sampler.admit

    def noted(jobs: list[Any]) -> None:
        sizes.append(sum(len(job.prompt) for job in jobs))
        admit(jobs)

    service.engine(folder).sampler.admit = noted
    params = SamplingParams(max_tokens=2, stop=[])
    prompts = [PROMPT] * 5 + [ModelInput.from_ints(list(range(3, 15)))]
    futures = [sampler.sample(prompt, 1, params) for prompt in prompts]
    for future in futures:
        future.result()
    # two prompts of four tokens at once, and a longer one alone
    assert sizes == [8, 8, 4, 12]


def test_an_idle_engine_waits_for_those_who_come_right_after(
    tiny_model, connect_local, monkeypatch
):
    """As long as its clock stands still, all come right after the first."""
    now = [1000.0]
    # not the module's own time, which waits of other threads are measured with
    monkeypatch.setattr(engine_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    folder = tiny_model("llama")
    service = connect_local(gather_seconds=60.0)
    clients = [service.create_lora_training_client(folder, rank=4) for _ in range(3)]
    sampler = service.create_sampling_client(base_model=folder)
    engine = service.engine(folder)
    sizes: list[int] = []
    run = engine.trainer.run

    def noted(jobs: list[Any], between: Any) -> Any:
        sizes.append(len(jobs))
        # a pass of this length
        now[0] += 100.0
        return run(jobs, between)

    engine.trainer.run = noted

    def asked(client: Any) -> Any:
        future = client.forward_backward(data_of(0, (9,)), "cross_entropy")
        future.start()
        return future

    # nothing is known yet of what comes
    asked(clients[0]).result()
    assert sizes == [1]
    until_idle(engine)
    futures = [asked(client) for client in clients]
    # a fiftieth of the pass, since the last one came
    assert not wait([future.future() for future in futures], 0.1).done
    let_pass(engine, now, 2.5)
    for future in futures:
        future.result()
    assert sizes == [1, 3]
    until_idle(engine)
    # what needs no pass does not wait
    clients[0].optim_step(AdamParams()).result()
    # whoever keeps coming holds up the first for ten such waits at most
    gathers = threading.Event()
    gather = engine._gather

    def begun() -> None:
        # the worker holds the lock until it waits
        gathers.set()
        gather()

    engine._gather = begun
    futures = [asked(clients[0])]
    gathers.wait()
    for _ in range(10):
        let_pass(engine, now, 1.9)
        futures.append(asked(clients[1]))
    assert not futures[0].future().done()
    let_pass(engine, now, 1.5)
    for future in futures:
        future.result()
    assert sizes[2:] == [2, *[1] * 9]
    until_idle(engine)
    answer = sampler.sample(PROMPT, 1, SamplingParams(max_tokens=2, stop=[]))
    answer.start()
    assert not answer.future().done()
    let_pass(engine, now, 30.0)
    assert len(answer.result().sequences[0].tokens) == 2


def until_idle(engine: Any) -> None:
    """A request that comes before finds a worker that is still at work."""
    while engine._had_pass:
        time.sleep(0.001)


def let_pass(engine: Any, now: list[float], seconds: float) -> None:
    with engine._condition:
        now[0] += seconds
        engine._condition.notify()
