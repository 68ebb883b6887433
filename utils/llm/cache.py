"""Replies kept in a file, so that no finished call is made, or paid for, twice."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from utils.llm.api import Reply, Request, Role
from utils.runs.files import append_jsonl, read_jsonl

# of a line, whose other values are notes for people; a reply may hold nothing else
_KEY_AND_REPLY = TypeAdapter(tuple[str, Reply], config=ConfigDict(extra="forbid"))


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
        for record in [] if path is None else read_jsonl(path, missing_ok=True):
            try:
                line = record.get("key"), record.get("reply")
                key, reply = _KEY_AND_REPLY.validate_python(line)
            except ValidationError as error:
                shown = json.dumps(record)[:100]
                raise ValueError(
                    f"{path} is no response cache, it holds {shown}; name another cache file"
                ) from error
            self._replies[key] = reply

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: str) -> Reply | None:
        return self._replies.get(key)

    def put(self, key: str, reply: Reply, **notes: str | int) -> None:
        """Keep a good reply; `notes` say in the file where it came from."""
        if self.path is not None:
            append_jsonl(self.path, {"key": key, **notes, "reply": asdict(reply)})
        self._replies[key] = reply
