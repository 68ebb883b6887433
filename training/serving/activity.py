"""How fast the server is: tokens that were sampled and trained on, lately and in all."""

from collections import deque
from collections.abc import Callable
from typing import Any

from training.api import ForwardBackwardOutput, SampleResponse
from training.serving.sampled import Sampled

WINDOW_SECONDS = 30.0


class Speed:
    """Tokens per second, over the last WINDOW_SECONDS of a `clock` that gives seconds; `total`: of
    all time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._started = clock()
        self._added: deque[tuple[float, int]] = deque()
        self._recent = 0
        self.total = 0

    def add(self, num_tokens: int) -> None:
        if num_tokens:
            self._added.append((self._clock(), num_tokens))
            self._recent += num_tokens
            self.total += num_tokens

    def count_to(self, total: int) -> None:
        """What is counted elsewhere, from time to time."""
        self.add(total - self.total)

    def per_second(self) -> float:
        now = self._clock()
        while self._added and now - self._added[0][0] >= WINDOW_SECONDS:
            self._recent -= self._added.popleft()[1]
        # a server that has just started is not slow
        return self._recent / min(WINDOW_SECONDS, max(now - self._started, 1.0))


class Activity:
    """Speeds of the engine, by what it is asked for. `tokens_trained` and `tokens_sampled` count up
    while it works; where one tells None, tokens count when their result comes."""

    def __init__(
        self,
        clock: Callable[[], float],
        tokens_trained: Callable[[], int | None] = lambda: None,
        tokens_sampled: Callable[[], int | None] = lambda: None,
    ) -> None:
        self.sampled = Speed(clock)
        self.trained = Speed(clock)
        self._tokens_trained = tokens_trained
        self._tokens_sampled = tokens_sampled

    def look(self) -> None:
        """To be called often: what was done since the last time counts as of now."""
        if (total := self._tokens_trained()) is not None:
            self.trained.count_to(total)
        if (total := self._tokens_sampled()) is not None:
            self.sampled.count_to(total)

    def note(self, result: Any) -> None:
        """The result of a request that is done; others than those of tokens do not count."""
        if isinstance(result, Sampled):
            result = result.response
        if isinstance(result, SampleResponse) and self._tokens_sampled() is None:
            self.sampled.add(sum(len(sequence.tokens_np) for sequence in result.sequences))
        elif isinstance(result, ForwardBackwardOutput) and self._tokens_trained() is None:
            # one logprob for each position
            logprobs = [output["logprobs"] for output in result.loss_fn_outputs]
            self.trained.add(sum(len(tensor.data) for tensor in logprobs))
