"""The report of continued pretraining in SEAL's layout: many passages in one adapter, and what was
known of all of them before and after.

{"overall": {"baseline_accuracy", "adapter_accuracy", "gain"}, ..., "per_article": {title:
{"baseline_correct", "adapter_correct"}}, "train_sequences": how many, "eval_questions": how many,
"server_reply": {"baseline_accuracy", "adapter_accuracy", "adapter_gain", "baseline_texts",
"adapter_texts", "baseline_correct", "adapter_correct", "gains"}}. Accuracies are over all
questions. An answer without a verdict is null, which SEAL does not know, and in no accuracy.
Passages of one title stand under it one after another; SEAL keeps the last of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.domains.knowledge.grading import accuracy
from training.domains.knowledge.seal_files import write_json


@dataclass(frozen=True)
class CptArticle:
    """A passage's questions as answered before and after, with the verdicts."""

    title: str
    baseline_texts: Sequence[str]
    baseline_correct: Sequence[bool | None]
    adapter_texts: Sequence[str]
    adapter_correct: Sequence[bool | None]


def write_cpt_run(
    path: Path, articles: Sequence[CptArticle], settings: Mapping[str, Any], *, train_sequences: int
) -> None:
    """`settings` (timestamp, dataset, n_articles, k_completions, split_newlines, lora_params)
    stand behind the means."""
    baseline = [verdict for one in articles for verdict in one.baseline_correct]
    adapter = [verdict for one in articles for verdict in one.adapter_correct]
    before, after = accuracy(baseline), accuracy(adapter)
    gain = None if before is None or after is None else round(after - before, 4)
    means = {"baseline_accuracy": _rounded(before), "adapter_accuracy": _rounded(after)}
    per_article: dict[str, dict[str, list[bool | None]]] = {}
    for one in articles:
        own = per_article.setdefault(one.title, {"baseline_correct": [], "adapter_correct": []})
        own["baseline_correct"] += one.baseline_correct
        own["adapter_correct"] += one.adapter_correct
    reply = {
        **means,
        "adapter_gain": gain,
        "baseline_texts": [text for one in articles for text in one.baseline_texts],
        "adapter_texts": [text for one in articles for text in one.adapter_texts],
        "baseline_correct": baseline,
        "adapter_correct": adapter,
        "gains": [
            None if old is None or new is None else int(new) - int(old)
            for old, new in zip(baseline, adapter, strict=True)
        ],
    }
    plain = {
        "overall": {**means, "gain": gain},
        **settings,
        "per_article": per_article,
        "train_sequences": train_sequences,
        "eval_questions": len(adapter),
        "server_reply": reply,
    }
    write_json(path, plain)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
