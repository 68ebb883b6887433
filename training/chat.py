"""Messages to tokens and back, for any model.

`template="auto"` is the model's own chat template, or the plain `Role: text` form where the
tokenizer has none; `template="role_colon"` asks for the plain form, which suits base models.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from training.api import Datum, ModelInput
from training.chat_template import (
    PROBE,
    Chat,
    check_names,
    check_tools,
    encoder_for,
    end_tokens,
    is_role_colon,
)
from training.control_tokens import Encoder, encoder_of
from training.domains.base import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TrainOn = Literal["all_assistant", "last_assistant", "all_tokens"]
TRAIN_ON = ("all_assistant", "last_assistant", "all_tokens")

ROLE_COLON_END = "\n\nUser:"


class RenderedTokens(NamedTuple):
    """A conversation and, for each token, the weight 1.0 where the model should learn it."""

    tokens: list[int]
    weights: list[float]


class _Turn(NamedTuple):
    """Where an assistant's tokens begin and end in the rendered text, in characters."""

    start: int
    end: int


def render_prompt(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    *,
    template: str = "auto",
    most_tokens: int | None = None,
) -> list[int]:
    """The tokens after which the model writes the next assistant message.

    Raises ValueError where the template refuses the messages, and TooManyTokens where the text is
    so long that it has more than `most_tokens` for certain, before it is tokenized.
    """
    encoder = encoder_for(tokenizer, messages)
    bos, text = _prompt_text(tokenizer, encoder, messages, template)
    encoder.check_length(text, most_tokens)
    return [*bos, *encoder.encode(text)]


def render_begun_answer(
    tokenizer: "PreTrainedTokenizerBase",
    messages: Sequence[Message],
    *,
    template: str = "auto",
    most_tokens: int | None = None,
) -> list[int]:
    """The tokens after which the model goes on with the last message, an assistant's.

    They are those of the prompt that asks for it, and of its text as it stands. Raises ValueError
    where the template refuses the messages, or does not tell where such a message starts;
    TooManyTokens as render_prompt().
    """
    encoder = encoder_for(tokenizer, messages)
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"the last message has the role {messages[-1]['role']!r}, not 'assistant'")
    begun = messages[-1]["content"]
    if is_role_colon(tokenizer, template):
        bos, prompt = leading_bos(tokenizer), _role_colon_text(messages[:-1])
        prompt += "\n\nAssistant:" if prompt else "Assistant:"
        begun = f" {begun}" if begun else ""
    else:
        bos, chat = [], Chat(tokenizer, encoder)
        if len(messages) > 1:
            prompt = chat.text(messages[:-1], add_generation_prompt=True)
        else:
            prompt = _opening(chat, chat.text(messages))
    encoder.check_length(prompt + begun, most_tokens)
    turn = _Turn(len(prompt), len(prompt + begun))
    tokens, _ = _encode_turns(tokenizer, encoder, prompt + begun, [turn])
    return [*bos, *tokens]


def render_raw_prompt(
    tokenizer: "PreTrainedTokenizerBase", text: str, *, most_tokens: int | None = None
) -> list[int]:
    """The tokens of a text that the model continues, without any template. Raises TooManyTokens as
    render_prompt()."""
    encoder = encoder_of(tokenizer, [text])
    encoder.check_length(text, most_tokens)
    return [*leading_bos(tokenizer), *encoder.encode(text)]


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
    encoder = encoder_for(tokenizer, messages)
    bos, text = _prompt_text(tokenizer, encoder, messages, template)
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
    tokens = _token_spans(encoder, text)
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
    tools: Sequence[Mapping[str, Any]] = (),
) -> RenderedTokens:
    """The whole conversation with weights on what the model has to write itself.

    An assistant message's tokens run from the end of the prompt that render_prompt() makes up to
    the token that ends the turn, which is included; a message of weight 0 is not learned. `tools`
    are function descriptions for the template. Raises ValueError where a template rewrites earlier
    turns or does not end the turn, since the weights could not be exact then, and where it leaves
    out tools, their calls or the names of those who speak.
    """
    encoder = encoder_for(tokenizer, messages, tools)
    if train_on not in TRAIN_ON:
        raise ValueError(f"train_on={train_on!r}: allowed are {', '.join(TRAIN_ON)}")
    assistants = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if train_on != "all_tokens" and not assistants:
        roles = [message["role"] for message in messages]
        raise ValueError(f"train_on={train_on!r} needs an assistant message; the roles are {roles}")
    learned = [i for i in assistants if messages[i].get("weight", 1)]
    if not learned and train_on != "all_tokens":
        raise ValueError(f"train_on={train_on!r}: every assistant message has the weight 0")
    if len(learned) < len(assistants) and train_on == "all_tokens":
        raise ValueError("train_on='all_tokens' would learn assistant messages of weight 0 too")
    trained = learned[-1:] if train_on == "last_assistant" else learned

    check_tools(tokenizer, messages, tools, template)
    check_names(tokenizer, messages, tools, template)
    if is_role_colon(tokenizer, template):
        text, turns = _role_colon_turns(messages, trained)
        bos = leading_bos(tokenizer)
        stop_ids: set[int] = set()
    else:
        chat = Chat(tokenizer, encoder, tools)
        text = chat.text(messages)
        bos = []
        if train_on == "all_tokens":
            turns, stop_ids = [], set()
        else:
            turns = [_chat_turn(chat, messages, i, text) for i in trained]
            stop_ids = set(end_tokens(tokenizer))

    tokens, spans = _encode_turns(tokenizer, encoder, text, turns)
    if train_on == "all_tokens":
        return RenderedTokens([*bos, *tokens], [1.0] * (len(bos) + len(tokens)))
    weights = [0.0] * len(tokens)
    for start, end in spans:
        if stop_ids:
            end = _end_of_turn(tokenizer, tokens, start, end, stop_ids)
        weights[start:end] = [1.0] * (end - start)
    return RenderedTokens([*bos, *tokens], [0.0] * len(bos) + weights)


def render_completion(
    tokenizer: "PreTrainedTokenizerBase", prompt: str, completion: str
) -> RenderedTokens:
    """Two raw texts, of which the second is learned with the model's end token."""
    encoder = encoder_of(tokenizer, (prompt, completion))
    turn = _Turn(len(prompt), len(prompt + completion))
    tokens, [(start, _)] = _encode_turns(tokenizer, encoder, prompt + completion, [turn])
    given = [*leading_bos(tokenizer), *tokens[:start]]
    learned = [*tokens[start:], *_end(tokenizer)]
    return RenderedTokens([*given, *learned], [0.0] * len(given) + [1.0] * len(learned))


def render_text(tokenizer: "PreTrainedTokenizerBase", text: str) -> RenderedTokens:
    """A raw text, all learned: with the tokens that the tokenizer puts around texts, and the
    model's end token, once."""
    tokens = encoder_of(tokenizer, [text]).encode(text, add_special_tokens=True)
    end = _end(tokenizer)
    # some tokenizers put the end there themselves
    if tokens[-1:] != end:
        tokens += end
    return RenderedTokens(tokens, [1.0] * len(tokens))


def stop_sequences(
    tokenizer: "PreTrainedTokenizerBase", template: str = "auto"
) -> list[int] | list[str]:
    """What ends an assistant message: token ids for chat templates, strings for role_colon."""
    if is_role_colon(tokenizer, template):
        return [ROLE_COLON_END]
    return end_tokens(tokenizer)


def parse_response(
    tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[int], *, template: str = "auto"
) -> str:
    """The text of a sampled message, without what ended it."""
    if is_role_colon(tokenizer, template):
        eos = tokenizer.eos_token_id
        kept = tokens[:-1] if tokens and tokens[-1] == eos else tokens
        return decode(tokenizer, kept).split(ROLE_COLON_END)[0].strip()
    stop_ids = end_tokens(tokenizer)
    length = len(tokens)
    while length and tokens[length - 1] in stop_ids:
        length -= 1
    return decode(tokenizer, tokens[:length])


def parse_continuation(
    tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[int], stop: Sequence[str] = ()
) -> str:
    """The text of a sample after a raw prompt, without what ended it: an end token, or `stop`."""
    ends = continuation_ends(tokenizer)
    length = len(tokens)
    while length and tokens[length - 1] in ends:
        length -= 1
    text = decode(tokenizer, tokens[:length])
    return text[: min((at for s in stop if (at := text.find(s)) >= 0), default=len(text))]


def continuation_ends(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """The tokens that are no text at the end of a sample after a raw prompt."""
    ends = set(_end(tokenizer))
    if not is_role_colon(tokenizer, "auto"):
        ends.update(end_tokens(tokenizer))
    return ends


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


def decode(tokenizer: "PreTrainedTokenizerBase", tokens: Sequence[int]) -> str:
    """The text of `tokens`, control tokens included, as it stands."""
    text = tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


def _prompt_text(
    tokenizer: "PreTrainedTokenizerBase",
    encoder: Encoder,
    messages: Sequence[Message],
    template: str,
) -> tuple[list[int], str]:
    """The text after which the model writes, and the bos token where that has to come before it."""
    if is_role_colon(tokenizer, template):
        return leading_bos(tokenizer), _role_colon_text(messages) + "\n\nAssistant:"
    return [], Chat(tokenizer, encoder).text(messages, add_generation_prompt=True)


def _token_spans(encoder: Encoder, text: str) -> list[tuple[int, int]]:
    """For each token of encoder.encode(text), which characters it stands for."""
    spans: list[tuple[int, int]] = []
    for start, end in encoder.offsets(text):
        # byte-level tokenizers leave leading spaces out of a token's offsets
        before = spans[-1][1] if spans else 0
        spans.append((min(start, before), end))
    return spans


# ------------------------------------------------------------------------------- chat templates


def _opening(chat: Chat, upto: str) -> str:
    """What stands before the answer in a conversation that begins with one."""
    asked: list[Message] = [{"role": "user", "content": PROBE}]
    header = chat.text(asked, add_generation_prompt=True).removeprefix(chat.text(asked))
    start = upto.find(header)
    if not header or start < 0:
        raise ValueError(
            "messages[0]: the conversation begins with the assistant, and the model's chat "
            "template does not tell where such a message starts; put a user message before it"
        )
    return upto[: start + len(header)]


def _chat_turn(chat: Chat, messages: Sequence[Message], i: int, text: str) -> _Turn:
    encoder = chat.encoder
    upto = chat.text(messages[: i + 1])
    prompt = chat.text(messages[:i], add_generation_prompt=True) if i else _opening(chat, upto)
    if not upto.startswith(prompt):
        raise ValueError(
            f"message {i}: the model's chat template writes an assistant message differently from "
            f"the prompt that asks for it, so what the model has to write is not defined: the "
            f"prompt ends with {encoder.shown(prompt)[-60:]!r}, the message with "
            f"{encoder.shown(upto)[-60:]!r}. Use "
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
    if last == start or decode(tokenizer, tokens[last:end]).strip():
        raise ValueError(
            "the model's chat template does not end this assistant message with its end token: "
            f"the turn closes with {decode(tokenizer, tokens[max(start, end - 8) : end])!r}, the "
            f"end tokens are {sorted(stop_ids)}; use template=role_colon"
        )
    while last - 1 > start and tokens[last - 2] in stop_ids:
        last -= 1
    return last


def _encode_turns(
    tokenizer: "PreTrainedTokenizerBase", encoder: Encoder, text: str, turns: Sequence[_Turn]
) -> tuple[list[int], list[tuple[int, int]]]:
    """The tokens of `text` and the token range of each turn."""
    whole = encoder.encode(text)
    cuts = [cut for turn in turns for cut in turn]
    heads = [encoder.encode(text[:cut]) for cut in cuts]
    if all(whole[: len(head)] == head for head in heads):
        tokens, positions = whole, [len(head) for head in heads]
    else:
        # A token reaches across the border of prompt and answer (a newline before a newline):
        # cut there, because the sampler's prompt ends there too.
        tokens, positions = [], []
        for first, last in zip([0, *cuts], [*cuts, len(text)], strict=True):
            tokens += encoder.encode(text[first:last])
            positions.append(len(tokens))
        if decode(tokenizer, tokens) != decode(tokenizer, whole):
            raise ValueError(
                "the tokenizer writes other text when the conversation is cut between prompt and "
                "answer, so the answer's tokens cannot be told exactly: "
                f"{encoder.shown(text[: cuts[0]])[-20:] + encoder.shown(text[cuts[0] :])[:20]!r}"
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


def _end(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    eos = tokenizer.eos_token_id
    return [] if eos is None else [eos]


def leading_bos(tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The bos token where the tokenizer itself puts one before raw text."""
    bos = tokenizer.bos_token_id
    # an empty text would not do: where eos is bos, it could be the end
    return [bos] if bos is not None and tokenizer.encode("Q")[:1] == [bos] else []
