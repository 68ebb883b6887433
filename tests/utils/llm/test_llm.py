"""The LLM client against an endpoint that fails in every way that real ones do."""

import asyncio
import dataclasses
import json
import logging
import random
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import llguidance
import pytest
import yaml
from fake_endpoint import GOOD, ROWS, FakeEndpoint, Gate, Recorded, by_prompt, in_order
from pydantic import BaseModel, ConfigDict, Field

from utils.config.entrypoint import ConfigError
from utils.llm.api import Kind, LLMError, Reply, Request, Role, Usage
from utils.llm.batch import gather_counted
from utils.llm.cache import ResponseCache, cache_key
from utils.llm.client import LLMClient, stage
from utils.llm.openai_endpoint import OpenAIEndpoint
from utils.llm.retry import Lane, RetryPolicy
from utils.llm.schemas import strict_schema, without_bounds
from utils.runs.files import append_jsonl
from utils.runs.tables import text_table

T = TypeVar("T")
HARD_LIMIT_S = 40
KEY = "sk-secret-0123456789abcdef"
OTHER_KEY = "sk-another-9876543210"
# what is tried again is called three times, or twice after a 429
FAST = RetryPolicy(
    max_retries=2,
    max_rate_retries=1,
    max_reasks=2,
    backoff_s=0.01,
    max_backoff_s=0.04,
    max_retry_after_s=5.0,
)


class Verdict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rationale: str = Field(min_length=1, max_length=40)
    score: int = Field(ge=1, le=10, description="how much")


@pytest.fixture(autouse=True)
def hard_limit() -> Iterator[None]:
    def hung(number: int, frame: object) -> None:
        raise AssertionError(f"still running after {HARD_LIMIT_S} s")

    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(HARD_LIMIT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(coroutine, HARD_LIMIT_S - 5))


def role_at(server: FakeEndpoint, name: str = "judge", **fields: Any) -> Role:
    defaults: dict[str, Any] = {"model": "fake", "base_url": server.base_url, "timeout": 15.0}
    return Role(name, **defaults | fields)


def client_at(server: FakeEndpoint, *, retry: RetryPolicy = FAST, **options: Any) -> LLMClient:
    fields = {name: options.pop(name) for name in list(options) if name in ROLE_FIELDS}
    return LLMClient([OpenAIEndpoint(role_at(server, **fields))], retry=retry, **options)


ROLE_FIELDS = {field.name for field in dataclasses.fields(Role)} - {"max_concurrency"}


def ask(text: str) -> list[dict[str, str]]:
    return [{"role": "system", "content": "You judge."}, {"role": "user", "content": text}]


async def outcome(call: Coroutine[Any, Any, T]) -> T | LLMError:
    try:
        return await call
    except LLMError as error:
        return error


def failures(client: LLMClient) -> dict[str, tuple[int, int]]:
    """(count, given up) by kind."""
    return {kind: (f.count, f.given_up) for (_, _, kind), f in client.ledger.failures.items()}


class Scripted:
    """An endpoint in this process."""

    def __init__(self, role: Role, answer: Callable[[Request], Coroutine[Any, Any, Reply]]) -> None:
        self.role = role
        self.answer = answer
        self.requests: list[Request] = []
        self.closed = False

    async def complete(self, request: Request) -> Reply:
        self.requests.append(request)
        return await self.answer(request)

    async def close(self) -> None:
        self.closed = True


# --- every row alone


ALONE: list[tuple[str, Kind | None, int]] = [
    ("ok", None, 1),
    ("no_usage", None, 1),
    ("error_200", "server", 3),
    ("error_200_no_choices", "server", 3),
    ("error_200_rate", "rate", 2),
    ("error_200_wait_300", "rate", 1),
    ("error_200_text", "server", 3),
    ("error_200_charged", "server", 3),
    ("no_choices", "server", 3),
    ("not_an_object", "server", 3),
    ("null", "server", 3),
    ("no_message", "server", 3),
    ("parts", None, 1),
    ("parts_image", "server", 3),
    ("choice_error", "server", 3),
    ("finish_error", "server", 3),
    ("length", "truncated", 2),
    ("length_empty", "truncated", 2),
    ("prose", "invalid_json", 3),
    ("in_a_sentence", None, 1),
    ("fenced", None, 1),
    ("nan", "invalid_json", 3),
    ("half_surrogate", "invalid_json", 3),
    ("half_surrogate_text", "invalid_json", 3),
    ("nested", "invalid_json", 3),
    ("refusal", "refusal", 1),
    ("content_none", "empty", 3),
    ("content_empty", "empty", 3),
    ("content_filter", "content_filter", 1),
    ("out_of_range", "invalid_schema", 3),
    ("extra_key", "invalid_schema", 3),
    ("html", "server", 3),
    ("http_400", "bad_request", 1),
    ("http_400_body", "bad_request", 1),
    ("http_400_long", "too_long", 1),
    ("http_400_filter", "content_filter", 1),
    ("http_401", "auth", 1),
    ("http_402", "payment", 1),
    ("http_403", "auth", 1),
    ("http_403_flagged", "content_filter", 1),
    ("http_404", "not_found", 1),
    ("http_408", "timeout", 3),
    ("http_422", "bad_request", 1),
    ("http_429", "rate", 2),
    ("http_429_bare", "rate", 2),
    ("http_429_1", "rate", 2),
    ("http_429_300", "rate", 1),
    ("http_429_quota", "payment", 1),
    ("http_429_date", "rate", 1),
    ("http_500", "server", 3),
    ("http_503", "server", 3),
    ("http_503_300", "server", 1),
    ("reset", "transport", 3),
    ("half_body", "transport", 3),
    ("half_json", "transport", 3),
    ("stall", "timeout", 3),
    ("drip", "timeout", 3),
]
SHORT_TIMEOUT = {"stall": 1.0, "drip": 1.0}
# these cost nothing: an answer without usage, or none at all
FREE = {"no_usage"} | {row for row in ROWS if row.startswith(("http_", "error_200", "no_"))}
FREE |= {"null", "not_an_object", "html", "reset", "half_body", "half_json", "stall", "drip"}
FREE -= {"error_200_charged"}


def test_the_table_has_every_row():
    assert {row for row, _, _ in ALONE} == set(ROWS)


@pytest.mark.parametrize(("row", "kind", "calls"), ALONE, ids=[row for row, _, _ in ALONE])
def test_a_row_alone(row: str, kind: Kind | None, calls: int, tmp_path: Path):
    cache = tmp_path / "cache.jsonl"

    async def main(server: FakeEndpoint) -> tuple[Verdict | LLMError, LLMClient]:
        timeout = SHORT_TIMEOUT.get(row, 15.0)
        async with client_at(server, timeout=timeout, cache_path=cache) as client:
            return await outcome(client.structured("judge", ask("x"), Verdict)), client

    with FakeEndpoint(in_order(row)) as server:
        got, client = run(main(server))
        assert server.rows == [row] * calls
        spending = client.ledger.spendings["all", "judge"]
        assert spending.calls == calls
        assert client.ledger.cost_usd == pytest.approx(server.charged)
        assert spending.completion_tokens == server.charged_tokens
        assert (spending.completion_tokens == 0) == (row in FREE)
        if kind is None:
            assert got == Verdict.model_validate(GOOD)
            assert client.ledger.failures == {} and len(cache.read_text().splitlines()) == 1
            return
        assert isinstance(got, LLMError)
        assert (got.kind, got.role) == (kind, "judge") and got.detail
        assert failures(client) == {kind: (calls, 1)}
        kept = client.ledger.failures["all", "judge", kind].examples
        assert len(kept) == min(calls, 3)
        assert not cache.exists()


# of those with a time limit, test_an_endpoint_in_this_process has one that passes
PASSING = [row for row, kind, calls in ALONE if kind and calls > 1 and row not in SHORT_TIMEOUT]


@pytest.mark.parametrize("row", PASSING)
def test_a_row_that_passes(row: str):
    """What is tried again succeeds at the second try, and is counted."""

    async def main(server: FakeEndpoint) -> LLMClient:
        async with client_at(server) as client:
            verdict = await client.structured("judge", ask("x"), Verdict)
            assert verdict == Verdict.model_validate(GOOD)
            return client

    with FakeEndpoint(in_order(row, "ok")) as server:
        client = run(main(server))
        assert server.rows == [row, "ok"]
        (counts,) = failures(client).values()
        assert counts == (1, 0)


def test_errors_say_what_to_do():
    async def main(server: FakeEndpoint) -> LLMError:
        async with client_at(server) as client:
            error = await outcome(client.structured("judge", ask("x"), Verdict))
            assert isinstance(error, LLMError)
            return error

    for row, words in [
        ("http_404", "excluded by ['require_parameters']"),
        ("html", "base_url=http://127.0.0.1"),
        ("http_429_300", "300 s are longer than max_retry_after_s=5"),
        ("http_403_flagged", "reasons ['violence']"),
        ("out_of_range", "score: Input should be less than or equal to 10"),
        ("extra_key", "also: Extra inputs are not permitted"),
        ("refusal", "I cannot help with that."),
        ("http_422", "HTTP 422: body.seed: Extra inputs are not permitted"),
        ("html", "Welcome"),
        ("length", "5 tokens"),
        ("choice_error", "the provider hung up"),
    ]:
        with FakeEndpoint(in_order(row)) as server:
            error = run(main(server))
            assert words in error.detail and str(error).startswith(f"judge: {error.kind}: ")


def test_nobody_listens():
    with FakeEndpoint(in_order("ok")) as server:
        role = role_at(server)

    async def main() -> LLMError:
        async with LLMClient([OpenAIEndpoint(role)], retry=FAST) as client:
            error = await outcome(client.complete("judge", ask("x")))
            assert isinstance(error, LLMError)
            return error

    assert run(main()).kind == "transport"


# --- what is sent


def test_a_reask_shows_the_answer_and_what_was_wrong_with_it():
    async def main(server: FakeEndpoint) -> None:
        async with client_at(server, seed=3) as client:
            await client.structured("judge", ask("x"), Verdict)

    with FakeEndpoint(in_order("out_of_range", "prose", "ok")) as server:
        run(main(server))
    first, second, third = [request.body for request in server.requests]
    assert first["messages"] == ask("x")
    assert second["messages"][:2] == ask("x") and len(second["messages"]) == 4
    assert second["messages"][2] == {
        "role": "assistant",
        "content": json.dumps({**GOOD, "score": 42}),
    }
    assert "less than or equal to 10" in second["messages"][3]["content"]
    # the last answer only: re-asks do not pile up
    assert len(third["messages"]) == 4 and "My verdict" in third["messages"][2]["content"]
    assert len({body["seed"] for body in (first, second, third)}) == 3


def test_a_truncated_answer_gets_twice_the_tokens():
    async def main(server: FakeEndpoint) -> list[int]:
        async with client_at(server, max_tokens=100, seed=3) as client:
            await outcome(client.complete("judge", ask("x")))
        return [request.body["max_tokens"] for request in server.requests]

    with FakeEndpoint(in_order("length")) as server:
        assert run(main(server)) == [100, 200]
        assert len({request.body["seed"] for request in server.requests}) == 1
    with FakeEndpoint(in_order("length", "http_500", "content_empty", "ok")) as server:
        assert run(main(server)) == [100, 200, 200, 200]


def test_truncation_can_be_allowed(tmp_path: Path):
    cache = tmp_path / "cache.jsonl"

    async def main(server: FakeEndpoint) -> list[str | LLMError]:
        async with client_at(server, cache_path=cache) as client:
            cut = await outcome(client.complete("judge", ask("x"), allow_truncated=True))
            again = await outcome(client.complete("judge", ask("x"), allow_truncated=True))
            whole = await outcome(client.complete("judge", ask("x")))
            return [cut, again, whole]

    with FakeEndpoint(in_order("length", "ok")) as server:
        cut, again, whole = run(main(server))
        assert cut == again == '{"rationale": "plain and lo'
        assert whole == json.dumps(GOOD) and len(server.requests) == 2
    with FakeEndpoint(in_order("length_empty")) as server:

        async def empty(server: FakeEndpoint) -> str | LLMError:
            async with client_at(server) as client:
                return await outcome(client.complete("judge", ask("x"), allow_truncated=True))

        error = run(empty(server))
        assert isinstance(error, LLMError) and error.kind == "truncated"


def test_the_body_of_a_request(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-of-somebody")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")

    async def main(server: FakeEndpoint) -> None:
        async with client_at(
            server,
            max_tokens_field="max_completion_tokens",
            temperature=0.5,
            seed=7,
            extra_body={"provider": {"order": ["A"]}, "reasoning": {"effort": "low"}},
        ) as client:
            await client.structured("judge", ask("x"), Verdict, sample_index=2, max_tokens=50)
            await client.complete("judge", ask("y"))

    with FakeEndpoint(in_order("ok")) as server:
        run(main(server))
    structured, free = server.requests
    assert structured.path == "/v1/chat/completions"
    assert structured.body == {
        "model": "fake",
        "messages": ask("x"),
        "max_completion_tokens": 50,
        "temperature": 0.5,
        "seed": 7 * 1_000_003 + 32,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": strict_schema(Verdict)},
        },
        "provider": {"order": ["A"]},
        "reasoning": {"effort": "low"},
    }
    assert free.body["max_completion_tokens"] == 1024 and "response_format" not in free.body
    assert structured.authorization == "Bearer none"


def test_where_a_reply_came_from():
    async def main(server: FakeEndpoint) -> Reply:
        async with client_at(server) as client:
            return await client.ask("judge", ask("x"))

    with FakeEndpoint(in_order("ok")) as server:
        assert run(main(server)) == Reply(
            text=json.dumps(GOOD),
            finish_reason="stop",
            usage=Usage(11, 5, 0.001),
            provider="Loopback",
            model="fake-dated",
            generation_id="gen-0",
        )
    with FakeEndpoint(in_order("half_surrogate_text")) as server:
        assert run(main(server)).text == "so ? so"


# --- all rows mixed, under load


def expected(rows: list[str], retry: RetryPolicy) -> tuple[Kind | None, int]:
    """How a call that meets these rows and then "ok" ends, and how many requests it makes."""
    kinds = {row: (kind, calls) for row, kind, calls in ALONE}
    left = {"again": retry.max_retries, "rate": retry.max_rate_retries}
    left |= {"reask": retry.max_reasks, "truncated": 1}
    for number, row in enumerate(rows, start=1):
        kind, calls = kinds[row]
        if kind is None:
            return None, number
        group = "again"
        if kind in ("rate", "truncated"):
            group = kind
        elif kind in ("empty", "invalid_json", "invalid_schema"):
            group = "reask"
        if calls == 1 or left[group] == 0:
            return kind, number
        left[group] -= 1
    return None, len(rows) + 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_rows_mixed_under_load(seed: int, tmp_path: Path):
    rng = random.Random(seed)
    retry = dataclasses.replace(FAST, max_retries=3, max_rate_retries=30, seed=seed)
    # a pause of 300 s ends a role's work and one of 1 s is slow; with a limit on time, what a call
    # meets would depend on the machine: all of these have tests of their own
    apart = ("http_429_date", "http_429_1", *SHORT_TIMEOUT)
    usual = [row for row in ROWS if "300" not in row and row not in apart]
    plan = {
        f"item {i}": [rng.choice(usual) for _ in range(rng.choice((0, 1, 2, 4)))] for i in range(56)
    }
    names = list(plan)
    for name, row in zip(rng.sample(names, len(usual)), usual, strict=True):
        plan[name].insert(0, row)
    seen = {row for own in plan.values() for row in own}
    assert seen == set(usual)
    cache = tmp_path / "cache.jsonl"

    async def main(server: FakeEndpoint) -> tuple[list[Verdict | LLMError], LLMClient]:
        async with client_at(server, retry=retry, cache_path=cache) as client:
            calls = [outcome(client.structured("judge", ask(name), Verdict)) for name in names]
            return await asyncio.gather(*calls), client

    with FakeEndpoint(by_prompt(plan), delay=0.005) as server:
        results, client = run(main(server))
        wrong = {}
        for name, got in zip(names, results, strict=True):
            kind = got.kind if isinstance(got, LLMError) else None
            if (kind, len(server.of(name))) != expected(plan[name], retry):
                wrong[name] = (plan[name], kind, len(server.of(name)))
        assert not wrong
        good = [name for name, got in zip(names, results, strict=True) if isinstance(got, Verdict)]
        assert len(good) > 10 and len(good) < len(names)
        # each answer was paid for once and each failure counted once
        spending = client.ledger.spendings["all", "judge"]
        assert spending.calls == len(server.requests)
        assert client.ledger.cost_usd == pytest.approx(server.charged)
        assert spending.completion_tokens == server.charged_tokens
        counted = sum(count for count, _ in failures(client).values())
        assert counted == spending.calls - len(good)
        assert client.ledger.given_up == len(names) - len(good)
        assert server.most_in_flight <= 8
        # the second time, only what failed is asked for
        made = len(server.requests)
        server.script = in_order("ok")
        results, client = run(main(server))
        assert all(isinstance(got, Verdict) for got in results)
        assert sorted(r.prompt for r in server.requests[made:]) == sorted(set(names) - set(good))
        assert client.ledger.spendings["all", "judge"].cached == len(good)


def test_a_storm_of_429_ends():
    """A server that lets one call through at a time still serves them all."""
    lock, free_at = threading.Lock(), [0.0]

    def strict(number: int, body: object) -> str:
        with lock:
            now = time.monotonic()
            if now < free_at[0]:
                return "http_429"
            free_at[0] = now + 0.02
            return "ok"

    async def main(server: FakeEndpoint) -> list[str]:
        retry = dataclasses.replace(FAST, max_rate_retries=40)
        async with client_at(server, retry=retry) as client:
            return await asyncio.gather(*(client.complete("judge", ask(str(i))) for i in range(24)))

    with FakeEndpoint(strict, retry_after="0.02") as server:
        assert len(run(main(server))) == 24
        assert server.rows.count("ok") == 24


# --- the shared pause


def test_calls_refused_together_are_one_refusal(monkeypatch: pytest.MonkeyPatch):
    async def never(request: Request) -> Reply:
        raise AssertionError

    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    policy = RetryPolicy(backoff_s=16.0, max_backoff_s=1000.0, max_retry_after_s=2000.0)
    lane = Lane(Scripted(Role("judge", "m"), never), policy, 8)
    refusal, rng = LLMError("rate", "judge", "slow down"), random.Random(0)
    for _ in range(8):
        lane.pause(refusal, 99.0, rng)
        now += 0.01
    assert 8 <= lane.pause_left() <= 16
    assert lane.pause(refusal, now, rng) <= 32
    assert 16 <= lane.pause_left() <= 32
    # an answer to a call from before the refusal says nothing
    lane.relax(99.0)
    now += 1
    lane.pause(refusal, now, rng)
    assert 32 <= lane.pause_left() <= 64
    now += 1
    lane.relax(now)
    before = lane.pause_left()
    assert lane.pause(refusal, now, rng) == 0
    assert lane.pause_left() == before
    long = LLMError("rate", "judge", "slow down", retry_after=900.0)
    assert lane.pause(long, now, rng) == pytest.approx(900 - before)
    assert lane.pause_left() == pytest.approx(900)


def test_a_429_pauses_its_role_and_no_other():
    begun: list[int] = []

    async def refuse(request: Request) -> Reply:
        begun.append(len(judge.requests))
        if len(judge.requests) == 3:
            raise LLMError("rate", "judge", "slow down", retry_after=300.0)
        await asyncio.sleep(0)
        return Reply("yes", "stop", None)

    judge = Scripted(Role("judge", "m"), refuse)

    async def main(other: FakeEndpoint) -> list[str]:
        endpoints = [judge, OpenAIEndpoint(role_at(other, "generator"))]
        retry = dataclasses.replace(FAST, max_retry_after_s=1000.0)
        async with LLMClient(endpoints, max_concurrency=2, retry=retry) as client:
            calls = [client.complete("judge", ask(str(i))) for i in range(40)]
            waiting = asyncio.gather(*calls)
            free = [client.complete("generator", ask(str(i))) for i in range(40)]
            answers = await asyncio.gather(*free)
            # one more was in flight at most
            assert 3 <= len(begun) <= 4 and not waiting.done()
            waiting.cancel()
            return answers

    with FakeEndpoint(in_order("ok")) as other:
        assert len(run(main(other))) == len(other.requests) == 40


@pytest.mark.parametrize("kind", ["rate", "server"])
def test_a_pause_that_was_asked_for_is_kept_by_all_calls(kind: Kind):
    wait, refused_at, begun = 0.3, 0.0, []

    async def refuse(request: Request) -> Reply:
        nonlocal refused_at
        begun.append(time.monotonic())
        number = len(begun)
        await asyncio.sleep(0)
        if number == 3:
            refused_at = time.monotonic()
            raise LLMError(kind, "judge", "slow down", retry_after=wait)
        return Reply("yes", "stop", None)

    async def main() -> list[str]:
        endpoint = Scripted(Role("judge", "m"), refuse)
        async with LLMClient([endpoint], max_concurrency=2, retry=FAST) as client:
            return await asyncio.gather(*(client.complete("judge", ask(str(i))) for i in range(20)))

    assert run(main()) == ["yes"] * 20
    assert len(begun) == 21
    during = [at for at in begun if at > refused_at]
    assert len(during) == 21 - 4 and min(during) >= refused_at + wait


@pytest.mark.parametrize("header", ["0", "-3", "soon", "nan", "Fri, 31 Dec 1999 23:59:59 GMT"])
def test_a_retry_after_without_a_wait_means_the_usual_one(header: str):
    async def main(server: FakeEndpoint) -> str:
        retry = dataclasses.replace(FAST, backoff_s=0.4, max_backoff_s=0.4)
        async with client_at(server, retry=retry) as client:
            return await client.complete("judge", ask("x"))

    with FakeEndpoint(in_order("http_429", "ok"), retry_after=header) as server:
        run(main(server))
        first, second = server.requests
        assert second.at - first.at >= 0.2


def test_a_pause_over_the_limit_fails_the_role_at_once():
    async def main(server: FakeEndpoint, other: FakeEndpoint) -> list[str | LLMError]:
        endpoints = [OpenAIEndpoint(role_at(server)), OpenAIEndpoint(role_at(other, "generator"))]
        async with LLMClient(endpoints, max_concurrency=1, retry=FAST) as client:
            calls = [outcome(client.complete("judge", ask(str(i)))) for i in range(5)]
            calls.append(outcome(client.complete("generator", ask("x"))))
            results = await asyncio.gather(*calls)
            assert failures(client) == {"rate": (4, 4)}
            return results

    with (
        FakeEndpoint(in_order("ok", "http_429_300")) as server,
        FakeEndpoint(in_order("ok")) as other,
    ):
        # far sooner than the 300 s, or run() would complain
        results = run(main(server, other))
        assert [isinstance(got, str) for got in results] == [True, False, False, False, False, True]
        assert {got.kind for got in results if isinstance(got, LLMError)} == {"rate"}
        # the server is not asked again while it wants to be left alone
        assert server.rows == ["ok", "http_429_300"]


def test_backoff_doubles_to_its_limit_and_is_drawn_from_the_seed():
    policy = RetryPolicy(backoff_s=1.0, max_backoff_s=8.0)
    for failures_in_a_row, top in [(1, 1.0), (2, 2.0), (3, 4.0), (4, 8.0), (5, 8.0), (5000, 8.0)]:
        waits = [policy.backoff(failures_in_a_row, random.Random(i)) for i in range(200)]
        assert top / 2 <= min(waits) < 0.6 * top and 0.9 * top < max(waits) <= top
    assert policy.backoff(1, random.Random("x")) == policy.backoff(1, random.Random("x"))


# --- money


def test_the_budget_ends_the_run_and_keeps_what_was_paid_for(tmp_path: Path):
    cache = tmp_path / "cache.jsonl"

    async def main(
        server: FakeEndpoint, limit: float | None
    ) -> tuple[list[str | LLMError], LLMClient]:
        async with client_at(
            server, cache_path=cache, max_concurrency=3, max_cost_usd=limit
        ) as client:
            calls = [partial(client.complete, "judge", ask(str(i))) for i in range(20)]
            return await gather_counted(calls, "asking"), client

    with FakeEndpoint(in_order("ok"), delay=0.05, cost=0.25) as server:
        results, client = run(main(server, 1.0))
        paid = [got for got in results if isinstance(got, str)]
        # four calls reach the limit; two more may have been in flight
        assert 4 <= len(paid) <= 6 and len(server.requests) == len(paid)
        assert client.ledger.cost_usd == pytest.approx(server.charged) == 0.25 * len(paid)
        assert {got.kind for got in results if isinstance(got, LLMError)} == {"budget"}
        assert failures(client) == {"budget": (20 - len(paid), 20 - len(paid))}
        assert len(ResponseCache(cache)) == len(paid)
        results, client = run(main(server, None))
        assert all(isinstance(got, str) for got in results) and len(server.requests) == 20
        spending = client.ledger.spendings["all", "judge"]
        assert (spending.calls, spending.cached) == (20 - len(paid), len(paid))
        assert client.ledger.cost_usd == pytest.approx(0.25 * (20 - len(paid)))


def test_retries_and_reasks_are_calls_that_the_budget_stops():
    async def main(server: FakeEndpoint) -> LLMClient:
        async with client_at(server, max_cost_usd=0.5) as client:
            error = await outcome(client.structured("judge", ask("x"), Verdict))
            assert isinstance(error, LLMError) and error.kind == "budget"
            return client

    with FakeEndpoint(in_order("prose"), cost=0.3) as server:
        client = run(main(server))
        assert len(server.requests) == 2 and client.ledger.cost_usd == pytest.approx(0.6)


def test_a_limit_that_cannot_work_is_said_once(caplog: pytest.LogCaptureFixture):
    async def main(server: FakeEndpoint) -> LLMClient:
        async with client_at(server, max_cost_usd=0.5) as client:
            for i in range(3):
                await client.complete("judge", ask(str(i)))
            return client

    with FakeEndpoint(in_order("ok"), cost=None) as server:
        client = run(main(server))
    assert client.ledger.cost_usd == 0 and client.ledger.table()[0][-1] is None
    assert client.ledger.spendings["all", "judge"].replies_without_cost == 3
    assert caplog.text.count("max_cost_usd") == 1


# --- many calls


def test_one_failed_item_does_not_end_the_rest(capsys: pytest.CaptureFixture[str]):
    async def main(server: FakeEndpoint) -> list[str | LLMError]:
        async with client_at(server) as client:
            calls = [partial(client.complete, "judge", ask(f"item {i}")) for i in range(12)]
            return await gather_counted(calls, "asking")

    def text(body: Any) -> str:
        return f"answer to {body['messages'][1]['content']}"

    plan = {"item 3": ["refusal"], "item 7": ["content_filter"], "item 8": ["http_400_long"]}
    with FakeEndpoint(by_prompt(plan), text=text) as server:
        results = run(main(server))
    kinds = {i: got.kind for i, got in enumerate(results) if isinstance(got, LLMError)}
    assert kinds == {3: "refusal", 7: "content_filter", 8: "too_long"}
    assert [got for got in results if isinstance(got, str)] == [
        f"answer to item {i}" for i in range(12) if i not in kinds
    ]
    shown = capsys.readouterr().err
    assert "asking: 12/12" in shown and "failed=3" in shown and "tok/s" in shown


@pytest.mark.parametrize("row", ["http_400", "http_401", "http_402", "http_404"])
def test_what_the_rest_would_meet_too_stops_them(row: str, tmp_path: Path):
    cache = tmp_path / "cache.jsonl"
    others_in_flight, refused = threading.Semaphore(0), threading.Event()

    def hold(request: Recorded) -> None:
        """Item 5 is refused when the other slots are taken, and they are answered after that."""
        number = int(request.prompt.removeprefix("item "))
        if number == 5:
            for _ in range(3):
                others_in_flight.acquire()
        elif 5 < number < 39:
            others_in_flight.release()
            refused.wait()

    async def main(server: FakeEndpoint) -> list[str | LLMError]:
        async with client_at(server, cache_path=cache, max_concurrency=4) as client:

            async def one(i: int) -> str:
                try:
                    return await client.complete("judge", ask(f"item {i}"))
                except LLMError:
                    refused.set()
                    raise

            await one(39)
            results = await gather_counted([partial(one, i) for i in range(40)], "asking")
            # the batch is over, the client is not
            assert await client.complete("judge", ask("item 40"))
            return results

    with FakeEndpoint(by_prompt({"item 5": [row]}), before_answer=hold) as server:
        results = run(main(server))
        kinds = {i: got.kind for i, got in enumerate(results) if isinstance(got, LLMError)}
        # what was in flight is kept, and what was in the cache is served
        made = [*range(9), 39]
        assert sorted(r.prompt for r in server.requests) == sorted(f"item {i}" for i in [*made, 40])
        assert set(kinds) == {5, *range(9, 39)}
        assert {kinds[i] for i in range(9, 39)} == {"not_started"} != {kinds[5]}
        assert len(ResponseCache(cache)) == len(made)
        stopped = results[9]
        assert isinstance(stopped, LLMError) and stopped.detail.startswith("stopped by judge: ")


def test_nobody_waits_out_a_pause_for_a_batch_that_is_over(caplog: pytest.LogCaptureFixture):
    async def main(server: FakeEndpoint, other: FakeEndpoint) -> list[str | LLMError]:
        endpoints = [OpenAIEndpoint(role_at(server)), OpenAIEndpoint(role_at(other, "generator"))]
        retry = dataclasses.replace(FAST, max_retry_after_s=1000.0)
        async with LLMClient(endpoints, retry=retry) as client:

            async def second() -> str:
                await asyncio.sleep(0.3)
                return await client.complete("generator", ask("x"))

            return await gather_counted(
                [partial(client.complete, "judge", ask("x")), second], "asking"
            )

    with (
        FakeEndpoint(in_order("http_429_300")) as server,
        FakeEndpoint(in_order("http_402")) as other,
    ):
        results = run(main(server, other))
    assert [got.kind for got in results if isinstance(got, LLMError)] == ["not_started", "payment"]
    # a script that stands still says why
    assert caplog.text.count("no call of this role for 300 s") == 1


def test_a_bug_is_raised_and_cancels_the_rest():
    cancelled = []

    async def long() -> str:
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:
            cancelled.append(1)
            raise
        return "never"

    async def bug() -> str:
        await asyncio.sleep(0)
        raise ZeroDivisionError("a bug")

    with pytest.raises(ZeroDivisionError, match="a bug"):
        run(gather_counted([long, bug, long], "asking"))
    assert cancelled == [1, 1]
    assert run(gather_counted([], "asking")) == []

    async def inner() -> None:
        await gather_counted([], "inside")

    with pytest.raises(RuntimeError, match="inside a call of gather_counted"):
        run(gather_counted([inner], "asking"))


# --- concurrency and sharing


@pytest.mark.parametrize(
    ("of_client", "of_role", "limit"), [(3, None, 3), (1, None, 1), (2, 5, 5), (5, 2, 2)]
)
def test_the_concurrency_limit_is_kept_and_used(of_client: int, of_role: int | None, limit: int):
    async def main(server: FakeEndpoint) -> None:
        endpoint = OpenAIEndpoint(role_at(server, max_concurrency=of_role))
        async with LLMClient([endpoint], max_concurrency=of_client, retry=FAST) as client:
            await asyncio.gather(*(client.complete("judge", ask(str(i))) for i in range(20)))

    def hold(request: Recorded) -> None:
        """Until as many are in flight as may be; a moment longer for one more that may not."""
        while server.most_in_flight < limit:
            time.sleep(0.002)
        time.sleep(0.02)

    with FakeEndpoint(in_order("ok", "http_500", "ok"), before_answer=hold) as server:
        run(main(server))
        assert server.most_in_flight == limit and len(server.requests) == 21


def test_identical_calls_in_flight_are_one_call():
    async def main(server: FakeEndpoint) -> LLMClient:
        async with client_at(server) as client:
            calls = [client.complete("judge", ask("x")) for _ in range(5)]
            calls += [client.complete("judge", ask("x"), sample_index=i) for i in (1, 2, 2)]
            await asyncio.gather(*calls)
            return client

    with FakeEndpoint(in_order("ok"), delay=0.05) as server:
        client = run(main(server))
        assert len(server.requests) == 3
        spending = client.ledger.spendings["all", "judge"]
        assert (spending.calls, spending.cached) == (3, 5)
        assert client.ledger.cost_usd == pytest.approx(0.003)


def test_a_shared_failure_is_one_failure():
    async def main(server: FakeEndpoint) -> LLMClient:
        async with client_at(server) as client:
            calls = [outcome(client.complete("judge", ask("x"))) for _ in range(4)]
            errors = [got for got in await asyncio.gather(*calls) if isinstance(got, LLMError)]
            assert [error.kind for error in errors] == ["refusal"] * 4
            return client

    with FakeEndpoint(in_order("refusal"), delay=0.05) as server:
        client = run(main(server))
        assert len(server.requests) == 1 and failures(client) == {"refusal": (1, 1)}


def test_who_shared_a_cancelled_call_makes_it():
    gate = Gate()
    gate.close_at(0)

    async def main(server: FakeEndpoint) -> None:
        async with client_at(server) as client:
            first = asyncio.create_task(client.complete("judge", ask("x")))
            while not server.requests:
                await asyncio.sleep(0.002)
            others = [asyncio.create_task(client.complete("judge", ask("x"))) for _ in range(3)]
            # once round the loop, until they wait for the first
            await asyncio.sleep(0)
            first.cancel()
            gate.open()
            assert await asyncio.gather(*others) == [json.dumps(GOOD)] * 3
            assert first.cancelled()

    with FakeEndpoint(in_order("ok"), before_answer=gate) as server:
        run(main(server))
        assert len(server.requests) == 2


def test_an_endpoint_in_this_process(tmp_path: Path):
    """Another provider needs `role`, `complete` and `close`; everything else is the client's."""

    async def answer(request: Request) -> Reply:
        await asyncio.sleep(0)
        if len(endpoint.requests) == 1:
            return Reply("{", "length", Usage(3, 4))
        if len(endpoint.requests) == 2:
            await asyncio.sleep(60)
        return Reply(json.dumps(GOOD), "stop", Usage(3, 4))

    endpoint = Scripted(Role("target", "local", timeout=0.2, seed=1), answer)

    async def main() -> LLMClient:
        async with LLMClient([endpoint], retry=FAST, max_cost_usd=1.0) as client:
            verdict = await client.structured("target", ask("x"), Verdict, sample_index=1)
            assert verdict.score == 7
            return client

    client = run(main())
    assert endpoint.closed and failures(client) == {"truncated": (1, 0), "timeout": (1, 0)}
    assert [request.max_tokens for request in endpoint.requests] == [1024, 2048, 2048]
    assert {request.sample_index for request in endpoint.requests} == {1}
    assert endpoint.requests[0].json_schema == strict_schema(Verdict)
    assert client.ledger.to_plain()["calls"][0]["prompt_tokens"] == 6


# --- the cache


def test_what_makes_two_calls_the_same():
    role = Role("judge", "m", "http://a/v1", temperature=1.0, seed=1)
    request = Request(ask("x"), {"a": 1, "b": 2}, 0, 10, 1.0, 1)
    key = cache_key(role, request)
    replace = dataclasses.replace
    assert cache_key(replace(role, name="other", api_key_env="A", timeout=9.0), request) == key
    others = [
        cache_key(replace(role, model="n"), request),
        cache_key(replace(role, base_url="http://b/v1"), request),
        cache_key(replace(role, base_url=None), request),
        cache_key(replace(role, extra_body={"provider": {"order": ["A"]}}), request),
        cache_key(role, replace(request, messages=ask("y"))),
        cache_key(role, replace(request, json_schema=None)),
        cache_key(role, replace(request, json_schema={"b": 2, "a": 1})),
        cache_key(role, replace(request, sample_index=1)),
        cache_key(role, replace(request, max_tokens=11)),
        cache_key(role, replace(request, temperature=None)),
        cache_key(role, replace(request, temperature=0.9)),
        cache_key(role, replace(request, seed=2)),
    ]
    assert len({key, *others}) == len(others) + 1


def test_errors_are_not_cached_and_a_good_answer_after_them_is(tmp_path: Path):
    cache = tmp_path / "cache.jsonl"

    async def main(server: FakeEndpoint) -> list[Verdict | LLMError]:
        async with client_at(server, cache_path=cache) as client:
            return [await outcome(client.structured("judge", ask("x"), Verdict)) for _ in range(3)]

    with FakeEndpoint(in_order("refusal", "prose", "ok")) as server:
        first, second, third = run(main(server))
        assert isinstance(first, LLMError) and second == third == Verdict.model_validate(GOOD)
        assert server.rows == ["refusal", "prose", "ok"]
        assert run(main(server)) == [second] * 3
        assert len(server.requests) == 3


def test_a_cached_answer_that_no_longer_fits_is_asked_for_again(tmp_path: Path):
    cache = tmp_path / "cache.jsonl"

    async def main(server: FakeEndpoint) -> Verdict:
        async with client_at(server, cache_path=cache) as client:
            return await client.structured("judge", ask("x"), Verdict)

    with FakeEndpoint(in_order("ok")) as server:
        run(main(server))
        record = json.loads(cache.read_text())
        record["reply"]["text"] = json.dumps({**GOOD, "score": 11})
        cache.write_text(json.dumps(record) + "\n")
        assert run(main(server)).score == 7 and len(server.requests) == 2
        assert run(main(server)).score == 7 and len(server.requests) == 2


def test_a_cache_torn_at_any_point_is_taken_up(tmp_path: Path):
    cache = tmp_path / "cache.jsonl"

    async def main(server: FakeEndpoint, n: int) -> None:
        async with client_at(server, cache_path=cache, max_concurrency=1) as client:
            for i in range(n):
                await client.complete("judge", ask(f"item {i}"))

    def text(body: Any) -> str:
        return f"answer {body['messages'][1]['content']} é"

    with FakeEndpoint(in_order("ok"), text=text) as server:
        run(main(server, 4))
        whole = cache.read_bytes()
        last = whole.rstrip(b"\n").rfind(b"\n") + 1
        for cut in [last, last + 1, last + 20, len(whole) - 40, len(whole) - 2, len(whole) - 1]:
            cache.write_bytes(whole[:cut])
            made = len(server.requests)
            run(main(server, 5))
            lost = [] if cut == len(whole) - 1 else ["item 3"]
            assert [r.prompt for r in server.requests[made:]] == [*lost, "item 4"], cut
            made = len(server.requests)
            run(main(server, 5))
            assert len(server.requests) == made


USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "cost_usd": None}
# as runs have written it
REPLY = {"text": "yes \ud800", "finish_reason": None, "usage": USAGE, "provider": None}
LINE = {"key": "k", "role": "judge", "sample_index": 1, "reply": REPLY}


@pytest.mark.parametrize(
    "line",
    [
        {"a": 1},
        {"key": "k"},
        {"reply": REPLY},
        {**LINE, "key": 1},
        {**LINE, "key": None},
        {**LINE, "reply": None},
        {**LINE, "reply": "yes"},
        {**LINE, "reply": {"text": 1}},
        {**LINE, "reply": {**REPLY, "other": 1}},
        {**LINE, "reply": {**REPLY, "not_sent": None}},
        {**LINE, "reply": {**REPLY, "usage": {**USAGE, "other": 1}}},
        {**LINE, "reply": {**REPLY, "usage": {"prompt_tokens": 3}}},
        *({**LINE, "reply": {k: REPLY[k] for k in REPLY if k != name}} for name in list(REPLY)[:3]),
    ],
)
def test_a_file_that_is_no_cache_is_refused(tmp_path: Path, line: dict[str, Any]):
    cache = tmp_path / "x.jsonl"
    cache.write_text(f"{json.dumps(LINE)}\n{json.dumps(line)}\n")
    message = f"{cache} is no response cache, it holds {json.dumps(line)[:100]}; name another"
    with pytest.raises(ValueError, match=re.escape(message)):
        ResponseCache(cache)


def test_what_a_cache_holds_is_read_as_it_was_put(tmp_path: Path):
    cache = tmp_path / "cache.jsonl"
    full = Reply(
        *("two\nlines \ud800", "stop", Usage(3, 4, 0.5), "provider", "model", "id", "refusal"),
        not_sent=("seed", "temperature"),
    )
    plain = Reply("", None, None)
    ResponseCache(cache).put("full", full, role="judge", sample_index=0)
    ResponseCache(cache).put("plain", plain)
    # files from before `not_sent` was kept, and whose endpoint told a cost without a fraction
    older = {**REPLY, "usage": {**USAGE, "cost_usd": 1}}
    append_jsonl(cache, {**LINE, "reply": older})
    read = ResponseCache(cache)
    assert (read.get("full"), read.get("plain")) == (full, plain)
    assert read.get("k") == Reply("yes \ud800", None, Usage(3, 4, 1))
    assert len(read) == 3 and read.get("other") is None


DRIVER = """
import asyncio, sys
from functools import partial
from pathlib import Path
from utils.llm.client import LLMClient
from utils.llm.api import Role
from utils.llm.batch import gather_counted
from utils.llm.openai_endpoint import OpenAIEndpoint

url, cache, n = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])

async def one(client, i):
    text = await client.complete("judge", [{"role": "user", "content": f"item {i}"}])
    print(f"{i} {text}", flush=True)

async def main():
    endpoint = OpenAIEndpoint(Role("judge", "fake", url))
    async with LLMClient([endpoint], cache_path=cache, max_concurrency=4) as client:
        await gather_counted([partial(one, client, i) for i in range(n)], "asking")

asyncio.run(main())
"""


def test_kill_9_loses_no_finished_call(tmp_path: Path):
    cache, n, kills = tmp_path / "cache.jsonl", 60, 2
    rng = random.Random(5)

    def text(body: Any) -> str:
        return f"answer to {body['messages'][0]['content']}"

    def start(server: FakeEndpoint) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", DRIVER, server.base_url, str(cache), str(n)]
        return subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )

    finished: set[str] = set()
    with FakeEndpoint(in_order("ok"), delay=0.02, text=text) as server:
        for _ in range(kills):
            made = len(server.requests)
            enough = made + rng.randrange(5, 22)
            process = start(server)
            while len(server.requests) < enough:
                assert process.poll() is None
                time.sleep(0.002)
            process.kill()
            shown, _ = process.communicate()
            repeated = finished & {request.prompt for request in server.requests[made:]}
            assert repeated == set()
            lines = [line for line in shown.split("\n")[:-1] if " " in line]
            finished |= {f"item {line.split()[0]}" for line in lines}
            assert len(finished) > 0
        made = len(server.requests)
        process = start(server)
        shown, _ = process.communicate(timeout=30)
        assert process.returncode == 0
        assert not finished & {request.prompt for request in server.requests[made:]}
        assert sorted(shown.splitlines()) == sorted(f"{i} answer to item {i}" for i in range(n))
        # at most what was in flight at a kill was asked for twice
        assert len(server.requests) <= n + kills * 4
        assert len(ResponseCache(cache)) == n


# --- roles and keys


def test_two_roles_have_their_own_url_model_and_key(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    monkeypatch.setenv("TARGET_KEY", OTHER_KEY)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-the-environment")

    async def main(first: FakeEndpoint, second: FakeEndpoint) -> LLMClient:
        judge = role_at(first, "judge", model="a", api_key_env="JUDGE_KEY")
        target = role_at(second, "target", model="b", api_key_env="TARGET_KEY")
        free = role_at(second, "free", model="c")
        endpoints = [OpenAIEndpoint(role) for role in (judge, target, free)]
        async with LLMClient(endpoints, retry=FAST) as client:
            with stage("first"):
                await asyncio.gather(
                    *(client.complete(name, ask("x")) for name in ("judge", "target", "free"))
                )
            with stage("second"):
                await client.complete("judge", ask("y"))
            with pytest.raises(ValueError, match="role 'nobody': this client has judge, target"):
                await client.complete("nobody", ask("x"))
            return client

    with FakeEndpoint(in_order("ok")) as first, FakeEndpoint(in_order("ok")) as second:
        client = run(main(first, second))
        sent = {(r.body["model"], r.authorization) for r in first.requests}
        assert sent == {("a", f"Bearer {KEY}")}
        sent = {(r.body["model"], r.authorization) for r in second.requests}
        assert sent == {("b", f"Bearer {OTHER_KEY}"), ("c", "Bearer none")}
    rows = {tuple(row[:3]) for row in client.ledger.table()}
    assert rows == {
        ("first", "judge", 1),
        ("first", "target", 1),
        ("first", "free", 1),
        ("second", "judge", 1),
    }


def test_keys_are_never_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    cache = tmp_path / "cache.jsonl"
    for name in ("", "openai", "httpx2", "httpcore2", "httpcore", "utils"):
        caplog.set_level(logging.DEBUG, logger=name)
    seen: list[str] = []
    # the library's own errors hold the request with its headers
    ours = {*sys.stdlib_module_names, "utils"}

    async def main(server: FakeEndpoint) -> None:
        role = role_at(server, api_key_env="JUDGE_KEY", timeout=1.0)
        async with LLMClient([OpenAIEndpoint(role)], cache_path=cache, retry=FAST) as client:
            for row in ("http_401", "http_500", "reset", "stall", "ok"):
                got = await outcome(client.complete("judge", ask(row)))
                if isinstance(got, LLMError):
                    seen.append("".join(traceback.format_exception(got, chain=True)))
                    assert got.__cause__ is None
                    context = got.__context__
                    while context is not None:
                        assert type(context).__module__.split(".")[0] in ours
                        context = context.__context__
                    seen.append(repr(vars(got)))
            seen.append(repr(role) + json.dumps(client.ledger.to_plain()))

    rows = {name: [name] * 3 for name in ("http_401", "http_500", "reset", "stall")}
    with FakeEndpoint(by_prompt(rows)) as server:
        run(main(server))
        assert {r.authorization for r in server.requests} == {f"Bearer {KEY}"}
    seen += [caplog.text, cache.read_text()]
    assert "Incorrect API key provided: [key]" in "".join(seen)
    assert len(caplog.text) > 1000
    assert KEY not in "".join(seen)


def test_all_that_is_wrong_with_roles_is_said_together(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    monkeypatch.setenv("SPACED_KEY", "sk-secret with space")
    for good in (
        Role("a", "m"),
        Role("a", "m", "http://127.0.0.1:8000/v1"),
        Role("a", "m", "https://example.org/v1", seed=0, temperature=0.0, max_concurrency=1),
    ):
        assert good.check() == []
    bad = Role(
        "judge",
        "",
        "ftp://x",
        max_tokens_field="tokens",
        temperature=3.0,
        max_tokens=0,
        timeout=float("inf"),
        extra_body={"stream": True, "x": object(), "seed": 1},
        seed=-1,
        max_concurrency=0,
        leave_out=("seed", "top_p"),
    )
    problems = "\n".join(bad.check())
    for name in (
        *("model=''", "base_url='ftp://x'", "max_tokens_field='tokens'", "temperature=3.0"),
        *("max_tokens=0", "timeout=inf", "sets 'stream'", "is no JSON"),
        *("sets 'seed'", "leave_out names ['top_p']", "seed=-1 is set, and leave_out names it"),
        *("seed=-1", "max_concurrency=0"),
    ):
        assert f"judge.{name}" in problems or name in problems, name
    assert "NO_SUCH_KEY is not set" in Role("a", "m", "http://x/v1", "NO_SUCH_KEY").check()[0]
    (spaced,) = Role("a", "m", "http://x/v1", "SPACED_KEY").check()
    assert "SPACED_KEY" in spaced and "sk-secret" not in spaced
    (keyless,) = Role("a", "m", "https://openrouter.ai/api/v1").check()
    assert "openrouter.ai wants a key" in keyless
    for url in ("http://user:sk-secret@x/v1", "http://x/v1?key=sk-secret"):
        (problem,) = Role("a", "m", url).check()
        assert "sk-secret" not in problem and "api_key_env" in problem
    for url in ("http://[", "http://x:999999/v1", "x.org/v1"):
        assert "base_url" in Role("a", "m", url).check()[0]

    async def never(request: Request) -> Reply:
        raise AssertionError

    with pytest.raises(ConfigError) as error:
        LLMClient([Scripted(bad, never), Scripted(bad, never)], max_concurrency=0, max_cost_usd=0)
    text = str(error.value)
    for word in ("judge.seed=-1", "each name once", "max_concurrency=0", "max_cost_usd=0"):
        assert word in text
    with pytest.raises(ConfigError, match="NO_SUCH_KEY"):
        OpenAIEndpoint(Role("a", "m", "http://x/v1", "NO_SUCH_KEY"))
    with pytest.raises(ConfigError, match="base_url=None"):
        OpenAIEndpoint(Role("a", "m"))


def test_the_ledger_as_tables_and_yaml():
    async def main(server: FakeEndpoint) -> LLMClient:
        async with client_at(server) as client:
            for i in range(5):
                await outcome(client.structured("judge", ask(f"item {i}"), Verdict))
            return client

    plan = {f"item {i}": ["prose"] for i in range(4)}
    plan["item 4"] = ["refusal"]
    with FakeEndpoint(by_prompt(plan)) as server:
        ledger = run(main(server)).ledger
    assert ledger.table() == [["all", "judge", 9, 0, 1, 99, 45, pytest.approx(0.009)]]
    assert [row[:5] for row in ledger.failure_table()] == [
        ["all", "judge", "invalid_json", 4, 0],
        ["all", "judge", "refusal", 1, 1],
    ]
    assert len(ledger.failures["all", "judge", "invalid_json"].examples) == 3
    plain = yaml.safe_load(yaml.safe_dump(ledger.to_plain()))
    assert plain == ledger.to_plain() and plain["calls"][0]["stage"] == "all"
    assert "refusal" in text_table(ledger.FAILURE_HEADERS, ledger.failure_table())
    assert "judge" in text_table(ledger.HEADERS, ledger.table())


# --- schemas


class Forbid(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Cat(Forbid):
    """An animal."""

    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(Forbid):
    kind: Literal["dog"]
    pattern: str = Field(pattern="^[a-z]+$", max_length=8)


class Household(Forbid):
    rationale: str = Field(min_length=1, max_length=20, description="why")
    title: str | None
    favourite: Cat = Field(description="the best")
    others: list[Annotated[Cat | Dog, Field(discriminator="kind")]] = Field(
        min_length=1, max_length=3
    )


def test_a_strict_schema_is_flat_closed_and_keeps_its_bounds():
    cat = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "kind": {"const": "cat", "type": "string"},
            "lives": {"type": "integer", "minimum": 1, "maximum": 9},
        },
        "required": ["kind", "lives"],
    }
    dog = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "kind": {"const": "dog", "type": "string"},
            "pattern": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 8},
        },
        "required": ["kind", "pattern"],
    }
    schema = strict_schema(Household)
    assert schema == {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "rationale": {
                "type": "string",
                "minLength": 1,
                "maxLength": 20,
                "description": "why",
            },
            "title": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "favourite": {**cat, "description": "the best"},
            "others": {
                "type": "array",
                "minItems": 1,
                "maxItems": 3,
                "items": {"anyOf": [{**cat, "description": "An animal."}, dog]},
            },
        },
        "required": ["rationale", "title", "favourite", "others"],
    }
    assert list(schema["properties"]) == ["rationale", "title", "favourite", "others"]


def test_bounds_can_be_said_instead():
    schema = without_bounds(strict_schema(Household))
    text = json.dumps(schema)
    for name in ("minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum"):
        assert f'"{name}":' not in text
    properties = schema["properties"]
    assert properties["rationale"] == {
        "type": "string",
        "description": "why (minLength: 1, maxLength: 20)",
    }
    dog = properties["others"]["items"]["anyOf"][1]
    assert dog["properties"]["pattern"]["description"] == "(maxLength: 8, pattern: ^[a-z]+$)"
    assert strict_schema(Verdict)["properties"]["score"]["maximum"] == 10


def test_llguidance_enforces_a_strict_schema():
    tokenizer = llguidance.LLTokenizer("byte")
    grammar = llguidance.LLMatcher.grammar_from_json_schema(
        json.dumps(strict_schema(Household)), defaults={"whitespace_flexible": False}
    )
    good: dict[str, Any] = {
        "rationale": "x" * 20,
        "title": None,
        "favourite": {"kind": "cat", "lives": 9},
        "others": [{"kind": "dog", "pattern": "rex"}, {"kind": "cat", "lives": 1}],
    }

    def accepted(value: dict[str, Any]) -> bool:
        matcher = llguidance.LLMatcher(tokenizer, grammar)
        assert matcher.get_error() == ""
        tokens = tokenizer.tokenize_str(json.dumps(value, separators=(",", ":")))
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()

    assert accepted(good)
    for change in (
        {"rationale": ""},
        {"rationale": "x" * 21},
        {"title": 3},
        {"favourite": {"kind": "cat", "lives": 10}},
        {"favourite": {"kind": "cat", "lives": 0}},
        {"favourite": {"kind": "dog", "pattern": "rex"}},
        {"others": []},
        {"others": [{"kind": "cat", "lives": 1}] * 4},
        {"others": [{"kind": "dog", "pattern": "Rex"}]},
        {"also": 1},
    ):
        assert not accepted({**good, **change}), change


class Open(BaseModel):
    a: int


class Defaulted(Forbid):
    a: int = 3
    b: str | None = None


class Free(Forbid):
    table: dict[str, int]
    anything: Any
    some: set[int]


class Deep(Forbid):
    inner: Open
    more: list[Defaulted]


class Tree(Forbid):
    children: list["Tree"]


def test_what_cannot_be_a_strict_schema_is_listed():
    for model, words in [
        (Open, ["Open takes extra fields"]),
        (Defaulted, ["Defaulted has defaults for a, b"]),
        (Free, ["Table is a free-form object", "Anything may be anything", "Some is a set"]),
        (Deep, ["Open takes extra fields", "Defaulted has defaults for a, b"]),
        (Tree, ["Tree contains itself"]),
    ]:
        with pytest.raises(ValueError) as error:
            strict_schema(model)
        for word in words:
            assert word in str(error.value)
