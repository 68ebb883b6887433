"""What LLM calls took: tokens, reported cost and failures, per stage of a script and role."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from utils.llm.api import Kind, LLMError, Reply

EXAMPLES_KEPT = 3
EXAMPLE_CHARS = 300


@dataclass
class Spending:
    """Calls of one role in one stage. `calls` were sent, `cached` were answered without one.
    Tokens and cost are sums over the replies that reported them; what a call cost whose answer
    never came is not known."""

    calls: int = 0
    cached: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost_usd: float | None = None
    replies_without_usage: int = 0
    replies_without_cost: int = 0


@dataclass
class Failures:
    """Failures of one kind: how many there were, how many of them were not tried again, and the
    first few in words."""

    count: int = 0
    given_up: int = 0
    examples: list[str] = field(default_factory=list)


class Ledger:
    """Kept by an LLMClient; scripts show it at the end."""

    HEADERS = ("stage", "role", "calls", "cached", "failed", "tokens in", "tokens out", "cost ($)")
    FAILURE_HEADERS = ("stage", "role", "kind", "failures", "given up", "example")

    def __init__(self) -> None:
        self.spendings: dict[tuple[str, str], Spending] = {}
        self.failures: dict[tuple[str, str, Kind], Failures] = {}
        # by role, the parameters that some calls went without since the model does not take them
        self.not_sent: dict[str, list[str]] = {}

    @property
    def cost_usd(self) -> float:
        """Reported cost of all calls so far; 0 when no provider reports any."""
        return sum(spending.cost_usd or 0.0 for spending in self.spendings.values())

    @property
    def given_up(self) -> int:
        """How many failures were not tried again."""
        return sum(failures.given_up for failures in self.failures.values())

    def sent(self, stage: str, role: str) -> None:
        self._spending(stage, role).calls += 1

    def cached(self, stage: str, role: str, reply: Reply) -> None:
        self._spending(stage, role).cached += 1
        self._went_without(role, reply)

    def replied(self, stage: str, role: str, reply: Reply) -> None:
        self._went_without(role, reply)
        spending, usage = self._spending(stage, role), reply.usage
        if usage is None:
            spending.replies_without_usage += 1
        else:
            spending.prompt_tokens += usage.prompt_tokens
            spending.completion_tokens += usage.completion_tokens
        if usage is None or usage.cost_usd is None:
            spending.replies_without_cost += 1
        else:
            spending.cost_usd = (spending.cost_usd or 0.0) + usage.cost_usd

    def failed(self, stage: str, error: LLMError, *, given_up: bool) -> None:
        self._spending(stage, error.role)
        failures = self.failures.setdefault((stage, error.role, error.kind), Failures())
        failures.count += 1
        failures.given_up += given_up
        if len(failures.examples) < EXAMPLES_KEPT:
            failures.examples.append(error.detail[:EXAMPLE_CHARS])

    def table(self) -> list[list[Any]]:
        """Rows under HEADERS for a text_table; `failed` counts what was given up."""
        rows = []
        for (stage, role), spending in self.spendings.items():
            failed = sum(
                failures.given_up
                for (its_stage, its_role, _), failures in self.failures.items()
                if (its_stage, its_role) == (stage, role)
            )
            rows.append(
                [
                    *(stage, role, spending.calls, spending.cached, failed),
                    *(spending.prompt_tokens, spending.completion_tokens, spending.cost_usd),
                ]
            )
        return rows

    def failure_table(self) -> list[list[Any]]:
        """Rows under FAILURE_HEADERS, the most frequent first."""
        items = sorted(self.failures.items(), key=lambda item: -item[1].count)
        return [
            [*key, failures.count, failures.given_up, failures.examples[0]]
            for key, failures in items
        ]

    def to_plain(self) -> dict[str, Any]:
        """All of it in lists and dicts, for YAML."""
        return {
            "cost_usd": self.cost_usd,
            "not_sent": self.not_sent,
            "calls": [
                {"stage": stage, "role": role, **asdict(spending)}
                for (stage, role), spending in self.spendings.items()
            ],
            "failures": [
                {"stage": stage, "role": role, "kind": kind, **asdict(failures)}
                for (stage, role, kind), failures in self.failures.items()
            ],
        }

    def _went_without(self, role: str, reply: Reply) -> None:
        if reply.not_sent:
            known = self.not_sent.get(role, [])
            self.not_sent[role] = list(dict.fromkeys([*known, *reply.not_sent]))

    def _spending(self, stage: str, role: str) -> Spending:
        return self.spendings.setdefault((stage, role), Spending())
