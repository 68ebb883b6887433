"""How few tokens a text can have, told without tokenizing it: that takes seconds per megabyte."""

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# what they make of a text is all of it, in other characters
_NORMALIZERS = frozenset({"NFC", "NFD", "NFKC", "NFKD", "Lowercase", "Replace", "Prepend"})
_PRE_TOKENIZERS = frozenset({"ByteLevel", "Digits", "Metaspace", "Punctuation", "Split"})
# characters of a text that is tokenized in no time
_SHORT = 10_000
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


class TooManyTokens(ValueError):
    """A text that has at least so many tokens, and was not tokenized."""

    def __init__(self, at_least: int, most: int) -> None:
        super().__init__(f"the prompt has at least {at_least} tokens, and {most} are allowed")
        self.at_least = at_least


class TokenBound(NamedTuple):
    """`longest`: bytes of normalized text that one token stands for at most, 0 where that cannot
    be told; `dropped`: bytes of a text that no token stands for; `normalizer`: the tokenizer's."""

    longest: int
    dropped: bytes = b""
    normalizer: Any = None

    def fewest(self, text: str) -> int:
        if not self.longest:
            return 0
        if self.normalizer is not None:
            text = self.normalizer.normalize_str(text)
        num_bytes = len(text.encode().translate(None, self.dropped))
        return -(-num_bytes // self.longest)

    def check(self, text: str, most: int | None) -> None:
        """Raises TooManyTokens where a long text has more than `most` tokens for certain."""
        if most is None or len(text) <= _SHORT:
            return
        if (fewest := self.fewest(text)) > most:
            raise TooManyTokens(fewest, most)


def token_bound(tokenizer: "Tokenizer") -> TokenBound:
    """Of byte-level BPE, and of BPE that falls back to bytes, whose tokens stand one after the
    other for all of the text. Other tokenizers leave blanks out, or have one token for any unknown
    word, and have no bound."""
    spec = json.loads(tokenizer.to_str())
    model, added = spec["model"], spec["added_tokens"]
    normalizers = list(_steps(spec["normalizer"], "normalizers"))
    pre_tokenizers = list(_steps(spec["pre_tokenizer"], "pretokenizers"))
    kinds = {step["type"] for step in pre_tokenizers}
    if (
        model["type"] != "BPE"
        or not {step["type"] for step in normalizers} <= _NORMALIZERS
        or any("Regex" in step.get("pattern", "") for step in normalizers)
        or not kinds <= _PRE_TOKENIZERS
        or any(step.get("behavior") == "Removed" for step in pre_tokenizers)
        # such a token takes all blanks beside it
        or any(token["lstrip"] or token["rstrip"] for token in added)
    ):
        return TokenBound(0)
    vocab = model["vocab"]
    texts = [token["content"] for token in added]
    if tokenizer.normalizer is not None:
        texts += [tokenizer.normalizer.normalize_str(text) for text in texts]
    longest = max((len(text.encode()) for text in texts), default=1)
    if "ByteLevel" in kinds:
        # a character of a piece is a byte of the text
        dropped = bytes(byte for letter, byte in byte_letters().items() if letter not in vocab)
        longest = max(longest, *map(len, vocab))
        return TokenBound(longest, dropped, tokenizer.normalizer)
    if not model["byte_fallback"] or any(piece not in vocab for piece in _BYTES):
        return TokenBound(0)
    longest = max(longest, *(len(piece.encode()) for piece in vocab))
    return TokenBound(longest, b"", tokenizer.normalizer)


def byte_letters() -> dict[str, int]:
    """The letters in which byte-level vocabularies write bytes: printable ones stand for
    themselves, the others follow from U+0100 on (Radford et al. 2019)."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    letters = {chr(byte): byte for byte in printable}
    return letters | {chr(0x100 + at): byte for at, byte in enumerate(others)}


def _steps(spec: Any, parts: str) -> Iterator[Mapping[str, Any]]:
    if spec is None:
        return
    if spec["type"] == "Sequence":
        for part in spec[parts]:
            yield from _steps(part, parts)
    else:
        yield spec
