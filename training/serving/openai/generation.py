"""From a checked request to sampled tokens, for as long as the client waits for them."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

from starlette.requests import ClientDisconnect, Request

from training.api import ModelInput, SamplingParams, StopReason
from training.serving.errors import ServingError, bad_request
from training.serving.hosted import Hosted, StreamedToken
from training.serving.openai.answers import AnswerForm, Token
from training.serving.openai.requests import Sampling
from training.token_bounds import TooManyTokens

T = TypeVar("T")

# tokens of a stream that wait for a slow client
_MOST_WAITING = 64


@dataclass(frozen=True)
class Asked:
    """One prompt of a request, as the sampler takes it, and what of the tokens is the answer."""

    prompt: list[int]
    form: AnswerForm
    params: SamplingParams

    @property
    def model_input(self) -> ModelInput:
        return ModelInput.from_ints(self.prompt)


def asked_of(
    prompt: list[int], form: AnswerForm, sampling: Sampling, max_tokens: int | None
) -> Asked:
    params = SamplingParams(
        max_tokens=max_tokens,
        seed=sampling.seed,
        stop=form.sampler_stop,  # pyrefly: ignore
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        json_schema=sampling.schema,
    )
    return Asked(prompt, form, params)


def most_tokens(max_tokens: int | None, context: int | None) -> int | None:
    """Of a prompt: what the context leaves; None where it is not known."""
    return None if context is None else context - max(1, max_tokens or 0)


def checked_room(num_prompt: int, max_tokens: int | None, context: int | None) -> int | None:
    """How many tokens the context leaves; None where it is not known. Raises ServingError 400 where
    they do not do."""
    if context is None:
        return None
    room = context - num_prompt
    if room < max(1, max_tokens or 0):
        raise _too_long(f"{num_prompt}", room, max_tokens, context)
    return room


@contextmanager
def refusing_long_texts(max_tokens: int | None, context: int | None) -> Iterator[None]:
    """Around what raises TooManyTokens: the same error as checked_room()'s."""
    try:
        yield
    except TooManyTokens as error:
        assert context is not None
        room = context - error.at_least
        raise _too_long(f"{error.at_least} or more", room, max_tokens, context) from error


def _too_long(prompt: str, room: int, max_tokens: int | None, context: int) -> ServingError:
    wanted = "at least 1 token of an answer" if max_tokens is None else f"{max_tokens=}"
    return bad_request(
        f"the model's context holds {context} tokens, and the prompt's {prompt} and "
        f"{wanted} are more; shorten the prompt or ask for fewer tokens",
        param="max_tokens" if room > 0 else None,
        code="context_length_exceeded",
    )


class Sampled(NamedTuple):
    """A token of a stream. `choice`: its index in the reply; `reason`: on a choice's last token."""

    choice: int
    token: Token
    reason: StopReason | None


async def streamed(
    hosted: Hosted, asked: Sequence[Asked], n: int, topk: int
) -> AsyncGenerator[Sampled, None]:
    """The tokens of n answers to each prompt, as they come; closing it frees their rows."""
    sources = [hosted.stream(a.model_input, a.params, num_samples=n, topk=topk) for a in asked]
    async with aclosing(_merged(sources)) as tokens:
        async for at, told in tokens:
            token = Token(told.token, told.logprob, told.topk)
            yield Sampled(at * n + told.sample, token, told.stop_reason)


async def after(
    first: Sampled, tokens: AsyncGenerator[Sampled, None]
) -> AsyncGenerator[Sampled, None]:
    """A stream whose first token was taken to see whether there is one."""
    async with aclosing(tokens):
        yield first
        async for token in tokens:
            yield token


async def _merged(
    sources: Sequence[AsyncGenerator[StreamedToken, None]],
) -> AsyncGenerator[tuple[int, StreamedToken], None]:
    """What comes from all of them, with the number of its source; an error of one ends all."""
    queue: asyncio.Queue[tuple[int, StreamedToken] | Exception | None] = asyncio.Queue(
        _MOST_WAITING
    )

    async def pump(at: int, source: AsyncGenerator[StreamedToken, None]) -> None:
        try:
            async with aclosing(source):
                async for token in source:
                    await queue.put((at, token))
        except Exception as error:
            # whatever it is belongs to whoever reads
            await queue.put(error)
        else:
            await queue.put(None)

    pumps = [asyncio.ensure_future(pump(at, source)) for at, source in enumerate(sources)]
    num_open = len(pumps)
    try:
        while num_open:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for task in pumps:
            task.cancel()


async def together(works: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """The results of all; where one fails the others are cancelled."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def for_client(request: Request, work: Awaitable[T]) -> T:
    """The result of `work`, which is cancelled where the client does not wait for it: then raises
    ClientDisconnect. The request's body has to be read."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        gone.cancel()
        task.cancel()


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
