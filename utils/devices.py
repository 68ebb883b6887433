"""Which device a run computes on, with which numbers, and how much memory it has left."""

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# of the base model's weights and products; adapters, head and losses are float32 always
Dtype = Literal["float32", "bfloat16", "auto"]
# of the setting, in every script that has it
DTYPE_DOC = "float32, bfloat16 or auto; default: float32 on a CPU, else bfloat16"

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def choose_device(device: str | None) -> str:
    """cuda where there is one, unless told: cpu, cuda or cuda:N. ValueError for what this machine
    does not have."""
    import torch

    available = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    if device is None:
        return available[-1]
    numbered = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if device not in (*available, *numbered):
        raise ValueError(
            f"device={device!r} is not available; allowed here: {', '.join(available)}"
        )
    return device


def choose_dtype(dtype: str | None, device_type: str) -> str:
    """float32 on a CPU and bfloat16 on a GPU, unless told; auto is bfloat16 wherever the device
    multiplies it faster than float32. ValueError for others."""
    if dtype is None:
        return "float32" if device_type == "cpu" else "bfloat16"
    if dtype not in get_args(Dtype):
        raise ValueError(f"dtype={dtype!r}: allowed are {', '.join(get_args(Dtype))}")
    if dtype == "auto":
        is_native = device_type != "cpu" or has_native_bfloat16()
        chosen = "bfloat16" if is_native else "float32"
        has = "has" if is_native else "has no"
        logger.info("dtype=auto: %s, since this %s %s bfloat16", chosen, device_type, has)
        return chosen
    return dtype


def warn_if_emulated(dtype: "torch.dtype", device_type: str) -> None:
    """Says how much slower bfloat16 is where the processor has none. Computes with torch, which
    belongs on the engine's worker."""
    if str(dtype) == "torch.bfloat16" and device_type == "cpu" and not has_native_bfloat16():
        logger.warning(
            "bfloat16: this processor has none of its own; a matrix product takes "
            "%.1f times as long as in float32",
            _bfloat16_slowdown(),
        )


def has_native_bfloat16() -> bool:
    """Whether this machine's processor multiplies bfloat16 (AVX-512 BF16, AMX)."""
    import torch

    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _bfloat16_slowdown() -> float:
    """Of a product of the size of a small model's, measured."""
    import torch

    seconds = []
    for dtype in (torch.float32, torch.bfloat16):
        x, weight = torch.ones(256, 512, dtype=dtype), torch.ones(512, 512, dtype=dtype)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            x @ weight
            times.append(time.perf_counter() - start)
        seconds.append(min(times))
    return seconds[1] / seconds[0]


def free_memory(device: "torch.device") -> int | None:
    """Bytes that this process may still take there; None where the system does not tell."""
    if device.type == "cuda":
        import torch

        free, _ = torch.cuda.mem_get_info(device)
        # torch keeps for itself what it has freed
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        fields = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    try:
        # a container's limit, which /proc does not know
        limit = int((_CGROUP / "memory.max").read_text())
        return min(free, limit - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):
        return free
