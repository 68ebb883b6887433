"""What a domain is: problems, their prompts, and rewards for groups of answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Any,
    Literal,
    NamedTuple,
    NotRequired,
    Protocol,
    TypedDict,
    runtime_checkable,
)

from utils.runs.report import Report
from utils.runs.run_dir import RunDir

Split = Literal["train", "test"]
Algorithm = Literal["grpo", "rest_em"]


class Message(TypedDict):
    """What chat templates take. A `weight` of 0 on an assistant's message: not to be learned."""

    role: str
    content: str
    tool_calls: NotRequired[list[dict[str, Any]]]
    name: NotRequired[str]
    tool_call_id: NotRequired[str]
    reasoning_content: NotRequired[str]
    weight: NotRequired[int]


@dataclass(frozen=True)
class RawPrompt:
    """A text that a base model continues, up to its end token or one of `stop`."""

    text: str
    stop: tuple[str, ...] = ()


@dataclass(frozen=True)
class Problem:
    """With `raw` the model continues that text, and `messages` are what it says to readers.

    `grammar`, in llguidance's dialect of Lark, is for the answers to this problem what the domain's
    json_schema is for all: enforced instead of it where the backend can do so.
    """

    id: str
    messages: list[Message]
    data: Any
    raw: RawPrompt | None = None
    grammar: str | None = None


class Reward(NamedTuple):
    """The score of one answer. `note` says why an answer scored as it did, for samples.jsonl.
    `success`: whether rest_em may imitate it, None where that is the same as `solved`."""

    value: float
    solved: bool
    note: str = ""
    success: bool | None = None

    @property
    def is_success(self) -> bool:
        return self.solved if self.success is None else self.success


_NONE: dict[str, Any] = {}


class Stateless:
    """For domains whose answers are free text, graded at once and then forgotten."""

    algorithm: Algorithm = "grpo"
    json_schema: dict[str, Any] | None = None
    loop_defaults: dict[str, Any] = _NONE

    def invalid(self, answer: str) -> str | None:
        return None

    def reward_tokens(self, problem: Problem) -> int:
        return 0

    def solution(self, problem: Problem) -> Any:
        return problem.data

    def state(self) -> dict[str, Any]:
        return {}

    def close(self) -> None:
        pass

    def load_state(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(f"this domain keeps no state; got {sorted(state)}")


class Domain(Protocol):
    """A source of problems that grades whole batches, so that slow rewards can be batched too.

    `json_schema` constrains sampling where the backend can enforce it; `algorithm` is what the
    domain's paper used, and `loop_defaults` its values of those settings of scripts/rl_loop.py
    whose default is the domain's, where the user leaves them open. `state` is what the domain
    remembers between batches, as plain data.
    """

    name: str
    algorithm: Algorithm
    max_tokens: int
    json_schema: dict[str, Any] | None
    loop_defaults: dict[str, Any]

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...

    def close(self) -> None:
        """Lets go of what it holds besides the service, at a run's end."""
        ...

    def invalid(self, answer: str) -> str | None:
        """Why an answer cannot be graded at all and may be sampled again, or None."""
        ...

    def reward_tokens(self, problem: Problem) -> int:
        """Roughly how many tokens one reward trains on, for plans."""
        ...

    def problems(self, split: Split) -> list[Problem]: ...

    def solution(self, problem: Problem) -> Any:
        """What decides its rewards besides its messages, as plain data, to tell problems apart."""
        ...

    def rewards(
        self, problems_P: list[Problem], answers_P_G: list[list[str]]
    ) -> list[list[Reward]]: ...


@runtime_checkable
class TrainsAdapters(Protocol):
    """What a domain has besides whose rewards take adapters of its own."""

    def check_with_model(self) -> None:
        """Loads the base model; raises ValueError where its layers cannot have such adapters."""
        ...


@runtime_checkable
class CallsModels(Protocol):
    """What a domain has besides that asks models by role for its rewards."""

    def open_calls(self, run: RunDir) -> None:
        """Once, before load_state() and any reward: replies are kept in the run's folder. Raises
        ConfigError where the run began with other models."""
        ...


Samples = Sequence[Mapping[str, Any]]
Table = tuple[list[str], list[list[Any]]]


@runtime_checkable
class ShowsAnswers(Protocol):
    """What a domain may have besides, where a reward alone says too little about an answer.

    `samples` are a run's lines of samples.jsonl so far, each with `when`, its place in the run.
    """

    def look_up_base(self, problems: list[Problem]) -> None:
        """At a run's end, what the base model does with the problems by itself."""
        ...

    def answer_table(
        self, problems: Mapping[Split, Sequence[Problem]], samples: Samples
    ) -> Table: ...

    def add_to_report(
        self, report: Report, problems: Mapping[Split, Sequence[Problem]], samples: Samples
    ) -> None: ...

    def summary(self, problems: Mapping[Split, Sequence[Problem]], samples: Samples) -> list[str]:
        """Lines that stand below the table."""
        ...

    def write_files(
        self, folder: Path, problems: Mapping[Split, Sequence[Problem]], samples: Samples
    ) -> None:
        """Files in the formats that the domain's published code reads."""
        ...


@runtime_checkable
class ShowsChange(Protocol):
    """What a domain may have besides whose answers can be told in a few features."""

    def change_table(self, samples: Samples) -> Table:
        """How often held-out answers had each feature before and after, and the reward of answers
        that have it."""
        ...
