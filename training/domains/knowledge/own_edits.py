"""Self-edits that models of this process write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from training.api import ModelInput, SamplingClient, SamplingParams
from training.domains.knowledge.edit_grammars import grammar_of
from training.domains.knowledge.forms import EditPrompts
from training.domains.knowledge.passages import Passage
from training.domains.knowledge.seeds import stable_seed
from training.problem_text import answer_text, prompt_tokens, stop_of
from utils.config.errors import raise_problems


@dataclass(frozen=True, kw_only=True)
class EditSampling:
    """How models are asked for self-edits. A grammar is enforced where the form has one, unless
    `use_grammar` is False."""

    tokenizer: Any
    max_tokens: int
    temperature: float
    use_grammar: bool = True

    def prompt_length(self, prompts: EditPrompts, passage: Passage) -> int:
        """In tokens."""
        return len(prompt_tokens(self.tokenizer, prompts.problem(passage)))

    def texts(
        self,
        prompts: EditPrompts,
        passages_S: Sequence[Passage],
        samplers_S: Sequence[SamplingClient],
        seeds_S: Sequence[int],
        k: int,
    ) -> list[list[str]]:
        """`k` texts of each model about its passage, all in one batch. Raises ValueError for a
        prompt that does not fit into the context."""
        problems_S = []
        for passage in passages_S:
            grammar = grammar_of(passage, prompts.form, choices=prompts.choices)
            problems_S.append(
                prompts.problem(passage, grammar=grammar if self.use_grammar else None)
            )
        futures_S = [
            sampler.sample(
                ModelInput.from_ints(prompt_tokens(self.tokenizer, problem)),
                k,
                SamplingParams(
                    max_tokens=self.max_tokens,
                    temperature=self.temperature,
                    seed=seed,
                    stop=stop_of(self.tokenizer, problem),
                    grammar=problem.grammar,
                ),
            )
            for sampler, problem, seed in zip(samplers_S, problems_S, seeds_S, strict=True)
        ]
        return [
            [answer_text(self.tokenizer, problem, s.tokens) for s in future.result().sequences]
            for problem, future in zip(problems_S, futures_S, strict=True)
        ]


class EditWriter:
    """Adapters that each write a self-edit, of one form, about a passage of its own."""

    def __init__(self, prompts: EditPrompts, sampling: EditSampling, *, seed: int) -> None:
        self._prompts = prompts
        self._sampling = sampling
        self._seed = seed

    def check(self, passages: Sequence[Passage], context: int | None) -> None:
        """Raises ConfigError for passages that leave no room for a self-edit in a context of so
        many tokens."""
        problems = []
        for passage in passages:
            length = self._sampling.prompt_length(self._prompts, passage)
            if context is not None and length >= context:
                problems.append(
                    f"passage {passage.id} ({passage.title!r}): the prompt for its self-edit has "
                    f"{length} tokens; the model's context is {context}"
                )
        raise_problems(problems, at_most=10)

    def write(
        self, passages_S: Sequence[Passage], samplers_S: Sequence[SamplingClient], *key: object
    ) -> list[str]:
        """What each model writes about its passage, in one batch; the same for the same weights and
        `key`. Raises ValueError for a prompt that does not fit into the context."""
        seeds_S = [
            stable_seed("edit", self._seed, *key, s, passage.id)
            for s, passage in enumerate(passages_S)
        ]
        texts_S = self._sampling.texts(self._prompts, passages_S, samplers_S, seeds_S, 1)
        return [text for [text] in texts_S]
