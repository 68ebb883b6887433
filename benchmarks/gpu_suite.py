"""The tests that need a card and the benchmarks that are worth one, as one JSON file.

    bash benchmarks/gpu_suite.sh out=h100.json
    uv run benchmarks/gpu_suite.py out=look.json quick=true

Each step is a process of its own with a limit of time; what it did not finish, or what failed, is
told in the file and does not stop the others. All limits together are under nine minutes; with
quick=true they are far from what a step needs, on a busy machine too.
"""

import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import chz
from common import Settings, machine, prepare

from utils.runs.files import atomic_write_text, expanded
from utils.runs.provenance import run_meta

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent
TESTS = HERE.parent / "tests" / "training" / "backends" / "local"
TAIL_LINES = 15
QUICK_SECONDS = 1800


@chz.chz(typecheck=True)
class Config:
    out: Path = chz.field(doc="the JSON file; an existing one is not replaced")
    device: Literal["cpu", "cuda"] | None = chz.field(
        default=None, doc="default: cuda where there is one"
    )
    quick: bool = chz.field(default=False, doc="tiny sizes, only to see that everything runs")
    steps: list[str] = chz.field(
        default_factory=list, doc="names of some of them; default: all, see STEPS"
    )

    @chz.validate
    def _files(self) -> None:
        if expanded(self.out).exists():
            raise ValueError(f"out={str(self.out)!r} exists; choose another name")
        if unknown := sorted(set(self.steps) - set(STEPS)):
            raise ValueError(f"steps={unknown}: allowed are {', '.join(STEPS)}")


class Step(NamedTuple):
    """`script` in benchmarks/ with its settings, or the tests; `seconds` it may take."""

    script: str | None
    settings: tuple[str, ...]
    seconds: int


STEPS = {
    "tests": Step(None, (), 100),
    "training": Step("training_speed", ("model=random_1b", "memory=false", "repeats=3"), 100),
    "sampling": Step("sampling", ("model=random_1b", "repeats=3"), 100),
    "grpo": Step("grpo_update", ("repeats=3",), 100),
    # SEAL's test-time training: 12 puzzles with 15 self-edits each
    "adapters": Step(
        "adapters",
        (
            *("model=random_1b", "num_adapters=[16,180]", "at_once=45", "repeats=1", "rank=128"),
            "target_modules=q_proj,v_proj,gate_proj,up_proj,down_proj",
        ),
        130,
    ),
}


def main(config: Config) -> None:
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    settings = prepare(Settings(device=config.device, quick=config.quick), {})
    device = settings.device
    assert device is not None
    told: dict[str, Any] = {"machine": machine(settings), "run": run_meta(), "steps": {}}
    for name in config.steps or STEPS:
        told["steps"][name] = done = run_step(STEPS[name], device, quick=config.quick)
        print(f"{name}: {done['ended']} after {done['seconds']:.0f} s, {len(done['rows'])} rows")
        # what is known survives whatever the next step does to the machine
        atomic_write_text(expanded(config.out), json.dumps(told, indent=1) + "\n")
    print(f"Written to {config.out}")
    if any(done["ended"] != "finished" for done in told["steps"].values()):
        raise SystemExit(1)


def run_step(step: Step, device: str, *, quick: bool) -> dict[str, Any]:
    """How it ended, its last lines, and the rows that it added to its results."""
    started = time.perf_counter()
    limit = QUICK_SECONDS if quick else step.seconds
    with tempfile.TemporaryDirectory(prefix="gpu-suite-") as folder:
        command = command_of(step, device, Path(folder), quick=quick)
        logger.info("%s", " ".join(command))
        process = subprocess.Popen(
            command,
            cwd=HERE.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=limit)
            ended = "finished" if process.returncode == 0 else f"failed ({process.returncode})"
        except subprocess.TimeoutExpired:
            # a benchmark has processes of its own
            os.killpg(process.pid, signal.SIGKILL)
            output, _ = process.communicate()
            ended = f"stopped at its limit of {limit} s"
        files = sorted(Path(folder).glob("*.jsonl"))
        rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    # the machine and the run stand once in the file
    rows = [{k: v for k, v in row.items() if k not in ("machine", "run")} for row in rows]
    return {
        "command": command,
        "ended": ended,
        "seconds": round(time.perf_counter() - started, 1),
        "last lines": output.splitlines()[-TAIL_LINES:],
        "rows": rows,
    }


def command_of(step: Step, device: str, folder: Path, *, quick: bool) -> list[str]:
    if step.script is None:
        chosen = "cuda" if device == "cuda" else "test_engine_dtypes and cpu-bfloat16 and llama"
        return [sys.executable, "-m", "pytest", "-q", "-n0", str(TESTS), "-k", chosen]
    sizes = ("quick=true",) if quick else step.settings
    script = str(HERE / f"{step.script}.py")
    return [sys.executable, script, *sizes, f"device={device}", f"results_dir={folder}"]


if __name__ == "__main__":
    chz.nested_entrypoint(main)
