"""Kill -9 at random moments, from a test's point of view; `kill_driver.py` does the killing."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

DRIVER = Path(__file__).with_name("kill_driver.py")
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def kill_again_and_again(
    script: str, folder: Path, *settings: str, kills: int = 8
) -> dict[str, Any]:
    """Asserts that runs of `script` which were killed and taken up again, at least `kills` times in
    all, end like one that was not; gives the driver's report."""
    done = subprocess.run(
        [sys.executable, str(DRIVER), script, str(folder), str(kills), "0", *settings],
        capture_output=True,
        text=True,
        env={**os.environ, **dict.fromkeys(THREADS, "1")},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["problems"] == []
    assert report["kills"] >= kills
    return report
