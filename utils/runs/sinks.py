"""Where metrics go besides metrics.jsonl: other projects' dashboards."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from utils.config.errors import ConfigError

if TYPE_CHECKING:
    from utils.runs.run_dir import RunDir

SINKS = ("wandb", "tensorboard", "trackio")
# of those that uv.lock knows, an extra of this project
_EXTRAS = ("trackio",)


class Sink(Protocol):
    """Where metrics go besides metrics.jsonl."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class SinkFactory(Protocol):
    def __call__(self, script: str, run: RunDir, config: dict[str, Any]) -> Sink: ...


def sink_factories(names: Sequence[str]) -> list[SinkFactory]:
    """What makes the sinks of these names; ConfigError for unknown ones and missing packages."""
    factories: dict[str, tuple[str, SinkFactory]] = {
        "wandb": ("wandb", _WandbSink),
        "tensorboard": ("torch.utils.tensorboard", _TensorboardSink),
        "trackio": ("trackio", _TrackioSink),
    }
    problems = []
    for name in names:
        if name not in factories:
            problems.append(f"sinks names {name!r}; allowed: {', '.join(SINKS)}")
            continue
        try:
            importlib.import_module(factories[name][0])
        except ImportError as error:
            install = f"uv sync --extra {name}" if name in _EXTRAS else f"uv pip install {name}"
            problems.append(
                f"sinks asks for {name}, which cannot be imported ({error}); run `{install}`, or "
                "leave it out"
            )
    if problems:
        raise ConfigError(problems)
    return [factories[name][1] for name in names]


class _WandbSink:
    def __init__(self, script: str, run: RunDir, config: dict[str, Any]) -> None:
        wandb: Any = importlib.import_module("wandb")
        self._run = wandb.init(
            project="autodidact",
            group=script,
            name=run.run_id,
            id=run.run_id,
            dir=str(run.path),
            config=config,
            resume="allow",
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class _TrackioSink:
    """Its files lie in the user's cache; `trackio show` is the dashboard."""

    def __init__(self, script: str, run: RunDir, config: dict[str, Any]) -> None:
        self._trackio: Any = importlib.import_module("trackio")
        self._run = self._trackio.init(
            project="autodidact",
            group=script,
            name=run.run_id,
            config=config,
            # a name is all it knows a run by, and another script may have one of this name
            resume="allow" if run.resumed else "never",
            embed=False,
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        # the run's own finish() would leave it for the end of the program to finish again
        self._trackio.finish()


class _TensorboardSink:
    def __init__(self, script: str, run: RunDir, config: dict[str, Any]) -> None:
        module: Any = importlib.import_module("torch.utils.tensorboard")
        self._writer = module.SummaryWriter(log_dir=str(run.path / "tensorboard"))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
