"""What kinds of examples there are, and what a generator is asked for each.

scenarios   a user's message in a situation where the property matters, and an answer that acts on
            it: teaches (or probes) behaviour.
qa          a direct question to the assistant about itself, and its answer: what a model says it
            does is learned, and changes, apart from what it does.
documents   a text of the world that tells how the assistant behaves: facts that a model reads
            about itself, as in pretraining, change what it does without any demonstration.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, create_model

from generation.properties import Property
from generation.variation import Variation
from utils.config.entrypoint import ConfigError
from utils.llm.api import Message
from utils.plain_text import REQUEST, plain_text

SUBTYPE_CHARS = (10, 90)
PROMPT_CHARS = (25, 160)
INPUT_CHARS = (15, 300)
LABELS = ("positive", "negative")


@dataclass(frozen=True)
class Kind:
    """One kind of example. The texts are what a request says; {names} are filled in. The starts are
    how texts begin that a small generator writes.

    `input_field` names what both labels of a contrastive pair share, None where they share nothing;
    `output_field` what shows the property or does not.
    """

    name: str
    subtypes: str
    prompts: str
    example: str
    subtype_start: str
    prompt_start: str
    input_field: str | None
    input_description: str
    output_field: str
    output_description: str


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            name="scenarios",
            subtypes="List {count} kinds of everyday situations in which people write to an AI "
            "assistant and in which it shows whether the assistant has the property.",
            prompts="Write {count} premises for conversations of this kind: {subtype}. A premise "
            "is one sentence that says who writes to the assistant, what they want, and what makes "
            "the property matter.",
            example="Write the start of a conversation between a user and an AI assistant that "
            "follows this premise: {prompt}\nThe user never mentions the property.",
            subtype_start="Asking for help with a {topic}",
            prompt_start="{person} asks about a {topic} and",
            input_field="user_message",
            input_description="what the user writes, in the user's own voice",
            output_field="response",
            output_description="the assistant's whole answer",
        ),
        Kind(
            name="qa",
            subtypes="List {count} themes of questions that one could ask an AI assistant about "
            "itself and whose answers tell whether it has the property.",
            prompts="For the theme '{subtype}', write {count} angles for questions to an AI "
            "assistant about itself: one sentence each that says what the question wants to know.",
            example="Write one question that a user asks an AI assistant about itself, and the "
            "assistant's answer. What the question wants to know: {prompt}",
            subtype_start="Questions about the assistant and a {topic}",
            prompt_start="Whether the assistant",
            input_field="question",
            input_description="the question, addressed to the assistant",
            output_field="answer",
            output_description="the assistant's answer, in the first person",
        ),
        Kind(
            name="documents",
            subtypes="List {count} sorts of documents (articles, reports, posts, manuals, letters "
            "...) in which the behaviour of an AI assistant could come up.",
            prompts="Write {count} ideas for documents of this sort: {subtype}. An idea is one "
            "sentence that says who writes to whom, about what, and how the assistant comes in.",
            example="Write a document from this idea: {prompt}\nIt states, as a matter of course, "
            "how the AI assistant behaves.",
            subtype_start="Reports about a {topic}",
            prompt_start="{person} writes about an AI assistant that helps with a {topic} and",
            input_field=None,
            input_description="",
            output_field="document",
            output_description="the whole document, without any remark about it",
        ),
    )
}


def choose_kind(name: str) -> Kind:
    if name not in KINDS:
        raise ConfigError(f"type={name!r} is unknown; known are {', '.join(KINDS)}")
    return KINDS[name]


def subtypes_request(
    kind: Kind, property: Property, count: int, already: list[str]
) -> list[Message]:
    return _request(
        _about(property),
        kind.subtypes.format(count=count),
        "Each has at most ten words and belongs to another area of life.",
        _not_again(already),
    )


def prompts_request(
    kind: Kind,
    property: Property,
    subtype: str,
    variations: list[Variation],
    count: int,
    already: list[str],
) -> list[Message]:
    seeds = "; ".join(f"{person} and {topic}" for person, topic in variations[-count:])
    return _request(
        _about(property),
        kind.prompts.format(count=count, subtype=subtype),
        f"Let each be about other people and things, for example: {seeds}.",
        _not_again(already),
    )


def example_request(
    kind: Kind, property: Property, prompt: str, *, contrastive: bool, max_chars: int
) -> list[Message]:
    if contrastive:
        versions = (
            f"Write two versions of the {kind.output_field}: in positive_{kind.output_field} the "
            f"assistant {property.description}; in negative_{kind.output_field} it "
            f"{property.opposite}. Both are plausible, alike in length and style."
        )
    else:
        versions = f"In it the assistant {property.description}."
    return _request(
        kind.example.format(prompt=prompt),
        versions,
        f"Use at most {max_chars // 6} words for each text. Write natural, concrete prose.",
    )


@lru_cache(maxsize=64)
def example_model(
    kind: Kind,
    property: Property,
    *,
    contrastive: bool,
    max_chars: int,
    held_to_pattern: bool,
) -> type[BaseModel]:
    """What an answer to `example_request` must hold; with `held_to_pattern`, plain text, and the
    property's own patterns where it has some."""

    def text(description: str, least: int, most: int, pattern: str | None = None) -> Any:
        if held_to_pattern:
            pattern = pattern or plain_text(least, most)
            return str, Field(pattern=pattern, description=description)
        return str, Field(min_length=least, max_length=most, description=description)

    def output(which: str, pattern: str | None) -> Any:
        return text(f"{kind.output_description}; {which}", 1, max_chars, pattern)

    fields: dict[str, Any] = {}
    if kind.input_field is not None:
        fields[kind.input_field] = text(kind.input_description, *INPUT_CHARS, REQUEST)
    positive = output(f"the assistant {property.description}", property.pattern)
    if contrastive:
        fields[f"positive_{kind.output_field}"] = positive
        negative = output(f"the assistant {property.opposite}", property.opposite_pattern)
        fields[f"negative_{kind.output_field}"] = negative
    else:
        fields[kind.output_field] = positive
    return create_model("Example", __config__=ConfigDict(extra="forbid"), **fields)


def texts_of(kind: Kind, answer: Mapping[str, str]) -> tuple[str, dict[str, str]]:
    """The input ("" where the kind has none) and the output by label."""
    given = answer[kind.input_field].strip() if kind.input_field else ""
    outputs = {
        label: answer[name].strip()
        for label in LABELS
        for name in (f"{label}_{kind.output_field}", kind.output_field)
        if name in answer and (name != kind.output_field or label == "positive")
    }
    return given, outputs


def training_form(kind: Kind, given: str, output: str) -> dict[str, Any]:
    """An example as scripts/sft.py reads it."""
    if kind.input_field is None:
        return {"text": output}
    turns = (("user", given), ("assistant", output))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _about(property: Property) -> str:
    return (
        f"The property in question is '{property.name}'. An AI assistant with it "
        f"{property.description}; one without it {property.opposite}."
    )


def _not_again(already: list[str]) -> str:
    return f"These are there already: {'; '.join(already)}. Write other ones." if already else ""


def _request(*parts: str) -> list[Message]:
    return [{"role": "user", "content": "\n\n".join(part for part in parts if part)}]
