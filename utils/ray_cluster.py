"""Ray, the optional extra: imported when it is asked for, joined once per process."""

import importlib
import logging
import os
import socket
import threading
from collections.abc import Mapping
from typing import Any

INSTALL = "Ray is needed, which is an extra: uv sync --extra ray"
# read when ray is imported. Under `uv run` it would send the folder to every machine and build an
# environment there; workers are to run as their machines were set up
ENVIRONMENT = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_USAGE_STATS_ENABLED": "0"}
# what goes through it here are messages
OBJECT_STORE_BYTES = 256 * 2**20
TOKEN_LOGGER = "ray._private.authentication.authentication_token_setup"
OWN = "local"
SECONDS_TO_ANSWER = 10.0
# HTTP/2 (RFC 9113, 3.4 and 4.1): each side's first frame tells its settings, ours none
_SETTINGS = b"\x04"
_HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + b"\0" * 5

_lock = threading.Lock()
_users = 0
# whether this process joined by itself, and so leaves; and whether it is the cluster's only one
_joined = False
_is_own = False


def import_ray() -> Any:
    """Raises ImportError that says how to install it."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise ImportError(INSTALL) from error
    logging.getLogger(TOKEN_LOGGER).addFilter(_is_news)
    return ray


def _is_news(record: logging.LogRecord) -> bool:
    """Ray warns at every start that its clusters are safe; that one is not, is told."""
    return "Token authentication is enabled" not in record.getMessage()


def address_of(address: str | None) -> str:
    """What to join where nothing else is said: RAY_ADDRESS, else a cluster of this process's own
    (Ray itself would join whatever runs on the machine)."""
    return address or os.environ.get("RAY_ADDRESS") or OWN


def join(ray: Any, address: str | None, num_cpus: int) -> None:
    """Joins the cluster at address_of(address), or goes on with the one that this process has
    joined. One of its own has `num_cpus`. Raises ValueError where nobody answers."""
    global _users, _joined, _is_own
    with _lock:
        if not ray.is_initialized():
            _begin(ray, address_of(address), num_cpus)
            _joined, _is_own = True, address_of(address) == OWN
        _users += 1


def leave(ray: Any) -> None:
    """After join(), once: the last one ends the connection, and with it a cluster of its own."""
    global _users, _joined, _is_own
    with _lock:
        _users -= 1
        if _users == 0 and _joined:
            ray.shutdown()
            _joined = _is_own = False


def is_own() -> bool:
    """Whether the cluster that was joined is this process's own."""
    return _is_own


def _begin(ray: Any, address: str, num_cpus: int) -> None:
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    if address == OWN:
        options |= {"include_dashboard": False, "num_cpus": num_cpus}
        options["object_store_memory"] = OBJECT_STORE_BYTES
    try:
        _require_listener(address)
        ray.init(address=address, **options)
    except (OSError, RuntimeError, ValueError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"address={address!r}: no Ray cluster answers there ({reason}); start one (ray start "
            "--head), correct address or RAY_ADDRESS, set RAY_AUTH_MODE=token if it was started "
            "with a token, or leave them out for one of this machine's own"
        ) from error


def _require_listener(address: str) -> None:
    """OSError where no server of gRPC, as Ray's is, answers at HOST:PORT, which Ray would try for
    minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or "://" in address:
        return
    where = (host.strip("[]"), int(port))
    with socket.create_connection(where, timeout=SECONDS_TO_ANSWER) as server:
        if os.environ.get("RAY_USE_TLS") == "1":
            return
        server.sendall(_HTTP2_GREETING)
        # 9 bytes are the head of its first frame, whose kind is the fourth
        if server.recv(9)[3:4] != _SETTINGS:
            raise OSError("what listens there is none")


def listed(resources: Mapping[str, float]) -> str:
    """The resources that matter here, for messages."""
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU"))
