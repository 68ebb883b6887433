"""Checkpoints of the store: whole or none, theirs or nobody's, gone when their time is over."""

import datetime
import errno
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from training.api import LoraConfig
from training.serving.errors import ServingError
from training.serving.names import TinkerPath
from training.serving.storage.checkpoints import Begun
from training.serving.storage.rows import CheckpointRow
from training.serving.store import Store

NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)
SECOND = datetime.timedelta(seconds=1)
WEIGHTS = TinkerPath("s:train:0", "weights", "final")
SAMPLER = TinkerPath("s:train:0", "sampler_weights", "final")
LORA = LoraConfig(rank=4, seed=1, train_mlp=False)


class Clock:
    def __init__(self) -> None:
        self.time = NOON

    def __call__(self) -> datetime.datetime:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    store = Store(tmp_path / "store", now=clock)
    yield store
    store.close()


def begin(store: Store, path: TinkerPath = WEIGHTS, owner: str = "anne", **given: Any) -> Begun:
    return store.checkpoints.begin(
        owner, path, base_model="embedded", lora=LORA, has_optimizer=True, **given
    )


def write(folder: Path, text: str = "weights") -> Path:
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_text(text)
    (folder / "adapter_config.json").write_text("{}")
    return folder


def save(
    store: Store, path: TinkerPath = WEIGHTS, text: str = "weights", **given: Any
) -> CheckpointRow:
    begun = begin(store, path, **given)
    write(begun.folder, text)
    return store.checkpoints.commit(begun)


def folders(store: Store) -> set[str]:
    return {path.name for path in (store.folder / "checkpoints").iterdir()}


def text_of(row: CheckpointRow) -> str:
    return (row.folder / "adapter_model.safetensors").read_text()


# ------------------------------------------------------------------------------------------ saving


def test_a_checkpoint_is_there_when_it_is_committed(store: Store, clock: Clock) -> None:
    begun = begin(store, ttl_seconds=3600, user_metadata={"step": "10"})
    assert not begun.folder.exists() and begun.folder.parent == store.folder / "checkpoints"
    assert store.checkpoints.get("anne", WEIGHTS) is None
    write(begun.folder, "12345")
    assert store.checkpoints.list("anne").total == 0
    clock.time += SECOND
    row = store.checkpoints.commit(begun)
    assert row == store.checkpoints.get("anne", WEIGHTS)
    assert row == CheckpointRow(
        begun.uid,
        "anne",
        WEIGHTS,
        begun.folder,
        "embedded",
        LORA,
        True,
        7,
        {"step": "10"},
        NOON + SECOND,
        NOON + SECOND + datetime.timedelta(hours=1),
        False,
    )
    assert row.created_at.tzinfo is datetime.UTC
    assert sum(path.stat().st_size for path in row.folder.iterdir()) == row.size_bytes


def test_files_that_were_written_elsewhere_are_taken_in(store: Store) -> None:
    begun = begin(store)
    source = write(store.staging / "made", "elsewhere")
    row = store.checkpoints.commit(begun, source)
    assert text_of(row) == "elsewhere" and row.folder == begun.folder and not source.exists()


def test_no_text_of_a_request_is_in_a_path_on_disk(store: Store) -> None:
    row = save(store, TinkerPath("run", "weights", "x" * 255))
    assert len(row.folder.name) == 32 and set(row.folder.name) <= set("0123456789abcdef")


def test_an_existing_name_is_refused_at_the_start(store: Store) -> None:
    first = save(store)
    with pytest.raises(ServingError, match="path: tinker://s:train:0/weights/final exists") as it:
        begin(store)
    assert it.value.status == 400 and it.value.param == "path"
    # the same name is used for both kinds, by other runs, and by others' runs
    save(store, SAMPLER)
    save(store, TinkerPath("s:train:1", "weights", "final"))
    save(store, WEIGHTS, owner="ben")
    assert store.checkpoints.get("anne", WEIGHTS) == first
    assert folders(store) == {
        row.uid for owner in ("anne", "ben") for row in store.checkpoints.list(owner).rows
    }


def test_a_name_that_is_being_written_is_refused_until_it_is_given_up(store: Store) -> None:
    begun = begin(store)
    with pytest.raises(ServingError, match="is being written by another request") as it:
        begin(store)
    assert it.value.status == 400
    write(begun.folder)
    store.checkpoints.abort(begun)
    assert folders(store) == set() and store.checkpoints.get("anne", WEIGHTS) is None
    assert save(store).uid != begun.uid


def test_overwriting_replaces_in_one_step_with_another_uid(store: Store) -> None:
    first = save(store, text="old", ttl_seconds=9)
    begun = begin(store, overwrite=True)
    write(begun.folder, "new")
    assert store.checkpoints.get("anne", WEIGHTS) == first and text_of(first) == "old"
    second = store.checkpoints.commit(begun)
    assert store.checkpoints.get("anne", WEIGHTS) == second and text_of(second) == "new"
    assert second.uid != first.uid and second.expires_at is None
    assert folders(store) == {second.uid} and store.checkpoints.list("anne").total == 1


def test_the_last_of_several_that_overwrite_stays(store: Store) -> None:
    several = [begin(store, overwrite=True) for _ in range(3)]
    for at, begun in enumerate(several):
        write(begun.folder, str(at))
        store.checkpoints.commit(begun)
    row = store.checkpoints.get("anne", WEIGHTS)
    assert row is not None and text_of(row) == "2" and folders(store) == {row.uid}


def test_one_that_came_between_is_not_replaced_silently(store: Store) -> None:
    late = begin(store)
    save(store, text="between", overwrite=True)
    write(late.folder, "late")
    with pytest.raises(ServingError, match="exists"):
        store.checkpoints.commit(late)
    row = store.checkpoints.get("anne", WEIGHTS)
    assert row is not None and text_of(row) == "between" and folders(store) == {row.uid}


def test_of_many_threads_one_gets_the_name(store: Store) -> None:
    barrier = threading.Barrier(8)

    def attempt(at: int) -> bool:
        barrier.wait()
        try:
            save(store, text=str(at))
        except ServingError as error:
            assert error.status == 400
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(attempt, range(8))).count(True) == 1
    row = store.checkpoints.get("anne", WEIGHTS)
    assert row is not None and folders(store) == {row.uid}


@pytest.mark.parametrize("ttl", [0, -1, 10**9, 10**30])
def test_a_time_to_live_that_cannot_be(store: Store, ttl: int) -> None:
    row = save(store)
    for attempt in (
        lambda: begin(store, SAMPLER, ttl_seconds=ttl),
        lambda: store.checkpoints.set_ttl("anne", WEIGHTS, ttl),
    ):
        with pytest.raises(ServingError, match=f"ttl_seconds: got {ttl}, allowed is 1 to") as it:
            attempt()
        assert it.value.status == 400
    assert store.checkpoints.get("anne", WEIGHTS) == row


# -------------------------------------------------------------------------------- owners and lists


def test_anothers_checkpoints_do_not_exist(store: Store) -> None:
    row = save(store)
    checkpoints = store.checkpoints
    assert checkpoints.get("ben", WEIGHTS) is None
    assert checkpoints.latest("ben", "s:train:0", "weights") is None
    assert checkpoints.list("ben") == checkpoints.list("ben", "s:train:0")
    assert checkpoints.list("ben").total == 0 and checkpoints.list("ben").rows == []
    assert checkpoints.set_ttl("ben", WEIGHTS, 9) is None
    assert checkpoints.publish("ben", WEIGHTS, True) is None
    assert not checkpoints.delete("ben", WEIGHTS)
    assert checkpoints.get("anne", WEIGHTS) == row and row.folder.is_dir()


def test_lists_are_newest_first_of_a_run_or_of_all(store: Store, clock: Clock) -> None:
    for at, run in enumerate(["r", "q", "r", "q", "r"]):
        clock.time = NOON + at * SECOND
        save(store, TinkerPath(run, "weights", f"{at}"))
    # the same time: the last one is the newest
    save(store, TinkerPath("r", "sampler_weights", "5"))
    begin(store, TinkerPath("r", "weights", "unfinished"))

    def names(**which: Any) -> tuple[list[str], int]:
        listed = store.checkpoints.list("anne", **which)
        return [row.path.name for row in listed.rows], listed.total

    assert names() == (["5", "4", "3", "2", "1", "0"], 6)
    assert names(run_id="r") == (["5", "4", "2", "0"], 4)
    assert names(run_id="r", limit=2, offset=1) == (["4", "2"], 4)
    assert names(limit=0) == ([], 6)
    assert names(run_id="unknown") == ([], 0)
    assert names(kind="sampler_weights") == (["5"], 1)
    assert names(run_id="r", kind="weights", limit=1) == (["4"], 3)
    latest = store.checkpoints.latest("anne", "r", "weights")
    assert latest is not None and latest.path.name == "4"


def test_publishing_is_a_mark(store: Store) -> None:
    row = save(store)
    published = store.checkpoints.publish("anne", WEIGHTS, True)
    assert published is not None and published.public and published.uid == row.uid
    assert store.checkpoints.get("ben", WEIGHTS) is None
    assert store.checkpoints.publish("anne", WEIGHTS, False) == row
    assert store.checkpoints.publish("anne", SAMPLER, True) is None


# ----------------------------------------------------------------------------- deleting and expiry


def test_a_deleted_one_is_gone_with_its_files_and_its_run_stays(store: Store) -> None:
    save(store)
    kept = save(store, SAMPLER)
    assert store.checkpoints.delete("anne", WEIGHTS)
    assert not store.checkpoints.delete("anne", WEIGHTS)
    assert folders(store) == {kept.uid} and store.checkpoints.list("anne").rows == [kept]


def test_who_holds_one_keeps_its_files_until_he_lets_go(store: Store) -> None:
    row = save(store, text="held")
    first, second = store.checkpoints.hold(row), store.checkpoints.hold(row)
    assert store.checkpoints.delete("anne", WEIGHTS)
    assert store.checkpoints.get("anne", WEIGHTS) is None and text_of(row) == "held"
    newer = save(store, text="newer")
    third = store.checkpoints.hold(row)
    first()
    first()
    second()
    assert text_of(row) == "held"
    third()
    assert folders(store) == {newer.uid}
    with pytest.raises(ServingError) as it:
        store.checkpoints.hold(row)
    assert it.value.status == 404 and str(WEIGHTS) in it.value.message


def test_letting_go_of_one_that_is_not_deleted_removes_nothing(store: Store) -> None:
    row = save(store)
    store.checkpoints.hold(row)()
    assert text_of(row) == "weights" and store.checkpoints.get("anne", WEIGHTS) == row


def test_overwriting_one_that_is_held_keeps_its_files(store: Store) -> None:
    old = save(store, text="old")
    let_go = store.checkpoints.hold(old)
    new = save(store, text="new", overwrite=True)
    assert (text_of(old), text_of(new)) == ("old", "new")
    let_go()
    assert folders(store) == {new.uid}


def test_the_sweep_takes_what_expired_but_nothing_open(store: Store, clock: Clock) -> None:
    soon = save(store, TinkerPath("r", "weights", "soon"), ttl_seconds=60)
    held = save(store, TinkerPath("r", "weights", "held"), ttl_seconds=60)
    later = save(store, TinkerPath("r", "weights", "later"), ttl_seconds=61)
    save(store, TinkerPath("r", "weights", "never"))
    being_written = begin(store, TinkerPath("r", "weights", "written"), ttl_seconds=1)
    write(being_written.folder)
    let_go = store.checkpoints.hold(held)
    assert soon.expires_at == NOON + 60 * SECOND
    clock.time = NOON + 59 * SECOND
    assert store.checkpoints.remove_expired() == []
    clock.time = NOON + 60 * SECOND
    assert store.checkpoints.remove_expired() == [soon]
    assert not soon.folder.exists() and text_of(held) == "weights"
    assert store.checkpoints.get("anne", held.path) == held
    let_go()
    clock.time = NOON + 61 * SECOND
    assert store.checkpoints.remove_expired() == [held, later]
    # its time begins when it is there
    row = store.checkpoints.commit(being_written)
    assert row.expires_at == NOON + 62 * SECOND
    assert [row.path.name for row in store.checkpoints.list("anne").rows] == ["written", "never"]


def test_a_time_to_live_can_be_set_and_taken_away(store: Store, clock: Clock) -> None:
    save(store, ttl_seconds=60)
    clock.time = NOON + 30 * SECOND
    row = store.checkpoints.set_ttl("anne", WEIGHTS, 60)
    assert row is not None and row.expires_at == NOON + 90 * SECOND
    row = store.checkpoints.set_ttl("anne", WEIGHTS, None)
    assert row is not None and row.expires_at is None
    clock.time = NOON + 1000 * SECOND
    assert store.checkpoints.remove_expired() == []
    assert store.checkpoints.set_ttl("anne", SAMPLER, 60) is None


# ----------------------------------------------------------------------------------- disk and links


def test_downloads_are_plain_files_of_the_folder_alone(store: Store, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    row = save(store)
    (row.folder / "link").symlink_to(secret)
    (row.folder / "folder").mkdir()
    files = store.checkpoints.files(row)
    assert list(files) == ["adapter_config.json", "adapter_model.safetensors"]
    assert files["adapter_config.json"] == row.folder / "adapter_config.json"


@pytest.mark.parametrize("odd", ["link", "folder"])
def test_a_checkpoint_with_a_link_or_a_folder_is_refused(
    store: Store, tmp_path: Path, odd: str
) -> None:
    begun = begin(store)
    write(begun.folder)
    target = tmp_path / "outside"
    target.mkdir()
    (target / "kept").write_text("x")
    if odd == "link":
        (begun.folder / "link").symlink_to(target)
    else:
        (begun.folder / "folder").mkdir()
    with pytest.raises(ServingError, match=f"{odd}: a checkpoint has plain files only") as it:
        store.checkpoints.commit(begun)
    assert it.value.status == 500 and str(store.folder) not in it.value.message
    assert folders(store) == set() and (target / "kept").exists()


def test_what_is_no_folder_at_all_is_refused(store: Store, tmp_path: Path) -> None:
    outside = write(tmp_path / "outside")
    begun = begin(store)
    with pytest.raises(ServingError, match="No such file or directory"):
        store.checkpoints.commit(begun)
    begun = begin(store)
    begun.folder.symlink_to(outside)
    with pytest.raises(ServingError, match="a checkpoint is a folder"):
        store.checkpoints.commit(begun)
    assert folders(store) == set() and len(list(outside.iterdir())) == 2


def test_a_disk_that_fails_is_a_sentence_and_the_old_one_stays(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = save(store, text="old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    begun = begin(store, overwrite=True)
    write(begun.folder, "new")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ServingError, match="No space left on device") as it:
            store.checkpoints.commit(begun)
    assert it.value.status == 500 and it.value.category == "server"
    assert "earlier checkpoints are untouched" in it.value.message
    assert store.checkpoints.get("anne", WEIGHTS) == old and text_of(old) == "old"
    assert folders(store) == {old.uid}
    assert text_of(save(store, text="new", overwrite=True)) == "new"


def test_a_fault_names_the_path_below_the_store(store: Store) -> None:
    path = store.folder / "checkpoints" / "ab" / "adapter_model.safetensors"
    error = OSError(errno.EACCES, "Permission denied", str(path))
    message = store.disk_fault(error).message
    assert message.startswith("checkpoints/ab/adapter_model.safetensors: Permission denied; ")
    message = store.disk_fault(RuntimeError(f"Error while serializing: I/O error: {path}")).message
    assert message.startswith("Error while serializing: I/O error: checkpoints/ab/adapter_model")
