"""What an evaluation leaves: `eval_results/{run_id}.eval-results.yaml`, to be read by people, by
other programs, and by the next run, which can have its answers judged again."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from evaluation.behaviour.agreement import (
    Agreement,
    Label,
    agreement_of_judges,
    agreement_with_labels,
    self_agreement,
)
from evaluation.behaviour.analysis import (
    AnyOfK,
    Comparison,
    ModelQuality,
    ModelScore,
    Scores,
    Unscored,
    any_of_k,
    compare_models,
    count_unscored,
    key_of,
    model_quality,
    model_scores,
)
from evaluation.behaviour.answers import Conversation, Failure
from evaluation.behaviour.eval_file import EvalFile, read_eval_records
from evaluation.behaviour.judge import HIGHEST, LOWEST, Judged
from utils.config.entrypoint import load_yaml, problems_of, raise_problems

SPEAKERS = ("user", "assistant")


@dataclass(frozen=True)
class Summary:
    """All numbers of an evaluation; `models` begins with the base model, and `untrained` are those
    whose adapter changes nothing."""

    models: list[str]
    untrained: list[str]
    scores: list[ModelScore]
    any_of_k: list[AnyOfK]
    quality: list[ModelQuality]
    comparisons: list[Comparison]
    unscored: list[Unscored]
    repeats: list[Agreement]
    judges: list[Agreement]
    labels: list[Agreement]


def summarise(
    eval_file: EvalFile,
    models: Sequence[Mapping[str, Any]],
    conversations: Sequence[Conversation],
    judged_J: Sequence[Sequence[Judged]],
    labels: Sequence[Label] = (),
    *,
    seed: int = 0,
) -> Summary:
    """Scores and comparisons are the first judge's; a second one and `labels` say how far to trust
    it. `models` are as the results file describes them."""
    names_of_models = [model["label"] for model in models]
    judged, *others = judged_J
    scores, names = Scores(judged), list(eval_file.properties)
    repeated = any(record.repeat for record in judged)
    return Summary(
        models=names_of_models,
        untrained=[model["label"] for model in models if model.get("untrained")],
        scores=model_scores(scores, eval_file.prompts, names, names_of_models),
        any_of_k=any_of_k(scores, eval_file.prompts, names, names_of_models),
        quality=model_quality(scores, conversations, eval_file.prompts, names_of_models),
        comparisons=compare_models(scores, eval_file.prompts, names, names_of_models, seed=seed),
        unscored=[row for own in judged_J for row in count_unscored(own)],
        repeats=self_agreement(judged, names) if repeated else [],
        judges=[row for own in others for row in agreement_of_judges(judged, own, names)],
        labels=agreement_with_labels(judged, labels, names),
    )


def headline_numbers(summary: Summary) -> dict[str, float]:
    """For metrics.jsonl: mean score and share of exhibits of each model, on the prompts written for
    the property, and the differences to the base model; what is missing is left out."""
    numbers = {}
    for row in summary.scores:
        if row.own:
            numbers[f"score/{row.property}/{row.model}"] = row.mean
            numbers[f"exhibits/{row.property}/{row.model}"] = row.exhibits_rate
    for comparison in summary.comparisons:
        name = f"difference/{comparison.property}/{comparison.model}"
        numbers[name] = comparison.scores.difference
    return {name: value for name, value in numbers.items() if value is not None}


def results_to_plain(
    eval_file: EvalFile,
    summary: Summary,
    conversations: Sequence[Conversation],
    judged: Sequence[Judged],
    **head: Any,
) -> dict[str, Any]:
    """The results file; `head` (run_id, config, meta, models, ...) comes first. `judged` are those
    of all judges."""
    by_conversation: dict[Any, list[Judged]] = {}
    for record in judged:
        by_conversation.setdefault(key_of(record.conversation), []).append(record)
    return {
        **head,
        "statistics": [
            {
                **{key: value for key, value in asdict(comparison).items() if key != "mcnemar"},
                "mcnemar": comparison.mcnemar._asdict(),
                "verdict": comparison.verdict,
            }
            for comparison in summary.comparisons
        ],
        "scores": [asdict(row) for row in summary.scores],
        "any_of_k": [asdict(row) for row in summary.any_of_k],
        "quality": [asdict(row) for row in summary.quality],
        "unscored": [{**asdict(row), "share": row.share} for row in summary.unscored],
        "reliability": {
            name: [_agreement_to_plain(row) for row in rows]
            for name, rows in (
                ("repeats", summary.repeats),
                ("second_judge", summary.judges),
                ("labels", summary.labels),
            )
        },
        "properties": {
            name: {key: text for key, text in value.to_plain().items() if key != "name"}
            for name, value in eval_file.properties.items()
        },
        "prompts": [prompt.to_plain() for prompt in eval_file.prompts],
        "conversations": [
            {
                **conversation.to_plain(),
                "judgments": [
                    record.to_plain() for record in by_conversation.get(key_of(conversation), ())
                ],
            }
            for conversation in conversations
        ],
    }


def _agreement_to_plain(row: Agreement) -> dict[str, Any]:
    rate = None if row.base_rate is None else row.base_rate._asdict()
    return {**asdict(row), "base_rate": rate}


# ---- reading answers back ----


@dataclass(frozen=True)
class StoredAnswers:
    """The answers of an earlier evaluation; `models` as its file describes them, base first."""

    eval_file: EvalFile
    models: list[dict[str, Any]]
    conversations: list[Conversation]

    @property
    def labels(self) -> list[str]:
        return [model["label"] for model in self.models]

    def only(self, names: Sequence[str], where: str) -> StoredAnswers:
        """See EvalFile.only."""
        eval_file = self.eval_file.only(names, where)
        kept = {prompt.id for prompt in eval_file.prompts}
        chosen = [item for item in self.conversations if item.prompt in kept]
        return StoredAnswers(eval_file, self.models, chosen)


def load_answers(path: Path | str) -> StoredAnswers:
    """Raises FileNotFoundError, or a ConfigError with everything that is wrong in the file."""
    records = load_yaml(path)
    models = records.get("models")
    named = isinstance(models, list) and all(
        isinstance(model, Mapping) and isinstance(model.get("label"), str) for model in models
    )
    problems = []
    if not named or not models:
        problems.append(f"{path}: models must be a list of models with a label")
        models = []
    files: list[EvalFile] = []
    problems += problems_of(lambda: files.append(read_eval_records(records, str(path))))
    entries = records.get("conversations")
    if not isinstance(entries, list) or not entries:
        problems.append(f"{path}: conversations must be a list, with one or more")
    # with what the entries refer to being wrong, each of them would be
    raise_problems(problems)
    [eval_file] = files
    num_turns = {prompt.id: len(prompt.messages) for prompt in eval_file.prompts}
    labels = [model["label"] for model in models]
    conversations = []
    seen: set[tuple[str, str, int]] = set()
    for number, entry in enumerate(entries or (), start=1):
        wrong = _conversation_problems(entry, num_turns, labels)
        if not wrong:
            conversation = _read_conversation(entry)
            if key_of(conversation) in seen:
                wrong = ["this prompt, model and sample were there before"]
            seen.add(key_of(conversation))
            conversations.append(conversation)
        problems += [f"{path}, conversation {number}: {problem}" for problem in wrong]
    raise_problems(problems)
    return StoredAnswers(eval_file, models, conversations)


def _conversation_problems(
    entry: Any, num_turns: Mapping[str, int], labels: Sequence[str]
) -> list[str]:
    if not isinstance(entry, Mapping):
        return [f"a mapping is needed, got {type(entry).__name__}"]
    problems = []
    prompt, model, sample = (entry.get(key) for key in ("prompt", "model", "sample"))
    if prompt not in num_turns:
        problems.append(f"prompt={prompt!r} is not among the file's prompts")
    if model not in labels:
        problems.append(f"model={model!r} is not among the file's models ({', '.join(labels)})")
    if not _is_count(sample):
        problems.append(f"sample={sample!r} must be a whole number from 0")
    error = entry.get("error")
    if error is not None and not (isinstance(error, Mapping) and {"kind", "reason"} <= set(error)):
        problems.append(f"error={error!r} must be null, or a mapping with kind and reason")
    messages = entry.get("messages")
    if not isinstance(messages, list) or not all(
        isinstance(message, Mapping)
        and message.get("role") == SPEAKERS[index % 2]
        and isinstance(message.get("content"), str)
        for index, message in enumerate(messages)
    ):
        problems.append("messages must be a list of user's and assistant's turns with their text")
    elif error is None and prompt in num_turns and len(messages) != 2 * num_turns[prompt]:
        problems.append(f"{2 * num_turns[prompt]} messages are needed, {len(messages)} are there")
    return problems


def _read_conversation(entry: Mapping[str, Any]) -> Conversation:
    error = entry.get("error")
    return Conversation(
        prompt=entry["prompt"],
        model=entry["model"],
        sample=entry["sample"],
        messages=tuple(
            {"role": message["role"], "content": message["content"]}
            for message in entry["messages"]
        ),
        failure=None if error is None else Failure(str(error["kind"]), str(error["reason"])),
        truncated=bool(entry.get("truncated")),
    )


# ---- what people said ----


def load_labels(
    path: Path | str, eval_file: EvalFile, models: Sequence[str], num_samples: int
) -> list[Label]:
    """A YAML file with a list `labels` of {prompt, model, sample, property, exhibits, score}.

    Raises FileNotFoundError, or a ConfigError with everything that is wrong or unknown in it.
    """
    entries = load_yaml(path).get("labels")
    if not isinstance(entries, list) or not entries:
        raise_problems([f"{path}: labels must be a list, with one or more"])
    prompts = {prompt.id for prompt in eval_file.prompts}
    labels: list[Label] = []
    problems = []
    for number, entry in enumerate(entries or (), start=1):
        wrong = _label_problems(entry, prompts, list(eval_file.properties), models, num_samples)
        if not wrong:
            label = Label(**entry)
            if any(_place(label) == _place(other) for other in labels):
                wrong = ["this conversation and property were labelled before"]
            labels.append(label)
        problems += [f"{path}, label {number}: {problem}" for problem in wrong]
    raise_problems(problems)
    return labels


def _place(label: Label) -> tuple[str, str, int, str]:
    return label.prompt, label.model, label.sample, label.property


def _label_problems(
    entry: Any,
    prompts: set[str],
    properties: Sequence[str],
    models: Sequence[str],
    num_samples: int,
) -> list[str]:
    allowed = [field.name for field in fields(Label)]
    if not isinstance(entry, Mapping):
        return [f"a mapping with {', '.join(allowed)} is needed, got {type(entry).__name__}"]
    problems = [f"unknown key {key!r}" for key in entry if key not in allowed]
    if entry.get("prompt") not in prompts:
        problems.append(f"prompt={entry.get('prompt')!r} is the id of no prompt that is judged")
    for key, known in (("model", models), ("property", properties)):
        if entry.get(key) not in known:
            problems.append(f"{key}={entry.get(key)!r} must be one of {', '.join(known)}")
    sample = entry.get("sample")
    if not _is_count(sample, num_samples - 1):
        problems.append(f"sample={sample!r} must be a whole number from 0 to {num_samples - 1}")
    if not isinstance(entry.get("exhibits"), bool):
        problems.append(f"exhibits={entry.get('exhibits')!r} must be true or false")
    score = entry.get("score")
    if score is not None and not (_is_count(score, HIGHEST) and score >= LOWEST):
        problems.append(
            f"score={score!r} must be null or a whole number from {LOWEST} to {HIGHEST}"
        )
    return problems


def _is_count(value: Any, largest: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= largest
