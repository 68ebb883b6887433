"""What driver and engines tell each other: method calls on what an engine holds, and outcomes."""

import pickle
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from training.api import RequestFailedError

# what a request is to the engine's state:
# create: makes a client or a sampler; train: changes a client; sampler: a client's weights as they
# are become a sampler; save: writes a folder; ask: changes nothing; release: nobody needs it now
Kind = Literal["create", "train", "sampler", "save", "ask", "release"]


@dataclass(frozen=True)
class Request:
    """`method` of the object that the engine holds as `target` (None: its service), called with
    `args` and `kwargs`. What comes back is held as `keep_as`, where that is given, and described.
    """

    kind: Kind
    target: str | None
    method: str
    args: Sequence[Any] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    keep_as: str | None = None


class Kept(NamedTuple):
    """What is told of an object that stays on its engine."""

    base_model: str
    dtype: str | None
    info: Any = None


class UnpackableError(TypeError):
    """An argument of a request cannot be pickled."""


class Outcome(NamedTuple):
    """Of one request: its value or its error."""

    value: Any
    error: Exception | None


class LogLine(NamedTuple):
    name: str
    level: int
    text: str


class Answer(NamedTuple):
    """To a batch of requests; `seconds` is how long the engine took."""

    outcomes: list[Outcome]
    seconds: float
    log: list[LogLine]


def packed(message: Any) -> bytes:
    return pickle.dumps(message, protocol=pickle.HIGHEST_PROTOCOL)


def packed_requests(requests: Sequence[Request]) -> bytes:
    """Raises UnpackableError where an argument cannot be sent to another process."""
    try:
        return packed(requests)
    except Exception as error:
        # whatever a class of somebody else's does when it is pickled
        raise UnpackableError(
            f"an argument cannot be sent to an engine in another process: {error}"
        ) from error


def unpacked(message: bytes) -> Any:
    """Only of what the driver's own engines sent."""
    return pickle.loads(message)


def portable(error: Exception, where: str) -> Exception:
    """The error as another process can read it, of the same class where that one can be pickled,
    with the engine's traceback as a note."""
    told: Exception
    if isinstance(error, RequestFailedError):
        # subclasses hold on to the engine's own objects
        told = RequestFailedError(str(error), error.category)
    else:
        told = _copy(error)
    trace = "".join(traceback.format_exception(error))
    told.add_note(f"in {where}:\n{trace}")
    return told


def _copy(error: Exception) -> Exception:
    try:
        copy = unpacked(packed(error))
    except Exception:
        # whatever a class of somebody else's does when it is pickled
        copy = None
    if type(copy) is type(error) and str(copy) == str(error):
        return copy
    return RuntimeError(f"{type(error).__name__}: {error}")
