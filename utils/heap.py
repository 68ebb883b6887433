"""Memory that was freed and that the C library keeps for later."""

import ctypes
import platform


def return_freed_memory() -> None:
    """To the system, where the C library is glibc, which keeps much of it; elsewhere nothing
    happens. Does not hold the GIL."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL("libc.so.6").malloc_trim(0)
