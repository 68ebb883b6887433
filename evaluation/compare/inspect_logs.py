"""Logs of inspect_ai: .eval (a zip, its members compressed by zstd) and .json."""

from __future__ import annotations

import json
import lzma
import sys
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from evaluation.compare.items import Item, Sample, Side, as_score, join_samples
from utils.json_files import parse_json, read_json_object

FORM = "a log of inspect_ai"


def read_log(path: Path) -> Side:
    """Raises ValueError for what is no log, or holds an item twice in one epoch."""
    header, samples = _read_zip(path) if path.suffix == ".eval" else _read_json(path)
    where = str(path)
    scores_S, unusable = _scores(samples)
    answers = [
        Sample(sample.get("epoch", 1), _item(sample, scores))
        for sample, scores in zip(samples, scores_S, strict=True)
    ]
    items, notes = join_samples(answers, where)
    if header.get("status") != "success":
        notes = (*notes, f"status {header.get('status')!r}: not all items may have been answered")
    failed = sum(sample.get("error") is not None for sample in samples)
    if failed:
        notes = (*notes, f"{failed} of {len(samples)} answers ended with an error: unscored")
    evaluation = header.get("eval", {})
    model = str(evaluation.get("model", path.stem))
    task = evaluation.get("task")
    return Side(
        path,
        FORM,
        f"{model}, {task}" if task else model,
        items,
        unusable=unusable,
        notes=notes,
    )


def _read_json(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    log = read_json_object(path)
    if not isinstance(log.get("eval"), dict) or not isinstance(log.get("samples"), list):
        raise ValueError(
            f"{path}: no log of inspect_ai (it needs eval and samples); of lm-eval, the "
            "samples_*.jsonl of --log_samples is needed"
        )
    return log, log["samples"]


def _read_zip(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    # the standard library knows zstd from 3.14 on
    if sys.version_info >= (3, 14):
        import zipfile

        from compression.zstd import ZstdError
    else:
        from backports.zstd import ZstdError, zipfile

    # of a copy that was cut or damaged; an encrypted member is a RuntimeError, an unknown
    # compression a NotImplementedError, what bz2 cannot unpack an OSError
    damaged = (
        *(zipfile.BadZipFile, ZstdError, zlib.error, lzma.LZMAError),
        *(EOFError, RuntimeError, OSError),
    )

    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: no .eval log of inspect_ai ({error})") from error
    with archive:
        # a member that was written again stands there twice, its last version counts
        members = dict.fromkeys(archive.namelist())
        # a run that was killed has no header yet
        name = "header.json" if "header.json" in members else "_journal/start.json"
        if name not in members:
            raise ValueError(f"{path}: no .eval log of inspect_ai (no header.json in it)")

        def read(member: str) -> Any:
            try:
                data = archive.read(member)
            except damaged as error:
                raise ValueError(f"{path}, {member}: cannot be unpacked ({error})") from error
            return parse_json(data, f"{path}, {member}")

        header = read(name)
        samples = [
            read(member)
            for member in members
            if member.startswith("samples/") and member.endswith(".json")
        ]
    return header, samples


def _scores(
    samples: list[dict[str, Any]],
) -> tuple[list[dict[str, float | None]], dict[str, str]]:
    """By sample, and why some metrics are no numbers. A scorer that gives several numbers makes a
    metric of each, scorer/number."""
    parts: dict[str, set[str]] = {}
    for _, scorer, value in _values(samples):
        own = parts.setdefault(scorer, set())
        if isinstance(value, Mapping):
            own.update(value)
    names = [
        f"{scorer}/{part}" if part else scorer
        for scorer, own in parts.items()
        for part in sorted(own) or [""]
    ]
    scores_S: list[dict[str, float | None]] = [dict.fromkeys(names) for _ in samples]
    unusable: dict[str, str] = {}
    for index, scorer, value in _values(samples):
        found = {scorer: value}
        if isinstance(value, Mapping):
            found = {f"{scorer}/{part}": single for part, single in value.items()}
        elif parts[scorer]:
            # a scorer of several numbers that gave none
            continue
        for name, single in found.items():
            try:
                scores_S[index][name] = as_score(single)
            except ValueError as error:
                unusable.setdefault(name, f"item {samples[index].get('id')!r} has {error}")
    return scores_S, unusable


def _values(samples: list[dict[str, Any]]) -> Iterator[tuple[int, str, Any]]:
    for index, sample in enumerate(samples):
        for scorer, score in (sample.get("scores") or {}).items():
            yield index, scorer, score["value"]


def _item(sample: Mapping[str, Any], scores: Mapping[str, float | None]) -> Item:
    question, target = sample.get("input"), sample.get("target")
    return Item(
        str(sample["id"]),
        scores,
        sample.get("metadata") or {},
        question=question if isinstance(question, str) else _conversation(question),
        answer=str((sample.get("output") or {}).get("completion", "")),
        fingerprint=json.dumps([_said(question), target], sort_keys=True),
    )


def _said(question: Any) -> Any:
    """Messages without their ids, which are new in every run."""
    if isinstance(question, list):
        return [[message.get("role"), message.get("content")] for message in question]
    return question


def _conversation(messages: Any) -> str:
    return "\n\n".join(f"{message.get('role')}: {message.get('content')}" for message in messages)
