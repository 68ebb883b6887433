"""The forms of example files, read row by row, and what is told where a row is wrong.

uv run pytest tests/training/test_examples.py
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from chat_templates import CHATML, GEMMA, TOKENIZERS, byte_tokenizer
from places import ROOT

from training.chat import render_prompt
from training.domains.base import Message
from training.examples import CHANGING, CHANGING_MESSAGE, Example, load_examples
from training.supervised import to_datums
from utils.config.entrypoint import ConfigError

# as Qwen's: tools in the system message, calls and replies in tags
TOOLS = (
    "{% if tools %}<|im_start|>system\n{% for t in tools %}{{ t | tojson }}{% endfor %}<|im_end|>\n"
    "{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<call>{{ c.function.name }} {{ c.function.arguments | tojson "
    "}}</call>{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "weather", "arguments": '{"city": "Oslo"}'},
}
TOOL_ROW = {
    "messages": [
        {
            "role": "user",
            "content": [{"type": "text", "text": "Rain"}, {"type": "text", "text": "?"}],
        },
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "tool_call_id": "call_1", "content": "no"},
        {"role": "assistant", "content": "No."},
    ],
    "tools": [WEATHER],
}


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def read(folder: Path, *rows: Any) -> list[Example]:
    path = folder / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return load_examples(path, ["positive"])


def learned(tokenizer: Any, example: Example, **settings: Any) -> tuple[str, str]:
    """The whole text, and what of it is learned."""
    options: dict[str, Any] = {
        "train_on": "all_assistant",
        "template": "auto",
        "max_length": 10_000,
        **settings,
    }
    (datum,) = to_datums([example], tokenizer, **options)
    targets = datum.loss_fn_inputs["target_tokens"].to_numpy().tolist()
    weights = datum.loss_fn_inputs["weights"].to_numpy()
    whole = [*datum.model_input.to_ints()[:1], *targets]
    kept = [t for t, w in zip(targets, weights, strict=True) if w]
    return tokenizer.decode(whole), tokenizer.decode(kept)


@pytest.mark.parametrize(("name", "what"), [("", "a folder"), ("x.yaml", "no such file")])
def test_what_is_no_file_is_told(name: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=f"examples_file={tmp_path / name}: {what}; it is"):
        load_examples(tmp_path / name, [])


def test_forms_of_one_conversation_are_the_same_messages(tmp_path: Path) -> None:
    chat: list[Any] = [{"role": "system", "content": "S"}, user("a?"), assistant("b")]
    sharegpt = [{"from": "human", "value": "a?"}, {"from": "gpt", "value": "b"}]
    forms = read(
        tmp_path,
        {"messages": chat, "text": None, "held_out": None},
        {"messages": [{"role": "developer", "content": "S"}, *chat[1:]], "label": None},
        {"conversations": [{"from": "system", "value": "S"}, *sharegpt]},
        {"conversations": sharegpt, "system": "S"},
        {"conversations": chat},
        {"instruction": "a?", "input": None, "output": "b", "system": "S", "history": []},
        {"messages": [*chat[:2], assistant([{"type": "text", "text": "b"}])]},  # pyrefly: ignore
    )
    assert [example.messages for example in forms] == [chat] * len(forms)


def test_a_row_that_says_the_same_in_two_forms_is_read_once(tmp_path: Path) -> None:
    """As those of tatsu-lab/alpaca and of Magpie are."""
    alpaca = {"instruction": "Add these.", "input": "2 and 3", "output": " 5 \n"}
    text = "Below is a task.\n\n### Task:\nAdd these.\n\n### Input:\n2 and 3\n\n### Response:\n 5"
    turns = [{"from": "human", "value": "Why?"}, {"from": "gpt", "value": "So."}]
    magpie = {"instruction": "Why?", "response": "So.", "input_length": 4}
    examples = read(
        tmp_path,
        {**alpaca, "text": text},
        {"instruction": "Why?", "input": "", "output": "So.", "text": "Why? So."},
        {"conversations": turns, **magpie},
        {"conversations": turns, "instruction": "Why?", "output": "So.", "input": ""},
        {"messages": [user("Why?"), assistant("So.")], **magpie},
    )
    asked = [user("Add these.\n\n2 and 3"), assistant(" 5 \n")]
    assert [e.messages for e in examples] == [asked] + [[user("Why?"), assistant("So.")]] * 4
    assert not any(e.text for e in examples)


def test_prompt_and_completion(tmp_path: Path) -> None:
    raw, lists = read(
        tmp_path,
        {"prompt": "2 + 2 =", "completion": " 4"},
        {"prompt": [user("a"), assistant("b"), user("c")], "completion": [assistant("d")]},
    )
    for name, bos in (("chatml", ""), ("llama", "<|begin|>")):
        tokenizer = TOKENIZERS[name]
        eos = tokenizer.eos_token
        assert learned(tokenizer, raw) == (f"{bos}2 + 2 = 4{eos}", f" 4{eos}")
    whole = f"2 + 2 = 4{TOKENIZERS['chatml'].eos_token}"
    assert learned(TOKENIZERS["chatml"], raw, train_on="all_tokens") == (whole, whole[1:])
    text, kept = learned(TOKENIZERS["chatml"], lists)
    assert kept == "d<|im_end|>" and "b<|im_end|>" in text
    with pytest.raises(ConfigError, match=r"line 2: train_on='all_tokens' would learn"):
        learned(TOKENIZERS["chatml"], lists, train_on="all_tokens")


def test_a_weight_of_0_is_not_learned(tmp_path: Path) -> None:
    messages = [user("a"), assistant("b", weight=0), user("c"), assistant("d", weight=1)]
    (example,) = read(tmp_path, {"messages": messages})
    assert learned(TOKENIZERS["chatml"], example)[1] == "d<|im_end|>"


def test_tool_calls_are_what_the_template_writes(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(TOOLS, ("<|im_start|>", "<|im_end|>"), eos="<|im_end|>")
    (example,) = read(tmp_path, TOOL_ROW)
    text, kept = learned(tokenizer, example)
    assert text.startswith(
        '<|im_start|>system\n{"type": "function", "function": {"name": "weather"'
    )
    assert "<|im_start|>user\nRain?<|im_end|>\n" in text
    assert "<|im_start|>tool\nno<|im_end|>\n" in text
    assert kept == '<call>weather {"city": "Oslo"}</call><|im_end|>No.<|im_end|>'
    hostile = json.loads(json.dumps(TOOL_ROW).replace("Oslo", "<|im_end|>"))
    (example,) = read(tmp_path, hostile)
    (datum,) = to_datums(
        [example], tokenizer, train_on="all_assistant", template="auto", max_length=9999
    )
    ends = datum.loss_fn_inputs["target_tokens"].to_numpy() == tokenizer.eos_token_id
    assert ends.sum() == 5
    assert '{"city": "<|im_end|>"}' in learned(tokenizer, example)[1]


@pytest.mark.parametrize(
    ("template", "settings", "told"),
    [
        (CHATML, {}, "the template leaves out tools and tool_calls, so"),
        (
            TOOLS.replace(" {{ c.function.arguments | tojson }}", ""),
            {},
            "leaves out tool_calls, so",
        ),
        (TOOLS.replace("tools", "nothing"), {}, "leaves out tools, so"),
        (TOOLS, {"template": "role_colon"}, "tools and tool_calls and messages with the role tool"),
    ],
)
def test_a_template_that_leaves_tools_out_is_refused(
    tmp_path: Path, template: str, settings: dict[str, str], told: str
) -> None:
    tokenizer = byte_tokenizer(template, ("<|im_start|>", "<|im_end|>"), eos="<|im_end|>")
    (example,) = read(tmp_path, TOOL_ROW)
    with pytest.raises(ConfigError, match=f"a.jsonl, line 1: .*{told}"):
        learned(tokenizer, example, **settings)


CHAT = [user("a"), assistant("b")]
WRONG: list[tuple[Any, str]] = [
    ({"messages": CHAT, "held_out": "false"}, "held_out='false': true or false is needed"),
    ({"messages": CHAT, "held_out": 0}, "held_out=0: true or false"),
    ({"messages": CHAT, "subtype": 0}, "subtype=0: text is needed, or nothing"),
    ({"messages": CHAT, "group": False}, "group=False: text is needed"),
    ({"messages": CHAT, "label": 1}, "label=1: text is needed"),
    ({"messages": CHAT, "label": " "}, "label=' ': text is needed"),
    ({"messages": CHAT, "text": "a"}, "exactly one of messages"),
    ({"prompt": "a"}, "exactly one of messages"),
    ({"instruction": "a", "output": "b", "text": "a c"}, "it lacks output; take out the one"),
    ({"instruction": "a", "input": "i", "output": "b", "text": "b"}, "lacks instruction, input;"),
    ({"messages": CHAT, "instruction": "c"}, "instruction is not read beside messages"),
    ({"messages": CHAT, "instruction": 3}, "instruction is not read beside messages"),
    ({"messages": CHAT, "instruction": "a", "response": "c"}, "response is not read beside mess"),
    ({"messages": CHAT, "instruction": "a", "text": "a b"}, "exactly one of messages"),
    ({"messages": {}}, "messages must be a list of messages, got {}"),
    ({"messages": []}, "messages must be a list of messages"),
    ({"messages": [["user", "a"]]}, r"messages[0] needs role and content"),
    ({"messages": [{"role": ["user"], "content": "a"}]}, "messages[0].role=['user']: allowed"),
    ({"messages": [user("a"), {"role": "assistant", "content": None}]}, "messages[1].content=None"),
    ({"messages": [user("a"), {"role": "assistant", "content": 3}]}, "messages[1].content=3"),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, assistant("b")]},
        "messages[0].content[0] is of type 'image_url': only text is read",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
        "messages[0].content[0].text=1: text",
    ),
    ({"messages": [user("a"), assistant("b", refusal="no")]}, "messages[1].refusal is not read"),
    (
        {"messages": [user("a"), assistant("b", reasoning_content="hm")]},
        "messages[1].reasoning_content is not read",
    ),
    ({"messages": [user("a"), assistant("b", weight=0.5)]}, "messages[1].weight=0.5: 0 or 1"),
    ({"messages": [user("a"), assistant("b", weight=0)]}, "nothing to learn"),
    ({"messages": [user("a"), assistant("", tool_calls=[3])]}, "messages[1].tool_calls[0] needs a"),
    (
        {"messages": [assistant("", tool_calls=[{"function": {"name": "f", "arguments": "{"}}])]},
        "messages[0].tool_calls[0].function.arguments is no JSON",
    ),
    (
        {"messages": [assistant("", tool_calls=[{"function": {"name": "f", "arguments": "3"}}])]},
        "messages[0].tool_calls[0].function.arguments=3: an object is needed",
    ),
    ({"messages": CHAT, "tools": "f"}, "tools must be a list of functions"),
    ({"messages": CHAT, "functions": [{"name": "f"}]}, "functions is not read"),
    (
        {"conversations": [{"from": "function_call", "value": "x"}]},
        "conversations[0].role='function_c",
    ),
    ({"text": "a", "prompt": "b"}, "prompt is not read beside text, and changes what is meant"),
    ({"text": "ab", "prompt": "a"}, "prompt is not read beside text"),
    ({"text": "a", "system": "b"}, "system is not read beside text"),
    ({"text": "a", "tools": [WEATHER]}, "tools is not read beside text"),
    ({"text": "a", "weight": 0}, "weight is not read beside text"),
    ({"prompt": "a", "completion": "b", "system": "c"}, "system is not read beside completion"),
    ({"messages": CHAT, "weight": 0.5}, "weight is not read beside messages, and changes what is "),
    ({"messages": CHAT, "weight": True}, "weight is not read"),
    ({"messages": CHAT, "prompt": "c"}, "prompt is not read beside messages"),
    ({"messages": CHAT, "system_prompt": "c"}, "system_prompt is not read beside messages, and"),
    ({"messages": CHAT, "images": ["a.png"]}, "images is not read beside messages"),
    ({"messages": CHAT, "chat_template_kwargs": {"a": 1}}, "chat_template_kwargs is not read"),
    ({"instruction": "a", "output": "b", "context": "c"}, "context is not read beside instruction"),
    ({"messages": CHAT, "history": [["c", "d"]]}, "history is not read beside messages"),
    (
        {"messages": [{**user("a"), "from": "gpt", "value": "b"}, *CHAT]},
        "messages[0] has from, value, role, content: either from",
    ),
    ({"messages": [{**user("a"), "from": "gpt"}, *CHAT]}, "messages[0] has from, role, content"),
    ({"messages": [user("a"), assistant("b", train=False)]}, "messages[1].train is not read; give"),
    ({"messages": [user("a"), assistant("b", name=3)]}, "messages[1].name=3: text is needed"),
    ({"messages": [{**user("a"), "weight": 1}, *CHAT]}, "messages[0].weight=1: 0 or 1 of an assi"),
    (
        {"messages": [user("a"), assistant("b", tool_call_id="c")]},
        "messages[1].tool_call_id='c': only a tool's",
    ),
    (
        {"messages": [assistant("", tool_calls=[{"name": "f", "arguments": '{"a":1,"a":2}'}])]},
        "messages[0].tool_calls[0].function.arguments is no JSON (repeated keys ['a'])",
    ),
    ({"conversations": CHAT, "system": 1}, "system=1: text is needed"),
    ({"messages": [{"role": "system", "content": "a"}, *CHAT], "system": "b"}, "system: there is"),
    ({"instruction": 3, "output": "a"}, "instruction=3: some text is needed"),
    ({"instruction": "a", "input": 0, "output": "a"}, "input=0: text is needed, or nothing"),
    ({"instruction": "a", "output": None}, "output=None: some text is needed"),
    ({"instruction": "a", "output": "b", "history": [["c", "d"]]}, "history is not read"),
    ({"prompt": "a", "completion": [assistant("b")]}, "must be two texts or two lists of messages"),
    ({"prompt": [user("a")], "completion": [user("b")]}, "no assistant message"),
    ({"text": 3}, "text=3: some text is needed"),
]


@pytest.mark.parametrize(("row", "told"), WRONG)
def test_what_has_no_plain_meaning_is_told_by_line(tmp_path: Path, row: Any, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, {"text": "fine"}, row)
    (problem,) = caught.value.problems
    assert problem.startswith(f"{tmp_path}/a.jsonl, line 2: ")
    assert told in problem


def test_what_data_sets_carry_beside_the_form_is_fine(tmp_path: Path) -> None:
    """As in UltraChat, OpenHermes, SlimOrca, Alpaca, Dolly and what scripts/generate.py writes."""
    more = {"id": 3, "source": "s", "metadata": {"a": 1}, "score": 0.5, "category": "qa"}
    turns: list[Any] = [
        {"from": "human", "value": "a", "weight": 0, "role": None, "content": None},
        {"from": "gpt", "value": "b", "weight": 1, "train": None, "images": []},
    ]
    examples = read(
        tmp_path,
        {"messages": CHAT, **more, "prompt": "a", "prompt_id": "x", "chosen": CHAT, "images": []},
        {"conversations": turns, **more, "system_prompt": None, "model": "m", "weight": 1.0},
        {"instruction": "a", "output": "b", "input": "", "context": "", "history": None, **more},
        {"messages": CHAT, "prompt": "a premise", "provenance": {"model": "m"}},
        {"text": "a", "prompt": "a premise", "provenance": {"model": "m"}, **more},
    )
    said = [[(m["role"], m["content"]) for m in e.messages] for e in examples]
    assert said == [[("user", "a"), ("assistant", "b")]] * 4 + [[]]
    assert not any(e.prompt for e in examples)


def test_the_docs_name_the_fields_that_are_refused() -> None:
    text = (ROOT / "docs" / "examples.md").read_text(encoding="utf-8")
    of_row, of_message = (
        set(re.findall(r"`(\w+)`", line.partition(". ")[0].partition("; and")[0]))
        for line in text.splitlines()
        if line.startswith("- of ")
    )
    assert (of_row, of_message) == (set(CHANGING), set(CHANGING_MESSAGE))


def test_an_observation_is_what_a_tool_answers(tmp_path: Path) -> None:
    turns = [("human", "a"), ("gpt", "<call>"), ("observation", "3"), ("gpt", "b")]
    (example,) = read(tmp_path, {"conversations": [{"from": f, "value": v} for f, v in turns]})
    tokenizer = TOKENIZERS["chatml"]
    assert "<|im_start|>tool\n3<|im_end|>" in learned(tokenizer, example)[0]
    without = byte_tokenizer(
        CHATML.replace("for m in messages", "for m in messages if m.role != 'tool'"),
        ("<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
    )
    with pytest.raises(ConfigError, match=r"line 1: the template leaves out messages with the rol"):
        learned(without, example)


def test_names_are_given_to_templates_that_write_them(tmp_path: Path) -> None:
    (example,) = read(tmp_path, {"messages": [{**user("a"), "name": "Ann"}, assistant("b")]})
    takes = byte_tokenizer(
        CHATML.replace("{{ m.role }}", "{{ m.role }}{{ ' ' ~ m.name if m.name }}"),
        ("<|im_start|>", "<|im_end|>"),
        eos="<|im_end|>",
    )
    assert learned(takes, example)[0].startswith("<|im_start|>user Ann\na<|im_end|>")
    for settings in ({}, {"template": "role_colon"}):
        with pytest.raises(ConfigError, match=r"line 1: messages\[0\]\.name='Ann': the template l"):
            learned(TOKENIZERS["chatml"], example, **settings)


def test_a_system_text_beside_prompt_and_completion_opens_the_chat(tmp_path: Path) -> None:
    row = {"prompt": [user("a")], "completion": [assistant("b")], "system": "S"}
    (example,) = read(tmp_path, row)
    assert [m["content"] for m in example.messages] == ["S", "a", "b"]


def test_what_the_template_or_tokenizer_refuses_is_told_by_line(tmp_path: Path) -> None:
    system = {"role": "system", "content": "S"}
    examples = read(
        tmp_path,
        {"messages": CHAT},
        {"messages": [system, *CHAT]},
        {"messages": [assistant("a")]},
        {"text": "a"},
    )
    tokenizer = byte_tokenizer(GEMMA, ("<start_of_turn>", "<end_of_turn>"), eos=None)
    with pytest.raises(ConfigError) as caught:
        to_datums(examples, tokenizer, train_on="all_assistant", template="auto", max_length=999)
    told = caught.value.problems
    assert told[0].startswith(f"{tmp_path}/a.jsonl, line 2: the model's chat template refuses")
    assert told[1].startswith(f"{tmp_path}/a.jsonl, line 4: 1 tokens and 1 weights")
    assert len(told) == 2


def test_half_a_surrogate_pair_is_told_by_line_and_field(tmp_path: Path) -> None:
    row = {"messages": [user("a"), assistant("b\ud83d")]}
    with pytest.raises(ConfigError, match=r"line 1: messages\[1\]\.content holds half a surrogate"):
        read(tmp_path, row)
    messages: list[Message] = [{"role": "user", "content": "b\ud83d"}]
    with pytest.raises(ValueError, match=r"messages\[0\]\.content holds .* at character 2"):
        render_prompt(TOKENIZERS["chatml"], messages)


DEFAULT_SYSTEM = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nHelp.<|im_end|>\n{% endif %}" + CHATML
)
ALTERNATING = (
    "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}" + CHATML
)


@pytest.mark.parametrize("template", [CHATML, DEFAULT_SYSTEM])
def test_a_conversation_that_the_assistant_begins(tmp_path: Path, template: str) -> None:
    (example,) = read(tmp_path, {"messages": [assistant("Hi"), user("a"), assistant("b")]})
    tokenizer = byte_tokenizer(template, ("<|im_start|>", "<|im_end|>"), eos="<|im_end|>")
    text, kept = learned(tokenizer, example)
    assert kept == "Hi<|im_end|>b<|im_end|>"
    assert "<|im_start|>assistant\nHi<|im_end|>\n<|im_start|>user\na" in text
    assert learned(tokenizer, example, template="role_colon")[1] == " Hi\n\nUser: b\n\nUser:"


def test_where_the_template_wants_the_user_first_it_is_told(tmp_path: Path) -> None:
    (example,) = read(tmp_path, {"messages": [assistant("Hi"), user("a"), assistant("b")]})
    tokenizer = byte_tokenizer(ALTERNATING, ("<|im_start|>", "<|im_end|>"), eos="<|im_end|>")
    with pytest.raises(ConfigError, match=r"line 1: .*\['assistant', 'user', .*user first"):
        learned(tokenizer, example)
    # no prompt asks for the first message here
    with pytest.raises(ConfigError, match=r"line 1: messages\[0\]: the conversation begins with"):
        learned(TOKENIZERS["mistral"], example)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_a_file_without_rows_is_called_so(text: str, tmp_path: Path) -> None:
    path = tmp_path / "empty.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"empty\.jsonl: no examples in it; needed is"):
        load_examples(path, [])
