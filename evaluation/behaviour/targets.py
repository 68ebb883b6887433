"""The models under test: a base model and adapters on it, in this process or at a server."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chz

from training.checkpoint_folders import check_checkpoint
from training.endpoints import Endpoints, LocalEndpoint
from training.models import adapter_fingerprint
from utils.config.entrypoint import problems_of
from utils.llm.api import Endpoint, Role
from utils.llm.roles import LOCAL, RoleConfig

BASE = "base"


@dataclasses.dataclass(frozen=True)
class Target:
    """`label` is what people see, `role` what is called. `model_name` and `checkpoint` are what to
    load; a served model has neither."""

    label: str
    role: Role
    model_name: str | None = None
    checkpoint: str | None = None

    def to_plain(self) -> dict[str, Any]:
        return {
            "label": self.label,
            "model": self.role.model,
            "base_url": self.role.base_url,
            "checkpoint": self.checkpoint,
        }


def is_served(settings: RoleConfig) -> bool:
    return settings.base_url not in (None, LOCAL)


def make_targets(
    settings: RoleConfig,
    model_name: str,
    checkpoint_paths: Sequence[str],
    *,
    temperature: float,
    max_tokens: int,
    seed: int,
) -> list[Target]:
    """The served model, or the base model and each checkpoint. The checkpoints have to exist."""
    if not is_served(settings):
        settings = chz.replace(settings, base_url=LOCAL, model=model_name)
    role = settings.role(
        f"target {BASE}", temperature=temperature, max_tokens=max_tokens, seed=seed
    )
    if role.base_url is not None:
        return [Target(BASE, role)]
    targets = [Target(BASE, role, model_name)]
    for path, label in zip(checkpoint_paths, checkpoint_labels(checkpoint_paths), strict=True):
        # the cache of replies must not take one adapter for another that lay at the same path
        model = f"{model_name}@{adapter_fingerprint(path)}"
        tuned = dataclasses.replace(role, name=f"target {label}", model=model)
        targets.append(Target(label, tuned, model_name, path))
    return targets


def open_targets(
    targets: Sequence[Target], endpoints: Endpoints, *, template: str
) -> list[Endpoint]:
    """Loads what runs in this process. Raises a ConfigError for what cannot be loaded, and for an
    adapter of other base weights."""
    return [
        endpoints.endpoint(target.role)
        if target.model_name is None
        else LocalEndpoint(
            target.role,
            endpoints.sampler(target.model_name, target.checkpoint),
            template=template,
        )
        for target in targets
    ]


def model_records(targets: Sequence[Target], endpoints: Endpoints) -> list[dict[str, Any]]:
    """The opened targets as the results file describes them; of an adapter, `untrained` says
    whether it is the base model itself."""
    # what is not told yet is known not to be zero
    untrained = {path for path, found in endpoints.figures.items() if found.untrained}
    return [
        {**target.to_plain(), "untrained": target.checkpoint in untrained}
        if target.checkpoint
        else target.to_plain()
        for target in targets
    ]


def checkpoint_labels(paths: Sequence[str]) -> list[str]:
    """Short names by which to tell checkpoints apart: a run's id and step, or the folder's name."""
    labels = [BASE]
    for path in paths:
        parts = Path(path).resolve().parts
        name = parts[-1]
        if "checkpoints" in parts[1:-1]:
            name = f"{parts[parts.index('checkpoints') - 1]}/{name}"
        candidates = itertools.chain([name], (f"{name}#{n}" for n in itertools.count(2)))
        labels.append(next(label for label in candidates if label not in labels))
    return labels[1:]


def checkpoint_problems(paths: Sequence[str], model_name: str) -> list[str]:
    """What is wrong with the checkpoints, as far as can be seen without loading the model."""
    problems = []
    resolved = [Path(path).expanduser().resolve() for path in paths]
    for index, path in enumerate(paths):
        if resolved[index] in resolved[:index]:
            problems.append(f"checkpoint_paths names {path} more than once")
            continue
        problems += [
            f"checkpoint_paths: {problem}"
            for problem in problems_of(lambda path=path: check_checkpoint(path, model_name))
        ]
    return problems
