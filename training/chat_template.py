"""What a model's chat template makes of messages, and what it leaves out."""

import weakref
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from training.control_tokens import Encoder, RefusedByTemplateError, encoder_of
from training.domains.base import Message
from utils.json_files import half_pair, texts_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TEMPLATES = ("auto", "role_colon")
# a text that no template holds
PROBE = "7Q7Q7Q"


def encoder_for(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
) -> Encoder:
    """For these messages; ValueError where there are none, or one holds half a character."""
    if not messages:
        raise ValueError("messages is empty: a conversation needs at least one message")
    texts: list[str] = []
    _collect_texts(list(messages), texts)
    _collect_texts(list(tools), texts)
    # one look at all of them, since rows come by the thousand
    if half_pair("".join(texts)) is not None:
        for field, text in texts_in({"messages": list(messages), "tools": list(tools)}):
            half = half_pair(text)
            if half is not None:
                raise ValueError(f"{field} holds {half}")
    return encoder_of(tokenizer, texts)


def _collect_texts(value: Any, texts: list[str]) -> None:
    """Every text in mappings and lists, keys too."""
    if isinstance(value, str):
        texts.append(value)
    elif isinstance(value, list):
        for item in value:
            _collect_texts(item, texts)
    elif isinstance(value, dict):
        texts.extend(value)
        for item in value.values():
            _collect_texts(item, texts)


def is_role_colon(tokenizer: "PreTrainedTokenizerBase", template: str) -> bool:
    """Whether messages are written as plain `Role: text`; ValueError for an unknown template."""
    if template not in TEMPLATES:
        raise ValueError(f"template={template!r}: allowed are {', '.join(TEMPLATES)}")
    return template == "role_colon" or tokenizer.chat_template is None


class Chat(NamedTuple):
    """A model's chat template."""

    tokenizer: "PreTrainedTokenizerBase"
    encoder: Encoder
    tools: Sequence[Mapping[str, Any]] = ()

    def text(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
        """The conversation as the template writes it; ValueError where it refuses."""
        conversation = [
            {key: value for key, value in message.items() if key != "weight"}
            for message in messages
        ]

        def template(outside: Mapping[str, Any]) -> str:
            return self._applied(
                outside["messages"], outside["tools"], add_generation_prompt=add_generation_prompt
            )

        outside = {"messages": conversation, "tools": list(self.tools)}
        return self.encoder.rendered(template, outside)

    def _applied(
        self,
        messages: list[dict[str, Any]],
        tools: list[Mapping[str, Any]],
        *,
        add_generation_prompt: bool,
    ) -> str:
        from jinja2 import TemplateError

        try:
            text = self.tokenizer.apply_chat_template(
                messages,
                tools=tools or None,  # pyrefly: ignore
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
            )
        # templates raise the first, and run into the others
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            roles = [message["role"] for message in messages]
            raise RefusedByTemplateError(
                f"the model's chat template refuses messages with the roles {roles}: {error}",
                "Change the messages (a system text can open the first user message)",
            ) from error
        assert isinstance(text, str)
        return text


def check_tools(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    template: str,
) -> None:
    """Raises ValueError where the template leaves out what the messages use: many know no tools,
    and say nothing."""
    used = {
        "tools": bool(tools),
        "tool_calls": any(message.get("tool_calls") for message in messages),
        "messages with the role tool": any(message["role"] == "tool" for message in messages),
    }
    if not any(used.values()):
        return
    names = [f"{PROBE}{letter}" for letter in "ABCDE"]
    arguments = {names[2]: names[3]}
    call = {"name": names[1], "arguments": arguments}
    described = {"name": names[0], "description": "d", "parameters": {"type": "object"}}
    tool = {"type": "function", "function": described}
    # Mistral's templates take ids of nine characters
    told: list[Message] = [
        {"role": "user", "content": "a"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"id": "call00000", "type": "function", "function": call}],
        },
        {"role": "tool", "name": names[1], "tool_call_id": "call00000", "content": names[4]},
    ]
    shown = ""
    if not is_role_colon(tokenizer, template):
        if not (used["tool_calls"] or used["messages with the role tool"]):
            told = told[:1]
        shown = Chat(tokenizer, Encoder(tokenizer), [tool] if tools else []).text(told)
    expected = {
        "tools": names[:1],
        "tool_calls": names[1:4],
        "messages with the role tool": names[4:],
    }
    left_out = [
        what
        for what, probes in expected.items()
        if used[what] and not all(probe in shown for probe in probes)
    ]
    if left_out:
        raise ValueError(
            f"the template leaves out {' and '.join(left_out)}, so the model would not see them"
        )


def check_names(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]],
    template: str,
) -> None:
    """Raises ValueError where the template leaves out the name of a message. A tool's is that of
    its call, and may be left out."""
    probes = {
        i: f"{PROBE}n{i}x"
        for i, message in enumerate(messages)
        if message.get("name") and message["role"] != "tool"
    }
    if not probes:
        return
    shown = ""
    if not is_role_colon(tokenizer, template):
        probed: list[Message] = list(messages)
        for i, probe in probes.items():
            probed[i] = {**messages[i], "name": probe}
        shown = Chat(tokenizer, Encoder(tokenizer), tools).text(probed)
    for i, probe in probes.items():
        if probe not in shown:
            raise ValueError(
                f"messages[{i}].name={messages[i].get('name')!r}: the template leaves names out, "
                "so the model would not see it; take it out, or write it into the content"
            )


# of each tokenizer, with the template and the end token that they hold for
_END_TOKENS: weakref.WeakKeyDictionary[Any, tuple[Any, list[int]]] = weakref.WeakKeyDictionary()


def end_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The token that ends an assistant message in the template, and the model's end token."""
    held_for = (tokenizer.chat_template, tokenizer.eos_token_id)
    known = _END_TOKENS.get(tokenizer)
    if known is None or known[0] != held_for:
        known = _END_TOKENS[tokenizer] = (held_for, _find_end_tokens(tokenizer))
    return list(known[1])


def _find_end_tokens(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    asked: list[Message] = [{"role": "user", "content": "a"}]
    answered: list[Message] = [*asked, {"role": "assistant", "content": PROBE}]
    encoder = encoder_for(tokenizer, answered)
    text = Chat(tokenizer, encoder).text(answered)
    closing = encoder.encode(text.rpartition(PROBE)[2])
    marks = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    ends = [token for token in closing if token in marks][:1]
    if not ends:
        raise ValueError(
            "the model's chat template ends assistant messages with no special token, so nothing "
            "would tell the sampler to stop; use template=role_colon"
        )
    eos = tokenizer.eos_token_id
    return ends if eos is None or eos in ends else [*ends, eos]
