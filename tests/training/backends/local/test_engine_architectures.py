"""The architectures people use are right; others are refused in one sentence.

The comparison is the survey's (benchmarks/architectures.py), against transformers' eager code.
"""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from training.backends.local.loading import open_model

# what the engine says of the figures it compared when it loaded the model
REFUSAL = re.compile(r"\w+ is not supported by the local engine.*\d nats.*when packed")
RIGHT = (
    "bamba",
    "bloom",
    "cohere",
    "cohere/query and key norms",
    "cohere2",
    "deepseek_v3",
    "diffllama",
    "falcon",
    "falcon/alibi",
    "falcon/new decoder",
    "falcon_h1",
    "got_ocr2",
    "gpt_neox",
    "gptj",
    "granite",
    "granitemoehybrid",
    "hyperclovax",
    "lfm2",
    "mamba2",
    "nemotron_h",
    "phi3",
    "phi3/longrope",
    "phimoe",
    "qwen3_5_text",
    "qwen3_next",
    "recurrent_gemma",
    "rwkv",
    "zamba2",
)
# bidirectional, or with a backward pass of its own
REFUSED = (
    "bert",
    "gemma3_text/bidirectional",
    "reformer",
)


@pytest.fixture
def found(request: Any, load_benchmark: Any, tmp_path: Path, one_torch_thread: None) -> Any:
    return load_benchmark("architectures").try_architecture(request.param, tmp_path)


@pytest.mark.parametrize("found", RIGHT, indirect=True)
def test_right(found: Any) -> None:
    assert found.verdict == "right", found
    assert len(found.differences) == 8 and max(found.differences.values()) <= 1e-4


@pytest.mark.parametrize("found", REFUSED, indirect=True)
def test_refused_in_one_sentence(found: Any) -> None:
    assert found.verdict == "refused", found
    assert REFUSAL.search(found.text), found.text


def test_a_model_whose_own_code_cannot_compute_in_the_dtype_is_refused(
    load_benchmark: Any, tmp_path: Path
) -> None:
    path = load_benchmark("tiny_architectures").save_tiny_architecture(tmp_path, "xlnet", 0)
    with pytest.raises(ValueError, match=r"own XLNetLMHeadModel cannot compute in bfloat16 on cpu"):
        open_model(path, torch.device("cpu"), torch.bfloat16)
