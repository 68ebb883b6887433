"""Stop strings end a sample where they end, whatever its tokens are."""

from typing import Any

import pytest
import torch
from tiny_chat import chat_tokenizer, save_chat_model, sentencepiece_tokenizer

from training.api import ModelInput, SamplingParams
from training.backends.local.stops import StopStrings


def tokens_until(stop: str, answer: str, tokenizer: Any, prompt: str = "ask:") -> str | None:
    """The text of the answer's tokens up to the one that stops; None where none does."""
    known = tokenizer.encode(prompt, add_special_tokens=False)
    both = tokenizer.encode(prompt + answer, add_special_tokens=False)
    assert both[: len(known)] == known
    decoded: list[int] = []

    def decode(tokens: list[int]) -> str:
        decoded.append(len(tokens))
        return tokenizer.decode(tokens)

    stops = StopStrings(("never", stop), known, decode)
    tokens = both[len(known) :]
    for n in range(1, len(tokens) + 1):
        if stops.found_in(tokens[:n]):
            return tokenizer.decode([*known, *tokens[:n]])[len(prompt) :]
    # what a look costs does not grow with the answer
    assert max(decoded) <= 8 * (len(stop) + 5) + 32
    return None


@pytest.mark.parametrize("make", [chat_tokenizer, sentencepiece_tokenizer])
@pytest.mark.parametrize(
    "before",
    ["", "x", " é", "long " * 50, "\N{PILE OF POO}" * 50],
    ids=["first", "after x", "after é", "after words", "after emoji"],
)
@pytest.mark.parametrize(
    "stop",
    [
        "\N{GRINNING FACE}" * 4,
        "\N{GRINNING FACE}",
        "é",
        "日本語の終わり",
        " yes",
        "yes",
        "\n\n",
        " .",
    ],
)
def test_stop_strings_of_any_tokenizer(make: Any, before: str, stop: str):
    tokenizer = make()
    found = tokens_until(stop, f"{before}{stop} and more {stop}", tokenizer)
    first = f"{before}{stop}".index(stop)
    assert found == f"{before}{stop}"[: first + len(stop)]
    assert tokens_until("\N{GRINNING FACE}!", f"{before}{stop} and more", tokenizer) is None


def test_a_stop_string_is_not_put_together_with_the_prompt():
    tokenizer: Any = chat_tokenizer()
    assert tokens_until("\n\n", "\nno\n\n", tokenizer, prompt="ask\n") == "\nno\n\n"
    # nor is a character that the prompt has begun
    begun = tokenizer.encode("\N{GRINNING FACE}", add_special_tokens=False)
    stops = StopStrings(("x",), begun[:2], tokenizer.decode)
    assert not stops.found_in(begun[2:])
    assert stops.found_in([*begun[2:], *tokenizer.encode("x", add_special_tokens=False)])


def test_tokens_without_text_widen_the_look():
    """A tokenizer may have them; the stop string around them is found all the same."""
    texts = {0: "", 1: "a", 2: "b"}
    stops = StopStrings(("ab",), [], lambda tokens: "".join(texts[t] for t in tokens))
    tokens = [2] * 30 + [1] + [0] * 40 + [2]
    assert [stops.found_in(tokens[:n]) for n in range(1, len(tokens) + 1)] == [False] * 71 + [True]


def test_four_emoji_stop_a_sample(tmp_path, connect_local):
    """The whole path: a model of one token a byte, made to say nothing but one emoji."""
    emoji = "\N{GRINNING FACE}"
    folder = save_chat_model(tmp_path / "chat", favourites=emoji)
    service = connect_local()
    sampler = service.create_sampling_client(base_model=folder)
    tokenizer = sampler.get_tokenizer()
    said = tokenizer.encode(emoji * 6, add_special_tokens=False)
    decoder = service.engine(folder).decoder
    logits, next_bytes = decoder.logits, iter(said)

    def say_emoji(hidden: torch.Tensor, lora: Any) -> torch.Tensor:
        made = logits(hidden, lora)
        made[:, next(next_bytes)] = 1e4
        return made

    decoder.logits = say_emoji
    params = SamplingParams(max_tokens=24, temperature=0, stop=[emoji * 4])
    prompt = ModelInput.from_ints(tokenizer.encode("hello", add_special_tokens=False))
    [sequence] = sampler.sample(prompt, 1, params).result().sequences
    assert (tokenizer.decode(sequence.tokens), sequence.stop_reason) == (emoji * 4, "stop")
