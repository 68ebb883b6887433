"""What Prometheus asks for: how many clients and requests there are, tokens, latencies, memory."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.registry import Collector

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4
_PREFIX = "autodidact_"
# of Host.status(): what each figure is
_GAUGES = {
    "sessions": "Clients of the Tinker protocol that are alive",
    "models": "Adapters in training that are in memory",
    "samplers": "Sampling sessions that are open",
    "waiting": "Requests that wait for the engine, or to be checked",
    "running": "Requests that the engine has",
    "result_bytes": "Bytes of results that are kept for clients that ask again",
    "uptime_seconds": "Seconds since the server started",
}
_COUNTERS = {
    "sampled_tokens": "Tokens that were sampled, counted as they are drawn where the sampler tells",
    "trained_tokens": "Positions of training data, counted as micro-batches end",
}
# what else clients send is "other": a figure of each word would fill the memory
_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD"})
# from what a check takes to a long poll and a long answer
_SECONDS = (0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)


class Metrics:
    """`status` is Host.status(), asked whenever somebody looks."""

    def __init__(self, status: Callable[[], Mapping[str, Any]]) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_StatusCollector(status))
        # this process's memory, CPU time and open files, where the system tells them
        ProcessCollector(registry=self._registry)
        self._requests = Histogram(
            f"{_PREFIX}request_seconds",
            "From a request's arrival to the end of its reply",
            ("method", "route", "status"),
            buckets=_SECONDS,
            registry=self._registry,
        )

    def observe(self, scope: Mapping[str, Any], status: int, seconds: float) -> None:
        """One request that was answered, by its ASGI scope."""
        method = scope["method"] if scope["method"] in _METHODS else "other"
        # what no key opened came to no route
        route = getattr(scope.get("route"), "path", "none")
        self._requests.labels(method, route, str(status)).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)


class _StatusCollector(Collector):
    def __init__(self, status: Callable[[], Mapping[str, Any]]) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status = self._status()
        for name, told in _GAUGES.items():
            yield GaugeMetricFamily(f"{_PREFIX}{name}", told, status[name])
        for name, told in _COUNTERS.items():
            yield CounterMetricFamily(f"{_PREFIX}{name}", told, status[name])
