"""Examples to learn from, in the forms that files of them come in.

Chats: `messages` with role and content (OpenAI: tool calls, content parts, weight), `conversations`
with from and value (ShareGPT), `instruction`, `input` and `output` (Alpaca), or `prompt` and
`completion` as lists of messages. Raw text without a chat template: `text`, or `prompt` and
`completion` as two texts. A null counts as absent; what has no plain meaning is told by its line.

Columns beside these, such as id, source or metadata, are not read. Those that would change what a
row means (CHANGING; of a message CHANGING_MESSAGE) are refused where its form does not read them,
unless they are empty or say again what a message says. Two forms in a row are read where one says
the other again: `text` that is the rendering of an instruction, an instruction that is in the chat.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.domains.base import Message
from utils.config.entrypoint import load_yaml, raise_problems
from utils.json_files import read_json_lines, unique_keys

logger = logging.getLogger(__name__)

FORMATS = (
    "a .examples.yaml of scripts/generate.py, or JSONL whose lines have `messages` (role, "
    "content), `conversations` (from, value), `instruction` (and perhaps `input`) with `output`, "
    "`prompt` with `completion`, or `text`"
)
MAX_PROBLEMS = 10
_FORMS = ("messages", "conversations", "instruction", "completion", "text")
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "tool": "tool",
    "observation": "tool",
}
_AS_CONTENT = "write what the model is to say as content"
_AS_TEXT = "only text is read"
_AS_WEIGHT = "give the messages of assistants a weight, 0 or 1"
_AS_MESSAGES = "take it out, or write it as messages"
# fields of a row that its meaning depends on, and what to do where its form does not read them
CHANGING = {
    **dict.fromkeys(("prompt", "instruction", "input", "output"), _AS_MESSAGES),
    **dict.fromkeys(("response", "context"), _AS_MESSAGES),
    "history": "write the turns as messages",
    "system": "write it as a message",
    "system_prompt": "write it as `system`",
    "tools": "write conversations as messages",
    "functions": "write them as tools",
    "function_call": "write it as tool_calls of a message",
    "documents": _AS_MESSAGES,
    "chat_template_kwargs": "the template is given messages and tools alone",
    **dict.fromkeys(("reasoning", "reasoning_content", "thinking"), _AS_CONTENT),
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), _AS_TEXT),
    **dict.fromkeys(("weight", "weights"), _AS_WEIGHT),
}
# and of a message
CHANGING_MESSAGE = {
    "function_call": "write it as tool_calls",
    **dict.fromkeys(("refusal", "reasoning", "reasoning_content", "thinking"), _AS_CONTENT),
    **dict.fromkeys(("image", "images", "video", "videos", "audio", "audios"), _AS_TEXT),
    **dict.fromkeys(("train", "training", "trainable", "loss", "mask"), _AS_WEIGHT),
    "prefix": "take it out",
}
_CHAT_READS = ("system", "tools")
_READS = {
    "messages": _CHAT_READS,
    "conversations": _CHAT_READS,
    "instruction": ("instruction", "input", "output", *_CHAT_READS),
    "completion": ("prompt", *_CHAT_READS),
    "text": (),
}


@dataclass(frozen=True)
class Example:
    """Messages to learn the assistant's part of, or plain text (messages empty) to learn whole,
    after a `prompt` that is only read.

    `where` names it in messages; `group` is what belongs together when examples are held out;
    `held_out` is the file's own wish; `tools` is given to the chat template.
    """

    where: str
    messages: list[Message]
    text: str
    group: str
    label: str | None
    held_out: bool
    prompt: str = ""
    tools: list[dict[str, Any]] = field(default_factory=list)


def load_examples(path: Path, labels: Sequence[str]) -> list[Example]:
    """The examples of a file whose label is in `labels`, and those that have none.

    Raises FileNotFoundError, or ConfigError that tells up to ten broken entries, each with its line
    or number.
    """
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no such file"
        raise FileNotFoundError(f"examples_file={path}: {what}; it is {FORMATS}")
    problems: list[str] = []
    if path.suffix in (".yaml", ".yml"):
        records = load_yaml(path).get("examples")
        if not isinstance(records, list):
            raise ValueError(f"{path}: no list `examples` in it; needed is {FORMATS}")
        named = ((f"{path}, examples[{i}]", record) for i, record in enumerate(records))
    else:
        named = read_json_lines(path, problems)
    examples = []
    for name, record in named:
        try:
            examples.append(_example(record, name))
        except ValueError as error:
            problems.append(f"{name}: {error}")
    raise_problems(problems, at_most=MAX_PROBLEMS)
    if not examples:
        raise ValueError(f"{path}: no examples in it; needed is {FORMATS}")
    found = sorted({example.label for example in examples if example.label is not None})
    chosen = [e for e in examples if e.label is None or e.label in labels]
    if not chosen:
        raise ValueError(
            f"{path}: none of its {len(examples)} examples has a label in {list(labels)}; "
            f"its labels are {found}"
        )
    logger.info("%s: %d of %d examples", path, len(chosen), len(examples))
    return chosen


def _example(record: Any, where: str) -> Example:
    if not isinstance(record, Mapping):
        raise ValueError(f"a mapping is needed, got {type(record).__name__}")
    form = _form(record)
    held_out = record.get("held_out")
    if held_out is not None and not isinstance(held_out, bool):
        raise ValueError(f"held_out={held_out!r}: true or false is needed")
    label, subtype, group = (_optional_text(record, key) for key in ("label", "subtype", "group"))
    messages, prompt, text = _content(record, form)
    _check_nothing_lost(record, form, messages)
    return Example(
        where=where,
        messages=messages,
        text=text,
        group=subtype or group or where,
        label=label,
        held_out=bool(held_out),
        prompt=prompt,
        tools=_tools(record),
    )


def _form(record: Mapping[str, Any]) -> str:
    """The form to read a row in: its only one, or the fuller of two that say the same."""
    forms = [form for form in _FORMS if record.get(form) is not None]
    if forms == ["instruction", "text"]:
        # Alpaca's own rows have their rendering as text
        fields = {key: record.get(key) for key in ("instruction", "input", "output")}
        whole = str(record["text"])
        lacks = [k for k, v in fields.items() if not _is_empty(v) and str(v).strip() not in whole]
        if lacks:
            raise ValueError(
                f"text is not the instruction form in one piece: it lacks {', '.join(lacks)}; take "
                "out the one that is not to be learned"
            )
        return "instruction"
    if forms in (["messages", "instruction"], ["conversations", "instruction"]):
        # Magpie's, whose messages have to say all that the other fields say
        return forms[0]
    if len(forms) != 1:
        raise ValueError(
            f"exactly one of {', '.join(_FORMS)} is needed; has {sorted(map(str, record))}"
        )
    return forms[0]


def _check_nothing_lost(record: Mapping[str, Any], form: str, messages: list[Message]) -> None:
    reads = _READS[form] if messages or form != "completion" else ("prompt",)
    for key, advice in CHANGING.items():
        value = record.get(key)
        # scripts/generate.py notes there what it asked its model for
        noted = key == "prompt" and isinstance(record.get("provenance"), Mapping)
        if key in reads or noted or _is_empty(value):
            continue
        if key == "weight" and value == 1 and not isinstance(value, bool):
            continue
        if isinstance(value, str) and any(value.strip() in m["content"] for m in messages):
            continue
        raise ValueError(f"{key} is not read beside {form}, and changes what is meant; {advice}")


def _is_empty(value: Any) -> bool:
    return value is None or value in ([], {}) or (isinstance(value, str) and not value.strip())


def _optional_text(record: Mapping[str, Any], key: str, owner: str = "") -> str | None:
    value = record.get(key)
    if value is not None and (not isinstance(value, str) or not value.strip()):
        raise ValueError(f"{owner}{key}={value!r}: text is needed, or nothing")
    return value


def _text(record: Mapping[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key}={value!r}: some text is needed")
    return value


def _content(record: Mapping[str, Any], form: str) -> tuple[list[Message], str, str]:
    """Messages, or no messages, the text to read first and the text to learn."""
    if form == "text":
        return [], "", _text(record, "text")
    if form == "completion":
        prompt, completion = record.get("prompt"), record["completion"]
        if isinstance(prompt, str) and isinstance(completion, str):
            return [], _text(record, "prompt"), _text(record, "completion")
        if not isinstance(prompt, list) or not isinstance(completion, list):
            raise ValueError(
                "prompt and completion must be two texts or two lists of messages, got "
                f"{type(prompt).__name__} and {type(completion).__name__}"
            )
        asked, answered = _messages(prompt, "prompt"), _messages(completion, "completion")
        given: list[Message] = [{**message, "weight": 0} for message in asked]
        return _with_something_to_learn(_with_system(record, [*given, *answered])), "", ""
    if form == "instruction":
        return _instruction(record), "", ""
    messages = _messages(record[form], form)
    return _with_something_to_learn(_with_system(record, messages)), "", ""


def _with_system(record: Mapping[str, Any], messages: list[Message]) -> list[Message]:
    """After the row's own system message."""
    system = _optional_text(record, "system")
    if system is None:
        return messages
    if any(message["role"] == "system" for message in messages):
        raise ValueError("system: there is a system message too")
    return [{"role": "system", "content": system}, *messages]


def _instruction(record: Mapping[str, Any]) -> list[Message]:
    given = record.get("input")
    if given is not None and not isinstance(given, str):
        raise ValueError(f"input={given!r}: text is needed, or nothing")
    parts = [_text(record, "instruction").strip(), (given or "").strip()]
    asked = "\n\n".join(part for part in parts if part)
    answer = _text(record, "output")
    return _with_system(
        record, [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    )


def _messages(turns: Any, name: str) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{name} must be a list of messages, got {turns!r:.80}")
    return [_message(turn, f"{name}[{i}]") for i, turn in enumerate(turns)]


def _with_something_to_learn(messages: list[Message]) -> list[Message]:
    learned = [m for m in messages if m["role"] == "assistant" and m.get("weight", 1)]
    if not learned:
        raise ValueError("no assistant message, so there is nothing to learn")
    return messages


def _message(turn: Any, name: str) -> Message:
    if not isinstance(turn, Mapping):
        raise ValueError(f"{name} needs role and content, got {turn!r:.80}")
    forms = [
        [key for key in keys if not _is_empty(turn.get(key))]
        for keys in (("from", "value"), ("role", "content"))
    ]
    if all(forms):
        both = ", ".join(key for keys in forms for key in keys)
        raise ValueError(f"{name} has {both}: either from and value are needed or role and content")
    if {"from", "value"} <= set(turn) and forms[0]:
        turn = {**turn, "role": turn["from"], "content": turn["value"]}
    elif "role" not in turn or not ("content" in turn or turn.get("tool_calls")):
        raise ValueError(f"{name} needs role and content, got {turn!r:.80}")
    for key, advice in CHANGING_MESSAGE.items():
        # null, [] and false say nothing; false of a flag to learn by does
        if turn.get(key) or (turn.get(key) is not None and advice == _AS_WEIGHT):
            raise ValueError(f"{name}.{key} is not read; {advice}")
    said = turn["role"]
    role = _ROLES.get(said) if isinstance(said, str) else None
    if role is None:
        raise ValueError(f"{name}.role={said!r}: allowed are {', '.join(_ROLES)}")
    calls = turn.get("tool_calls")
    content = _content_text(turn.get("content"), name)
    if content is None and calls:
        content = ""
    if content is None or (not content.strip() and not calls and role != "tool"):
        raise ValueError(f"{name}.content={turn.get('content')!r}: some text is needed")
    message: Message = {"role": role, "content": content}
    if calls:
        if role != "assistant" or not isinstance(calls, list):
            raise ValueError(f"{name}.tool_calls: a list of an assistant's calls is needed")
        message["tool_calls"] = [
            _tool_call(call, f"{name}.tool_calls[{i}]") for i, call in enumerate(calls)
        ]
    weight = turn.get("weight")
    if weight is not None:
        # what is not an assistant's is never learned
        allowed = (0, 1) if role == "assistant" else (0,)
        if isinstance(weight, bool) or weight not in allowed:
            raise ValueError(f"{name}.weight={weight!r}: 0 or 1 of an assistant is needed")
        if role == "assistant":
            message["weight"] = int(weight)
    for key in ("name", "tool_call_id"):
        value = _optional_text(turn, key, f"{name}.")
        if value is None:
            continue
        if key == "tool_call_id" and role != "tool":
            raise ValueError(f"{name}.{key}={value!r}: only a tool's message has one")
        message[key] = value
    return message


def _content_text(content: Any, name: str) -> str | None:
    """The text of a content, whose parts are joined as they are."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"{name}.content={content!r:.80}: some text is needed")
    for i, part in enumerate(content):
        if not isinstance(part, Mapping) or part.get("type") != "text":
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(f"{name}.content[{i}] is of type {kind!r}: only text is read")
        if not isinstance(part.get("text"), str):
            raise ValueError(f"{name}.content[{i}].text={part.get('text')!r}: text is needed")
    return "".join(part["text"] for part in content)


def _tool_call(call: Any, name: str) -> dict[str, Any]:
    """As chat templates take it, with the arguments as an object."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise ValueError(f"{name} needs a function with name and arguments, got {call!r:.80}")
    arguments = function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments, object_pairs_hook=unique_keys)
        except ValueError as error:
            raise ValueError(f"{name}.function.arguments is no JSON ({error})") from error
    if not isinstance(arguments, Mapping):
        raise ValueError(f"{name}.function.arguments={arguments!r:.80}: an object is needed")
    read = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {**read, "id": call["id"]} if isinstance(call.get("id"), str) else read


def _tools(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    tools = record.get("tools")
    if tools is None:
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"tools must be a list of functions, got {tools!r:.80}")
    return tools
