"""Prompts and training data for BBH tasks, as raw text without a chat template.

Prompts are put together from pieces that are tokenised one by one, in training and in answering
alike, so that an answer begins with the same tokens in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

from training.api import Datum
from training.chat import datum_from_tokens, leading_bos
from training.control_tokens import encoder_of
from training.domains.bbh.items import Item
from training.domains.bbh.tasks import BBHTask

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LossMask = Literal["all_tokens", "last_output", "all_outputs"]
STOP = "\nQ:"


class Piece(NamedTuple):
    text: str
    is_answer: bool


def question_pieces(task: BBHTask, demonstrations: Sequence[Item]) -> list[Piece]:
    """The instruction and solved items; what follows is a question."""
    pieces = [Piece(f"{task.instruction}\n\n", False)]
    for item in demonstrations:
        pieces += _solved(item)
    return pieces


def _solved(item: Item) -> list[Piece]:
    return [
        Piece(f"Q: {item.input}\nA:", False),
        Piece(f" {item.target}", True),
        Piece("\n\n", False),
    ]


class PromptTokens:
    """Tokenises pieces; those that come again are looked up."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._known: dict[str, list[int]] = {}
        self._bos = leading_bos(tokenizer)
        self._eos = tokenizer.eos_token_id

    def encode(self, text: str) -> list[int]:
        if text not in self._known:
            self._known[text] = encoder_of(self._tokenizer, [text]).encode(text)
        return self._known[text]

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def prompt(self, task: BBHTask, demonstrations: Sequence[Item], question: str) -> list[int]:
        """Tokens after which the answer to `question` comes."""
        pieces = question_pieces(task, demonstrations)
        texts = [piece.text for piece in pieces] + [f"Q: {question}\nA:"]
        return [*self._bos, *(token for text in texts for token in self.encode(text))]

    def datum(self, task: BBHTask, items: Sequence[Item], loss_mask: LossMask) -> Datum:
        """One training sequence: all items solved, in their order.

        Trained are all tokens and the end token, the last answer, or all answers. Each answer is
        trained with the token that ends it.
        """
        pieces = question_pieces(task, items)
        tokens = list(self._bos)
        weights = [float(loss_mask == "all_tokens")] * len(tokens)
        last = max(i for i, piece in enumerate(pieces) if piece.is_answer)
        ends_answer = False
        for i, (text, is_answer) in enumerate(pieces):
            encoded = self.encode(text)
            trained = (
                loss_mask == "all_tokens"
                or (is_answer and loss_mask == "all_outputs")
                or (i == last and loss_mask == "last_output")
            )
            part = [float(trained)] * len(encoded)
            if ends_answer:
                part[0] = 1.0
            ends_answer = trained and is_answer
            tokens += encoded
            weights += part
        if loss_mask == "all_tokens" and self._eos is not None:
            tokens.append(self._eos)
            weights.append(1.0)
        return datum_from_tokens(tokens, weights)

    def answer_length(self, targets: Sequence[str]) -> int:
        """Tokens of the longest of these answers."""
        return max(len(self.encode(f" {target}")) for target in targets)
