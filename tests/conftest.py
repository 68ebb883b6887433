"""Fixtures shared by the engine's tests; nothing heavy is imported before one is used."""

import importlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from utils.openmp import bound_spinning

pytest.register_assert_rewrite("vllm_contract")
# before a test's module imports torch; pytest-xdist's processes, as many as cores, get one each
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
bound_spinning()


def pytest_sessionstart() -> None:
    """In the background of a shell script Ctrl-C is ignored, by children too; tests press it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """tiny_model(family, seed=0) -> folder of a tiny random model, written once per session."""
    from tiny_models import save_tiny_model

    made: dict[tuple[str, int], str] = {}

    def make(family: str, seed: int = 0) -> str:
        if (family, seed) not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{seed}-")
            made[family, seed] = save_tiny_model(folder, family, seed)
        return made[family, seed]

    return make


@pytest.fixture
def load_benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """load_benchmark(name) -> the module; a benchmark imports its neighbours as a script does."""
    # at the end: names of the benchmarks must not hide anything else
    folder = str(Path(__file__).parent.parent / "benchmarks")
    monkeypatch.setattr("sys.path", [*sys.path, folder])
    return importlib.import_module


@pytest.fixture(scope="module")
def one_torch_thread() -> Iterator[None]:
    """For tiny models: more threads would wait for each other longer than they compute."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@contextmanager
def _services(checkpoint_dir: Path) -> Iterator[Callable[..., Any]]:
    from training.backends.local import notes
    from training.connect import connect

    made: list[Any] = []
    file = checkpoint_dir / notes.NOTES_FILE

    def make(**options: Any) -> Any:
        arguments: dict[str, Any] = {"device": "cpu", "checkpoint_dir": checkpoint_dir, **options}
        made.append(connect("local", **arguments))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        # what the tests load is not for the user's notes, nor are those for the tests
        patch.setattr(notes, "notes_file", lambda: file)
        yield make
        for service in made:
            service.close()


@pytest.fixture
def connect_local(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """connect_local(**options) -> a CPU service with its own checkpoint_dir, closed at the end."""
    with _services(tmp_path / "checkpoints") as make:
        yield make


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """One CPU service for a test file: each tiny model is loaded once."""
    with _services(tmp_path_factory.mktemp("checkpoints")) as make:
        yield make()


@pytest.fixture(scope="module")
def cuda_service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    with _services(tmp_path_factory.mktemp("checkpoints")) as make:
        yield make(device="cuda")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The library, which joins and starts clusters of this test alone; skips where it is absent."""
    from utils.ray_cluster import import_ray

    monkeypatch.setenv("AUTODIDACT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # it counts everybody's memory on the machine
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    monkeypatch.setenv("RAY_DEDUP_LOGS", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    try:
        found = import_ray()
    except ImportError:
        pytest.skip("needs the extra ray")
    yield found
    found.shutdown()
