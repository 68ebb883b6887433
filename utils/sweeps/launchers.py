"""The launchers by name."""

from collections.abc import Callable

from utils.sweeps.launch import Launcher, LocalLauncher


def _ray(*, max_parallel: int, threads: int, gpus: float) -> Launcher:
    from utils.sweeps.ray_runs import RayLauncher

    return RayLauncher(max_parallel=max_parallel, threads=threads, gpus=gpus)


def _local(*, max_parallel: int, threads: int, gpus: float) -> Launcher:
    assert not gpus, "local runs share what there is"
    return LocalLauncher(max_parallel=max_parallel, threads=threads)


LAUNCHERS: dict[str, Callable[..., Launcher]] = {"local": _local, "ray": _ray}


def make_launcher(name: str, *, max_parallel: int, threads: int, gpus: float = 0) -> Launcher:
    """The launcher of that name; a ValueError that lists them for any other, and an
    ImportError where its package is missing."""
    if name not in LAUNCHERS:
        raise ValueError(f"launcher={name!r}: known are {', '.join(LAUNCHERS)}")
    return LAUNCHERS[name](max_parallel=max_parallel, threads=threads, gpus=gpus)
