"""Messages to tokens and back, for any model.

`template="auto"` is the model's own chat template, or the plain `Role: text` form where the
tokenizer has none; `template="role_colon"` asks for the plain form, which suits base models.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from training.api import Datum, ModelInput
from training.domains.base import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TrainOn = Literal["all_assistant", "last_assistant", "all_tokens"]
TEMPLATES = ("auto", "role_colon")
TRAIN_ON = ("all_assistant", "last_assistant", "all_tokens")

ROLE_COLON_END = "\n\nUser:"
_PROBE = "7Q7Q7Q"


class RenderedTokens(NamedTuple):
    """A conversation and, for each token, the weight 1.0 where the model should learn it."""

    tokens: list[int]
    weights: list[float]


class _Turn(NamedTuple):
    """Where an assistant's tokens begin and end in the rendered text, in characters."""

    start: int
    end: int


def render_prompt(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], *, template: str = "auto"
) -> list[int]:
    """The tokens after which the model writes the next assistant message.

    Raises ValueError where the template refuses the messages.
    """
    bos, text = _prompt_text(tokenizer, messages, template)
    return [*bos, *_encode(tokenizer, text)]


def passage_weights(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    passages: Sequence[tuple[str, bool]],
    *,
    template: str = "auto",
) -> list[float]:
    """A weight for each token of render_prompt(): 1.0 where it writes a passage that is marked.

    Joined, the passages are a stretch of one message. A token that reaches across a passage's
    border has a part of it to write, and so its weight. Raises ValueError where the template
    changes the passages, or the tokenizer does not tell where its tokens stand.
    """
    bos, text = _prompt_text(tokenizer, messages, template)
    joined = "".join(passage for passage, _ in passages)
    # templates strip messages
    place = text.find(joined.strip())
    if place < 0:
        raise ValueError(
            "the model's chat template rewrites the messages, so the tokens of a passage cannot be "
            f"told: {joined.strip()[:60]!r} is not in the prompt"
        )
    cut = place - (len(joined) - len(joined.lstrip()))
    spans = []
    for passage, is_marked in passages:
        if is_marked:
            spans.append((cut, cut + len(passage)))
        cut += len(passage)
    tokens = _token_spans(tokenizer, text)
    weights = [
        float(any(start < last and first < end for first, last in spans)) for start, end in tokens
    ]
    return [0.0] * len(bos) + weights


def render_training(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    train_on: TrainOn = "all_assistant",
    *,
    template: str = "auto",
) -> RenderedTokens:
    """The whole conversation with weights on what the model has to write itself.

    An assistant message's tokens run from the end of the prompt that render_prompt() makes up to
    the token that ends the turn, which is included. Raises ValueError where a template rewrites
    earlier turns or does not end the turn, since the weights could not be exact then.
    """
    _check_messages(messages)
    if train_on not in TRAIN_ON:
        raise ValueError(f"train_on={train_on!r}: allowed are {', '.join(TRAIN_ON)}")
    assistants = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if train_on != "all_tokens" and not assistants:
        roles = [message["role"] for message in messages]
        raise ValueError(f"train_on={train_on!r} needs an assistant message; the roles are {roles}")
    trained = assistants[-1:] if train_on == "last_assistant" else assistants

    if _is_role_colon(tokenizer, template):
        text, turns = _role_colon_turns(messages, trained)
        bos = _leading_bos(tokenizer)
        stop_ids: set[int] = set()
    else:
        text = _chat_text(tokenizer, messages, add_generation_prompt=False)
        bos = []
        if train_on == "all_tokens":
            turns, stop_ids = [], set()
        else:
            turns = [_chat_turn(tokenizer, messages, i, text) for i in trained]
            stop_ids = set(_stop_ids(tokenizer))

    tokens, spans = _encode_turns(tokenizer, text, turns)
    if train_on == "all_tokens":
        return RenderedTokens([*bos, *tokens], [1.0] * (len(bos) + len(tokens)))
    weights = [0.0] * len(tokens)
    for start, end in spans:
        if stop_ids:
            end = _end_of_turn(tokenizer, tokens, start, end, stop_ids)
        weights[start:end] = [1.0] * (end - start)
    return RenderedTokens([*bos, *tokens], [0.0] * len(bos) + weights)


def stop_sequences(
    tokenizer: "PreTrainedTokenizerBase", template: str = "auto"
) -> list[int] | list[str]:
    """What ends an assistant message: token ids for chat templates, strings for role_colon."""
    if _is_role_colon(tokenizer, template):
        return [ROLE_COLON_END]
    return _stop_ids(tokenizer)


def parse_response(
    tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[int], *, template: str = "auto"
) -> str:
    """The text of a sampled message, without what ended it."""
    if _is_role_colon(tokenizer, template):
        eos = tokenizer.eos_token_id
        kept = tokens[:-1] if tokens and tokens[-1] == eos else tokens
        return _decode(tokenizer, kept).split(ROLE_COLON_END)[0].strip()
    stop_ids = _stop_ids(tokenizer)
    length = len(tokens)
    while length and tokens[length - 1] in stop_ids:
        length -= 1
    return _decode(tokenizer, tokens[:length])


def datum_from_tokens(tokens: Sequence[int], weights: Sequence[float]) -> Datum:
    """A datum for the cross_entropy loss: inputs are tokens[:-1], targets and weights from [1:]."""
    if len(tokens) != len(weights) or len(tokens) < 2:
        raise ValueError(
            f"{len(tokens)} tokens and {len(weights)} weights: a datum needs equally many, and "
            "at least two, of each"
        )
    return Datum(
        ModelInput.from_ints(tokens[:-1]),
        {
            "target_tokens": np.asarray(tokens[1:], dtype=np.int64),
            "weights": np.asarray(weights[1:], dtype=np.float32),
        },
    )


def _check_messages(messages: Sequence[Message]) -> None:
    if not messages:
        raise ValueError("messages is empty: a conversation needs at least one message")


def _is_role_colon(tokenizer: "PreTrainedTokenizerBase", template: str) -> bool:
    if template not in TEMPLATES:
        raise ValueError(f"template={template!r}: allowed are {', '.join(TEMPLATES)}")
    return template == "role_colon" or tokenizer.chat_template is None


def _encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    # templates write the bos token themselves
    return list(tokenizer.encode(text, add_special_tokens=False))


def _decode(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[int]) -> str:
    text = tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _prompt_text(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], template: str
) -> tuple[list[int], str]:
    """The text after which the model writes, and the bos token where that has to come before it."""
    _check_messages(messages)
    if _is_role_colon(tokenizer, template):
        return _leading_bos(tokenizer), _role_colon_text(messages) + "\n\nAssistant:"
    return [], _chat_text(tokenizer, messages, add_generation_prompt=True)


def _token_spans(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[tuple[int, int]]:
    """For each token of _encode(text), which characters it stands for."""
    if not tokenizer.is_fast:
        raise ValueError(
            f"{type(tokenizer).__name__} does not tell where its tokens stand in the text; a "
            "tokenizer with a tokenizer.json does"
        )
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
        "offset_mapping"
    ]
    spans: list[tuple[int, int]] = []
    for start, end in offsets:
        # byte-level tokenizers leave leading spaces out of a token's offsets
        before = spans[-1][1] if spans else 0
        spans.append((min(start, before), end))
    return spans


# ------------------------------------------------------------------------------- chat templates


def _chat_text(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool,
) -> str:
    from jinja2 import TemplateError

    conversation = [{"role": m["role"], "content": m["content"]} for m in messages]
    try:
        text = tokenizer.apply_chat_template(
            conversation, tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except TemplateError as error:
        roles = [message["role"] for message in messages]
        raise ValueError(
            f"the model's chat template refuses messages with the roles {roles}: {error}. Change "
            "the messages (a system text can open the first user message) or use "
            "template=role_colon"
        ) from error
    assert isinstance(text, str)
    return text


def _chat_turn(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], i: int, text: str
) -> _Turn:
    prompt = _chat_text(tokenizer, messages[:i], add_generation_prompt=True)
    upto = _chat_text(tokenizer, messages[: i + 1], add_generation_prompt=False)
    if not upto.startswith(prompt):
        raise ValueError(
            f"message {i}: the model's chat template writes an assistant message differently from "
            f"the prompt that asks for it, so what the model has to write is not defined: the "
            f"prompt ends with {prompt[-60:]!r}, the message with {upto[-60:]!r}. Use "
            "train_on=all_tokens or template=role_colon"
        )
    if not text.startswith(upto):
        raise ValueError(
            f"message {i}: the model's chat template rewrites earlier turns when later ones "
            "follow, so training on them would differ from sampling. Use "
            "train_on=last_assistant, one example per turn, or template=role_colon"
        )
    # the newline that many templates write after the end token is not the model's
    return _Turn(len(prompt), max(len(prompt), len(upto.rstrip())))


def _stop_ids(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The token that ends an assistant message in the template, and the model's end token."""
    asked: list[Message] = [{"role": "user", "content": "a"}]
    answered: list[Message] = [*asked, {"role": "assistant", "content": _PROBE}]
    text = _chat_text(tokenizer, answered, add_generation_prompt=False)
    closing = _encode(tokenizer, text.rpartition(_PROBE)[2])
    marks = set(tokenizer.added_tokens_decoder) | set(tokenizer.all_special_ids)
    ends = [token for token in closing if token in marks][:1]
    if not ends:
        raise ValueError(
            "the model's chat template ends assistant messages with no special token, so nothing "
            "would tell the sampler to stop; use template=role_colon"
        )
    eos = tokenizer.eos_token_id
    return ends if eos is None or eos in ends else [*ends, eos]


def _end_of_turn(
    tokenizer: "PreTrainedTokenizerBase",
    tokens: list[int],
    start: int,
    end: int,
    stop_ids: set[int],
) -> int:
    """One past the token that ends the turn within tokens[start:end]."""
    last = end
    while last > start and tokens[last - 1] not in stop_ids:
        last -= 1
    if last == start or _decode(tokenizer, tokens[last:end]).strip():
        raise ValueError(
            "the model's chat template does not end this assistant message with its end token: "
            f"the turn closes with {_decode(tokenizer, tokens[max(start, end - 8) : end])!r}, the "
            f"end tokens are {sorted(stop_ids)}; use template=role_colon"
        )
    while last - 1 > start and tokens[last - 2] in stop_ids:
        last -= 1
    return last


def _encode_turns(
    tokenizer: "PreTrainedTokenizerBase", text: str, turns: Sequence[_Turn]
) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens of `text` and the token range of each turn."""
    whole = _encode(tokenizer, text)
    cuts = [cut for turn in turns for cut in turn]
    heads = [_encode(tokenizer, text[:cut]) for cut in cuts]
    if all(whole[: len(head)] == head for head in heads):
        tokens, positions = whole, [len(head) for head in heads]
    else:
        # A token reaches across the border of prompt and answer (a newline before a newline):
        # cut there, because the sampler's prompt ends there too.
        tokens, positions = [], []
        for first, last in zip([0, *cuts], [*cuts, len(text)], strict=True):
            tokens += _encode(tokenizer, text[first:last])
            positions.append(len(tokens))
        if _decode(tokenizer, tokens) != _decode(tokenizer, whole):
            raise ValueError(
                "the tokenizer writes other text when the conversation is cut between prompt and "
                "answer, so the answer's tokens cannot be told exactly: "
                f"{text[cuts[0] - 20 : cuts[0] + 20]!r}"
            )
    return tokens, list(zip(positions[0::2], positions[1::2], strict=False))[: len(turns)]


# ------------------------------------------------------------------------------------ role: text


def _role_colon_text(messages: Sequence[Message]) -> str:
    for i, (message, following) in enumerate(pairwise(messages)):
        if message["role"] == "assistant" and following["role"] != "user":
            raise ValueError(
                f"message {i + 1}: after an assistant message template=role_colon needs a user "
                f"message, got {following['role']!r}; {ROLE_COLON_END!r} is what ends a turn"
            )
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in messages)


def _role_colon_turns(
    messages: Sequence[Message], trained: Sequence[int]
) -> tuple[str, list[_Turn]]:
    text = _role_colon_text(messages)
    if messages[-1]["role"] == "assistant":
        text += ROLE_COLON_END
    turns = []
    for i in trained:
        end = len(_role_colon_text(messages[: i + 1]))
        start = end - len(f" {messages[i]['content']}")
        turns.append(_Turn(start, end + len(ROLE_COLON_END)))
    return text, turns


def _leading_bos(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    bos = tokenizer.bos_token_id
    return [bos] if bos is not None and tokenizer.encode("")[:1] == [bos] else []
