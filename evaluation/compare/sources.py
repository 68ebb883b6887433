"""Which reader takes what a user names."""

from __future__ import annotations

from pathlib import Path

from evaluation.compare import inspect_logs, lm_eval_samples, own_results
from evaluation.compare.items import Side
from utils.config.entrypoint import as_config_errors
from utils.runs.files import expanded

KNOWN = (
    "an .eval or .json log of inspect_ai, a samples_*.jsonl of lm-eval --log_samples (or a folder "
    "with some), an .eval-results.yaml of eval.py, or a run directory of rl_loop.py or ttt.py"
)


def open_side(name: str, path: Path, part: str | None) -> Side:
    """Setting `name` says `path`, and `name`_part which part of it is meant. A ConfigError names
    the setting and says what is wrong."""
    path = expanded(path)
    with as_config_errors():
        try:
            return _read(path, part)
        except (ValueError, OSError) as error:
            # other files of these forms: a field that is not there, or is something else
            raise ValueError(f"{name}: {error}") from error
        except KeyError as error:
            raise ValueError(
                f"{name}={path}: not as its form has it, {error} is missing; taken are {KNOWN}"
            ) from error
        except (TypeError, AttributeError, OverflowError) as error:
            raise ValueError(
                f"{name}={path}: not as its form has it, a value is of another type ({error}); "
                f"taken are {KNOWN}"
            ) from error


def _read(path: Path, part: str | None) -> Side:
    if path.name in ("log.json", "tasks.jsonl", "samples.jsonl", "config.yaml"):
        # a file of a run of ours: the run is meant
        path = path.parent
    if path.is_dir() and (path / "config.yaml").is_file():
        return own_results.read_run(path, part)
    if path.suffix == ".yaml" and path.is_file():
        return own_results.read_eval_results(path, part)
    if part is not None:
        raise ValueError(
            f"{path} has no parts to choose from, {part!r} was named: only models of eval.py's "
            "results, steps of rl_loop.py and before/after of ttt.py are parts"
        )
    if path.is_dir():
        if lm_eval_samples.is_samples_folder(path):
            return lm_eval_samples.read_samples(path)
    elif path.suffix in (".eval", ".json"):
        return inspect_logs.read_log(path)
    elif path.suffix == ".jsonl":
        return lm_eval_samples.read_samples(path)
    raise ValueError(f"{path}: {KNOWN} is needed")
