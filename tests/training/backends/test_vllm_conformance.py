"""sampler="vllm" against a real vLLM, which bash benchmarks/vllm_conformance.sh finds or installs.

    uv run pytest -m vllm tests/training/backends/test_vllm_conformance.py

Skipped where neither $AUTODIDACT_VLLM_PYTHON nor this interpreter has vLLM. Greedy tokens and
logprobs are held against transformers and PEFT too.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import vllm_contract
from vllm_contract import LIMIT, World, check_death, make_world, sampler_of

from training.api import SamplingParams
from training.backends.vllm.options import VllmOptions, installed_version
from training.backends.vllm.service import VllmServiceClient
from training.connect import connect
from training.models import resolve_model

pytestmark = pytest.mark.vllm

MODEL = "embedded"
OPTIONS: dict[str, Any] = {
    "max_model_len": 256,
    "max_num_seqs": 16,
    # fewer than there are adapters, and so evictions
    "max_loras": 2,
    "max_cpu_loras": 4,
    "kv_cache_memory_bytes": 2**30,
    "eager": True,
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServiceClient]:
    try:
        installed_version(VllmOptions())
    except ValueError as error:
        pytest.skip(str(error))
    made = connect(
        "local",
        device="cpu",
        checkpoint_dir=tmp_path_factory.mktemp("checkpoints"),
        sampler="vllm",
        sampler_options=OPTIONS,
    )
    assert isinstance(made, VllmServiceClient)
    with made:
        yield made


@pytest.fixture(scope="module")
def world(service: VllmServiceClient) -> World:
    return make_world(service, MODEL)


@pytest.mark.parametrize("check", vllm_contract.CHECKS, ids=lambda check: check.__name__)
def test_contract(check: Callable[[World], None], world: World) -> None:
    check(world)


def test_against_transformers_and_peft(world: World, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "adapter"
    world.trainer.save_into(folder, with_optimizer=False).result()
    base = AutoModelForCausalLM.from_pretrained(resolve_model(MODEL), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, str(folder)).eval()
    params = SamplingParams(max_tokens=12, temperature=0.0, stop=[])
    [sequence] = sampler_of(world).sample(world.prompt, 1, params).result().sequences
    rows = torch.tensor([[*world.prompt.to_ints(), *sequence.tokens]])
    with torch.no_grad():
        logprobs = model(rows).logits[0, world.prompt.length - 1 : -1].log_softmax(-1)
    assert logprobs.argmax(-1).tolist() == sequence.tokens
    expected = logprobs.gather(1, rows[0, world.prompt.length :, None])[:, 0].numpy()
    difference = float(np.abs(sequence.logprobs_np - expected).max())
    print(f"largest difference from transformers and PEFT: {difference:.2g} nats")
    assert difference < LIMIT


def test_an_evicted_adapter_is_read_again(world: World) -> None:
    samplers = [sampler_of(world) for _ in range(OPTIONS["max_cpu_loras"] + 2)]
    told = [sampler.own_logprobs(world.prompt).result() for sampler in [*samplers, samplers[0]]]
    for other in told[1:]:
        assert other[1:] == pytest.approx(told[0][1:], abs=LIMIT)


def test_an_architecture_without_adapters(service: VllmServiceClient, tiny_model: Any) -> None:
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel takes no adapters; use sampler='local'"):
        service.create_sampling_client(base_model=tiny_model("gpt2"))


# last: it uses up the one new start that there is
def test_death(world: World) -> None:
    """Of vLLM's own process, which the worker finds out."""

    def kill_core(pid: int) -> None:
        told = subprocess.run(
            ["ps", "-o", "pid=,ppid=,args=", "-g", str(pid)], capture_output=True, text=True
        )
        rows = [line.split(None, 2) for line in told.stdout.splitlines()]
        [core] = [int(p) for p, parent, name in rows if "EngineCore" in name]
        os.kill(core, signal.SIGKILL)

    check_death(world, kill_core)
