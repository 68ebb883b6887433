"""Presets: settings under a name, chosen by `experiment=NAME` on the command line.

A preset is `experiments/NAME.yaml` of the working directory, else one that comes with the project.
It holds settings of its scripts, nested or as dotted keys, and three keys of its own:

    doc: one line about it
    script: icl_train                  # or a list; without it any script may take the preset
    sweep: {"model.hidden_size": [32, 64]}    # default axes, which only scripts/sweep.py reads
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from utils.config.errors import ConfigError, raise_problems
from utils.config.plain_yaml import load_yaml
from utils.runs.files import shown_path
from utils.terminal import setting

FOLDER = "experiments"
# by its place: packages of training/ are not for utils/ to import
PACKAGED = Path(__file__).resolve().parents[2] / "training" / "icl" / "experiments"
OWN_KEYS = ("doc", "script", "sweep")


class Preset(NamedTuple):
    """One preset, its settings as YAML gave them."""

    name: str
    path: Path
    doc: str
    scripts: list[str]  # empty: any
    values: dict[str, Any]
    sweep: dict[str, list[Any]]  # axes, in their order

    def is_for(self, script: str | None) -> bool:
        return script is None or not self.scripts or script in self.scripts


def load_preset(name: str, script: str | None = None) -> Preset:
    """The preset of that name, for `script` (None: for any).

    Raises ConfigError where there is none (with those that the script can take), where it is for
    other scripts, and with everything that is wrong with its file and with its own keys.
    """
    paths = _paths()
    if name not in paths:
        raise ConfigError(_unknown(name, script))
    preset, problems = _read(name, paths[name])
    raise_problems(problems)
    if not preset.is_for(script):
        raise ConfigError(
            f"experiment={name}: {shown_path(preset.path)} is for {' and '.join(preset.scripts)}, "
            f"not for {script}"
        )
    return preset


def has_preset(name: str) -> bool:
    """Whether some script has a preset of that name; its file is not read."""
    return name in _paths()


def list_presets(script: str | None = None) -> dict[str, str]:
    """The names of the presets that `script` can take, each with its line about itself."""
    known = {}
    for name, path in sorted(_paths().items()):
        try:
            preset, _ = _read(name, path)
        except ConfigError:
            known[name] = f"(cannot be read: {shown_path(path)})"
            continue
        if preset.is_for(script):
            known[name] = preset.doc
    return known


def presets_text(script: str | None, indent: str = "  ") -> str:
    """A line for each of `list_presets`."""
    known = list_presets(script)
    width = max(map(len, known), default=0)
    return "\n".join(f"{indent}{name:<{width}}  {doc}".rstrip() for name, doc in known.items())


def _paths() -> dict[str, Path]:
    folders = (PACKAGED, Path.cwd() / FOLDER)
    return {path.stem: path for folder in folders for path in sorted(folder.glob("*.yaml"))}


def _unknown(name: str, script: str | None) -> str:
    where = f"{FOLDER}/{name}.yaml is not there and none of that name comes with the project"
    if Path(name).suffix in (".yaml", ".yml") or "/" in name:
        return (
            f"experiment={name}: presets are given by name, {FOLDER}/NAME.yaml as experiment=NAME; "
            f"for a file elsewhere write {setting('config_file', name)}"
        )
    close = difflib.get_close_matches(name, list_presets(script), n=1)
    advice = f". Did you mean {close[0]!r}?" if close else ""
    listing = presets_text(script)
    of_script = f" of {script}" if script else ""
    known = f"; known{of_script}:\n{listing}" if listing else f"; there are none{of_script}"
    return f"experiment={name}: unknown preset ({where}){advice}{known}"


def _read(name: str, path: Path) -> tuple[Preset, list[str]]:
    """The preset and what is wrong with its own keys; ConfigError where the file is no mapping."""
    try:
        values = load_yaml(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"experiment={name}: {error}") from error
    shown = shown_path(path)
    problems = [
        f"{key!r} (from preset {name}, {shown}): keys are names of settings"
        for key in values
        if not isinstance(key, str)
    ]
    doc, scripts, sweep = (values.pop(key, None) for key in OWN_KEYS)
    if doc is not None and not isinstance(doc, str):
        problems.append(f"doc (from preset {name}, {shown}): expected text, got {doc!r}")
    scripts = [] if scripts is None else [scripts] if isinstance(scripts, str) else scripts
    if not isinstance(scripts, list) or not all(isinstance(item, str) for item in scripts):
        problems.append(
            f"script (from preset {name}, {shown}): expected the name of a script or a list of "
            f"them, got {scripts!r}"
        )
        scripts = []
    axes: Mapping[Any, Any] = {} if sweep is None else sweep
    if not isinstance(axes, Mapping) or not all(
        isinstance(key, str) and isinstance(items, list) and items for key, items in axes.items()
    ):
        problems.append(
            f"sweep (from preset {name}, {shown}): expected a mapping of keys to lists of values, "
            f"got {sweep!r}"
        )
        axes = {}
    line = " ".join(str(doc or "").split())
    plain = {key: value for key, value in values.items() if isinstance(key, str)}
    return Preset(name, path, line, scripts, plain, dict(axes)), problems
