"""The JSON requests of the official SDK, with what may be in each field.

Fields are the SDK's; those that only other services have a use for are left out.
"""

import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from training.serving.storage.checkpoints import MAX_TTL_SECONDS
from training.serving.wire.received import Message

# what SQLite and JSON's other readers take whole
_MOST, _LONG = 2**31 - 1, 2**63 - 1
_METADATA_BYTES = 16 * 1024
HOUR = 3600


def _small(value: dict[str, Any]) -> dict[str, Any]:
    size = len(json.dumps(value))
    if size > _METADATA_BYTES:
        raise ValueError(f"{size} bytes of metadata; at most {_METADATA_BYTES} are kept")
    return value


Id = Annotated[str, Field(min_length=1, max_length=300)]
Name = Annotated[str, Field(max_length=1000)]
Number = Annotated[int, Field(ge=0, le=_MOST)]
Seconds = Annotated[int, Field(ge=HOUR, le=MAX_TTL_SECONDS)]
Metadata = Annotated[dict[str, Any], AfterValidator(_small)]


class CreateSession(Message):
    tags: Annotated[list[str], Field(default_factory=list, max_length=100)]
    user_metadata: Metadata | None = None
    sdk_version: Annotated[str, Field(max_length=100)] = ""


class OfSession(Message):
    session_id: Id


class FinishSession(Message):
    class Reason(Message):
        type: Literal["success", "errored", "interrupted"] = "success"

    reason: Reason = Reason()
    detail: Annotated[str, Field(max_length=100_000)] | None = None


class Lora(Message):
    rank: int = 32
    seed: Annotated[int, Field(ge=-_LONG, le=_LONG)] | None = None
    train_unembed: bool = True
    train_mlp: bool = True
    train_attn: bool = True


class Optimizer(Message):
    """The SDK has more of them, with more fields."""

    type: Literal["adamw"] = "adamw"


class CreateModel(Message):
    session_id: Id
    model_seq_id: Number
    base_model: Name
    lora_config: Lora | None = None
    user_metadata: Metadata | None = None
    optimizer_config: Optimizer = Optimizer()


class LoadWeights(Message):
    """With session_id and model_seq_id a new model; with model_id, as older SDKs ask, an empty one
    that was created before."""

    path: Name
    optimizer: bool
    session_id: Id | None = None
    model_seq_id: Number | None = None
    model_id: Id | None = None
    seq_id: Number | None = None
    base_model: Name | None = None
    user_metadata: Metadata | None = None
    optimizer_config: Optimizer | None = None


class OfModel(Message):
    model_id: Id
    seq_id: Number | None = None


class Adam(Message):
    learning_rate: float = 1e-4
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-12
    weight_decay: float = 0.0
    grad_clip_norm: float = 0.0


class OptimStep(OfModel):
    adam_params: Adam | None = None
    optimizer_params: Optimizer | None = None


class SaveWeights(OfModel):
    path: Name
    ttl_seconds: Seconds | None = None
    overwrite: bool = False
    user_metadata: Metadata | None = None


class SaveForSampler(OfModel):
    """Without `path` an ephemeral sampler, numbered within the session."""

    path: Name | None = None
    sampling_session_seq_id: Number | None = None
    kind: Name = "snapshot"
    ttl_seconds: Seconds | None = None
    user_metadata: Metadata | None = None


class SaveExternal(OfModel):
    path: Name
    ttl_seconds: Seconds | None = None
    age_encryption_recipients: list[str] | None = None


class CreateSamplingSession(Message):
    session_id: Id
    sampling_session_seq_id: Number
    base_model: Name | None = None
    model_path: Name | None = None


class StartUpload(Message):
    """The SDK also names a project, of which there are none here."""

    base_model: Name
    lora_config: Lora


class FinishUpload(Message):
    upload_id: Id


class OfRequest(Message):
    request_id: Id


class OfPath(Message):
    tinker_path: Name


class TimeToLive(Message):
    ttl_seconds: Seconds | None
