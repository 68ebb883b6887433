"""Which trained runs of an experiment a command line of icl_eval.py means."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.icl.results import StoredRun, experiment_runs, read_run
from training.icl.config import RUN_KEYS, Experiment
from utils.config.entrypoint import ConfigError, to_plain
from utils.config.plain_yaml import leaves_of
from utils.runs.files import shown_path

logger = logging.getLogger(__name__)


def chosen_runs(config: Experiment, path: Path | None, argv: Sequence[str]) -> list[StoredRun]:
    """The run at `path`, or those of the experiment, that are trained and have the settings which
    the command line itself sets. Raises ConfigError where there is none."""
    runs = experiment_runs(config.experiment_dir) if path is None else [read_run(path)]
    trained = [run for run in runs if run.is_trained]
    where = shown_path(path or config.experiment_dir)
    if not trained:
        raise ConfigError(
            f"{where}: no run of icl_train.py; train one, or give model=LLM or model=Bayes"
        )
    wanted = wanted_settings(config, argv)
    stored = [leaves_of(run.config) for run in trained]
    chosen = [
        run
        for run, leaves in zip(trained, stored, strict=True)
        if all(leaves.get(name) == value for name, value in wanted.items())
    ]
    if not chosen:
        told = ", ".join(f"{name}={value}" for name, value in wanted.items())
        found = "; ".join(
            f"{name}: {', '.join(dict.fromkeys(str(leaves.get(name)) for leaves in stored))}"
            for name in wanted
        )
        raise ConfigError(
            f"{where}: none of its {len(trained)} trained runs has {told} (found: {found}); what "
            "the command line says of setting, model, training and seed chooses among them"
        )
    if len(chosen) < len(trained):
        logger.info("%d of %d trained runs have these settings", len(chosen), len(trained))
    return chosen


def wanted_settings(config: Experiment, argv: Sequence[str]) -> dict[str, Any]:
    """What the command line itself sets of a run, by dotted name. Presets and files do not choose:
    they say how runs are trained."""
    plain = to_plain(config)
    leaves = leaves_of({key: plain[key] for key in RUN_KEYS})
    wanted = {}
    for argument in argv:
        key = argument.partition("=")[0].removesuffix("@")
        if key.startswith("..."):
            ending = key.removeprefix("...")
            names = [name for name in leaves if f".{name}".endswith(f".{ending}")]
        else:
            names = [name for name in (key, f"{key}.type") if name in leaves]
        wanted |= {name: leaves[name] for name in names}
    # model=None is the default written out
    wanted.pop("model", None)
    return wanted
