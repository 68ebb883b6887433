"""scripts/serve.py as users start and end it: what is printed, what is refused.

uv run pytest tests/scripts/test_serve_script.py
"""

import contextlib
import json
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import serve
import tinker
from places import ROOT
from served import Served, served, server_environment
from tiny_chat import save_chat_model

from training.serving.keys import Keys
from training.serving.store import Store


def refused(folder: Path, *settings: str) -> str:
    """What it says of settings that it does not start with."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts/serve.py"), *settings],
        cwd=folder,
        env=server_environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 2, done
    assert "Traceback" not in done.stderr and done.stdout == ""
    return done.stderr


def ask(server: Served, path: str, key: str | None = None, body: Any = None) -> tuple[int, Any]:
    headers = {"content-type": "application/json"} | ({} if key is None else {"x-api-key": key})
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(server.url + path, data, headers)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_chat_model(tmp_path / "model", favourites="AB")
    return tmp_path


def test_it_serves_says_how_and_ends(folder: Path) -> None:
    key = "tml-" + "a" * 40
    (folder / "keys.txt").write_text(f"ann:{key}\nbob:tml-{'b' * 40}\n")
    with served(folder, ["model_name=model", "api_keys_file=keys.txt"]) as server:
        assert ask(server, "/healthz") == (200, {"status": "ok"})
        status, told = ask(server, "/api/v1/get_server_capabilities", key)
        assert status == 200
        assert [m["model_name"] for m in told["supported_models"]] == ["model"]
        for wrong in (None, "tml-wrong"):
            assert ask(server, "/api/v1/get_server_capabilities", wrong)[0] == 401
        assert server.end(signal.SIGINT) == 0
        log = server.log
    assert serve.STOPS in log
    assert "Traceback" not in log and "tml-" not in log


def test_answers_that_are_not_done_when_it_ends_say_so(folder: Path) -> None:
    long = {"model": "model", "prompt": "A", "n": 32, "temperature": 0, "max_tokens": 4000}
    with served(folder, ["model_name=model"]) as server:
        headers = {"authorization": f"Bearer {server.key}"}
        url = server.url + "/v1/completions"
        with (
            httpx.Client(headers=headers, timeout=60) as client,
            client.stream("POST", url, json=long | {"stream": True}) as reply,
            ThreadPoolExecutor() as threads,
        ):
            whole = threads.submit(httpx.post, url, json=long, headers=headers, timeout=60)
            lines = (line for line in reply.iter_lines() if line)
            next(lines)
            while not re.search(
                "^autodidact_running 2", client.get(server.url + "/metrics").text, re.M
            ):
                assert not whole.done(), whole.result()
            server.process.send_signal(signal.SIGTERM)
            # read on, or the socket is full and the last event finds no place
            *_, last = lines
            refusal = whole.result()
        assert server.process.wait(60) == 0
        log = server.log
    for body in (json.loads(last.removeprefix("data: ")), refusal.json()):
        assert "being stopped" in body["error"]["message"], body
    assert refusal.status_code == 503
    assert "Traceback" not in log and "ERROR" not in log, log


def test_a_port_in_use(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(folder, "model_name=model", f"port={port}")
    assert f"port={port}" in said and "in use" in said


def test_a_server_that_still_loads_its_model_has_its_port() -> None:
    with serve.bound("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        with (
            pytest.raises(ValueError, match=f"port={port}: .*in use; choose another"),
            serve.bound("127.0.0.1", port),
        ):
            pass
        # said, or asyncio would leave Nagle's algorithm on: 40 ms a reply
        assert listener.proto == socket.IPPROTO_TCP
        # who comes meanwhile waits
        socket.create_connection(("127.0.0.1", port), timeout=60).close()


def test_settings_that_cannot_be(folder: Path) -> None:
    assert "model_name='nothere/'" in refused(folder, "model_name=nothere/", "port=0")
    said = refused(folder, "model_name=model", "host=0.0.0.0", "port=0")
    assert "host='0.0.0.0'" in said and "api_keys_file" in said
    said = refused(folder, "model_name=model", "api_keys_file=none.txt", "port=0")
    assert "none.txt" in said
    said = refused(folder, "model_name=model", "adapters_dir=none", "port=0")
    assert "adapters_dir='none': there is no such folder" in said
    (folder / "short.txt").write_text("abc\n")
    said = refused(folder, "model_name=model", "api_keys_file=short.txt", "port=0")
    assert "short.txt" in said and "abc" not in said.replace("short.txt", "")


def test_a_dry_run_looks_at_the_store_and_leaves_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def dry_run(name: str, **given: Any) -> None:
        config = serve.Config(
            model_name=str(folder / "model"),
            port=0,
            store_dir=folder / name,
            dry_run=True,
            **given,
        )
        serve.main(config)

    before = sorted(folder.rglob("*"))
    dry_run("new/store")
    assert "would be served at http://127.0.0.1:" in capsys.readouterr().out
    assert sorted(folder.rglob("*")) == before
    # of a folder with other things in it
    (folder / "other/checkpoints").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"store_dir='.*other': checkpoints in it is no folder"):
        dry_run("other")
    with (
        contextlib.closing(Store(folder / "used")),
        pytest.raises(ValueError, match=r"store_dir='.*used': .* is at work here"),
    ):
        dry_run("used")
    dry_run("used")
    with contextlib.closing(sqlite3.connect(folder / "used" / "serving.sqlite")) as database:
        database.execute("PRAGMA user_version=7")
    with pytest.raises(ValueError, match="a store of version 7"):
        dry_run("used")
    (folder / "secret").mkdir()
    (folder / "secret/loopback.key").write_text("short")
    with pytest.raises(ValueError, match="remove this file for a new key"):
        dry_run("secret")
    (folder / "unsigned").mkdir()
    (folder / "unsigned/links.key").write_text("short")
    with pytest.raises(ValueError, match="remove this file for a new one"):
        dry_run("unsigned")
    with pytest.raises(ValueError, match=r"aliases: '' cannot stand for"):
        dry_run("unnamed", aliases={"": str(folder / "model")})
    with pytest.raises(ValueError, match=r"aliases: 'tinker://a/b' cannot stand for .* checkpoin"):
        dry_run("unnamed", aliases={"tinker://a/b": str(folder / "model")})
    with pytest.raises(ValueError, match=r"^aliases\.theirs: model_name='.*nowhere': the folder"):
        dry_run("unnamed", aliases={"theirs": str(folder / "nowhere")})
    (folder / "file").write_text("")
    with pytest.raises(ValueError, match=r"store_dir='.*file': it is a file, a folder is needed"):
        dry_run("file")
    with pytest.raises(ValueError, match=r"store_dir='.*file/store': nothing can be written"):
        dry_run("file/store")


def test_the_engine_is_given_its_sizes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Exception):
        pass

    def asked(*_backend: str, **options: Any) -> None:
        raise Asked(options)

    monkeypatch.setattr(serve, "connect", asked)
    keys = Keys.for_loopback(folder)
    for wanted in (None, 512):
        config = serve.Config(
            model_name=str(folder / "model"),
            store_dir=folder / f"store-{wanted}",
            max_train_tokens=wanted,
        )
        with pytest.raises(Asked) as caught:
            serve.loaded(config, keys)
        assert caught.value.args[0]["max_train_tokens"] == wanted
    with pytest.raises(ValueError, match="max_train_tokens=0: at least 1 is needed"):
        serve.Config(max_train_tokens=0)


def test_a_link_is_good_after_a_restart(folder: Path) -> None:
    settings = ["model_name=model"]
    with served(folder, settings) as server:
        with tinker.ServiceClient(base_url=server.url, api_key=server.key) as service:
            trainer = service.create_lora_training_client("model", rank=2).result()
            path = trainer.save_weights_external("out").result().path
        rest = tinker.RestClient(base_url=server.url, api_key=server.key)
        url = rest.get_external_weights_urls(path).result().urls["adapter_config.json"]
        before = urllib.request.urlopen(url).read()
        old = server.url
        assert server.end(signal.SIGINT) == 0
    with served(folder, settings) as server:
        assert urllib.request.urlopen(url.replace(old, server.url)).read() == before


def test_a_store_of_another_version(folder: Path) -> None:
    Store(folder / "old").close()
    with contextlib.closing(sqlite3.connect(folder / "old" / "serving.sqlite")) as database:
        database.execute("PRAGMA user_version=7")
    said = refused(folder, "model_name=model", "store_dir=old", "port=0")
    assert "a store of version 7, and this server has version 1; give another folder" in said
    assert said.count("\n") <= 2, said
