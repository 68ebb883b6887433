"""Balls and urns for a language model: each kind of ball is a word of one token.

The text is the model's beginning-of-text token and the words of the draws, one token each, with no
separator and no instruction. At every position the model's probabilities of the K words, divided by
their sum, are its prediction of the next draw; the sum itself is the mass on the items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.config.entrypoint import ConfigError, raise_problems

if TYPE_CHECKING:
    from torch import Tensor

    from training.api import TrainingClient
    from training.icl.base import Batch

# common things whose names are one token for most vocabularies of some size
_NOUNS = (
    "apple river stone bread horse window music garden paper silver winter doctor bridge forest "
    "table mountain lemon castle pencil ship dog cat bird fish tree house door road car train "
    "book letter picture water fire wind rain snow sun moon star sand gold iron wood glass "
    "king queen child mother father friend teacher farmer soldier city village island ocean lake "
    "field hill valley beach desert cloud storm summer spring morning evening night day hour "
    "year milk sugar salt rice corn wine coffee tea cake egg meat fruit butter soup plate cup "
    "knife bottle box bag key lock chair bed lamp mirror clock phone camera radio screen engine "
    "wheel boat plane ball game song dance story poem word number color circle square line map "
    "flag coin ring shirt coat hat shoe dress button pocket hand foot head eye ear nose mouth "
    "heart bone blood skin hair lion tiger bear wolf rabbit mouse snake frog bee spider chicken "
    "duck cow pig sheep goat flower rose grass leaf seed root branch rock cave wall roof floor "
    "kitchen office school church market station airport hotel hospital museum library tower "
    "palace street park farm mill mine shop bank court prison theater stadium harbor"
)
NOUNS = tuple(_NOUNS.split())
SINGLES = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
_SUGGESTED = 12


class Items(NamedTuple):
    """K words as they stand in the text, their tokens, and the token that begins every text."""

    words_K: list[str]
    tokens_K: list[int]
    prefix: int
    prefix_kind: str  # "bos", or "eos" where the tokenizer has no token for the beginning


def choose_items(tokenizer: Any, num_items: int, words: Sequence[str]) -> Items:
    """The given words, or as many of ours as are needed, each a single token of its own.

    All words are taken with a leading space if all are single tokens that way, else all as they
    are written. Raises a ConfigError that lists every word that does not do with its tokens, and
    words that would.
    """
    assert not words or len(words) == num_items
    prefix, kind = _prefix(tokenizer)
    forms = {form: _Form(tokenizer, form) for form in (" ", "")}
    if not words:
        return Items(*_own_words(forms, num_items), prefix, kind)
    problems = []
    twice = sorted({word for word in words if words.count(word) > 1})
    if twice:
        problems.append(f"model.words names {', '.join(map(repr, twice))} more than once")
    # the way of writing them that leaves the fewest that do not do; a space in front at equal terms
    form = min(forms.values(), key=lambda form: len(form.wrong(words)))
    wrong = form.wrong(dict.fromkeys(words))
    if wrong:
        problems.append(
            "model.words: each must be one token of its own for this tokenizer; "
            + "; ".join(wrong)
            + f". Words that do: {', '.join(form.usable(_SUGGESTED, words)) or 'none of ours'}"
        )
    raise_problems(problems)
    texts = [form.text(word) for word in words]
    tokens = [form.tokens(word)[0] for word in words]
    return Items(texts, tokens, prefix, kind)


def context_problems(input_length: int, context_length: int | None, model_name: str) -> list[str]:
    """`input_length` tokens have to fit; None is a model without a limit."""
    if context_length is None or input_length <= context_length:
        return []
    return [
        f"setting.context_length={input_length}: {model_name} reads {context_length} tokens at "
        "most, the first of which begins the text"
    ]


class TextAnswer(NamedTuple):
    """Log-probabilities of the K items (B, C, K), normalised over them, and the probability (B, C)
    that the model gave to all of them together."""

    predictions: Tensor
    item_mass: Tensor


class TextModel:
    """A language model on balls and urns, through `forward` of a training client.

    A new LoRA client is the base model exactly, and cross_entropy takes (C, K) targets: one request
    gives the log-probabilities of all K items at every position.
    """

    def __init__(self, client: TrainingClient, items: Items) -> None:
        self._client = client
        self.items = items

    def answer(self, batch: Batch) -> TextAnswer:
        """Reads `batch.inputs` (B, C), whose first column is the family's own beginning."""
        import numpy as np
        import torch

        from training.api import Datum, ModelInput

        tokens_K = torch.tensor(self.items.tokens_K)
        texts = torch.empty_like(batch.inputs)
        texts[:, 0] = self.items.prefix
        texts[:, 1:] = tokens_K[batch.inputs[:, 1:]]
        targets = np.tile(np.array(self.items.tokens_K), (texts.shape[1], 1))
        data = [
            Datum(ModelInput.from_ints(text), {"target_tokens": targets}) for text in texts.tolist()
        ]
        output = self._client.forward(data, "cross_entropy").result()
        logprobs = torch.stack(
            [record["logprobs"].to_torch() for record in output.loss_fn_outputs]
        ).double()
        log_mass = logprobs.logsumexp(-1, keepdim=True)
        return TextAnswer((logprobs - log_mass).float(), log_mass.squeeze(-1).exp().float())


class _Form:
    """One way of writing words: with a space in front, or as they are."""

    def __init__(self, tokenizer: Any, front: str) -> None:
        self._tokenizer = tokenizer
        self._front = front
        self._special = set(tokenizer.all_special_ids)

    def text(self, word: str) -> str:
        return word if word.startswith(self._front) else self._front + word

    def tokens(self, word: str) -> list[int]:
        return self._tokenizer.encode(self.text(word), add_special_tokens=False)

    def is_single(self, word: str) -> bool:
        tokens = self.tokens(word)
        return len(tokens) == 1 and tokens[0] not in self._special

    def wrong(self, words: Sequence[str] | dict[str, None]) -> list[str]:
        """What is wrong with those words that are no single tokens or share one."""
        told, first = [], {}
        for word in words:
            tokens = self.tokens(word)
            if not self.is_single(word):
                pieces = self._tokenizer.convert_ids_to_tokens(tokens)
                told.append(f"{self.text(word)!r} is {len(tokens)} tokens {pieces}")
            elif tokens[0] in first:
                told.append(
                    f"{self.text(word)!r} is the same token as {self.text(first[tokens[0]])!r}"
                )
            else:
                first[tokens[0]] = word
        return told

    def usable(self, count: int, without: Sequence[str] = ()) -> list[str]:
        """The first `count` of our words, or fewer, that are single tokens."""
        found: dict[int, str] = {}
        for word in (*NOUNS, *SINGLES):
            if len(found) == count:
                break
            if word not in without and self.is_single(word):
                found.setdefault(self.tokens(word)[0], word)
        return list(found.values())


def _own_words(forms: dict[str, _Form], num_items: int) -> tuple[list[str], list[int]]:
    usable = {front: form.usable(num_items) for front, form in forms.items()}
    for front, form in forms.items():
        words = usable[front]
        if len(words) == num_items:
            return [form.text(word) for word in words], [form.tokens(word)[0] for word in words]
    most = max(len(words) for words in usable.values())
    raise ConfigError(
        f"model.words is not given, and of our words only {most} are single tokens for this "
        f"tokenizer, where setting.num_dims={num_items} are needed; name them: model.words=[...]"
    )


def _prefix(tokenizer: Any) -> tuple[int, str]:
    """Models without a token for the beginning have learned to begin after the end of a text."""
    for kind in ("bos", "eos"):
        token = getattr(tokenizer, f"{kind}_token_id")
        if token is not None:
            return token, kind
    raise ConfigError(
        "model.model_name: its tokenizer has neither a beginning-of-text nor an end-of-text token "
        "for the first draw to follow; give it a bos_token in tokenizer_config.json"
    )
