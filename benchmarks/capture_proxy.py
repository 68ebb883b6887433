"""The cookbook's capture proxy before a server: it puts an Anthropic and an OpenAI face on whatever
speaks the Tinker protocol, and keeps what was sampled."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from asked_sums import MAX_TOKENS, SUMS, Served, Told, question
from cookbook import COOKBOOK, cookbook_environment
from environments import variables

CAPTURE = f"tinker-cookbook=={COOKBOOK}, capture.proxy"
START_SECONDS, ANSWER_SECONDS, END_SECONDS = 180, 120, 30
# more than any of these models reads
TOO_MANY_TOKENS = 10_000_000


def ask_capture_proxy(served: Served, place: Path) -> dict[str, Told]:
    """Answers in the plain form of messages, which any tokenizer can write, of both faces. Raises
    SystemExit where the proxy does not see that a prompt is too long."""
    python = cookbook_environment(place.parent / "cookbook")
    with proxied(served, place, python) as url:
        answers = {
            "colon": [_openai(url, question(*pair)) for pair in SUMS],
            "colon, Anthropic": [_anthropic(url, question(*pair)) for pair in SUMS],
        }
        _check_overflow(url)
    return {task: Told(texts) for task, texts in answers.items()}


@contextlib.contextmanager
def proxied(served: Served, place: Path, python: Path) -> Iterator[str]:
    """The proxy's URL; it and its store end with the block."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = place / "store"
    command = [
        *(str(python), "-m", "tinker_cookbook.capture.proxy.serve", "--port", str(port)),
        *("--base-model", served.tokenizer, "--renderer-name", "role_colon"),
        *("--store-data-dir", str(store)),
    ]
    if served.model.startswith("tinker://"):
        command += ["--model-path", served.model]
    environment = variables(TINKER_BASE_URL=served.url, TINKER_API_KEY=served.key)
    url = f"http://127.0.0.1:{port}"
    with subprocess.Popen(command, cwd=place, env=environment, stdout=sys.stderr) as process:
        try:
            _wait(url, process)
            yield url
        finally:
            process.terminate()
            process.wait(END_SECONDS)
            daemon = store / "daemon.json"
            if daemon.exists():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(json.loads(daemon.read_text())["pid"], signal.SIGTERM)


def _wait(url: str, process: "subprocess.Popen[bytes]") -> None:
    end = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(URLError, ConnectionError):
            urlopen(f"{url}/healthz", timeout=5)
            return
        time.sleep(0.2)
    raise SystemExit("the capture proxy did not start")


def _openai(url: str, text: str) -> str:
    told = _post(f"{url}/v1/chat/completions", text)
    return told["choices"][0]["message"]["content"].strip()


def _anthropic(url: str, text: str) -> str:
    # the address under which the rows are kept
    [block] = _post(f"{url}/r/run/sums/v1/messages", text)["content"]
    return block["text"].strip()


def _post(url: str, text: str, max_tokens: int = MAX_TOKENS) -> Any:
    body = {
        "model": "any",
        "messages": [{"role": "user", "content": text}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    request = Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urlopen(request, timeout=ANSWER_SECONDS) as reply:
        return json.load(reply)


def _check_overflow(url: str) -> None:
    """Agents shorten their talk when they are told so, and send it again when told anything
    else."""
    try:
        _post(f"{url}/v1/messages", "1", TOO_MANY_TOKENS)
    except HTTPError as error:
        told = error.read().decode()
        if error.code == 400 and "prompt is too long" in told:
            return
        raise SystemExit(f"the capture proxy on a full context: {error.code} {told}") from error
    raise SystemExit("the capture proxy answered beyond the context")
