"""What `--help` of a script shows, and what slow to import it loaded for that."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HEAVY = ("torch", "transformers", "matplotlib", "datasets", "scipy", "openai")
PROGRAM = """
import json, runpy, sys
path, heavy = sys.argv[1], json.loads(sys.argv[2])
sys.argv = [path, "--help"]
try:
    runpy.run_path(path, run_name="__main__")
except SystemExit:
    pass
print(json.dumps([name for name in heavy if name in sys.modules]))
"""


def help_of(script: Path) -> tuple[str, list[str]]:
    """Modules and not seconds: how long a machine takes depends on what else it does."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(script), json.dumps(HEAVY)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    shown, _, loaded = done.stdout.rstrip().rpartition("\n")
    return shown, json.loads(loaded)
