"""The page of the real server, over a tiny model: what a browser sees is what was trained."""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from browser import CHROMIUM, Browser
from host_world import STEP, Client, data_of, open_store, serve
from live_app import live
from tiny_chat import save_chat_model

from training.connect import connect
from training.serving.app import make_app
from training.serving.base_models import BaseModels
from training.serving.host import Host
from training.serving.keys import Keys
from training.serving.links import Links

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")

KEY, BENS = "tml-anne-0123456789abcdef", "tml-ben-0123456789abcdef"


class Served(NamedTuple):
    url: str
    path: str


def _trained(host: Host) -> str:
    async def scenario(host: Host) -> str:
        client = Client(host, "anne")
        model = await client.create()
        await client.train(model, data_of(0))
        await client.step(model, STEP)
        return await client.save(model, "first", kind="sampler_weights")

    return serve(host, scenario)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    folder = save_chat_model(tmp_path / "chat", favourites="abc")
    keys_file = tmp_path / "keys"
    keys_file.write_text(f"anne:{KEY}\nben:{BENS}\n")
    store = open_store(tmp_path)
    # trained by a server that is gone: the page shows what outlived it
    trainer = connect("local", checkpoint_dir=store.staging, device="cpu")
    path = _trained(Host(trainer, store, BaseModels([folder], {"an/alias": folder})))
    service = connect("local", checkpoint_dir=store.staging, device="cpu")
    host = Host(service, store, BaseModels([folder], {"an/alias": folder}))
    app = make_app(host, Keys.from_file(keys_file), Links())
    with live(app) as running:
        yield Served(f"{running.url}/", path)
    store.close()


def test_the_page_of_a_server(served: Served, tmp_path: Path) -> None:
    with Browser(tmp_path / "chromium") as browser:
        browser.open(served.url)
        browser.wait("!document.querySelector('#login').hidden")
        browser.open(f"{served.url}#key={KEY}")
        browser.wait("document.querySelectorAll('#checkpoints tbody tr').length === 1")
        assert "an/alias" in browser.text("#runs tbody tr")
        browser.wait("document.querySelector('#model-1').value !== ''")
        assert browser.value("document.querySelector('#model-1').value") == served.path
        browser.value("document.querySelector('#model-0').value = 'an/alias'")
        browser.value("document.querySelector('#max-tokens').value = '5'")
        browser.value("document.querySelector('#temperature').value = '0'")
        browser.type("#words", "abc")
        browser.press("Enter")
        browser.wait("document.querySelectorAll('.talk .note').length === 2")
        notes = [browser.text(f"#talk-{side} .note") for side in (0, 1)]
        assert all(note.endswith("/ s · cut at the limit") for note in notes), notes
        assert [len(browser.text(f"#talk-{side} .said.model")) > 0 for side in (0, 1)] == [True] * 2
        # the tokens of both are counted
        browser.wait("document.querySelectorAll('.tile .value')[4].innerText !== '0'")
        assert browser.text("#since").startswith("up for ")
        assert browser.problems == []
        assert all(url.startswith((served.url, "about:")) for url in browser.requests)
        # another owner sees nothing of it
        browser.open(f"{served.url}#key={BENS}")
        browser.wait("document.querySelector('#runs').innerText.startsWith('Nothing was trained')")
        assert served.path not in browser.value("document.body.innerHTML")
