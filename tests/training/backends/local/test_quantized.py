"""Decoding with smaller weights than the trainer's: for decoded rows alone; those of four bits are
the file's own.

uv run pytest tests/training/backends/local/test_quantized.py
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from training.api import Datum, ModelInput, SamplingParams
from training.backends.local.linear import LoraPass
from training.backends.local.quantized import Blocks, Int4Matrix, embedded_blocks
from training.connect import connect
from training.models import resolve_model
from utils.json_files import read_json_object


def random_blocks(seed: int, rows: int, width: int) -> Blocks:
    rng = np.random.default_rng(seed)
    d, m = rng.normal(size=(2, rows, width // 32)).astype(np.float32)
    return Blocks(rng.integers(0, 16, (rows, width), dtype=np.uint8), d / 16, m / 4)


def test_the_blocks_are_the_weights_that_the_trainer_has() -> None:
    folder = Path(resolve_model("embedded"))
    blocks = embedded_blocks(SimpleNamespace(**read_json_object(folder / "config.json")))
    assert len(blocks) == 7 * 30
    with safe_open(folder / "model.safetensors", "pt") as weights:
        for path in [path for path in blocks if ".0." in path or ".29." in path]:
            assert torch.equal(blocks[path].dense(), weights.get_tensor(f"model.{path}.weight"))


def test_products_are_rounded_as_bfloat16_is_and_rows_keep_their_bits() -> None:
    parts = [random_blocks(0, 96, 128), random_blocks(1, 32, 128)]
    matrix = Int4Matrix(parts)
    x = torch.randn(9, 128, generator=torch.Generator().manual_seed(0))
    got = matrix(x)
    wanted = x @ torch.cat([part.dense() for part in parts]).T
    assert got.dtype == torch.float32
    assert (got - wanted).norm() / wanted.norm() < 2**-7
    for rows in range(1, 9):
        assert torch.equal(matrix(x[:rows]), got[:rows])


def test_decoded_rows_alone_use_them(tiny_model: Any, connect_local: Any) -> None:
    folder = tiny_model("llama")
    service = connect_local()
    client = service.create_lora_training_client(folder, rank=2, seed=0)
    seen: list[int] = []
    for product in service.engine(folder).decoder.products():
        matrix = product.forward_matrix
        product.decode_matrix = lambda x, matrix=matrix: seen.append(len(x)) or matrix(x)
    tokens = [5, 6, 7, 8]
    fields = {"target_tokens": tokens, "weights": [1.0] * 4}
    client.forward_backward([Datum(ModelInput.from_ints(tokens), fields)], "cross_entropy").result()
    sampler = client.save_weights_and_get_sampling_client().result()
    params = SamplingParams(max_tokens=1, stop=[])
    sampler.sample(ModelInput.from_ints(tokens), 3, params).result()
    assert not seen
    params = SamplingParams(max_tokens=2, stop=[])
    sampler.sample(ModelInput.from_ints(tokens), 3, params).result()
    assert set(seen) == {3}


def test_what_has_none_is_refused(tiny_model: Any, connect_local: Any) -> None:
    with pytest.raises(ValueError, match="sampling_weights='int8': allowed are bfloat16, int4"):
        connect("local", sampling_weights="int8")
    service = connect_local(sampling_weights="int4")
    with pytest.raises(ValueError, match="sampling_weights='int4' needs model_name='embedded'"):
        service.create_sampling_client(base_model=tiny_model("llama"))

    with pytest.raises(ValueError, match="sampling_weights='bfloat16' needs dtype='float32'"):
        connect("local", sampling_weights="bfloat16", dtype="bfloat16", device="cpu")


def test_a_part_of_a_decoding_pass_decodes() -> None:
    # as bodies that run in rows take them
    whole = LoraPass(tokens=4, decoding=True)
    assert whole.rows(1, 3).decoding
    assert not LoraPass(tokens=4).rows(1, 3).decoding


# both have biases
@pytest.mark.parametrize("family", ["qwen2", "gpt2"])
def test_decoded_rows_are_multiplied_in_bfloat16(
    family: str, tiny_model: Any, connect_local: Any
) -> None:
    folder = tiny_model(family)
    service = connect_local(sampling_weights="bfloat16")
    client = service.create_lora_training_client(folder, rank=2, seed=0)
    for product in service.engine(folder).decoder.products():
        x = torch.randn(3, product.in_features, generator=torch.Generator().manual_seed(0))
        wanted = x.bfloat16().float() @ product.forward_matrix.dense().bfloat16().float().T
        assert (product.decode_matrix(x) - wanted).norm() / wanted.norm() < 2**-7
    assert 1e-6 < difference_from_the_trainer(client, [5, 6, 7, 8], "float32") <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("weights", "dtype"),
    [("int4", "float32"), ("int4", "bfloat16"), ("bfloat16", "float32")],
)
def test_the_sampler_stays_near_the_trainer(weights: str, dtype: str, connect_local: Any) -> None:
    service = connect_local(sampling_weights=weights, dtype=dtype)
    client = service.create_lora_training_client("embedded", rank=4, seed=0)
    prompt = client.get_tokenizer().encode("Once upon a time a fox met")
    assert 1e-4 < difference_from_the_trainer(client, prompt, dtype) <= 0.05


def difference_from_the_trainer(client: Any, prompt: list[int], dtype: str) -> float:
    """The root mean square of four samples' logprobs; the first tokens come with the prompt, which
    is computed as ever."""
    sampler = client.save_weights_and_get_sampling_client().result()
    params = SamplingParams(max_tokens=24, stop=[], seed=0)
    sequences = sampler.sample(ModelInput.from_ints(prompt), 4, params).result().sequences
    data = []
    for sequence in sequences:
        tokens = prompt + sequence.tokens
        weights = [0.0] * (len(prompt) - 1) + [1.0] * 24
        fields = {"target_tokens": tokens[1:], "weights": weights}
        data.append(Datum(ModelInput.from_ints(tokens[:-1]), fields))
    known = client.forward(data, "cross_entropy").result().loss_fn_outputs
    difference = np.concatenate(
        [
            own["logprobs"].to_numpy()[-24:] - np.array(sequence.logprobs)
            for own, sequence in zip(known, sequences, strict=True)
        ]
    )
    assert abs(difference[::24]).max() < (1e-4 if dtype == "float32" else 0.05)
    return float(np.sqrt((difference**2).mean()))
