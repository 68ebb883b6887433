"""Decoding and training beside other busy processes, against transformers and PEFT.

    uv run benchmarks/busy.py
    uv run benchmarks/busy.py busy=0,2 candidates=GOMP_SPINCOUNT=1000,OMP_WAIT_POLICY=passive
    uv run benchmarks/busy.py quick=true

A busy process is an endless loop of Python on one core. "3 at once" are three copies of a contender
beside one such loop, as in a sweep beside a browser: programs that spin starve each other. Every
contender is a process of its own,
since OpenMP reads its environment once: `engine` and the rival have none, as for a user who has set
nothing, so the engine bounds its spinning (utils/openmp.py) and the rival does not; the others have
the environment in their name. They take turns, and all of them are measured beside the same loops.
Appends to benchmarks/results/busy.jsonl.
"""

import contextlib
import logging
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple

import chz
import numpy as np
import sampling
import training_speed
from common import ALPHA, Report, Settings, base_model, load_hf, prepare, random_tokens

from training.connect import connect
from utils.openmp import OWN_CHOICES, SPIN_COUNT
from utils.runs.progress import progress

WORKLOADS = ("decode", "train")
RIVALS = {"decode": "transformers generate()", "train": "HF + PEFT"}
# libgomp's own default
UNBOUNDED = "GOMP_SPINCOUNT=300000"


@chz.chz(typecheck=True)
class Config(Settings):
    busy: list[int] = chz.field(
        default_factory=lambda: [0, 1, 2, 4], doc="how many busy processes to stand beside"
    )
    together: list[int] = chz.field(
        default_factory=lambda: [3], doc="how many copies run at once, beside one busy process"
    )
    workloads: list[str] = chz.field(
        default_factory=lambda: list(WORKLOADS), doc=f"of {', '.join(WORKLOADS)}"
    )
    candidates: list[str] = chz.field(
        default_factory=lambda: [UNBOUNDED],
        doc="environments of further engines, NAME=VALUE or NAME=VALUE+NAME=VALUE",
    )
    rivals: bool = chz.field(default=True, doc="measure transformers and PEFT too")
    num_samples: int = chz.field(default=16, doc="rows that decode together")
    prompt_tokens: int = chz.field(default=16, doc="length of their prompt")
    max_tokens: int = chz.field(default=8, doc="length of every answer")
    batch_size: int = chz.field(default=4, doc="sequences of a training step")
    sequence_tokens: int = chz.field(default=100, doc="the shortest; the longest is twice that")
    max_seconds: float = chz.field(
        default=60.0, doc="a contender whose round takes longer is stopped and left out from there"
    )

    @chz.validate
    def _names(self) -> None:
        if unknown := sorted(set(self.workloads) - set(WORKLOADS)):
            raise ValueError(f"workloads has {unknown}: allowed are {', '.join(WORKLOADS)}")
        for candidate in self.candidates:
            if not all("=" in part for part in candidate.split("+")):
                raise ValueError(f"candidates has {candidate!r}: NAME=VALUE is needed")


QUICK = {
    "busy": [0, 1],
    "together": [],
    "num_samples": 2,
    "prompt_tokens": 10,
    "max_tokens": 3,
    "batch_size": 2,
    "sequence_tokens": 10,
}


# ------------------------------------------------------------------- inside a contender's process


def serve(
    connection: Connection, workload: str, name: str, environment: str | None, config: Config
) -> None:
    """Runs a round for every number that comes, and says when it is done, until None comes.

    `environment` is None for the rival."""
    make_round = rival_round if environment is None else engine_round
    run = make_round(workload, name, config)
    connection.send("ready")
    while (number := connection.recv()) is not None:
        run(number)
        connection.send("done")


def engine_round(workload: str, name: str, config: Config) -> Callable[[int], object]:
    # first of all, as in a script: torch reads the environment when it is imported
    service: Any = connect("local", device=config.device)
    config = _prepared(config)
    vocab_size = service.engine(name).decoder.vocab_size
    if workload == "train":
        client = service.create_lora_training_client(name, rank=16, train_unembed=False, seed=0)
        batches = _batches(config, vocab_size)
        return lambda number: training_speed.engine_step(client, batches[number])
    client = service.create_sampling_client(base_model=name)
    sizes, prompts = _sizes(config), _prompts(config, vocab_size)
    return lambda number: sampling.engine_sample(client, prompts[number], config.num_samples, sizes)


def rival_round(workload: str, name: str, config: Config) -> Callable[[int], object]:
    config = _prepared(config)
    assert config.device is not None
    model = load_hf(name, config.device)
    vocab_size = model.get_output_embeddings().weight.shape[0]
    if workload == "train":
        from peft import LoraConfig, get_peft_model

        lora = LoraConfig(r=16, lora_alpha=int(ALPHA), target_modules="all-linear")
        peft = get_peft_model(model, lora).eval()
        step = training_speed.PeftStep(peft, config.device, cut_logits=False)
        batches = _batches(config, vocab_size)
        return lambda number: step(batches[number])
    sizes, prompts = _sizes(config), _prompts(config, vocab_size)
    return lambda number: sampling.generate(model, prompts[number], config.num_samples, sizes)


def _prepared(config: Config) -> Config:
    """OMP_NUM_THREADS of a candidate counts, `threads` else; the sizes are final already."""
    threads = os.environ.get("OMP_NUM_THREADS", config.threads)
    return prepare(chz.replace(config, threads=None if threads is None else int(threads)), {})


def _sizes(config: Config) -> sampling.Config:
    return sampling.Config(
        device=config.device,
        prompt_tokens=config.prompt_tokens,
        max_tokens=config.max_tokens,
    )


def _prompts(config: Config, vocab_size: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    rounds = config.warmup + config.repeats
    return [random_tokens(rng, config.prompt_tokens, vocab_size) for _ in range(rounds)]


def _batches(config: Config, vocab_size: int) -> list[list[training_speed.Example]]:
    sizes = training_speed.Config(
        warmup=config.warmup,
        repeats=config.repeats,
        batch_size=config.batch_size,
        min_tokens=config.sequence_tokens,
        max_tokens=2 * config.sequence_tokens,
        answer_tokens=max(4, config.sequence_tokens // 8),
    )
    return training_speed.make_batches(sizes, vocab_size)


# ------------------------------------------------------------------------------------ from outside


class Case(NamedTuple):
    busy: int
    copies: int = 1

    def __str__(self) -> str:
        return f"{f'{self.copies} at once ' if self.copies > 1 else ''}beside {self.busy}"

    def fair_slowdown(self, threads: int, cores: int) -> float:
        """With an equal share of the cores for every thread that wants to run."""
        alone = min(1.0, cores / threads)
        return alone / min(1.0, cores / (threads * self.copies + self.busy))


QUIET = Case(0)


class Contender:
    """Processes with an environment of their own; `seconds` of its timed rounds by case, until all
    copies are done. `stopped`: where a round took too long."""

    def __init__(self, workload: str, name: str, environment: str | None, config: Config) -> None:
        self.seconds: dict[Case, list[float]] = {}
        self.stopped: Case | None = None
        self._start = (workload, name, environment, config)
        self._copies: list[tuple[BaseProcess, Connection]] = []

    def prepare(self, copies: int) -> None:
        """Starts the copies that are missing, one after the other: loading keeps busy too."""
        context = multiprocessing.get_context("spawn")
        while len(self._copies) < copies and self.stopped is None:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, *self._start), daemon=True)
            with _environment(self._start[2] or ""):
                process.start()
            # so that recv() ends when the process does
            theirs.close()
            ours.recv()
            self._copies.append((process, ours))

    def run(self, number: int, case: Case, config: Config) -> None:
        """One round; those of the warm-up are not kept."""
        if self.stopped is not None:
            return
        started = time.perf_counter()
        connections = [connection for _, connection in self._copies[: case.copies]]
        for connection in connections:
            connection.send(number)
        for connection in connections:
            if not connection.poll(max(0.0, started + config.max_seconds - time.perf_counter())):
                self.stopped = case
                self.close()
                return
            connection.recv()
        if number >= config.warmup:
            self.seconds.setdefault(case, []).append(time.perf_counter() - started)

    def close(self) -> None:
        for process, connection in self._copies:
            if self.stopped is None and process.is_alive():
                connection.send(None)
                process.join(timeout=10)
            process.kill()
            process.join()
        self._copies = []


@contextlib.contextmanager
def _environment(text: str) -> Iterator[None]:
    """This process's environment with the NAME=VALUE+NAME=VALUE of `text` and none of what a user
    may have set about OpenMP."""
    before = dict(os.environ)
    for variable in (*OWN_CHOICES, "OMP_DYNAMIC", "OMP_NUM_THREADS"):
        os.environ.pop(variable, None)
    os.environ.update(dict(part.split("=", 1) for part in text.split("+") if part))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _busy_processes(number: int) -> Iterator[None]:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(number)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def measure(workload: str, name: str, config: Config) -> dict[str, Contender]:
    environments: dict[str, str | None] = {"engine": ""}
    environments |= {f"engine, {text}": text for text in config.candidates}
    if config.rivals:
        environments[RIVALS[workload]] = None
    contenders = {
        contender: Contender(workload, name, environment, config)
        for contender, environment in environments.items()
    }
    cases, rounds = cases_of(config), config.warmup + config.repeats
    try:
        with progress(len(cases) * rounds, workload, "round") as bar:
            for case in cases:
                for contender in contenders.values():
                    contender.prepare(case.copies)
                with _busy_processes(case.busy):
                    for number in range(rounds):
                        for contender in contenders.values():
                            contender.run(number, case, config)
                        bar.update(1)
    finally:
        for contender in contenders.values():
            contender.close()
    return contenders


def cases_of(config: Config) -> list[Case]:
    return [*(Case(n) for n in config.busy), *(Case(1, copies) for copies in config.together)]


def main(config: Config) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    config = prepare(config, QUICK)
    assert config.threads is not None
    report = Report("busy", config)
    cores = available_cores()
    with base_model(config) as name:
        for workload in config.workloads:
            contenders = measure(workload, name, config)
            for case in cases_of(config):
                reference = contenders["engine"].seconds.get(case, [])
                for label, contender in contenders.items():
                    seconds = contender.seconds.get(case, [])
                    report.add(
                        f"{workload} {case}",
                        label,
                        seconds=seconds,
                        tokens=case.copies * _tokens(workload, config),
                        against=reference if len(reference) == len(seconds) else [],
                        slower=_slowdown(contender, case, config),
                        fair=round(case.fair_slowdown(config.threads, cores), 2),
                    )
    report.note(
        "ratio: seconds of the row over the engine's. slower: over its own when alone; fair:"
    )
    report.note(
        f"what equal shares of {cores} cores would make of that, {config.threads} threads each."
    )
    report.note(f"The engine had GOMP_SPINCOUNT={SPIN_COUNT}, from connect().")
    report.finish()


def available_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _slowdown(contender: Contender, case: Case, config: Config) -> float | str | None:
    if contender.stopped == case:
        return f"over {config.max_seconds:g} s"
    alone, seconds = contender.seconds.get(QUIET), contender.seconds.get(case)
    if not alone or not seconds:
        return None
    return round(statistics.median(seconds) / statistics.median(alone), 2)


def _tokens(workload: str, config: Config) -> int:
    if workload == "decode":
        return config.num_samples * config.max_tokens
    # random tokens: the lengths of a round do not depend on the vocabulary
    return sum(len(example.tokens) for example in _batches(config, 1000)[0])


if __name__ == "__main__":
    chz.nested_entrypoint(main)
