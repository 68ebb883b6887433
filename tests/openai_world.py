"""The OpenAI face over a real host and a tiny model, on a server of this machine."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import uvicorn
from fastapi import FastAPI
from host_world import OWNER, Client, data_of, open_store

from training.api import AdamParams
from training.connect import connect
from training.serving.app import make_app
from training.serving.base_models import BaseModels
from training.serving.host import Host
from training.serving.keys import Keys
from training.serving.links import Links

BASE = "tiny"
KEYS = {OWNER: "tml-of-the-tests-1", "bob": "tml-of-the-tests-2"}
LARGE = AdamParams(learning_rate=0.5)


class World(NamedTuple):
    """`adapters`: tinker:// paths of checkpoints of one run, the later one trained further."""

    host: Host
    app: FastAPI
    loop: asyncio.AbstractEventLoop
    url: str
    folder: str
    service: Any
    adapters: tuple[str, str]

    def run(self, work: Awaitable[Any]) -> Any:
        """On the server's loop."""

        async def wait() -> Any:
            return await work

        return asyncio.run_coroutine_threadsafe(wait(), self.loop).result(900)


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
def openai_world(place: Path, folder: str) -> Iterator[World]:
    """A server of the model in `folder`, named BASE, and of two adapters on it."""
    service: Any = connect("local", checkpoint_dir=place / "checkpoints", device="cpu")
    store = open_store(place)
    host = Host(service, store, BaseModels([folder], {BASE: folder}))
    (place / "keys.txt").write_text("".join(f"{name}:{KEYS[name]}\n" for name in KEYS))
    app = make_app(host, Keys.from_file(place / "keys.txt"), Links())
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on"))
    listener = socket.create_server(("127.0.0.1", 0))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve([listener])))
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        world = World(host, app, loop, url, folder, service, ("", ""))
        yield world._replace(adapters=world.run(_train(host)))
    finally:
        server.should_exit = True
        thread.join()
        loop.close()
        listener.close()
        store.close()
