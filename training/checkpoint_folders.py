"""Adapters that settings name: where they lie, and whose they are, before any model is loaded."""

import logging
from pathlib import Path

from training.models import EMBEDDED
from utils.config.errors import ConfigError
from utils.runs.files import expanded, shown_path
from utils.runs.run_dir import RunDir
from utils.terminal import setting

logger = logging.getLogger(__name__)


def checkpoint_folder(path: str) -> str:
    """`path`, or the last checkpoint where it is the folder of a run, which is logged. Raises
    ConfigError for a run that has none."""
    if "://" in path or not (folder := expanded(path)).is_dir():
        return path
    if not (folder / "config.yaml").is_file() or (folder / "adapter_config.json").is_file():
        return path
    last = RunDir(folder, resumed=True).last_checkpoint()
    if last is None:
        raise ConfigError(f"{path}: this run has no checkpoint of an adapter")
    state = last["state_path"]
    found = state if "://" in state else shown_path(state)
    logger.info("%s is a run: its last checkpoint is taken, %s", path, found)
    return found


def check_checkpoint(path: str, model_name: str) -> None:
    """Raises FileNotFoundError or ValueError for what is no adapter folder, and for an adapter of
    another model, as far as the names tell."""
    # imports torch, which nobody needs who has no checkpoint
    from training.backends.local.checkpoints import read_state

    try:
        state = read_state(path)
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path}: its JSON files cannot be read: {error!r}") from error
    if state.base_model is not None and _are_different(state.base_model, model_name):
        raise ValueError(
            f"{path} was trained on {state.base_model!r}, and model_name={model_name!r} is "
            f"another model; give {setting('model_name', state.base_model)}"
        )


def _are_different(trained_on: str, model_name: str) -> bool:
    """Whether the names alone say so. A model that has moved, or that one name finds on the hub and
    the other in a folder, is left to the weights, which are compared when it is loaded."""
    if trained_on == model_name:
        return False
    places = [Path(name).expanduser() for name in (trained_on, model_name)]
    names = (trained_on, model_name)
    here = [n == EMBEDDED or p.is_dir() for n, p in zip(names, places, strict=True)]
    if all(here):
        return places[0].resolve() != places[1].resolve()
    on_hub = [name.count("/") == 1 and name[0] not in "/.~" for name in names]
    return all(on_hub) and not any(here)
