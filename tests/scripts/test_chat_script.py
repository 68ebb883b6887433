"""scripts/chat.py, with messages from a pipe and a tiny random model of 4096 tokens.

uv run pytest tests/scripts/test_chat_script.py
"""

import io
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import chat
import pytest
from tiny_models import randomise

from training.adapter_proof import UNTRAINED
from training.domains.base import Message
from training.models import load_tokenizer
from utils.config.entrypoint import config_entrypoint

pytestmark = pytest.mark.usefixtures("one_torch_thread")
LONG = b"word " * 200  # a token a byte: 1,000 tokens


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    from tiny_chat import save_chat_model

    return save_chat_model(tmp_path_factory.mktemp("chat"), favourites="abc")


@pytest.fixture(autouse=True)
def levels() -> Iterator[None]:
    """Of a logger, which the script sets."""
    yield
    logging.getLogger("training.adapter_proof").setLevel(logging.NOTSET)


@pytest.fixture
def talk(
    model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[list[list[Message]], str]]:
    """talk(line, ..., settings=[...]) gives what the model was shown for each answer, and what was
    said on stderr."""

    def run(*lines: bytes, settings: tuple[str, ...] = ()) -> tuple[list[list[Message]], str]:
        shown: list[list[Message]] = []
        fit = chat.fit

        def spied(tokenizer, messages, *rest):
            prompt = fit(tokenizer, messages, *rest)
            shown.append(list(messages))
            return prompt

        monkeypatch.setattr(chat, "fit", spied)
        typed = io.TextIOWrapper(io.BytesIO(b"\n".join(lines) + b"\n"), encoding="utf-8")
        monkeypatch.setattr("sys.stdin", typed)
        small = ["max_tokens=4", "temperature=0", "device=cpu"]
        config_entrypoint(chat.main, [f"model_name={model}", *small, *settings])
        return shown, capsys.readouterr().err

    return run


def said(messages: list[Message]) -> list[str]:
    return [m["content"].split()[0] for m in messages if m["role"] != "assistant"]


def test_a_checkpoint_before_the_first_step_is_said_to_be_one(
    talk, model: str, connect_local, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = connect_local().create_lora_training_client(model, rank=2, seed=0)
    path = trainer.save_state("000000").result().path
    talk(b"Hi", settings=(f"checkpoint_path={path}",))
    assert f"{path}: {UNTRAINED}" in caplog.text


def test_a_checkpoint_is_said_to_be_what_answers(
    talk, model: str, connect_local, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = connect_local().create_lora_training_client(model, rank=2, seed=0)
    randomise(trainer, seed=1)
    path = trainer.save_state("000001").result().path
    talk(b"Hi", b"Again", settings=(f"checkpoint_path={path}",))
    assert caplog.text.count(f"{path} is in use: ") == 1


def test_a_conversation_longer_than_the_context_loses_its_oldest_turns(talk) -> None:
    lines = [str(i).encode() + b" " + LONG for i in range(6)]
    shown, told = talk(*lines, settings=("system=Stay.",))
    # three messages and their answers fit beside the system message
    assert [said(messages) for messages in shown] == [
        ["Stay.", "0"],
        ["Stay.", "0", "1"],
        ["Stay.", "0", "1", "2"],
        ["Stay.", "1", "2", "3"],
        ["Stay.", "2", "3", "4"],
        ["Stay.", "3", "4", "5"],
    ]
    full = "(the model's context of 4096 tokens is full: it no longer sees the oldest 2 messages; "
    assert told.count(full + "/new begins anew)") == 3


def test_a_message_that_does_not_fit_alone_is_not_sent(talk) -> None:
    shown, told = talk(b"first", LONG * 5, b"second")
    assert [said(messages) for messages in shown] == [["first"], ["first", "second"]]
    assert "(not sent: 5" in told and "context holds 4096, prompt and answer together." in told
    assert "Write another message, or /new)" in told


def test_an_answer_is_read_whole_once(talk, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    parse_response = chat.parse_response

    def spied(tokenizer, tokens, *, template):
        lengths.append(len(tokens))
        return parse_response(tokenizer, tokens, template=template)

    monkeypatch.setattr(chat, "parse_response", spied)
    talk(b"first", b"second", settings=("max_tokens=40",))
    assert lengths == [40, 40]


def test_broken_bytes_are_replaced(talk) -> None:
    shown, _ = talk(b"a\xffb \xed\xa0\xbd", "é 🙂".encode())
    messages = [m["content"] for m in shown[1] if m["role"] == "user"]
    assert messages == ["a\ufffdb \ufffd\ufffd\ufffd", "é 🙂"]


def test_control_tokens_that_are_typed_stay_text(talk, model: str) -> None:
    tokenizer = load_tokenizer(model)
    messages: list[Message] = [{"role": "user", "content": "a<|im_end|>"}]
    prompt = chat.fit(tokenizer, messages, 0, 4096, chat.Config(model_name=model))
    assert prompt.count(tokenizer.eos_token_id) == 1
    shown, told = talk(b"a<|im_end|>", b"b")
    assert said(shown[1]) == ["a<|im_end|>", "b"] and not told


def test_what_the_template_refuses_is_told_before_the_first_message(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    shutil.copytree(model, tmp_path / "m")
    refusing = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        + (tmp_path / "m" / "chat_template.jinja").read_text()
    )
    (tmp_path / "m" / "chat_template.jinja").write_text(refusing)
    with pytest.raises(SystemExit):
        config_entrypoint(chat.main, [f"model_name={tmp_path / 'm'}", "system=S", "device=cpu"])
    assert (
        "refuses messages with the roles ['system', 'user']: no system" in capsys.readouterr().err
    )
