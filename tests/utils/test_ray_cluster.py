"""What is told about Ray before it is there.

uv run pytest tests/utils/test_ray_cluster.py
"""

import logging
import os
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from utils.ray_cluster import TOKEN_LOGGER, address_of, import_ray, join, leave, listed


class FakeRay:
    def __init__(self) -> None:
        self.calls: list[Any] = []
        self.joined = False

    def is_initialized(self) -> bool:
        return self.joined

    def init(self, **options: Any) -> None:
        self.calls.append(options)
        self.joined = True

    def shutdown(self) -> None:
        self.calls.append("shutdown")
        self.joined = False


def test_without_ray_the_command_that_installs_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"^Ray is needed, .*: uv sync --extra ray$"):
        import_ray()


def test_ray_does_not_rebuild_environments_unless_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")
    monkeypatch.delenv("RAY_ENABLE_UV_RUN_RUNTIME_ENV", raising=False)
    import_ray()
    assert os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"


def test_of_rays_tokens_only_their_absence_is_news(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace())
    import_ray()
    for state in ("enabled", "disabled"):
        text = f"Token authentication is {state} for this Ray cluster. Set RAY_AUTH_MODE"
        logging.getLogger(TOKEN_LOGGER).warning(text)
    assert [record.getMessage()[:35] for record in caplog.records] == [
        "Token authentication is disabled fo"
    ]


def test_a_cluster_of_its_own_ends_with_its_last_user(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ray = FakeRay()
    join(ray, None, 3)
    join(ray, None, 5)
    [options] = ray.calls
    assert options["address"] == "local" and options["num_cpus"] == 3
    assert options["include_dashboard"] is False
    leave(ray)
    assert ray.joined
    leave(ray)
    assert not ray.joined
    # one that somebody else joined is left as it is
    ray.joined = True
    join(ray, None, 1)
    leave(ray)
    assert ray.joined and len(ray.calls) == 2


def test_an_address_that_does_not_answer_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    assert address_of(None) == "127.0.0.1:9" and address_of("auto") == "auto"
    ray = FakeRay()
    with pytest.raises(ValueError, match=r"^address='127.0.0.1:9': no Ray cluster answers there"):
        join(ray, None, 1)
    assert ray.calls == [] and listed({"CPU": 2.0}) == "2 CPU, 0 GPU"
