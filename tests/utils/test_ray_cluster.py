"""What is told about Ray before it is there.

uv run pytest tests/utils/test_ray_cluster.py
"""

import logging
import os
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from utils.ray_cluster import TOKEN_LOGGER, address_of, import_ray, join, leave, listed
from utils.sweeps.launchers import make_launcher


class FakeRay:
    def __init__(self, **resources: float) -> None:
        self.resources = resources
        self.calls: list[Any] = []
        self.joined = False

    def is_initialized(self) -> bool:
        return self.joined

    def init(self, **options: Any) -> None:
        self.calls.append(options)
        self.joined = True

    def nodes(self) -> list[dict[str, Any]]:
        dead = {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 8.0}}
        return [dead, {"Alive": True, "Resources": self.resources}]

    def remote(self, **_options: Any) -> Any:
        return lambda cls: cls

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


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (b"", "timed out"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "what listens there is none"),
        # its settings, empty
        (b"\0\0\0\x04\0\0\0\0\0", None),
    ],
    ids=["silent", "another protocol", "gRPC"],
)
def test_what_listens_is_asked_for_its_protocol(
    answer: bytes, told: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a silent one is waited for; whoever answers does so at once, however busy the machine is
    monkeypatch.setattr("utils.ray_cluster.SECONDS_TO_ANSWER", 60.0 if answer else 0.2)
    ray = FakeRay()
    with socket.create_server(("127.0.0.1", 0)) as server, ThreadPoolExecutor() as pool:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        asked = pool.submit(join, ray, address, 1)
        connection, _ = server.accept()
        with connection:
            greeting = connection.recv(100)
            connection.sendall(answer)
            if told is None:
                asked.result(60)
                assert ray.calls[0]["address"] == address
                leave(ray)
            else:
                with pytest.raises(ValueError, match=f"no Ray cluster answers there .{told}"):
                    asked.result(60)
                assert not ray.calls
    assert greeting.startswith(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")


def test_a_sweep_says_what_its_cells_wait_for(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ray = FakeRay(CPU=2.0, memory=1e9)
    monkeypatch.setattr("utils.sweeps.ray_runs.import_ray", lambda: ray)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ValueError, match=r"gpus=1: a cell needs 2 CPU, 1 GPU, .* has 2 CPU, 0 GPU"):
        make_launcher("ray", max_parallel=1, threads=2, gpus=1)
    assert not ray.joined
    make_launcher("ray", max_parallel=1, threads=2).cancel(0)
    assert caplog.text == ""
    # one that others started may grow
    ray.joined = True
    make_launcher("ray", max_parallel=1, threads=2, gpus=1).cancel(0)
    assert (
        "a cell needs 2 CPU, 1 GPU on one machine, and the Ray cluster's have 2 CPU" in caplog.text
    )
    assert ray.joined
