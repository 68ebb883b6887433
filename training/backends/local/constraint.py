"""JSON-schema constrained sampling through llguidance."""

import json
from functools import lru_cache
from typing import Any

import llguidance
import llguidance.hf
import numpy as np
import torch


class Constraint:
    """The tokens that may come next so that the text stays a prefix of JSON fitting a schema."""

    def __init__(self, tokenizer: llguidance.LLTokenizer, grammar: str, vocab_size: int) -> None:
        self._matcher = llguidance.LLMatcher(tokenizer, grammar)
        if error := self._matcher.get_error():
            raise ValueError(f"json_schema: {error}")
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
        if not self._matcher.consume_token(token):
            raise RuntimeError(f"json_schema: token {token} refused: {self._matcher.get_error()}")

    @property
    def finished(self) -> bool:
        return self._matcher.is_stopped()


class ConstraintFactory:
    """Compiles schemas for one tokenizer; matchers of a schema seen before are cheap."""

    def __init__(self, tokenizer: Any, vocab_size: int, eos_token: int | None) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token = eos_token
        self._wrapped: llguidance.LLTokenizer | None = None

    def __call__(self, schema: dict[str, Any]) -> Constraint:
        if self._wrapped is None:
            self._wrapped = llguidance.hf.from_tokenizer(
                self._tokenizer, n_vocab=self._vocab_size, eos_token=self._eos_token
            )
        return Constraint(self._wrapped, _grammar(json.dumps(schema)), self._vocab_size)


@lru_cache(maxsize=64)
def _grammar(schema: str) -> str:
    # compact JSON: without this, a small model can emit white space until its budget ends
    return llguidance.LLMatcher.grammar_from_json_schema(
        schema, defaults={"whitespace_flexible": False}
    )
