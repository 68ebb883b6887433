"""Requests of one key to the Tinker face, without the SDK."""

from typing import Any

import numpy as np

from training.serving.app import TINKER
from training.serving.wire import tinker_public_pb2 as pb
from training.serving.wire.bodies import PROTOBUF

KEYS = {"ann": "tml-" + "a" * 30, "bob": "tml-" + "b" * 30}
PROTO = {"content-type": PROTOBUF, "accept": PROTOBUF}


class Caller:
    """`client` is a TestClient or an httpx.Client of the server."""

    def __init__(self, client: Any, name: str) -> None:
        self._client = client
        self._headers = {"X-API-Key": KEYS[name]}

    def ask(self, method: str, path: str, **more: Any) -> Any:
        headers = {**self._headers, **more.pop("headers", {})}
        return self._client.request(method, TINKER + path, headers=headers, **more)

    def post(self, route: str, /, **body: Any) -> Any:
        return self.ask("POST", route, json=body)

    def done(self, reply: Any) -> Any:
        """What a request for work comes to."""
        assert reply.status_code == 200, reply.text
        found = self.post("/retrieve_future", request_id=reply.json()["request_id"])
        assert found.status_code == 200, found.text
        return found.json()

    def session(self) -> str:
        return self.post("/create_session", tags=[], sdk_version="0.38.0").json()["session_id"]

    def model(self, session_id: str, number: int = 0, *, base: str = "tiny", rank: int = 2) -> str:
        reply = self.post(
            "/create_model",
            session_id=session_id,
            model_seq_id=number,
            base_model=base,
            lora_config={"rank": rank, "seed": 0},
        )
        return self.done(reply)["model_id"]

    def train(self, model_id: str, seq_id: int, loss: str = "cross_entropy") -> Any:
        body = training_body(model_id, seq_id, loss)
        return self.ask("POST", "/forward_backward", content=body, headers=PROTO)


def training_body(model_id: str, seq_id: int, loss: str = "cross_entropy") -> bytes:
    tokens = np.array([5, 6, 7], dtype=np.int32)
    targets = np.array([6, 7, 8], dtype=np.int64)
    datum = pb.Datum(
        model_input=[pb.Chunk(encoded_text=pb.EncodedTextChunk(tokens=tokens.tobytes()))],
        loss_fn_inputs={
            "target_tokens": pb.Tensor(dense=targets.tobytes(), dtype=pb.DTYPE_INT64, shape=[3])
        },
    )
    request = pb.ForwardBackwardRequest(
        model_id=model_id, seq_id=seq_id, data=[datum], loss_fn=loss
    )
    return request.SerializeToString()
