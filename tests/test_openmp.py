"""Spinning is bounded before torch loads OpenMP, unless the user has chosen; asked of libgomp."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils.openmp import SPIN_COUNT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libgomp is Linux's")

SCRIPTS = Path(__file__).parent.parent / "scripts"
CONNECT = "from training.api import connect; connect('local', device='cpu')"
ENTRYPOINT = """
import chz
from utils.config import config_entrypoint
@chz.chz
class Config:
    a: int = 1
def main(config: Config) -> None:
    import torch
config_entrypoint(main, [])
"""
TORCH_FIRST = """
import logging, os
logging.basicConfig()
import torch
torch.set_num_threads(2)
from training.api import connect
connect("local", device="cpu"), connect("local", device="cpu")
print(os.environ["GOMP_SPINCOUNT"])
"""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """With OpenMP's variables as given; libgomp prints what it has read when it is loaded."""
    ours = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "OMP_NUM_THREADS", "PYTEST_VERSION")
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.run(
        [sys.executable, *command],
        env={**kept, "OMP_DISPLAY_ENV": "verbose", **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def spin_count(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    [line] = [line for line in done.stderr.splitlines() if "GOMP_SPINCOUNT = " in line]
    return line.split("'")[1]


@pytest.mark.parametrize("program", [CONNECT, ENTRYPOINT], ids=["connect", "script"])
def test_spinning_is_bounded_before_torch_is_imported(program: str) -> None:
    assert spin_count(run("-c", program)) == str(SPIN_COUNT)


def test_the_user_s_choice_wins() -> None:
    assert spin_count(run("-c", CONNECT, GOMP_SPINCOUNT="77")) == "77"
    assert spin_count(run("-c", CONNECT, OMP_WAIT_POLICY="passive")) == "0"


def test_torch_imported_before_is_said_once_and_children_are_bounded() -> None:
    done = run("-c", TORCH_FIRST)
    assert spin_count(done) == "300000"
    assert done.stderr.count("torch was imported before connect()") == 1
    assert done.stdout == f"{SPIN_COUNT}\n"
    # one thread waits for nobody
    quiet = run("-c", TORCH_FIRST.replace("threads(2)", "threads(1)"))
    assert "torch was imported" not in quiet.stderr


def test_no_script_imports_torch_before_its_entrypoint() -> None:
    """Those that look up a domain's settings before included."""
    names = sorted(path.stem for path in SCRIPTS.glob("*.py"))
    program = f"""
import importlib, sys
sys.path.insert(0, {str(SCRIPTS)!r})
for name in {names}:
    importlib.import_module(name)
print("torch" in sys.modules)
"""
    assert run("-c", program).stdout == "False\n"
    for name in ("rl_loop", "ttt"):
        done = run(str(SCRIPTS / f"{name}.py"), "--check", "nonsense=1")
        counts = [line for line in done.stderr.splitlines() if "GOMP_SPINCOUNT = " in line]
        assert done.returncode == 2 and all(str(SPIN_COUNT) in line for line in counts)


def test_pytest_is_bounded_too() -> None:
    assert "GOMP_SPINCOUNT" in os.environ or "OMP_WAIT_POLICY" in os.environ
