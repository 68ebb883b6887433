"""No text has fewer tokens than training.token_bounds says, whatever the tokenizer.

uv run pytest tests/training/test_token_bounds.py
"""

import random
from typing import Any

import pytest
from chat_templates import TOKENIZERS
from tiny_chat import chat_tokenizer, sentencepiece_tokenizer
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel

from training.control_tokens import encoder_of
from training.models import load_tokenizer
from training.token_bounds import TooManyTokens, byte_letters, token_bound

EMBEDDED = load_tokenizer("embedded")


def composing() -> Tokenizer:
    """Byte-level after NFC, which makes one letter of several, and after lower case."""
    tokenizer = Tokenizer.from_str(EMBEDDED.backend_tokenizer.to_str())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    return tokenizer


def without(letters: str) -> Tokenizer:
    """Byte-level with bytes that no token stands for."""
    kept = [letter for letter in sorted(byte_letters()) if letter not in letters]
    tokenizer = Tokenizer(
        BPE({letter: at for at, letter in enumerate([*kept, "ab"])}, [("a", "b")])
    )
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


BOUNDED: dict[str, Tokenizer] = {
    **{name: made.backend_tokenizer for name, made in TOKENIZERS.items()},
    "tiny": chat_tokenizer().backend_tokenizer,
    "sentencepiece": sentencepiece_tokenizer().backend_tokenizer,
    "embedded": EMBEDDED.backend_tokenizer,
    "composing": composing(),
    "without": without("xyz"),
}


def texts_of(tokenizer: Tokenizer) -> list[str]:
    """Those of few tokens for their length above all."""
    draw = random.Random(0)
    vocab = tokenizer.get_vocab()
    pieces = sorted(vocab, key=len)[-50:]
    written = [tokenizer.decode([vocab[p]], skip_special_tokens=False) for p in pieces]
    letters = " \n\tabxyzé\u1fbe\u0308\u0301\u212a\u2581世🙂<|_>"
    drawn = ["".join(draw.choices(letters, k=300)) for _ in range(20)]
    return [
        *(text * 40 for text in written),
        *drawn,
        " " * 500,
        "\u1fbe\u0308\u0301" * 99,
        "xyz" * 99,
    ]


@pytest.mark.parametrize("name", BOUNDED)
def test_no_text_has_fewer_tokens(name: str) -> None:
    tokenizer = BOUNDED[name]
    bound = token_bound(tokenizer)
    assert bound.longest > 0
    for text in texts_of(tokenizer):
        assert bound.fewest(text) <= len(tokenizer.encode(text, add_special_tokens=False).ids), text


def test_the_bound_is_reached() -> None:
    """So it cannot be higher: by the longest token of all."""
    text = "\n" + " " * 80
    assert len(EMBEDDED.encode(text)) == 1
    bound = token_bound(EMBEDDED.backend_tokenizer)
    assert (bound.fewest(text), bound.fewest(text + " ")) == (1, 2)


def one_token(tokenizer: Tokenizer) -> str:
    """A long text that the tokenizer has one token for, or none."""
    for text in ("[SEP]" + " " * 999, "z" * 999, " " * 999):
        if len(tokenizer.encode(text).ids) <= 1:
            return text
    raise AssertionError


def unbounded() -> dict[str, Tokenizer]:
    words = Tokenizer(WordLevel({"[UNK]": 0, "a": 1}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    split = without("")
    split.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(" ", "removed"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    blanks = without("")
    blanks.add_special_tokens([AddedToken("[SEP]", rstrip=True)])
    unknown = Tokenizer(BPE({"?": 0, "a": 1}, [], unk_token="?", fuse_unk=True))
    stripped = without("")
    stripped.normalizer = normalizers.Replace(Regex(" +$"), "")
    no_merges = Tokenizer(BPE({"a": 0}, []))
    return {
        "words": words,
        "split": split,
        "blanks": blanks,
        "unknown": unknown,
        "stripped": stripped,
        "nothing": no_merges,
    }


@pytest.mark.parametrize("name", unbounded())
def test_where_one_token_can_be_any_text_there_is_no_bound(name: str) -> None:
    tokenizer = unbounded()[name]
    text = one_token(tokenizer)
    assert token_bound(tokenizer).fewest(text) == 0


@pytest.mark.parametrize("end", ["", "<|im_end|>"])
def test_a_long_text_is_refused_before_it_is_tokenized(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "All work and no play. " * 40_000 + end
    encoder: Any = encoder_of(EMBEDDED, [text])
    monkeypatch.setattr(type(encoder), "encode", None)
    with pytest.raises(TooManyTokens, match=r"at least \d{5} tokens, and 8192 are allowed"):
        encoder.check_length(text, 8192)
    encoder.check_length(text, 30_000)
    encoder.check_length(text, None)
    # as exact as it can be where that costs nothing
    encoder.check_length("a" * 10_000, 10)
