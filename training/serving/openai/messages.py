"""Messages of a chat request as the prompt's tokens."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from training.chat import decode, render_begun_answer, render_prompt
from training.chat_template import check_names
from training.domains.base import Message
from training.serving.errors import ServingError, bad_request
from training.serving.openai.fields import unsupported, wrong_value
from training.serving.openai.thoughts import CLOSES, OPENS
from training.token_bounds import TooManyTokens

ROLES = ("system", "developer", "user", "assistant")
# of other roles' messages and of what clients send back of an answer: nothing, or not served
_UNSERVED = ("tool_calls", "function_call", "audio", "tool_call_id", "refusal")
_FIELDS = frozenset({"role", "content", "name", "reasoning_content", "annotations", *_UNSERVED})


class ChatPrompt(NamedTuple):
    """`is_thinking`: the answer begins within a thought."""

    tokens: list[int]
    is_thinking: bool


def chat_prompt(
    tokenizer: Any,
    messages: list[Any],
    *,
    template: str,
    continues: bool,
    most_tokens: int | None = None,
) -> ChatPrompt:
    """Raises ServingError 400 for messages that cannot be a prompt of this model, and TooManyTokens
    where they have more than `most_tokens` for certain."""
    if template == "auto" and tokenizer.chat_template is None:
        raise bad_request(
            "this model has no chat template; ask it through /completions, with the text that it "
            "is to continue",
            param="messages",
            code="no_chat_template",
        )
    read = [_message(at, message) for at, message in enumerate(messages)]
    is_answer = read[-1]["role"] == "assistant"
    if is_answer and not continues:
        raise bad_request(
            f"messages[{len(read) - 1}] is the assistant's: nothing is left to answer. To have it "
            "continued, send continue_final_message=true and add_generation_prompt=false",
            param="messages",
            code="invalid_value",
        )
    if continues and not is_answer:
        raise bad_request(
            f"continue_final_message=true: messages[{len(read) - 1}] has the role "
            f"{read[-1]['role']!r}, and only an assistant's message can be continued",
            param="continue_final_message",
            code="invalid_value",
        )
    try:
        check_names(tokenizer, read, (), template)
        render = render_begun_answer if continues else render_prompt
        tokens = render(tokenizer, read, template=template, most_tokens=most_tokens)
    except TooManyTokens:
        raise
    except ValueError as error:
        raise bad_request(str(error), param="messages", code="invalid_value") from error
    begun = read[-1]["content"] if continues else ""
    return ChatPrompt(tokens, _is_thinking(tokenizer, tokens, begun))


def thinks(tokenizer: Any) -> bool:
    """Whether the model's template knows thoughts, so that tags in answers mean them."""
    template = tokenizer.chat_template
    return isinstance(template, str) and OPENS in template and CLOSES in template


def _is_thinking(tokenizer: Any, tokens: list[int], begun: str) -> bool:
    if not thinks(tokenizer):
        return False
    if OPENS in begun or CLOSES in begun:
        return begun.rfind(OPENS) > begun.rfind(CLOSES)
    # what stands before the answer is the template's, whatever users wrote
    header = decode(tokenizer, tokens).removesuffix(begun)
    return header.rstrip().endswith(OPENS)


def _message(at: int, message: Any) -> Message:
    where = f"messages[{at}]"
    if not isinstance(message, Mapping):
        raise wrong_value(where, message, "an object with role and content is needed")
    given = {name: value for name, value in message.items() if value is not None}
    role = given.get("role")
    if role in ("tool", "function"):
        raise unsupported(f"{where}.role", role, ROLES)
    if role not in ROLES:
        raise wrong_value(f"{where}.role", role, f"one of {', '.join(ROLES)} is needed")
    for name, value in given.items():
        if name not in _FIELDS:
            raise bad_request(
                f"{where}.{name[:80]} is no field of a message",
                param=f"{where}.{name[:80]}",
                code="unknown_parameter",
            )
        if name in _UNSERVED and value not in ([], ""):
            raise unsupported(f"{where}.{name}", value)
    read: Message = {
        "role": "system" if role == "developer" else role,
        "content": _text(f"{where}.content", given.get("content")),
    }
    if "name" in given:
        read["name"] = _plain(f"{where}.name", given["name"])
    if "reasoning_content" in given and role == "assistant":
        thought = _plain(f"{where}.reasoning_content", given["reasoning_content"])
        read["reasoning_content"] = thought
    return read


def _text(where: str, content: Any) -> str:
    """A text, or the parts of one as they stand."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise wrong_value(where, content, "a text or a list of text parts is needed")
    return "".join(_part(f"{where}[{at}]", part) for at, part in enumerate(content))


def _part(where: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if isinstance(kind, str) and kind not in ("text", "refusal"):
        raise _not_text(where, kind)
    text = part.get("text") if kind == "text" else None
    if not isinstance(text, str):
        raise wrong_value(where, part, 'a part {"type": "text", "text": ...} is needed')
    return text


def _not_text(where: str, kind: str) -> ServingError:
    return bad_request(
        f"{where}: this server reads text, and no {kind[:80]!r}; leave the part out",
        param=where,
        code="unsupported_parameter",
    )


def _plain(where: str, value: Any) -> str:
    if not isinstance(value, str):
        raise wrong_value(where, value, "a text is needed")
    return value
