"""Calls to language models that survive what endpoints do: one client for all roles of a script.

    judge = Role("judge", "some-model", "https://host/v1", "NAME_OF_KEY_VARIABLE")
    async with LLMClient([OpenAIEndpoint(judge)], cache_path=path, max_cost_usd=2.0) as client:
        with stage("judge"):
            verdicts = await gather_counted(
                [partial(client.structured, "judge", messages, Verdict) for messages in chats],
                "judging",
            )
    print(text_table(client.ledger.HEADERS, client.ledger.table()))

api.py has what an endpoint is, openai_endpoint.py the one over HTTP, answers.py what counts as an
answer, retry.py what is tried again, batch.py gather_counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Generator, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol, Self, TypeVar

from pydantic import BaseModel

from utils.config.entrypoint import raise_problems
from utils.llm.answers import require_model, require_text
from utils.llm.api import Endpoint, LLMError, Message, Reply, Request
from utils.llm.batch import current_batch
from utils.llm.cache import ResponseCache, cache_key
from utils.llm.ledger import Ledger
from utils.llm.retry import Lane, RetryPolicy, Tries, sample_seed
from utils.llm.schemas import strict_schema

M = TypeVar("M", bound=BaseModel)
logger = logging.getLogger(__name__)

DEFAULT_RETRY = RetryPolicy()
WORTH_SAYING_S = 5.0

_stage: ContextVar[str] = ContextVar("stage", default="all")


@contextlib.contextmanager
def stage(name: str) -> Generator[None]:
    """Calls made inside are booked under this name in the ledger."""
    token = _stage.set(name)
    try:
        yield
    finally:
        _stage.reset(token)


class Watcher(Protocol):
    """Told of every call that is done, also of those that the cache answered; the ledger is kept
    for it."""

    ledger: Ledger

    def answered(self, stage: str, role: str, outcome: Reply | LLMError) -> None: ...


class LLMClient:
    """Structured and free calls to the endpoints of a script's roles, with retries, a cache and a
    ledger. Use it with `async with`: it closes the endpoints.

    At most `max_concurrency` calls of a role are in flight. Once the cost that providers reported
    to this client reaches `max_cost_usd`, no call begins: those in flight are finished and kept,
    all others fail with kind budget. Raises a ConfigError with everything that is wrong.
    """

    def __init__(
        self,
        endpoints: Sequence[Endpoint],
        *,
        cache_path: Path | None = None,
        max_concurrency: int = 8,
        max_cost_usd: float | None = None,
        retry: RetryPolicy = DEFAULT_RETRY,
        watcher: Watcher | None = None,
    ) -> None:
        problems = [problem for endpoint in endpoints for problem in endpoint.role.check()]
        names = [endpoint.role.name for endpoint in endpoints]
        if len(set(names)) < len(names):
            problems.append(f"roles {names}: each name once")
        if max_concurrency < 1:
            problems.append(f"max_concurrency={max_concurrency}: must be at least 1")
        if max_cost_usd is not None and not max_cost_usd > 0:
            problems.append(f"max_cost_usd={max_cost_usd}: must be above 0, or None for no limit")
        raise_problems(problems)
        self.ledger = Ledger() if watcher is None else watcher.ledger
        self._watcher = watcher
        self.retry = retry
        self.max_cost_usd = max_cost_usd
        self._cache = ResponseCache(cache_path)
        self._lanes = {
            endpoint.role.name: Lane(endpoint, retry, max_concurrency) for endpoint in endpoints
        }
        # the same call in flight, by key and by what makes a reply to it good
        self._pending: dict[tuple[str, object, bool], asyncio.Future[LLMError | None]] = {}
        self._warned_of_no_cost = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        for lane in self._lanes.values():
            await lane.endpoint.close()

    async def complete(
        self,
        role: str,
        messages: Sequence[Message],
        *,
        sample_index: int = 0,
        max_tokens: int | None = None,
        allow_truncated: bool = False,
    ) -> str:
        """The text that continues `messages`; see `ask`."""
        reply = await self.ask(
            role,
            messages,
            sample_index=sample_index,
            max_tokens=max_tokens,
            allow_truncated=allow_truncated,
        )
        return reply.text

    async def structured(
        self,
        role: str,
        messages: Sequence[Message],
        model: type[M],
        *,
        sample_index: int = 0,
        max_tokens: int | None = None,
    ) -> M:
        """The answer as a `model`; see `ask`."""
        reply = await self.ask(
            role, messages, model=model, sample_index=sample_index, max_tokens=max_tokens
        )
        return require_model(reply, role, model)

    async def ask(
        self,
        role: str,
        messages: Sequence[Message],
        *,
        model: type[BaseModel] | None = None,
        sample_index: int = 0,
        max_tokens: int | None = None,
        allow_truncated: bool = False,
    ) -> Reply:
        """A good reply and where it came from. With a `model`, its text is JSON that fits it.

        The same role, messages, model, sample_index and limits give the reply that is in the cache
        or on its way; another sample needs another sample_index. A text that the token limit cut
        off is asked for once more with twice the tokens, or taken as it is with `allow_truncated`.
        Raises LLMError, and ValueError for a role this client does not have.
        """
        lane = self._lane(role)
        try:
            reply = await self._ask(
                lane, messages, model, sample_index, max_tokens, allow_truncated
            )
        except LLMError as error:
            # what a stop kept from being begun is still to come
            if self._watcher is not None and error.kind != "not_started":
                self._watcher.answered(_stage.get(), role, error)
            raise
        if self._watcher is not None:
            self._watcher.answered(_stage.get(), role, reply)
        return reply

    async def _ask(
        self,
        lane: Lane,
        messages: Sequence[Message],
        model: type[BaseModel] | None,
        sample_index: int,
        max_tokens: int | None,
        allow_truncated: bool,
    ) -> Reply:
        role = lane.role.name
        request = Request(
            messages=[dict(message) for message in messages],
            json_schema=None if model is None else strict_schema(model),
            sample_index=sample_index,
            max_tokens=lane.role.max_tokens if max_tokens is None else max_tokens,
            temperature=lane.role.temperature,
            seed=sample_seed(lane.role.seed, sample_index, 0),
        )
        key = cache_key(lane.role, request)
        good = _Good(role, model, allow_truncated)
        share = (key, model, allow_truncated)
        while True:
            reply = self._cached(key, good)
            if reply is not None:
                self.ledger.cached(_stage.get(), role, reply)
                return reply
            pending = self._pending.get(share)
            if pending is None:
                break
            await asyncio.wait([pending])
            if not pending.cancelled():
                error = pending.result()
                # another batch's end is none of ours
                if error is not None and error.kind != "not_started":
                    raise error
        return await self._share(lane, request, key, good)

    async def _share(self, lane: Lane, request: Request, key: str, good: _Good) -> Reply:
        share = (key, good.model, good.allow_truncated)
        pending = self._pending[share] = asyncio.get_running_loop().create_future()
        try:
            reply = await self._insist(lane, request, key, good)
            self._cache.put(
                key,
                reply,
                role=lane.role.name,
                stage=_stage.get(),
                sample_index=request.sample_index,
            )
            pending.set_result(None)
            return reply
        except LLMError as error:
            pending.set_result(error)
            raise
        finally:
            del self._pending[share]
            pending.cancel()

    async def _insist(self, lane: Lane, request: Request, key: str, good: _Good) -> Reply:
        """Try until there is a good reply or nothing is left to try."""
        rng = random.Random(f"{self.retry.seed} {key}")
        tries = Tries(self.retry, request, lane.role.seed, rng)
        while True:
            try:
                reply = await self._attempt(lane, tries.request, rng)
                good.require(reply)
                return reply
            except LLMError as error:
                wait = tries.wait_after(error)
                self.ledger.failed(_stage.get(), error, given_up=wait is None)
                if wait is None:
                    if error.kind not in ("budget", "not_started"):
                        logger.info("%s; given up", error)
                    raise
                logger.info("%s; trying again", error)
            await _sleep(wait)

    async def _attempt(self, lane: Lane, request: Request, rng: random.Random) -> Reply:
        """One call, as soon as it may be made."""
        while True:
            self._require_allowed(lane)
            if (left := lane.pause_left()) > 0:
                # not all at once when it is over
                await _sleep(left * rng.uniform(1.0, 1.1))
                continue
            async with lane.slots:
                if lane.pause_left() == 0:
                    self._require_allowed(lane)
                    return await self._send(lane, request, rng)

    async def _send(self, lane: Lane, request: Request, rng: random.Random) -> Reply:
        name, started = lane.role.name, time.monotonic()
        self.ledger.sent(_stage.get(), name)
        try:
            async with asyncio.timeout(lane.role.timeout):
                reply = await lane.endpoint.complete(request)
        except TimeoutError:
            detail = f"no answer within {lane.role.timeout:g} s"
            raise LLMError("timeout", name, detail) from None
        except LLMError as error:
            if error.kind == "rate" or error.retry_after is not None:
                longer = lane.pause(error, started, rng)
                if longer >= WORTH_SAYING_S:
                    logger.warning("%s; no call of this role for %.0f s", error, longer)
            if error.reply is not None:
                self._book(lane, error.reply)
            wait = error.retry_after or 0.0
            if wait > self.retry.max_retry_after_s:
                raise lane.too_long(error.kind, error.detail, wait) from None
            raise
        lane.relax(started)
        self._book(lane, reply)
        return reply

    def _book(self, lane: Lane, reply: Reply) -> None:
        self.ledger.replied(_stage.get(), lane.role.name, reply)
        if reply.usage is not None and (batch := current_batch.get()) is not None:
            batch.bar.add(tokens=reply.usage.completion_tokens)
        costless = reply.usage is None or reply.usage.cost_usd is None
        if costless and self.max_cost_usd and lane.role.base_url and not self._warned_of_no_cost:
            self._warned_of_no_cost = True
            logger.warning(
                "%s reports no cost, so max_cost_usd=%g does not limit it",
                *(lane.role.host, self.max_cost_usd),
            )

    def _require_allowed(self, lane: Lane) -> None:
        name, cost = lane.role.name, self.ledger.cost_usd
        if self.max_cost_usd is not None and cost >= self.max_cost_usd:
            detail = (
                f"${cost:.4g} were spent and max_cost_usd={self.max_cost_usd:g}; raise it to go on"
            )
            raise LLMError("budget", name, detail)
        batch = current_batch.get()
        if batch is not None and batch.cause is not None:
            raise LLMError("not_started", name, f"stopped by {batch.cause}")
        if (left := lane.pause_left()) > self.retry.max_retry_after_s:
            raise lane.too_long("rate", "the server asked for a pause", left)

    def _cached(self, key: str, good: _Good) -> Reply | None:
        reply = self._cache.get(key)
        if reply is None:
            return None
        try:
            good.require(reply)
        except LLMError as error:
            # cut off where that was allowed, or from before a model's validators changed
            logger.info("%s; the cached reply does not do", error)
            return None
        return reply

    def _lane(self, role: str) -> Lane:
        if role not in self._lanes:
            raise ValueError(f"role {role!r}: this client has {', '.join(self._lanes)}")
        return self._lanes[role]


class _Good(NamedTuple):
    """What a reply has to be."""

    role: str
    model: type[BaseModel] | None
    allow_truncated: bool

    def require(self, reply: Reply) -> None:
        if self.model is None:
            require_text(reply, self.role, allow_truncated=self.allow_truncated)
        else:
            require_model(reply, self.role, self.model)


async def _sleep(seconds: float) -> None:
    batch = current_batch.get()
    if batch is None:
        await asyncio.sleep(seconds)
    else:
        await batch.sleep(seconds)
