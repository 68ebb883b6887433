"""Samples held to a grammar: exactly its texts, and nothing else about sampling changed."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_chat import chat_tokenizer, save_chat_model

from training.api import ModelInput, RequestFailedError, SamplingParams
from training.backends.local.constraint import Constraint, ConstraintFactory

PASSAGE = "The red fox, old Tam's, naps."
SPAN = (
    f"SPAN: WORDS & /[A-Za-z](.{{0,18}}[A-Za-z])?/\n"
    f"WORDS: %regex {json.dumps({'substring_words': PASSAGE})}\n"
)
SPANS = f'start: line{{1,3}}\nline: "A: " SPAN "\\n"\n{SPAN}'
# more ways to go on after one letter than llguidance follows
TOO_MANY = "start: ({}) /z/".format(" | ".join(f"/([a-z]+ ){{{i}}}/ /x*/" for i in range(1, 2200)))


def text_of(tokens: list[int]) -> str:
    tokenizer: Any = chat_tokenizer()
    return tokenizer.decode(tokens, skip_special_tokens=True)


def factory() -> ConstraintFactory:
    tokenizer = chat_tokenizer()
    return ConstraintFactory(tokenizer, len(tokenizer), tokenizer.eos_token_id)


def texts_of(made: ConstraintFactory, grammar: str, longest: int) -> set[str]:
    """All texts that a grammar lets a tokenizer of bytes write, by trying each token."""
    tokenizer = chat_tokenizer()
    found = set()

    def constraint(tokens: list[int]) -> Constraint:
        held = made(SamplingParams(grammar=grammar))
        for token in tokens:
            held.accept(token)
        assert held.error is None
        return held

    def grow(tokens: list[int]) -> None:
        assert len(tokens) <= longest
        held = constraint(tokens)
        if held.finished:
            found.add(text_of(tokens))
            return
        for token in np.flatnonzero(held.allowed().numpy()).tolist():
            if token == tokenizer.eos_token_id:
                found.add(text_of(tokens))
            else:
                grow([*tokens, token])

    grow([])
    return found


@pytest.mark.parametrize(
    ("grammar", "texts"),
    [
        ('start: "ab" | "ac" | "d"', {"ab", "ac", "d"}),
        ('start: a{1,2} "."\na: "x" | "yz"', {"x.", "yz.", "xx.", "xyz.", "yzx.", "yzyz."}),
        ('start: "a"?', {"", "a"}),
        ('start: "v=" %json {"enum": [1, "b"]}', {"v=1", 'v="b"'}),
        (
            f"start: SPAN\n{SPAN}",
            {"The", "The red", "The red fox", "red", "red fox", "red fox, old", "fox", "fox, old"}
            | {"red fox, old Tam", "fox, old Tam", "fox, old Tam's", "fox, old Tam's, naps"}
            | {"old", "old Tam", "old Tam's", "old Tam's, naps", "Tam", "Tam's", "Tam's, naps"}
            | {"s", "s, naps", "naps", "The red fox, old", "The red fox, old Tam"}
            | {"red fox, old Tam's"},
        ),
    ],
)
def test_all_texts_of_a_grammar_can_be_sampled_and_no_other(grammar: str, texts: set[str]) -> None:
    assert texts_of(factory(), grammar, longest=20) == texts


def test_a_grammar_is_compiled_once_and_its_samples_are_apart() -> None:
    made = factory()
    params = [SamplingParams(grammar='start: "ab"'), SamplingParams(json_schema={"enum": [1]})]
    first, again, schema = made(params[0]), made(params[0]), made(params[1])
    made(params[1])
    assert (made._compiled.cache_info().misses, made._compiled.cache_info().hits) == (2, 2)
    a, b, one = chat_tokenizer().encode("ab1")
    first.accept(a)
    assert np.flatnonzero(first.allowed().numpy()).tolist() == [b]
    assert np.flatnonzero(again.allowed().numpy()).tolist() == [a]
    assert np.flatnonzero(schema.allowed().numpy()).tolist() == [one]
    made(params[0]).accept(a)
    assert np.flatnonzero(made(params[0]).allowed().numpy()).tolist() == [a]


@pytest.fixture(scope="module")
def sampler(service: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("constrained")
    return service.create_sampling_client(base_model=save_chat_model(folder, favourites="ABC ab"))


def ints(text: str) -> ModelInput:
    return ModelInput.from_ints(chat_tokenizer().encode(text))


def test_samples_fit_the_grammar_with_the_logprobs_of_the_free_model(sampler: Any) -> None:
    prompt = ints("Tell: ")
    free_params = SamplingParams(max_tokens=20, temperature=0.7, seed=5)
    params = SamplingParams(max_tokens=90, seed=1, grammar=SPANS)
    [free_alone] = sampler.sample(prompt, 1, free_params).result().sequences
    alone = sampler.sample(prompt, 8, params).result().sequences
    held, free = sampler.sample(prompt, 8, params), sampler.sample(prompt, 1, free_params)
    other = sampler.sample(prompt, 4, SamplingParams(max_tokens=90, seed=1, grammar='start: "no"'))
    assert free.result().sequences[0].tokens == free_alone.tokens
    assert [text_of(s.tokens) for s in other.result().sequences] == ["no"] * 4
    sequences = held.result().sequences
    assert [s.tokens for s in sequences] == [s.tokens for s in alone]
    texts = []
    for sequence in sequences:
        text = text_of(sequence.tokens)
        texts.append(text)
        assert sequence.stop_reason == "stop" and re.fullmatch(r"(A: \w.*\n){1,3}", text)
        assert all(line.removeprefix("A: ") in PASSAGE for line in text.splitlines())
        whole = ModelInput.from_ints(prompt.to_ints() + sequence.tokens)
        known = sampler.compute_logprobs(whole).result()[prompt.length :]
        np.testing.assert_allclose(sequence.logprobs, known, atol=1e-4)
    assert len(set(texts)) > 2
    elsewise = SamplingParams(max_tokens=90, seed=2, grammar=SPANS)
    others = sampler.sample(prompt, 8, elsewise).result().sequences
    assert [s.tokens for s in others] != [s.tokens for s in sequences]


def test_greedy_takes_the_likeliest_text_of_the_grammar_token_by_token(sampler: Any) -> None:
    prompt, grammar = ints("Name: "), 'start: ("b" | "q" | "%") ("x" | "a" | "7")'
    params = SamplingParams(max_tokens=9, temperature=0, grammar=grammar)
    got = sampler.sample(prompt, 1, params).result().sequences[0].tokens
    wanted: list[int] = []
    for letters in ("bq%", "xa7"):
        tokens = chat_tokenizer().encode(letters)
        wholes = [ModelInput.from_ints([*prompt.to_ints(), *wanted, token]) for token in tokens]
        likely = [sampler.compute_logprobs(whole).result()[-1] for whole in wholes]
        wanted.append(tokens[int(np.argmax(likely))])
    assert got == wanted


def test_stops_and_max_tokens_end_a_sample_inside_the_grammar(sampler: Any) -> None:
    prompt = ints("Tell: ")

    def sample(**settings: Any) -> tuple[str, str]:
        params = SamplingParams(seed=3, grammar='start: "one\\ntwo\\nthree"', **settings)
        [sequence] = sampler.sample(prompt, 1, params).result().sequences
        return text_of(sequence.tokens), sequence.stop_reason

    assert sample(max_tokens=99) == ("one\ntwo\nthree", "stop")
    assert sample(max_tokens=99, stop=[]) == ("one\ntwo\nthree", "stop")
    assert sample(max_tokens=99, stop=["wo"]) == ("one\ntwo", "stop")
    assert sample(max_tokens=6) == ("one\ntw", "length")


@pytest.mark.parametrize(
    ("grammar", "message"),
    [
        ("start: missing", 'grammar: at 1.*unknown name: "missing"'),
        ('root: "a"', "grammar: no start rule found"),
        ("start: /(/", r"grammar: at 1(?s:.*)unclosed group"),
    ],
)
def test_a_grammar_that_does_not_compile_is_refused_by_the_request(
    sampler: Any, grammar: str, message: str
) -> None:
    good = sampler.sample(ints("a"), 1, SamplingParams(max_tokens=2, temperature=0))
    with pytest.raises(ValueError, match=message):
        sampler.sample(ints("a"), 1, SamplingParams(max_tokens=2, grammar=grammar))
    assert len(good.result().sequences[0].tokens) == 2


def test_a_grammar_that_grows_too_large_fails_its_own_request_alone(sampler: Any) -> None:
    free_params = SamplingParams(max_tokens=6, temperature=0, stop=[])
    wanted = sampler.sample(ints("a"), 2, free_params).result().sequences
    held = sampler.sample(ints("a"), 3, SamplingParams(max_tokens=9, seed=0, grammar=TOO_MANY))
    free = sampler.sample(ints("a"), 2, free_params)
    assert [s.tokens for s in free.result().sequences] == [s.tokens for s in wanted]
    with pytest.raises(
        RequestFailedError, match=r"while sampling: .*2200 items.*simpler"
    ) as caught:
        held.result()
    assert caught.value.category == "user"
    again = sampler.sample(ints("a"), 2, free_params).result().sequences
    assert [s.tokens for s in again] == [s.tokens for s in wanted]
