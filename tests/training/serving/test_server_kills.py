"""Kill -9 of scripts/serve.py at random moments of training and saving.

uv run pytest tests/training/serving/test_server_kills.py -m slow
"""

import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tinker
from places import ROOT
from served import server_environment
from tiny_models import VOCAB

from training.serving.store import Store

pytestmark = pytest.mark.slow

KILLS = 30
STEPS = 5
# passes of each step
PARTS = 6
KEY = "tml-of-the-tests-of-kills"
STEP = tinker.AdamParams(learning_rate=0.05)


class Server:
    """One that is killed and started again at the same address, over the same store."""

    def __init__(self, folder: Path, model: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.store = folder / "runs" / "serving"
        self.log_file = folder / "log"
        (folder / "keys").write_text(f"ann:{KEY}\n")
        settings = ["api_keys_file=keys", f"model_name={model}", f"port={port}", "device=cpu"]
        with open(self.log_file, "w") as log:
            self._forks = subprocess.Popen(
                [sys.executable, str(ROOT / "tests/serve_forks.py"), *settings],
                cwd=folder,
                env=server_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self._pid = 0

    def start(self) -> None:
        """Comes back when it answers."""
        self._pid = int(self._told("start", r"pid (\d+)\n")[1])
        self._told("", r" *URL .*\n")

    def kill(self) -> None:
        """Comes back when nothing of it runs any more."""
        os.kill(self._pid, signal.SIGKILL)
        self._told("wait", r"ended\n")
        self._pid = 0

    def end(self) -> None:
        # 0 would be this process and all beside it
        if self._pid:
            os.kill(self._pid, signal.SIGKILL)
        self._forks.kill()
        self._forks.wait()

    def _told(self, command: str, pattern: str) -> re.Match[str]:
        assert self._forks.stdin is not None and self._forks.stdout is not None
        if command:
            print(command, file=self._forks.stdin, flush=True)
        for line in self._forks.stdout:
            if found := re.fullmatch(pattern, line):
                return found
        raise AssertionError(self.log_file.read_text())


@pytest.fixture
def server(tmp_path: Path, tiny_model: Callable[..., str]) -> Iterator[Server]:
    made = Server(tmp_path, tiny_model("llama"))
    yield made
    made.end()


def batch(number: int) -> list[tinker.Datum]:
    tokens = np.random.default_rng(number).integers(3, VOCAB, 12).tolist()
    inputs: dict[str, Any] = {"target_tokens": tokens[1:], "weights": [1.0] * 11}
    return [tinker.Datum(tinker.ModelInput.from_ints(tokens[:-1]), inputs)]


class Run:
    """A training run that saves whatever it can, and goes on from the last checkpoint listed."""

    def __init__(self, server: Server, name: str, base: str) -> None:
        self._url, self._name, self._base = server.url, name, base
        self._rest = tinker.RestClient(base_url=server.url, api_key=KEY)
        # by step and part
        self.losses: dict[tuple[int, int], dict[str, float]] = {}
        # what the server said is saved
        self.promised: set[str] = set()
        self.phase = "starting"

    def finish(self) -> int:
        """How often it had to be taken up again."""
        for taken_up in range(20 * KILLS):
            try:
                with tinker.ServiceClient(base_url=self._url, api_key=KEY) as service:
                    self._go_on(service)
                return taken_up
            except (tinker.TinkerError, ValueError) as error:
                assert "Traceback" not in str(error) and str(error).count("\n") <= 1, error
        raise AssertionError("it never came to its end")

    def _go_on(self, service: tinker.ServiceClient) -> None:
        self.phase = "starting"
        listed = self._rest.list_user_checkpoints(limit=100).result().checkpoints
        mine = [
            c
            for c in listed
            if c.checkpoint_type == "training" and (c.user_metadata or {}).get("of") == self._name
        ]
        done = 0.0
        if mine:
            path = mine[0].tinker_path
            trainer = service.create_training_client_from_state_with_optimizer(path).result()
            done = float((mine[0].user_metadata or {})["done"])
        else:
            trainer = service.create_lora_training_client(self._base, rank=8, seed=0).result()
        for number in range(int(done), STEPS):
            if done != number + 0.5:
                self.phase = "training"
                for part in range(PARTS):
                    data = batch(PARTS * number + part)
                    told = trainer.forward_backward(data, "cross_entropy").result().metrics
                    assert self.losses.setdefault((number, part), told) == told
                # with a gradient that no step has used
                self._save(trainer, f"half-{number}", number + 0.5)
            self.phase = "training"
            trainer.optim_step(STEP).result()
            self._save(trainer, f"step-{number + 1}", number + 1)
            self._save(trainer, "rolling", number + 1, overwrite=True)
            self.phase = "saving"
            name = f"step-{number + 1}"
            saved = trainer.save_weights_for_sampler(name, user_metadata={"name": name})
            self.promised.add(saved.result().path)

    def _save(
        self, trainer: tinker.TrainingClient, name: str, done: float, overwrite: bool = False
    ) -> None:
        self.phase = "saving"
        content = name if not overwrite else f"step-{done}"
        told = {"of": self._name, "done": str(done), "name": content}
        saved = trainer.save_state(name, overwrite=overwrite, user_metadata=told)
        self.promised.add(saved.result().path)


@contextmanager
def opened(folder: Path, copy: Path) -> Iterator[Store]:
    """The store as the next start will find it, without touching it."""
    shutil.copytree(folder / "checkpoints", copy / "checkpoints", copy_function=os.link)
    shutil.copytree(folder / "staging", copy / "staging")
    for file in folder.glob("serving.sqlite*"):
        shutil.copy(file, copy / file.name)
    store = Store(copy)
    yield store
    store.close()
    shutil.rmtree(copy)


Files = dict[str, bytes]


def contents(store: Store) -> dict[str, tuple[str, Files]]:
    """Path -> kind and name of what it was saved as, and its files."""
    rows = store.checkpoints.list("ann").rows
    assert {p.name for p in (store.folder / "checkpoints").iterdir()} == {row.uid for row in rows}
    assert list(store.staging.iterdir()) == []
    return {
        str(row.path): (
            f"{row.path.kind}/{row.user_metadata['name']}",
            {name: file.read_bytes() for name, file in store.checkpoints.files(row).items()},
        )
        for row in rows
    }


def test_a_run_goes_on_bit_by_bit_wherever_its_server_was_killed(
    server: Server, tmp_path: Path, tiny_model: Callable[..., str]
) -> None:
    base = tiny_model("llama")
    chance = random.Random(0)
    server.start()
    began = time.monotonic()
    undisturbed = Run(server, "undisturbed", base)
    undisturbed.finish()
    whole = time.monotonic() - began
    server.kill()
    with opened(server.store, tmp_path / "copy") as store:
        expected = dict(contents(store).values())
    assert len(expected) == 3 * STEPS
    phases: Counter[str] = Counter()
    problems: list[BaseException] = []
    runs: list[Run] = []
    is_over = threading.Event()

    def kill_again_and_again() -> None:
        try:
            for _ in range(KILLS):
                server.start()
                if is_over.wait(chance.uniform(0, whole)):
                    break
                phases[runs[-1].phase] += 1
                promised = set().union(*(run.promised for run in runs))
                server.kill()
                with opened(server.store, tmp_path / "copy") as store:
                    found = contents(store)
                assert promised <= set(found)
                for path, (name, files) in found.items():
                    assert files == expected[name], path
        except BaseException as problem:
            problems.append(problem)
        finally:
            server.start()

    runs.append(undisturbed)
    killer = threading.Thread(target=kill_again_and_again)
    killer.start()
    taken_up = 0
    try:
        while not problems and (killer.is_alive() or len(runs) == 1):
            runs.append(Run(server, f"run {len(runs)}", base))
            taken_up += runs[-1].finish()
    finally:
        is_over.set()
        killer.join()
    assert not problems, problems
    for run in runs:
        assert run.losses == undisturbed.losses
    assert phases.total() == KILLS and taken_up > 0
    log = server.log_file.read_text()
    assert "Traceback" not in log, log[-3000:]
    print(f"{dict(phases)}, {len(runs)} runs, taken up {taken_up} times, {whole:.1f} s each")
