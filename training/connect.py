"""connect(): a service client by the name of its backend. The only file that knows the backends."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from training.api import ServiceClient
from training.backends.local.options import SamplingWeights as SamplingWeights
from utils.config.errors import problems_of
from utils.openmp import bound_spinning

# of the setting, in every script that has it
Backend = Literal["local", "processes", "ray", "tinker"]
BACKENDS: tuple[str, ...] = get_args(Backend)
BACKEND_DOC = "local, processes or ray (num_engines of them), or tinker (a server)"
NUM_ENGINES_DOC = "of backend=processes or ray: one for each GPU, or a share of the cores each"
Sampler = Literal["local", "vllm"]
SAMPLER_DOC = "what samples with backend=local: its engine, or vllm (docs/scaling.md)"
# int before bool: chz takes the first that reads "1"
SamplerOptions = dict[str, int | float | bool | str]
SAMPLER_OPTIONS_DOC = "of sampler=vllm, such as sampler_options.max_loras=16"
SAMPLING_WEIGHTS_DOC = (
    "bfloat16, or int4 (embedded): decode with smaller weights than the trainer's "
    "(docs/performance.md)"
)


def has_own_engines(backend: str) -> bool:
    """Whether models run on this project's engine, here or in other processes, so that all of its
    extensions of the API are there and checkpoints are folders."""
    return backend != "tinker"


def connect(
    backend: str = "local",
    *,
    base_url: str | None = None,
    checkpoint_dir: str | Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    num_engines: int | None = None,
    sampler: str = "local",
    sampler_options: Mapping[str, Any] | None = None,
    **engine_options: Any,
) -> ServiceClient:
    """A service client of the named backend; no model is loaded before the first client.

    `base_url` belongs to "tinker". `checkpoint_dir`, `device`, `dtype` (see utils.devices) and
    `engine_options` (training.backends.local.options.EngineOptions) belong to the others.
    `num_engines` (default 1), and further options of PoolServiceClient, belong to "processes" and
    "ray", which begin that many engines at once. `address` belongs to "ray": a cluster's, or
    "local" for one of its own (default: RAY_ADDRESS, else "local"); and `cpus` and `patience`, see
    RayTransport. `sampler` "vllm", with `sampler_options` (VllmOptions), belongs to "local": vLLM
    samples. Raises ValueError otherwise, and ImportError where a backend's package is missing.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: allowed are {', '.join(BACKENDS)}")
    given = {
        "base_url": base_url,
        "checkpoint_dir": checkpoint_dir,
        "device": device,
        "dtype": dtype,
        "num_engines": num_engines,
        "sampler": None if sampler == "local" else sampler,
        **engine_options,
    }
    if sampler not in get_args(Sampler):
        raise ValueError(f"sampler={sampler!r}: allowed are {', '.join(get_args(Sampler))}")
    if sampler == "vllm" and (weights := engine_options.get("sampling_weights")) is not None:
        raise ValueError(f"sampling_weights={weights!r} needs sampler='local'; got sampler='vllm'")
    if sampler_options and sampler != "vllm":
        raise ValueError(f"sampler_options={sampler_options!r} need sampler='vllm'")
    _refuse_others(backend, {name: value for name, value in given.items() if value is not None})
    if backend == "tinker":
        from training.backends.tinker import RemoteServiceClient

        return RemoteServiceClient(base_url=base_url)
    if backend == "local":
        # before torch is imported
        bound_spinning()
        local: dict[str, Any] = {
            "checkpoint_dir": checkpoint_dir,
            "device": device,
            "dtype": dtype,
            **engine_options,
        }
        if sampler == "vllm":
            from training.backends.vllm.service import VllmServiceClient

            return VllmServiceClient(sampler_options=sampler_options, **local)
        from training.backends.local.service import LocalServiceClient

        return LocalServiceClient(**local)
    from training.backends.pool.clients import PoolServiceClient

    return PoolServiceClient(
        _transport(backend, engine_options),
        num_engines=1 if num_engines is None else num_engines,
        checkpoint_dir=checkpoint_dir,
        device=device,
        dtype=dtype,
        **engine_options,
    )


def temperature_problems(sampler: Sampler, **temperatures: float | None) -> list[str]:
    """Those of a script's settings at which the sampler cannot sample."""
    if sampler != "vllm":
        return []
    from training.backends.vllm.mapping import check_temperature

    given = {name: value for name, value in temperatures.items() if value is not None}
    return problems_of(*(partial(check_temperature, v, name) for name, v in given.items()))


def _transport(backend: str, options: dict[str, Any]) -> Callable[..., Any]:
    """Takes out of `options` what is the transport's own."""
    if backend == "ray":
        from training.backends.pool.ray_actors import RayTransport

        own = ("address", "cpus", "patience")
        return partial(RayTransport, **{name: options.pop(name) for name in own if name in options})
    from training.backends.pool.children import ChildTransport

    return ChildTransport


def _refuse_others(backend: str, given: dict[str, Any]) -> None:
    """Raises ValueError for what belongs to another backend."""
    if backend == "tinker":
        others = {name: value for name, value in given.items() if name != "base_url"}
        if others:
            listed = ", ".join(f"{name}={value!r}" for name, value in sorted(others.items()))
            raise ValueError(f"{listed}: only for backend='local'; got backend='tinker'")
        return
    for name, needed in (
        ("base_url", "'tinker'"),
        ("num_engines", "'processes' or 'ray'"),
        ("address", "'ray'"),
        ("sampler", "'local'"),
    ):
        if name in given and f"'{backend}'" not in needed:
            raise ValueError(
                f"{name}={given[name]!r} needs backend={needed}; got backend={backend!r}"
            )
