"""utils/llm/roles.py: which model is called where, from what was set and what was not."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from utils.config.entrypoint import ConfigError, load_config
from utils.llm.api import Role
from utils.llm.roles import (
    EMBEDDED,
    LOCAL_TIMEOUT_S,
    OPENROUTER,
    OPENROUTER_KEY,
    OPENROUTER_MODEL,
    RoleConfig,
    describe_roles,
    second_role,
)

SERVER = "http://127.0.0.1:8000/v1"


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OPENROUTER_KEY, raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def role(**settings: Any) -> Role:
    return RoleConfig(**settings).role("judge", temperature=0.5, max_tokens=9, seed=3)


def problems(**settings: Any) -> list[str]:
    return role(**settings).check()


# model, base_url -> without a key, with one
HUB = "HuggingFaceTB/SmolLM2-360M-Instruct"
WHERE: dict[tuple[str | None, str | None], tuple[tuple[str, str | None], tuple[str, str | None]]]
WHERE = {
    (None, None): ((EMBEDDED, None), (OPENROUTER_MODEL, OPENROUTER)),
    (EMBEDDED, None): ((EMBEDDED, None), (EMBEDDED, None)),
    (HUB, None): ((HUB, None), (HUB, OPENROUTER)),
    ("/no/such/folder", None): (("/no/such/folder", None), ("/no/such/folder", None)),
    ("./nowhere", None): (("./nowhere", None), ("./nowhere", None)),
    ("~/nowhere", None): (("~/nowhere", None), ("~/nowhere", None)),
    (None, "local"): ((EMBEDDED, None), (EMBEDDED, None)),
    (HUB, "local"): ((HUB, None), (HUB, None)),
    (None, "openrouter"): ((OPENROUTER_MODEL, OPENROUTER), (OPENROUTER_MODEL, OPENROUTER)),
    (HUB, "openrouter"): ((HUB, OPENROUTER), (HUB, OPENROUTER)),
    (None, OPENROUTER): ((OPENROUTER_MODEL, OPENROUTER), (OPENROUTER_MODEL, OPENROUTER)),
    # no model of OpenRouter is what another server has
    (None, SERVER): (("", SERVER), ("", SERVER)),
    ("m", SERVER): (("m", SERVER), ("m", SERVER)),
}


@pytest.mark.parametrize("with_key", [False, True])
@pytest.mark.parametrize("given", WHERE)
def test_who_is_called_where(
    given: tuple[str | None, str | None], with_key: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if with_key:
        monkeypatch.setenv(OPENROUTER_KEY, "sk-1")
    found = role(model=given[0], base_url=given[1])
    assert (found.model, found.base_url) == WHERE[given][with_key]
    assert found.api_key_env == (OPENROUTER_KEY if found.base_url == OPENROUTER else None)
    # a model in this process waits for the others of its batch
    assert (found.timeout == LOCAL_TIMEOUT_S) is (found.base_url is None)
    assert (found.max_concurrency is None) is (found.base_url is not None)


def test_existing_folders_stay_in_this_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OPENROUTER_KEY, "sk-1")
    monkeypatch.chdir(tmp_path)
    assert role(model="org/name").base_url == OPENROUTER
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert role(model="org/name").base_url is None
    assert role(model=str(tmp_path)).base_url is None
    assert role(model=str(tmp_path), base_url=SERVER).base_url == SERVER


def test_an_empty_key_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OPENROUTER_KEY, "")
    assert role().model == EMBEDDED


def test_what_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    assert problems() == [] and problems(model="m", base_url=SERVER) == []
    (no_model,) = problems(base_url=SERVER)
    assert no_model == "judge.model='': must name a model"
    (no_key,) = problems(base_url="openrouter")
    assert no_key.startswith("judge.api_key_env: OPENROUTER_API_KEY is not set")
    both = problems(base_url="https://api.openai.com/v1")
    assert len(both) == 2 and "OPENAI_API_KEY is not set" in both[1]
    (own,) = problems(model="m", base_url=SERVER, api_key_env="MY_KEY")
    assert "MY_KEY is not set" in own
    monkeypatch.setenv("MY_KEY", "k")
    assert problems(model="m", base_url=SERVER, api_key_env="MY_KEY") == []
    (url,) = problems(model="m", base_url="127.0.0.1:8000")
    assert "must look like https://host" in url


def test_settings_come_before_the_scripts_own() -> None:
    own = role()
    assert (own.name, own.temperature, own.max_tokens, own.seed) == ("judge", 0.5, 9, 3)
    given = role(
        model="m",
        base_url=SERVER,
        temperature=0.0,
        max_tokens=77,
        timeout=4.0,
        max_tokens_field="max_completion_tokens",
        schema_bounds=False,
        extra_body={"reasoning": {"effort": "low"}},
    )
    assert (given.temperature, given.max_tokens, given.timeout) == (0.0, 77, 4.0)
    assert given.max_tokens_field == "max_completion_tokens" and given.schema_bounds is False
    assert given.extra_body == {"reasoning": {"effort": "low"}}


def test_a_second_role_takes_the_model_of_the_first() -> None:
    first = RoleConfig(
        model="m", base_url=SERVER, api_key_env="K", temperature=1.5, max_tokens=4000, timeout=9.0
    )
    alone = second_role(None, first)
    assert (alone.model, alone.base_url, alone.api_key_env) == ("m", SERVER, "K")
    assert (alone.temperature, alone.max_tokens, alone.timeout) == (None, 4000, 9.0)
    partly = second_role(RoleConfig(temperature=0.3, max_tokens=50), first)
    assert (partly.model, partly.base_url, partly.timeout) == ("m", SERVER, 9.0)
    assert (partly.temperature, partly.max_tokens) == (0.3, 50)
    for own in (RoleConfig(model="other"), RoleConfig(base_url="local")):
        assert second_role(own, first) == own


def test_settings_on_the_command_line() -> None:
    found = load_config(
        RoleConfig,
        ["model=m", f"base_url={SERVER}", 'extra_body={"reasoning": {"effort": "low"}}'],
    )
    assert found.extra_body == {"reasoning": {"effort": "low"}}
    with pytest.raises(ConfigError, match="Did you mean 'timeout'"):
        load_config(RoleConfig, ["timeot=3"])


def test_who_is_small_is_told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    describe_roles(role(model="m", base_url=SERVER))
    assert "judge: m at 127.0.0.1" in caplog.text and "135M" not in caplog.text
    describe_roles(role())
    assert "judge: embedded in this process" in caplog.text
    assert "its judgments mean nothing" in caplog.text
    caplog.clear()
    describe_roles(replace(role(), name="generator"))
    assert "little sense; set" in caplog.text and "judgments" not in caplog.text
