"""A tar that is written while it is sent.

uv run pytest tests/training/serving/test_wire_archive.py
"""

import io
import tarfile
from pathlib import Path

import pytest

from training.serving.wire import archive
from training.serving.wire.archive import COMPLETE, Archive


def test_an_archive_is_whole_though_its_files_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "_CHUNK", 700)
    contents = {f"{size}.bin": bytes(range(256)) * (size // 256) for size in (0, 512, 1280, 4096)}
    files = {name: tmp_path / name for name in contents}
    for name, path in files.items():
        path.write_bytes(contents[name])
    made = Archive(files)
    for path in files.values():
        path.unlink()
    data = b"".join(made)
    assert len(data) == made.num_bytes
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = {m.name: file.read() for m in tar if (file := tar.extractfile(m)) is not None}
    assert found == {**contents, COMPLETE: b""}


def test_a_file_that_is_missing_is_an_error_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a")
    with pytest.raises(FileNotFoundError):
        Archive({"a": tmp_path / "a", "b": tmp_path / "b"})
