"""A wrong value is refused when the object that holds it is made, with what was wrong."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from training.api import (
    AdamParams,
    Datum,
    EncodedTextChunk,
    LoraConfig,
    ModelInput,
    SamplingParams,
    TensorData,
)
from training.backends.local.engine import EngineOptions
from training.backends.local.losses import resolve_config

NAN, INFINITE = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("make", "values", "message"),
    [
        (SamplingParams, {"max_tokens": 2.5}, "max_tokens=2.5: a whole number from 1 is needed"),
        (SamplingParams, {"max_tokens": True}, "max_tokens=True: a whole number from 1"),
        (SamplingParams, {"max_tokens": "5"}, "max_tokens='5'"),
        (SamplingParams, {"top_k": 2.0}, "top_k=2.0: a whole number is needed"),
        (SamplingParams, {"top_k": -2}, r"top_k=-2: -1 \(off\) or a whole number from 1"),
        (SamplingParams, {"top_k": True}, "top_k=True"),
        (SamplingParams, {"seed": 1.5}, "seed=1.5: a whole number is needed"),
        (SamplingParams, {"seed": False}, "seed=False"),
        (SamplingParams, {"temperature": NAN}, "temperature=nan: a finite number from 0"),
        (SamplingParams, {"temperature": "0.7"}, "temperature='0.7'"),
        (SamplingParams, {"temperature": True}, "temperature=True"),
        (SamplingParams, {"temperature": None}, "temperature=None"),
        (SamplingParams, {"top_p": NAN}, "top_p=nan: a number above 0 and at most 1"),
        (SamplingParams, {"top_p": True}, "top_p=True"),
        (SamplingParams, {"min_p": 1.5}, "min_p=1.5: a number from 0 to 1"),
        (SamplingParams, {"stop": [1.5]}, r"stop=\[1.5\]: 1.5 is neither a text nor a token id"),
        (SamplingParams, {"stop": [True]}, "True is neither"),
        (SamplingParams, {"stop": [-1]}, "-1 is neither"),
        (SamplingParams, {"stop": [["a"]]}, r"\['a'\] is neither"),
        (SamplingParams, {"stop": [None]}, "None is neither"),
        (SamplingParams, {"stop": b"x"}, "stop=b'x': text is needed, not bytes"),
        (SamplingParams, {"stop": [b"x"]}, "b'x' is neither"),
        (SamplingParams, {"stop": 5}, "stop=5: a text or a list"),
        (SamplingParams, {"stop": {"a": 1}}, "stop={'a': 1}: a text or a list"),
        (SamplingParams, {"stop": ""}, "stop='': an empty string"),
        (SamplingParams, {"stop": ["a", "\ud83d"]}, "surrogate"),
        (SamplingParams, {"json_schema": "{}"}, "json_schema='{}': a JSON schema as a dict"),
        (SamplingParams, {"grammar": ""}, "grammar='': a grammar in llguidance's"),
        (SamplingParams, {"grammar": " \n"}, "a text that is not empty"),
        (SamplingParams, {"grammar": {"start": "a"}}, "grammar={'start': 'a'}: a grammar"),
        (SamplingParams, {"grammar": 'start: "a"', "json_schema": {}}, "json_schema and grammar"),
        (SamplingParams, {"top_k": 2.0, "seed": 1.5}, "top_k=2.0.*|seed=1.5.*top_k=2.0"),
        (AdamParams, {"learning_rate": True}, "AdamParams: learning_rate=True: a finite number"),
        (AdamParams, {"learning_rate": "1e-4"}, "learning_rate='1e-4'"),
        (AdamParams, {"learning_rate": NAN}, "learning_rate=nan"),
        (AdamParams, {"learning_rate": -1.0}, "learning_rate=-1.0: a finite number from 0"),
        (AdamParams, {"beta1": 1.0}, "beta1=1.0: a number from 0 and below 1"),
        (AdamParams, {"beta2": None}, "beta2=None"),
        (AdamParams, {"eps": -1e-8}, "eps=-1e-08"),
        (AdamParams, {"weight_decay": INFINITE}, "weight_decay=inf"),
        (AdamParams, {"grad_clip_norm": -1.0}, "grad_clip_norm=-1.0"),
        (LoraConfig, {"rank": 2.0}, "LoraConfig: rank=2.0: a whole number from 1"),
        (LoraConfig, {"rank": True}, "rank=True"),
        (LoraConfig, {"seed": 0.5}, "seed=0.5"),
        (LoraConfig, {"train_mlp": "false"}, "train_mlp='false': True or False is needed"),
        (LoraConfig, {"train_attn": 0}, "train_attn=0"),
        (LoraConfig, {"alpha": NAN}, "alpha=nan: a finite number above 0"),
        (EngineOptions, {"max_rows": 2.5}, "max_rows=2.5: a whole number from 1"),
        (EngineOptions, {"max_train_tokens": True}, "max_train_tokens=True"),
        (EngineOptions, {"share_prompts": "no"}, "share_prompts='no': True or False"),
        (ModelInput.from_ints, {"tokens": [1, 1.5]}, "token 1 is 1.5: a whole number is needed"),
        (ModelInput.from_ints, {"tokens": [True]}, "token 0 is True"),
        (ModelInput.from_ints, {"tokens": [1, None]}, "token 1 is None"),
        (ModelInput.from_ints, {"tokens": "12"}, "token ids are needed, not text"),
        (ModelInput.from_ints, {"tokens": np.array([1.0])}, "token 0 is 1.0"),
        (ModelInput.from_ints, {"tokens": 5}, "a sequence of token ids is needed"),
        (ModelInput.from_ints, {"tokens": [[1, 2]]}, r"token 0 is \[1, 2\]"),
        (EncodedTextChunk, {"tokens": [2.0]}, "token 0 is 2.0"),
        (ModelInput, {"chunks": [[1, 2]]}, r"chunks\[0\] is a list; only EncodedTextChunk"),
        (TensorData, {"data": [1.5], "dtype": "int64"}, "TensorData data: a whole number"),
        (TensorData, {"data": [True], "dtype": "int64"}, "TensorData data: a whole number"),
        (TensorData, {"data": ["1"], "dtype": "float32"}, "numbers are needed; got <U1"),
        (TensorData, {"data": [2**63], "dtype": "int64"}, "within int64"),
        (TensorData, {"data": [1, 2], "dtype": "int64", "shape": [3]}, r"shape=\[3\]"),
        (TensorData, {"data": [1, 2], "dtype": "int64", "shape": [-2, -1]}, r"shape=\[-2, -1\]"),
        (TensorData, {"data": [[1], [2]], "dtype": "int64"}, r"shape \(2, 1\)"),
        (TensorData, {"data": [1], "dtype": "int32"}, "allowed are 'int64' and 'float32'"),
        (TensorData.from_numpy, {"array": np.array([1j])}, "numbers are needed; got complex"),
        (TensorData.from_numpy, {"array": np.array([2**63], np.uint64)}, "within int64"),
    ],
)
def test_wrong_values_are_refused_when_made(
    make: Callable[..., Any], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make(**values)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("target_tokens", [1.5], r"loss_fn_inputs\['target_tokens'\]: a whole number is needed"),
        ("target_tokens", [True], "a whole number"),
        ("target_tokens", ["3"], "a whole number"),
        ("target_tokens", [[1, 2], [3]], "inhomogeneous"),
        ("target_tokens", [2**70], "within int64"),
        ("weights", ["a"], r"loss_fn_inputs\['weights'\]: numbers are needed"),
        ("weights", [None], "numbers are needed"),
        ("advantages", [[1.0], [1.0, 2.0]], r"loss_fn_inputs\['advantages'\]: .*inhomogeneous"),
    ],
)
def test_wrong_tensors_of_a_datum(key: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Datum(ModelInput.from_ints([1]), {key: value})


def test_other_wrong_parts_of_a_datum() -> None:
    wrong: Any = [1, 2]
    with pytest.raises(ValueError, match="model_input is a list; a ModelInput is needed"):
        Datum(wrong, {})
    with pytest.raises(ValueError, match="loss_fn_inputs is a list; a dict is needed"):
        Datum(ModelInput.from_ints([1]), wrong)


@pytest.mark.parametrize("value", [True, "0.9", NAN, None, 1j])
def test_wrong_values_of_a_loss(value: Any) -> None:
    with pytest.raises(ValueError, match=r"clip_low_threshold'\]=.*: a finite number is needed"):
        resolve_config("ppo", {"clip_low_threshold": value})


def test_numbers_of_numpy_and_torch_are_plain_ones() -> None:
    params = SamplingParams(
        max_tokens=np.int32(5),  # type: ignore[arg-type]
        top_k=np.int64(3),  # type: ignore[arg-type]
        seed=np.uint64(2**64 - 1),  # type: ignore[arg-type]
        temperature=np.float32(0.5),  # type: ignore[arg-type]
        stop=np.array([3, 4]),  # type: ignore[arg-type]
    )
    assert params == SamplingParams(5, 2**64 - 1, [3, 4], 0.5, 3)
    assert type(params.max_tokens) is int and type(params.temperature) is float
    assert SamplingParams(stop=("a", 3)).stop == ("a", 3)  # type: ignore[arg-type]
    assert type(AdamParams(learning_rate=np.float64(1e-3)).learning_rate) is float
    assert type(LoraConfig(rank=np.int64(4)).rank) is int  # type: ignore[arg-type]
    for tokens in ([1, 2], (1, 2), np.array([1, 2]), torch.tensor([1, 2]), [np.int64(1), 2]):
        made = ModelInput.from_ints(tokens)  # type: ignore[arg-type]
        assert made == ModelInput.from_ints([1, 2]) and type(made.to_ints()[0]) is int
    beta: Any = np.float32(0.5)
    assert resolve_config("dro", {"beta": beta}) == {"beta": 0.5}
    mixed: Any = [np.int64(2), 3]
    assert TensorData(mixed, "int64").tolist() == [2, 3]
    assert TensorData.from_numpy(np.array([True, False])).tolist() == [1.0, 0.0]
    empty = Datum(ModelInput.from_ints([]), {"target_tokens": [], "weights": []}).loss_fn_inputs
    assert [empty[key].shape for key in empty] == [[0], [0]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_samples": 2.0}, "num_samples=2.0: a whole number from 1"),
        ({"num_samples": True}, "num_samples=True"),
        ({"topk_sample_logprobs": 1.5}, "topk_sample_logprobs=1.5"),
        ({"include_prompt_logprobs": "no"}, "include_prompt_logprobs='no'"),
        ({"prompt": [1, 2]}, "prompt is a list; a ModelInput is needed"),
    ],
)
def test_wrong_arguments_of_sample(
    arguments: dict[str, Any], message: str, tiny_model: Any, service: Any
) -> None:
    sampler = service.create_sampling_client(base_model=tiny_model("llama"))
    given = {"prompt": ModelInput.from_ints([5]), "num_samples": 1, **arguments}
    with pytest.raises(ValueError, match=message):
        sampler.sample(sampling_params=SamplingParams(max_tokens=2), **given)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 1.5}, "seed=1.5: a whole number is needed"),
        ({"train_mlp": "false"}, "train_mlp='false': True or False"),
        ({"lora_alpha": INFINITE}, "lora_alpha=inf"),
        ({"lora_alpha": True}, "lora_alpha=True"),
        ({"lora_dropout": "0.1"}, "lora_dropout='0.1': 0 <= lora_dropout < 1 is needed"),
    ],
)
def test_wrong_arguments_of_a_training_client(
    arguments: dict[str, Any], message: str, tiny_model: Any, service: Any
) -> None:
    with pytest.raises(ValueError, match=message):
        service.create_lora_training_client(tiny_model("llama"), **arguments)


def test_a_training_client_takes_numbers_of_numpy(tiny_model: Any, service: Any) -> None:
    client = service.create_lora_training_client(
        tiny_model("llama"), rank=np.int64(2), seed=np.int32(0), lora_dropout=np.float32(0.5)
    )
    assert client.get_info().lora_rank == 2
    wrong: Any = [[1, 2]]
    with pytest.raises(ValueError, match=r"data\[0\] is a list; a Datum is needed"):
        client.forward(wrong, "cross_entropy")
    with pytest.raises(ValueError, match="checkpoint name 5"):
        client.save_state(5).result()
