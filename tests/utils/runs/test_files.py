"""Atomic files and JSON lines."""

import os
from pathlib import Path

import pytest

from utils.runs.files import (
    append_jsonl,
    atomic_write_bytes,
    atomic_write_text,
    read_jsonl,
    shown_path,
)


def test_write_makes_folders_and_keeps_bytes(tmp_path: Path):
    path = tmp_path / "a" / "b.txt"
    atomic_write_text(path, "é\r\n")
    assert path.read_bytes() == "é\r\n".encode()
    atomic_write_bytes(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert os.listdir(path.parent) == ["b.txt"]


def test_a_crash_before_the_rename_leaves_the_old_file(tmp_path: Path, monkeypatch):
    path = tmp_path / "x"
    atomic_write_text(path, "old")

    def crash(source: Path, target: Path) -> None:
        assert source.read_text() == "new" and source.parent == tmp_path
        raise OSError("power cut")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="power cut"):
        atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch):
    path = tmp_path / "x"
    atomic_write_text(path, "old")
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        atomic_write_text(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x"]


def test_an_existing_mode_is_kept(tmp_path: Path):
    path = tmp_path / "x"
    path.write_text("old")
    path.chmod(0o640)
    atomic_write_text(path, "new")
    assert path.stat().st_mode & 0o777 == 0o640


def test_jsonl_round_trip(tmp_path: Path):
    path = tmp_path / "a" / "x.jsonl"
    records = [{"a": 1}, {"text": "é\n\u2028漢", "none": None}]
    for record in records:
        append_jsonl(path, record, fsync=True)
    assert read_jsonl(path) == records
    assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("torn", ['{"a": 2, "b', '{"text": "é', "\x00\x00"])
def test_a_torn_last_line_is_dropped_with_a_warning(tmp_path: Path, caplog, torn: str):
    path = tmp_path / "x.jsonl"
    append_jsonl(path, {"a": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + torn.encode()[: -1 if "é" in torn else None])
    assert read_jsonl(path) == [{"a": 1}]
    assert f"{path}, line 2: dropped" in caplog.text
    append_jsonl(path, {"a": 3})
    assert read_jsonl(path) == [{"a": 1}, {"a": 3}]


def test_a_whole_line_without_its_newline_is_kept(tmp_path: Path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"a": 1}')
    assert read_jsonl(path) == [{"a": 1}]
    append_jsonl(path, {"a": 2})
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}]


@pytest.mark.parametrize("text", ['{"a": 1}\n{"a"\n{"a": 3}\n', '{"a": 1}\n{"a"\n', "{}\n[1]\n"])
def test_any_other_broken_line_is_named(tmp_path: Path, text: str):
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"x\.jsonl, line 2"):
        read_jsonl(path)


def test_paths_are_shown_as_one_would_type_them(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shown_path(tmp_path / "runs" / "a") == str(Path("runs") / "a")
    assert shown_path(Path("runs") / "a") == str(Path("runs") / "a")
    assert shown_path(tmp_path.parent) == str(tmp_path.parent)
    assert shown_path("tinker://a/weights/1") == "tinker://a/weights/1"
