"""Test-time training: adapters trained on the demonstrations of the very tasks they then solve.

    uv run scripts/ttt.py method=baseline k=0
    uv run scripts/ttt.py method=ttt k=10 num_training_steps=40
    uv run scripts/ttt.py method=shared_ttt k=10 data_dir=path/to/bbh
    uv run scripts/ttt.py domain=arc task_set=small
    uv run scripts/ttt.py domain=arc model_name=path/to/model task_set=arc1 evaluation=vote
    uv run scripts/ttt.py 'compare=["runs/ttt/A","runs/ttt/B"]'

domain=bbh (the default) are the 27 tasks of BIG-Bench-Hard: from data_dir, else from the hub, else
those of them that this project can generate. domain=arc takes the task sets of rl_loop.py, or a
Kaggle file. Writes config.yaml, tasks.jsonl, log.json (bbh, in the published structure) or
submission.json (arc, Kaggle's) and report.html under runs/ttt/<run_id>/, or log_path; the same
command with that log_path goes on with the tasks that are not done.
"""

import contextlib
import logging
import sys
import time
from pathlib import Path
from typing import Any, Literal

import chz
from dotenv import load_dotenv

from training.connect import (
    NUM_ENGINES_DOC,
    SAMPLER_DOC,
    SAMPLER_OPTIONS_DOC,
    SAMPLING_WEIGHTS_DOC,
    Sampler,
    SamplerOptions,
    SamplingWeights,
)
from training.domains.bbh.results import load_finished
from training.domains.registry import TTT_DOMAINS, make_ttt, with_domain_fields
from training.loop import connect_for_run, exit_on_interrupt
from training.models import check_sampling_weights
from utils.config.entrypoint import (
    as_config_errors,
    config_entrypoint,
    exit_on_config_error,
    held_log,
)
from utils.config.help import MODEL, OUTPUT, WHAT
from utils.devices import DTYPE_DOC, Dtype
from utils.runs.files import expanded
from utils.runs.run_dir import RunDir, new_run_path

logger = logging.getLogger(__name__)


@chz.chz(typecheck=True)
class Config:
    domain: str = chz.field(default="bbh", doc=", ".join(TTT_DOMAINS), metadata=WHAT)
    compare: list[str] = chz.field(
        default_factory=list, doc="folders of finished runs: one table and one plot of them, no run"
    )
    seed: int = chz.field(default=42, doc="of splits, permutations and adapters")
    dry_run: bool = chz.field(default=False, doc="print the plan, and stop")

    model_name: str = chz.field(
        default="embedded", doc="embedded, a folder or a hub id", metadata=MODEL
    )
    backend: Literal["local", "processes", "ray"] = chz.field(
        default="local", doc="where adapters are trained: here, or on num_engines engines"
    )
    num_engines: int | None = chz.field(default=None, doc=NUM_ENGINES_DOC)
    device: str | None = chz.field(
        default=None, doc="cpu or cuda; default: cuda where there is one"
    )
    dtype: Dtype | None = chz.field(default=None, doc=DTYPE_DOC)
    sampler: Sampler = chz.field(default="local", doc=SAMPLER_DOC)
    sampler_options: SamplerOptions = chz.field(default_factory=dict, doc=SAMPLER_OPTIONS_DOC)
    sampling_weights: SamplingWeights | None = chz.field(default=None, doc=SAMPLING_WEIGHTS_DOC)
    max_parallel_adapters: int = chz.field(default=16, doc="adapters in memory at a time")

    log_path: Path | None = chz.field(
        default=None, doc="run directory; an existing one resumes", metadata=OUTPUT
    )


def main(config: Any) -> None:
    load_dotenv()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    started = time.perf_counter()
    if config.compare:
        compare([expanded(path) for path in config.compare], config)
        return
    log_path = config.log_path or new_run_path("ttt", about=config.domain)
    # where items come from may change, as long as they are the same
    ignored = ("max_parallel_adapters", "num_engines", "dry_run", "source", "output_file")
    with contextlib.ExitStack() as stack:
        # what only the loaded model tells comes last
        with held_log():
            work = make_ttt(config.domain, config)
            with as_config_errors():
                check_sampling_weights(config.model_name, config.sampling_weights)
                service = connect_for_run(
                    log_path,
                    config.backend,
                    base_url=None,
                    device=config.device,
                    dtype=config.dtype,
                    num_engines=config.num_engines,
                    sampler=config.sampler,
                    sampler_options=config.sampler_options,
                    sampling_weights=config.sampling_weights,
                )
            stack.enter_context(contextlib.closing(service))
            if config.dry_run:
                print(work.plan())
                return
            opened = RunDir.open(
                "ttt", log_path, config, resume_fields_ignored=ignored, data=work.data()
            )
            run = stack.enter_context(opened)
            stack.enter_context(exit_on_interrupt(run, "tasks that are done are kept"))
            work.load(service, run)
        work.train_and_answer(run)
        print(work.finish(run))
    print(f"{time.perf_counter() - started:.0f} s in all")


def compare(paths: list[Path], config: Any) -> None:
    """One table and one page about finished runs of domain=bbh."""
    from evaluation.bbh import compare_text, write_comparison

    with as_config_errors():
        finished = load_finished(paths)
    text = compare_text(finished)
    log_path = config.log_path or new_run_path("ttt", about="compare")
    with RunDir.open("ttt", log_path, config) as run:
        report = write_comparison(run.path, finished)
    print(f"{text}\n\nReport: {report}")


def entrypoint(argv: list[str]) -> None:
    """Joins these settings with those of the domain that `argv` names, and runs main."""
    with exit_on_config_error(argv):
        target = with_domain_fields(Config, argv, default="bbh", entries=TTT_DOMAINS)

    def run(config: Any) -> None:
        main(config)

    run.__annotations__["config"] = target
    config_entrypoint(run, argv)


if __name__ == "__main__":
    entrypoint(sys.argv[1:])
