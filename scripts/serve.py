"""Serve a model over HTTP: the Tinker protocol, for training and sampling, and OpenAI's endpoint.

    uv run scripts/serve.py
    uv run scripts/serve.py model_name=path/or/hub/id 'aliases={"Qwen/Qwen3-8B": "path"}' port=8010
    uv run scripts/serve.py host=0.0.0.0 api_keys_file=keys.txt

Programs written for the official tinker SDK run against it as they are; so do those that talk to
OpenAI's API. It prints its URL, a key, and commands to copy once the model is loaded. Ctrl-C or
SIGTERM ends it; checkpoints and lists stay in store_dir, and the next start goes on with them.
"""

import contextlib
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import chz
from dotenv import load_dotenv

from training.connect import (
    SAMPLER_DOC,
    SAMPLER_OPTIONS_DOC,
    SAMPLING_WEIGHTS_DOC,
    Sampler,
    SamplerOptions,
    SamplingWeights,
    connect,
)
from training.models import check_sampling_weights, resolve_model
from training.serving.keys import LOOPBACK_FILE, Keys
from utils.config.entrypoint import as_config_errors, config_entrypoint, held_log, raise_problems
from utils.config.help import MODEL, OUTPUT, WHAT, group
from utils.config.ranges import range_problems
from utils.devices import DTYPE_DOC, Dtype
from utils.interrupts import STOPPING, exit_when_stopped
from utils.runs.files import expanded, shown_path
from utils.terminal import command, shell_word

if TYPE_CHECKING:
    from training.serving.app import App

logger = logging.getLogger(__name__)

# addresses that no other machine can reach, and the names that a server there is asked by
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
# connections that may wait to be accepted
BACKLOG = 2048
# a client that hears nothing for longer opens a new connection
KEEP_ALIVE_SECONDS = 75
# tokens that each sample gets between two micro-batches of a training pass
DECODE_STEPS_WHILE_TRAINING = 16
# an idle engine waits until so long nothing has come: clients that were answered together ask again
# one by one
GATHER_SECONDS = 0.02
# what is not answered by then is cut off when the server ends
GRACE_SECONDS = 3
STOPS = "Stopping when the running computation is done; Ctrl-C again stops at once"
# a client may hold thousands of requests open, each on a connection of its own
OPEN_FILES = 65_536


@chz.chz(typecheck=True)
class Config:
    model_name: str = chz.field(
        default="embedded", doc="embedded, a folder or a hub id", metadata=WHAT
    )
    aliases: dict[str, str] = chz.field(
        default_factory=dict,
        doc='other names that clients may say, and the model each means: {"Qwen/Qwen3-8B": "path"}',
    )

    host: str = chz.field(
        default="127.0.0.1",
        doc="address to listen on; any but this machine's own needs api_keys_file",
        metadata=group("Address and keys"),
    )
    port: int = chz.field(default=8010, doc="0: any that is free")
    api_keys_file: Path | None = chz.field(
        default=None, doc="a key, or name:key, per line; default: one key, made for this store_dir"
    )

    device: str | None = chz.field(
        default=None, doc="cpu or cuda; default: cuda where there is one", metadata=MODEL
    )
    dtype: Dtype | None = chz.field(default=None, doc=DTYPE_DOC)
    sampler: Sampler = chz.field(default="local", doc=SAMPLER_DOC)
    sampler_options: SamplerOptions = chz.field(default_factory=dict, doc=SAMPLER_OPTIONS_DOC)
    sampling_weights: SamplingWeights | None = chz.field(default=None, doc=SAMPLING_WEIGHTS_DOC)
    max_train_tokens: int | None = chz.field(
        default=None,
        doc="of one micro-batch of a training pass, which samples that come meanwhile wait for; "
        "default: 2048 on a CPU, 16384 on a GPU",
    )
    adapters_dir: Path | None = chz.field(
        default=None,
        doc="clients may load PEFT folders below it by /v1/load_lora_adapter; default: none",
    )
    external_uploads: bool = chz.field(
        default=False, doc="clients may upload adapters, as SDKs from 0.39 on can"
    )
    max_rank: int = chz.field(default=256, doc="highest rank of an adapter")
    max_open_requests: int = chz.field(
        default=10_000, doc="requests that one key may have waiting; more are refused for a while"
    )
    session_seconds: int = chz.field(
        default=300, doc="a client silent for longer loses its adapters in memory"
    )

    store_dir: Path = chz.field(
        default=Path("runs/serving"), doc="checkpoints and lists", metadata=OUTPUT
    )
    access_log: bool = chz.field(default=True, doc="a line per request on stderr")
    dry_run: bool = chz.field(default=False, doc="check everything, and stop before loading")

    @chz.validate
    def _check(self) -> None:
        problems = []
        if not 0 <= self.port <= 65535:
            problems.append(f"port={self.port}: 0 to 65535 is needed")
        if self.host not in LOOPBACK and self.api_keys_file is None:
            problems.append(
                f"host={self.host!r}: others can reach that address, so api_keys_file is needed, a "
                "file with one key per line"
            )
        store = expanded(self.store_dir)
        if store.exists() and not store.is_dir():
            problems.append(f"store_dir={str(self.store_dir)!r}: it is a file, a folder is needed")
        if self.adapters_dir is not None and not expanded(self.adapters_dir).is_dir():
            problems.append(f"adapters_dir={str(self.adapters_dir)!r}: there is no such folder")
        counts = ("max_train_tokens", "max_rank", "max_open_requests", "session_seconds")
        problems += range_problems(self, at_least_1=counts)
        raise_problems(problems)


def main(config: Config) -> None:
    load_dotenv()
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    logging.getLogger("training.serving.access").disabled = not config.access_log
    with (
        exit_when_stopped(lambda: "Stopped before anything was served."),
        contextlib.ExitStack() as opened,
    ):
        with held_log(), as_config_errors():
            listener = opened.enter_context(bound(config.host, config.port))
            url = url_of(config.host, listener)
            resolve_model(config.model_name)
            check_sampling_weights(config.model_name, config.sampling_weights)
            for alias, name in config.aliases.items():
                with naming(f"aliases.{alias}"):
                    resolve_model(name)
                    check_sampling_weights(name, config.sampling_weights)
            if config.dry_run:
                check_store_and_keys(config)
                print(f"{config.model_name} would be served at {url}")
                return
            keys = keys_of(config)
            app = loaded(config, keys)
        allow_open_files()
        serve(app, listener, lambda: print(greeting(config, url, keys), flush=True))


@contextlib.contextmanager
def naming(setting: str) -> Iterator[None]:
    """The setting whose value is looked at, before what is said of it."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise ValueError(f"{setting}: {error}") from error


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that listens at the address: who connects before the model is loaded waits for it,
    and a second server finds the address taken at once. Raises ValueError where it is.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ValueError(f"host={host!r}: no address of that name ({error.strerror})") from error
    # asyncio sends small packets at once (TCP_NODELAY) only where the protocol is said; without, a
    # reply of two writes waits 40 ms for the client's delayed acknowledgement
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        # a server that ended a moment ago does not keep its port, unlike one that runs
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError as error:
            free = "; choose another, or 0 for any that is free" if port else ""
            raise ValueError(f"host={host!r}, port={port}: {error.strerror}{free}") from error
        yield listener


def url_of(host: str, listener: socket.socket) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"


def keys_of(config: Config) -> Keys:
    """Raises ValueError."""
    if config.api_keys_file is not None:
        return Keys.from_file(config.api_keys_file)
    return Keys.for_loopback(expanded(config.store_dir))


def check_store_and_keys(config: Config) -> None:
    """Raises ValueError where a start would, and leaves nothing behind."""
    from training.serving.base_models import BaseModels
    from training.serving.links import SECRET_FILE, Links
    from training.serving.store import check_store

    BaseModels([config.model_name], config.aliases)
    folder = expanded(config.store_dir)
    if config.api_keys_file is not None or (folder / LOOPBACK_FILE).exists():
        keys_of(config)
    if (folder / SECRET_FILE).exists():
        Links.of_store(folder)
    check_store(folder)


def loaded(config: Config, keys: Keys) -> "App":
    """The app, with the model in memory. Raises ValueError, for a store of another version too."""
    from training.serving.app import AppOptions, make_app
    from training.serving.base_models import BaseModels
    from training.serving.host import Host, HostOptions
    from training.serving.links import Links
    from training.serving.store import Store

    options = HostOptions(
        max_rank=config.max_rank,
        max_open_requests=config.max_open_requests,
        session_seconds=config.session_seconds,
        uploads=config.external_uploads,
    )
    is_local = config.host in LOOPBACK
    adapters_dir = None if config.adapters_dir is None else expanded(config.adapters_dir)
    store = Store(expanded(config.store_dir))
    links = Links.of_store(store.folder)
    models = BaseModels([config.model_name], config.aliases, has_local_clients=is_local)
    service = connect(
        "local",
        device=config.device,
        dtype=config.dtype,
        sampler=config.sampler,
        sampler_options=config.sampler_options,
        sampling_weights=config.sampling_weights,
        # on the disk of the store, which takes what is written there in
        checkpoint_dir=store.staging,
        max_rows=options.engine_rows + options.reserved_rows,
        max_train_tokens=config.max_train_tokens,
        decode_steps_while_training=DECODE_STEPS_WHILE_TRAINING,
        gather_seconds=GATHER_SECONDS,
    )
    service.create_sampling_client(base_model=config.model_name)
    host = Host(service, store, models, options, adapters_dir=adapters_dir)
    return make_app(host, keys, links, AppOptions(hosts=LOOPBACK if is_local else None))


def allow_open_files() -> None:
    """As many as the system lets this process have; it often starts with 1024."""
    if sys.platform != "win32":
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        if most > soft:
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def serve(app: "App", listener: socket.socket, ready: Callable[[], None]) -> None:
    """To Ctrl-C or SIGTERM. `ready` is called when requests are answered."""
    import asyncio

    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                ready()

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            app.polls.end()
            # a short answer still comes; a long one ends with an error that its client reads
            asyncio.get_running_loop().call_later(GRACE_SECONDS / 2, app.release_waiters)
            await super().shutdown(sockets)

        def stop(self, number: int, frame: FrameType | None) -> None:
            if self.should_exit:
                # the store bears it at any moment
                os._exit(128 + number)
            print(STOPS, file=sys.stderr, flush=True)
            self.handle_exit(number, frame)

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            # uvicorn's own raises them again at the end, as if the server had been cut off
            before = {number: signal.signal(number, self.stop) for number in STOPPING}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    config = uvicorn.Config(
        app,
        log_config=None,
        # ours tells more
        access_log=False,
        log_level="warning",
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    Server(config).run([listener])


def greeting(config: Config, url: str, keys: Keys) -> str:
    """Where it is, and two commands to copy."""
    key = keys.shown or "$KEY"
    told = keys.shown or f"one of {shown_path(expanded(config.api_keys_file or ''))}"
    again = command(
        "rl_loop",
        domain="gym",
        task="chain_sum",
        backend="tinker",
        base_url=url,
        model_name=config.model_name,
    )
    body = json.dumps(
        {"model": config.model_name, "messages": [{"role": "user", "content": "Hello"}]}
    )
    return f"""
Serving {config.model_name}; Ctrl-C ends it, checkpoints stay in {shown_path(config.store_dir)}
  URL  {url}
  Key  {told}
  Page {url}/{"" if keys.shown is None else f"#key={keys.shown}"}

Train and sample with the tinker SDK, its recipes, or our own scripts:
  TINKER_API_KEY={key} {again}
Chat as with OpenAI's API:
  curl {url}/v1/chat/completions -H "Authorization: Bearer {key}" \\
    -H "Content-Type: application/json" -d {shell_word(body)}
"""


if __name__ == "__main__":
    config_entrypoint(main)
