"""Replies kept in a file, so that no finished call is made, or paid for, twice."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from utils.llm.api import Reply, Request, Role, Usage
from utils.runs.files import append_jsonl, read_jsonl


def cache_key(role: Role, request: Request) -> str:
    """What makes two calls the same call. The role's name is not part of it, nor is its key."""
    parts = {
        "model": role.model,
        "base_url": role.base_url,
        "extra_body": role.extra_body,
        "messages": [dict(message) for message in request.messages],
        # a schema's order of properties is the order they are written in
        "json_schema": json.dumps(request.json_schema),
        "sample_index": request.sample_index,
        "max_tokens": request.max_tokens,
        "temperature": request.temperature,
        "seed": request.seed,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class ResponseCache:
    """Replies by key, appended to `path` one line each; None keeps them in memory.

    A line that a crash left half written is dropped, by the reader and by the next `put`. One
    process writes to a file at a time. Raises a ValueError for a file that holds something else.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._replies: dict[str, Reply] = {}
        if path is not None and path.exists():
            for record in read_jsonl(path):
                self._replies[_key_of(record, path)] = _reply_of(record, path)

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> Reply | None:
        return self._replies.get(key)

    def put(self, key: str, reply: Reply, **notes: str | int) -> None:
        """Keep a good reply; `notes` say in the file where it came from."""
        if self.path is not None:
            append_jsonl(self.path, {"key": key, **notes, "reply": asdict(reply)})
        self._replies[key] = reply


def _key_of(record: dict[str, Any], path: Path) -> str:
    key = record.get("key")
    if not isinstance(key, str):
        raise _not_ours(path, record)
    return key


def _reply_of(record: dict[str, Any], path: Path) -> Reply:
    try:
        values = dict(record["reply"])
        usage = values.pop("usage")
        # JSON has no tuples, and older files do not have it
        values["not_sent"] = tuple(values.get("not_sent", ()))
        return Reply(**values, usage=None if usage is None else Usage(**usage))
    except (KeyError, TypeError, ValueError) as error:
        raise _not_ours(path, record) from error


def _not_ours(path: Path, record: dict[str, Any]) -> ValueError:
    shown = json.dumps(record)[:100]
    return ValueError(f"{path} is no response cache, it holds {shown}; name another cache file")
