"""What serving costs: clients of scripts/serve.py against the same work in one process, thousands
of open samples, how long a chat completion takes, adapters through one server against runs of their
own, and what memory the server keeps.

    uv run benchmarks/serving.py
    uv run benchmarks/serving.py parts=clients
    uv run benchmarks/serving.py parts=memory clients=32 rounds=8 steps=1 max_tokens=4
    uv run benchmarks/serving.py quick=true

A client makes an adapter, trains it, takes a sampler after each step and samples from it, in a
thread of its own. The same function does so on both sides, over training.api, so only the server
differs; its clients are the official SDK's. They all live in this process, the server in another
one: the SDK has one event loop for all clients of a process, and 32 Python processes on two cores
would measure the system's scheduler. What they compute counts as the server's cost.

In "runs" the others are processes of their own, one after the other, and starts count on both
sides. Appends to benchmarks/results/serving.jsonl.
"""

import contextlib
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from unittest.mock import patch

import chz
import numpy as np
from chats import Training, chat, openai_client
from common import (
    Report,
    Settings,
    base_model,
    in_own_process,
    local_service,
    prepare,
    race,
    random_tokens,
)
from open_samples import Asked, open_at_once
from server_process import Server, served

from training.api import AdamParams, Datum, ModelInput, SamplingParams, ServiceClient
from training.connect import connect

PARTS = ("start", "clients", "samples", "memory", "latency", "runs")
PROCESS, SERVER, RUNS = "in process", "one server", "one after the other"
CLIENTS = "clients"
ADAM = AdamParams(learning_rate=1e-3)
# the server's seconds over those in process
GOAL, GOAL_CLIENTS = 1.15, 8
# Largest relative difference of a client's losses between the two ways.
TOLERANCES = {"cpu": 1e-4, "cuda": 2e-2}
# that the open samples come from
OPEN_CLIENTS = 40
# the server's, see HostOptions
ENGINE_ROWS = 256
LOOK_SECONDS = 0.1


@chz.chz(typecheck=True)
class Config(Settings):
    repeats: int = chz.field(default=2, doc="timed rounds; tables show their median")
    parts: list[str] = chz.field(
        default_factory=lambda: list(PARTS), doc=f"what to measure, of {', '.join(PARTS)}"
    )
    clients: list[int] = chz.field(default_factory=lambda: [1, 8, 32], doc="at once")
    steps: int = chz.field(default=2, doc="of each client")
    sequences: int = chz.field(default=2, doc="of a step")
    sequence_tokens: int = chz.field(default=32, doc="of each sequence")
    prompts: int = chz.field(default=2, doc="that a client samples from after each step")
    num_samples: int = chz.field(default=2, doc="of each prompt")
    max_tokens: int = chz.field(default=16, doc="of each sample")
    rank: int = chz.field(default=8, doc="LoRA rank")
    open_samples: int = chz.field(default=2000, doc="asked for at once")
    open_tokens: int = chz.field(default=4, doc="of each of these")
    first_tokens: int = chz.field(
        default=96, doc=f"of the first {ENGINE_ROWS}, which the others wait for"
    )
    rounds: int = chz.field(default=6, doc="of as many clients as in the largest of `clients`")
    chats: int = chz.field(default=40, doc="completions of 8 tokens, one after the other")
    chats_beside_training: int = chz.field(default=16, doc="as many beside a client that trains")
    pass_tokens: int = chz.field(default=4096, doc="of each training pass beside them")
    max_train_tokens: list[int] = chz.field(
        default_factory=lambda: [2048, 512], doc="the server's setting while chats are timed"
    )
    starts: int = chz.field(default=3, doc="of a server, each to its first answer")
    runs: int = chz.field(default=8, doc="adapters, one process each or one server for all")

    @chz.validate
    def _parts(self) -> None:
        if unknown := sorted(set(self.parts) - set(PARTS)):
            raise ValueError(f"parts={unknown}: allowed are {', '.join(PARTS)}")


QUICK = {
    "clients": [1, 2],
    "sequence_tokens": 12,
    "max_tokens": 3,
    "rank": 4,
    "open_samples": 20,
    "first_tokens": 6,
    "rounds": 2,
    "chats": 2,
    "chats_beside_training": 2,
    "pass_tokens": 64,
    "max_train_tokens": [64, 24],
    "starts": 1,
    "runs": 2,
}


def main(config: Config) -> None:
    logging.basicConfig(
        level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = prepare(config, QUICK)
    assert config.device is not None
    report = Report("serving", config)
    worst = 0.0
    with base_model(config) as name:
        if "start" in config.parts:
            start(report, config, name)
        with serving(name, config) as server, local_service(config) as local:
            vocab_size = local.engine(name).decoder.vocab_size
            if "clients" in config.parts:
                for count in config.clients:
                    worst = max(worst, many_clients(report, config, name, server, local, count))
            if "samples" in config.parts:
                open_samples(report, config, name, server, local)
            if "memory" in config.parts:
                memory(report, config, name, server, vocab_size)
        if "latency" in config.parts:
            latency(report, config, name, vocab_size)
        if "runs" in config.parts:
            apart(report, config, name, vocab_size)
    report.note("ratio: seconds of the row over those of the row before it, which is the first way")
    report.note(f"Losses in process and through the server: {worst:.2g} apart (relative)")
    report.finish()
    if worst > TOLERANCES[config.device]:
        raise SystemExit(f"losses differ by {worst:.3g}, relative: not the same work")


@contextlib.contextmanager
def serving(name: str, config: Config, *settings: str) -> Iterator[Server]:
    """A server, and in this process the key of it that the SDK looks for."""
    with (
        served(name, f"device={config.device}", *settings, threads=config.threads) as server,
        patch.dict(os.environ, {"TINKER_API_KEY": server.key, "TINKER_TELEMETRY": "0"}),
    ):
        yield server


# ---------------------------------------------------------------------------------------- a client


def client_work(service: ServiceClient, name: str, number: int, config: Config, vocab: int) -> Any:
    """The losses of its steps."""
    rng = np.random.default_rng(number)
    trainer = service.create_lora_training_client(name, rank=config.rank, seed=number)
    params = SamplingParams(max_tokens=config.max_tokens, stop=[])
    losses = []
    for _ in range(config.steps):
        data = [_datum(rng, config.sequence_tokens, vocab) for _ in range(config.sequences)]
        loss = trainer.forward_backward(data, "cross_entropy")
        trainer.optim_step(ADAM).result()
        losses.append(loss.result().metrics["loss:sum"])
        sampler = trainer.save_weights_and_get_sampling_client().result()
        prompts = [random_tokens(rng, config.sequence_tokens, vocab) for _ in range(config.prompts)]
        asked = [
            sampler.sample(ModelInput.from_ints(prompt), config.num_samples, params)
            for prompt in prompts
        ]
        for answer in asked:
            _check_lengths([len(s.tokens_np) for s in answer.result().sequences], config)
    return losses


def _datum(rng: np.random.Generator, length: int, vocab_size: int) -> Datum:
    tokens = random_tokens(rng, length + 1, vocab_size)
    return Datum(ModelInput.from_ints(tokens[:-1]), {"target_tokens": tokens[1:]})


def _check_lengths(lengths: list[int], config: Config) -> None:
    if lengths != [config.max_tokens] * config.num_samples:
        raise RuntimeError(f"answers have {lengths} tokens, not {config.max_tokens} each")


def remote_work(url: str, name: str, number: int, config: Config, vocab_size: int) -> Any:
    with contextlib.closing(connect("tinker", base_url=url)) as service:
        return client_work(service, name, number, config, vocab_size)


def at_once(work: Callable[[int], Any], count: int) -> list[Any]:
    """What work(number) returns, each in a thread of its own."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


# ------------------------------------------------------------------------------------- the parts


def start(report: Report, config: Config, name: str) -> None:
    """From the command to what it prints when it is ready, and to the answer to a first chat."""
    ready, answered = [], []
    for _ in range(config.starts):
        started = time.perf_counter()
        with serving(name, config) as server:
            ready.append(time.perf_counter() - started)
            chat(openai_client(server), name)
            answered.append(time.perf_counter() - started)
    report.add("start", "to the greeting", seconds=ready)
    report.add("start", "to the first answer", seconds=answered)


def many_clients(
    report: Report, config: Config, name: str, server: Server, local: Any, count: int
) -> float:
    """The largest relative difference of the losses between both ways."""
    vocab_size = local.engine(name).decoder.vocab_size
    losses: dict[str, Any] = {}
    cpu: dict[str, list[float]] = {PROCESS: [], SERVER: [], CLIENTS: []}
    kept: list[float] = []

    def in_process(_round: int) -> None:
        started = time.process_time()
        losses[PROCESS] = at_once(lambda i: client_work(local, name, i, config, vocab_size), count)
        cpu[PROCESS].append(time.process_time() - started)

    def through_server(_round: int) -> None:
        started, own = server.cpu_seconds(), time.process_time()
        losses[SERVER] = at_once(
            lambda i: remote_work(server.url, name, i, config, vocab_size), count
        )
        cpu[SERVER].append(server.cpu_seconds() - started)
        cpu[CLIENTS].append(time.process_time() - own)
        kept.append(server.resident_mib())

    contenders = {PROCESS: in_process, SERVER: through_server}
    seconds = race(contenders, config, f"{count} clients")
    trained = config.sequences * config.sequence_tokens
    sampled = config.prompts * config.num_samples * config.max_tokens
    for contender in contenders:
        is_server = contender == SERVER
        report.add(
            f"{count} clients",
            contender,
            seconds=seconds[contender],
            tokens=count * config.steps * (trained + sampled),
            against=seconds[PROCESS],
            at_most=GOAL if is_server and count == GOAL_CLIENTS else None,
            **{
                "CPU s": _median(cpu[contender], config),
                "clients' CPU s": _median(cpu[CLIENTS], config) if is_server else None,
                "server MiB": " ".join(f"{mib:.0f}" for mib in kept) if is_server else None,
            },
        )
    return float(np.max(np.abs(np.divide(losses[SERVER], losses[PROCESS]) - 1)))


def _median(rounds: list[float], config: Config) -> float:
    """Of the timed ones."""
    return round(statistics.median(rounds[config.warmup :]), 2)


def open_samples(report: Report, config: Config, name: str, server: Server, local: Any) -> None:
    """Prompts that differ in their end alone, so that nearly all of it is what a request costs. The
    first ones, as many as the engine decodes at once, are long enough for the others to come."""
    count = config.open_samples
    rng = np.random.default_rng(0)
    vocab_size = local.engine(name).decoder.vocab_size
    ends = [random_tokens(rng, 3, vocab_size) for _ in range(count)]
    asked = [
        Asked(
            [*range(16, 32), *end],
            config.first_tokens if number < ENGINE_ROWS else config.open_tokens,
        )
        for number, end in enumerate(ends)
    ]
    sampler = local.create_sampling_client(base_model=name)
    started = time.perf_counter()
    futures = [
        sampler.sample(
            ModelInput.from_ints(sample.prompt),
            1,
            SamplingParams(max_tokens=sample.max_tokens, temperature=0.0, stop=[]),
        )
        for sample in asked
    ]
    wanted = [future.result().sequences[0].tokens for future in futures]
    seconds = time.perf_counter() - started
    case = f"{count} open samples"
    report.add(case, PROCESS, seconds=[seconds], against=[seconds])
    before, before_mib = server.num_threads(), server.resident_mib()
    opened = open_at_once(server, name, asked, OPEN_CLIENTS, ENGINE_ROWS)
    report.add(
        case,
        SERVER,
        seconds=[opened.seconds],
        against=[seconds],
        **{
            "threads before": before,
            "threads": opened.most_threads,
            "MiB before": round(before_mib),
            "MiB": round(opened.most_mib),
            "open": opened.most_open,
            "accepted after s": round(opened.posted, 1),
            "right": sum(a == w for a, w in zip(opened.answers, wanted, strict=True)),
        },
    )


def memory(report: Report, config: Config, name: str, server: Server, vocab_size: int) -> None:
    """What stays of rounds of clients that come, work and go."""
    count = max(config.clients)
    kept = []
    for _ in range(config.rounds):
        at_once(lambda i: remote_work(server.url, name, i, config, vocab_size), count)
        kept.append(server.resident_mib())
    told = " ".join(f"{mib:.0f}" for mib in kept)
    report.add(f"{config.rounds} rounds of {count} clients", SERVER, **{"server MiB": told})


def latency(report: Report, config: Config, name: str, vocab_size: int) -> None:
    """A server for each size of micro-batches: what chats gain by smaller ones, and training
    loses."""
    alone: dict[int, float] = {}
    rng = np.random.default_rng(0)
    length = config.sequence_tokens
    data = [_datum(rng, length, vocab_size) for _ in range(config.pass_tokens // length)]
    for size in config.max_train_tokens:
        with serving(name, config, f"max_train_tokens={size}") as server:
            client = openai_client(server)
            chat(client, name)
            idle = [chat(client, name) for _ in range(config.chats)]
            with Training(server, name, data, config.rank) as training:
                # the first one packs weights
                training.next_pass()
                alone[size] = training.next_pass()
                beside = [chat(client, name) for _ in range(config.chats_beside_training)]
        first = alone[config.max_train_tokens[0]]
        for contender, seconds in (("idle", idle), ("beside training", beside)):
            p50, p95 = np.quantile(seconds, [0.5, 0.95]) * 1000
            report.add(
                f"chat, max_train_tokens={size}",
                contender,
                **{"p50 ms": round(p50), "p95 ms": round(p95)},
                **{"pass alone s": round(alone[size], 2), "ratio": round(alone[size] / first, 3)},
            )


def apart(report: Report, config: Config, name: str, vocab_size: int) -> None:
    def one_server() -> None:
        with serving(name, config) as server:
            at_once(lambda i: remote_work(server.url, name, i, config, vocab_size), config.runs)

    def one_after_the_other() -> None:
        for number in range(config.runs):
            in_own_process(own_run, config, name, number, vocab_size)

    seconds: dict[str, list[float]] = {}
    for way, run in ((RUNS, one_after_the_other), (SERVER, one_server)):
        started = time.perf_counter()
        run()
        seconds[way] = [time.perf_counter() - started]
        report.add(f"{config.runs} runs", way, seconds=seconds[way], against=seconds[RUNS])


def own_run(config: Config, name: str, number: int, vocab_size: int) -> None:
    """In a process of its own."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as folder:
        service = connect("local", checkpoint_dir=folder, device=config.device)
        client_work(service, name, number, config, vocab_size)
        service.close()


if __name__ == "__main__":
    chz.nested_entrypoint(main)
