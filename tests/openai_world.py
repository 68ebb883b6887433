"""The OpenAI face over a real host and a tiny model, on a server of this machine."""

import asyncio
import contextlib
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fastapi import FastAPI
from host_world import OWNER, Client, data_of, open_store
from live_app import Live, live

from training.api import AdamParams
from training.connect import connect
from training.serving.app import make_app
from training.serving.base_models import BaseModels
from training.serving.host import Host, HostOptions
from training.serving.keys import Keys
from training.serving.links import Links

BASE = "tiny"
KEYS = {OWNER: "tml-of-the-tests-1", "bob": "tml-of-the-tests-2"}
LARGE = AdamParams(learning_rate=0.5)


class World(NamedTuple):
    """`adapters`: tinker:// paths of checkpoints of one run, the later one trained further."""

    host: Host
    app: FastAPI
    server: Live
    folder: str
    service: Any
    adapters: tuple[str, str]

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        return self.server.loop

    def run(self, work: Awaitable[Any]) -> Any:
        """On the server's loop."""
        return self.server.run(work)


async def _train(host: Host) -> tuple[str, str]:
    client = Client(host)
    model = await client.create(BASE)
    paths = []
    for at, name in enumerate(("a", "b")):
        await client.train(model, data_of(at))
        await client.step(model, LARGE)
        paths.append(await client.save(model, name, kind="sampler_weights"))
    return paths[0], paths[1]


@contextlib.contextmanager
def openai_world(
    place: Path,
    folder: str,
    adapters_dir: Path | None = None,
    options: HostOptions | None = None,
) -> Iterator[World]:
    """A server of the model in `folder`, named BASE, and of two adapters on it."""
    service: Any = connect("local", checkpoint_dir=place / "checkpoints", device="cpu")
    store = open_store(place)
    bases = BaseModels([folder], {BASE: folder})
    host = Host(service, store, bases, options, adapters_dir=adapters_dir)
    (place / "keys.txt").write_text("".join(f"{name}:{KEYS[name]}\n" for name in KEYS))
    app = make_app(host, Keys.from_file(place / "keys.txt"), Links())
    try:
        with live(app) as server:
            world = World(host, app, server, folder, service, ("", ""))
            yield world._replace(adapters=world.run(_train(host)))
    finally:
        store.close()
