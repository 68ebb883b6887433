"""The bytes that each token of a vocabulary stands for."""

import json
import re
import weakref
from typing import Any

from training.token_bounds import byte_letters

_BYTE_PIECE = re.compile(r"<0x([0-9A-F]{2})>")
_BLANK = "\N{LOWER ONE EIGHTH BLOCK}"


class TokenBytes:
    """Also for tokens that are part of a character only, which decoding alone would not tell."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._added = {id: token.content for id, token in tokenizer.added_tokens_decoder.items()}
        steps = _steps(tokenizer)
        self._byte_of = byte_letters() if "ByteLevel" in steps else None
        self._has_blanks = bool(steps & {"ByteFallback", "Metaspace"})

    def __call__(self, token: int) -> bytes:
        """Empty where the tokenizer does not know the token: models can have more than it has."""
        if token in self._added:
            return self._added[token].encode()
        piece = self._tokenizer.convert_ids_to_tokens(token)
        if piece is None:
            return b""
        if self._byte_of is not None and all(letter in self._byte_of for letter in piece):
            return bytes(self._byte_of[letter] for letter in piece)
        if self._has_blanks:
            byte = _BYTE_PIECE.fullmatch(piece)
            return bytes.fromhex(byte[1]) if byte else piece.replace(_BLANK, " ").encode()
        return self._tokenizer.decode([token]).encode()


_KNOWN: weakref.WeakKeyDictionary[Any, TokenBytes] = weakref.WeakKeyDictionary()


def token_bytes(tokenizer: Any) -> TokenBytes:
    """Of this tokenizer; made once."""
    known = _KNOWN.get(tokenizer)
    if known is None:
        known = _KNOWN[tokenizer] = TokenBytes(tokenizer)
    return known


def _steps(tokenizer: Any) -> set[str]:
    """The kinds of steps in which the tokenizer decodes."""
    decoder = tokenizer.backend_tokenizer.decoder if tokenizer.is_fast else None
    if decoder is None:
        return set()
    spec = json.loads(decoder.__getstate__())
    return {step["type"] for step in [spec, *spec.get("decoders", ())]}
