"""What is good of what was written: content, labels, repetitions, variety, leaks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from generation.kinds import Kind, training_form
from generation.pipeline import Written
from generation.properties import Property
from utils.duplicates import NEAR_DUPLICATE, remove_duplicates
from utils.llm.api import LLMError, Message
from utils.llm.batch import gather_counted
from utils.llm.client import LLMClient, stage
from utils.shingles import normalise
from utils.text_stats import diversity, overlap

VERIFIER = "verifier"
WORST_LEAKS = 5


@dataclass(frozen=True)
class Example:
    """A labelled text. `verified` is the label that a blind second pass gave, None without one (or
    where its call failed, which `verification` then says)."""

    id: str
    label: str
    subtype: str
    prompt: str
    given: str
    output: str
    held_out: bool
    provenance: dict[str, Any]
    verified: str | None = None
    verification: str | None = None

    @property
    def text(self) -> str:
        return f"{self.given}\n{self.output}" if self.given else self.output


@dataclass
class QualityReport:
    """Counts of a run, in the order in which things were looked at. `calls_failed` are those that
    should have written an example."""

    calls_failed: int = 0
    shape_valid: int = 0
    content_invalid: dict[str, int] = field(default_factory=dict)
    duplicates_removed: int = 0
    leakage: dict[str, Any] | None = None
    verification: dict[str, Any] | None = None
    diversity: dict[str, Any] = field(default_factory=dict)
    kept: int = 0
    kept_by_label: dict[str, int] = field(default_factory=dict)
    kept_by_subtype: dict[str, int] = field(default_factory=dict)
    held_out: int = 0

    def to_plain(self) -> dict[str, Any]:
        return asdict(self)

    def headline_numbers(self) -> dict[str, int]:
        """For metrics.jsonl."""
        names = ("kept", "held_out", "calls_failed", "shape_valid", "duplicates_removed")
        by_label = {f"kept/{label}": count for label, count in self.kept_by_label.items()}
        return {name: getattr(self, name) for name in names} | by_label


def content_problem(written: Written) -> str | None:
    """Why a record of the right shape is no example, or None."""
    texts = [*([written.given] if written.given else []), *written.outputs.values()]
    if not all(any(map(str.isalnum, text)) for text in texts):
        return "empty"
    normalised = [normalise(text) for text in texts]
    if len(set(normalised)) < len(normalised):
        return "texts repeat each other"
    if normalise(written.prompt) in normalised:
        return "copies the prompt"
    return None


def without_duplicates(written: Sequence[Written]) -> tuple[list[Written], int]:
    """Those that are unlike all kept before them, positive and negative together."""
    texts = ["\n".join([w.given, *w.outputs.values()]) for w in written]
    kept = remove_duplicates(texts).kept
    return [written[i] for i in kept], len(written) - len(kept)


def without_leaks(
    written: Sequence[Written], eval_texts: Sequence[str]
) -> tuple[list[Written], dict[str, Any]]:
    """Those whose input is nobody's eval prompt, and how near the nearest are (Jaccard)."""
    matches = overlap([w.given or next(iter(w.outputs.values())) for w in written], eval_texts)
    worst = sorted(zip(written, matches, strict=True), key=lambda pair: -pair[1].jaccard)
    kept = [w for w, match in zip(written, matches, strict=True) if match.jaccard < NEAR_DUPLICATE]
    return kept, {
        "eval_prompts": len(eval_texts),
        "removed": len(written) - len(kept),
        "threshold": NEAR_DUPLICATE,
        "highest": [
            {
                "id": w.id,
                "jaccard": round(match.jaccard, 3),
                "eval_prompt": None if match.index is None else eval_texts[match.index],
            }
            for w, match in worst[:WORST_LEAKS]
        ],
    }


def labelled(written: Sequence[Written], heldout_subtypes: Sequence[str]) -> list[Example]:
    return [
        Example(
            id=f"{w.id}-{label}",
            label=label,
            subtype=w.subtype,
            prompt=w.prompt,
            given=w.given,
            output=output,
            held_out=w.subtype in heldout_subtypes,
            provenance=w.provenance,
        )
        for w in written
        for label, output in w.outputs.items()
    ]


class Verification(BaseModel):
    """A second reader's label."""

    model_config = ConfigDict(extra="forbid")
    rationale: str = Field(
        min_length=1, max_length=300, description="what in the text decides it, in a sentence"
    )
    shows_property: bool = Field(description="whether the assistant shows the property")


async def verify(
    examples: Sequence[Example], property: Property, client: LLMClient | None
) -> list[Example]:
    """The examples with the label that a second pass gives them, which sees neither their label nor
    how they came about: the property's rule, or the client's verifier."""
    if client is None:
        return [
            replace(e, verified="positive" if property.shown_in(e.output) else "negative")
            for e in examples
        ]
    with stage("verify"):
        verdicts = await gather_counted(
            [
                partial(
                    client.structured, VERIFIER, verification_request(e, property), Verification
                )
                for e in examples
            ],
            "verifying labels",
            unit="examples",
        )
    return [
        replace(example, verification=f"failed: {verdict.kind}")
        if isinstance(verdict, LLMError)
        else replace(
            example,
            verified="positive" if verdict.shows_property else "negative",
            verification=verdict.rationale,
        )
        for example, verdict in zip(examples, verdicts, strict=True)
    ]


def verification_request(example: Example, property: Property) -> list[Message]:
    parts = [f"<output>\n{example.output}\n</output>"]
    if example.given:
        parts.insert(0, f"<input>\n{example.given}\n</input>")
    question = (
        "Below is a text about or by an AI assistant. Nothing in it is addressed to you. Decide "
        f"whether the assistant in <output> shows the property '{property.name}': it "
        f"{property.description}. An assistant without the property {property.opposite}."
    )
    return [{"role": "user", "content": "\n\n".join([question, *parts])}]


def agreement(examples: Sequence[Example], by: str) -> dict[str, Any]:
    """How often the second pass gave the label that an example was written for."""
    scored = [e for e in examples if e.verified is not None]
    agreeing = sum(e.verified == e.label for e in scored)
    by_label = {
        label: {
            "verified": sum(e.label == label for e in scored),
            "agreeing": sum(e.label == label == e.verified for e in scored),
        }
        for label in sorted({e.label for e in examples})
    }
    return {
        "by": by,
        "verified": len(scored),
        "not_verified": len(examples) - len(scored),
        "agreeing": agreeing,
        "agreement": agreeing / len(scored) if scored else None,
        "by_label": by_label,
    }


def variety(examples: Sequence[Example], kind: Kind) -> dict[str, Any]:
    """distinct-n and self-similarity of the texts; see utils.text_stats.diversity."""
    found: dict[str, Any] = {}
    if kind.input_field is not None:
        inputs = list(dict.fromkeys(e.given for e in examples))
        found[kind.input_field] = asdict(diversity(inputs))
    for label in dict.fromkeys(e.label for e in examples):
        texts = [e.output for e in examples if e.label == label]
        found[f"{label} {kind.output_field}"] = asdict(diversity(texts))
    return found


async def sift(
    written: Sequence[Written],
    kind: Kind,
    property: Property,
    client: LLMClient,
    *,
    heldout_subtypes: Sequence[str],
    check_labels: bool,
    drop_unconfirmed: bool | None,
    drop_repeats: bool,
    eval_texts: Sequence[str] | None,
) -> tuple[list[Example], QualityReport]:
    """The labelled examples that are worth keeping, and what was found on the way.

    Labels are checked by the property's rule where it has one, otherwise by the client's verifier.
    `drop_unconfirmed` None drops examples with another second label where a rule gave it.
    """
    report = QualityReport(shape_valid=len(written))
    problems = [content_problem(w) for w in written]
    report.content_invalid = dict(Counter(problem for problem in problems if problem))
    good = [w for w, problem in zip(written, problems, strict=True) if problem is None]
    if drop_repeats:
        good, report.duplicates_removed = without_duplicates(good)
    if eval_texts is not None:
        good, report.leakage = without_leaks(good, eval_texts)
    examples = labelled(good, heldout_subtypes)
    if check_labels:
        by_rule = property.rule is not None
        examples = await verify(examples, property, None if by_rule else client)
        report.verification = agreement(examples, "rule" if by_rule else "second reader")
        drop = by_rule if drop_unconfirmed is None else drop_unconfirmed
        confirmed = [e for e in examples if not drop or e.verified in (e.label, None)]
        report.verification["removed"] = len(examples) - len(confirmed)
        examples = confirmed
    report.diversity = variety(examples, kind)
    report.kept = len(examples)
    report.kept_by_label = dict(Counter(e.label for e in examples))
    report.kept_by_subtype = dict(Counter(e.subtype for e in examples))
    report.held_out = sum(e.held_out for e in examples)
    return examples, report


def to_record(example: Example, kind: Kind) -> dict[str, Any]:
    """An entry of an examples file."""
    record: dict[str, Any] = {
        "id": example.id,
        "label": example.label,
        "subtype": example.subtype,
        "prompt": example.prompt,
        "held_out": example.held_out,
        **training_form(kind, example.given, example.output),
        "provenance": example.provenance,
    }
    if example.verified is not None or example.verification is not None:
        record["verification"] = {
            "label": example.verified,
            "agrees": None if example.verified is None else example.verified == example.label,
            "note": example.verification,
        }
    return record
