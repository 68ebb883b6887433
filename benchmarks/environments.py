"""Environments of their own for clients of a server, which uv makes from its cache or the index."""

import os
from collections.abc import Sequence


def environment(packages: Sequence[str]) -> list[str]:
    """The command that runs another one where those packages are, and nothing of ours. It has to
    run in a folder outside any project, or uv adds that."""
    added = [part for package in packages for part in ("--with", package)]
    return ["uv", "run", "--no-project", "--isolated", *added]


def variables(**added: str) -> dict[str, str]:
    """The variables of a process that runs in such an environment, with no way to the hub."""
    ours = {name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"}
    return {**ours, "HF_HUB_OFFLINE": "1", "TINKER_TELEMETRY": "0", **added}
