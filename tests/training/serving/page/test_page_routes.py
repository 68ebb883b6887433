"""The page as a file, and what its routes give to whom."""

import json
import re
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from host_world import open_store
from page_site import KEY, Site
from starlette.testclient import TestClient
from wire_caller import KEYS

from training.connect import connect
from training.serving.app import make_app
from training.serving.base_models import BaseModels
from training.serving.host import Host
from training.serving.keys import Keys
from training.serving.links import Links


def test_the_page_is_one_file_with_a_policy() -> None:
    with Site() as site, urlopen(site.url) as reply:
        text, headers = reply.read().decode(), reply.headers
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    # nothing is loaded from anywhere
    assert not re.search(r"(src|href)\s*=|@import|url\(|https?://(?!www\.w3\.org/2000/svg)", text)
    assert not re.search(r"innerHTML|insertAdjacentHTML|document\.write|eval\(|\sstyle=", text)
    policy = headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert headers["Referrer-Policy"] == "no-referrer"


def test_the_status_is_for_those_with_a_key() -> None:
    with Site() as site:
        with pytest.raises(HTTPError) as caught:
            urlopen(f"{site.url}page/status")
        assert caught.value.code == 401
        request = Request(f"{site.url}page/status", headers={"Authorization": f"Bearer {KEY}"})
        with urlopen(request) as reply:
            assert json.load(reply)["your_clients"][0]["name"] == "rl-loop"
            assert reply.headers["Cache-Control"] == "no-store"


def test_the_app_has_it(tmp_path: Path) -> None:
    store, keys = open_store(tmp_path), Keys.for_loopback(tmp_path)
    host = Host(connect("local", device="cpu"), store, BaseModels(["embedded"]))
    # its lifespan, which would load the model, is not entered
    client = TestClient(make_app(host, keys, Links()))
    page = client.get("/")
    assert page.status_code == 200 and "<title>Autodidact server</title>" in page.text
    assert client.get("/favicon.ico").status_code == 204
    assert client.get("/page/status").status_code == 401
    assert client.get("/page/status", headers={"X-API-Key": "tml-x"}).status_code == 401
    status = client.get("/page/status", headers={"Authorization": f"Bearer {keys.shown}"}).json()
    assert status["base_models"] == ["embedded"] and status["sessions"] == 0
    assert status["your_clients"] == [] and status["your_open_requests"] == 0
    store.close()


def test_clients_are_shown_to_their_owner_alone(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    (tmp_path / "keys").write_text("".join(f"{name}:{key}\n" for name, key in KEYS.items()))
    host = Host(connect("local", device="cpu"), store, BaseModels(["embedded"]))
    client = TestClient(make_app(host, Keys.from_file(tmp_path / "keys"), Links()))
    session = host.create_session("ann", display_name="of ann")
    for owner, wanted in (("ann", [session]), ("bob", [])):
        status = client.get("/page/status", headers={"X-API-Key": KEYS[owner]}).json()
        assert [shown["session_id"] for shown in status["your_clients"]] == wanted
        # numbers are of all
        assert status["sessions"] == 1 and ("of ann" in str(status)) == bool(wanted)
    store.close()
