"""Tokens per second, as the page shows them."""

import numpy as np

from training.api import ForwardBackwardOutput, SampledSequence, SampleResponse, TensorData
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


def test_a_training_pass_counts_its_positions() -> None:
    activity = Activity(Clock())
    tensors = [TensorData(np.zeros(n, np.float32), "float32") for n in (3, 4)]
    outputs = [{"logprobs": tensor} for tensor in tensors]
    activity.note(ForwardBackwardOutput("logprobs", outputs, {}))
    activity.note({"path": "tinker://a/weights/b"})
    # in the first second it is as if a second had passed
    assert activity.trained.per_second() == 7
    assert activity.sampled.per_second() == 0
