"""training/endpoints.py: models in this process as endpoints, on a tiny random model."""

import asyncio
import json
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, cast

import pytest
from fake_endpoint import FakeEndpoint, in_order
from pydantic import BaseModel, ConfigDict, Field
from tiny_models import randomise

import training.endpoints
from training.api import SamplingClient
from training.endpoints import Endpoints, LocalEndpoint
from training.models import adapter_fingerprint, load_tokenizer
from utils.config.entrypoint import ConfigError
from utils.llm.api import LLMError, Message, Reply, Request, Role, Usage
from utils.llm.batch import gather_counted
from utils.llm.client import LLMClient
from utils.llm.schemas import strict_schema

pytestmark = pytest.mark.usefixtures("one_torch_thread")


class Judgment(BaseModel):
    model_config = ConfigDict(extra="forbid")
    why: str = Field(min_length=1, max_length=9)
    word: Annotated[str, Field(pattern=r"^[A-Z][a-z]{2,5}\.$")]
    shown: bool


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tiny_chat import save_chat_model

    return save_chat_model(tmp_path_factory.mktemp("chat"), favourites="abcd")


@pytest.fixture(scope="module")
def sampler(service: Any, model: str) -> SamplingClient:
    return service.create_sampling_client(base_model=model)


@pytest.fixture
def endpoint(sampler: SamplingClient) -> LocalEndpoint:
    return LocalEndpoint(Role("writer", "tiny", seed=1, temperature=1.0), sampler)


def asked(text: str) -> list[Message]:
    return [{"role": "user", "content": text}]


def request(text: str, **fields: Any) -> Request:
    defaults: dict[str, Any] = {
        "json_schema": None,
        "sample_index": 0,
        "max_tokens": 12,
        "temperature": 1.0,
        "seed": 5,
    }
    return Request(asked(text), **defaults | fields)


def together(endpoint: LocalEndpoint, requests: Sequence[Request]) -> list[Reply]:
    async def main() -> list[Any]:
        return await gather_counted([partial(endpoint.complete, r) for r in requests], "asking")

    return asyncio.run(main())


def alone(endpoint: LocalEndpoint, one: Request) -> Reply:
    (reply,) = together(endpoint, [one])
    return reply


def test_a_reply_is_of_its_seed_and_prompt(endpoint: LocalEndpoint) -> None:
    first = alone(endpoint, request("Why?"))
    assert first.text and first == alone(endpoint, request("Why?"))
    # what tells samples apart is their seed
    assert first == alone(endpoint, request("Why?", sample_index=3))
    assert first.text != alone(endpoint, request("Why?", seed=6)).text
    prompts = ["Why?", "Who?", "Why not?", "And?"]
    replies = together(endpoint, [request(prompt) for prompt in prompts])
    assert replies[0] == first
    # one seed for all, but not one answer
    assert len({reply.text for reply in replies}) == 4
    cold = [alone(endpoint, request("Why?", seed=seed, temperature=0.0)) for seed in (5, 6)]
    assert cold[0] == cold[1]


def test_without_a_seed_replies_differ(endpoint: LocalEndpoint) -> None:
    replies = together(endpoint, [request("Why?", seed=None) for _ in range(4)])
    assert len({reply.text for reply in replies}) == 4


def test_calls_together_are_the_calls_alone_in_one_batch(
    sampler: SamplingClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = LocalEndpoint(Role("writer", "tiny"), sampler)
    schema = strict_schema(Judgment)
    requests = [
        request("q" * (7 * i + 1), seed=i, json_schema=schema if i % 2 else None, max_tokens=60 + i)
        for i in range(8)
    ]
    singly = [alone(endpoint, one) for one in requests]
    rows: list[int] = []
    batcher = cast(Any, sampler)._engine.sampler
    admit = batcher.admit

    def counted(jobs: Sequence[Any]) -> None:
        rows.append(len(jobs))
        admit(jobs)

    monkeypatch.setattr(batcher, "admit", counted)
    assert together(endpoint, requests) == singly
    assert rows == [8]


def test_schemas_are_kept_to(endpoint: LocalEndpoint) -> None:
    schema = strict_schema(Judgment)
    requests = [request(f"q{i}", json_schema=schema, max_tokens=120) for i in range(6)]
    for reply in together(endpoint, requests):
        found = Judgment.model_validate(json.loads(reply.text))
        assert re.fullmatch(r"[A-Z][a-z]{2,5}\.", found.word) and 1 <= len(found.why) <= 9
        assert reply.finish_reason == "stop"
    cut = alone(endpoint, request("q0", json_schema=schema, max_tokens=9))
    assert cut.finish_reason == "length" and cut.usage is not None
    assert cut.usage.completion_tokens == 9


def test_usage_is_counted(endpoint: LocalEndpoint, model: str) -> None:
    reply = alone(endpoint, request("Why?", max_tokens=7))
    text = "<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    prompt = load_tokenizer(model).encode(text, add_special_tokens=False)
    assert reply.usage == Usage(len(prompt), 7) and reply.model == "tiny"

    async def main() -> LLMClient:
        async with LLMClient([endpoint]) as client:
            await client.complete("writer", asked("Why?"), max_tokens=7, allow_truncated=True)
            return client

    (spending,) = asyncio.run(main()).ledger.spendings.values()
    assert (spending.calls, spending.prompt_tokens) == (1, len(prompt))
    assert spending.completion_tokens == 7 and spending.cost_usd is None


def failure(endpoint: LocalEndpoint, one: Request) -> LLMError:
    error: Any = alone(endpoint, one)
    assert isinstance(error, LLMError) and error.role == "writer"
    return error


def test_what_the_model_cannot_take(endpoint: LocalEndpoint) -> None:
    long = failure(endpoint, request("x" * 5000))
    assert long.kind == "too_long" and "4096" in long.detail
    pattern = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(?=a)b"}}}
    schema = failure(endpoint, request("x", json_schema=pattern))
    assert schema.kind == "bad_request" and "look-around" in schema.detail
    # the calls beside it are made all the same
    good, bad = together(endpoint, [request("Why?"), request("x" * 5000)])
    assert isinstance(good, Reply) and isinstance(bad, LLMError)


def test_a_template_that_refuses_is_told(service: Any, tmp_path: Path) -> None:
    from tiny_chat import CHATML, chat_tokenizer, save_chat_model

    folder = save_chat_model(tmp_path)
    tokenizer = chat_tokenizer()
    refusal = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    tokenizer.chat_template = refusal + CHATML
    tokenizer.save_pretrained(folder)
    endpoint = LocalEndpoint(
        Role("writer", "tiny"), service.create_sampling_client(base_model=folder)
    )
    messages = [{"role": "system", "content": "Be brief."}, *asked("x")]
    error = failure(endpoint, Request(messages, None, 0, 9, 1.0, 1))
    assert error.kind == "bad_request" and "no system" in error.detail


# ------------------------------------------------------------------------------------- Endpoints


def test_roles_of_one_model_share_it(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    connect = training.endpoints.connect

    def counted(*arguments: Any, **options: Any) -> Any:
        made.append(connect(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(training.endpoints, "connect", counted)
    with FakeEndpoint(in_order("ok")) as server, Endpoints(device="cpu") as endpoints:
        served = Role("target", "m", base_url=server.base_url)
        opened = endpoints.open([Role("a", model), Role("b", model), served])
        first, second, third = opened
        assert isinstance(first, LocalEndpoint) and isinstance(second, LocalEndpoint)
        assert first._sampler is second._sampler and len(made) == 1
        assert third.role is served and server.requests == []


def test_everything_wrong_is_told_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_KEY", raising=False)
    bad = [
        Role("a", "/no/such/model"),
        Role("b", "m", base_url="https://host/v1", api_key_env="NO_KEY"),
        Role("c", str(tmp_path), temperature=9.0),
        Role("d", "/no/such/model"),
    ]
    with pytest.raises(ConfigError) as caught, Endpoints(device="tpu") as endpoints:
        endpoints.open(bad)
    key, temperature, absent, empty, device = caught.value.problems
    assert "NO_KEY is not set" in key and "c.temperature=9.0" in temperature
    assert absent.startswith("a: model_name='/no/such/model'")
    assert empty.startswith("c: ") and "has no config.json" in empty
    assert device == "device='tpu': cpu, cuda or cuda:N is needed"


def test_a_device_matters_to_local_models_alone(model: str) -> None:
    served = Role("a", "m", base_url="http://127.0.0.1:9/v1")
    with Endpoints(device="tpu") as endpoints:
        assert endpoints.check([served]) == []
        assert len(endpoints.check([served, Role("b", model)])) == 1


def test_a_missing_device_is_told(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with Endpoints(device="cuda") as endpoints:
        (problem,) = endpoints.check([Role("a", model)])
    assert problem == "device='cuda' is not available; allowed here: cpu"


# ----------------------------------------------------------------------------------- fingerprint


def test_fingerprints_follow_the_weights(
    connect_local: Callable[..., Any], model: str, tmp_path: Path
) -> None:
    trainer = connect_local().create_lora_training_client(base_model=model, rank=2)

    def saved(name: str) -> Path:
        return Path(trainer.save_weights_for_sampler(name).result().path)

    first, again = saved("first"), saved("again")
    assert adapter_fingerprint(first) == adapter_fingerprint(again)
    randomise(trainer, seed=1)
    assert adapter_fingerprint(saved("other")) != adapter_fingerprint(first)
    moved = tmp_path / "moved"
    before = adapter_fingerprint(first)
    first.rename(moved)
    assert adapter_fingerprint(moved) == adapter_fingerprint(str(moved)) == before
    (weights,) = moved.rglob("adapter*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert adapter_fingerprint(moved) != before
