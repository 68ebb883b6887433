"""Fixtures shared by the engine's tests; nothing heavy is imported before one is used."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest


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
def connect_local(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """connect_local(**options) -> a CPU service with its own checkpoint_dir, closed at the end."""
    from training.api import connect

    services: list[Any] = []

    def make(**options: Any) -> Any:
        options = {"device": "cpu", "checkpoint_dir": tmp_path / "checkpoints", **options}
        services.append(connect("local", **options))
        return services[-1]

    yield make
    for service in services:
        service.close()


@pytest.fixture
def service(connect_local: Callable[..., Any]) -> Any:
    return connect_local()


@pytest.fixture
def cuda_service(connect_local: Callable[..., Any]) -> Any:
    import torch

    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return connect_local(device="cuda")
