"""What the benchmarks share: settings, timing side by side, peak memory, the table and the results.

torch and transformers are imported where they are used, so that --help is quick.
"""

import gc
import importlib.util
import logging
import multiprocessing
import os
import platform
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import chz
import numpy as np

from training.api import Datum, SampledSequence
from training.models import load_tokenizer, resolve_model
from training.rl.updates import Trajectory, policy_datum
from utils.config.entrypoint import to_plain
from utils.devices import Dtype, choose_dtype
from utils.heap import return_freed_memory
from utils.runs.files import append_jsonl
from utils.runs.progress import progress
from utils.runs.provenance import PACKAGES, package_versions, run_meta
from utils.runs.tables import text_table
from utils.terminal import print_anything

if TYPE_CHECKING:
    from training.backends.local.service import LocalServiceClient

logger = logging.getLogger(__name__)

T = TypeVar("T")
S = TypeVar("S", bound="Settings")

RESULTS = Path(__file__).parent / "results"
# Shapes of Llama 3.2 1B and of SmolLM2-360M
RANDOM_SHAPES: dict[str, dict[str, Any]] = {
    "random_1b": {
        "vocab_size": 128256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rope_theta": 500000.0,
        "bos_token_id": 128000,
        "eos_token_id": 128001,
    },
    "random_0.36b": {
        "vocab_size": 49152,
        "hidden_size": 960,
        "intermediate_size": 2560,
        "num_hidden_layers": 32,
        "num_attention_heads": 15,
        "num_key_value_heads": 5,
        "rope_theta": 100000.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
ALPHA = 32.0
MIB = 2**20
# of a row, what stands in the results alone
UNSHOWN = ("seconds", "arguments", "values")


@chz.chz(typecheck=True)
class Settings:
    """Fields that every benchmark has."""

    model: str = chz.field(
        default="embedded",
        doc="embedded, a folder, a hub id, or random weights of a shape: random_1b (Llama 3.2 1B), "
        "random_0.36b (SmolLM2-360M)",
    )
    device: str | None = chz.field(
        default=None, doc="cpu or cuda; default: cuda where there is one"
    )
    threads: int | None = chz.field(default=None, doc="torch threads; default: 2 on CPU")
    repeats: int = chz.field(default=5, doc="timed rounds; tables show their median")
    warmup: int = chz.field(default=1, doc="rounds before the timed ones")
    quick: bool = chz.field(default=False, doc="tiny sizes, only to see that everything runs")
    results_dir: Path | None = chz.field(
        default=None,
        doc="folder of the .jsonl; default: benchmarks/results, and with quick=true none",
    )

    @chz.validate
    def _device(self) -> None:
        if self.device not in (None, "cpu", "cuda"):
            raise ValueError(f"device={self.device!r}: allowed are cpu and cuda")

    @chz.validate
    def _counts(self) -> None:
        if self.repeats < 1 or self.warmup < 1:
            raise ValueError(
                f"repeats={self.repeats}, warmup={self.warmup}: at least 1 is needed; the first "
                "round packs weights and fills caches"
            )


@chz.chz(typecheck=True)
class DtypeSettings(Settings):
    """Of benchmarks whose contenders all compute in one dtype that can be chosen."""

    dtype: Dtype | None = chz.field(
        default=None, doc="of all contenders; default: float32 on a CPU, else bfloat16"
    )


def prepare(config: S, quick: Mapping[str, Any]) -> S:
    """Fills in the device's defaults and, with quick=true, the sizes in `quick`."""
    import torch

    print_anything()
    device = config.device or ("cuda" if torch.cuda.is_available() else "cpu")
    threads = config.threads or (2 if device == "cpu" else torch.get_num_threads())
    sizes = {"repeats": 1, **quick} if config.quick else {}
    if isinstance(config, DtypeSettings):
        sizes["dtype"] = choose_dtype(config.dtype, device)
    config = chz.replace(config, device=device, threads=threads, **sizes)
    torch.set_num_threads(threads)
    return config


# ------------------------------------------------------------------------------------------ timing


def race(
    contenders: Mapping[str, Callable[[int], object]], config: Settings, desc: str
) -> dict[str, list[float]]:
    """Seconds per round of each contender, run in turn (A B A B), so that a machine that slows
    down slows all of them. A contender is called with the number of the round; the first
    `warmup` rounds are not timed."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    with progress(config.warmup + config.repeats, desc, "round") as bar:
        for number in range(config.warmup + config.repeats):
            for name, run in contenders.items():
                synchronize(config.device)
                started = time.perf_counter()
                run(number)
                synchronize(config.device)
                if number >= config.warmup:
                    seconds[name].append(time.perf_counter() - started)
            bar.update(1)
    return seconds


def synchronize(device: str | None) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


# ------------------------------------------------------------------------------------------ memory


class PeakMemory:
    """The most memory held between reset() and mib(): resident memory of this process on CPU,
    allocated memory on CUDA.

    Where the kernel does not reset its mark (only Linux does), mib() is the most since the start.
    """

    def __init__(self, device: str | None) -> None:
        self._device = device

    def reset(self) -> None:
        gc.collect()
        if self._device == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats()
        elif sys.platform == "linux":
            # what earlier work freed must go back to the system, or it hides what comes now
            return_freed_memory()
            try:
                Path("/proc/self/clear_refs").write_text("5")
            except OSError as error:
                logger.warning("peak memory counts from the process's start: %s", error)

    def mib(self) -> float:
        if self._device == "cuda":
            import torch

            return torch.cuda.max_memory_allocated() / MIB
        if sys.platform == "linux":
            return _status_kib("VmHWM") / 1024
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / MIB if sys.platform == "darwin" else peak / 1024

    def now_mib(self) -> float:
        """What is held at this moment; call reset() first."""
        if self._device == "cuda":
            import torch

            return torch.cuda.memory_allocated() / MIB
        return _status_kib("VmRSS") / 1024 if sys.platform == "linux" else self.mib()


def _status_kib(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {key}")


def in_own_process(function: Callable[..., T], *arguments: Any) -> T:
    """The result of function(*arguments) in a fresh process, whose memory holds nothing else."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(max_workers=1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def unless_quick(config: Settings) -> Callable[..., Any]:
    """in_own_process, or a plain call with quick=true, where memory is of no interest."""
    return (lambda function, *given: function(*given)) if config.quick else in_own_process


# ------------------------------------------------------------------------------------------ models


@contextmanager
def base_model(config: Settings) -> Iterator[str]:
    """The model's name as the API takes it; random ones are written to a temporary folder."""
    if config.model not in RANDOM_SHAPES:
        yield config.model
        return
    with tempfile.TemporaryDirectory(prefix=f"{config.model}-") as folder:
        _save_random(folder, config.device, dict(RANDOM_SHAPES[config.model]))
        yield folder


def _save_random(folder: str, device: str | None, shape: dict[str, Any]) -> None:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    rope = {"rope_type": "default", "rope_theta": shape.pop("rope_theta")}
    config = LlamaConfig(
        head_dim=64,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        rope_parameters=rope,
        pad_token_id=shape["eos_token_id"],
        **shape,
    )
    torch.manual_seed(0)
    with torch.device(device or "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)


@contextmanager
def local_service(config: Settings, **options: Any) -> "Iterator[LocalServiceClient]":
    from training.backends.local.service import LocalServiceClient

    with (
        tempfile.TemporaryDirectory(prefix="benchmark-") as folder,
        LocalServiceClient(checkpoint_dir=folder, device=config.device, **options) as service,
    ):
        yield service


def on_worker(service: "LocalServiceClient", name: str, call: Callable[[], T]) -> T:
    """Runs a rival where the engine runs. A second thread that computes would get a pool of OpenMP
    threads of its own, and with more of those than cores libgomp slows both sides down."""
    engine = service.engine(name)
    return engine.submit_call(engine.new_queue(), call).result()


def load_hf(name: str, device: str | None, dtype: str | None = None) -> Any:
    """The same model as the engine has, as a user of transformers would load it for speed. `dtype`:
    the device's own, unless told."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(
        resolve_model(name),
        dtype=getattr(torch, choose_dtype(dtype, device or "cpu")),
        attn_implementation="sdpa",
    )
    return model.requires_grad_(False).eval().to(device)


def load_peft(name: str, adapter_folder: str, device: str | None, dtype: str | None = None) -> Any:
    """A trainable PEFT model with the adapter of `adapter_folder`; nothing drops out."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(
        load_hf(name, device, dtype), adapter_folder, is_trainable=True
    )
    return model.eval()


def random_tokens(rng: np.random.Generator, length: int, vocab_size: int) -> list[int]:
    """Leaves out the first ids, which are often special."""
    return rng.integers(min(16, vocab_size // 2), vocab_size, length).tolist()


def half_right(prompt: list[int], sequences: Sequence[SampledSequence]) -> list[Datum]:
    """What a policy loss learns of answers to the prompt if every second one were right."""
    trajectories = [Trajectory.of(prompt, sequence) for sequence in sequences]
    return [
        policy_datum(t, np.full(len(t.tokens_T), 1.0 if place % 2 else -1.0))
        for place, t in enumerate(trajectories)
    ]


def importable(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def why_no_trl(name: str, wanted: bool, config: Settings) -> str | None:
    """Why there is no row of TRL; None where there is one."""
    if not wanted:
        return "trl=false"
    if not importable("trl"):
        return "it is not installed (uv run --with 'trl>=1.16' ...)"
    try:
        load_tokenizer(name)
    except ValueError:
        return f"it needs a tokenizer, which {config.model} has not"
    return None


def flat_gradient(client: Any) -> np.ndarray:
    """The accumulated gradient of a local training client, all layers in one vector; numpy's, for
    the reason in `on_worker`."""
    return client._adapter.grad.cpu().numpy().copy()


def randomise_adapters(clients: Sequence[Any], seed: int) -> None:
    """Gives local training clients of one configuration the same A and the same small B, so that
    no part of the gradient is zero."""
    import torch

    first = clients[0]._adapter.layers
    generator = torch.Generator().manual_seed(seed)
    for path, low_rank in first.items():
        noise = torch.randn(low_rank.b.shape, generator=generator)
        low_rank.b.copy_(0.01 * noise)
        # layer by layer, each too small for a second thread: see `on_worker`
        for client in clients[1:]:
            client._adapter.layers[path].a.copy_(low_rank.a)
            client._adapter.layers[path].b.copy_(low_rank.b)


# ----------------------------------------------------------------------------------------- results


class Report:
    """Rows of the table, which are also the lines of results/<name>.jsonl.

    In every row with seconds, `ratio` says how many times as long as the row `against` it takes,
    `per round` the range of that over the rounds.
    """

    def __init__(self, name: str, config: Settings) -> None:
        self._name = name
        self._config = config
        self._rows: list[dict[str, Any]] = []
        self._notes: list[str] = []

    def add(
        self,
        case: str,
        contender: str,
        *,
        seconds: Sequence[float] = (),
        tokens: float | None = None,
        against: Sequence[float] = (),
        goal: float | None = None,
        at_most: float | None = None,
        **values: Any,
    ) -> None:
        """`tokens` are those of one round; `against` the seconds of the contender that the goal is
        about, a ratio of at least `goal` or of `at_most`; `values` are further columns."""
        row: dict[str, Any] = {"case": case, "contender": contender}
        if seconds:
            median = statistics.median(seconds)
            row |= {"median s": median, "tokens/s": None if tokens is None else tokens / median}
            row["seconds"] = list(seconds)
        if seconds and against:
            rounds = [a / b for a, b in zip(seconds, against, strict=True)]
            row["ratio"] = round(statistics.median(seconds) / statistics.median(against), 3)
            row["per round"] = f"{min(rounds):.2f}-{max(rounds):.2f}"
            row["goal"] = None if goal is None else f">= {goal:g}"
            if at_most is not None:
                row["goal"] = f"<= {at_most:g}"
        self._rows.append({**row, **values})

    def note(self, text: str) -> None:
        """A line under the table, for what was skipped or checked."""
        self._notes.append(text)

    def finish(self) -> None:
        """Prints the table and appends the rows to the results."""
        keys = dict.fromkeys(key for row in self._rows for key in row)
        columns = [key for key in keys if key not in UNSHOWN]
        rows = [[row.get(column) for column in columns] for row in self._rows]
        print(f"\n{self._name}: {self._config.model} on {machine(self._config)['device']}")
        print(text_table(columns, rows, max_width=70))
        for note in self._notes:
            print(note)
        folder = self._config.results_dir or (None if self._config.quick else RESULTS)
        if folder is None:
            return
        path = folder / f"{self._name}.jsonl"
        shared = {
            "settings": to_plain(chz.asdict(self._config)),
            "notes": self._notes,
            "machine": machine(self._config),
            "run": run_meta(),
        }
        for row in self._rows:
            append_jsonl(path, {"benchmark": self._name, **row, **shared})
        logger.info("%d rows appended to %s", len(self._rows), path)


def machine(config: Settings) -> dict[str, Any]:
    import torch

    info: dict[str, Any] = {
        "device": _cpu_name(),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "packages": package_versions((*PACKAGES, "trl", "accelerate")),
    }
    if config.device == "cuda":
        info |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return info


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
