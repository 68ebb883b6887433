"""Engines as Ray actors, on this machine or on those of a cluster; needs the extra `ray`.

Independent actors, each with the resources of one device, that end with the driver. Ray never
starts one again and never repeats a call: what was lost is the pool's to make again (lane.py).
"""

import logging
import os
import platform
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

from training.backends.pool.host import EngineSettings, begin
from training.backends.pool.transport import EngineLostError, share_of_cores
from training.checks import check_values, optional, real, whole
from utils.config.errors import AT_ONCE
from utils.ray_cluster import import_ray, is_own, join, leave, listed

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_SIGNS = 5.0
# in which one usually begins
SECONDS_UNTOLD = 10.0
# for the process of an engine that has its place; on a busy machine Python alone takes long
SECONDS_TO_BEGIN = 300.0
# for an engine that was told to end
SECONDS_TO_END = 10.0


class RayTransport:
    """`cpus`: of each engine, which gets as many threads; default: its share of this machine's
    cores in a cluster of its own, else 1. With them goes a GPU where the cluster has some, unless
    the device is "cpu". `patience`: how many seconds a place is waited for, since a cluster may
    have to grow first.

    Raises ImportError where Ray is not installed, ValueError for wrong values, where no cluster
    answers or it has no GPU for device="cuda", and for more engines than cores in a cluster of its
    own.
    """

    def __init__(
        self,
        settings: EngineSettings,
        *,
        silence: float,
        address: str | None = None,
        cpus: int | None = None,
        patience: float = 60.0,
    ) -> None:
        checked = check_values(
            "connect",
            {
                "cpus": (cpus, optional(whole(1))),
                "patience": (patience, real("a number of seconds from 0", lambda s: s >= 0)),
            },
        )
        cpus = checked["cpus"]
        self._ray = import_ray()
        join(self._ray, address, os.cpu_count() or 1)
        if cpus is None:
            try:
                cpus = share_of_cores(settings.num_engines) if is_own() else 1
            except ValueError:
                self.close()
                raise
        # Ray shows each actor its own GPU alone
        threads = int(os.environ.get("OMP_NUM_THREADS", cpus))
        self._settings = replace(settings, own_device=False, threads=threads)
        self._silence = silence
        self._patience = checked["patience"]
        # a cluster of this process's own has room for all that it makes
        self._needs: dict[str, float] = {"CPU": 0 if is_own() else cpus}
        has_gpus = bool(self._ray.cluster_resources().get("GPU"))
        if settings.device != "cpu" and has_gpus:
            self._needs["GPU"] = 1
        elif settings.device not in (None, "cpu"):
            there = listed(self._ray.cluster_resources())
            self.close()
            raise ValueError(f"device={settings.device!r}: the Ray cluster has {there}")

    def start(self, index: int) -> "RayLink":
        ray, needs = self._ray, self._needs
        group = self._reserve(index)
        actor = (
            _engine_class(ray)
            .options(
                num_cpus=needs["CPU"],
                num_gpus=needs.get("GPU", 0),
                scheduling_strategy=_within(ray, group),
                # one that came back without its adapters would go on as if nothing had happened
                max_restarts=0,
                max_task_retries=0,
            )
            .remote(index, self._settings)
        )
        try:
            pid, place = ray.get(actor.sign.remote(), timeout=SECONDS_TO_BEGIN)
        except ray.exceptions.RayError as error:
            ray.kill(actor, no_restart=True)
            _give_back(ray, group)
            if isinstance(error, ray.exceptions.GetTimeoutError):
                raise EngineLostError(
                    f"engine {index} has its place in the Ray cluster, and its process did not "
                    f"begin within {SECONDS_TO_BEGIN:g} s"
                ) from error
            raise EngineLostError(_reason(error)) from error
        return RayLink(ray, actor, group, pid, place, self._silence)

    def _reserve(self, index: int) -> Any:
        """Waits for a place: a group of one bundle, or None where nothing has to be reserved. How
        long a process takes to begin, as on a busy machine, is not the cluster's room."""
        ray = self._ray
        bundle = {name: amount for name, amount in self._needs.items() if amount}
        if not bundle:
            return None
        group = ray.util.placement_group([bundle])
        placed = [group.ready()]
        if ray.wait(placed, timeout=min(SECONDS_UNTOLD, self._patience))[0]:
            return group
        logger.info(
            "engine %d has no place in the Ray cluster yet; one is waited for, for up to %g s",
            *(index, self._patience),
            extra=AT_ONCE,
        )
        if ray.wait(placed, timeout=max(0.0, self._patience - SECONDS_UNTOLD))[0]:
            return group
        there, free = ray.cluster_resources(), ray.available_resources()
        _give_back(ray, group)
        raise EngineLostError(
            f"num_engines={self._settings.num_engines}: no room in the Ray cluster for engine "
            f"{index} within {self._patience:g} s; each needs {listed(self._needs)}, there are "
            f"{listed(there)}, of them free {listed(free)}; use fewer engines, or add machines"
        )

    def close(self) -> None:
        leave(self._ray)


def _engine_class(ray: Any) -> Any:
    # made here, so that this module can be read without Ray
    class Engine:
        def __init__(self, index: int, settings: EngineSettings) -> None:
            self._host = begin(index, settings)

        def run(self, message: bytes) -> bytes:
            return self._host.run(message)

        @ray.method(concurrency_group="signs")
        def sign(self) -> tuple[int, str]:
            return os.getpid(), platform.node()

    # so that a busy one can say that it lives
    return ray.remote(concurrency_groups={"signs": 1})(Engine)


class RayLink:
    def __init__(
        self, ray: Any, actor: Any, group: Any, pid: int, place: str, silence: float
    ) -> None:
        self.pid = pid
        self.place = place
        self._ray = ray
        self._actor = actor
        self._group = group
        self._silence = silence

    def run(self, message: bytes) -> bytes:
        ray = self._ray
        try:
            answer = self._actor.run.remote(message)
            while not ray.wait([answer], timeout=SECONDS_BETWEEN_SIGNS)[0]:
                ray.get(self._actor.sign.remote(), timeout=self._silence)
            return ray.get(answer)
        except ray.exceptions.GetTimeoutError as error:
            raise EngineLostError(f"no sign of life for {self._silence:g} s") from error
        except ray.exceptions.RayError as error:
            raise EngineLostError(_reason(error)) from error

    def kill(self) -> None:
        ray = self._ray
        deadline = time.monotonic() + SECONDS_TO_END
        with suppress(ray.exceptions.RayError):
            ray.kill(self._actor, no_restart=True)
            # only told so far
            while time.monotonic() < deadline:
                with suppress(ray.exceptions.GetTimeoutError):
                    ray.get(self._actor.sign.remote(), timeout=1.0)
                    time.sleep(0.05)
        _give_back(ray, self._group)


def _within(ray: Any, group: Any) -> Any:
    if group is None:
        return "DEFAULT"
    return ray.util.scheduling_strategies.PlacementGroupSchedulingStrategy(group)


def _give_back(ray: Any, group: Any) -> None:
    if group is not None:
        with suppress(ray.exceptions.RayError):
            ray.util.remove_placement_group(group)


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
