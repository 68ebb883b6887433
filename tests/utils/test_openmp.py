"""Spinning is bounded before torch loads OpenMP, unless the user has chosen; asked of libgomp.
Beside busy processes threads hardly spin at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

from utils.openmp import SPIN_COUNT, short_spins_wanted

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="libgomp is Linux's")

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
SCRIPTS = ROOT / "scripts"
CONNECT = "from training.connect import connect; connect('local', device='cpu')"
ENTRYPOINT = """
import chz
from utils.config.entrypoint import config_entrypoint
@chz.chz
class Config:
    a: int = 1
def main(config: Config) -> None:
    import torch
config_entrypoint(main, [])
"""
TORCH_FIRST = """
import os
import torch
torch.set_num_threads(2)
from training.connect import connect
connect("local", device="cpu")
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


def test_where_torch_was_imported_before_the_children_are_bounded() -> None:
    done = run("-c", TORCH_FIRST)
    assert spin_count(done) == "300000"
    assert done.stdout == f"{SPIN_COUNT}\n"


SHORT_SPINS = """
import os, re, time
import torch
from utils.openmp import ShortSpins, loaded_libgomp

torch.set_num_threads(2)
others = {*os.listdir("/proc/self/task")}
# filled by two threads
numbers = torch.zeros(10**6)
[worker] = {*os.listdir("/proc/self/task")} - others

def sleeps():
    with open(f"/proc/self/task/{worker}/status") as file:
        return int(re.search(r"^voluntary_ctxt_switches:\\s*(\\d+)", file.read(), re.M)[1])

def slept(regions=50):
    before = sleeps()
    for _ in range(regions):
        numbers.add_(1)
        time.sleep(0.002)
    return sleeps() - before

slept()
library = loaded_libgomp()
for _ in range(2):
    print(slept() > 25)
    spins = ShortSpins(library)
    slept(5)
    print(slept() > 25)
    spins.end()
    slept(5)
"""


def test_spinning_is_short_exactly_while_others_want_the_cores() -> None:
    """A thread that spins without end never sleeps, one that hardly spins does every time."""
    done = run("-c", SHORT_SPINS, GOMP_SPINCOUNT="infinity")
    assert done.stdout.split() == ["False", "True"] * 2, done.stderr


def test_short_spins_begin_and_end_at_different_shares() -> None:
    for share, begins, goes_on in ((0.3, True, True), (0.15, False, True), (0.05, False, False)):
        assert short_spins_wanted([share] * 2, now=False) == begins
        assert short_spins_wanted([share] * 2, now=True) == goes_on


def test_a_short_burst_leaves_spinning_as_it_is() -> None:
    """Requests that come together want the cores for less than one look."""
    assert not short_spins_wanted([0.9], now=False)
    assert not short_spins_wanted([0.9, 0.0], now=False)
    assert not short_spins_wanted([0.0, 0.9], now=False)
    assert not short_spins_wanted([0.9, 0.0], now=True)


WATCHED = """
import threading, time
from utils.openmp import bound_spinning
bound_spinning()
import torch
torch.set_num_threads(2)
numbers, deadline = torch.zeros(10**6), time.monotonic() + 90
while time.monotonic() < deadline and threading.active_count() < 3:
    numbers.add_(1)
print(sorted(thread.name for thread in threading.enumerate()))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel has no figures")
def test_beside_busy_processes_spinning_is_made_short_unless_the_user_chose() -> None:
    loops = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(CORES)]
    try:
        assert "openmp-short-spins" in run("-c", WATCHED).stdout
        mine = WATCHED.replace("+ 90", "+ 3")
        assert run("-c", mine, GOMP_SPINCOUNT="300000").stdout == "['MainThread']\n"
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


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
