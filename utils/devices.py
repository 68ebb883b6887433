"""Which device a run computes on, and how much memory it has left."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

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
