"""Logprobs in the two forms of OpenAI's answers."""

from collections.abc import Iterable
from typing import Any

from training.running_response import RunningText
from training.serving.openai.answers import Token
from training.serving.openai.token_bytes import token_bytes

# what OpenAI writes for a token that cannot come
_LEAST = -9999.0


def chat_logprobs(tokenizer: Any, tokens: Iterable[Token], num_top: int) -> dict[str, Any]:
    """An entry for each sampled token, the one that ended the answer included. A token that is part
    of a character reads U+FFFD; its bytes tell."""
    name = token_bytes(tokenizer)

    def entry(token: int, logprob: float) -> dict[str, Any]:
        data = name(token)
        return {
            "token": data.decode("utf-8", "replace"),
            "logprob": _written(logprob),
            "bytes": list(data),
        }

    content = []
    for told in tokens:
        alike = [entry(*likely) for likely in (told.topk or [])[:num_top]]
        content.append({**entry(told.token, _own(told)), "top_logprobs": alike})
    return {"content": content, "refusal": None}


class CompletionLogprobs:
    """Of the tokens of one choice, which may come in pieces.

    Offsets are in characters of the text that is returned; a token that only continues a character
    stands where that character stands. A part of a character is named by its bytes
    (`bytes:\\xe2\\x80`), as alike names would be one key.
    """

    def __init__(
        self, tokenizer: Any, num_top: int, *, context: Iterable[int] = (), offset: int = 0
    ) -> None:
        self._name = token_bytes(tokenizer)
        self._num_top = num_top
        self._text = RunningText(tokenizer, context=list(context))
        self._offset = offset

    def add(self, tokens: Iterable[Token], num_outside: int = 0) -> dict[str, list[Any]]:
        """Those of `tokens`, of which the first `num_outside` are no part of the text."""
        told: dict[str, list[Any]] = {
            name: [] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        }
        for at, token in enumerate(tokens):
            own = self._label(token.token)
            told["tokens"].append(own)
            told["text_offset"].append(self._offset)
            if at >= num_outside:
                self._offset += len(self._text.add([token.token]))
            if token.logprob is None:
                told["token_logprobs"].append(None)
                told["top_logprobs"].append(None)
                continue
            logprob = _written(_own(token))
            top = {}
            for likely, of_likely in (token.topk or [])[: self._num_top]:
                top.setdefault(self._label(likely), _written(of_likely))
            told["token_logprobs"].append(logprob)
            # the token itself is always among them
            told["top_logprobs"].append({**top, own: max(logprob, top.get(own, logprob))})
        return told

    def _label(self, token: int) -> str:
        data = self._name(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _own(token: Token) -> float:
    """The token's logprob; where it is one of the likeliest, the very number that stands there."""
    assert token.logprob is not None
    return dict(token.topk or []).get(token.token, token.logprob)


def _written(logprob: float) -> float:
    return max(logprob, _LEAST)
