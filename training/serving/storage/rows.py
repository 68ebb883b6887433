"""What the store keeps: one frozen row per thing. Times are UTC and know it."""

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, Literal, TypeVar

from training.api import LoraConfig
from training.serving.names import TinkerPath

Row = TypeVar("Row")


def utc_now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


@dataclass(frozen=True)
class Session:
    session_id: str
    owner: str
    tags: Sequence[str] = ()
    user_metadata: Mapping[str, str] = field(default_factory=dict)
    sdk_version: str = ""
    project_id: str | None = None
    display_name: str | None = None
    created_at: datetime.datetime = field(default_factory=utc_now)
    finished_at: datetime.datetime | None = None
    finish_reason: str | None = None


@dataclass(frozen=True)
class Run:
    """A model that is or was trained; `run_id` is its model id."""

    run_id: str
    owner: str
    session_id: str
    base_model: str
    lora: LoraConfig
    user_metadata: Mapping[str, str] = field(default_factory=dict)
    optimizer: str = "adamw"
    created_at: datetime.datetime = field(default_factory=utc_now)
    last_request_at: datetime.datetime = field(default_factory=utc_now)


@dataclass(frozen=True)
class Sampler:
    sampler_id: str
    owner: str
    session_id: str
    base_model: str
    model_path: str | None = None
    created_at: datetime.datetime = field(default_factory=utc_now)


@dataclass(frozen=True)
class CheckpointRow:
    """A whole checkpoint. `uid` belongs to these files alone: one that overwrites them has another.

    `folder` is where they lie, `size_bytes` what they take there.
    """

    uid: str
    owner: str
    path: TinkerPath
    folder: Path
    base_model: str
    lora: LoraConfig
    has_optimizer: bool
    size_bytes: int
    user_metadata: Mapping[str, str]
    created_at: datetime.datetime
    expires_at: datetime.datetime | None
    public: bool

    def by_its_path(self, text: str) -> str:
        """What is said of its files, as clients may read it: where the store keeps them is no
        business of theirs."""
        return text.replace(str(self.folder), str(self.path))


@dataclass(frozen=True)
class FutureRow:
    """`scope` has a row of numbers, from which `seq_id` is; "lost" is a request that was open when
    the server ended."""

    request_id: str
    owner: str
    kind: str
    scope: str
    seq_id: int | None
    digest: str
    state: Literal["open", "ended", "lost"]
    created_at: datetime.datetime


@dataclass(frozen=True)
class Listed(Generic[Row]):
    """Some rows, newest first, of `total` that there are."""

    rows: list[Row]
    total: int
