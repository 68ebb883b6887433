"""What the models under test answer: every prompt's conversation with every model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from evaluation.behaviour.eval_file import EvalPrompt
from utils.llm.api import LLMError, Message, Reply
from utils.llm.batch import gather_counted
from utils.llm.client import LLMClient, stage

STAGE = "answers"


@dataclass(frozen=True)
class Failure:
    """Why something is missing: the kind of an LLMError, or no_answer, and the reason in words."""

    kind: str
    reason: str

    def to_plain(self) -> dict[str, str]:
        return {"kind": self.kind, "reason": self.reason}


@dataclass(frozen=True)
class Conversation:
    """The turns of a user and a model. With a `failure` it ends where no answer came; `truncated`
    says that an answer reached the token limit."""

    prompt: str
    model: str
    sample: int
    messages: tuple[Message, ...]
    failure: Failure | None = None
    truncated: bool = False

    def to_plain(self) -> dict[str, Any]:
        return {
            "prompt": self.prompt,
            "model": self.model,
            "sample": self.sample,
            "messages": [dict(message) for message in self.messages],
            "truncated": self.truncated,
            "error": None if self.failure is None else self.failure.to_plain(),
        }


@dataclass
class _Draft:
    """A conversation that is still going on."""

    prompt: EvalPrompt
    model: str
    sample: int
    messages: list[Message] = field(default_factory=list)
    failure: Failure | None = None
    truncated: bool = False

    def finished(self) -> Conversation:
        return Conversation(
            *(self.prompt.id, self.model, self.sample),
            tuple(self.messages),
            self.failure,
            self.truncated,
        )


async def hold_conversations(
    client: LLMClient,
    role_of: Mapping[str, str],
    prompts: Sequence[EvalPrompt],
    num_samples: int,
) -> list[Conversation]:
    """All prompts with all models (`role_of` gives each model's role in the client), by prompt,
    then model, then sample.

    The next turn of all conversations is asked for together. An answer at the token limit is taken
    as it is, since that is what a user would see. A call that fails ends its conversation.
    """
    drafts = [
        _Draft(prompt, model, sample)
        for prompt in prompts
        for model in role_of
        for sample in range(num_samples)
    ]
    num_turns = max((len(prompt.messages) for prompt in prompts), default=0)
    for turn in range(num_turns):
        going_on = [
            draft for draft in drafts if draft.failure is None and turn < len(draft.prompt.messages)
        ]
        for draft in going_on:
            draft.messages.append({"role": "user", "content": draft.prompt.messages[turn]})
        desc = STAGE if num_turns == 1 else f"{STAGE}, turn {turn + 1} of {num_turns}"
        with stage(STAGE):
            replies = await gather_counted(
                [partial(_ask, client, role_of[draft.model], draft) for draft in going_on], desc
            )
        for draft, reply in zip(going_on, replies, strict=True):
            if isinstance(reply, LLMError):
                number = f"turn {turn + 1}: " if len(draft.prompt.messages) > 1 else ""
                draft.failure = Failure(reply.kind, f"{number}{reply.detail}")
                continue
            draft.messages.append({"role": "assistant", "content": reply.text})
            draft.truncated |= reply.finish_reason == "length"
    return [draft.finished() for draft in drafts]


async def _ask(client: LLMClient, role: str, draft: _Draft) -> Reply:
    return await client.ask(role, draft.messages, sample_index=draft.sample, allow_truncated=True)
