"""The text of a message while it is written, against `parse_response` of the whole.

uv run pytest tests/training/test_running_response.py
"""

import random

import pytest
from tiny_chat import chat_tokenizer, sentencepiece_tokenizer

from training.chat import parse_response, stop_sequences
from training.models import load_tokenizer
from training.running_response import RunningResponse

TEXTS = [
    "Hello there, a b  c\n\n d",
    "\n  blanks first, 🙂🙂 é 日本語 \N{COMBINING ACUTE ACCENT}",
    "x \ufffd y\ufffd",
    "a\n\nUser wrote\n\nUser: no",
    "blanks last  \n ",
    "",
]


TOKENIZERS = {
    "bytes": chat_tokenizer,
    "sentencepiece": sentencepiece_tokenizer,
    "embedded": lambda: load_tokenizer("embedded"),
}


@pytest.mark.parametrize("template", ["auto", "role_colon"])
@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_pieces_are_the_message(name: str, template: str) -> None:
    tokenizer = TOKENIZERS[name]()
    stop = stop_sequences(tokenizer, template)[0]
    ends = [stop] if isinstance(stop, int) else tokenizer.encode(stop)
    for text in TEXTS:
        for closing in ([], ends, [*ends, *tokenizer.encode("more")]):
            tokens = [*tokenizer.encode(text), *closing]
            running = RunningResponse(tokenizer, template=template)
            shown = ""
            for i, token in enumerate(tokens):
                shown += running.add([token])
                whole = parse_response(tokenizer, tokens[: i + 1], template=template)
                assert "\ufffd" in text or "\ufffd" not in shown
                # bytes of a character that is not whole yet can spoil those before them
                assert whole.startswith(shown) or "\ufffd" in whole
            whole = parse_response(tokenizer, tokens, template=template)
            held = whole.removeprefix(shown)
            assert not held.strip() or text.endswith("\ufffd")
            assert whole.startswith(RunningResponse(tokenizer, template=template).add(tokens))


@pytest.mark.parametrize("seed", range(5))
def test_bytes_that_are_no_text_do_not_wait(seed: int) -> None:
    tokenizer = chat_tokenizer()
    rng = random.Random(seed)
    letters = tokenizer.get_vocab()
    some = [token for piece, token in letters.items() if len(piece) == 1]
    tokens = rng.choices(some, k=2000)
    running = RunningResponse(tokenizer)
    shown = "".join(running.add([token]) for token in tokens)
    whole = parse_response(tokenizer, tokens)
    assert whole.startswith(shown) and len(whole) - len(shown) <= 3


def test_a_token_costs_the_same_late_in_the_message(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = chat_tokenizer()
    num_decoded = 0
    decode = tokenizer.decode

    def counted(tokens: list[int], **options: bool) -> str | list[str]:
        nonlocal num_decoded
        num_decoded += len(tokens)
        return decode(tokens, **options)

    monkeypatch.setattr(tokenizer, "decode", counted)
    for text in ("word " * 400, "🙂" * 500):
        for template in ("auto", "role_colon"):
            running = RunningResponse(tokenizer, template=template)
            tokens = tokenizer.encode(text)
            num_decoded = 0
            for token in tokens:
                running.add([token])
            assert num_decoded <= 20 * len(tokens)
