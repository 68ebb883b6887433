"""What it takes to make an engine's clients and samplers again: how each was made, what was saved
of it last, and the training since then.

Times are batches, which an engine runs one after the other. Nothing here runs or sends anything.
"""

import itertools
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.backends.pool.messages import Kept, Outcome, Request


@dataclass
class _Client:
    """`origin` makes it as it was first, always where that is `lasting`; `folder` holds it as it
    was after batch `saved`. One that is `released` is needed for its samplers alone."""

    base_model: str
    origin: Request
    lasting: bool
    saved: int
    folder: Path | None = None
    changed: bool = False
    released: bool = False


@dataclass
class _Sampler:
    """Made by `origin`, always where that is `lasting`, or from `folder`, or of the client `source`
    when its training is repeated. `is_ours`: whether the folder goes with the sampler."""

    base_model: str
    source: str | None = None
    origin: Request | None = None
    lasting: bool = False
    folder: Path | None = None
    is_ours: bool = False

    @property
    def needs_source(self) -> bool:
        return self.source is not None and self.folder is None


class Journal:
    """Of one engine. `store`: the folder that snapshots are written into, on storage of all."""

    def __init__(self, store: Path) -> None:
        self._store = store
        self._clients: dict[str, _Client] = {}
        self._samplers: dict[str, _Sampler] = {}
        # with what of them changed anything
        self._batches: list[tuple[int, list[Request]]] = []
        self._number = 0
        self._names = itertools.count()
        # of the training that would have to be repeated
        self.seconds = 0.0

    @property
    def num_clients(self) -> int:
        return len(self._clients)

    def record(
        self, requests: Sequence[Request], outcomes: Sequence[Outcome], seconds: float
    ) -> None:
        """A batch that the engine has run. What failed has changed nothing and is not repeated."""
        self._number += 1
        again = []
        for request, outcome in zip(requests, outcomes, strict=True):
            if outcome.error is not None:
                continue
            if request.kind == "release":
                self._released(request.method)
            elif request.kind == "create":
                self._created(request, outcome.value)
            elif request.kind == "sampler":
                assert request.keep_as is not None and request.target is not None
                base_model = self._clients[request.target].base_model
                self._samplers[request.keep_as] = _Sampler(base_model, request.target)
                again.append(request)
            elif request.kind == "train":
                assert request.target is not None
                self._clients[request.target].changed = True
                again.append(request)
            elif request.kind == "save" and (sampler := self._samplers.get(request.target or "")):
                self._put(sampler, request.args[0])
        if again:
            self._batches.append((self._number, again))
            self.seconds += seconds
        if any(request.kind == "release" for request in requests):
            self._drop_unneeded()

    def _created(self, request: Request, kept: Kept) -> None:
        assert request.keep_as is not None
        lasting = is_lasting(request)
        if kept.info is None:
            sampler = _Sampler(kept.base_model, origin=request, lasting=lasting)
            self._samplers[request.keep_as] = sampler
            if not lasting:
                self._put(sampler, Path(request.kwargs["model_path"]))
        else:
            client = _Client(kept.base_model, request, lasting, self._number)
            self._clients[request.keep_as] = client

    def _put(self, sampler: _Sampler, folder: Path) -> None:
        """What lies in the store stays as long as the sampler, what users name does not."""
        if folder.is_relative_to(self._store):
            sampler.folder = folder

    def _released(self, key: str) -> None:
        if key in self._clients:
            self._clients[key].released = True
        sampler = self._samplers.pop(key, None)
        if sampler is not None and sampler.folder is not None and sampler.is_ours:
            shutil.rmtree(sampler.folder, ignore_errors=True)

    @property
    def must_save(self) -> bool:
        """Whether something might not be made again, because users' folders come and go."""
        return any(_is_only_here(client) for client in self._clients.values()) or any(
            _is_only_here(sampler) and sampler.source is None for sampler in self._samplers.values()
        )

    def snapshot(self) -> list[Request]:
        """The requests that write all that has changed, each into a folder of its own."""
        clients = [
            self._save(key, with_optimizer=True)
            for key, client in self._clients.items()
            if not client.released and (client.changed or _is_only_here(client))
        ]
        samplers = [
            self._save(key) for key, sampler in self._samplers.items() if _is_only_here(sampler)
        ]
        return clients + samplers

    def saved(self, requests: Iterable[Request]) -> None:
        """Those of snapshot() are done; what came before them need not be repeated."""
        for request in requests:
            assert request.target is not None
            folder = request.args[0]
            if sampler := self._samplers.get(request.target):
                sampler.folder, sampler.is_ours = folder, True
            elif client := self._clients.get(request.target):
                if client.folder is not None:
                    shutil.rmtree(client.folder, ignore_errors=True)
                client.folder, client.saved, client.changed = folder, self._number, False
        self._drop_unneeded()

    def _save(self, key: str, **options: bool) -> Request:
        folder = self._store / f"{key}-{next(self._names)}"
        return Request("save", key, "save_into", (folder,), options)

    def _drop_unneeded(self) -> None:
        sources = {s.source for s in self._samplers.values() if s.needs_source}
        for key, client in list(self._clients.items()):
            if client.released and key not in sources:
                del self._clients[key]
                if client.folder is not None:
                    shutil.rmtree(client.folder, ignore_errors=True)
        kept = [(number, self._wanted(number, requests)) for number, requests in self._batches]
        self._batches = [(number, requests) for number, requests in kept if requests]
        if not self._batches:
            self.seconds = 0.0

    def _wanted(self, number: int, requests: Sequence[Request]) -> list[Request]:
        def is_wanted(request: Request) -> bool:
            if request.kind == "sampler":
                sampler = self._samplers.get(request.keep_as or "")
                return sampler is not None and sampler.needs_source
            client = self._clients.get(request.target or "")
            return client is not None and number > client.saved

        return [request for request in requests if is_wanted(request)]

    def rebuild(self) -> Iterator[list[Request]]:
        """Batches that bring a new engine to where the old one was: what was saved, then what came
        after it, cut as it was then."""
        made, let_go = [], []
        for key, client in self._clients.items():
            if client.folder is None:
                made.append(client.origin)
            else:
                method = "create_training_client_from_state_with_optimizer"
                arguments = (str(client.folder), client.base_model)
                made.append(Request("create", None, method, arguments, keep_as=key))
            if client.released:
                let_go.append(Request("release", None, key))
        for key, sampler in self._samplers.items():
            if sampler.folder is not None:
                made.append(sampler_from(key, sampler.folder, sampler.base_model))
            elif sampler.origin is not None:
                made.append(sampler.origin)
        batches = [made, *(requests for _, requests in self._batches), let_go]
        return (batch for batch in batches if batch)


def _is_only_here(held: _Client | _Sampler) -> bool:
    return not held.lasting and held.folder is None


def is_lasting(request: Request) -> bool:
    """Whether a client or sampler is made of nothing but the request and the base model, and not
    of a folder, which may be gone the next time."""
    if request.method == "create_lora_training_client":
        return request.kwargs.get("on_top_of") is None
    return request.method == "create_sampling_client" and request.kwargs.get("model_path") is None


def sampler_from(key: str, folder: Path, base_model: str) -> Request:
    arguments = {"model_path": str(folder), "base_model": base_model}
    return Request("create", None, "create_sampling_client", (), arguments, keep_as=key)
