"""Train a small network on a mixture of tasks, and see whether it memorises or generalises.

    uv run scripts/icl_train.py experiment=balls_and_urns_small
    uv run scripts/icl_train.py model=Transformer model.hidden_size=128 training.learning_rate=1e-3
    uv run scripts/icl_train.py setting=LinearRegression setting.num_tasks=64 model=MLP dry_run=true

Tasks are urns, linear functions or labelled items (setting=BallsAndUrns, LinearRegression,
Classification), num_tasks of them or, with inf, a new one for every sequence. The model's loss is
logged beside those of the exact Bayesian predictors that know the tasks (memorizing) or only where
tasks come from (generalizing). Writes config.yaml, metrics.jsonl, checkpoints/<step>/ and
report.html under log_path, else runs_dir/name/<what the command line sets of the run>; the same
command goes on where the run stopped. The tasks lie in runs_dir/tasks and are shared by all runs.
"""

import contextlib
import logging
import sys

import chz
from dotenv import load_dotenv

from training.icl.config import (
    TASKS,
    Experiment,
    Trained,
    Training,
    Transformer,
    run_folder_name,
)
from training.icl.schedules import save_steps
from utils.config.entrypoint import (
    as_config_errors,
    config_entrypoint,
    held_log,
    problems_of,
    raise_problems,
)
from utils.config.help import MODEL, OUTPUT, WHAT
from utils.devices import choose_device
from utils.runs.live_report import LiveReport
from utils.runs.report import Report
from utils.runs.run_dir import RunDir
from utils.runs.sinks import sink_factories

logger = logging.getLogger(__name__)


@chz.chz(typecheck=True)
class Config(Experiment):
    model: Trained = chz.field(
        blueprint_unspecified=Transformer, doc="Transformer or MLP", metadata=MODEL
    )
    training: Training = chz.field(default_factory=Training, doc="updates, rates and what is kept")

    sinks: list[str] = chz.field(
        default_factory=list, doc="wandb, tensorboard, trackio", metadata=OUTPUT
    )

    dry_run: bool = chz.field(default=False, doc="print the plan, and stop", metadata=WHAT)

    @chz.validate
    def _check_positions(self) -> None:
        limit = getattr(self.model, "max_positions", None)
        length = self.setting.input_length
        if limit is not None and length > limit:
            raise_problems(
                [
                    f"model.max_positions={limit}: a sequence of this setting has {length} inputs; "
                    "raise it, leave it out, or lower setting.context_length"
                ]
            )


def main(config: Config, folder: str) -> None:
    """`folder` is the run's inside its experiment's, where log_path is not given."""
    load_dotenv()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )

    from training.icl.families import make_family
    from training.icl.models import build_model
    from training.icl.tasks import keep_task_set, load_task_set, task_input
    from training.icl.train import (
        OnlineEvaluation,
        Trainer,
        load_resume_state,
        memory_estimate,
        train,
    )
    from training.icl.train_report import closing_words, make_report, plan_table
    from training.loop import exit_on_interrupt

    training = config.training
    steps = save_steps(
        training.save_schedule, training.num_steps, training.num_checkpoints, training.save_steps
    )
    # what is stored says which steps these are
    training = chz.replace(training, save_schedule="explicit", save_steps=steps)
    config = chz.replace(config, training=training)
    log_path = config.log_path or config.experiment_dir / folder
    tasks_dir = config.runs_dir / TASKS
    family = make_family(config.setting)
    # evaluation is icl_eval's; the others only say where the run lies or what it shows
    may_change = ("dry_run", "evaluation", "name", "runs_dir", "sinks", "training.resume_every")
    with contextlib.ExitStack() as stack:
        with held_log():
            raise_problems(
                problems_of(
                    lambda: sink_factories(config.sinks), lambda: choose_device(config.device)
                )
            )
            with as_config_errors():
                device = choose_device(config.device)
                if config.dry_run:
                    model = build_model(config.model, family, config.seed)
                    table = plan_table(
                        num_parameters=sum(p.numel() for p in model.parameters()),
                        memory=memory_estimate(model, family, training.batch_size),
                        tokens=training.num_steps * training.batch_size * family.input_length,
                        save_steps=steps,
                        folder=log_path,
                    )
                    print(f"\n{table}\n\nNothing was written.")
                    return
                tasks = load_task_set(config.setting, family, tasks_dir, keep=False)
            opened = RunDir.open(
                "icl_train",
                log_path,
                config,
                resume_fields_ignored=may_change,
                data=task_input(tasks),
                sinks=config.sinks,
            )
            run = stack.enter_context(opened)
            stack.enter_context(exit_on_interrupt(run, "its state is kept"))
            keep_task_set(config.setting, family, tasks_dir, tasks)

        def report() -> Report:
            return make_report(run.path, f"icl_train {config.name}")

        page = run.path / "report.html"
        state = load_resume_state(run.path)
        if state is not None and state["trainer"]["step"] == training.num_steps:
            logger.info("%s is finished: nothing is left to train", run.path)
        else:
            trainer = Trainer(
                config.model, training, family, tasks, seed=config.seed, device=device
            )
            evaluation = OnlineEvaluation(family, tasks, training, seed=config.seed, device=device)
            with LiveReport(page, report, "step", lambda: trainer.step, training.num_steps) as live:
                train(
                    trainer,
                    evaluation,
                    run,
                    state,
                    model=config.model,
                    training=training,
                    setting=config.setting,
                    save_steps=steps,
                    on_record=live.refresh,
                )
        report().write(page)
        print(closing_words(run.path, config))


def entrypoint(argv: list[str]) -> None:
    def run(config: Config) -> None:
        main(config, run_folder_name(argv))

    config_entrypoint(run, argv)


if __name__ == "__main__":
    entrypoint(sys.argv[1:])
