"""Short chats with a server, and a client that trains beside them."""

import contextlib
import queue
import threading
import time
from typing import Any, Self

from server_process import Server

from training.api import Datum
from training.connect import connect


def openai_client(server: Server) -> Any:
    import openai

    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0)


def chat(client: Any, name: str) -> float:
    """Seconds that a short completion takes."""
    started = time.perf_counter()
    client.chat.completions.create(
        model=name, messages=[{"role": "user", "content": "Name a colour."}], max_tokens=8
    )
    return time.perf_counter() - started


class Training:
    """A client that trains without a pause, in a thread, until the block ends."""

    def __init__(self, server: Server, name: str, data: list[Datum], rank: int) -> None:
        self._server = server
        self._name = name
        self._data = data
        self._rank = rank
        self._passes: queue.Queue[float] = queue.Queue()
        self._is_wanted = True
        self._thread = threading.Thread(target=self._train)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._is_wanted = False
        self._thread.join()

    def next_pass(self) -> float:
        """The seconds of the next one, when it is done."""
        return self._passes.get()

    def _train(self) -> None:
        with contextlib.closing(connect("tinker", base_url=self._server.url)) as service:
            trainer = service.create_lora_training_client(self._name, rank=self._rank)
            while self._is_wanted:
                started = time.perf_counter()
                trainer.forward_backward(self._data, "cross_entropy").result()
                self._passes.put(time.perf_counter() - started)
                trainer.optim_step().result()
