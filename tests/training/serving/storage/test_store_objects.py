"""Sessions, runs, samplers and futures of the store: owners, times, lists, repeats."""

import datetime
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from training.api import LoraConfig
from training.serving.errors import ServingError
from training.serving.storage.rows import Run, Sampler, Session
from training.serving.store import Store

NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)
SECOND = datetime.timedelta(seconds=1)
NINE = datetime.timezone(datetime.timedelta(hours=9))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "store")
    yield store
    store.close()


def run_of(run_id: str, owner: str = "anne", created_at: datetime.datetime = NOON) -> Run:
    return Run(run_id, owner, "s", "embedded", LoraConfig(rank=8), created_at=created_at)


# ------------------------------------------------------------------------------- what comes back


def test_a_session_comes_back_as_it_was(store: Store) -> None:
    given = Session(
        "s-1",
        "anne",
        ("a", "b"),
        {"ü": "\u2028"},
        "0.38.0",
        "project",
        "name",
        NOON.astimezone(NINE),
    )
    store.sessions.add(given)
    got = store.sessions.get("anne", "s-1")
    assert got is not None and got == given
    assert got.created_at.utcoffset() == datetime.timedelta(0)
    assert got.finished_at is None and got.finish_reason is None


def test_a_run_and_a_sampler_come_back_as_they_were(store: Store) -> None:
    lora = LoraConfig(rank=3, seed=7, train_unembed=False, train_attn=False, alpha=16.0)
    run = Run("s:train:0", "anne", "s", "m", lora, {"k": "v"}, "adam", NOON, NOON + SECOND)
    assert store.runs.add(run) == run == store.runs.get("anne", "s:train:0")
    sampler = Sampler("s:sample:0", "anne", "s", "m", "tinker://s:train:0/sampler_weights/a", NOON)
    assert store.samplers.add(sampler) == sampler == store.samplers.get("anne", "s:sample:0")
    base = Sampler("s:sample:1", "anne", "s", "m")
    assert store.samplers.add(base).model_path is None
    assert store.samplers.of_session("anne", "s") == [sampler, base]


def test_times_default_to_now_in_utc(store: Store) -> None:
    before = datetime.datetime.now(datetime.UTC)
    store.runs.add(Run("r", "anne", "s", "m", LoraConfig()))
    got = store.runs.get("anne", "r")
    assert got is not None and got.created_at.tzinfo is datetime.UTC
    assert before <= got.created_at <= got.last_request_at <= datetime.datetime.now(datetime.UTC)


def test_text_that_no_encoding_has_is_kept_or_not_found(store: Store) -> None:
    half = "\ud800"
    store.sessions.add(Session("s", "anne", [half], {half: half}, display_name=half))
    got = store.sessions.get("anne", "s")
    assert got is not None and got.tags == (half,) and got.user_metadata == {half: half}
    for odd in (half, "", "\0", "s\0", "S", "%", "x" * 10_000, "' OR 1=1 --"):
        assert store.sessions.get("anne", odd) is None
        assert store.runs.get("anne", odd) is None
        assert store.samplers.get("anne", odd) is None
        assert store.futures.get("anne", odd) is None


# ----------------------------------------------------------------------------------------- owners


def test_another_owners_objects_do_not_exist(store: Store) -> None:
    store.sessions.add(Session("s", "anne"))
    store.runs.add(run_of("s:train:0"))
    store.samplers.add(Sampler("s:sample:0", "anne", "s", "m"))
    store.futures.record("anne", "OptimStep", "s:train:0", 1, "d", "q")
    assert store.sessions.get("ben", "s") is None
    assert store.runs.get("ben", "s:train:0") is None
    assert store.samplers.get("ben", "s:sample:0") is None
    assert store.futures.get("ben", "q") is None
    assert store.runs.of_session("ben", "s") == [] == store.samplers.of_session("ben", "s")
    assert store.sessions.list("ben").total == 0 == store.runs.list("ben").total
    assert not store.sessions.finish("ben", "s", "success")
    found = store.sessions.get("anne", "s")
    assert found is not None and found.finished_at is None
    assert store.runs.get("anne", "s:train:0") is not None


# ----------------------------------------------------------------------------------------- repeats


def test_a_session_is_finished_once(store: Store) -> None:
    store.sessions.add(Session("s", "anne"))
    assert store.sessions.finish("anne", "s", "errored")
    assert not store.sessions.finish("anne", "s", "success")
    assert not store.sessions.finish("anne", "unknown", "success")
    got = store.sessions.get("anne", "s")
    assert got is not None and got.finish_reason == "errored" and got.finished_at is not None


def test_a_run_that_is_added_again_stays_as_it_was(store: Store) -> None:
    first = store.runs.add(run_of("r", created_at=NOON))
    again = store.runs.add(run_of("r", created_at=NOON + SECOND))
    assert again == first and store.runs.list("anne").total == 1


def test_touching_a_run_moves_its_last_request_alone(store: Store) -> None:
    run = Run("r", "anne", "s", "m", LoraConfig(), created_at=NOON, last_request_at=NOON)
    store.runs.add(run)
    store.runs.touch("r")
    got = store.runs.get("anne", "r")
    assert got is not None and got.created_at == NOON and got.last_request_at > NOON


def test_the_same_number_is_the_same_request(store: Store) -> None:
    record = store.futures.record
    first, is_new = record("anne", "OptimStep", "m", 4, "digest", "request-1")
    assert is_new and (first.request_id, first.state, first.seq_id) == ("request-1", "open", 4)
    again, is_new = record("anne", "OptimStep", "m", 4, "digest", "request-2")
    assert not is_new and again == first
    assert store.futures.get("anne", "request-2") is None
    for owner, scope, seq_id in (("anne", "m", 5), ("anne", "n", 4), ("ben", "m", 4)):
        row, is_new = record(owner, "OptimStep", scope, seq_id, "digest", f"{owner}{scope}{seq_id}")
        assert is_new and row.owner == owner
    with pytest.raises(
        ServingError, match="seq_id: 4 of m was used by a request of other content, OptimStep"
    ) as caught:
        record("anne", "ForwardBackward", "m", 4, "other", "request-3")
    assert caught.value.status == 400 and caught.value.param == "seq_id"
    store.futures.end("request-1")
    again, is_new = record("anne", "OptimStep", "m", 4, "digest", "request-4")
    assert not is_new and again.state == "ended" and again.request_id == "request-1"


def test_without_a_number_every_request_is_new(store: Store) -> None:
    ids = [store.futures.record("anne", "F", "m", None, "d", f"q{i}")[0].request_id for i in (1, 2)]
    assert ids == ["q1", "q2"]


@pytest.mark.parametrize("seq_id", [-1, 2**63, 10**400])
def test_a_number_that_cannot_be_one(store: Store, seq_id: int) -> None:
    with pytest.raises(ServingError, match="seq_id: got") as caught:
        store.futures.record("anne", "Sample", "m", seq_id, "d", "q")
    assert caught.value.status == 400
    row, is_new = store.futures.record("anne", "Sample", "m", 2**63 - 1, "d", "q")
    assert is_new and row.seq_id == 2**63 - 1


def test_requests_that_arrive_together_are_carried_out_once(store: Store) -> None:
    barrier = threading.Barrier(8)

    def ask(at: int) -> list[tuple[str, bool]]:
        barrier.wait()
        asked = [store.futures.record("anne", "F", "m", n, "d", f"{at}-{n}") for n in range(30)]
        return [(row.request_id, is_new) for row, is_new in asked]

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    for same in zip(*answers, strict=True):
        assert len({request_id for request_id, _ in same}) == 1
        assert [is_new for _, is_new in same].count(True) == 1


def test_a_run_made_by_many_threads_is_one(store: Store) -> None:
    barrier = threading.Barrier(8)

    def make(at: int) -> Run:
        barrier.wait()
        return store.runs.add(run_of("r", created_at=NOON + at * SECOND))

    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(make, range(8)))
    assert all(run == made[0] for run in made)
    assert store.runs.list("anne").total == 1


def test_old_requests_are_forgotten_but_not_open_ones(store: Store) -> None:
    for name in ("a", "b"):
        store.futures.record("anne", "F", "m", None, "d", name)
    store.futures.end("a")
    assert store.futures.forget(NOON) == 0
    assert store.futures.forget(datetime.datetime.now(datetime.UTC) + SECOND) == 1
    assert store.futures.get("anne", "a") is None and store.futures.get("anne", "b") is not None


# ------------------------------------------------------------------------------------------- lists


def test_lists_are_newest_first_in_pages_with_the_whole_number(store: Store) -> None:
    for at in (2, 0, 3, 1):
        store.runs.add(run_of(f"r{at}", created_at=NOON + at * SECOND))
        store.sessions.add(Session(f"s{at}", "anne", created_at=NOON + at * SECOND))
    store.runs.add(run_of("other", owner="ben"))
    # the same time: the one that was added last is the newest
    store.runs.add(run_of("r3b", created_at=NOON + 3 * SECOND))
    page = store.runs.list("anne", limit=2, offset=1)
    assert [run.run_id for run in page.rows] == ["r3", "r2"] and page.total == 5
    assert [run.run_id for run in store.runs.list("anne").rows] == ["r3b", "r3", "r2", "r1", "r0"]
    assert store.runs.list("anne", 0).rows == [] and store.runs.list("anne", 0).total == 5
    assert store.runs.list("anne", 10, 5).rows == []
    sessions = store.sessions.list("anne", 3)
    assert [s.session_id for s in sessions.rows] == ["s3", "s2", "s1"] and sessions.total == 4
    assert [r.run_id for r in store.runs.of_session("anne", "s")] == ["r0", "r1", "r2", "r3", "r3b"]


@pytest.mark.parametrize(("limit", "offset"), [(-1, 0), (1, -1), (2**63, 0), (1, 10**30)])
def test_a_page_that_cannot_be(store: Store, limit: int, offset: int) -> None:
    for things in (store.runs, store.sessions, store.checkpoints):
        with pytest.raises(ServingError, match="allowed is a number from 0") as caught:
            things.list("anne", limit=limit, offset=offset)
        assert caught.value.status == 400 and caught.value.param in ("limit", "offset")
