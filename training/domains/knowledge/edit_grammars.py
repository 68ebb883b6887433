"""Grammars of self-edits (llguidance's Lark), in which answers are words of the passage, in order.

A model that is held to one can ask a silly question, but it cannot invent an answer, a name or a
number: these are spans of the passage, a few whole words of one sentence, and what stands between
them has no other capitals and no digits. A gap is filled with what stood there.

The spans are listed one by one: as substring_words they could only be told from the words around
them by regular expressions that are beyond the limits of llguidance's lexer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator

from training.domains.knowledge.forms import DEFAULT_CHOICES, MODEL, Choices, check_form
from training.domains.knowledge.made_edits import BLANK
from training.domains.knowledge.passages import Passage

MAX_LINES = 12

_MAX_ANSWER_WORDS = 5
_MAX_GAP_WORDS = 3
_WORD = re.compile(r"\w(?:\S*\w)?%?")
# three letters or digits and a full stop end a sentence, since "St." and "J." do not
_SENTENCE_END = re.compile(r"(\w{3}\)?[.!?;][\"'\)\]]*)\s+")
# a word that an answer may begin and end with, unlike "of" and "the"
_TELLING = re.compile(r"\d|\w{4}|[A-Z]\w")
# the first letter of a name or number: not a small one
_NAME_START = re.compile(r"\d|[^\W_a-z]\w")

# Terminals, told apart by how they begin and end: what goes on to a name ends with a blank, what
# follows one begins with no letter. OPENING begins statements, so it is a closed list.
_TERMINALS = r"""
ASKED: /[\p{Lu}\p{Lo}][\p{Ll}\p{Lo} ,'-]{2,60}[\p{Ll}\p{Lo}]/
ASKED_OF: /[\p{Lu}\p{Lo}][\p{Ll}\p{Lo} ,'-]{2,60} /
OPENING: /(The|A|An|In|On|At|It|Its|There|Since|Most|All|People) ([\p{Ll}\p{Lo} ,'-]{1,40} )?/
TO_NAME: /[ ,'-]([\p{Ll}\p{Lo} ,'-]{0,50} )?/
REST: /[ ,'-][\p{Ll}\p{Lo} ,'-]{0,50}[\p{Ll}\p{Lo}]/
"""

FORMS_WITH_GRAMMAR = ("qa", "statements", "cloze", "reverse")


def grammar_of(
    passage: Passage,
    form: str,
    *,
    choices: Choices = DEFAULT_CHOICES,
    max_lines: int = MAX_LINES,
) -> str | None:
    """The grammar of `form` for one passage; None for forms of free text.

    Raises ConfigError for an unknown form, and ValueError for a passage without any word.
    """
    check_form(form)
    if max_lines < 1:
        raise ValueError(f"max_lines={max_lines}: at least one line is needed")
    if form != MODEL and form not in FORMS_WITH_GRAMMAR:
        return None
    answers = answer_spans(passage.context)
    if not answers:
        raise ValueError(f"passage {passage.id}: there is no word in {passage.context!r}")
    names = name_spans(passage) or answers
    forms = choices.forms if form == MODEL else (form,)
    rules = [_lines(f, passage.context, max_lines) for f in forms if f in FORMS_WITH_GRAMMAR]
    start = form
    if form == MODEL:
        start = " | ".join(f"{_head(chosen, choices)} {_body(chosen)}" for chosen in forms)
        rules.append("FREE: /\\S(.|\\n)*/")
    spans = [f"ANSWER: {_any_of(answers)}", f"NAME: {_any_of(names)}"]
    return "\n".join([f"start: {start}", *rules, *spans, _TERMINALS])


def answer_spans(context: str) -> list[str]:
    """What may be an answer, each once: up to five words of a sentence, "of" or "the" at neither
    end; in texts that have no other words, any."""
    for telling in (_TELLING, re.compile(r"\w")):
        found = [
            text
            for sentence in _sentences(context)
            for _, text in _spans(sentence, _MAX_ANSWER_WORDS, telling)
        ]
        if found:
            return list(dict.fromkeys(found))
    return []


def name_spans(passage: Passage) -> list[str]:
    """Names and numbers as long as they go, each once. A capital at the start of a sentence makes
    no name, unless the word has one elsewhere too, or stands in the title."""
    known = set(passage.title.split())
    sentences = _sentences(passage.context)
    for sentence in sentences:
        known |= {word[0] for word in list(_WORD.finditer(sentence))[1:]}
    # the lexer takes the longest name that the text can still become, so parts of one are none
    return list(dict.fromkeys(name for s in sentences for name in _names(s, known)))


def _names(sentence: str, known: set[str]) -> Iterator[str]:
    """Runs of words that begin like names, with nothing between them but a blank or "St. X"'s."""
    words = [
        word
        for word in _WORD.finditer(sentence)
        if _NAME_START.match(word[0])
        and (word.start() > 0 or word[0] in known or word[0][0].isdigit())
    ]
    start = 0
    for at, word in enumerate(words):
        following = words[at + 1] if at + 1 < len(words) else None
        if following is None or sentence[word.end() : following.start()] not in (" ", ". "):
            yield sentence[words[start].start() : word.end()]
            start = at + 1


def _spans(sentence: str, max_words: int, telling: re.Pattern[str]) -> Iterator[tuple[int, str]]:
    """Runs of words of which the first and the last are telling, with where they begin."""
    words = list(_WORD.finditer(sentence))
    fits = [telling.search(word[0]) is not None for word in words]
    for at, first in enumerate(words):
        for last in range(at, min(at + max_words, len(words))):
            if fits[at] and fits[last]:
                yield first.start(), sentence[first.start() : words[last].end()]


def _sentences(context: str) -> list[str]:
    marked = _SENTENCE_END.sub(r"\1\n", context)
    return [sentence for line in marked.splitlines() if (sentence := line.strip())]


def _lines(form: str, context: str, max_lines: int) -> str:
    if form == "cloze":
        line = _gaps(context)
    else:
        line = {
            "qa": '"Q: " ASKED_OF NAME REST? "? A: " ANSWER',
            "statements": 'OPENING? NAME (TO_NAME NAME){0,2} REST? "."',
            "reverse": '"Q: " (ASKED | ASKED_OF NAME REST?) "? A: " NAME',
        }[form]
    rest = f' ("\\n" {form}_line){{0,{max_lines - 1}}}' if max_lines > 1 else ""
    return f"{form}: {form}_line{rest}\n{form}_line: {line}"


def _gaps(context: str) -> str:
    """Every sentence with every gap and what filled it, those of one beginning together."""
    telling = _TELLING if _TELLING.search(context) else re.compile(r"\w")
    endings: dict[str, dict[str, None]] = {}
    for sentence in _sentences(context):
        for at, answer in _spans(sentence, _MAX_GAP_WORDS, telling):
            rest = f"{BLANK}{sentence[at + len(answer) :]} Answer: {answer}"
            endings.setdefault(sentence[:at], {})[rest] = None
    return " | ".join(
        f"{_quoted(before)} ({_any_of(rests)})" if before else f"({_any_of(rests)})"
        for before, rests in endings.items()
    )


def _head(form: str, choices: Choices) -> str:
    return f"({_any_of(choices.head(form, r) + chr(10) for r in choices.learning_rates)})"


def _body(form: str) -> str:
    return form if form in FORMS_WITH_GRAMMAR else "FREE"


def _any_of(texts: Iterable[str]) -> str:
    return " | ".join(map(_quoted, texts))


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
