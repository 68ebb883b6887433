"""Rendering, checked token by token against conversations that are spelled out by hand.

uv run pytest tests/training/test_chat.py
"""

from pathlib import Path

import numpy as np
import pytest
from chat_templates import CHATML, TOKENIZERS, byte_tokenizer
from transformers import PreTrainedTokenizerBase

from training.chat import (
    datum_from_tokens,
    parse_response,
    render_prompt,
    render_training,
    stop_sequences,
)
from training.domains.base import Message
from training.models import load_tokenizer

SYSTEM: Message = {"role": "system", "content": "Be brief."}
ONE: list[Message] = [
    {"role": "user", "content": "Hi."},
    {"role": "assistant", "content": "Hé!\n\n你好 🙂"},
]
TWO: list[Message] = [
    *ONE,
    {"role": "user", "content": " Two?"},
    {"role": "assistant", "content": "assistant two"},
]

# (what is given, what the model writes) in turns; joined they are the whole conversation
SPELLED = {
    ("chatml", "one"): [
        ("<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n", "Hé!\n\n你好 🙂<|im_end|>"),
        ("\n", ""),
    ],
    ("chatml", "two"): [
        ("<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n", "Hé!\n\n你好 🙂<|im_end|>"),
        (
            "\n<|im_start|>user\n Two?<|im_end|>\n<|im_start|>assistant\n",
            "assistant two<|im_end|>",
        ),
        ("\n", ""),
    ],
    ("chatml", "system"): [
        (
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n"
            "<|im_start|>assistant\n",
            "Hé!\n\n你好 🙂<|im_end|>",
        ),
        ("\n", ""),
    ],
    ("llama", "two"): [
        (
            "<|begin|><|start_header|>user<|end_header|>\n\nHi.<|eot|>"
            "<|start_header|>assistant<|end_header|>\n\n",
            "Hé!\n\n你好 🙂<|eot|>",
        ),
        (
            "<|start_header|>user<|end_header|>\n\nTwo?<|eot|>"
            "<|start_header|>assistant<|end_header|>\n\n",
            "assistant two<|eot|>",
        ),
    ],
    ("llama", "system"): [
        (
            "<|begin|><|start_header|>system<|end_header|>\n\nBe brief.<|eot|>"
            "<|start_header|>user<|end_header|>\n\nHi.<|eot|>"
            "<|start_header|>assistant<|end_header|>\n\n",
            "Hé!\n\n你好 🙂<|eot|>",
        ),
    ],
    ("gemma", "two"): [
        (
            "<bos><start_of_turn>user\nHi.<end_of_turn>\n<start_of_turn>model\n",
            "Hé!\n\n你好 🙂<end_of_turn>",
        ),
        (
            "\n<start_of_turn>user\nTwo?<end_of_turn>\n<start_of_turn>model\n",
            "assistant two<end_of_turn>",
        ),
        ("\n", ""),
    ],
    ("mistral", "two"): [
        ("<s>[INST] Hi.[/INST]", " Hé!\n\n你好 🙂</s>"),
        ("[INST]  Two?[/INST]", " assistant two</s>"),
    ],
    ("mistral", "system"): [
        ("<s>[INST] Be brief.\n\nHi.[/INST]", " Hé!\n\n你好 🙂</s>"),
    ],
}
CONVERSATIONS = {"one": ONE, "two": TWO, "system": [SYSTEM, *ONE]}


def spelled_out(
    tokenizer: PreTrainedTokenizerBase, parts: list[tuple[str, str]]
) -> list[tuple[int, float]]:
    expected = []
    for given, written in parts:
        for text, weight in ((given, 0.0), (written, 1.0)):
            expected += [(t, weight) for t in tokenizer.encode(text, add_special_tokens=False)]
    return expected


@pytest.mark.parametrize(("name", "conversation"), SPELLED)
def test_weights_mark_what_the_assistant_writes(name: str, conversation: str) -> None:
    tokenizer = TOKENIZERS[name]
    rendered = render_training(tokenizer, CONVERSATIONS[conversation])
    expected = spelled_out(tokenizer, SPELLED[name, conversation])
    assert list(zip(*rendered, strict=True)) == expected


@pytest.mark.parametrize(("name", "conversation"), SPELLED)
def test_prompt_is_what_stands_before_the_last_answer(name: str, conversation: str) -> None:
    tokenizer = TOKENIZERS[name]
    prompt = render_prompt(tokenizer, CONVERSATIONS[conversation][:-1])
    tokens, weights = render_training(tokenizer, CONVERSATIONS[conversation], "last_assistant")
    assert tokens[: len(prompt)] == prompt
    first = weights.index(1.0)
    assert first == len(prompt)
    last = len(weights) - weights[::-1].index(1.0)
    assert sum(weights) == last - first, "one run of tokens"
    assert tokens[last - 1] == stop_sequences(tokenizer)[0]
    written = parse_response(tokenizer, tokens[first:last])
    assert written.removeprefix(" ") == CONVERSATIONS[conversation][-1]["content"]


@pytest.mark.parametrize(
    ("name", "stops"),
    [
        ("chatml", ["<|im_end|>"]),
        ("llama", ["<|eot|>", "<|end_of_text|>"]),
        ("gemma", ["<end_of_turn>", "<eos>"]),
        ("mistral", ["</s>"]),
    ],
)
def test_stop_sequences_are_the_templates_end_token_then_eos(name: str, stops: list[str]) -> None:
    tokenizer = TOKENIZERS[name]
    assert stop_sequences(tokenizer) == tokenizer.convert_tokens_to_ids(stops)


def test_bos_comes_once() -> None:
    for name in ("llama", "gemma", "mistral"):
        tokenizer = TOKENIZERS[name]
        assert render_prompt(tokenizer, ONE[:1]).count(tokenizer.bos_token_id) == 1


def test_all_tokens() -> None:
    tokens, weights = render_training(TOKENIZERS["chatml"], TWO, "all_tokens")
    assert tokens == render_training(TOKENIZERS["chatml"], TWO).tokens
    assert weights == [1.0] * len(tokens)


def test_an_end_token_written_twice_is_learnt_once() -> None:
    doubled = CHATML.replace("<|im_end|>", "<|im_end|></s>")
    tokenizer = byte_tokenizer(doubled, ("<|im_start|>", "<|im_end|>", "</s>"), eos="</s>")
    tokens, weights = render_training(tokenizer, ONE)
    learnt = [t for t, w in zip(tokens, weights, strict=True) if w]
    assert learnt == tokenizer.encode(f"{ONE[1]['content']}<|im_end|>", add_special_tokens=False)


def test_a_token_across_the_border_is_cut_where_the_prompt_ends() -> None:
    tokenizer = byte_tokenizer(
        CHATML, ("<|im_start|>", "<|im_end|>"), eos="<|im_end|>", merges=(("Ċ", "Ċ"),)
    )
    messages: list[Message] = [ONE[0], {"role": "assistant", "content": "\nHi\n\n"}]
    tokens, weights = render_training(tokenizer, messages)
    prompt = render_prompt(tokenizer, messages[:1])
    assert tokens[: len(prompt)] == prompt
    learnt = [t for t, w in zip(tokens, weights, strict=True) if w]
    assert learnt == tokenizer.encode("\nHi\n\n<|im_end|>", add_special_tokens=False)
    whole = "<|im_start|>user\nHi.<|im_end|>\n<|im_start|>assistant\n\nHi\n\n<|im_end|>\n"
    assert tokenizer.decode(tokens) == whole


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    with pytest.raises(ValueError, match=r"message 2: .* rewrites earlier turns"):
        render_training(TOKENIZERS["mistral"], [SYSTEM, *TWO])
    _, weights = render_training(TOKENIZERS["mistral"], [SYSTEM, *TWO], "last_assistant")
    assert sum(weights) == len(" assistant two") + 1


def test_a_prompt_that_the_conversation_does_not_contain_is_refused() -> None:
    thinking = CHATML.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
    tokenizer = byte_tokenizer(thinking, ("<|im_start|>", "<|im_end|>"), eos="<|im_end|>")
    with pytest.raises(ValueError, match="differently from the prompt"):
        render_training(tokenizer, ONE)


def test_a_template_without_an_end_token_is_refused() -> None:
    tokenizer = byte_tokenizer(CHATML.replace("<|im_end|>", ""), ("<|im_start|>",))
    with pytest.raises(ValueError, match="no special token"):
        render_training(tokenizer, ONE)
    assert sum(render_training(tokenizer, ONE, template="role_colon").weights) > 0


def test_a_role_the_template_refuses_is_reported() -> None:
    with pytest.raises(ValueError, match=r"\['system', 'user'\]: System role not supported"):
        render_prompt(TOKENIZERS["gemma"], [SYSTEM, ONE[0]])


def test_wrong_arguments_are_reported() -> None:
    tokenizer = TOKENIZERS["chatml"]
    with pytest.raises(ValueError, match="allowed are auto, role_colon"):
        render_prompt(tokenizer, ONE, template="chatml")
    with pytest.raises(ValueError, match="allowed are all_assistant"):
        render_training(tokenizer, ONE, "assistant")  # pyrefly: ignore[bad-argument-type]
    with pytest.raises(ValueError, match="needs an assistant message"):
        render_training(tokenizer, ONE[:1])
    with pytest.raises(ValueError, match="messages is empty"):
        render_prompt(tokenizer, [])


# ------------------------------------------------------------------------------------ role: text

ROLE_COLON_TWO = [
    ("System: Be brief.\n\nUser: Hi.\n\nAssistant:", " Hé!\n\n你好 🙂\n\nUser:"),
    ("  Two?\n\nAssistant:", " assistant two\n\nUser:"),
]


def test_role_colon_without_chat_template() -> None:
    tokenizer = byte_tokenizer(None)
    messages = [SYSTEM, *TWO]
    rendered = render_training(tokenizer, messages)
    assert list(zip(*rendered, strict=True)) == spelled_out(tokenizer, ROLE_COLON_TWO)
    prompt = render_prompt(tokenizer, messages[:-1])
    assert rendered.tokens[: len(prompt)] == prompt
    assert stop_sequences(tokenizer) == ["\n\nUser:"]
    answer = rendered.tokens[len(prompt) :]
    assert parse_response(tokenizer, answer) == "assistant two"
    _, weights = render_training(tokenizer, messages, "last_assistant")
    assert weights == [0.0] * len(prompt) + [1.0] * len(answer)


def test_role_colon_adds_the_bos_that_the_tokenizer_would_add() -> None:
    tokenizer = TOKENIZERS["gemma"]
    tokens, weights = render_training(tokenizer, [SYSTEM, *ONE], template="role_colon")
    assert tokens[0] == tokenizer.bos_token_id
    expected = spelled_out(tokenizer, ROLE_COLON_TWO[:1])
    assert list(zip(tokens[1:], weights[1:], strict=True)) == expected
    prompt = render_prompt(tokenizer, [SYSTEM, ONE[0]], template="role_colon")
    assert tokens[: len(prompt)] == prompt
    assert tokenizer.bos_token_id not in render_prompt(TOKENIZERS["mistral"], ONE[:1])[1:]


def test_role_colon_turns_must_alternate() -> None:
    with pytest.raises(ValueError, match="needs a user message, got 'assistant'"):
        render_training(byte_tokenizer(None), [*ONE, ONE[1]])


def test_role_colon_response_ends_at_eos_too() -> None:
    tokenizer = TOKENIZERS["llama"]
    tokens = tokenizer.encode(" 42<|end_of_text|>", add_special_tokens=False)
    assert parse_response(tokenizer, tokens, template="role_colon") == "42"


# ----------------------------------------------------------------------------------------- datum


def test_datum_is_shifted() -> None:
    datum = datum_from_tokens([5, 6, 7, 8], [0.0, 0.0, 1.0, 0.5])
    assert datum.model_input.to_ints() == [5, 6, 7]
    inputs = {key: tensor.to_numpy() for key, tensor in datum.loss_fn_inputs.items()}
    np.testing.assert_array_equal(inputs["target_tokens"], [6, 7, 8])
    np.testing.assert_array_equal(inputs["weights"], [0.0, 1.0, 0.5])
    assert inputs["target_tokens"].dtype == np.int64
    assert inputs["weights"].dtype == np.float32
    with pytest.raises(ValueError, match="3 tokens and 2 weights"):
        datum_from_tokens([1, 2, 3], [0.0, 1.0])


# ------------------------------------------------------------------------------- embedded model


def test_embedded_tokenizer() -> None:
    tokenizer = load_tokenizer("embedded")
    assert (tokenizer.eos_token, tokenizer.pad_token_id) == ("<|im_end|>", tokenizer.eos_token_id)
    for text in tokenizer.all_special_tokens:
        assert len(tokenizer.encode(text)) == 1
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode("a 123")) == ["a", "Ġ", "1", "2", "3"]

    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    given = f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nHi.<|im_end|>\n"
    parts = [
        (given + "<|im_start|>assistant\n", "Hé!\n\n你好 🙂<|im_end|>"),
        (
            "\n<|im_start|>user\n Two?<|im_end|>\n<|im_start|>assistant\n",
            "assistant two<|im_end|>",
        ),
        ("\n", ""),
    ]
    assert list(zip(*render_training(tokenizer, TWO), strict=True)) == spelled_out(tokenizer, parts)
    assert stop_sequences(tokenizer) == [2]
    assert tokenizer.decode(render_prompt(tokenizer, ONE[:1])) == parts[0][0]
    rendered = render_training(tokenizer, TWO, template="role_colon")
    assert rendered.tokens[0] != tokenizer.bos_token_id
    learnt = [t for t, w in zip(*rendered, strict=True) if w]
    expected = " Hé!\n\n你好 🙂\n\nUser: assistant two\n\nUser:"
    assert tokenizer.decode(learnt) == expected


def test_model_name_errors(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"model_name='{tmp_path}': .* no config.json"):
        load_tokenizer(str(tmp_path))
    with pytest.raises(FileNotFoundError, match=f"'{tmp_path}/no': the folder does not exist"):
        load_tokenizer(f"{tmp_path}/no")
    with pytest.raises(ValueError, match=r"could not be fetched .* 'embedded'.* a local folder"):
        load_tokenizer("not a model name")
