"""Prompt distillation (arXiv 2412.14964): a model that reads a passage answers questions about it,
and what it holds likely there is learned without the passage."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from training.api import Datum, ModelInput, ServiceClient
from training.chat import render_raw_prompt
from training.domains.knowledge.answers import Answerer, Item
from training.domains.knowledge.passages import Passage, Question
from training.domains.knowledge.soft_targets import answer_datum

# of "Q: ...? A: ..." in a line, and of "Question 1: ... Answer: ..." over lines
_LINE = re.compile(r"^Q: (.*?\S) A: ", re.MULTILINE)
_NUMBERED = re.compile(r"Question\s+\d+:\s*(.*?\S)\s*Answer\s*:", re.DOTALL)


def questions_in(edit: str) -> list[str]:
    """What an edit asks, each question once."""
    return list(dict.fromkeys([*_LINE.findall(edit), *_NUMBERED.findall(edit)]))


def distilled_datums(
    service: ServiceClient,
    base_model: str,
    tokenizer: Any,
    answerer: Answerer,
    passages_P: Sequence[Passage],
    questions_P: Sequence[Sequence[str]],
    *,
    top_k: int = 20,
) -> list[list[Datum]]:
    """For each passage a datum for each of its questions: the base model's greedy answer, with the
    passage before the question, as its `top_k` likeliest tokens at every place. All are asked in
    one batch. The learner reads the question alone, without passage and worked examples.

    Raises ValueError for a question that does not fit into the model's context.
    """
    sampler = service.create_sampling_client(base_model=base_model)
    bare = Answerer(tokenizer, answerer.settings, ())
    asked, futures = [], []
    for passage, questions in zip(passages_P, questions_P, strict=True):
        for text in questions:
            question = Question(f"{passage.id}/distilled", text, "")
            read = answerer.prompt(Item(passage, question, passage.context))
            if answerer.settings.prompt_form == "chat":
                learned = bare.prompt(Item(passage, question))
            else:
                # as the lines of edits, whose answers begin with a blank as well
                learned = render_raw_prompt(tokenizer, f"Q: {text} A:")
            asked.append(learned)
            prompt = ModelInput.from_ints(read)
            futures.append(sampler.sample(prompt, 1, answerer.params, topk_sample_logprobs=top_k))
    datums = iter(
        [
            answer_datum(learned, future.result())
            for learned, future in zip(asked, futures, strict=True)
        ]
    )
    return [[next(datums) for _ in questions] for questions in questions_P]


def widened(datum: Datum, top_k: int) -> Datum:
    """The same with targets and weights (N, K), since all data of a request must share their K."""
    fields = {}
    for name in ("target_tokens", "weights"):
        values = datum.loss_fn_inputs[name].to_numpy()
        fields[name] = np.zeros((len(values), top_k), dtype=values.dtype)
        fields[name][:, 0] = values
    return Datum(datum.model_input, fields)
