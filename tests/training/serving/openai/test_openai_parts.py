"""The parts of the OpenAI face that need no model: fields, messages, thoughts, schemas, bytes.

uv run pytest tests/training/serving/openai/test_openai_parts.py
"""

import inspect
import random
from typing import Any

import numpy as np
import pytest
from chat_templates import CHATML, byte_tokenizer
from openai.resources.chat.completions import Completions as ChatCompletions
from openai.resources.completions import Completions
from tiny_chat import chat_tokenizer, sentencepiece_tokenizer

from training.api import SampledSequence
from training.chat import decode, render_prompt
from training.models import load_tokenizer
from training.serving.errors import ServingError, bad_request, busy, server_fault
from training.serving.openai.answers import AnswerForm, RunningAnswer, joined, whole_answer
from training.serving.openai.errors import error_reply
from training.serving.openai.messages import chat_prompt
from training.serving.openai.requests import chat_request, completion_request
from training.serving.openai.schemas import check_schema
from training.serving.openai.thoughts import Piece, ThoughtsApart
from training.serving.openai.token_bytes import TokenBytes

HI = {"role": "user", "content": "hi"}
CHAT = {"model": "m", "messages": [HI]}
PLAIN = {"model": "m", "prompt": "hi"}
# of Qwen3's kind: thoughts of the last answer stay
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# of R1's kind: the prompt opens the thought
THINKING_AT_ONCE = THINKING.replace("assistant\n{% endif", "assistant\n<think>\n{% endif")
SPECIALS = ("<|im_start|>", "<|im_end|>")


def thinking_tokenizer(template: str) -> Any:
    return byte_tokenizer(template, SPECIALS, eos="<|im_end|>")


def refusal(call: Any) -> ServingError:
    with pytest.raises(ServingError) as error:
        call()
    assert error.value.status == 400 and error.value.message
    return error.value


# ------------------------------------------------------------------------------------------- fields


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"temprature": 1}, "temprature", "did you mean temperature"),
        ({"max_token": 1}, "max_token", "did you mean max_tokens"),
        ({"zzz": 1}, "zzz", "known are"),
        ({"messages": None}, "messages", "missing"),
        ({"model": None}, "model", "missing"),
        ({"model": 5}, "model", "a model's name"),
        ({"messages": []}, "messages", "at least one"),
        ({"messages": "hi"}, "messages", "a list"),
        ({"temperature": 2.1}, "temperature", "from 0 to 2"),
        ({"temperature": "1"}, "temperature", "from 0 to 2"),
        ({"temperature": float("nan")}, "temperature", "from 0 to 2"),
        ({"top_p": 0}, "top_p", "above 0"),
        ({"top_k": -2}, "top_k", "from -1"),
        ({"min_p": 2}, "min_p", "from 0 to 1"),
        ({"n": 0}, "n", "1 to 128"),
        ({"n": 10**9}, "n", "1 to 128"),
        ({"n": True}, "n", "whole number"),
        ({"max_tokens": 0}, "max_tokens", "from 1"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens", "max_tokens=5"),
        ({"stop": ""}, "stop", "1 to 1000"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"stop": [1]}, "stop", "texts"),
        ({"seed": 1.5}, "seed", "whole number"),
        ({"top_logprobs": 3}, "top_logprobs", "logprobs=true"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "0 to 20"),
        ({"logprobs": 1}, "logprobs", "True or False"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream=true"),
        ({"stream": True, "stream_options": {"usage": True}}, "usage", "no field"),
        ({"stream": "yes"}, "stream", "True or False"),
        ({"response_format": {"type": "xml"}}, "response_format", "json_object"),
        ({"response_format": "json"}, "response_format", "json_object"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
            "as an object",
        ),
        ({"response_format": {"type": "json_object"}, "stop": "a"}, "stop", "cut the value"),
        ({"continue_final_message": True}, "add_generation_prompt", "has begun"),
        ({"add_generation_prompt": False}, "add_generation_prompt", "nothing asks"),
    ],
)
def test_what_a_chat_request_may_not_be(changes: Any, param: str, words: str) -> None:
    error = refusal(lambda: chat_request({**CHAT, **changes}))
    assert error.param == param and words in error.message


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"prompt": None}, "prompt", "missing"),
        ({"prompt": []}, "prompt", "token ids"),
        ({"prompt": [True]}, "prompt", "token ids"),
        ({"prompt": [-1]}, "prompt", "token ids"),
        ({"prompt": [2**31]}, "prompt", "token ids"),
        ({"prompt": [[1], "a"]}, "prompt", "token ids"),
        ({"prompt": [[1], []]}, "prompt", "token ids"),
        ({"prompt": ["a"] * 3000}, "prompt", "at most 2048"),
        ({"prompt": ["a"] * 1000, "n": 3}, "n", "2048"),
        ({"max_tokens": 0}, "max_tokens", "echo"),
        ({"best_of": 2}, "best_of", "only 1 passes"),
        ({"logprobs": 6}, "logprobs", "0 to 5"),
        ({"logprobs": True}, "logprobs", "whole number"),
        ({"suffix": "x"}, "suffix", "no suffix"),
        ({"messages": [HI]}, "messages", "no field"),
    ],
)
def test_what_a_completion_request_may_not_be(changes: Any, param: str, words: str) -> None:
    error = refusal(lambda: completion_request({**PLAIN, **changes}))
    assert error.param == param and words in error.message


@pytest.mark.parametrize(
    "changes",
    [
        {"tools": [{"type": "function"}]},
        {"functions": [{}]},
        {"tool_choice": "auto"},
        {"function_call": "auto"},
        {"parallel_tool_calls": True},
        {"reasoning_effort": "high"},
        {"audio": {}},
        {"modalities": ["text", "audio"]},
        {"prediction": {}},
        {"web_search_options": {}},
        {"logit_bias": {"5": 1}},
        {"presence_penalty": 0.1},
        {"frequency_penalty": -1},
    ],
)
def test_what_is_not_served_is_refused_by_name(changes: Any) -> None:
    """O16."""
    [name] = changes
    error = refusal(lambda: chat_request({**CHAT, **changes}))
    assert (error.param, error.code) == (name, "unsupported_parameter")


def test_what_asks_for_nothing_passes() -> None:
    """O16, O17, and null, which clients send for what they do not set."""
    nothing = {
        "tools": [],
        "tool_choice": "none",
        "parallel_tool_calls": False,
        "reasoning_effort": "none",
        "modalities": ["text"],
        "logit_bias": {},
        "presence_penalty": 0.0,
        "user": "me",
        "metadata": {"a": "b"},
        "store": True,
        "service_tier": "auto",
        "safety_identifier": "x",
        "prompt_cache_key": "y",
        "prediction": None,
        "top_logprobs": None,
        "stop": None,
        "stream": None,
    }
    assert chat_request({**CHAT, **nothing}) == chat_request(CHAT)


@pytest.mark.parametrize(
    ("create", "read", "body"),
    [
        (ChatCompletions.create, chat_request, CHAT),
        (Completions.create, completion_request, PLAIN),
    ],
)
def test_every_parameter_of_openais_client_is_known(create: Any, read: Any, body: Any) -> None:
    """By what it is: read, ignored or refused as unsupported, never as unknown."""
    names = set(inspect.signature(create).parameters)
    names -= {"self", "extra_headers", "extra_query", "extra_body", "timeout"}
    assert len(names) > 15
    for name in names:
        try:
            read({**body, name: {"no": "such value"}})
        except ServingError as error:
            assert error.code != "unknown_parameter", name


# ----------------------------------------------------------------------------------------- messages


def test_messages_become_the_templates_prompt() -> None:
    tokenizer = chat_tokenizer()
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    given = [
        {"role": "developer", "content": "be kind"},
        {"role": "user", "content": parts},
        # as openai's client gives an answer back
        {"role": "assistant", "content": "c", "refusal": None, "tool_calls": None, "audio": None},
        HI,
    ]
    wanted: list[Any] = [
        {"role": "system", "content": "be kind"},
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "c"},
        HI,
    ]
    prompt = chat_prompt(tokenizer, given, template="auto", continues=False)
    assert prompt.tokens == render_prompt(tokenizer, wanted) and not prompt.is_thinking


@pytest.mark.parametrize(
    ("message", "param", "words"),
    [
        ("hi", "messages[0]", "an object"),
        ({"content": "a"}, "messages[0].role", "one of"),
        ({"role": "robot", "content": "a"}, "messages[0].role", "one of"),
        ({"role": ["user"], "content": "a"}, "messages[0].role", "one of"),
        ({"role": "tool", "content": "a"}, "messages[0].role", "no messages[0].role"),
        ({"role": "user"}, "messages[0].content", "a text"),
        ({"role": "user", "content": 5}, "messages[0].content", "a text"),
        ({"role": "user", "content": []}, "messages[0].content", "a text"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            "messages[0].content[0]",
            "no 'image_url'",
        ),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[0].content[0]", "a part"),
        ({"role": "user", "content": "a", "tool_calls": [{}]}, "messages[0].tool_calls", "no "),
        ({"role": "user", "content": "a", "mood": "b"}, "messages[0].mood", "no field"),
        ({"role": "user", "content": "a", "name": 5}, "messages[0].name", "a text"),
        ({"role": "user", "content": "a", "name": "Bo"}, "messages", "leaves names out"),
        ({"role": "assistant", "content": "a"}, "messages", "continue_final_message"),
    ],
)
def test_what_a_message_may_not_be(message: Any, param: str, words: str) -> None:
    error = refusal(
        lambda: chat_prompt(chat_tokenizer(), [message], template="auto", continues=False)
    )
    assert error.param == param and words in error.message


def test_models_without_a_template_and_templates_that_refuse() -> None:
    """O19."""
    bare = byte_tokenizer(None, SPECIALS, eos="<|im_end|>")
    error = refusal(lambda: chat_prompt(bare, [HI], template="auto", continues=False))
    assert "/completions" in error.message
    plain = chat_prompt(bare, [HI], template="role_colon", continues=False)
    assert decode(bare, plain.tokens) == "User: hi\n\nAssistant:"
    strict = byte_tokenizer(
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}"
        + CHATML,
        SPECIALS,
        eos="<|im_end|>",
    )
    system = {"role": "system", "content": "a"}
    error = refusal(lambda: chat_prompt(strict, [system, HI], template="auto", continues=False))
    assert "no system here" in error.message


@pytest.mark.parametrize("template", ["auto", "role_colon"])
def test_a_begun_answer_ends_the_prompt(template: str) -> None:
    tokenizer: Any = chat_tokenizer()
    for messages in ([HI], []):
        begun = [*messages, {"role": "assistant", "content": "so <|im_end|> far"}]
        prompt = chat_prompt(tokenizer, begun, template=template, continues=True)
        text = decode(tokenizer, prompt.tokens)
        assert text.endswith("so <|im_end|> far")
        if messages:
            asked = chat_prompt(tokenizer, messages, template=template, continues=False).tokens
            assert prompt.tokens[: len(asked)] == asked
        # what users write is no control token, here too
        ends = prompt.tokens.count(tokenizer.convert_tokens_to_ids("<|im_end|>"))
        assert ends == (len(messages) if template == "auto" else 0)


# ----------------------------------------------------------------------------------------- thoughts


@pytest.mark.parametrize(
    ("text", "is_open", "wanted"),
    [
        ("<think>\nhm\n</think>\n\nyes", False, Piece("yes", "hm")),
        ("\n<think>hm</think>yes\n", False, Piece("yes\n", "hm")),
        ("hm\n\nhm</think>yes", True, Piece("yes", "hm\n\nhm")),
        ("yes <think>no</think>", False, Piece("yes <think>no</think>")),
        ("<thin", False, Piece("<thin")),
        ("<think>hm </thin", False, Piece("", "hm </thin")),
        ("<think></think>a</think>", False, Piece("a</think>")),
        ("", False, Piece("")),
        ("  yes", False, Piece("  yes")),
        ("hm\n", True, Piece("", "hm\n")),
    ],
)
def test_thoughts_stand_apart(text: str, is_open: bool, wanted: Piece) -> None:
    """O27: however the text is cut into pieces."""
    rng = random.Random(0)
    for _ in range(20):
        apart = ThoughtsApart(is_open=is_open)
        cuts = sorted(rng.choices(range(len(text) + 1), k=4))
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert joined([*(apart.add(part) for part in parts), apart.finish()]) == wanted


def test_prompts_that_begin_within_a_thought() -> None:
    opened = thinking_tokenizer(THINKING_AT_ONCE)
    closed = thinking_tokenizer(THINKING)
    tricky = {"role": "user", "content": "I <think>"}

    def is_thinking(tokenizer: Any, *messages: Any) -> bool:
        continues = messages[-1]["role"] == "assistant"
        found = chat_prompt(tokenizer, list(messages), template="auto", continues=continues)
        return found.is_thinking

    def begun(text: str) -> Any:
        return {"role": "assistant", "content": text}

    assert is_thinking(opened, HI) and not is_thinking(closed, HI)
    assert not is_thinking(closed, tricky)
    assert is_thinking(opened, HI, begun("so")) and not is_thinking(closed, HI, begun("so"))
    assert is_thinking(closed, HI, begun("<think>so"))
    assert not is_thinking(opened, HI, begun("so</think>a"))
    # a model that knows no thoughts has tags as text
    assert not is_thinking(chat_tokenizer(), tricky)


# ------------------------------------------------------------------------------------------ answers


@pytest.mark.parametrize("make", [chat_tokenizer, sentencepiece_tokenizer])
def test_pieces_of_an_answer_split_no_character(make: Any) -> None:
    tokenizer = make()
    text = "yes no 🙂é STOP and more"
    tokens = tokenizer.encode(text, add_special_tokens=False)
    form = AnswerForm(frozenset(), ("STOP",), None)
    running = RunningAnswer(tokenizer, form)
    pieces = [*(running.add(token) for token in tokens), running.finish()]
    assert joined(pieces).text == "yes no 🙂é "
    assert not any("\ufffd" in piece.text for piece in pieces)
    assert running.reason("length") == "stop"
    sequence = SampledSequence("length", np.array(tokens))
    assert whole_answer(tokenizer, form, sequence).piece == joined(pieces)
    # a stop that only began is text
    held = RunningAnswer(tokenizer, form)
    begun = [*(held.add(token) for token in tokenizer.encode("no STO"))]
    assert joined(begun).text == "no " and joined([*begun, held.finish()]).text == "no STO"
    # within a character, the rest is given at the end
    cut = RunningAnswer(tokenizer, AnswerForm(frozenset(), (), None))
    parts = [*(cut.add(token) for token in tokenizer.encode("a🙂")[:-1])]
    assert joined(parts).text == "a" and "\ufffd" in cut.finish().text


def test_a_completion_keeps_its_blank() -> None:
    """Decoders of SentencePiece's models drop the blank that a text begins with."""
    tokenizer = sentencepiece_tokenizer()
    prompt, more = tokenizer.encode("yes"), tokenizer.encode(" no")[-1:]
    form = AnswerForm(frozenset(), (), None, tuple(prompt))
    running = RunningAnswer(tokenizer, form)
    assert running.add(more[0]).text == " no"


@pytest.mark.parametrize("name", ["bytes", "sentencepiece", "embedded"])
def test_bytes_of_tokens_are_the_text(name: str) -> None:
    tokenizer: Any = {
        "bytes": chat_tokenizer,
        "sentencepiece": sentencepiece_tokenizer,
        "embedded": lambda: load_tokenizer("embedded"),
    }[name]()
    bytes_of = TokenBytes(tokenizer)
    for text in ("yes no", "🙂é 日本語\n\tx", "<|im_end|> a", " \u2581 b"):
        tokens = tokenizer.encode(text, add_special_tokens=False)
        data = b"".join(bytes_of(token) for token in tokens)
        # one blank of SentencePiece's is dropped at the beginning
        assert data.decode() in (decode(tokenizer, tokens), " " + decode(tokenizer, tokens))
    assert bytes_of(10_000_000) == b""


# ------------------------------------------------------------------------------------------ schemas


@pytest.mark.parametrize(
    ("schema", "pointer", "words"),
    [
        ({"type": "frob"}, "#:", "frob"),
        ({"properties": {"a/b": {"items": {"type": "zap"}}}}, "#/properties/a~1b/items:", "zap"),
        ({"anyOf": [{"type": "string"}, {"not": {}}]}, "#/anyOf/1:", "not"),
        ({"$defs": {"n": {"type": "zap"}}, "items": {"$ref": "#/$defs/n"}}, "#/$defs/n:", "zap"),
        ({"type": "string", "pattern": "("}, "#:", "regex"),
        ({"type": "array", "uniqueItems": True}, "#:", "uniqueItems"),
    ],
)
def test_unusable_schemas_are_named_by_their_place(schema: Any, pointer: str, words: str) -> None:
    """O15."""
    error = refusal(lambda: check_schema(schema))
    assert f"schema at {pointer}" in error.message and words in error.message
    assert error.param == "response_format"


def test_usable_schemas_pass() -> None:
    tree = {
        "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}}}},
        "$ref": "#/$defs/n",
    }
    for schema in ({}, {"type": "object"}, tree):
        check_schema(schema)


def test_schemas_nested_too_deep_are_refused() -> None:
    schema: dict[str, Any] = {}
    for _ in range(3000):
        schema = {"items": schema}
    refusal(lambda: check_schema(schema))


# ----------------------------------------------------------------------------------------- errors


def test_clients_are_told_whether_to_try_again() -> None:
    """O22: openai's client sends a request again after 429 and 5xx, unless it is told not to."""
    fault = error_reply(server_fault("the disk is full"))
    assert fault.status_code == 500 and fault.headers["x-should-retry"] == "false"
    later = error_reply(busy("later", retry_after=2.4))
    assert later.status_code == 429 and later.headers["retry-after"] == "2"
    assert "x-should-retry" not in later.headers
    mistake = error_reply(bad_request("no"))
    assert not {"retry-after", "x-should-retry"} & set(mistake.headers)
