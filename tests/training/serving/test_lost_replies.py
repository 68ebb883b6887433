"""The official SDK on a line that loses replies: its training comes to the same bits.

uv run pytest tests/training/serving/test_lost_replies.py
uv run pytest tests/training/serving/test_lost_replies.py -m slow
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import tinker
from live_app import live
from lossy_proxy import FAULTS, lossy
from tiny_models import VOCAB

from training.connect import connect
from training.serving.app import make_app
from training.serving.base_models import BaseModels
from training.serving.host import Host
from training.serving.keys import Keys
from training.serving.links import Links
from training.serving.store import Store

KEYS = {name: f"tml-{name}-of-the-tests" for name in ("plain", "few", "many")}
STEP = tinker.AdamParams(learning_rate=0.05)
SEEDED = tinker.SamplingParams(max_tokens=6, seed=3, stop=[])


class Server(NamedTuple):
    url: str
    store: Store


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Callable[..., str]
) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "keys").write_text("".join(f"{name}:{key}\n" for name, key in KEYS.items()))
    store = Store(folder / "store")
    service = connect("local", device="cpu", checkpoint_dir=store.staging)
    host = Host(service, store, BaseModels([tiny_model("llama")], {"tiny": tiny_model("llama")}))
    with live(make_app(host, Keys.from_file(folder / "keys"), Links())) as running:
        yield Server(running.url, store)
    store.close()


def batch(number: int) -> list[tinker.Datum]:
    rng = np.random.default_rng(number)
    data = []
    for length in (7, 11):
        tokens = rng.integers(3, VOCAB, length).tolist()
        inputs: dict[str, Any] = {"target_tokens": tokens[1:], "weights": [1.0] * (length - 1)}
        data.append(tinker.Datum(tinker.ModelInput.from_ints(tokens[:-1]), inputs))
    return data


def train(trainer: tinker.TrainingClient, number: int) -> list[Any]:
    """One step: every number that it gives."""
    passed = trainer.forward_backward(batch(number), "cross_entropy")
    stepped = trainer.optim_step(STEP)
    output = passed.result()
    logprobs = [o["logprobs"].to_numpy().tolist() for o in output.loss_fn_outputs]
    return [output.metrics, logprobs, stepped.result().metrics]


def run(url: str, key: str, steps: int) -> list[Any]:
    """A training run with what such runs do: every number that it gives."""
    with tinker.ServiceClient(base_url=url, api_key=key) as service:
        trainer = service.create_lora_training_client("tiny", rank=4, seed=0).result()
        told = [train(trainer, number) for number in range(steps)]
        path = trainer.save_state("half").result().path
        sampler = trainer.save_weights_and_get_sampling_client().result()
        drawn = sampler.sample(tinker.ModelInput.from_ints([5, 6, 7]), 3, SEEDED).result()
        told.append([sequence.tokens for sequence in drawn.sequences])
        trainer.save_weights_for_sampler("half").result()
        resumed = service.create_training_client_from_state_with_optimizer(path).result()
        for number in range(steps, 2 * steps):
            told.append([train(client, number) for client in (trainer, resumed)])
            assert told[-1][0] == told[-1][1]
        for client, name in ((trainer, "whole"), (resumed, "resumed")):
            client.save_state(name).result()
        return told


def saved(server: Server, owner: str) -> dict[str, dict[str, bytes]]:
    """Every checkpoint's files."""
    rows = server.store.checkpoints.list(owner).rows
    assert len({row.path.checkpoint_id for row in rows}) == len(rows)
    return {
        row.path.checkpoint_id: {
            name: file.read_bytes() for name, file in server.store.checkpoints.files(row).items()
        }
        for row in rows
    }


def check_same_bits(server: Server, owner: str, *, steps: int, seed: int, share: float) -> None:
    wanted = run(server.url, KEYS["plain"], steps)
    expected = saved(server, "plain")
    assert set(expected) == {
        *("weights/half", "weights/whole", "weights/resumed", "sampler_weights/half")
    }
    with lossy(server.url, seed=seed, share=share) as (url, proxy):
        assert run(url, KEYS[owner], steps) == wanted
        proxy.flush()
        assert saved(server, owner) == expected
        assert ("/api/v1/optim_step", "lost reply") in proxy.met
        if share > 0.3:
            assert {fault for _, fault in proxy.met} == set(FAULTS)
    for row in server.store.checkpoints.list("plain").rows:
        server.store.checkpoints.delete("plain", row.path)


def test_a_run_over_a_bad_line_comes_to_the_same_bits(server: Server) -> None:
    check_same_bits(server, "few", steps=1, seed=5936, share=0.25)


@pytest.mark.slow
def test_a_run_over_a_line_that_hardly_works_does_too(server: Server) -> None:
    """T20: two steps for one are what must never be."""
    check_same_bits(server, "many", steps=4, seed=1, share=0.4)
