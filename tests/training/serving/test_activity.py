"""Tokens per second, as the page shows them."""

from typing import Any

import numpy as np
import pytest
from host_world import data_of

from training.api import (
    ForwardBackwardOutput,
    ModelInput,
    SampledSequence,
    SampleResponse,
    SamplingParams,
    TensorData,
)
from training.serving.activity import WINDOW_SECONDS, Activity
from training.serving.sampled import Sampled


class Clock:
    seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def response(*lengths: int) -> SampleResponse:
    return SampleResponse([SampledSequence("stop", np.arange(n)) for n in lengths])


def test_tokens_count_for_a_while_and_then_no_more() -> None:
    clock = Clock()
    activity = Activity(clock)
    clock.seconds += 100
    assert (activity.sampled.per_second(), activity.trained.per_second()) == (0, 0)
    activity.note(response(40, 20))
    clock.seconds += 10
    activity.note(Sampled(response(90)))
    assert activity.sampled.per_second() == 150 / WINDOW_SECONDS
    clock.seconds += WINDOW_SECONDS - 10
    assert activity.sampled.per_second() == 90 / WINDOW_SECONDS
    clock.seconds += 10
    assert activity.sampled.per_second() == 0
    assert activity.trained.per_second() == 0


def test_what_is_counted_elsewhere_counts_as_of_the_look() -> None:
    clock = Clock()
    trained = 500
    activity = Activity(clock, lambda: trained)
    clock.seconds += 100
    activity.look()
    assert activity.trained.per_second() == 500 / WINDOW_SECONDS
    trained += 70
    clock.seconds += 20
    activity.look()
    activity.look()
    # the result of that pass adds nothing to it
    activity.note(ForwardBackwardOutput("logprobs", [], {}))
    assert activity.trained.per_second() == 570 / WINDOW_SECONDS
    clock.seconds += 10
    assert activity.trained.per_second() == 70 / WINDOW_SECONDS
    assert activity.trained.total == 570


def test_samples_count_while_they_run(tiny_model: Any, connect_local: Any) -> None:
    service, model = connect_local(), tiny_model("llama_tied")
    sampler = service.create_sampling_client(base_model=model)
    clock = Clock()
    activity = Activity(clock, tokens_sampled=lambda: service.tokens_sampled)
    seen: list[int] = []

    def on_token(token: Any) -> bool:
        activity.look()
        seen.append(activity.sampled.total)
        return True

    params = SamplingParams(max_tokens=4, seed=0, stop=[])
    prompt = ModelInput.from_ints([1, 2, 3])
    activity.note(sampler.prepare_sample(prompt, 2, params, on_token=on_token)().result())
    assert seen == [2, 2, 4, 4, 6, 6, 8, 8]
    # the result adds nothing to them
    assert activity.sampled.total == 8


def test_training_counts_while_its_pass_runs(
    tiny_model: Any, connect_local: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    service, model = connect_local(max_train_tokens=20), tiny_model("llama_tied")
    trainer = service.create_lora_training_client(model, rank=4, seed=0)
    assert service.tokens_trained == 0
    seen: list[int] = []
    monkeypatch.setattr(
        service.engine(model),
        "_decode_while_training",
        lambda: seen.append(service.tokens_trained),
    )
    # 18 positions each, so a micro-batch each
    trainer.forward_backward(data_of(0, (19, 19, 19)), "cross_entropy").result()
    # and perhaps once more after the pass
    assert seen[:2] == [18, 36] and service.tokens_trained == 54
    trainer.forward(data_of(1, (9,)), "cross_entropy").result()
    assert service.tokens_trained == 62


def test_a_training_pass_counts_its_positions() -> None:
    activity = Activity(Clock())
    tensors = [TensorData(np.zeros(n, np.float32), "float32") for n in (3, 4)]
    outputs = [{"logprobs": tensor} for tensor in tensors]
    activity.note(ForwardBackwardOutput("logprobs", outputs, {}))
    activity.note({"path": "tinker://a/weights/b"})
    # in the first second it is as if a second had passed
    assert activity.trained.per_second() == 7
    assert activity.sampled.per_second() == 0
