"""What engines in other processes cost, and where the driver becomes the limit.

    uv run benchmarks/pool.py
    uv run --extra ray benchmarks/pool.py parts=overhead
    uv run benchmarks/pool.py quick=true

parts=overhead: the main job's inner loop (several adapters stepped together, then sampled) and a
GRPO step (a group sampled, trained on), on one engine in this process, in a child process, and in a
Ray actor where Ray is installed, in turn, and how long of that the engine worked at nothing. Memory
that the C library gives back and takes again costs one process more than another; to compare what
processes cost, keep it (MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4000000000).
parts=two: two engines with one thread each against one engine with two. parts=scale: 1 to 64
engines that compute nothing, each of whose batches takes a stated time: the driver's CPU time per
request, and how long a lost engine holds up its clients.
Appends to benchmarks/results/pool.jsonl.
"""

import contextlib
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import chz
import numpy as np
from common import (
    Report,
    Settings,
    base_model,
    half_right,
    importable,
    local_service,
    prepare,
    race,
    random_tokens,
)
from stand_in_engines import StandInTransport

from training.api import AdamParams, Datum, ModelInput, SamplingParams
from training.backends.pool.clients import PoolServiceClient
from training.backends.pool.messages import unpacked
from training.backends.pool.transport import EngineLink
from training.connect import connect
from utils.openmp import bound_spinning

PARTS = ("overhead", "two", "scale")
GOAL = 1.05


@chz.chz(typecheck=True)
class Config(Settings):
    parts: list[str] = chz.field(default_factory=lambda: list(PARTS), doc=", ".join(PARTS))
    adapters: int = chz.field(default=4, doc="of the inner loop, stepped together")
    sequence_tokens: int = chz.field(default=200, doc="of each of an adapter's two sequences")
    group_size: int = chz.field(default=8, doc="answers of the GRPO step")
    max_tokens: int = chz.field(default=16, doc="of every answer")
    rank: int = chz.field(default=16, doc="of adapters")
    engines: list[int] = chz.field(
        default_factory=lambda: [1, 4, 16, 64], doc="numbers of engines that compute nothing"
    )
    service_ms: float = chz.field(default=50.0, doc="how long each of their batches takes")
    clients: int = chz.field(default=4, doc="adapters on each of them")
    datums: int = chz.field(default=2, doc="sequences of each request, of 200 tokens")
    start_seconds: float = chz.field(default=2.0, doc="how long a replacement takes to begin")

    @chz.validate
    def _parts(self) -> None:
        if unknown := sorted(set(self.parts) - set(PARTS)):
            raise ValueError(f"parts has {unknown}: allowed are {', '.join(PARTS)}")


QUICK = {
    "adapters": 2,
    "sequence_tokens": 10,
    "group_size": 2,
    "max_tokens": 2,
    "rank": 2,
    "engines": [1, 2],
    "service_ms": 5.0,
    "start_seconds": 0.0,
}


def main(config: Config) -> None:
    logging.basicConfig(level=logging.WARNING)
    # before torch is imported
    bound_spinning()
    config = prepare(config, QUICK)
    report = Report("pool", config)
    with base_model(config) as model:
        if "overhead" in config.parts:
            overhead(report, config, model)
        if "two" in config.parts:
            two_engines(report, config, model)
    if "scale" in config.parts:
        for number in config.engines:
            scale(report, config, number)
    report.finish()


# ---------------------------------------------------------------------------------------- overhead


def overhead(report: Report, config: Config, model: str) -> None:
    with contextlib.ExitStack() as stack:
        services: dict[str, Any] = {"in process": stack.enter_context(local_service(config))}
        services["child process"] = stack.enter_context(engines(config, "processes", 1))
        if importable("ray"):
            services["Ray actor"] = stack.enter_context(engines(config, "ray", 1))
        else:
            report.note("Ray is not installed: uv sync --extra ray")
        for case, work in (("inner loop", inner_loop), ("GRPO step", grpo_step)):
            contenders = {name: work(service, model, config) for name, service in services.items()}
            outside = {
                name: Outside(service, contenders[name])
                for name, service in services.items()
                if name != "in process"
            }
            seconds = race({**contenders, **outside}, config, case)
            for name, taken in seconds.items():
                if name == "in process":
                    report.add(case, name, seconds=taken)
                    continue
                share = outside[name].seconds[-len(taken) :]
                told = {"outside the engine ms": round(1000 * statistics.median(share), 1)}
                base = seconds["in process"]
                report.add(case, name, seconds=taken, against=base, at_most=GOAL, **told)


class Outside:
    """`run` with one engine in another process; `seconds` of each round are those in which the
    engine, by its own clock, worked at nothing: messages, and what the driver does by itself."""

    def __init__(self, service: PoolServiceClient, run: Callable[[int], object]) -> None:
        self.seconds: list[float] = []
        self._run = run
        [lane] = service.pool.lanes
        assert lane.link is not None
        self._link = lane.link = TimedLink(lane.link)

    def __call__(self, number: int) -> None:
        worked, started = self._link.seconds, time.perf_counter()
        self._run(number)
        self.seconds.append(time.perf_counter() - started - (self._link.seconds - worked))


class TimedLink:
    """Adds up how long its engine worked, as each of its answers says."""

    def __init__(self, link: EngineLink) -> None:
        self._link = link
        self.seconds = 0.0

    @property
    def pid(self) -> int:
        return self._link.pid

    @property
    def place(self) -> str:
        return self._link.place

    def run(self, message: bytes) -> bytes:
        answer = self._link.run(message)
        self.seconds += unpacked(answer).seconds
        return answer

    def kill(self) -> None:
        self._link.kill()


def two_engines(report: Report, config: Config, model: str) -> None:
    if config.device == "cpu" and (os.cpu_count() or 1) < 2:
        report.note("two engines need two cores")
        return
    with contextlib.ExitStack() as stack:
        # the share of the cores each
        services = {
            "one engine, two threads": stack.enter_context(engines(config, "processes", 1, 2)),
            "two engines, one thread each": stack.enter_context(engines(config, "processes", 2, 1)),
        }
        for case, work in (("inner loop", inner_loop), ("GRPO step", grpo_step)):
            contenders = {name: work(service, model, config) for name, service in services.items()}
            seconds = race(contenders, config, case)
            first, second = seconds
            report.add(case, first, seconds=seconds[first])
            report.add(case, second, seconds=seconds[second], against=seconds[first])


@contextlib.contextmanager
def engines(config: Config, backend: str, number: int, threads: int | None = None) -> Iterator[Any]:
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads or config.threads)
    try:
        with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
            options: dict[str, Any] = {"num_engines": number, "spread_tokens": 0}
            service = connect(backend, checkpoint_dir=folder, device=config.device, **options)
            with contextlib.closing(service):
                yield service
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = before


def inner_loop(service: Any, model: str, config: Config) -> Callable[[int], object]:
    """A step of every adapter together, then an answer of each."""
    clients = [
        service.create_lora_training_client(model, rank=config.rank, seed=seed)
        for seed in range(config.adapters)
    ]

    def run(number: int) -> None:
        futures = []
        for seed, client in enumerate(clients):
            data = sequences(config, number, seed, 2)
            futures.append(client.forward_backward(data, "cross_entropy"))
            futures.append(client.optim_step(AdamParams()))
        for future in futures:
            future.result()
        samplers = [client.save_weights_and_get_sampling_client() for client in clients]
        params = SamplingParams(max_tokens=config.max_tokens, seed=number, stop=[])
        prompt = sequences(config, number, 0, 1)[0].model_input
        asked = [sampler.result().sample(prompt, 1, params) for sampler in samplers]
        for future in asked:
            future.result()

    return run


def grpo_step(service: Any, model: str, config: Config) -> Callable[[int], object]:
    """A group of answers to each of two prompts, trained on with advantages."""
    client = service.create_lora_training_client(model, rank=config.rank, seed=0)

    def run(number: int) -> None:
        sampler = client.save_weights_and_get_sampling_client().result()
        params = SamplingParams(max_tokens=config.max_tokens, seed=number, stop=[])
        prompts = [d.model_input for d in sequences(config, number, 0, 2)]
        asked = [sampler.sample(prompt, config.group_size, params) for prompt in prompts]
        data = []
        for prompt, future in zip(prompts, asked, strict=True):
            data += half_right(prompt.to_ints(), future.result().sequences)
        loss = client.forward_backward(data, "importance_sampling")
        client.optim_step(AdamParams()).result()
        loss.result()

    return run


def sequences(config: Config, number: int, seed: int, count: int) -> list[Datum]:
    rng = np.random.default_rng([number, seed])
    data = []
    for _ in range(count):
        tokens = random_tokens(rng, config.sequence_tokens + 1, 131)
        inputs = {"target_tokens": tokens[1:], "weights": [1.0] * config.sequence_tokens}
        data.append(Datum(ModelInput.from_ints(tokens[:-1]), inputs))
    return data


# ------------------------------------------------------------------------------------------- scale


def scale(report: Report, config: Config, number: int) -> None:
    """Rounds of a step of every client; then one engine is lost in the middle of a round."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        place = Path(folder)
        service = PoolServiceClient(
            lambda _settings, *, silence: StandInTransport(
                place, config.service_ms / 1000, config.start_seconds
            ),
            num_engines=number,
            checkpoint_dir=place,
        )
        with service:
            clients = [
                service.create_lora_training_client("stand-in", seed=0)
                for _ in range(number * config.clients)
            ]
            datums = sequences(chz.replace(config, sequence_tokens=200), 0, 0, config.datums)
            rounds = 2 if config.quick else 20
            cpu, wall = time.process_time(), time.perf_counter()
            for _ in range(rounds):
                one_round(clients, datums)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            requests = rounds * len(clients) * 2
            links = [lane.link for lane in service.pool.lanes]
            started = time.perf_counter()
            assert links[0] is not None
            links[0].kill()
            one_round(clients, datums)
            recovered = time.perf_counter() - started
        report.add(
            f"{number} engines",
            f"{config.clients} clients each",
            **{
                "requests a batch": config.clients * 2,
                "driver CPU ms a request": round(1000 * cpu / requests, 3),
                "driver CPU share": round(cpu / wall, 3),
                "round s": round(wall / rounds, 4),
                "of it service s": config.service_ms / 1000,
                "round with a loss s": round(recovered, 2),
                "repeated batches": rounds,
            },
        )


def one_round(clients: list[Any], datums: list[Datum]) -> None:
    futures = []
    for client in clients:
        futures.append(client.forward_backward(datums, "cross_entropy"))
        futures.append(client.optim_step(AdamParams()))
    for future in futures:
        future.result()


if __name__ == "__main__":
    chz.nested_entrypoint(main)
