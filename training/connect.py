"""connect(): a service client by the name of its backend. The only file that knows the backends."""

from pathlib import Path
from typing import Any

from training.api import ServiceClient
from utils.openmp import bound_spinning

BACKENDS = ("local", "tinker")


def connect(
    backend: str = "local",
    *,
    base_url: str | None = None,
    checkpoint_dir: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    **engine_options: Any,
) -> ServiceClient:
    """A service client of the named backend; nothing heavy is loaded before the first client.

    `base_url` belongs to "tinker"; `checkpoint_dir`, `device`, `dtype` (see
    utils.devices) and `engine_options` (training.backends.local.engine.EngineOptions) belong to
    "local". Raises ValueError otherwise.
    """
    if backend == "local":
        if base_url is not None:
            raise ValueError(f"base_url={base_url!r} needs backend='tinker'; got backend='local'")
        # before torch is imported
        bound_spinning()
        from training.backends.local.service import LocalServiceClient

        return LocalServiceClient(
            checkpoint_dir=checkpoint_dir, device=device, dtype=dtype, **engine_options
        )
    if backend == "tinker":
        given = {
            "checkpoint_dir": checkpoint_dir,
            "device": device,
            "dtype": dtype,
            **engine_options,
        }
        local_only = [f"{name}={v!r}" for name, v in sorted(given.items()) if v is not None]
        if local_only:
            raise ValueError(
                f"{', '.join(local_only)}: only for backend='local'; got backend='tinker'"
            )
        from training.backends.tinker import RemoteServiceClient

        return RemoteServiceClient(base_url=base_url)
    raise ValueError(f"backend={backend!r}: allowed are {', '.join(BACKENDS)}")
