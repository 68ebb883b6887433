"""Files as one tar archive, written while it is sent."""

import contextlib
import os
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

# by it the SDK's command line knows that an archive is whole
COMPLETE = "checkpoint_complete"
_CHUNK = 1 << 20


class Archive:
    """The files are open from the start, so that deleting them does not cut the archive. Raises
    OSError."""

    def __init__(self, files: Mapping[str, Path]) -> None:
        with contextlib.ExitStack() as opened:
            self._files: list[tuple[str, int, BinaryIO]] = []
            for name, path in files.items():
                file = opened.enter_context(open(path, "rb"))
                self._files.append((name, os.fstat(file.fileno()).st_size, file))
            self._opened = opened.pop_all()

    @property
    def num_bytes(self) -> int:
        sizes = [0, *(size for _, size, _ in self._files)]
        return sum(tarfile.BLOCKSIZE + size + _padding(size) for size in sizes) + len(_END)

    def __iter__(self) -> Iterator[bytes]:
        with self._opened:
            for name, size, file in self._files:
                yield _head(name, size)
                while data := file.read(_CHUNK):
                    yield data
                yield bytes(_padding(size))
            yield _head(COMPLETE, 0) + _END


_END = bytes(2 * tarfile.BLOCKSIZE)


def _head(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


def _padding(size: int) -> int:
    return -size % tarfile.BLOCKSIZE
