"""A result of the Tinker face's sample()."""

from dataclasses import dataclass

from training.api import SampleResponse


@dataclass(frozen=True)
class Sampled:
    """A sample() result, and what its request says about how it is written."""

    response: SampleResponse
    prompt_logprobs_last_n: int | None = None
