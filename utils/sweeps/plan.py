"""What a sweep will do, checked beforehand by asking the script itself about its settings."""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from utils.config.entrypoint import load_yaml, problems_of, raise_problems
from utils.config.presets import load_preset
from utils.runs.inputs import Input
from utils.runs.run_dir import new_run_path
from utils.sweeps.manifest import Axes, Cell, check_axes, last_lines, parse_axes
from utils.terminal import argument_text

SECONDS_TO_CHECK = 120.0
YAML_LAYERS = ("config_file", "params_file")
Change = tuple[str, Any]


class Plan(NamedTuple):
    """A sweep whose cells the script accepts, as far as it can tell before it runs."""

    script: Path
    arguments: list[str]
    axes: Axes
    folder: Path
    takes_log_path: bool
    takes_output_dir: bool  # and nobody has set it
    inputs: dict[str, Input]  # of all cells, by the file's path

    def argv(self, cell: Cell) -> list[str]:
        """The cell's command."""
        extra = [f"{key}={argument_text(value)}" for key, value in cell.values.items()]
        if self.takes_log_path:
            extra.append(f"log_path={self.folder / cell.folder}")
        if self.takes_output_dir:
            # what lies there is named after the run's folder, and so are other sweeps' cells
            extra.append(f"output_dir={self.folder / 'outputs'}")
        return [sys.executable, str(self.script), *self.arguments, *extra]

    def log(self, cell: Cell) -> Path:
        return self.folder / "logs" / f"{cell.name}.txt"

    def is_done(self, cell: Cell) -> bool:
        """A cell that was done runs again when its folder is gone."""
        there = not self.takes_log_path or (self.folder / cell.folder).is_dir()
        return cell.status == "done" and there


def make_plan(
    script: Path,
    sweep: str,
    arguments: Sequence[str],
    *,
    folder: Path | None = None,
    own_settings: Sequence[str] = (),
) -> Plan:
    """The plan for the axes in `sweep` and in the preset among `arguments`. The script itself is
    asked about the first cell and about every other value of an axis; a ConfigError tells the
    problems of all of them. Nothing is written.

    `folder`: default the experiment's, where the script has such, else a new one under runs/sweep.
    `own_settings` are names that somebody may have misspelt among the arguments.
    """
    axes, preset_keys = _read_axes(script.stem, sweep, arguments)
    first = {key: values[0] for key, values in axes.items()}
    changes = [(key, value) for key, values in axes.items() for value in values[1:]]
    commands = [
        [*arguments, *(f"{key}={argument_text(value)}" for key, value in cell.items())]
        for cell in [first, *({**first, key: value} for key, value in changes)]
    ]
    with ThreadPoolExecutor(max_workers=max(2, min(8, os.cpu_count() or 1))) as pool:
        checks_C = list(pool.map(lambda command: _ask(script, command), commands))
    problems = _merged(axes, changes, [check["problems"] for check in checks_C])
    raise_problems([p + _own_setting_hint(p, arguments, own_settings) for p in problems])

    if folder is None:
        experiment_dirs = {check.get("experiment_dir") for check in checks_C}
        # an axis may lead from one experiment into another
        experiment_dir = experiment_dirs.pop() if len(experiment_dirs) == 1 else None
        new = new_run_path("sweep", about=script.stem)
        folder = new if experiment_dir is None else Path(experiment_dir)
    settings = checks_C[0]["config"]
    chosen = {key_of(argument) for argument in arguments} | set(axes) | preset_keys
    chosen |= _yaml_keys(arguments)
    return Plan(
        script,
        list(arguments),
        axes,
        folder,
        "log_path" in settings,
        "output_dir" in settings and "output_dir" not in chosen,
        {
            held["source"]: Input(**held)
            for check in checks_C
            for held in check.get("inputs", {}).values()
        },
    )


def key_of(argument: str) -> str:
    """The setting that an argument names, also where it points at another one (key@=other)."""
    return argument.partition("=")[0].removesuffix("@")


# ---------------------------------------------------------------------------------------------


def _read_axes(script: str, sweep: str, arguments: Sequence[str]) -> tuple[Axes, set[str]]:
    """The preset's axes under those of sweep=, and which settings the preset makes."""
    axes: dict[str, Any] = {}
    preset_keys: set[str] = set()

    def add_preset() -> None:
        preset = load_preset(names[-1], script)
        preset_keys.update(preset.values)
        axes.update(check_axes(preset.sweep, f"preset {preset.name}"))

    def add_own() -> None:
        axes.update(check_axes(parse_axes(sweep), "sweep="))

    names = [a.removeprefix("experiment=") for a in arguments if a.startswith("experiment=")]
    problems = problems_of(*([add_preset] if names else []), add_own)
    if not problems:
        # together once more: one key may be in both, written differently
        problems = problems_of(lambda: check_axes(axes, "preset and sweep="))
        if not axes:
            problems.append("no axes: give sweep={...}, or an experiment= that has some")
    for argument in arguments:
        key = key_of(argument)
        wildcard = key.startswith("...") and key.removeprefix("...")
        for axis in axes:
            if key == axis or (wildcard and f".{axis}".endswith(f".{wildcard}")):
                problems.append(
                    f"{argument}: {axis} is an axis; for one value write "
                    f"""'sweep={{"{axis}":[VALUE]}}'"""
                )
    raise_problems(problems)
    return axes, preset_keys


def _yaml_keys(arguments: Sequence[str]) -> set[str]:
    """What the files among the arguments set."""
    keys: set[str] = set()
    for argument in arguments:
        if key_of(argument) in YAML_LAYERS:
            # the script has read it; this one may be spelt with a variable of the environment
            with contextlib.suppress(OSError, ValueError):
                keys |= set(load_yaml(argument.partition("=")[2]))
    return keys


def _ask(script: Path, arguments: Sequence[str]) -> dict[str, Any]:
    """What `script --check` says: problems, config and experiment_dir."""
    try:
        asked = subprocess.run(
            [sys.executable, str(script), *arguments, "--check"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS_TO_CHECK,
        )
    except subprocess.TimeoutExpired:
        return {"problems": [f"{script.name} --check: no answer in {SECONDS_TO_CHECK:.0f} s"]}
    with contextlib.suppress(json.JSONDecodeError):
        answer = json.loads(asked.stdout.strip().rpartition("\n")[2])
        if isinstance(answer, dict) and (answer.get("problems") or answer.get("config")):
            return answer
    said = last_lines(asked.stderr) or last_lines(asked.stdout)
    return {"problems": [f"{script.name} --check ended with code {asked.returncode}: {said}"]}


def _merged(axes: Axes, changes: Sequence[Change], problems_C: Sequence[list[str]]) -> list[str]:
    """Each problem once, after the values of the axes that bring it; one that every check has goes
    without. The first check is of the first values, each of the others of a change to them."""
    merged = []
    for problem in dict.fromkeys(text for problems in problems_C for text in problems):
        in_first = problem in problems_C[0]
        causes = []
        for axis, values in axes.items():
            bad = [
                value
                for (key, value), problems in zip(changes, problems_C[1:], strict=True)
                if key == axis and problem in problems
            ]
            bad = [values[0], *bad] if in_first else bad
            # an axis all of whose values have it is not to blame
            if bad and not (in_first and len(bad) == len(values)):
                causes.append(f"{axis}={', '.join(argument_text(value) for value in bad)}")
        merged.append(f"{'; '.join(causes)}: {problem}" if causes else problem)
    return merged


def _own_setting_hint(problem: str, arguments: Sequence[str], own_settings: Sequence[str]) -> str:
    for argument in arguments:
        key = key_of(argument)
        close = difflib.get_close_matches(key, own_settings, n=1, cutoff=0.75)
        if close and problem.startswith(f"{key} ") and "unknown key" in problem:
            return f" (sweep.py itself has {close[0]!r})"
    return ""
