"""What was freed goes back to the system."""

import platform
import re
from pathlib import Path

import pytest

from utils.heap import return_freed_memory

MIB = 2**20


def resident_mib() -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_freed_memory_goes_back_to_the_system() -> None:
    # too small for mappings of their own; every hundredth stays, so that the heap cannot shrink
    blocks = [bytearray(100_000) for _ in range(2000)]
    kept = blocks[::100]
    blocks.clear()
    before = resident_mib()
    return_freed_memory()
    assert before - resident_mib() > 100
    assert all(len(block) == 100_000 for block in kept)


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr("ctypes.CDLL", None)
    return_freed_memory()
