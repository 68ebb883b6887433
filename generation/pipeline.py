"""The stages of generation: subtypes, prompts for each, examples for each prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from generation.kinds import (
    PROMPT_CHARS,
    SUBTYPE_CHARS,
    Kind,
    example_model,
    example_request,
    prompts_request,
    subtypes_request,
    texts_of,
)
from generation.properties import Property
from generation.variation import Variation, draw_variations
from utils.llm.answers import require_model
from utils.llm.api import LLMError, Reply
from utils.llm.batch import gather_counted
from utils.llm.client import LLMClient, stage
from utils.llm.lists import distinct_items

GENERATOR = "generator"


@dataclass(frozen=True)
class Written:
    """What one call of the last stage gave: the input, and the output by label."""

    id: str
    subtype: str
    prompt: str
    given: str
    outputs: dict[str, str]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Writer:
    """Asks a client's generator; a `local` one is held to the property's patterns."""

    client: LLMClient
    kind: Kind
    property: Property
    local: bool
    seed: int

    async def subtypes(self, count: int) -> list[str]:
        """Raises LLMError: without subtypes there is nothing to go on with."""
        with stage("subtypes"):
            return await distinct_items(
                self.client,
                GENERATOR,
                partial(subtypes_request, self.kind, self.property),
                count=count,
                length=SUBTYPE_CHARS,
                what="subtypes",
                starts=self._starts(self.kind.subtype_start, count),
            )

    async def prompts(
        self, subtypes: Sequence[str], count: int
    ) -> tuple[dict[str, list[str]], int]:
        """Prompts by subtype, all subtypes side by side, and for how many of them there are none
        because their calls failed or said nothing."""
        variations = draw_variations(count * len(subtypes), self.seed, "prompts")

        async def of_one(index: int) -> list[str]:
            own = variations[index * count : (index + 1) * count]
            return await distinct_items(
                self.client,
                GENERATOR,
                partial(prompts_request, self.kind, self.property, subtypes[index], own),
                count=count,
                length=PROMPT_CHARS,
                what=f"prompts for {subtypes[index]!r}",
                starts=self._starts(self.kind.prompt_start, count, own),
            )

        with stage("prompts"):
            results = await gather_counted(
                [partial(of_one, index) for index in range(len(subtypes))],
                "writing prompts",
                unit="subtypes",
            )
        prompts = {
            subtype: result
            for subtype, result in zip(subtypes, results, strict=True)
            if result and not isinstance(result, LLMError)
        }
        return prompts, len(subtypes) - len(prompts)

    def _starts(
        self, start: str, count: int, variations: Sequence[Variation] | None = None
    ) -> list[str] | None:
        if not self.local:
            return None
        drawn = variations or draw_variations(count, self.seed, "subtypes")
        return [
            start.format(person=v.person.capitalize(), topic=v.topic.split(maxsplit=1)[-1])
            for v in drawn
        ]

    async def examples(
        self,
        prompts: Mapping[str, Sequence[str]],
        *,
        per_prompt: int,
        contrastive: bool,
        max_chars: int,
    ) -> tuple[list[Written], int]:
        """One call for each example, all side by side; and how many of them failed."""
        model = example_model(
            self.kind,
            self.property,
            contrastive=contrastive,
            max_chars=max_chars,
            held_to_pattern=self.local,
        )

        async def of_one(prompt: str, sample_index: int) -> Reply:
            messages = example_request(
                self.kind, self.property, prompt, contrastive=contrastive, max_chars=max_chars
            )
            return await self.client.ask(
                GENERATOR, messages, model=model, sample_index=sample_index
            )

        wanted = [
            (f"s{s:02d}-p{p:02d}-e{e:02d}", subtype, prompt, e)
            for s, (subtype, of_subtype) in enumerate(prompts.items())
            for p, prompt in enumerate(of_subtype)
            for e in range(per_prompt)
        ]
        with stage("examples"):
            replies = await gather_counted(
                [partial(of_one, prompt, index) for _, _, prompt, index in wanted],
                "writing examples",
                unit="examples",
            )
        written = []
        for (name, subtype, prompt, index), reply in zip(wanted, replies, strict=True):
            if isinstance(reply, LLMError):
                continue
            answer = require_model(reply, GENERATOR, model).model_dump()
            given, outputs = texts_of(self.kind, answer)
            provenance = {
                "model": reply.model,
                "sample_index": index,
                "generation_id": reply.generation_id,
            }
            written.append(Written(name, subtype, prompt, given, outputs, provenance))
        return written, len(wanted) - len(written)
