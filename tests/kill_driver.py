"""Runs a script again and again, kills it at random moments, and compares what is left.

A program of its own, so that it can import everything once and fork before any thread exists:

    python tests/kill_driver.py SCRIPT FOLDER NUM_KILLS SEED ARGUMENTS...

Prints one line of JSON: the kills, the runs that came to their end, and what differed in them.
"""

import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

# before this folder, whose folders have the names of packages
sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import continual
import icl_train
import matplotlib.pyplot
import reasoning_gym  # noqa: F401
import rl_loop
import sft
import torch
import transformers.models.llama.modeling_llama  # noqa: F401
import ttt
from run_results import (
    arc_difference,
    continual_difference,
    icl_difference,
    loop_difference,
    ttt_difference,
)

import training.backends.local.service  # noqa: F401
from utils.config.entrypoint import config_entrypoint

KILLED = -signal.SIGKILL
ENTRYPOINTS: dict[str, Callable[[list[str]], None]] = {
    "continual": lambda arguments: config_entrypoint(continual.main, arguments),
    "icl_train": icl_train.entrypoint,
    "rl_loop": rl_loop.entrypoint,
    "sft": lambda arguments: config_entrypoint(sft.main, arguments),
    "ttt": ttt.entrypoint,
    "ttt_arc": ttt.entrypoint,
}
DIFFERENCES: dict[str, Callable[[Path, Path], str | None]] = {
    "continual": continual_difference,
    "icl_train": icl_difference,
    "rl_loop": loop_difference,
    "sft": loop_difference,
    "ttt": ttt_difference,
    "ttt_arc": arc_difference,
}


def attempt(script: str, arguments: list[str], log: Path, seconds: float | None) -> int:
    """The exit code of one run, killed after `seconds` if it is not done by then."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(descriptor, 1)
            os.dup2(descriptor, 2)
            ENTRYPOINTS[script](arguments)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    deadline = time.monotonic() + (600 if seconds is None else seconds)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.002)


def main(script: str, folder: Path, num_kills: int, seed: int, arguments: list[str]) -> None:
    torch.set_num_threads(1)
    matplotlib.pyplot.switch_backend("agg")
    rng = random.Random(seed)
    log = folder / "log.txt"
    started = time.monotonic()
    reference = folder / "reference"
    code = attempt(script, [*arguments, f"log_path={reference}"], log, None)
    assert code == 0, log.read_text()
    whole = time.monotonic() - started
    kills = runs = 0
    problems: list[str] = []
    while kills < num_kills and not problems:
        runs += 1
        path = folder / f"run{runs}"
        while True:
            seconds = rng.uniform(0, 0.6 * whole) if kills < num_kills else None
            code = attempt(script, [*arguments, f"log_path={path}"], log, seconds)
            if code != KILLED:
                break
            kills += 1
        if code != 0:
            problems.append(f"run {runs} ended with {code}: {log.read_text()[-3000:]}")
        elif (difference := DIFFERENCES[script](path, reference)) is not None:
            problems.append(f"run {runs}: {difference}")
    print(json.dumps({"kills": kills, "runs": runs, "problems": problems, "seconds": whole}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5:])
