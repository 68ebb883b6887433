"""Runs of an in-context-learning experiment and what was measured of them, as one table.

    from evaluation.icl.results import load_eval_results

    frame = load_eval_results("balls_and_urns", "task_diversity")
    frame["ood_loss"] = [m and m["ood"]["loss"] for m in frame.metrics]

runs_dir/<experiment_name>/ holds a folder for each run and, where sweep.py made them, sweep.json.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from training.icl.settings import BallsAndUrns, Classification, LinearRegression, Setting
from utils.config.entrypoint import ConfigError, load_yaml
from utils.config.plain_yaml import leaves_of
from utils.json_files import read_json
from utils.runs.files import shown_path

if TYPE_CHECKING:
    import pandas as pd

logger = logging.getLogger(__name__)

METRICS = "metrics.pt"
SETTINGS: dict[str, type[Setting]] = {
    "BallsAndUrns": BallsAndUrns,
    "LinearRegression": LinearRegression,
    "Classification": Classification,
}
TRAINED = ("Transformer", "MLP")
# of the table at the end; only language models have the last one
HEADERS = (
    *("run", "step", "mode", "loss", "s.e.", "generalizing", "memorizing", "rel. distance"),
    "item mass",
)


class StoredRun(NamedTuple):
    """A run's folder and its config.yaml. A trained one has checkpoints; a language model's and a
    predictor's metrics lie in the folder itself."""

    path: Path
    config: dict[str, Any]

    @property
    def is_trained(self) -> bool:
        return self.config["model"]["type"] in TRAINED

    @property
    def setting(self) -> Setting:
        """Raises ConfigError where the stored setting is none of today's."""
        plain = dict(self.config["setting"])
        name = plain.pop("type")
        try:
            return SETTINGS[name](**plain)
        except (KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.path}/config.yaml: setting {name} with {', '.join(plain)} is none that "
                "this version knows"
            ) from error

    def metrics_folder(self, step: int | None) -> Path:
        return self.path if step is None else self.path / "checkpoints" / str(step)

    def steps(self) -> list[int | None]:
        """Steps of the checkpoints, ascending; [None] for what is not trained, and for a trained
        run that has no checkpoint yet."""
        if not self.is_trained:
            return [None]
        from training.icl.train import checkpoint_steps

        return list(checkpoint_steps(self.path)) or [None]


def read_run(path: Path) -> StoredRun:
    """Raises ConfigError for a folder that holds no run of an in-context-learning script."""
    if not (path / "config.yaml").is_file():
        raise ConfigError(f"{shown_path(path)}: no run, it has no config.yaml")
    config = load_yaml(path / "config.yaml")
    for name in ("setting", "model"):
        if not isinstance(config.get(name), dict) or "type" not in config[name]:
            raise ConfigError(
                f"{shown_path(path)}: not a run of icl_train.py or icl_eval.py, its config.yaml "
                f"names no {name}"
            )
    return StoredRun(path, config)


def experiment_runs(experiment_dir: Path) -> list[StoredRun]:
    """The runs of an experiment by name. Raises ConfigError where there is no such experiment,
    which names those that there are."""
    if not experiment_dir.is_dir():
        root = experiment_dir.parent
        raise ConfigError(
            f"{shown_path(experiment_dir)}: no such experiment; {_experiments_told(root)}"
        )
    runs = []
    for path in sorted(experiment_dir.glob("*/config.yaml")):
        try:
            runs.append(read_run(path.parent))
        except ConfigError as error:
            logger.warning("left out: %s", error)
    return runs


def load_eval_results(
    setting: str | type[Setting] | None,
    experiment_name: str,
    runs_dir: Path | str = "runs/icl",
) -> pd.DataFrame:
    """A row per checkpoint of each trained run, one per run of a language model or a predictor.

    Columns: `config` (the run's config.yaml as a dict), `metrics` (as ModelEvaluator gives them;
    None where nothing was evaluated yet), `checkpoint` (the step; None for a language model, a
    predictor, and a run that has no checkpoint), `run` (the folder), and one column per swept axis
    under its full dotted name, with the value that sweep.json says (None for runs that are not of
    the sweep). `setting` is a class or its name, such as balls_and_urns; None takes all.
    """
    experiment_dir = Path(runs_dir) / experiment_name
    wanted = None if setting is None else _setting_name(setting)
    runs = experiment_runs(experiment_dir)
    of_setting = [run for run in runs if wanted in (None, run.config["setting"]["type"])]
    if not of_setting:
        kinds = sorted({run.config["setting"]["type"] for run in runs})
        found = f"its runs are of {', '.join(kinds)}" if kinds else "it holds no runs"
        raise ConfigError(f"{shown_path(experiment_dir)}: no run of setting={wanted}; {found}")
    return results_frame(of_setting, swept_values(experiment_dir))


def results_frame(
    runs: Sequence[StoredRun], swept: Mapping[Path, Mapping[str, Any]]
) -> pd.DataFrame:
    """See `load_eval_results`; `swept` has the axis values of a run by its resolved folder."""
    import pandas as pd

    axes = list(dict.fromkeys(axis for values in swept.values() for axis in values))
    rows: list[dict[str, Any]] = []
    for run in runs:
        values = swept.get(run.path.resolve(), {})
        for step in run.steps():
            rows.append(
                {
                    "config": run.config,
                    "metrics": _metrics(run.metrics_folder(step)),
                    "checkpoint": step,
                    "run": str(run.path),
                    **{axis: values.get(axis) for axis in axes},
                }
            )
    columns = {}
    for name in ("config", "metrics", "checkpoint", "run", *axes):
        values = [row[name] for row in rows]
        # beside a None pandas would make floats and NaN of whole numbers
        columns[name] = pd.Series(values, dtype=object if None in values else None)
    return pd.DataFrame(columns)


def swept_values(experiment_dir: Path) -> dict[Path, dict[str, Any]]:
    """Axis values of each cell by its resolved folder, from sweep.json; empty without one."""
    path = experiment_dir / "sweep.json"
    if not path.is_file():
        return {}
    try:
        manifest = read_json(path)
        return {
            (experiment_dir / cell["folder"]).resolve(): dict(cell["values"])
            for cell in manifest["cells"]
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{shown_path(path)}: not a manifest of sweep.py ({error!r})") from error


def result_rows(frame: pd.DataFrame, folder: Path) -> list[tuple[Any, ...]]:
    """Every mode of every evaluation, under HEADERS."""
    names = ("loss", "loss_error", "generalizing_loss", "memorizing_loss", "relative_distance")
    rows = []
    records: list[Any] = frame.to_dict("records")
    for record in records:
        run = Path(record["run"])
        name = run.name if run == folder else str(run.relative_to(folder))
        for mode, values in (record["metrics"] or {}).items():
            if mode != "meta":
                numbers = [values.get(key) for key in (*names, "item_mass")]
                rows.append((name, record["checkpoint"], mode, *numbers))
    return rows


def last_rows(rows: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Of each run its last checkpoint; the page has all of them."""
    last = {row[0]: row[1] for row in rows}
    return [row for row in rows if row[1] == last[row[0]]]


def what_varies(
    configs: Sequence[Mapping[str, Any]], roots: Sequence[str], without: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """For each config the settings below `roots`, by dotted name, in which it differs from some
    other; the names in `without` do not count."""
    flat = [leaves_of({root: config.get(root) for root in roots}) for config in configs]
    names = [n for n in dict.fromkeys(n for leaves in flat for n in leaves) if n not in without]
    varying = [n for n in names if any(leaves.get(n) != flat[0].get(n) for leaves in flat)]
    return [{n: leaves[n] for n in varying if n in leaves} for leaves in flat]


def load_metrics(folder: Path) -> dict[str, Any]:
    """metrics.pt of a folder; tensors are read when they are used."""
    import torch

    # mmap: outputs and hidden states are read when somebody looks at them
    return torch.load(folder / METRICS, mmap=True, weights_only=True)


def _metrics(folder: Path) -> dict[str, Any] | None:
    return load_metrics(folder) if (folder / METRICS).is_file() else None


def _setting_name(setting: str | type[Setting]) -> str:
    name = setting if isinstance(setting, str) else setting.__name__
    for known in SETTINGS:
        if name.replace("_", "").replace("-", "").lower() == known.lower():
            return known
    raise ConfigError(f"setting={name!r}: one of {', '.join(SETTINGS)} is needed")


def _experiments_told(root: Path) -> str:
    found = sorted({path.parent.parent.name for path in root.glob("*/*/config.yaml")})
    if not found:
        return f"{shown_path(root)} holds none; run scripts/icl_train.py"
    return f"{shown_path(root)} holds {', '.join(found)}"
