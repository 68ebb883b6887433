"""Text to tokens, so that a control token's name in outside text stays text.

Tokenizers read `<|im_end|>` as the token that ends a message wherever it stands: what a user types
or a file holds could end its message and begin one of another role. Control tokens are the
tokenizer's special tokens and those its chat template opens and closes messages with. Only what
the template itself writes becomes one. All other tokens are as the tokenizer makes them; added
tokens that are not control tokens (`<think>`, `<tool_call>` of many models) are still read.
"""

from __future__ import annotations

import json
import re
import secrets
import weakref
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from training.token_bounds import TokenBound, token_bound
from utils.json_files import texts_in

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

_PROBE = "7Q7Q7Q"


class RefusedByTemplateError(ValueError):
    """What the model's chat template does not write. `reason` leaves out template=role_colon, which
    helps where that is a setting."""

    def __init__(self, reason: str, advice: str) -> None:
        super().__init__(f"{reason}. {advice} or use template=role_colon")
        self.reason = reason


class Encoder:
    """Texts without any control token's name, as the tokenizer encodes them."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer

    def rendered(self, template: Callable[[Any], str], outside: Any) -> str:
        """What `template` makes of outside texts, also in mappings and lists, as encode() takes
        it. Raises ValueError where that cannot be told, because it changes texts it should copy."""
        return template(outside)

    def shown(self, text: str) -> str:
        """What rendered() made, for people to read."""
        return text

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        """Without the tokens that the tokenizer puts around texts: templates write their own."""
        return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens))

    def check_length(self, text: str, most_tokens: int | None) -> None:
        """Raises TooManyTokens where encode(text) would give more for certain."""
        _known(self._tokenizer).bound.check(text, most_tokens)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """For each token of encode(text), the characters it stands for, as the tokenizer tells."""
        if not self._tokenizer.is_fast:
            raise ValueError(
                f"{type(self._tokenizer).__name__} does not tell where its tokens stand in the "
                "text; a tokenizer with a tokenizer.json does"
            )
        return self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)[
            "offset_mapping"
        ]


class GuardedEncoder(Encoder):
    """For texts that hold such names.

    Encodes with a copy of the tokenizer whose control tokens have other names, which rendered()
    puts where the template wrote them; the copy does not know the old ones. What the template wrote
    is seen by marks in the outside texts. A template that only copies them makes the same of marked
    and of real texts; this is checked each time.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, names: Iterable[str]) -> None:
        if not tokenizer.is_fast:
            raise ValueError(
                f"{type(tokenizer).__name__} can only read the name of a control token as that "
                "token, not as text; a tokenizer with a tokenizer.json can"
            )
        super().__init__(tokenizer)
        # what no text can hold by intent
        secret = secrets.token_hex(16)
        longest_first = sorted(names, key=len, reverse=True)
        # the ends stay, because some tokens look at their neighbours
        new = {name: f"{name[0]}{secret}n{i}x{name[-1]}" for i, name in enumerate(longest_first)}
        self._copy, self._new = _renamed(tokenizer, new)
        self._bound = token_bound(self._copy)
        self._old = {to: name for name, to in self._new.items()}
        self._names = _any_of(longest_first)
        # Half a surrogate pair, which no text holds, in the place of one character: names are none
        # any more, and lengths, slices and letters in other cases are what they would be.
        firsts = sorted({name[0] for name in longest_first})
        self._marks = {first: chr(0xD800 + i) for i, first in enumerate(firsts)}
        self._unmark = str.maketrans({mark: first for first, mark in self._marks.items()})
        # what follows is looked at alone, since names may overlap
        self._starts = re.compile(
            "|".join(f"{re.escape(n[0])}(?={re.escape(n[1:])})" for n in longest_first)
        )
        self._names_kept = _any_of(self._new)

    def rendered(self, template: Callable[[Any], str], outside: Any) -> str:
        expected = template(outside)
        try:
            text = template(self._marked(outside))
        except ValueError:
            # it takes the real texts
            text = ""
        if text.translate(self._unmark) != expected:
            field, name = next(
                (field, found[0])
                for field, part in texts_in(outside)
                if (found := self._names.search(part))
            )
            raise RefusedByTemplateError(
                f"{field} names the control token {name!r}, and the model's chat template changes "
                "or looks into the texts that it is given, so what of the result is text and what "
                "is a control token cannot be told",
                "Take the name out of the text,",
            )
        written = self._names_kept.sub(lambda found: self._new[found[0]], text)
        return written.translate(self._unmark)

    def _marked(self, outside: Any) -> Any:
        if isinstance(outside, str):
            return self._starts.sub(lambda found: self._marks[found[0]], outside)
        if isinstance(outside, Mapping):
            return {self._marked(key): self._marked(value) for key, value in outside.items()}
        if isinstance(outside, list):
            return [self._marked(item) for item in outside]
        return outside

    def shown(self, text: str) -> str:
        return _any_of(self._old).sub(lambda found: self._old[found[0]], text)

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        return self._copy.encode(text, add_special_tokens=add_special_tokens).ids

    def check_length(self, text: str, most_tokens: int | None) -> None:
        self._bound.check(text, most_tokens)

    def offsets(self, text: str) -> list[tuple[int, int]]:
        return self._copy.encode(text, add_special_tokens=False).offsets


class _Known:
    """What is known of one tokenizer with one chat template."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.template = tokenizer.chat_template
        self.names = _control_names(tokenizer)
        self._pattern = _any_of(sorted(self.names, key=len, reverse=True)) if self.names else None
        # some tokens are looked for in what the tokenizer normalizes texts to
        tokens = tokenizer.added_tokens_decoder.values()
        looked_for = [t.content for t in tokens if t.normalized and t.content in self.names]
        self._backend = tokenizer.backend_tokenizer if tokenizer.is_fast else None
        self._normalizer = None if self._backend is None else self._backend.normalizer
        self._normalized: re.Pattern[str] | None = None
        if self._normalizer is not None and looked_for:
            self._normalized = _any_of(map(self._normalizer.normalize_str, looked_for))
        self._guarded: GuardedEncoder | None = None

    def stands_in(self, text: str) -> bool:
        if self._pattern is None:
            return False
        if self._pattern.search(text):
            return True
        if self._normalizer is None or self._normalized is None:
            return False
        return bool(self._normalized.search(self._normalizer.normalize_str(text)))

    @cached_property
    def bound(self) -> TokenBound:
        return token_bound(self._backend) if self._backend is not None else TokenBound(0)

    def guarded(self, tokenizer: PreTrainedTokenizerBase) -> GuardedEncoder:
        if self._guarded is None:
            self._guarded = GuardedEncoder(tokenizer, self.names)
        return self._guarded


_KNOWN: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, _Known] = weakref.WeakKeyDictionary()


def encoder_of(tokenizer: PreTrainedTokenizerBase, outside: Iterable[str]) -> Encoder:
    """The encoder for texts that hold the `outside` ones.

    Raises ValueError where they name a control token and the tokenizer cannot take it as text.
    """
    known = _known(tokenizer)
    if any(known.stands_in(text) for text in outside):
        return known.guarded(tokenizer)
    return Encoder(tokenizer)


def names_control_token(tokenizer: PreTrainedTokenizerBase, text: str) -> bool:
    """Whether the tokenizer alone would read some of `text` as a control token."""
    return _known(tokenizer).stands_in(text)


def _known(tokenizer: PreTrainedTokenizerBase) -> _Known:
    known = _KNOWN.get(tokenizer)
    if known is None or known.template != tokenizer.chat_template:
        known = _KNOWN[tokenizer] = _Known(tokenizer)
    return known


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(name) for name in names))


# ------------------------------------------------------------------------ which tokens they are


def _control_names(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    added = list(tokenizer.added_tokens_decoder.values())
    named = set(tokenizer.all_special_tokens)
    special = {token.content for token in added if token.special or token.content in named}
    # words and blanks among the added tokens are text, whoever writes them
    others = {t.content for t in added if not t.content.isalnum() and t.content.strip()} - special
    if others and tokenizer.chat_template is not None:
        special |= _around_messages(tokenizer, _any_of(sorted(others, key=len, reverse=True)))
    return special


def _around_messages(tokenizer: PreTrainedTokenizerBase, pattern: re.Pattern[str]) -> set[str]:
    """Which of these tokens the template puts before and after messages. Of those around an
    answer only the outermost count: `<think>` inside is the answer's."""
    user, answer = (
        {"role": "user", "content": _PROBE},
        {"role": "assistant", "content": _PROBE},
    )
    found: set[str] = set()
    opened = _render(tokenizer, [user])
    if opened is None:
        return found
    for asked in (opened, _render(tokenizer, [{"role": "system", "content": _PROBE}, user])):
        found |= set(pattern.findall(asked or ""))
    before, _, after = (_render(tokenizer, [user, answer]) or "").rpartition(_PROBE)
    for part in (before.removeprefix(opened), after):
        found |= set(pattern.findall(part)[:1])
    return found


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str | None:
    from jinja2 import TemplateError

    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False)
    except TemplateError:
        return None
    assert isinstance(text, str)
    return text


# ---------------------------------------------------------------------------- the tokenizer's copy


def _renamed(
    tokenizer: PreTrainedTokenizerBase, new: Mapping[str, str]
) -> tuple[Tokenizer, dict[str, str]]:
    """A copy of the tokenizer in which these tokens have other names and their old ids, and the
    names that were changed."""
    from tokenizers import Tokenizer

    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    model = spec["model"]
    merged = {part for merge in model.get("merges", ()) for part in _parts(merge)}
    # a piece that merges make, or a letter, is text as well as a token: nothing to tell apart
    changed = {name: to for name, to in new.items() if name not in merged and len(name) > 1}
    for token in spec["added_tokens"]:
        token["content"] = changed.get(token["content"], token["content"])
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {changed.get(piece, piece): id for piece, id in vocab.items()}
    else:
        model["vocab"] = [[changed.get(piece, piece), score] for piece, score in vocab]
    if model.get("unk_token") is not None:
        model["unk_token"] = changed.get(model["unk_token"], model["unk_token"])
    copy = Tokenizer.from_str(json.dumps(spec))
    copy.no_truncation()
    copy.no_padding()
    ids = tokenizer.backend_tokenizer
    wrong = [old for old, to in changed.items() if copy.token_to_id(to) != ids.token_to_id(old)]
    assert not wrong, f"the copy of the tokenizer has other ids for {wrong}"
    return copy, changed


def _parts(merge: str | list[str]) -> list[str]:
    """The two pieces of a merge, and what they make."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return [first, second, first + second]
