"""What is tried again after a failed LLM call, with which request, and after which wait."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import random
import time

from utils.llm.api import Endpoint, Kind, LLMError, Message, Request

RETRIED: frozenset[Kind] = frozenset({"transport", "timeout", "server"})
ASKED_AGAIN: frozenset[Kind] = frozenset({"invalid_json", "invalid_schema", "empty"})


@dataclasses.dataclass(frozen=True)
class RetryPolicy:
    """How hard one call is tried.

    Transport errors, time-outs and server errors are repeated `max_retries` times, 429 up to
    `max_rate_retries` times; the waits double from `backoff_s` to `max_backoff_s` and are shortened
    by up to half, as drawn from `seed` and the call. Answers that are empty or not of the asked-for
    shape are asked for again `max_reasks` times. A server's Retry-After is obeyed unless it is
    longer than `max_retry_after_s`: then the calls of that role fail until that time has come.
    """

    max_retries: int = 4
    max_rate_retries: int = 12
    max_reasks: int = 2
    backoff_s: float = 1.0
    max_backoff_s: float = 60.0
    max_retry_after_s: float = 600.0
    seed: int = 0

    def backoff(self, failures: int, rng: random.Random) -> float:
        """Seconds to wait after that many failures in a row."""
        seconds = min(self.backoff_s * 2.0 ** min(failures - 1, 60), self.max_backoff_s)
        return seconds * rng.uniform(0.5, 1.0)


class Lane:
    """What the calls of one role share: their endpoint, their slots, and the pause that a server
    asked one of them for."""

    def __init__(self, endpoint: Endpoint, retry: RetryPolicy, max_concurrency: int) -> None:
        self.endpoint = endpoint
        self.role = endpoint.role
        self.slots = asyncio.Semaphore(self.role.max_concurrency or max_concurrency)
        self._retry = retry
        self._paused_at = -math.inf
        self._until = -math.inf
        self._refusals = 0

    def pause_left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def pause(self, error: LLMError, started: float, rng: random.Random) -> float:
        """Let no call of the role begin for the time asked for, or for a growing one if none was;
        the seconds by which that is longer than the pause there was already."""
        # calls that were sent together are refused together: that is one refusal
        if started >= self._paused_at:
            self._refusals += 1
        self._paused_at = time.monotonic()
        wait = max(self._retry.backoff(self._refusals, rng), error.retry_after or 0.0)
        before, self._until = self._until, max(self._until, self._paused_at + wait)
        return self._until - max(before, self._paused_at)

    def relax(self, started: float) -> None:
        if started >= self._paused_at:
            self._refusals = 0

    def too_long(self, kind: Kind, detail: str, left: float) -> LLMError:
        limit = self._retry.max_retry_after_s
        return LLMError(
            kind,
            self.role.name,
            f"{detail}: {left:.0f} s are longer than max_retry_after_s={limit:g}; "
            "run the same again later",
            retry_after=left,
        )


class Tries:
    """What is left to try for one call, and the request to try it with."""

    def __init__(
        self, retry: RetryPolicy, request: Request, seed: int | None, rng: random.Random
    ) -> None:
        self.request = request
        self._first = request
        self._retry = retry
        self._seed = seed
        self._rng = rng
        self._retries = 0
        self._rate_retries = 0
        self._reasks = 0
        self._doubled = False

    def wait_after(self, error: LLMError) -> float | None:
        """Seconds until `self.request` may be sent, or None when the error is final."""
        if error.retry_after is not None and error.retry_after > self._retry.max_retry_after_s:
            return None
        if error.kind in RETRIED and self._retries < self._retry.max_retries:
            self._retries += 1
            return self._retry.backoff(self._retries, self._rng)
        if error.kind == "rate" and self._rate_retries < self._retry.max_rate_retries:
            self._rate_retries += 1
            return 0.0  # the role's pause is the wait
        if error.kind == "truncated" and not self._doubled:
            self._doubled = True
            self.request = dataclasses.replace(self.request, max_tokens=2 * self.request.max_tokens)
            return 0.0
        if error.kind in ASKED_AGAIN and self._reasks < self._retry.max_reasks:
            self._reasks += 1
            self.request = dataclasses.replace(
                self.request,
                messages=[*self._first.messages, *_correction(error)],
                # with its old seed, an endpoint that is deterministic repeats its answer
                seed=sample_seed(self._seed, self.request.sample_index, self._reasks),
            )
            return 0.0
        return None


def _correction(error: LLMError) -> list[Message]:
    """The turns that show a model what was wrong with its answer."""
    if error.kind == "empty" or error.reply is None:
        return []
    return [
        {"role": "assistant", "content": error.reply.text},
        {
            "role": "user",
            "content": f"I could not read that: {error.detail}\n"
            "Send the whole answer once more as one JSON object that fits the schema, and nothing "
            "before or after it.",
        },
    ]


def sample_seed(seed: int | None, sample_index: int, reasks: int) -> int | None:
    """Differs between samples and re-asks, and stays below 2**31, which all servers take."""
    if seed is None:
        return None
    return (seed * 1_000_003 + sample_index * 16 + reasks) % 2**31
