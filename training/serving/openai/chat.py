"""/chat/completions: an answer to messages, whole or as a stream of chunks."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from training.api import SampleResponse
from training.serving.hosted import Hosted
from training.serving.openai.answers import RunningAnswer, Token, chat_form, joined, whole_answer
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
)
from training.serving.openai.logprobs import chat_logprobs
from training.serving.openai.messages import chat_prompt, thinks
from training.serving.openai.replies import Envelope, Usage, chat_choice, chat_delta
from training.serving.openai.requests import ChatRequest
from training.serving.openai.schemas import check_schema
from training.serving.openai.streaming import EventStream
from training.serving.openai.thoughts import Piece


class ChatReply:
    """The reply to one request to one model."""

    def __init__(self, hosted: Hosted, asked: ChatRequest) -> None:
        self._hosted = hosted
        self._request = asked
        self._sampling = asked.sampling
        self._tokenizer = hosted.tokenizer

    async def respond(self, request: Request) -> Response:
        """Raises ServingError; ClientDisconnect where nobody waits any more."""
        asked = await asyncio.to_thread(self._asked)
        num_top = self._sampling.logprobs or 0
        if self._sampling.stream:
            tokens = streamed(self._hosted, [asked], self._sampling.n, num_top)
            # what is refused is refused before anything is sent
            first = await for_client(request, anext(tokens))
            return EventStream(self._chunks(asked, after(first, tokens)))
        sampling = self._hosted.sample(
            asked.model_input, self._sampling.n, asked.params, topk_sample_logprobs=num_top
        )
        response = await for_client(request, sampling)
        return json_reply(await asyncio.to_thread(self._body, asked, response))

    def _asked(self) -> Asked:
        sampling, hosted = self._sampling, self._hosted
        if sampling.schema is not None:
            check_schema(sampling.schema)
        room = (sampling.max_tokens, hosted.context_length)
        with refusing_long_texts(*room):
            prompt = chat_prompt(
                self._tokenizer,
                self._request.messages,
                template=hosted.template,
                continues=self._request.continues,
                most_tokens=most_tokens(*room),
            )
        checked_room(len(prompt.tokens), *room)
        # what is held to a schema is the answer itself
        has_thoughts = sampling.schema is None and thinks(self._tokenizer)
        form = chat_form(
            self._tokenizer,
            prompt.tokens,
            sampling.stop,
            template=hosted.template,
            continues=self._request.continues,
            is_thinking=prompt.is_thinking if has_thoughts else None,
            eos=hosted.eos_tokens,
        )
        return asked_of(prompt.tokens, form, sampling, sampling.max_tokens)

    def _body(self, asked: Asked, response: SampleResponse) -> dict[str, Any]:
        answers = [whole_answer(self._tokenizer, asked.form, s) for s in response.sequences]
        choices = [
            chat_choice(
                index,
                answer.piece,
                answer.reason,
                self._logprobs(answer.tokens),
                **self._token_ids(answer.tokens),
            )
            for index, answer in enumerate(answers)
        ]
        num_sampled = sum(len(answer.tokens) for answer in answers)
        usage = Usage(len(asked.prompt), num_sampled, response.prompt_cache_hit_tokens)
        envelope = self._envelope("chat.completion")
        return envelope.body(choices, usage=usage.body(), **self._prompt_ids(asked))

    async def _chunks(
        self, asked: Asked, tokens: AsyncGenerator[Sampled, None]
    ) -> AsyncGenerator[dict[str, Any], None]:
        envelope = self._envelope("chat.completion.chunk")
        usage = {"usage": None} if self._sampling.include_usage else {}
        n = self._sampling.n
        running = [RunningAnswer(self._tokenizer, asked.form) for _ in range(n)]
        waiting: list[list[Token]] = [[] for _ in range(n)]
        for index in range(n):
            start = chat_delta(index, Piece(""), None, None)
            start["delta"] = {"role": "assistant", "content": ""}
            yield envelope.body([start], **usage, **(self._prompt_ids(asked) if not index else {}))
        async with aclosing(tokens):
            async for sampled in tokens:
                index, answer = sampled.choice, running[sampled.choice]
                waiting[index].append(sampled.token)
                piece = answer.add(sampled.token.token)
                if sampled.reason is not None:
                    piece = joined([piece, answer.finish()])
                is_told = piece.text or piece.thought
                # the tokens of a piece come with it, those that wrote nothing at the end
                if is_told or (sampled.reason is not None and self._tells_tokens):
                    delta = chat_delta(
                        index,
                        piece,
                        None,
                        self._logprobs(waiting[index]),
                        **self._token_ids(waiting[index]),
                    )
                    waiting[index] = []
                    yield envelope.body([delta], **usage)
                if sampled.reason is not None:
                    end = chat_delta(index, Piece(""), answer.reason(sampled.reason), None)
                    yield envelope.body([end], **usage)
        if self._sampling.include_usage:
            total = Usage(len(asked.prompt), sum(answer.num_tokens for answer in running))
            yield envelope.body([], usage=total.body())

    @property
    def _tells_tokens(self) -> bool:
        return self._sampling.logprobs is not None or self._sampling.return_token_ids

    def _envelope(self, kind: str) -> Envelope:
        return Envelope(kind, "chatcmpl", self._sampling.model, self._hosted.fingerprint)

    def _logprobs(self, tokens: list[Token]) -> dict[str, Any] | None:
        if self._sampling.logprobs is None:
            return None
        return chat_logprobs(self._tokenizer, tokens, self._sampling.logprobs)

    def _token_ids(self, tokens: list[Token]) -> dict[str, Any]:
        if not self._sampling.return_token_ids:
            return {}
        return {"token_ids": [token.token for token in tokens]}

    def _prompt_ids(self, asked: Asked) -> dict[str, Any]:
        return {"prompt_token_ids": asked.prompt} if self._sampling.return_token_ids else {}
