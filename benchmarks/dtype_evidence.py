"""Does bfloat16 learn what float32 learns? The same runs in both, with the same seeds, paired.

    uv run benchmarks/dtype_evidence.py
    uv run benchmarks/dtype_evidence.py 'parts=["sft"]' 'seeds=[0]' max_minutes=5

sft: the fixed set in datasets/, its loss step by step and on held-out examples. gym: GRPO on
README's problems, reward before and after. ttt: adapters of two generated families of
BIG-Bench-Hard. Each run is a script of its own with the embedded model; it is stored in
benchmarks/results/dtype_evidence.jsonl when it is done, and the same command goes on where it
stopped. The table has what is stored of these settings: means over seeds, and the difference with
its 95 % interval (Student's t over seeds).
"""

import logging
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import chz

from evaluation.stats import paired_difference
from utils.runs.files import append_jsonl, read_jsonl
from utils.runs.tables import text_table
from utils.terminal import print_anything

logger = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
RESULTS_FILE = "dtype_evidence.jsonl"
DTYPES = ("float32", "bfloat16")
FAMILIES = ("dyck_languages", "boolean_expressions")
HEADERS = ("part", "measure", "seeds", *DTYPES, "difference", "from", "to", "p")

Record = dict[str, Any]
Metrics = Sequence[dict[str, float]]


@chz.chz(typecheck=True)
class Config:
    parts: list[str] = chz.field(
        default_factory=lambda: list(PARTS), doc="some of sft, gym, ttt, in this order"
    )
    seeds: list[int] = chz.field(default_factory=lambda: [0, 1, 2], doc="each in both dtypes")
    sft_epochs: int = chz.field(default=6, doc="passes of sft over its examples")
    gym_steps: int = chz.field(default=10, doc="updates of gym")
    gym_eval_size: int = chz.field(default=100, doc="held-out problems of gym")
    ttt_items: int = chz.field(default=80, doc="items of each family of ttt")
    runs_dir: Path = chz.field(
        default=ROOT / "runs" / "dtype_evidence", doc="the runs' folders, where they are resumed"
    )
    results_dir: Path = chz.field(default=RESULTS, doc="folder of the .jsonl")
    max_minutes: float = chz.field(
        default=1e9, doc="begin no run after this time; run again to go on"
    )

    @chz.validate
    def _parts(self) -> None:
        if unknown := sorted(set(self.parts) - set(PARTS)):
            raise ValueError(f"parts={unknown}: allowed are {', '.join(PARTS)}")


def sft_arguments(config: Config) -> list[str]:
    return [
        *("sft", "examples_file=datasets/signs-off.examples.yaml", "learning_rate=1e-3"),
        *(f"num_epochs={config.sft_epochs}", "eval_every=0", "save_every=0"),
    ]


def sft_measures(metrics: Metrics) -> dict[str, Any]:
    losses = [m["train/loss"] for m in metrics if "train/loss" in m]
    held_out = [m["heldout/loss"] for m in metrics if "heldout/loss" in m]
    return {
        "held-out loss before": held_out[0],
        "held-out loss after": held_out[-1],
        "training loss, last quarter": fmean(losses[-max(1, len(losses) // 4) :]),
        "training losses": losses,
    }


def gym_arguments(config: Config) -> list[str]:
    return [
        *("rl_loop", "domain=gym", "task=needle_haystack", "task_config.min_num_statements=2"),
        *("task_config.max_num_statements=4", "shots=3", "max_tokens=8", "groups_per_batch=8"),
        *("group_size=8", "learning_rate=3e-4", "save_every=5", f"num_steps={config.gym_steps}"),
        *(f"eval_every={config.gym_steps}", f"eval_size={config.gym_eval_size}"),
    ]


def gym_measures(metrics: Metrics) -> dict[str, Any]:
    held_out = [m["eval/reward"] for m in metrics if "eval/reward" in m]
    rewards = [m["train/reward"] for m in metrics if "train/reward" in m]
    apart = [m["policy/rms_sampler_trainer"] for m in metrics if "policy/rms_sampler_trainer" in m]
    return {
        "held-out reward before": held_out[0],
        "held-out reward after": held_out[-1],
        "training reward, all batches": fmean(rewards),
        "sampler against trainer, nats": fmean(apart),
    }


def ttt_arguments(config: Config) -> list[str]:
    tasks = ", ".join(f'"{family}"' for family in FAMILIES)
    return [
        *("ttt", "method=ttt", "source=generated", f"tasks=[{tasks}]", "batch_size=1", "lr=3e-4"),
        f"max_items={config.ttt_items}",
    ]


def ttt_measures(metrics: Metrics) -> dict[str, Any]:
    found = {name: value for line in metrics for name, value in line.items()}
    return {f"right, %: {family}": found[f"accuracy/{family}"] for family in FAMILIES}


PARTS: dict[str, tuple[Callable[[Config], list[str]], Callable[[Metrics], dict[str, Any]]]] = {
    "sft": (sft_arguments, sft_measures),
    "gym": (gym_arguments, gym_measures),
    "ttt": (ttt_arguments, ttt_measures),
}


class Run(NamedTuple):
    """`arguments` are those of a script, without its name."""

    part: str
    arguments: tuple[str, ...]
    seed: int
    dtype: str


def runs_of(config: Config) -> list[Run]:
    return [
        Run(part, tuple(PARTS[part][0](config)[1:]), seed, dtype)
        for part in config.parts
        for seed in config.seeds
        for dtype in DTYPES
    ]


def stored(config: Config) -> dict[Run, Record]:
    records = read_jsonl(config.results_dir / RESULTS_FILE, missing_ok=True)
    return {Run(r["part"], tuple(r["arguments"]), r["seed"], r["dtype"]): r for r in records}


def carry_out(config: Config, run: Run) -> None:
    """Runs the script, or goes on with its run, and stores what came of it."""
    arguments_of, measures_of = PARTS[run.part]
    # the numbers among the settings are what can differ: other settings are other runs
    numbers = [v for argument in run.arguments if (v := argument.partition("=")[2]).isdigit()]
    folder = config.runs_dir / "-".join((run.part, *numbers, str(run.seed), run.dtype))
    script = ROOT / "scripts" / f"{arguments_of(config)[0]}.py"
    command = [sys.executable, str(script), *run.arguments, f"log_path={folder}"]
    command += [f"seed={run.seed}", f"dtype={run.dtype}"]
    logger.info("%s, seed %d, %s", run.part, run.seed, run.dtype)
    started = time.perf_counter()
    subprocess.run(command, cwd=ROOT, check=True)
    seconds = round(time.perf_counter() - started, 1)
    measures = measures_of(read_jsonl(folder / "metrics.jsonl"))
    record = {**run._asdict(), "seconds": seconds, "measures": measures}
    append_jsonl(config.results_dir / RESULTS_FILE, record)


def table(records: Mapping[Run, Record]) -> str:
    rows = []
    for part in dict.fromkeys(run.part for run in records):
        values: dict[str, dict[tuple[int, str], float]] = {}
        for run, record in records.items():
            if run.part == part:
                for name, value in {**record["measures"], "seconds": record["seconds"]}.items():
                    if not isinstance(value, list):
                        values.setdefault(name, {})[run.seed, run.dtype] = value
        for name, known in values.items():
            seeds = [s for s, dtype in known if dtype == DTYPES[0] and (s, DTYPES[1]) in known]
            if seeds:
                base, tuned = ([known[seed, dtype] for seed in seeds] for dtype in DTYPES)
                found = paired_difference(base, tuned, seeds)
                low, high = found.interval or (None, None)
                rows.append(
                    (
                        *(part, name, len(seeds), found.base_mean, found.tuned_mean),
                        *(found.difference, low, high, found.p),
                    )
                )
    return text_table(HEADERS, rows)


def curves(records: Mapping[Run, Record]) -> str | None:
    """How far the training losses of sft are apart, step by step."""
    losses = {
        (run.seed, run.dtype): record["measures"]["training losses"]
        for run, record in records.items()
        if run.part == "sft"
    }
    gaps = [
        abs(one - other)
        for seed in dict.fromkeys(seed for seed, _ in losses)
        if all((seed, dtype) in losses for dtype in DTYPES)
        for one, other in zip(*(losses[seed, dtype] for dtype in DTYPES), strict=True)
    ]
    if not gaps:
        return None
    return (
        f"Training losses of sft, {len(gaps)} steps in all: {fmean(gaps):.2g} apart on average, "
        f"{max(gaps):.2g} at most"
    )


def main(config: Config) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    print_anything()
    deadline = time.monotonic() + 60 * config.max_minutes
    runs, done = runs_of(config), stored(config)
    todo = [run for run in runs if run not in done]
    for number, run in enumerate(todo):
        if time.monotonic() > deadline:
            logger.info("%d runs are left for the next time", len(todo) - number)
            break
        carry_out(config, run)
    done = stored(config)
    records = {run: done[run] for run in runs if run in done}
    print(f"\n{table(records)}")
    if (text := curves(records)) is not None:
        print(text)


if __name__ == "__main__":
    chz.nested_entrypoint(main)
