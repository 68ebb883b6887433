"""What a domain is: problems, their prompts, and rewards for groups of answers."""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, Protocol, TypedDict

Split = Literal["train", "test"]
Algorithm = Literal["grpo", "rest_em"]


class Message(TypedDict):
    role: str
    content: str


@dataclass(frozen=True)
class Problem:
    id: str
    messages: list[Message]
    data: Any


class Reward(NamedTuple):
    """The score of one answer. `note` says why an answer scored as it did, for samples.jsonl."""

    value: float
    solved: bool
    note: str = ""


class Domain(Protocol):
    """A source of problems that grades whole batches, so that slow rewards can be batched too.

    `json_schema` constrains sampling where the backend can enforce it; `algorithm` is what the
    domain's paper used and scripts/rl_loop.py's default.
    """

    name: str
    algorithm: Algorithm
    max_tokens: int
    json_schema: dict[str, Any] | None

    def problems(self, split: Split) -> list[Problem]: ...

    def rewards(
        self, problems_P: list[Problem], answers_P_G: list[list[str]]
    ) -> list[list[Reward]]: ...
