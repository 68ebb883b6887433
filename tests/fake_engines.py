"""Engines for the pool's tests without a model: a whole number is an adapter, sums are training.

They live in this process and are lost when a test says so, before or after what they were asked.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from training.api import AdamParams, Datum, GetInfoResponse, ModelData, ModelInput, SamplingParams
from training.backends.pool.host import EngineHost, EngineSettings
from training.backends.pool.messages import Request, packed, unpacked
from training.backends.pool.transport import EngineLostError

MODULUS = 1_000_003


@dataclass
class FakeTrainer:
    model_id: str
    weight: int
    gradient: int = 0

    def get_info(self) -> GetInfoResponse:
        return GetInfoResponse(ModelData(), self.model_id, True, 1, "fake")

    def forward(self, data: list[Datum], loss_fn: str, _config: Any = None) -> int:
        if loss_fn != "cross_entropy":
            raise ValueError(f"loss_fn={loss_fn!r}: allowed is cross_entropy")
        return (self.weight * 31 + sum(d.model_input.length for d in data)) % MODULUS

    def forward_backward(self, data: list[Datum], loss_fn: str, _config: Any = None) -> int:
        loss = self.forward(data, loss_fn)
        self.gradient = (self.gradient * 7 + loss + 1) % MODULUS
        return loss

    def optim_step(self, params: AdamParams | None) -> int:
        self.weight = (self.weight * 13 + self.gradient) % MODULUS
        self.gradient = 0
        return self.weight

    def save_into(self, folder: Path, *, with_optimizer: bool, overwrite: bool = False) -> str:
        if folder.exists() and not overwrite:
            raise FileExistsError(f"{folder} exists")
        folder.mkdir(parents=True, exist_ok=True)
        state = [self.weight, self.gradient if with_optimizer else 0]
        (folder / "state.json").write_text(json.dumps(state), encoding="utf-8")
        return str(folder)

    def save_weights_and_get_sampling_client(self) -> "FakeSampler":
        return FakeSampler(self.weight)


@dataclass
class FakeSampler:
    weight: int
    dtype: str = "float32"

    def get_base_model(self) -> str:
        return "fake"

    def sample(
        self, prompt: ModelInput, *, num_samples: int, sampling_params: SamplingParams, **_: Any
    ) -> int:
        assert sampling_params.seed is not None
        return (self.weight * 17 + prompt.length * num_samples + sampling_params.seed) % MODULUS

    def compute_logprobs(self, prompt: ModelInput) -> list[float]:
        return [float(self.weight + prompt.length)]

    def save_into(self, folder: Path, *, overwrite: bool = False) -> str:
        return FakeTrainer("", self.weight).save_into(
            folder, with_optimizer=False, overwrite=overwrite
        )


class FakeService:
    def engine(self, base_model: str) -> None:
        pass

    def create_lora_training_client(
        self, base_model: str, seed: int, **options: Any
    ) -> FakeTrainer:
        if base_model == "none":
            raise ValueError("no such model")
        return FakeTrainer("fake", seed)

    def create_training_client_from_state(self, path: str, base_model: str | None) -> FakeTrainer:
        return FakeTrainer("fake", _read(path)[0])

    def create_training_client_from_state_with_optimizer(
        self, path: str, base_model: str | None
    ) -> FakeTrainer:
        return FakeTrainer("fake", *_read(path))

    def create_sampling_client(
        self, model_path: str | None = None, base_model: str | None = None
    ) -> FakeSampler:
        return FakeSampler(0 if model_path is None else _read(model_path)[0])


def _read(path: str) -> list[int]:
    return json.loads((Path(path) / "state.json").read_text(encoding="utf-8"))


class FakeHost(EngineHost):
    def _open(self) -> Any:
        return FakeService()


@dataclass
class FakeTransport:
    """`fate(engine, call, requests)` says of each call of an engine, all its starts together,
    whether it is lost "before" or "after" it. `calls` and `batches` is what was asked of it."""

    settings: EngineSettings
    silence: float = 60
    fate: Callable[[int, int, list[Request]], str | None] = lambda *_: None
    starts: list[int] = field(default_factory=list)
    calls: dict[int, int] = field(default_factory=dict)
    batches: list[tuple[int, list[Request]]] = field(default_factory=list)
    alive: set["FakeLink"] = field(default_factory=set)
    # raised instead of starting
    refuse: Callable[[int], Exception | None] = lambda _: None

    def start(self, index: int) -> "FakeLink":
        if (error := self.refuse(len(self.starts))) is not None:
            self.starts.append(index)
            raise error
        self.starts.append(index)
        link = FakeLink(self, index)
        self.alive.add(link)
        return link

    def close(self) -> None:
        assert not self.alive


class FakeLink:
    pid = 1
    place = "nowhere"

    def __init__(self, transport: FakeTransport, index: int) -> None:
        self._transport = transport
        self._index = index
        self._host = FakeHost(index, transport.settings)
        self._lost = False

    def run(self, message: bytes) -> bytes:
        transport, index = self._transport, self._index
        requests: list[Request] = unpacked(message)
        call = transport.calls[index] = transport.calls.get(index, -1) + 1
        transport.batches.append((index, requests))
        fate = transport.fate(index, call, requests)
        self._lost = self._lost or fate == "before"
        if self._lost:
            raise EngineLostError("lost before")
        answer = self._host.run(packed(requests))
        if fate == "after":
            self._lost = True
            raise EngineLostError("lost after")
        return answer

    def kill(self) -> None:
        self._transport.alive.discard(self)
