"""Hold in-context learners against the exact predictors, and plot what an experiment found.

    uv run scripts/icl_eval.py experiment=my_experiment overwrite=true
    uv run scripts/icl_eval.py name=my_experiment setting.num_tasks=64 evaluation.num_sequences=2000
    uv run scripts/icl_eval.py model=LLM model.model_name=embedded
    uv run scripts/icl_eval.py model=Bayes model.predictor=memorizing setting.num_tasks=64

By default, and with model=Transformer or MLP, evaluates the runs of icl_train.py that lie in
runs_dir/name (or the one at log_path): every checkpoint that has no metrics.pt yet, all of them
with overwrite=true. Those runs keep the settings they were trained with; what the command line says
of setting, model, training and seed chooses among them. model=LLM and model=Bayes are evaluated on
`setting` and become runs of the experiment themselves, in log_path or a folder named after what the
command line sets. experiment=NAME is a preset or, where none has that name, short for name=NAME.

Writes metrics.pt, metrics.csv and positions.csv into each evaluated folder, and of the whole
experiment report.html and plots/ (PNG and CSV); with log_path, plots and page of that run alone
lie in log_path/plots.
"""

import contextlib
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import chz
from dotenv import load_dotenv

from evaluation.icl.checks import total_sequences, untrained_problems
from evaluation.icl.choice import chosen_runs
from evaluation.icl.results import (
    HEADERS,
    METRICS,
    StoredRun,
    experiment_runs,
    last_rows,
    read_run,
    result_rows,
    results_frame,
    swept_values,
)
from training.connect import connect
from training.icl.config import (
    LLM,
    Bayes,
    Experiment,
    Model,
    Trained,
    Training,
    Transformer,
)
from utils.config.entrypoint import (
    as_config_errors,
    config_entrypoint,
    exit_on_config_error,
    given_value,
    held_log,
    raise_problems,
)
from utils.config.help import MODEL, WHAT
from utils.config.presets import has_preset
from utils.devices import choose_device
from utils.interrupts import exit_when_stopped
from utils.runs.files import expanded, shown_path
from utils.runs.run_dir import RunDir
from utils.runs.tables import text_table

logger = logging.getLogger(__name__)

# what a run of a language model or a predictor may be taken up again with
MAY_CHANGE = ("device", "dry_run", "evaluation", "name", "overwrite", "runs_dir", "training")


@chz.chz(typecheck=True)
class Config(Experiment):
    overwrite: bool = chz.field(
        default=False, doc="evaluate anew what was evaluated already", metadata=WHAT
    )
    dry_run: bool = chz.field(default=False, doc="print the plan, and stop")

    model: Model | None = chz.field(
        default=None,
        blueprint_unspecified=Transformer,
        doc="Transformer or MLP: of what icl_train.py trained; LLM; Bayes; default: all it trained",
        metadata=MODEL,
    )
    training: Training = chz.field(
        default_factory=Training, doc="only to choose among trained runs, see above"
    )

    @property
    def is_of_trained(self) -> bool:
        return self.model is None or isinstance(self.model, Trained)

    @chz.validate
    def _check_model(self) -> None:
        if self.model is not None and not self.is_of_trained:
            raise_problems(untrained_problems(self.model, self.setting, self.evaluation))


def main(config: Config, argv: Sequence[str]) -> None:
    """`argv` says what was set on the command line itself."""
    load_dotenv()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    if config.is_of_trained:
        evaluate_trained(config, argv)
    else:
        evaluate_untrained(config, argv)


# ------------------------------------------------------------------------------------ trained runs


def evaluate_trained(config: Config, argv: Sequence[str]) -> None:
    from evaluation.icl.runs import evaluate_plan, plan_run

    with held_log():
        with as_config_errors():
            device = choose_device(config.device)
        runs = chosen_runs(config, config.log_path, argv)
        plans = [plan_run(run, config.evaluation, overwrite=config.overwrite) for run in runs]
        raise_problems([problem for plan in plans for problem in plan.problems])
    if config.dry_run:
        rows = [
            (
                shown_path(plan.run.path),
                plan.num_checkpoints,
                len(plan.steps),
                total_sequences(plan.run.setting, config.evaluation),
            )
            for plan in plans
        ]
        headers = ("run", "checkpoints", "to evaluate", "sequences each")
        print(f"\n{text_table(headers, rows, max_width=100)}\n\nNothing was written.")
        return
    logger.info("runs keep the settings they were trained with; of these, evaluation.* counts")
    with exit_when_stopped(lambda: "Stopped; what is evaluated is kept, without overwrite."):
        for number, plan in enumerate(plans, start=1):
            logger.info("run %d of %d: %s", number, len(plans), plan.run.path)
            evaluate_plan(plan, config.evaluation, device=device)
    if sum(len(plan.steps) for plan in plans) == 0:
        logger.info("nothing was left to evaluate; overwrite=true does it anew")
    if config.log_path is not None:
        show(config, runs, config.log_path)
    else:
        show(config, experiment_runs(config.experiment_dir), config.experiment_dir)


# ------------------------------------------------------------------- language models and predictors


def evaluate_untrained(config: Config, argv: Sequence[str]) -> None:
    from evaluation.icl.runs import settings_problems
    from evaluation.icl.untrained import (
        choose_words,
        evaluate_once,
        load_untrained,
        untrained_folder,
    )
    from training.loop import exit_on_interrupt

    assert isinstance(config.model, (LLM, Bayes))
    given = [argument.partition("=")[0] for argument in argv]
    raise_problems(
        [
            f"{key}: model={type(config.model).__name__} is not trained; leave it out"
            + (" (evaluation.seed draws the sequences)" if key == "seed" else "")
            for key in given
            if key.split(".")[0] in ("training", "seed")
        ]
    )
    items = None
    if isinstance(config.model, LLM):
        items = choose_words(config.model, config.setting)
    with as_config_errors():
        dtype = config.model.dtype if isinstance(config.model, LLM) else None
        service = connect("local", device=config.device, dtype=dtype)
    folder = config.log_path or config.experiment_dir / untrained_folder(config.model, argv)
    done = (folder / METRICS).is_file()
    if done and not config.overwrite:
        raise_problems(settings_problems(folder, config.evaluation))
    if config.dry_run:
        total = total_sequences(config.setting, config.evaluation)
        rows = [("folder", shown_path(folder)), ("sequences", total)]
        rows.append(("tokens", total * config.setting.input_length))
        if items is not None:
            rows.append(("words", " ".join(map(repr, items.words_K))))
        rows.append(("done already", "yes" if done and not config.overwrite else "no"))
        print(f"\n{text_table(('', ''), rows, max_width=100)}\n\nNothing was written.")
        return
    kept = "nothing of this evaluation is kept"
    with contextlib.ExitStack() as stack:
        with held_log():
            opened = RunDir.open("icl_eval", folder, config, resume_fields_ignored=MAY_CHANGE)
            run = stack.enter_context(opened)
            stack.enter_context(exit_on_interrupt(run, kept))
            stack.enter_context(contextlib.closing(service))
            loaded = None
            if config.overwrite or not done:
                loaded = load_untrained(config, run, service, items)
        if loaded is None:
            logger.info("%s is evaluated; overwrite=true does it anew", run.path)
        else:
            evaluate_once(config, run, *loaded, items)
    if config.log_path is not None:
        show(config, [read_run(folder)], folder)
    else:
        show(config, experiment_runs(config.experiment_dir), config.experiment_dir)


# ------------------------------------------------------------------------------------------ results


def show(config: Config, runs: Sequence[StoredRun], folder: Path) -> None:
    """The table on screen; the plots and the page in `folder`/plots."""
    from evaluation.icl.plots import make_plots, write_plots, write_report

    frame = results_frame(runs, swept_values(config.experiment_dir))
    rows = result_rows(frame, folder)
    # only language models have it
    headers = HEADERS if any(row[-1] is not None for row in rows) else HEADERS[:-1]
    rows = [row[: len(headers)] for row in rows]
    plots, missing = make_plots(frame)
    paths = write_plots(plots, folder / "plots")
    # a trained run has a page of its own
    of_experiment = folder == config.experiment_dir
    report = (folder if of_experiment else folder / "plots") / "report.html"
    write_report(report, config.name, plots, missing, headers, rows)
    for name, reason in missing.items():
        logger.info("no plot %s: %s", name, reason)
    print(f"\n{text_table(headers, last_rows(rows), max_width=100)}")
    print(f"\nPlots: {', '.join(shown_path(path) for path in paths) or 'none'}")
    print(f"Report: {shown_path(report)}")


def name_of_runs(argv: Sequence[str]) -> list[str]:
    """`argv` with name=NAME for experiment=NAME, where there are runs but no preset of that name:
    they were trained without one."""
    given = dict(argument.split("=", 1) for argument in argv if "=" in argument)
    name = given.get("experiment", "")
    if name and "name" not in given and not has_preset(name):
        said = given_value(Config, argv, "runs_dir")
        runs_dir = chz.Blueprint(Config).make().runs_dir if said is None else said.value
        if (expanded(str(runs_dir)) / name).is_dir():
            return [f"name={name}" if a == f"experiment={name}" else a for a in argv]
    return list(argv)


def entrypoint(argv: list[str]) -> None:
    with exit_on_config_error(argv), as_config_errors():
        argv = name_of_runs(argv)

    def run(config: Config) -> None:
        main(config, argv)

    config_entrypoint(run, argv)


if __name__ == "__main__":
    entrypoint(sys.argv[1:])
