"""What a run of continual self-edits would do, before any model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.domains.knowledge.continual import Edit
from training.domains.knowledge.continual_methods import Method
from training.domains.knowledge.continual_passages import Drawn
from training.domains.knowledge.documents import document_texts
from training.domains.knowledge.inner import InnerSettings
from utils.runs.tables import text_table

HEADERS = ("method", "adapters", "tokens to train", "questions", "besides")


def plan_text(
    methods: Sequence[Method],
    drawn: Drawn,
    edits: Mapping[str, Edit],
    settings: InnerSettings,
    tokenizer: Any,
    *,
    ask_ahead: bool,
) -> str:
    """A row for each method. Self-edits that are not written yet count as long as their passage."""
    k, num_sequences = len(drawn.sequences_S_K[0]), len(drawn.sequences_S_K)
    num_tokens = {}
    for passage in drawn.learned:
        edit = edits[passage.id].text if passage.id in edits else passage.context
        texts = document_texts(passage, edit, settings.documents, cap=settings.cap)
        num_tokens[passage.id] = settings.num_epochs * sum(len(tokenizer.encode(t)) for t in texts)
    tokens = sum(num_tokens[p.id] for passages_K in drawn.sequences_S_K for p in passages_K)
    untouched = num_sequences * sum(len(p.questions) for p in drawn.untouched)
    # after step r, of each sequence: the passages learned by then
    asked_R = [
        untouched
        + sum(
            len(p.questions)
            for passages_K in drawn.sequences_S_K
            for p in passages_K[: k if ask_ahead else r]
        )
        for r in range(1, k + 1)
    ]
    rows = []
    for method in methods:
        notes = {
            "replay": f"{method.num_replayed} texts of each earlier self-edit are trained on too",
            "gate": "questions of what was known, for each scale that is tried",
            "distill": "the teacher reads passages and self-edits",
        }
        is_joint = method.kind == "joint"
        rows.append(
            (
                method.label,
                num_sequences * (1 if is_joint else k),
                tokens,
                asked_R[-1] if is_joint else sum(asked_R),
                notes.get(method.kind, ""),
            )
        )
    return text_table(HEADERS, rows)
