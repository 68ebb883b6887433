"""What an endpoint is sent besides the messages: what its model takes and the role does not leave
out. OpenRouter is a server on the loopback here, reached as the proxy of a plain http URL."""

import asyncio
import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from fake_endpoint import FakeEndpoint, in_order
from pydantic import BaseModel, ConfigDict

from utils.llm.api import LLMError, Reply, Request, Role
from utils.llm.cache import ResponseCache
from utils.llm.client import LLMClient
from utils.llm.errors import kind_of, words_of
from utils.llm.openai_endpoint import OpenAIEndpoint, create_arguments
from utils.llm.parameters import supported_parameters
from utils.llm.retry import RetryPolicy
from utils.llm.roles import OPENROUTER_KEY, OPENROUTER_MODEL, RoleConfig, second_role
from utils.llm.schemas import strict_schema, without_bounds

OPENROUTER = "http://openrouter.ai/api/v1"
FAST = RetryPolicy(max_retries=2, max_rate_retries=1, backoff_s=0.01, max_backoff_s=0.04)
# what OpenRouter says of its model that is our default
CLAUDE = ["max_tokens", "temperature", "top_p", "response_format", "structured_outputs", "tools"]
GPT = ["max_completion_tokens", "seed", "response_format", "structured_outputs", "tools"]
MODELS = {OPENROUTER_MODEL: CLAUDE, "openai/gpt-5": GPT, "m/bare": ["response_format"]}


class Verdict(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rationale: str
    score: int


def settings(server: FakeEndpoint, monkeypatch: pytest.MonkeyPatch, **given: Any) -> RoleConfig:
    """Of a role whose OpenRouter is this server."""
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTP_PROXY", server.base_url.removesuffix("/v1"))
    monkeypatch.setenv(OPENROUTER_KEY, "sk-1")
    defaults: dict[str, Any] = {"model": OPENROUTER_MODEL, "base_url": OPENROUTER}
    return RoleConfig(**defaults | given)


def judge(config: RoleConfig) -> Role:
    return config.role("judge", temperature=0.5, max_tokens=9, seed=0)


async def _ask(role: Role, times: int, cache: Path | None) -> tuple[Reply | LLMError, LLMClient]:
    messages = [{"role": "user", "content": "x"}]
    async with LLMClient([OpenAIEndpoint(role)], cache_path=cache, retry=FAST) as client:
        try:
            calls = [
                client.ask("judge", messages, model=Verdict, sample_index=i) for i in range(times)
            ]
            return (await asyncio.gather(*calls))[0], client
        except LLMError as error:
            return error, client


def ask(
    role: Role, times: int = 1, cache: Path | None = None
) -> tuple[Reply | LLMError, LLMClient]:
    return asyncio.run(asyncio.wait_for(_ask(role, times, cache), 30))


def parameters(server: FakeEndpoint) -> set[str]:
    """What the last request said besides model and messages."""
    return set(server.requests[-1].body) - {"model", "messages"}


STRUCTURED = {"response_format", "provider"}


@pytest.mark.parametrize(
    ("given", "sent", "not_sent"),
    [
        ({}, {"max_tokens", "temperature"}, ("seed",)),
        ({"model": f"{OPENROUTER_MODEL}:nitro"}, {"max_tokens", "temperature"}, ("seed",)),
        ({"model": "openai/gpt-5"}, {"max_completion_tokens", "seed"}, ("temperature",)),
        ({"model": "m/bare"}, set(), ("max_tokens", "temperature", "seed")),
        ({"model": "not/listed"}, {"max_tokens", "temperature", "seed"}, ()),
        ({"model": "not/listed", "leave_out": ["seed"]}, {"max_tokens", "temperature"}, ()),
        ({"model": "not/listed", "leave_out": ["temperature"]}, {"max_tokens", "seed"}, ()),
    ],
)
def test_a_model_is_sent_what_it_takes(
    given: dict[str, Any],
    sent: set[str],
    not_sent: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
) -> None:
    caplog.set_level(logging.INFO)
    cache = tmp_path / "cache.jsonl"
    with FakeEndpoint(in_order("ok"), models=MODELS) as server:
        role = judge(settings(server, monkeypatch, **given))
        reply, client = ask(role, times=5, cache=cache)
        assert isinstance(reply, Reply) and server.rows == ["ok"] * 5
        # one look for all of them
        assert server.times_listed == 1
        assert all(r.body["provider"] == {"require_parameters": True} for r in server.requests)
    assert parameters(server) == sent | STRUCTURED
    assert reply.not_sent == not_sent
    told = [record.message for record in caplog.records if "does not list" in record.message]
    assert len(told) == bool(not_sent) and all(name in told[0] for name in not_sent)
    # the record of the run says it too, also where the replies come from the cache
    expected = {"judge": list(not_sent)} if not_sent else {}
    assert client.ledger.to_plain()["not_sent"] == expected
    again, client = ask(role, times=5, cache=cache)
    assert again == reply and client.ledger.to_plain()["not_sent"] == expected
    assert len(ResponseCache(cache)) == 5


def test_a_role_can_leave_out_what_the_list_promises_in_vain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The list joins all providers of a model; there may be none that takes everything."""
    listing = [
        (200, {"data": [{"id": OPENROUTER_MODEL, "supported_parameters": [*CLAUDE, "seed"]}]})
    ]
    with FakeEndpoint(in_order("ok"), models=MODELS, listing=listing) as server:
        error, _ = ask(judge(settings(server, monkeypatch)))
        assert isinstance(error, LLMError) and error.kind == "not_found"
        assert "no provider takes max_tokens, response_format, seed, temperature" in error.detail
        assert 'leave_out=["seed","temperature","require_parameters"]' in error.detail
        for left_out in (["seed"], ["require_parameters"]):
            reply, _ = ask(judge(settings(server, monkeypatch, leave_out=left_out)))
            assert isinstance(reply, Reply) and reply.not_sent == ()
            assert ("provider" in parameters(server)) == (left_out == ["seed"])
            assert ("seed" in parameters(server)) == (left_out != ["seed"])
        given = {"provider": {"require_parameters": False}}
        reply, _ = ask(judge(settings(server, monkeypatch, extra_body=given)))
        assert isinstance(reply, Reply)
        assert server.requests[-1].body["provider"] == {"require_parameters": False}


def test_a_list_that_cannot_be_had_now_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    page = {"data": [{"id": OPENROUTER_MODEL, "supported_parameters": CLAUDE}]}
    listing = [(503, {"error": {"message": "busy"}}), (200, page)]
    with FakeEndpoint(in_order("ok"), models=MODELS, listing=listing) as server:
        reply, client = ask(judge(settings(server, monkeypatch)))
        assert isinstance(reply, Reply) and reply.not_sent == ("seed",)
        assert server.times_listed == 2 and server.rows == ["ok"]
        assert [f.count for f in client.ledger.failures.values()] == [1]


@pytest.mark.parametrize(
    "answer",
    [
        (404, {"detail": "Not Found"}),
        (500, {"error": "no such route"}),
        (501, "<html>"),
        (200, "no JSON"),
        (200, ["m"]),
        (200, {"data": None}),
        (200, {"data": [{"id": "m"}, {"id": 3}, "m"]}),
        (200, {"data": [{"id": "m", "supported_parameters": None}]}),
        (200, {"models": [{"id": "m", "supported_parameters": []}]}),
    ],
    ids=str,
)
def test_servers_that_do_not_tell_are_sent_everything(answer: tuple[int, Any]) -> None:
    with FakeEndpoint(in_order("ok"), listing=[answer]) as server:
        role = Role("judge", "m", server.base_url, temperature=0.5, seed=0)
        reply, _ = ask(role, times=3)
        assert isinstance(reply, Reply) and server.times_listed == 1
        assert parameters(server) == {"max_tokens", "temperature", "seed", "response_format"}


def test_openrouter_has_to_support_what_it_is_asked_for() -> None:
    role = Role("judge", "m", "https://openrouter.ai/api/v1", extra_body={"provider": {"sort": 1}})
    messages = [{"role": "user", "content": "x"}]
    request = Request(messages, strict_schema(Verdict), 0, 10, None, None)
    arguments = create_arguments(role, request)
    assert arguments["extra_body"] == {"provider": {"sort": 1, "require_parameters": True}}
    assert role.extra_body == {"provider": {"sort": 1}}
    schema = arguments["response_format"]["json_schema"]["schema"]
    assert schema == without_bounds(strict_schema(Verdict))
    kept = create_arguments(dataclasses.replace(role, schema_bounds=True), request)
    assert kept["response_format"]["json_schema"]["schema"] == strict_schema(Verdict)
    free = create_arguments(role, dataclasses.replace(request, json_schema=None))
    assert free["extra_body"] == {"provider": {"sort": 1}}
    elsewhere = dataclasses.replace(role, base_url="https://notopenrouter.ai/v1")
    assert create_arguments(elsewhere, request)["extra_body"] == {"provider": {"sort": 1}}
    assert not {"temperature", "seed", "usage"} & set(arguments)
    (problem,) = [
        problem
        for problem in dataclasses.replace(role, extra_body={"provider": ["A"]}).check()
        if "provider" in problem
    ]
    assert problem == "judge.extra_body.provider=['A']: must be a mapping"


def test_a_variant_takes_what_its_model_takes() -> None:
    listing = {
        "data": [
            {"id": "a/b", "supported_parameters": ["seed"]},
            {"id": "a/b:free", "supported_parameters": ["temperature"]},
        ]
    }
    for model, names in {"a/b": "seed", "a/b:nitro": "seed", "a/b:free": "temperature"}.items():
        assert supported_parameters(listing, model) == {names}
    for model in ("a", "a/c", ""):
        assert supported_parameters(listing, model) is None


# --- settings


def test_a_role_leaves_out_what_its_settings_say() -> None:
    role = RoleConfig(model="embedded", leave_out=["seed", "temperature"])
    found = role.role("judge", temperature=0.5, max_tokens=9, seed=3)
    assert (found.seed, found.temperature) == (None, None) and found.check() == []
    assert found.leave_out == ("seed", "temperature")
    (problem,) = judge(RoleConfig(model="embedded", leave_out=["sed"])).check()
    assert "judge.leave_out names ['sed']; allowed are seed, temperature, require_param" in problem
    both = RoleConfig(model="embedded", temperature=0.3, leave_out=["temperature"])
    (problem,) = judge(both).check()
    assert problem.startswith("judge.temperature=0.3 is set, and leave_out names it")


def test_a_second_role_leaves_out_what_the_first_does() -> None:
    first = RoleConfig(model="m", base_url="http://x/v1", leave_out=["seed", "temperature"])
    assert second_role(None, first).leave_out == ["seed", "temperature"]
    assert second_role(RoleConfig(leave_out=["seed"]), first).leave_out == ["seed"]
    # its own temperature is meant to be sent
    own = second_role(RoleConfig(temperature=0.3), first)
    assert (own.leave_out, own.temperature) == (["seed"], 0.3)


# --- what errors say


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (
            {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}]},
            "body.seed: Extra inputs are not permitted",
        ),
        ({"detail": "Not Found"}, "Not Found"),
        (
            {"object": "error", "message": {"detail": [{"loc": ["a", 0], "msg": "bad"}]}},
            "a.0: bad",
        ),
        ({"error": {"code": 400, "message": "too big"}}, "too big"),
        ([{"error": {"code": 400, "message": "from a list"}}], "from a list"),
        ({"error": "Unprocessable", "message": ["a is no b", "c"]}, "a is no b; c; Unprocessable"),
        ({"errors": [{"code": 1, "message": "one"}, {"message": "two"}]}, "one; two"),
        ({"title": "Bad", "status": 400}, "Bad"),
        ({"reason": "unlike all others"}, '{"reason": "unlike all others"}'),
        ({"error": {"message": ""}}, '{"message": ""}'),
        ({}, "no message"),
    ],
    ids=json.dumps,
)
def test_an_error_says_what_its_body_says(body: Any, words: str) -> None:
    with FakeEndpoint(in_order("http_400_body"), refusal=body) as server:
        error, _ = ask(Role("judge", "m", server.base_url))
    assert isinstance(error, LLMError)
    assert (error.kind, error.detail) == ("bad_request", f"HTTP 400: {words}")


def test_words_at_any_depth_end() -> None:
    deep: Any = "x"
    for _ in range(500):
        deep = {"message": [deep]}
    assert words_of(deep) == "a body too deep to show"
    assert words_of({"error": "busy", "message": deep}) == "busy"
    assert kind_of(400, {"detail": "the maximum context length is 10"}) == "too_long"
