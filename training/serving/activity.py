"""How fast the server is: tokens that were sampled and trained on in the last seconds."""

from collections import deque
from collections.abc import Callable
from typing import Any

from training.api import ForwardBackwardOutput, SampleResponse
from training.serving.sampled import Sampled

WINDOW_SECONDS = 30.0


class Speed:
    """Tokens per second, over the last WINDOW_SECONDS of a `clock` that gives seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = clock()
        self._added: deque[tuple[float, int]] = deque()
        self._total = 0

    def add(self, num_tokens: int) -> None:
        if num_tokens:
            self._added.append((self._clock(), num_tokens))
            self._total += num_tokens

    def per_second(self) -> float:
        now = self._clock()
        while self._added and now - self._added[0][0] >= WINDOW_SECONDS:
            self._total -= self._added.popleft()[1]
        # a server that has just started is not slow
        return self._total / min(WINDOW_SECONDS, max(now - self._started, 1.0))


class Activity:
    """Speeds of the engine, by what it is asked for."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.sampled = Speed(clock)
        self.trained = Speed(clock)

    def note(self, result: Any) -> None:
        """The result of a request that is done; others than those of tokens do not count."""
        if isinstance(result, Sampled):
            result = result.response
        if isinstance(result, SampleResponse):
            self.sampled.add(sum(len(sequence.tokens_np) for sequence in result.sequences))
        elif isinstance(result, ForwardBackwardOutput):
            # one logprob for each position
            logprobs = [output["logprobs"] for output in result.loss_fn_outputs]
            self.trained.add(sum(len(tensor.data) for tensor in logprobs))
