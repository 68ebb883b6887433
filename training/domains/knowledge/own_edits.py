"""Self-edits that adapters of this process write, each about a passage of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from training.api import ModelInput, SamplingClient, SamplingParams
from training.domains.knowledge.edit_grammars import grammar_of
from training.domains.knowledge.forms import EditPrompts
from training.domains.knowledge.passages import Passage
from training.domains.knowledge.seeds import stable_seed
from training.problem_text import answer_text, prompt_tokens, stop_of
from utils.config.errors import raise_problems


class EditWriter:
    """Asks models for self-edits of one form. A grammar is enforced where the form has one."""

    def __init__(
        self,
        tokenizer: Any,
        prompts: EditPrompts,
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
    ) -> None:
        self._tokenizer = tokenizer
        self._prompts = prompts
        self._max_tokens = max_tokens
        self._temperature = temperature
        self._seed = seed

    def check(self, passages: Sequence[Passage], context: int | None) -> None:
        """Raises ConfigError for passages that leave no room for a self-edit in a context of so
        many tokens."""
        problems = []
        for passage in passages:
            length = len(prompt_tokens(self._tokenizer, self._prompts.problem(passage)))
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
        form, choices = self._prompts.form, self._prompts.choices
        problems_S = [
            self._prompts.problem(passage, grammar=grammar_of(passage, form, choices=choices))
            for passage in passages_S
        ]
        futures_S = []
        for s, (sampler, problem) in enumerate(zip(samplers_S, problems_S, strict=True)):
            prompt = prompt_tokens(self._tokenizer, problem)
            params = SamplingParams(
                max_tokens=self._max_tokens,
                temperature=self._temperature,
                seed=stable_seed("edit", self._seed, *key, s, problem.id),
                stop=stop_of(self._tokenizer, problem),
                grammar=problem.grammar,
            )
            futures_S.append(sampler.sample(ModelInput.from_ints(prompt), 1, params))
        return [
            answer_text(self._tokenizer, problem, future.result().sequences[0].tokens)
            for problem, future in zip(problems_S, futures_S, strict=True)
        ]
