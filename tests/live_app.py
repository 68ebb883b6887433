"""An app of the server on a socket of this process, for tests that look into it as well."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Awaitable, Iterator
from typing import Any, NamedTuple

import uvicorn
from fastapi import FastAPI


class Live(NamedTuple):
    url: str
    loop: asyncio.AbstractEventLoop

    def run(self, work: Awaitable[Any]) -> Any:
        """On the server's loop."""

        async def wait() -> Any:
            return await work

        return asyncio.run_coroutine_threadsafe(wait(), self.loop).result(900)


@contextlib.contextmanager
def live(app: FastAPI) -> Iterator[Live]:
    """The app answers at `url` until the block ends."""
    # a browser keeps its connections open
    config = uvicorn.Config(app, log_level="warning", lifespan="on", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=lambda: loop.run_until_complete(server.serve([listener])))
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        yield Live(f"http://127.0.0.1:{listener.getsockname()[1]}", loop)
    finally:
        server.should_exit = True
        thread.join()
        loop.close()
        listener.close()
