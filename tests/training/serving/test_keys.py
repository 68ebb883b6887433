"""API keys: files of them, the one of this machine, and who owns what."""

import os
import stat
from pathlib import Path

import pytest

from training.serving.errors import ServingError
from training.serving.keys import LOOPBACK_FILE, Keys

ANNE, BEN = "tml-anne-0123456789abcdef", "tml-ben-0123456789abcdef"


def keys_of(tmp_path: Path, text: str | bytes) -> Keys:
    file = tmp_path / "keys.txt"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return Keys.from_file(file)


def test_each_key_has_its_owner(tmp_path: Path) -> None:
    keys = keys_of(tmp_path, f"# ours\n\nanne:{ANNE}\r\n  ben:{BEN}  \n")
    assert keys.owner(ANNE) == "anne" and keys.owner(BEN) == "ben"
    assert keys.shown is None


def test_a_key_alone_has_an_owner_that_stays_and_does_not_tell_it(tmp_path: Path) -> None:
    owner = keys_of(tmp_path, ANNE).owner(ANNE)
    assert owner == keys_of(tmp_path, f"{BEN}\n{ANNE}\n").owner(ANNE)
    assert owner.startswith("key-") and "anne" not in owner
    assert owner != keys_of(tmp_path, BEN).owner(BEN)


@pytest.mark.parametrize(
    "presented",
    [None, "", ANNE[:-1], ANNE + "x", ANNE.upper(), " " + ANNE, "anne", f"anne:{ANNE}", "\udcff"],
)
def test_a_wrong_key_is_a_401_that_repeats_nothing(tmp_path: Path, presented: str | None) -> None:
    with pytest.raises(ServingError) as caught:
        keys_of(tmp_path, f"anne:{ANNE}").owner(presented)
    assert (caught.value.status, caught.value.code) == (401, "invalid_api_key")
    assert not presented or presented not in caught.value.message


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no key in it"),
        ("# none\n", "no key in it"),
        (f"anne:{ANNE}\nben:tml-short\n", "line 2: the key has 9 characters, at least 16"),
        (f"anne:{ANNE}\nben:{ANNE}\n", "line 2: the same key stands above"),
        (f"anne:{ANNE}\nanne:{BEN}\n", "line 2: the same name stands above"),
        (f"an ne:{ANNE}\n", "line 1: a name before the colon"),
        (f":{ANNE}\n", "line 1: a name before the colon"),
        (f"anne:{ANNE} x\n", "line 1: a key has letters, digits and signs of ASCII"),
        (f"anne:ü{ANNE}\n", "line 1: a key has letters, digits and signs of ASCII"),
        ("anne:\n", "line 1: a key has letters"),
        (b"\xff\xfe", "it is no UTF-8 text"),
    ],
)
def test_a_wrong_file_is_one_sentence_without_a_key(
    tmp_path: Path, text: str | bytes, told: str
) -> None:
    with pytest.raises(ValueError) as caught:
        keys_of(tmp_path, text)
    message = str(caught.value)
    assert told in message and "api_keys_file=" in message
    assert ANNE not in message and BEN not in message and "tml-short" not in message


@pytest.mark.parametrize("name", ["missing.txt", "."])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be read: "):
        Keys.from_file(tmp_path / name)


def test_in_memory_there_are_hashes_only(tmp_path: Path) -> None:
    assert ANNE not in repr(vars(keys_of(tmp_path, f"anne:{ANNE}")))


def test_the_key_of_this_machine_stays_and_is_for_its_user_alone(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    keys = Keys.for_loopback(folder)
    assert keys.shown is not None and keys.shown.startswith("tml-") and len(keys.shown) == 36
    assert keys.owner(keys.shown) == "local"
    file = folder / LOOPBACK_FILE
    if os.name == "posix":
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert Keys.for_loopback(folder).shown == keys.shown
    assert Keys.for_loopback(tmp_path / "other").shown != keys.shown
    assert [path.name for path in folder.iterdir()] == [LOOPBACK_FILE]
    file.write_text("\n")
    with pytest.raises(ValueError, match=r"loopback.key: remove this file for a new key: "):
        Keys.for_loopback(folder)


def test_a_folder_that_cannot_hold_the_key(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="the key of this machine's users: Not a directory"):
        Keys.for_loopback(tmp_path / "file")
