"""What holds an adapter to the base model: the base model's answers to questions about other things
than those that are learned, as soft targets.

Two choices decide what is kept and what it costs (benchmarks/LOG.md). The questions: those about
things of the same sort as what is learned hold back what both have in common. Their form: in the
answer prompt they teach to tell that prompt from the lines of a self-edit, so that what the lines
say is not said there; as lines they leave the adapter no such difference.
"""

from collections.abc import Sequence
from typing import Any, Literal

from training.api import Datum, ModelInput, SamplingClient
from training.chat import render_raw_prompt
from training.domains.knowledge.answers import Answerer, Item
from training.domains.knowledge.general_questions import GENERAL
from training.domains.knowledge.passages import Passage
from training.domains.knowledge.soft_targets import answer_datum
from training.domains.knowledge.sources import Source

AnchorKind = Literal["lines", "prompts", "things"]
# of the base model's answers, per position
ANCHOR_TOP_K = 20


def anchor_passages(kind: AnchorKind, source: Source) -> tuple[Passage, ...]:
    """Those whose questions are asked: everyday ones in English (lines, prompts), or those about
    the made things of no split that worked examples of edits show (things)."""
    if kind == "things":
        return tuple(passage for passage, _ in source.example_edit("qa"))
    return GENERAL


def anchor_datums(
    base: SamplingClient,
    answerer: Answerer,
    passages: Sequence[Passage],
    *,
    tokenizer: Any,
    as_lines: bool,
) -> list[Datum]:
    """The base model's greedy answers in the answer prompt to the questions of these passages, for
    each token its likeliest ones: the cross-entropy to them is the divergence from the base model,
    but for a constant. `as_lines`: they follow "Q: ...? A:", as in a self-edit, and not the answer
    prompt."""
    items = [Item(passage, question) for passage in passages for question in passage.questions]
    prompts = [answerer.prompt(item) for item in items]
    futures = [
        base.sample(
            ModelInput.from_ints(prompt), 1, answerer.params, topk_sample_logprobs=ANCHOR_TOP_K
        )
        for prompt in prompts
    ]
    if as_lines:
        prompts = [render_raw_prompt(tokenizer, f"Q: {item.question.text} A:") for item in items]
    return [
        answer_datum(prompt, future.result())
        for prompt, future in zip(prompts, futures, strict=True)
    ]
