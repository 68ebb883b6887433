"""Run another script once for every combination of some of its settings.

    uv run scripts/sweep.py script=icl_train experiment=balls_and_urns_small max_parallel=2
    uv run scripts/sweep.py script=ttt 'sweep={"lr":[1e-4,1e-3],"seed":[42,43]}' dry_run=true
    uv run scripts/sweep.py script=sft examples_file=datasets/XXXX.examples.yaml \\
        'sweep={"learning_rate":[1e-4,3e-4],"seed":[0,1,2]}' 'metrics=["heldout/loss"]'

The arguments listed below are the sweep's own, also where the script has one of that name. Every
other key=value is handed to the script as it is: see `scripts/NAME.py --help` for those. A preset
(experiment=NAME) may bring axes; sweep={...} replaces those of the same key and adds others.

Each cell of the grid, its first axis slowest, is a run in <folder>/<cell> that prints to
<folder>/logs/<cell>.txt; scripts with an output_dir get <folder>/outputs for it. The folder is
log_path, else the experiment's (icl_train, icl_eval), else a new one under runs/sweep/. The same
command with that folder goes on: cells that are done are skipped, others resume, and axes may get
new values. Writes sweep.json (the manifest), sweep.csv, sweep.png with sweep_plot.csv, and
sweep.html. Ends with code 1 where a cell failed.
"""

import contextlib
import datetime
import json
import logging
import os
import signal
import sys
from collections.abc import Generator, Sequence
from pathlib import Path

import chz
from dotenv import load_dotenv

from utils.config.entrypoint import (
    ConfigError,
    as_config_errors,
    exit_on_config_error,
    exit_with_help,
    load_config,
    raise_problems,
    to_plain,
    wants_help,
)
from utils.config.help import OUTPUT, WHAT
from utils.config.ranges import range_problems
from utils.runs.files import shown_path
from utils.runs.locks import claimed
from utils.runs.progress import progress
from utils.runs.tables import text_table
from utils.sweeps.launch import Job, JobResult, Launcher
from utils.sweeps.launchers import LAUNCHERS, make_launcher
from utils.sweeps.manifest import (
    LONGEST_NAME,
    Cell,
    Manifest,
    axis_labels,
    last_lines,
    open_manifest,
)
from utils.sweeps.plan import Plan, key_of, make_plan
from utils.sweeps.report import write_outcome
from utils.terminal import argument_text, print_anything, setting, shell_word

logger = logging.getLogger(__name__)

SCRIPTS = Path(__file__).resolve().parent
SECONDS_TO_SAVE = 30.0
INTERRUPTED = (128 + signal.SIGINT, 128 + signal.SIGTERM, -signal.SIGINT, -signal.SIGTERM)
CHECK = "--check"


@chz.chz(typecheck=True)
class Config:
    script: str = chz.field(
        doc="name of the script to run: icl_train, ttt, sft, ...", metadata=WHAT
    )
    sweep: str = chz.field(
        default="{}", doc='axes, JSON or Python: {"key": [values]}; a value may be a list itself'
    )
    max_parallel: int = chz.field(default=1, doc="cells at a time; they share the devices")
    threads: int | None = chz.field(
        default=None, doc="compute threads of each cell; default: cores / max_parallel"
    )
    launcher: str = chz.field(default="local", doc=f"where cells run: {', '.join(LAUNCHERS)}")
    gpus: float = chz.field(default=0, doc="of each cell, with launcher=ray")
    dry_run: bool = chz.field(default=False, doc="print the grid, and stop")

    log_path: Path | None = chz.field(
        default=None,
        doc="folder of the sweep; an existing one goes on. Cells lie in it",
        metadata=OUTPUT,
    )
    metrics: list[str] = chz.field(
        default_factory=list, doc="columns of the table; default: headline numbers that differ"
    )
    plot: str | None = chz.field(
        default=None, doc="metric to draw against the first axis of numbers; default: first column"
    )

    @chz.validate
    def _check(self) -> None:
        problems = range_problems(self, at_least_1=("max_parallel", "threads"))
        if self.launcher not in LAUNCHERS:
            problems.append(f"launcher={self.launcher!r}: known are {', '.join(LAUNCHERS)}")
        if self.gpus and self.launcher == "local":
            problems.append(f"gpus={self.gpus:g} needs launcher=ray; local cells share the GPUs")
        raise_problems(problems)


def script_path(name: str, scripts: Path) -> Path:
    known = sorted(path.stem for path in scripts.glob("*.py") if path.stem != "sweep")
    if name not in known:
        raise ConfigError(f"script={name!r}: known are {', '.join(known)}")
    return scripts / f"{name}.py"


def main(config: Config, plan: Plan) -> None:
    load_dotenv()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if config.dry_run:
        manifest, cells = open_manifest(
            plan.folder, config.script, plan.arguments, plan.axes, plan.inputs
        )
        print(dry_run_text(plan, manifest, cells))
        return
    threads = config.threads or max(1, (os.cpu_count() or 1) // config.max_parallel)
    # before anything is written: it may not be there
    with as_config_errors():
        launcher = make_launcher(
            config.launcher, max_parallel=config.max_parallel, threads=threads, gpus=config.gpus
        )
    with claimed(plan.folder / ".sweep.lock", f"log_path={plan.folder}"):
        manifest, cells = open_manifest(
            plan.folder, config.script, plan.arguments, plan.axes, plan.inputs
        )
        left = [cell for cell in cells if not plan.is_done(cell)]
        for cell in left:
            if cell.status == "done":
                cell.status = "pending"
        manifest.save(plan.folder)
        num_others = len(manifest.cells) - len(cells)
        logger.info(
            "%s: %d cells to run, %d done before%s",
            plan.folder,
            len(left),
            len(cells) - len(left),
            f"; {num_others} of values not given now stay as they are" if num_others else "",
        )
        stopped = run_cells(plan, manifest, left, launcher)
        text = write_outcome(plan.folder, manifest, config.metrics, config.plot)
    print(f"\n{text}\n\nReport: {shown_path(plan.folder / 'sweep.html')}")
    exit_unfinished(plan, cells, stopped)


def run_cells(
    plan: Plan, manifest: Manifest, cells: Sequence[Cell], launcher: Launcher
) -> int | None:
    """Runs the cells and keeps the manifest; gives the signal that stopped it, if any did."""
    by_handle: dict[str, Cell] = {}
    log_starts: dict[str, int] = {}
    unfinished: set[str] = set()

    def record(handle: str, result: JobResult | None) -> None:
        cell = by_handle[handle]
        if result is None:
            cell.status, cell.started, cell.finished = "running", now(), None
            cell.returncode = cell.error = cell.seconds = None
        else:
            finish(cell, result, plan.log(cell), log_starts[handle], stopped=bool(received))
            unfinished.remove(handle)
            bar.update(0 if received else 1)
        manifest.save(plan.folder)

    with stop_signals() as received, progress(len(cells), manifest.script, "cell") as bar:
        try:
            for cell in cells:
                log = plan.log(cell)
                # what a killed cell has printed must not be lost
                env = {"PYTHONUNBUFFERED": "1"}
                handle = launcher.submit(Job(cell.name, plan.argv(cell), log, Path.cwd(), env))
                by_handle[handle] = cell
                unfinished.add(handle)
                log_starts[handle] = log.stat().st_size if log.exists() else 0
            while unfinished and not received:
                for update in launcher.wait(timeout=0.5):
                    record(*update)
        finally:
            # also after an error of our own, such as a full disk, nothing may go on unwatched
            if received:
                signal.signal(signal.SIGINT, signal.default_int_handler)
                print("\nStopping; the cells at work may save first.", file=sys.stderr)
            for update in launcher.cancel(SECONDS_TO_SAVE if received else 0):
                record(*update)
    return received[0] if received else None


def finish(cell: Cell, result: JobResult, log: Path, log_start: int, *, stopped: bool) -> None:
    """Notes how the cell ended; its error is what it printed last, after `log_start`."""
    cell.returncode, cell.seconds = result.returncode, round(result.seconds, 3)
    cell.finished = now()
    if result.returncode == 0:
        cell.status = "done"
        logger.info("done: %s, %.0f s", cell.name, result.seconds)
        return
    cell.status = "interrupted" if stopped or result.returncode in INTERRUPTED else "failed"
    with open(log, "rb") as file:
        file.seek(log_start)
        cell.error = last_lines(file.read().decode("utf-8", "replace"))
    logger.warning("%s: %s, code %d, see %s", cell.status, cell.name, result.returncode, log)


@contextlib.contextmanager
def stop_signals() -> Generator[list[int], None, None]:
    """While the block runs, SIGINT and SIGTERM only add their number to the list."""
    received: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(n, lambda number, _frame: received.append(number)) for n in numbers]
    try:
        yield received
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def exit_unfinished(plan: Plan, cells: Sequence[Cell], stopped: int | None) -> None:
    """Ends the program with a code other than 0 where not all of these cells are done."""
    where = setting("log_path", shown_path(plan.folder))
    again = f"The same command with {where} goes on from there."
    left = [cell for cell in cells if cell.status != "done"]
    if stopped is not None:
        num_done = len(cells) - len(left)
        print(f"\nStopped with {num_done} of {len(cells)} cells done. {again}", file=sys.stderr)
        sys.exit(128 + stopped)
    for cell in left:
        error = (cell.error or "no output").replace("\n", "\n    ")
        log = shown_path(plan.log(cell))
        print(f"\n{cell.name}: {cell.status}, see {log}\n    {error}", file=sys.stderr)
    if left:
        print(f"\n{len(left)} of {len(cells)} cells are not done. {again}", file=sys.stderr)
        sys.exit(1)


def dry_run_text(plan: Plan, manifest: Manifest, cells: Sequence[Cell]) -> str:
    """The grid with each cell's folder and status, and the command of its first cell."""
    rows = []
    for cell in cells:
        status = "pending" if cell.status == "done" and not plan.is_done(cell) else cell.status
        values = [argument_text(value) for value in cell.values.values()]
        rows.append([*values, cell.folder, status])
    labels = axis_labels(list(manifest.axes)).values()
    table = text_table([*labels, "folder", "status"], rows, max_width=LONGEST_NAME)
    command = " ".join(map(shell_word, ["python", *plan.argv(cells[0])[1:]]))
    return (
        f"\n{table}\n\n{len(cells)} cells, in {shown_path(plan.folder)}. The first one:\n"
        f"{command}\n\nNothing was written."
    )


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def entrypoint(argv: Sequence[str], scripts: Path = SCRIPTS) -> None:
    """Sorts the arguments into the sweep's own and those of the script, and runs main."""
    print_anything()
    if wants_help(argv):
        # of the script's settings its own help tells
        own = [a for a in argv if "=" not in a or key_of(a) in chz.chz_fields(Config)]
        exit_with_help(Config, own, layers=(), doc=__doc__)
    own = [argument for argument in argv if key_of(argument) in chz.chz_fields(Config)]
    others = [argument for argument in argv if argument not in own and argument != CHECK]
    with exit_on_config_error(argv):
        config = load_config(Config, own, layers=())
        plan = make_plan(
            script_path(config.script, scripts),
            config.sweep,
            others,
            folder=config.log_path,
            own_settings=list(chz.chz_fields(Config)),
        )
        if CHECK in argv:
            told = {"problems": [], "config": to_plain(config), "experiment_dir": str(plan.folder)}
            print(json.dumps(told))
            return
        main(config, plan)


if __name__ == "__main__":
    entrypoint(sys.argv[1:])
