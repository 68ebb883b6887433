"""/completions: what follows a text or token ids, whole or as a stream of chunks."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from training.api import SampleResponse
from training.chat import decode, leading_bos, render_raw_prompt
from training.control_tokens import Encoder, names_control_token
from training.serving.errors import bad_request
from training.serving.hosted import Hosted
from training.serving.openai.answers import (
    Answer,
    RunningAnswer,
    Token,
    completion_form,
    whole_answer,
)
from training.serving.openai.errors import json_reply
from training.serving.openai.generation import (
    Asked,
    Sampled,
    after,
    asked_of,
    checked_room,
    for_client,
    most_tokens,
    refusing_long_texts,
    streamed,
    together,
)
from training.serving.openai.logprobs import CompletionLogprobs
from training.serving.openai.replies import Envelope, Usage, completion_choice
from training.serving.openai.requests import DEFAULT_COMPLETION_TOKENS, CompletionRequest, Prompt
from training.serving.openai.schemas import check_schema
from training.serving.openai.streaming import EventStream
from training.serving.openai.thoughts import Piece


@dataclass(frozen=True)
class _Prompt:
    """`text`: as it is echoed. `num_outside`: tokens before it that are not of the text."""

    asked: Asked
    text: str
    num_outside: int


class CompletionReply:
    """The reply to one request to one model."""

    def __init__(self, hosted: Hosted, asked: CompletionRequest) -> None:
        self._hosted = hosted
        self._request = asked
        self._sampling = asked.sampling
        self._tokenizer = hosted.tokenizer
        self._num_top = self._sampling.logprobs or 0
        # the prompt alone: one token is sampled, since nothing else asks for a prompt's logprobs
        self._is_scored_only = self._sampling.max_tokens == 0
        self._tells_prompt = asked.echo and self._sampling.logprobs is not None

    async def respond(self, request: Request) -> Response:
        """Raises ServingError; ClientDisconnect where nobody waits any more."""
        prompts = await asyncio.to_thread(self._prompts)
        if not self._sampling.stream:
            responses = await for_client(request, together([self._sample(p) for p in prompts]))
            return json_reply(await asyncio.to_thread(self._body, prompts, responses))
        told: list[list[Token]] = [[] for _ in prompts]
        if self._tells_prompt:
            scored = await for_client(request, together([self._score(p) for p in prompts]))
            told = [_prompt_tokens(p, r) for p, r in zip(prompts, scored, strict=True)]
        if self._is_scored_only:
            return EventStream(self._chunks(prompts, told, None))
        asked = [prompt.asked for prompt in prompts]
        tokens = streamed(self._hosted, asked, self._sampling.n, self._num_top)
        # what is refused is refused before anything is sent
        first = await for_client(request, anext(tokens))
        return EventStream(self._chunks(prompts, told, after(first, tokens)))

    def _prompts(self) -> list[_Prompt]:
        if self._sampling.schema is not None:
            check_schema(self._sampling.schema)
        return [self._prompt(prompt) for prompt in self._request.prompts]

    def _prompt(self, prompt: Prompt) -> _Prompt:
        asked = self._sampling.max_tokens
        context = self._hosted.context_length
        if isinstance(prompt, str):
            with refusing_long_texts(asked, context):
                tokens, num_outside = self._encoded(prompt, most_tokens(asked, context))
        else:
            tokens, num_outside = prompt, 0
        if not tokens:
            raise bad_request(
                "prompt is empty: at least one token is needed",
                param="prompt",
                code="invalid_value",
            )
        room = checked_room(len(tokens), asked, context)
        text = prompt if isinstance(prompt, str) else decode(self._tokenizer, prompt)
        if asked is None:
            asked = DEFAULT_COMPLETION_TOKENS
            asked = asked if room is None else min(asked, room)
        form = completion_form(
            self._tokenizer, tokens, self._sampling.stop, eos=self._hosted.eos_tokens
        )
        return _Prompt(asked_of(tokens, form, self._sampling, max(1, asked)), text, num_outside)

    def _encoded(self, text: str, most: int | None) -> tuple[list[int], int]:
        """Its tokens, and how many of them stand before it. Raises TooManyTokens."""
        bos = leading_bos(self._tokenizer)
        if self._request.parse_special is None and names_control_token(self._tokenizer, text):
            raise bad_request(
                "prompt names a control token of the model. parse_special=true reads such names as "
                "the tokens, parse_special=false as text; token ids say it too",
                param="prompt",
                code="control_token",
            )
        if not self._request.parse_special:
            return render_raw_prompt(self._tokenizer, text, most_tokens=most), len(bos)
        Encoder(self._tokenizer).check_length(text, most)
        tokens = self._tokenizer.encode(text, add_special_tokens=False)
        # a text that a template made begins with it already
        if tokens[:1] == bos:
            bos = []
        return [*bos, *tokens], len(bos)

    async def _sample(self, prompt: _Prompt) -> SampleResponse:
        return await self._hosted.sample(
            prompt.asked.model_input,
            1 if self._is_scored_only else self._sampling.n,
            prompt.asked.params,
            include_prompt_logprobs=self._tells_prompt,
            topk_prompt_logprobs=self._num_top if self._tells_prompt else 0,
            topk_sample_logprobs=self._num_top,
        )

    async def _score(self, prompt: _Prompt) -> SampleResponse:
        """For the logprobs of the prompt alone."""
        return await self._hosted.sample(
            prompt.asked.model_input,
            1,
            replace(prompt.asked.params, max_tokens=1),
            include_prompt_logprobs=True,
            topk_prompt_logprobs=self._num_top,
        )

    def _body(
        self, prompts: Sequence[_Prompt], responses: Sequence[SampleResponse]
    ) -> dict[str, Any]:
        choices = []
        num_sampled = 0
        for prompt, response in zip(prompts, responses, strict=True):
            told = _prompt_tokens(prompt, response) if self._tells_prompt else []
            answers = [_NOTHING] * self._sampling.n
            if not self._is_scored_only:
                answers = [
                    whole_answer(self._tokenizer, prompt.asked.form, sequence)
                    for sequence in response.sequences
                ]
            for answer in answers:
                num_sampled += len(answer.tokens)
                choices.append(self._choice(len(choices), prompt, told, answer))
        usage = Usage(
            sum(len(prompt.asked.prompt) for prompt in prompts),
            num_sampled,
            sum(response.prompt_cache_hit_tokens for response in responses),
        )
        return self._envelope().body(choices, usage=usage.body())

    def _choice(
        self, index: int, prompt: _Prompt, told: list[Token], answer: Answer
    ) -> dict[str, Any]:
        logprobs = self._logprobs(prompt)
        if logprobs is not None:
            logprobs = logprobs.add([*told, *answer.tokens], prompt.num_outside if told else 0)
        text = answer.piece.text
        return completion_choice(
            index,
            prompt.text + text if self._request.echo else text,
            answer.reason,
            logprobs,
            **self._ids(prompt),
            **self._ids(None, answer.tokens),
        )

    async def _chunks(
        self,
        prompts: Sequence[_Prompt],
        told: Sequence[list[Token]],
        tokens: AsyncGenerator[Sampled, None] | None,
    ) -> AsyncGenerator[dict[str, Any], None]:
        envelope = self._envelope()
        usage = {"usage": None} if self._sampling.include_usage else {}
        running: list[_RunningChoice] = []
        for prompt, of_prompt in zip(prompts, told, strict=True):
            for _ in range(self._sampling.n):
                choice = _RunningChoice(
                    RunningAnswer(self._tokenizer, prompt.asked.form), self._logprobs(prompt)
                )
                if self._request.echo or self._sampling.return_token_ids:
                    logprobs = None
                    if choice.logprobs is not None:
                        logprobs = choice.logprobs.add(of_prompt, prompt.num_outside)
                    text = prompt.text if self._request.echo else ""
                    start = completion_choice(
                        len(running), text, None, logprobs, **self._ids(prompt)
                    )
                    yield envelope.body([start], **usage)
                running.append(choice)
        if tokens is None:
            for index in range(len(running)):
                yield envelope.body([completion_choice(index, "", "length", None)], **usage)
        else:
            async with aclosing(tokens):
                async for sampled in tokens:
                    for chunk in self._next(running[sampled.choice], sampled):
                        yield envelope.body([chunk], **usage)
        if self._sampling.include_usage:
            total = Usage(
                sum(len(prompt.asked.prompt) for prompt in prompts),
                sum(choice.answer.num_tokens for choice in running),
            )
            yield envelope.body([], usage=total.body())

    def _next(self, choice: "_RunningChoice", sampled: Sampled) -> Iterator[dict[str, Any]]:
        """What can be sent of a choice now that it has another token."""
        choice.waiting.append(sampled.token)
        text = choice.answer.add(sampled.token.token).text
        if sampled.reason is not None:
            text += choice.answer.finish().text
        tells_tokens = choice.logprobs is not None or self._sampling.return_token_ids
        # the tokens of a piece come with it, those that wrote nothing at the end
        if text or (sampled.reason is not None and tells_tokens):
            tokens, choice.waiting = choice.waiting, []
            logprobs = None if choice.logprobs is None else choice.logprobs.add(tokens)
            yield completion_choice(sampled.choice, text, None, logprobs, **self._ids(None, tokens))
        if sampled.reason is not None:
            yield completion_choice(sampled.choice, "", choice.answer.reason(sampled.reason), None)

    def _envelope(self) -> Envelope:
        fingerprint = self._hosted.fingerprint
        return Envelope("text_completion", "cmpl", self._sampling.model, fingerprint)

    def _logprobs(self, prompt: _Prompt) -> CompletionLogprobs | None:
        if self._sampling.logprobs is None:
            return None
        context = [] if self._request.echo else prompt.asked.prompt
        return CompletionLogprobs(self._tokenizer, self._num_top, context=context)

    def _ids(self, prompt: _Prompt | None, tokens: list[Token] | None = None) -> dict[str, Any]:
        if not self._sampling.return_token_ids:
            return {}
        ids: dict[str, Any] = {}
        if prompt is not None:
            ids["prompt_token_ids"] = prompt.asked.prompt
        if tokens is not None:
            ids["token_ids"] = [token.token for token in tokens]
        return ids


@dataclass
class _RunningChoice:
    """`waiting`: tokens that wrote no text yet."""

    answer: RunningAnswer
    logprobs: CompletionLogprobs | None
    waiting: list[Token] = field(default_factory=list)


# of a request for the prompt alone
_NOTHING = Answer(Piece(""), [], "length")


def _prompt_tokens(prompt: _Prompt, response: SampleResponse) -> list[Token]:
    tokens = prompt.asked.prompt
    logprobs = response.prompt_logprobs
    assert logprobs is not None
    topk = response.topk_prompt_logprobs or [None] * len(tokens)
    return [Token(*told) for told in zip(tokens, logprobs, topk, strict=True)]
