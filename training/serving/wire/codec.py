"""The binary and JSON bodies of the Tinker protocol as types of training.api, and back.

Neither torch nor the SDK is imported. Decoding a large body takes tenths of a second: not a
thing for an event loop.
"""

from training.serving.wire.bodies import PROTOBUF, decompress, require_protobuf
from training.serving.wire.sampling_codec import (
    PromptTargets,
    SampleRequest,
    decode_sample,
    encode_sample,
)
from training.serving.wire.training_codec import (
    ForwardBackwardRequest,
    decode_forward_backward,
    encode_output,
)

__all__ = [
    "PROTOBUF",
    "ForwardBackwardRequest",
    "PromptTargets",
    "SampleRequest",
    "decode_forward_backward",
    "decode_sample",
    "decompress",
    "encode_output",
    "encode_sample",
    "require_protobuf",
]
