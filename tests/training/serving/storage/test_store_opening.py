"""Opening a store: versions, what a restart settles, kills at any moment, disks that fail."""

import datetime
import json
import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import store_driver

from training.api import LoraConfig
from training.serving.errors import ServingError
from training.serving.names import TinkerPath
from training.serving.storage.checkpoints import Begun
from training.serving.storage.rows import CheckpointRow, Run, Session
from training.serving.store import Store

NOON = datetime.datetime(2026, 1, 1, 12, tzinfo=datetime.UTC)
PATH = TinkerPath("s:train:0", "weights", "a")


def begin(store: Store, path: TinkerPath = PATH) -> Begun:
    return store.checkpoints.begin(
        "anne", path, base_model="m", lora=LoraConfig(), has_optimizer=False
    )


def save(store: Store, path: TinkerPath = PATH) -> CheckpointRow:
    begun = begin(store, path)
    begun.folder.mkdir()
    (begun.folder / "w").write_text("x" * 1000)
    return store.checkpoints.commit(begun)


def refused(folder: Path | str) -> str:
    with pytest.raises(ValueError) as caught:
        Store(folder)
    message = str(caught.value)
    assert "\n" not in message and "Traceback" not in message
    return message


# ---------------------------------------------------------------------------------------- restart


def test_what_was_committed_is_there_after_a_restart(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.sessions.add(Session("s", "anne", created_at=NOON))
    run = store.runs.add(Run("s:train:0", "anne", "s", "m", LoraConfig(rank=2), created_at=NOON))
    row = save(store)
    store.checkpoints.set_ttl("anne", PATH, 1000)
    row = store.checkpoints.publish("anne", PATH, True)
    store.close()
    store = Store(tmp_path / "store")
    assert store.runs.list("anne").rows == [run]
    assert store.checkpoints.list("anne").rows == [row]
    assert store.sessions.get("anne", "s") == Session("s", "anne", created_at=NOON)
    store.close()


def test_a_restart_loses_open_requests_and_knows_it(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.futures.record("anne", "OptimStep", "m", 1, "d", "open")
    store.futures.record("anne", "OptimStep", "m", 2, "d", "ended")
    store.futures.end("ended")
    store.close()
    store = Store(tmp_path)
    states = {name: store.futures.get("anne", name) for name in ("open", "ended", "never")}
    assert {name: row and row.state for name, row in states.items()} == {
        "open": "lost",
        "ended": "ended",
        "never": None,
    }
    again, is_new = store.futures.record("anne", "OptimStep", "m", 1, "d", "again")
    assert not is_new and again.state == "lost"
    store.close()


def test_a_restart_removes_what_was_begun_and_nothing_else(tmp_path: Path) -> None:
    store = Store(tmp_path)
    kept = save(store)
    begun = begin(store, TinkerPath("r", "weights", "begun"))
    begun.folder.mkdir()
    (begun.folder / "w").write_text("x")
    # what the engine's writer has while it writes and while it replaces
    for name in (f".{begun.uid}.{'0' * 16}", f".{begun.uid}.{'0' * 16}.old"):
        (begun.folder.parent / name).mkdir()
    (store.staging / "half").mkdir()
    (store.staging / "half" / "w").write_text("x")
    (tmp_path / "checkpoints" / "notes.txt").write_text("mine")
    (tmp_path / "loopback.key").write_text("key")
    outside = tmp_path.parent / f"{tmp_path.name}-outside"
    outside.mkdir()
    (outside / "w").write_text("x")
    (tmp_path / "checkpoints" / ("f" * 32)).symlink_to(outside)
    (store.staging / "link").symlink_to(outside)
    store.close()
    store = Store(tmp_path)
    assert {p.name for p in (tmp_path / "checkpoints").iterdir()} == {kept.uid, "notes.txt"}
    assert list(store.staging.iterdir()) == [] and (outside / "w").exists()
    assert (tmp_path / "loopback.key").exists()
    assert store.checkpoints.list("anne").rows == [kept]
    save(store, TinkerPath("r", "weights", "begun"))
    store.close()


def test_a_restart_does_not_list_what_lost_its_files(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    row = save(store)
    store.close()
    shutil.rmtree(row.folder)
    store = Store(tmp_path)
    assert store.checkpoints.list("anne").total == 0
    assert f"{PATH}: its files are gone" in caplog.text
    store.close()


# ------------------------------------------------------------------------------------------- kills


def check_whole(folder: Path) -> dict[str, int]:
    """Every listed checkpoint has all of its files, of one save, and there is nothing else; which
    they are."""
    store = Store(folder)
    rows = store.checkpoints.list(store_driver.OWNER).rows
    for row in rows:
        files = store.checkpoints.files(row)
        expected = store_driver.content(int(row.user_metadata["n"]))
        assert [path.read_bytes() for path in files.values()] == [expected] * store_driver.NUM_FILES
        assert row.size_bytes == len(expected) * store_driver.NUM_FILES
    assert {p.name for p in (folder / "checkpoints").iterdir()} == {row.uid for row in rows}
    assert list(store.staging.iterdir()) == []
    there = store_driver.listed(store)
    store.close()
    return there


def test_a_kill_at_any_moment_leaves_whole_checkpoints_or_none(tmp_path: Path) -> None:
    chance = random.Random(0)
    num_changes = 0
    for _ in range(6):
        process = subprocess.Popen(
            # -P, or the folder tests/training would be the package
            [sys.executable, "-P", store_driver.__file__, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        told = [process.stdout.readline()]
        time.sleep(chance.uniform(0.0, 0.25))
        process.kill()
        told += process.stdout.read().splitlines()
        assert process.wait() < 0
        # the last change was made or not, and all before it were
        before, last = [json.loads(line) for line in ([told[0], *told])[-2:]]
        assert check_whole(tmp_path) in (before, last)
        num_changes += len(told) // 2
    assert num_changes > 6


# ---------------------------------------------------------------------------- what is not a store


def test_another_version_is_refused_in_one_sentence(tmp_path: Path) -> None:
    Store(tmp_path).close()
    connection = sqlite3.connect(tmp_path / "serving.sqlite")
    connection.execute("PRAGMA user_version=7")
    connection.close()
    message = refused(tmp_path)
    assert "a store of version 7, and this server has version 1; give another folder" in message
    # and it was not touched
    assert sqlite3.connect(tmp_path / "serving.sqlite").execute(
        "PRAGMA user_version"
    ).fetchone() == (7,)


def test_another_programs_file_is_refused(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "serving.sqlite")
    connection.execute("CREATE TABLE theirs (x)")
    connection.close()
    assert "another program's file, no store" in refused(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "serving.sqlite").write_bytes(b"not a database at all" * 100)
    assert "cannot be opened as a store: file is not a database" in refused(tmp_path / "b")


@pytest.mark.parametrize("name", ["checkpoints", "staging"])
def test_folders_of_something_else_are_not_cleaned(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / ("a" * 32)).write_text("mine")
    assert f"{name} in it is no folder of a store" in refused(tmp_path)
    assert (tmp_path / name / ("a" * 32)).read_text() == "mine"
    assert not (tmp_path / "serving.sqlite").exists()


def test_a_link_for_a_folder_of_the_store_is_refused(tmp_path: Path) -> None:
    Store(tmp_path / "store").close()
    (tmp_path / "mine").mkdir()
    (tmp_path / "store" / "staging").rmdir()
    (tmp_path / "store" / "staging").symlink_to(tmp_path / "mine")
    assert "staging in it is no folder of a store" in refused(tmp_path / "store")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    store = Store(tmp_path)
    assert f"another process (pid {os.getpid()} on" in refused(tmp_path)
    store.close()
    Store(tmp_path).close()


def test_a_store_that_was_refused_can_be_opened_later(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    refused(tmp_path)
    (tmp_path / "checkpoints").rmdir()
    Store(tmp_path).close()


# ---------------------------------------------------------------------------------- disks that fail


@contextmanager
def nobody() -> Iterator[Path]:
    """A folder in which this process may write only what the modes of its files allow."""
    folder = Path(tempfile.mkdtemp(prefix="store-"))
    is_root = hasattr(os, "geteuid") and os.geteuid() == 0
    try:
        if is_root:
            os.chown(folder, 65534, 65534)
            os.seteuid(65534)
        yield folder
    finally:
        if is_root:
            os.seteuid(0)
        for path in (folder, *folder.rglob("*")):
            if path.is_dir():
                path.chmod(stat.S_IRWXU)
        shutil.rmtree(folder)


@pytest.mark.skipif(os.name != "posix", reason="needs modes of files")
def test_a_folder_that_cannot_be_written_is_refused() -> None:
    with nobody() as folder:
        folder.chmod(0o500)
        assert "nothing can be written there (Permission denied: " in refused(folder)
        assert "nothing can be written there (Permission denied: " in refused(folder / "new")


def test_a_store_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "nothing can be written there (" in refused(tmp_path / "file")


@pytest.mark.skipif(os.name != "posix", reason="needs modes of files")
def test_a_database_that_cannot_be_written_is_refused() -> None:
    with nobody() as folder:
        Store(folder).close()
        (folder / "serving.sqlite").chmod(0o400)
        message = refused(folder)
        assert "cannot be opened as a store: attempt to write a readonly database" in message


@pytest.mark.skipif(os.name != "posix", reason="needs modes of files")
def test_checkpoints_that_cannot_be_written_are_a_sentence_and_the_old_ones_load() -> None:
    with nobody() as folder:
        store = Store(folder)
        old = save(store)
        (folder / "checkpoints").chmod(0o500)
        begun = begin(store, TinkerPath("r", "weights", "b"))
        made = store.staging / "made"
        made.mkdir()
        with pytest.raises(ServingError) as caught:
            store.checkpoints.commit(begun, made)
        assert caught.value.status == 500
        assert caught.value.message.startswith("staging/made: Permission denied; ")
        assert store.checkpoints.list("anne").rows == [old]
        assert list(store.checkpoints.files(old)) == ["w"]
        (folder / "checkpoints").chmod(0o700)
        save(store, TinkerPath("r", "weights", "b"))
        store.close()


def test_a_full_disk_is_a_sentence_and_the_store_goes_on(tmp_path: Path) -> None:
    """The limit on the size of files stands for the end of the disk."""
    resource = pytest.importorskip("resource")
    store = Store(tmp_path)
    store.runs.add(Run("first", "anne", "s", "m", LoraConfig()))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(ServingError) as caught:
            store.runs.add(Run("r", "anne", "s", "m", LoraConfig(), {"note": "x" * 200_000}))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.status == 500 and caught.value.category == "server"
    assert caught.value.message.startswith("serving.sqlite: ") and str(tmp_path) not in str(caught)
    assert [run.run_id for run in store.runs.list("anne").rows] == ["first"]
    store.runs.add(Run("r", "anne", "s", "m", LoraConfig()))
    store.close()
    store = Store(tmp_path)
    assert store.runs.list("anne").total == 2
    store.close()
