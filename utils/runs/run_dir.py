"""Run directories: what a run was told, what it measured and where it can go on from.

runs/<script>/<run_id>/
    config.yaml         the resolved config, and under `meta` how it was made
    metrics.jsonl       {"step": 3, "loss": 1.25, ...}
    samples.jsonl       whatever the script shows of its work
    checkpoints.jsonl   {"name": "000010", "step": 10, "batch": 10, "state_path": ...}
    resumes.jsonl       one line per time the run was taken up again
"""

from __future__ import annotations

import datetime
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from utils.config.entrypoint import ConfigError, dump_yaml, load_yaml, to_plain, yaml_text
from utils.config.plain_yaml import leaves_of
from utils.runs.files import append_jsonl, read_jsonl
from utils.runs.inputs import Input, file_inputs, input_problems
from utils.runs.locks import Claim
from utils.runs.provenance import run_meta
from utils.runs.sinks import Sink, sink_factories
from utils.terminal import setting

logger = logging.getLogger(__name__)

CHECKPOINT_PATHS = ("state_path", "sampler_path")
LOCK = ".writer.lock"
# a run that was killed before it had its config.yaml may have left a part of that, and its lock
OWN_FILES = (".config.yaml.", ".writer.")
LOGS = ("metrics.jsonl", "samples.jsonl")
# what a run may hold before it has done anything; the second is training.adapter_proof's, the third
# LiveReport's first page
BEFORE_IT_BEGINS = {"config.yaml", "adapter_proof.json", "report.html"}


class RunDir:
    """One run's directory; make it with `RunDir.open`, and close it (or use `with`) so that the
    sinks flush. One process writes to a run at a time: a second one that opens it is refused until
    the first has closed it or is gone.

    A new run that a ConfigError ends before it has done anything leaves no folder."""

    def __init__(
        self,
        path: Path,
        *,
        resumed: bool,
        run_id: str | None = None,
        sinks: Sequence[Sink] = (),
        claim: Claim | None = None,
    ) -> None:
        self.path = path
        self.run_id = run_id or path.resolve().name
        self.resumed = resumed
        self._sinks = list(sinks)
        self._claim = claim
        self._sink_files: set[str] = set()

    @classmethod
    def open(
        cls,
        script: str,
        log_path: Path | None,
        config: Any,
        *,
        resume_fields_ignored: Sequence[str] = (),
        data: Mapping[str, Input] | None = None,
        sinks: Sequence[str] = (),
        root: Path = Path("runs"),
    ) -> Self:
        """A new run under `root/script`, or at `log_path`; resumed where log_path holds one.

        Files that the config names (inputs.py) are stored by what they hold; `data` is what else
        decides the run: rows from a hub, say.

        Raises ConfigError when the stored config differs from `config` in a field that is neither
        in `resume_fields_ignored` nor `log_path`, when files or data hold something else than at
        the start, when log_path holds something else than a run, cannot be written or is another
        process's, and when a sink is unknown or its package is missing.
        """
        plain = to_plain(config)
        files, others = file_inputs(config), dict(data or {})
        open_sinks = sink_factories(sinks)
        path = new_run_path(script, root) if log_path is None else log_path
        if not (path / "config.yaml").is_file():
            _require_free(path)
        claim = Claim(path / LOCK, f"log_path={path}")
        try:
            # another process may have begun the run, and ended, since
            if (path / "config.yaml").is_file():
                run = cls._resume(path, plain, files, others, resume_fields_ignored, claim)
            else:
                run = cls(path, resumed=False, claim=claim)
                meta = {"script": script, "run_id": run.run_id, **run_meta()}
                meta["inputs"] = _plain_inputs(files, others)
                dump_yaml(path / "config.yaml", {**plain, "meta": meta})
                logger.info("new run in %s", path)
            before = set(os.listdir(path))
            run._sinks = [make(script, run, plain) for make in open_sinks]
            run._sink_files = set(os.listdir(path)) - before
        except BaseException:
            claim.release()
            raise
        return run

    @classmethod
    def _resume(
        cls,
        path: Path,
        plain: dict[str, Any],
        files: Mapping[str, Input],
        others: Mapping[str, Input],
        ignored: Sequence[str],
        claim: Claim,
    ) -> Self:
        stored = load_yaml(path / "config.yaml")
        stored_meta = stored.pop("meta", {})
        _require_same(path, stored, plain, {"log_path", *ignored})
        if "inputs" in stored_meta:
            _require_same_inputs(path, stored_meta["inputs"], files, others)
        else:
            # an older version's
            logger.info("%s: from now on it goes on with no other data", path)
            stored_meta["inputs"] = _plain_inputs(files, others)
            dump_yaml(path / "config.yaml", {**stored, "meta": stored_meta})
        meta = run_meta()
        for key in ("git_revision", "packages"):
            if meta[key] != stored_meta.get(key):
                logger.warning("%s: resumed with another %s than it began with", path, key)
        append_jsonl(path / "resumes.jsonl", {**meta, "config": plain}, fsync=True)
        logger.info("resuming the run in %s", path)
        # the folder may have another name by now; to the sinks it is the same run
        return cls(path, resumed=True, run_id=stored_meta.get("run_id"), claim=claim)

    def require_models(self, models: Mapping[str, Input]) -> None:
        """Stores the models that the run computes with, by the setting that names them, when they
        are loaded. Raises ConfigError, before anything of the run has changed, where one is not
        what the run began with. Runs that began without (older versions') take them up."""
        stored = load_yaml(self.path / "config.yaml")
        known = stored.setdefault("meta", {}).setdefault("models", {})
        before = {name: Input(**known[name]) for name in models if name in known}
        problems = input_problems(before, {name: models[name] for name in before})
        if problems:
            told = f"{self.path} was started with another model; resume needs the same"
            raise ConfigError([told, *problems])
        new = {name: held._asdict() for name, held in models.items() if name not in known}
        if not new:
            return
        if self.resumed:
            logger.info("%s: from now on it goes on with no other %s", self.path, " or ".join(new))
        known.update(new)
        dump_yaml(self.path / "config.yaml", stored)

    def log_metrics(self, step: int, values: Mapping[str, Any]) -> None:
        """One line of metrics.jsonl; numbers of numpy and torch become plain ones."""
        if "step" in values:
            raise ValueError("log_metrics: 'step' is the first argument, not one of the values")
        record = {"step": step, **to_plain(values)}
        append_jsonl(self.path / "metrics.jsonl", record)
        numbers = {
            name: float(value)
            for name, value in record.items()
            if name != "step" and isinstance(value, (bool, int, float))
        }
        for sink in self._sinks:
            sink.log(step, numbers)

    def log_sample(self, record: Mapping[str, Any]) -> None:
        """One line of samples.jsonl."""
        append_jsonl(self.path / "samples.jsonl", to_plain(record))

    def log_sizes(self) -> dict[str, int]:
        """How long metrics.jsonl and samples.jsonl are now, for `truncate_logs`."""
        paths = [self.path / name for name in LOGS]
        return {path.name: path.stat().st_size for path in paths if path.exists()}

    def truncate_logs(self, sizes: Mapping[str, int]) -> None:
        """Forget what was logged after `sizes` was taken: the resumed run logs it again."""
        for name in LOGS:
            path, size = self.path / name, sizes.get(name, 0)
            if path.exists() and path.stat().st_size > size:
                logger.info("%s: dropped what was logged after the checkpoint", path)
                os.truncate(path, size)

    def log_checkpoint(
        self,
        name: str,
        step: int,
        kind: Literal["state", "sampler"],
        path: Path | str,
        **extra: Any,
    ) -> None:
        """One line of checkpoints.jsonl, in the tinker-cookbook's layout: `path` as state_path or
        sampler_path. Give the other path of a checkpoint of both kinds as an extra. Paths inside
        the run are written relative to it, so that its folder can be moved."""
        # the cookbook's readers look for "batch"
        record = {"name": name, "step": step, "batch": step, f"{kind}_path": path}
        record = _with_paths({**record, **to_plain(extra)}, self._stored_path)
        append_jsonl(self.path / "checkpoints.jsonl", record, fsync=True)

    def checkpoints(self) -> list[dict[str, Any]]:
        """All lines of checkpoints.jsonl, oldest first, with absolute paths."""
        records = read_jsonl(self.path / "checkpoints.jsonl", missing_ok=True)
        return [_with_paths(record, self._absolute_path) for record in records]

    def last_checkpoint(self, kind: Literal["state", "sampler"] = "state") -> dict[str, Any] | None:
        """The latest of `checkpoints` that has a path of this kind."""
        return next((r for r in reversed(self.checkpoints()) if r.get(f"{kind}_path")), None)

    def _stored_path(self, path: str) -> str:
        if _is_url(path):
            return path
        absolute, root = Path(path).absolute(), self.path.resolve()
        inside = absolute.is_relative_to(root)
        return absolute.relative_to(root).as_posix() if inside else str(absolute)

    def _absolute_path(self, path: str) -> str:
        return path if _is_url(path) else str(self.path.resolve() / path)

    def close(self) -> None:
        self._close_sinks()
        if self._claim is not None:
            self._claim.release()

    def _close_sinks(self) -> None:
        for sink in self._sinks:
            sink.close()
        self._sinks = []

    def _take_back(self) -> None:
        """Removes the files of a new run that has done nothing; its folder goes with the claim."""
        found = {name for name in os.listdir(self.path) if not name.startswith(OWN_FILES)}
        if self.resumed or not found <= BEFORE_IT_BEGINS | self._sink_files:
            return
        for name in found:
            if (self.path / name).is_dir():
                shutil.rmtree(self.path / name)
            else:
                (self.path / name).unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close_sinks()
        if isinstance(error, ConfigError):
            self._take_back()
        self.close()


def _with_paths(record: Mapping[str, Any], convert: Callable[[str], str]) -> dict[str, Any]:
    paths = {key: convert(str(record[key])) for key in CHECKPOINT_PATHS if record.get(key)}
    return {**record, **paths}


def _is_url(path: str) -> bool:
    """Such as tinker://..., a checkpoint that a service keeps."""
    return "://" in path


def new_run_path(script: str, root: Path = Path("runs"), *, about: str = "") -> Path:
    """A path for a new run, named by the time and what it is about; nothing is made."""
    now = datetime.datetime.now(datetime.UTC)
    words = f"{about}-" if about else ""
    return root / script / f"{now:%Y%m%d-%H%M%S}-{words}{secrets.token_hex(3)}"


def _require_free(path: Path) -> None:
    if path.exists() and not path.is_dir():
        raise ConfigError(f"log_path={path} is a file; name a new folder, or one with a run")
    if path.is_dir() and any(not f.name.startswith(OWN_FILES) for f in path.iterdir()):
        raise ConfigError(
            f"log_path={path} holds files but no config.yaml, so it is no run to resume; "
            "name a new or empty folder"
        )


def _require_same(
    path: Path, stored: Mapping[str, Any], given: Mapping[str, Any], ignored: set[str]
) -> None:
    stored, given = leaves_of(stored), leaves_of(given)
    # the fields of an object of another class have nothing to be compared with
    others = [name for name in {**stored, **given} if _names_other_class(name, stored, given)]
    problems = []
    for name in {**stored, **given}:
        if name in ignored or name.split(".")[0] in ignored:
            continue
        if name not in others and name.startswith(tuple(n.removesuffix("type") for n in others)):
            continue
        before, now = stored.get(name, _ABSENT), given.get(name, _ABSENT)
        # text decides about NaN, which is unequal to itself, and about 1 and True, which are equal
        if before != now and yaml_text(before) != yaml_text(now):
            advice = (
                f"give {setting(name, before)} to go on"
                if _ABSENT not in (before, now)
                else "it is another version's run"
            )
            problems.append(
                f"{name}: stored {before!r}, given {now!r}; {advice}, or start a new run"
            )
    if problems:
        raise ConfigError(
            [f"{path} was started with other settings; resume needs the same", *problems]
        )


def _plain_inputs(
    files: Mapping[str, Input], others: Mapping[str, Input]
) -> dict[str, dict[str, str]]:
    return {name: held._asdict() for name, held in {**files, **others}.items()}


def _require_same_inputs(
    path: Path,
    stored: Mapping[str, Mapping[str, str]],
    files: Mapping[str, Input],
    others: Mapping[str, Input],
) -> None:
    before = {name: Input(**held) for name, held in stored.items()}
    problems = input_problems({n: held for n, held in before.items() if n not in others}, files)
    # data that comes from files changes with them: what the user can mend are the files
    if not problems:
        problems = input_problems({n: held for n, held in before.items() if n in others}, others)
    if problems:
        raise ConfigError([f"{path} was started with other data; resume needs the same", *problems])


def _names_other_class(name: str, stored: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Whether it is the `type` by which to_plain names the class of an object inside the config,
    and that changed."""
    return name.endswith(".type") and stored.get(name) != given.get(name)


_ABSENT = "(absent)"
