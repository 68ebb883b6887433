"""The sequences that a passage and its self-edit are trained on.

`seal` is what SEAL trains on (arXiv 2506.10943): a title line over every document, the passage
last, at most 30 documents of an edit. `lines` (default) trains every line as it stands, and the
passage under its title as one sequence more.
"""

import re
from collections.abc import Sequence
from typing import Any, Literal

from training.api import Datum
from training.chat import datum_from_tokens, render_completion, render_text
from training.domains.knowledge.passages import Passage

DocumentForm = Literal["lines", "seal"]
FORMS: tuple[DocumentForm, ...] = ("lines", "seal")
# documents of one edit, as in SEAL's later code
CAP = 30
_QUESTION = re.compile(r"Question\s+\d+:")
_ANSWER = re.compile(r"Answer\s*:")


def split_edit(edit: str, *, split_newlines: bool = True) -> list[str]:
    """The documents of an edit: parts between "---", and of each part its numbered questions with
    their answers, or else its lines that are not empty, without a first line that only introduces
    a list ("1." begins the second). With `split_newlines` off, the parts."""
    parts = [part.strip() for part in edit.split("---")]
    if not split_newlines:
        return [part for part in parts if part]
    return [document for part in parts for document in _split_part(part)]


def _split_part(part: str) -> list[str]:
    if _QUESTION.search(part) and _ANSWER.search(part):
        if not _QUESTION.match(part):
            # the prompt ends with the first question's number
            part = f"Question 1: {part}"
        starts = [match.start() for match in _QUESTION.finditer(part)]
        ends = [*starts[1:], len(part)]
        return [part[start:end].strip() for start, end in zip(starts, ends, strict=True)]
    lines = [line.strip() for line in part.splitlines() if line.strip()]
    return lines[1:] if len(lines) > 1 and lines[1].startswith("1.") else lines


def document_texts(
    passage: Passage,
    edit: str,
    form: DocumentForm,
    *,
    cap: int | None = CAP,
    split_newlines: bool = True,
    add_context: bool = True,
) -> list[str]:
    """What one edit of a passage is trained on; the passage itself comes last, unless
    `add_context` is off. `cap` bounds the documents of the edit."""
    documents = split_edit(edit, split_newlines=split_newlines)[:cap]
    if form == "seal":
        documents = [_under_title(passage, document) for document in documents]
    return [*documents, _under_title(passage, passage.context)] if add_context else documents


def pooled_texts(
    passages_P: Sequence[Passage],
    edits_P_K: Sequence[Sequence[str]],
    form: DocumentForm,
    *,
    cap: int | None = CAP,
    add_context: bool = True,
) -> list[str]:
    """Continued pretraining: all passages in one adapter, each once (or not at all, with
    `add_context` off) and with all of its edits, which are not split at newlines."""
    texts = []
    for passage, edits_K in zip(passages_P, edits_P_K, strict=True):
        for edit in edits_K:
            texts += document_texts(
                passage, edit, form, cap=cap, split_newlines=False, add_context=False
            )
        if add_context:
            texts += document_texts(passage, "", form)
    return texts


def _under_title(passage: Passage, text: str) -> str:
    return f"{passage.title}\n{text}"


def text_datum(tokenizer: Any, text: str, mask_until: str = "") -> Datum:
    """A text to learn with the model's end token. Nothing up to and with the first `mask_until` is
    learned; where a text does not hold it, all is (SEAL's end_mask_substring)."""
    read, found, learned = text.partition(mask_until) if mask_until else ("", "", "")
    if found and learned.strip():
        rendered = render_completion(tokenizer, read + found, learned)
    else:
        rendered = render_text(tokenizer, text)
    return datum_from_tokens(*rendered)
