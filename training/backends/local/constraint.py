"""Constrained sampling through llguidance: a JSON schema, or a grammar in its Lark dialect."""

import json
from functools import lru_cache
from typing import Any, Literal

import llguidance
import numpy as np
import torch

from training.answer_forms import compiled_form
from training.api import RequestFailedError, SamplingParams

_MAX_COMPILED = 128


class Constraint:
    """The tokens that may come next so that the text stays a prefix of one that fits."""

    def __init__(self, matcher: llguidance.LLMatcher, vocab_size: int) -> None:
        self._matcher = matcher
        self._vocab_size = vocab_size

    def allowed(self) -> torch.Tensor:
        """A boolean mask over the vocabulary."""
        mask = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        bits = np.unpackbits(mask, bitorder="little")
        out = np.zeros(self._vocab_size, dtype=bool)
        size = min(len(bits), self._vocab_size)
        out[:size] = bits[:size]
        return torch.from_numpy(out)

    def accept(self, token: int) -> None:
        self._matcher.consume_token(token)

    @property
    def error(self) -> RequestFailedError | None:
        """Why the text cannot go on: matching it took more than llguidance allows itself."""
        error = self._matcher.get_error()
        if not error:
            return None
        return RequestFailedError(
            f"the constraint of a sample failed while sampling: {_first_line(error)}; make the "
            "grammar or schema simpler",
            category="user",
        )

    @property
    def finished(self) -> bool:
        return self._matcher.is_stopped()


class ConstraintFactory:
    """Compiles the constraints of one tokenizer; one that was seen before is copied, cheaply."""

    def __init__(self, tokenizer: Any, vocab_size: int, eos_token: int | None) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token = eos_token
        self._wrapped: llguidance.LLTokenizer | None = None
        self._compiled = lru_cache(maxsize=_MAX_COMPILED)(self._compile)

    def __call__(self, params: SamplingParams) -> Constraint:
        """The one that `params` ask for. Raises ValueError where it does not compile."""
        if params.grammar is not None:
            compiled = self._compiled("grammar", params.grammar)
        else:
            compiled = self._compiled("json_schema", json.dumps(params.json_schema))
        return Constraint(compiled.deep_copy(), self._vocab_size)

    def _compile(self, field: Literal["grammar", "json_schema"], text: str) -> llguidance.LLMatcher:
        if self._wrapped is None:
            # imports transformers
            from llguidance.hf import from_tokenizer

            self._wrapped = from_tokenizer(
                self._tokenizer, n_vocab=self._vocab_size, eos_token=self._eos_token
            )
        # what goes wrong is raised, not printed
        matcher = llguidance.LLMatcher(self._wrapped, compiled_form(field, text), log_level=0)
        if error := matcher.get_error():
            raise ValueError(f"{field}: {error}")
        return matcher


def _first_line(error: str) -> str:
    # a dump of the parser's state follows
    return error.split("\n", 1)[0]
