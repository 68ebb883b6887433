"""Engines that are lost at every moment: what comes of it is what would have come without.

uv run pytest tests/training/backends/pool/test_pool_recovery.py
"""

import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_engines import FakeTransport

from training.api import AdamParams, Datum, ModelInput, RequestFailedError, SamplingParams
from training.backends.pool.clients import PoolServiceClient
from training.backends.pool.messages import Request
from training.backends.pool.transport import EngineLostError

Fate = Callable[[int, int, list[Request]], str | None]


def connected(
    folder: Path, fate: Fate = lambda *_: None, **options: Any
) -> tuple[PoolServiceClient, FakeTransport]:
    made: list[FakeTransport] = []

    def make(settings: Any, *, silence: float) -> FakeTransport:
        made.append(FakeTransport(settings, silence, fate))
        return made[0]

    values: dict[str, Any] = {"num_engines": 2, "checkpoint_dir": folder / "checkpoints"}
    return PoolServiceClient(make, **{**values, **options}), made[0]


def data(length: int) -> list[Datum]:
    return [Datum(ModelInput.from_ints([1] * length), {})]


def params(seed: int) -> SamplingParams:
    return SamplingParams(max_tokens=8, seed=seed)


def script(service: PoolServiceClient, folder: Path) -> list[Any]:
    """Everything that changes, makes or saves anything, twice; all numbers that come of it."""
    results: list[Any] = []

    def told(*futures: Any) -> None:
        results.extend(future.result() for future in futures)

    prompt = ModelInput.from_ints([1, 2, 3])
    clients = [service.create_lora_training_client("fake", seed=seed) for seed in (11, 22, 33)]
    for step in range(3):
        for client in clients:
            client.forward(data(1), "cross_entropy")
        futures = [client.forward_backward(data(step + 2), "cross_entropy") for client in clients]
        told(*futures, *[client.optim_step(AdamParams()) for client in clients])
    samplers = [c.save_weights_and_get_sampling_client().result() for c in clients]
    # a sampler outlives its client, and its client goes on
    del clients[1]
    told(*[sampler.sample(prompt, 2, params(3)) for sampler in samplers])
    told(clients[0].forward_backward(data(9), "cross_entropy"))
    path = clients[0].save_state("a").result().path
    told(clients[0].optim_step(AdamParams()))
    # with the gradient that was not used
    again = service.create_training_client_from_state_with_optimizer(path)
    told(again.optim_step(AdamParams()), *[s.compute_logprobs(prompt) for s in samplers])
    told(clients[1].forward_backward(data(4), "cross_entropy"), clients[1].optim_step())
    clients[0].save_state("a", overwrite=True).result()
    loaded = service.create_sampling_client(path)
    told(*[sampler.sample(prompt, 2, params(seed)) for seed, sampler in enumerate(samplers * 2)])
    told(loaded.compute_logprobs(prompt))
    with pytest.raises(FileExistsError):
        clients[0].save_state("a").result()
    base = service.create_sampling_client(base_model="fake")
    told(base.compute_logprobs(prompt), again.optim_step(AdamParams()))
    return results


def losing(when: str, engine: int, calls: set[int]) -> Fate:
    def fate(of: int, call: int, _requests: Any) -> str | None:
        return when if of == engine and call in calls else None

    return fate


@pytest.fixture(scope="module")
def wanted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of the script, where nothing is lost: its results, and how often it asks each engine."""
    folder = tmp_path_factory.mktemp("wanted")
    service, transport = connected(folder, spread_tokens=20)
    with service:
        results = script(service, folder)
    assert transport.starts == [0, 1]
    return {"results": results, "calls": dict(transport.calls)}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("snapshot_seconds", [0, 60], ids=["snapshots", "log"])
def test_a_loss_at_any_call_changes_nothing(
    when: str, snapshot_seconds: float, wanted: dict[str, Any], tmp_path: Path
) -> None:
    tried = 0
    for engine, num_calls in wanted["calls"].items():
        # what is asked of an engine first is whether it sees the folder
        for lost in range(1, num_calls):
            folder = tmp_path / f"{engine}-{lost}"
            service, transport = connected(
                folder,
                losing(when, engine, {lost}),
                spread_tokens=20,
                snapshot_seconds=snapshot_seconds,
            )
            with service:
                assert script(service, folder) == wanted["results"], (engine, lost)
                assert service.num_lost == 1
            assert sorted(transport.starts) == sorted([0, 1, engine])
            assert list((folder / "checkpoints").glob(".engines-*")) == []
            tried += 1
    assert tried > 20


@pytest.mark.parametrize("when", ["before", "after"])
def test_two_losses_in_a_row_change_nothing(
    when: str, wanted: dict[str, Any], tmp_path: Path
) -> None:
    """The second while the new engine is being made the same as the old one, or just after."""
    for lost in range(1, wanted["calls"][0], 2):
        for later in (1, 2, 3):
            folder = tmp_path / f"{lost}-{later}"
            fate = losing(when, 0, {lost, lost + later})
            service, _ = connected(folder, fate, spread_tokens=20)
            with service:
                assert script(service, folder) == wanted["results"], (lost, later)
                # one that is lost before it is of any use is not counted
                assert service.num_lost in (1, 2)


def test_both_engines_may_be_lost(wanted: dict[str, Any], tmp_path: Path) -> None:
    def fate(_engine: int, call: int, _requests: Any) -> str | None:
        return "after" if call in (7, 20) else None

    service, _ = connected(tmp_path, fate, spread_tokens=20)
    with service:
        assert script(service, tmp_path) == wanted["results"]
        assert service.num_lost >= 2


def test_what_loses_every_engine_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    def fate(_engine: int, _call: int, requests: list[Request]) -> str | None:
        trained = [r.args[0] for r in requests if r.method == "forward_backward"]
        lengths = [datum.model_input.length for datums in trained for datum in datums]
        return "before" if 666 in lengths else None

    service, transport = connected(tmp_path, fate, num_engines=1)
    with service:
        client = service.create_lora_training_client("fake", seed=1)
        before = client.forward_backward(data(2), "cross_entropy").result()
        bad = client.forward_backward(data(666), "cross_entropy")
        with pytest.raises(RequestFailedError, match="3 engines were lost one after the other"):
            bad.result()
        assert transport.starts == [0, 0, 0, 0]
        # as if it had never been asked
        after = client.forward_backward(data(2), "cross_entropy").result()
        weight = client.optim_step(AdamParams()).result()
    service, _ = connected(tmp_path / "again", num_engines=1)
    with service:
        client = service.create_lora_training_client("fake", seed=1)
        assert client.forward_backward(data(2), "cross_entropy").result() == before
        assert client.forward_backward(data(2), "cross_entropy").result() == after
        assert client.optim_step(AdamParams()).result() == weight


def test_a_place_for_another_engine_is_waited_for(tmp_path: Path) -> None:
    service, transport = connected(
        tmp_path, losing("before", 0, {3}), num_engines=1, replace_seconds=30
    )
    # the first start and three more find no place
    transport.refuse = lambda start: EngineLostError("no room") if start < 4 else None
    with service:
        client = service.create_lora_training_client("fake", seed=1)
        assert client.forward(data(2), "cross_entropy").result() == 33
        assert client.forward(data(2), "cross_entropy").result() == 33
        assert len(transport.starts) == 5


def test_without_another_engine_everybody_is_told(tmp_path: Path) -> None:
    service, transport = connected(
        tmp_path, losing("before", 0, {3}), num_engines=1, replace_seconds=0
    )
    transport.refuse = lambda start: EngineLostError("no room") if start else None
    with service:
        client = service.create_lora_training_client("fake", seed=1)
        for _ in range(2):
            with pytest.raises(RequestFailedError, match="no place for another one: no room"):
                client.forward(data(2), "cross_entropy").result()
        with pytest.raises(RequestFailedError, match="goes on from the last checkpoint"):
            service.create_lora_training_client("fake", seed=1)


def test_a_users_error_is_told_once_and_nothing_is_repeated(tmp_path: Path) -> None:
    service, transport = connected(tmp_path, num_engines=1)
    with service:
        client = service.create_lora_training_client("fake", seed=1)
        wrong: Any = "dro"
        future = client.forward_backward(data(2), wrong)
        with pytest.raises(ValueError) as told:
            future.result()
        assert str(told.value) == "loss_fn='dro': allowed is cross_entropy"
        assert any("forward_backward" in note for note in told.value.__notes__)
        with pytest.raises(ValueError, match=r"^no such model"):
            service.create_lora_training_client("none", seed=1)
        methods = [r.method for _, requests in transport.batches for r in requests]
        assert methods.count("forward_backward") == 1 and transport.starts == [0]
        with pytest.raises(ValueError, match="plain name without"):
            client.save_state("a/b")


def test_a_folder_that_was_there_is_not_overwritten_after_a_loss(tmp_path: Path) -> None:
    """What a lost engine may have written is, and only that."""
    for when in ("before", "after"):
        service, transport = connected(tmp_path / when, num_engines=1)
        with service:
            client = service.create_lora_training_client("fake", seed=1)
            client.save_state("a").result()
            client.forward_backward(data(2), "cross_entropy")
            client.optim_step(AdamParams()).result()
            lost = transport.calls[0] + 1
            transport.fate = losing(when, 0, {lost, lost + 4})
            with pytest.raises(FileExistsError):
                client.save_state("a").result()
            path = client.save_state("b").result().path
            assert service.num_lost == 2
            [old, new] = [
                service.create_training_client_from_state(str(Path(path).with_name(name)))
                for name in "ab"
            ]
            assert old.forward(data(2), "cross_entropy").result() == 33
            assert new.forward(data(2), "cross_entropy").result() != 33


def test_snapshots_shorten_what_is_repeated(tmp_path: Path) -> None:
    """With one after every batch nothing but the last has to be done again."""
    repeated = {}
    for seconds in (0, 1000):
        folder = tmp_path / str(seconds)
        service, transport = connected(folder, num_engines=1, snapshot_seconds=seconds)
        with service:
            client = service.create_lora_training_client("fake", seed=1)
            for _ in range(5):
                client.forward_backward(data(2), "cross_entropy")
                client.optim_step(AdamParams()).result()
            # what is saved after the last answer comes before this one's
            client.forward(data(2), "cross_entropy").result()
            snapshots = list((folder / "checkpoints").glob(".engines-*/*"))
            assert len(snapshots) == (1 if seconds == 0 else 0)
            before = len(transport.batches)
            transport.fate = losing("before", 0, {transport.calls[0] + 1})
            client.forward(data(2), "cross_entropy").result()
            kinds = [r.kind for _, requests in transport.batches[before:] for r in requests]
            repeated[seconds] = kinds.count("train")
    assert repeated == {0: 0, 1000: 10}


def test_a_client_that_nobody_holds_makes_room(tmp_path: Path) -> None:
    service, transport = connected(tmp_path)
    with service:
        first, second = (service.create_lora_training_client("fake", seed=s) for s in (1, 2))
        engines = [client._engine for client in (first, second)]
        del first
        gc.collect()
        third = service.create_lora_training_client("fake", seed=3)
        assert [*engines, third._engine] == [0, 1, 0]
        released = [r for _, requests in transport.batches for r in requests if r.kind == "release"]
        assert len(released) == 1


def test_who_asks_and_lets_go_is_answered(tmp_path: Path) -> None:
    """Also where something else is made before what was asked runs."""
    service, _ = connected(tmp_path, num_engines=1)
    with service:
        client = service.create_lora_training_client("fake", seed=5)
        sampler = client.save_weights_and_get_sampling_client().result()
        futures: list[Any] = [sampler.sample(ModelInput.from_ints([1]), 1, params(0))]
        futures.append(client.forward(data(1), "cross_entropy"))
        del client, sampler
        gc.collect()
        service.create_lora_training_client("fake", seed=5)
        assert [future.result() for future in futures] == [5 * 17 + 1, 5 * 31 + 1]


def test_an_adapter_that_cannot_be_brought_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_sampler: Any, folder: Path, **_: Any) -> str:
        raise OSError("no space left")

    monkeypatch.setattr("fake_engines.FakeSampler.save_into", full)
    service, _ = connected(tmp_path, spread_tokens=0)
    with service:
        client = service.create_lora_training_client("fake", seed=5)
        sampler = client.save_weights_and_get_sampling_client().result()
        asked = [sampler.sample(ModelInput.from_ints([1]), 1, params(0)) for _ in range(2)]
        assert asked[0].result() == 5 * 17 + 1
        with pytest.raises(RequestFailedError, match="engine 1 does not have what this asks"):
            asked[1].result()
        # what is on that engine goes on
        other = service.create_lora_training_client("fake", seed=6)
        assert other.forward(data(1), "cross_entropy").result() == 6 * 31 + 1
    assert "could not be brought to engine 1: no space left" in caplog.text


def test_samples_go_where_least_is_to_do(tmp_path: Path) -> None:
    """Few stay where the adapter is; many, and it is brought to the other engine."""
    prompt = ModelInput.from_ints([1, 2])
    service, transport = connected(tmp_path, spread_tokens=100)
    with service:
        sampler = service.create_lora_training_client("fake", seed=5)
        sampler = sampler.save_weights_and_get_sampling_client().result()
        few = [sampler.sample(prompt, 1, params(seed)) for seed in range(3)]
        assert [f.result() for f in few] == [5 * 17 + 2 + seed for seed in range(3)]
        assert asked(transport) == [0, 0, 0]
        many = [sampler.sample(prompt, 2, params(seed)) for seed in range(8)]
        assert [f.result() for f in many] == [5 * 17 + 4 + seed for seed in range(8)]
        assert sorted(asked(transport)[3:]) == [0, 0, 0, 0, 1, 1, 1, 1]
        [copy] = (tmp_path / "checkpoints").glob(".engines-*/*-copy")
        # and goes when nobody needs it
        del sampler, few, many
        gc.collect()
        held = [service.create_lora_training_client("fake", seed=5) for _ in range(2)]
        assert [client._engine for client in held] == [0, 1] and not copy.exists()


def asked(transport: FakeTransport) -> list[int]:
    return [
        engine
        for engine, requests in transport.batches
        for request in requests
        if request.method == "sample"
    ]


def test_what_waits_together_runs_together(tmp_path: Path) -> None:
    service, transport = connected(tmp_path)
    with service:
        clients = [service.create_lora_training_client("fake", seed=s) for s in range(4)]
        before = len(transport.batches)
        futures = [client.forward(data(1), "cross_entropy") for client in clients]
        futures[0].result()
        [f.result() for f in futures]
        batches = transport.batches[before:]
        assert sorted((engine, len(requests)) for engine, requests in batches) == [(0, 2), (1, 2)]


def test_nobody_has_to_wait_and_a_cancelled_request_does_not_run(tmp_path: Path) -> None:
    service, transport = connected(tmp_path, num_engines=1)
    with service:
        client = service.create_lora_training_client("fake", seed=1)
        cancelled = client.forward_backward(data(1), "cross_entropy")
        cancelled.cancel()
        future = client.forward_backward(data(1), "cross_entropy").future()
        assert future.result(timeout=60) == 32
        methods = [r.method for _, requests in transport.batches for r in requests]
        assert methods.count("forward_backward") == 1


def test_a_closed_service_says_so(tmp_path: Path) -> None:
    service, _ = connected(tmp_path)
    client = service.create_lora_training_client("fake", seed=1)
    waiting = client.forward(data(1), "cross_entropy")
    service.close()
    service.close()
    with pytest.raises(RuntimeError, match="closed before this request ran"):
        waiting.result()
    with pytest.raises(RuntimeError, match="the service was closed"):
        client.forward(data(1), "cross_entropy")
    with pytest.raises(RuntimeError, match="the service was closed"):
        service.create_lora_training_client("fake", seed=1)


def test_an_engine_that_does_not_see_the_checkpoints_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.backends.pool.pool.SECONDS_TO_BE_SEEN", 0.2)
    monkeypatch.setattr("fake_engines.FakeHost._probe", lambda *_: False)
    with pytest.raises(ValueError, match=r"checkpoint_dir=.* do not see each other's files"):
        connected(tmp_path)
    # it is looked for, and nothing is left
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_engines": 0}, "num_engines=0: a whole number from 1"),
        ({"snapshot_seconds": -1}, "snapshot_seconds=-1: a number from 0"),
        ({"spread_tokens": 1.5}, r"spread_tokens=1\.5: a whole number from 0"),
        ({"silence_seconds": 0}, "silence_seconds=0: a number above 0"),
        ({"max_rows": 0}, "max_rows=0: a whole number from 1"),
    ],
)
def test_wrong_options_are_told_before_an_engine_begins(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        connected(tmp_path, **options)
